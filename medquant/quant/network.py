"""The trainable quantized network: any graph, run operation by operation with fake-quantized weights and activations.

In evaluation mode and float32 it computes the integer program's values bit for bit: every value is an integer times a power
of two, and float32 sums such integers exactly below 2**24; a layer whose accumulators can be larger runs in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from medquant.errors import ConfigError
from medquant.quant.calibration import thin_out
from medquant.quant.convolution import convolve
from medquant.quant.fake_quantize import round_to_grid
from medquant.quant.float_run import run_float
from medquant.quant.formats import FLOAT32_EXACT_LIMIT, float32_adds_exactly
from medquant.quant.graph import (
    Add,
    AvgPool,
    BatchNorm,
    Concat,
    Convolution,
    FloatOperation,
    Graph,
    Input,
    Linear,
    MaxPool,
    Operation,
    Relu,
    Upsample,
)
from medquant.quant.layers import QuantizedLayers, layer_key
from medquant.quant.methods.base import (
    IntegerActivationQuantizer,
    IntegerWeightQuantizer,
    Method,
)
from medquant.quant.plan import QuantPlan

_MAX_POOL = {2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}
_LINEAR = {2: "bilinear", 3: "trilinear"}


class QuantNetwork(QuantizedLayers):
    """A network with a quantizer where the plan asks for one.

    Shape: (N, C, *S) → (N, outputs, *S), real values (integers times powers of two where quantized).

    Its arguments are those of :class:`~medquant.quant.layers.QuantizedLayers`.
    """

    def __init__(self, graph: Graph, plan: QuantPlan, method: Method) -> None:
        super().__init__(graph, plan, method)
        self._last_reader = _last_readers(graph)
        self._observed: dict[str, list[Tensor]] | None = None
        self.controller.prepare(self)

    # --- around a training step -----------------------------------------------------------------------------------

    def before_step(self, done: float) -> None:
        """Tell the method that a training step begins; ``done`` is the share of quantized training behind it, in [0, 1)."""
        self.controller.before_step(self, done)

    def batch_was_shared(self, processes: int) -> None:
        """Scale the gradients of learned activation steps, summed over equal parts of a batch, as one process would have."""
        scale = self.method.shared_step_scale(processes)
        for parameter in self.activation_quantizers.parameters():
            if scale != 1.0 and parameter.grad is not None:
                parameter.grad.mul_(scale)

    def after_backward(self) -> None:
        """Tell the method that the gradients are there."""
        self.controller.after_backward(self)

    def after_step(self) -> None:
        """Tell the method that the weights have changed."""
        self.controller.after_step(self)

    # --- running ------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Run the graph; outside training the average of as many passes as the method asks for."""
        if self.training or self._observed is not None:
            return self._pass(x)
        passes = self.controller.evaluation_passes()
        self.controller.before_pass(self, 0)
        logits = self._pass(x)
        for index in range(1, passes):
            self.controller.before_pass(self, index)
            logits = logits + self._pass(x)
        return logits if passes == 1 else logits / passes

    def _pass(self, x: Tensor) -> Tensor:
        """Run the graph once; tensors are released after their last reader."""
        exponents = self.exponents()
        values: dict[str, Tensor] = {}
        for operation in self.graph:
            values[operation.name] = self._run(operation, x, values, exponents)
            for source in operation.inputs:
                if self._last_reader[source] == operation.name:
                    values.pop(source, None)  # an operation may read one tensor twice
        return values[self.graph.output]

    def walk(self, images: Sequence[Tensor], visit: Callable[[Convolution, list[Tensor]], list[Tensor]], quantized: bool = True) -> None:
        """Run all images side by side, one operation at a time; float32 throughout, so wide sums may miss their last bits.

        Args:
            images: each (N, C, *S).
            visit: sees what each convolution computes for every image, before rectifier and quantizer, and returns what goes on.
            quantized: False runs the float network over the same latent weights.
        """
        exponents, observed = self.exponents(), self._observed
        values: list[dict[str, Tensor]] = [{} for _ in images]
        self._observed = observed if quantized else {}
        try:
            for operation in self.graph:
                if isinstance(operation, Convolution):
                    outputs = visit(operation, [self._convolve(operation, held[operation.inputs[0]], exponents, False) for held in values])
                    written = [self._write(operation, output, exponents, operation.relu) for output in outputs]
                else:
                    written = [self._run(operation, image, held, exponents) for image, held in zip(images, values, strict=True)]
                for held, result in zip(values, written, strict=True):
                    held[operation.name] = result
                    for source in operation.inputs:
                        if self._last_reader[source] == operation.name:
                            held.pop(source, None)
        finally:
            self._observed = observed

    def _run(self, operation: Operation, image: Tensor, values: dict[str, Tensor], exponents: dict[str, int]) -> Tensor:
        inputs = [values[name] for name in operation.inputs]
        if isinstance(operation, Convolution):
            return self._write(operation, self._convolve(operation, inputs[0], exponents), exponents, operation.relu)
        if isinstance(operation, Input):
            return self._write(operation, image, exponents, relu=False)
        if isinstance(operation, BatchNorm):
            return self._write(operation, self.norms[layer_key(operation.name)](inputs[0]), exponents, operation.relu)
        if isinstance(operation, Concat):
            return torch.cat(inputs, dim=1)
        if isinstance(operation, MaxPool):
            return _MAX_POOL[len(operation.kernel)](inputs[0], operation.kernel, operation.stride, operation.padding)
        if isinstance(operation, Relu):
            return torch.relu(inputs[0])
        if isinstance(operation, Add):
            return self._write(operation, self._sum(operation, inputs, exponents), exponents, operation.relu)
        if isinstance(operation, AvgPool):
            pooled = _AVG_POOL[len(operation.kernel)](inputs[0], operation.kernel, operation.stride)
            return self._write(operation, pooled, exponents, relu=False)
        if isinstance(operation, Upsample):
            if operation.mode == "nearest":
                return F.interpolate(inputs[0], scale_factor=operation.factor, mode="nearest")
            if not torch.is_grad_enabled() or self.activation_bits(operation.name) is None:
                return self._up_sample(operation, inputs[0], exponents)
            # The tensors before and behind this quantizer are the largest of the network, and nothing else keeps them for the
            # backward pass: computing them again there costs little and saves about a tenth of a step's memory.
            again: Tensor = checkpoint(self._up_sample, operation, inputs[0], exponents, use_reentrant=False, preserve_rng_state=False)
            return again
        if isinstance(operation, Linear):
            return self._write(operation, self._multiply(operation, inputs[0]), exponents, relu=False)
        if isinstance(operation, FloatOperation):
            computed = run_float(operation, inputs, self.float_tensors.of(operation), image.shape[0])
            return self._write(operation, computed, exponents, relu=False)
        raise ConfigError(f"{operation.name}: no way to run {type(operation).__name__}")

    def _multiply(self, operation: Linear, x: Tensor) -> Tensor:
        weight, bias = self.layer_parameters(operation.name, self.training)
        quantizer = None if self._observed is not None else self.weight_quantizer(operation.name)
        return F.linear(x, weight if quantizer is None else quantizer(weight), bias)

    def _sum(self, operation: Add, inputs: list[Tensor], exponents: dict[str, int]) -> Tensor:
        first, second = (exponents.get(self.sharing.group_of(name), 0) for name in operation.inputs)
        exact = self.training or self._observed is not None or float32_adds_exactly(first, second)
        return inputs[0] + inputs[1] if exact else inputs[0].double() + inputs[1]

    def _up_sample(self, operation: Upsample, x: Tensor, exponents: dict[str, int]) -> Tensor:
        up = F.interpolate(x, scale_factor=operation.factor, mode=_LINEAR[operation.spatial_axes], align_corners=False)
        return self._write(operation, up, exponents, relu=False)

    def _write(self, operation: Operation, x: Tensor, exponents: dict[str, int], relu: bool) -> Tensor:
        """What an operation leaves in memory: its values, rectified and quantized as the plan says."""
        bits = self.activation_bits(operation.name)
        if self._observed is not None:
            x = torch.relu(x) if relu else x
            _observe(self._observed, operation.name, x)
            return x
        if bits is None:
            return torch.relu(x) if relu else x
        group = self.sharing.group[operation.name]
        quantizer = self.activation_quantizer(operation.name)
        if quantizer is None:
            raise ConfigError(f"{operation.name} has {bits} activation bits but no quantizer")
        # A shared zero point above 0 leaves room below real zero that a tensor without negative values never uses.
        quantized: Tensor = quantizer(x, exponents.get(group, 0), bits, relu)
        return quantized.float() if quantized.dtype == torch.float64 else quantized

    def _convolve(self, operation: Convolution, x: Tensor, exponents: dict[str, int], exact: bool = True) -> Tensor:
        weight, bias = self.layer_parameters(operation.name, self.training)
        quantizer = None if self._observed is not None else self.weight_quantizer(operation.name)
        reads = self.activation_quantizer(operation.inputs[0])
        if quantizer is not None:
            weight, bias = quantizer(weight), quantizer.bias(bias)
            if isinstance(quantizer, IntegerWeightQuantizer) and isinstance(reads, IntegerActivationQuantizer):
                exponent = exponents[self.sharing.group_of(operation.inputs[0])]
                grid = torch.exp2(-(quantizer.exponents() + exponent).float())
                bias = round_to_grid(bias, _per_channel(grid, operation))
                if exact and not self.training and self._is_wide(operation, weight, bias, grid, exponents):
                    x, weight, bias = x.double(), weight.double(), bias.double()
        sums = convolve(x, weight, bias, operation.geometry)
        return sums if quantizer is None else quantizer.sums(sums)

    def _is_wide(self, operation: Convolution, weight: Tensor, bias: Tensor, grid: Tensor, exponents: dict[str, int]) -> bool:
        """Whether some accumulator could reach 2**24, judged from the actual integers."""
        read = self.tensor_format(operation.inputs[0], exponents)
        if read is None:
            return False
        with torch.no_grad():
            step = torch.exp2(-torch.tensor(float(read.exponent)))
            integers = (weight / (grid / step)).abs()
            sums = integers.sum(dim=[axis for axis in range(weight.dim()) if axis != operation.geometry.channel_axis])
            # A transposed weight's groups share the channel axis: their sum bounds each of them.
            bound = float(sums.max()) * read.largest_magnitude + float((bias / _per_channel(grid, operation)).abs().max())
        return bound >= FLOAT32_EXACT_LIMIT

    # --- calibration --------------------------------------------------------------------------------------------

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Start every step from a search over the float network's own weights and activations.

        Args:
            batches: images of the training cases, each of shape (N, C, *S).

        Raises:
            ConfigError: there is no batch, or the network is not finite on it.
        """
        images = list(batches)
        self.method.before_calibration(self)
        self._observed, was_training = {}, self.training
        # Batch norm that is kept must not learn from the images twice.
        self.eval()
        try:
            with torch.no_grad():
                for batch in images:
                    self.forward(batch)
            observed = self._observed
        finally:
            self._observed = None
            self.train(was_training)
        if not observed:
            raise ConfigError("calibration needs at least one batch of training images, found none")
        for group in dict.fromkeys(self.sharing.group.values()):
            quantizer = self.activation_quantizer(group)
            if quantizer is not None:
                quantizer.initialise(self._group_samples(group, observed), group in self.sharing.signed)
        for name in [operation.name for operation in self.graph if isinstance(operation, Convolution | Linear)]:
            weight_quantizer = self.weight_quantizer(name)
            if weight_quantizer is not None:
                with torch.no_grad():
                    weight_quantizer.initialise(self.weights[layer_key(name)])
        self.method.calibrated(self, images)

    def _group_samples(self, group: str, observed: dict[str, list[Tensor]]) -> dict[int, Tensor]:
        samples: dict[int, list[Tensor]] = {}
        for site, owner in self.sharing.group.items():
            bits = self.activation_bits(site)
            if owner == group and bits is not None:
                samples.setdefault(bits, []).extend(observed[site])
        joined = {bits: torch.cat(parts) for bits, parts in samples.items()}
        if not all(bool(torch.isfinite(values).all()) for values in joined.values()):
            raise ConfigError(f"calibration met values at {group} that are not finite; the float network has diverged")
        return joined


def _per_channel(grid: Tensor, operation: Convolution) -> Tensor:
    """A weight-shaped grid of exponents as one value for each output channel."""
    flat = grid.reshape(-1)
    return flat if flat.numel() == operation.out_channels else flat.expand(operation.out_channels)


def _last_readers(graph: Graph) -> dict[str, str]:
    last: dict[str, str] = {}
    for operation in graph:
        for source in operation.inputs:
            last[source] = operation.name
    last[graph.output] = ""
    return last


def _observe(observed: dict[str, list[Tensor]], name: str, x: Tensor) -> None:
    observed.setdefault(name, []).append(thin_out(x))
