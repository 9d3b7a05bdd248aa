"""What quantization did to each layer: error, saturation and zeros of weights and activations, and histograms of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medquant.quant.formats import FLOAT_BITS, weight_range
from medquant.quant.graph import Convolution, Graph, Linear
from medquant.quant.methods.base import IntegerWeightQuantizer, WeightQuantizer
from medquant.quant.network import QuantNetwork
from medquant.quant.program import IntegerProgram

SCHEMA = 1
BINS = 48

FloatArray = NDArray[np.float64]


def layer_statistics(network: QuantNetwork, twin: Graph | None, images: Sequence[Tensor] = ()) -> dict[str, object]:
    """The statistics of a trained quantized network, as JSON values.

    Args:
        network: in evaluation mode.
        twin: the simplified graph of its float twin, None where there is none.
        images: each (N, C, *S), on the network's device; activations are measured on them, and not at all without any.

    Returns:
        ``layers``: one entry for each layer that has weights or writes a quantized tensor; ``activation_images``: how many images.
        Shares are in 0..1; what does not exist or was not measured is None.
    """
    # Where batch norm is kept, the size of the weights before it means nothing: those of the twin are no measure.
    weights = dict(_twin_weights(twin)) if twin is not None and not network.norms else {}
    measured = _activation_shares(network, images)
    exponents = network.exponents()
    rows = []
    for operation in network.graph:
        has_weights = isinstance(operation, Convolution | Linear)
        bits = network.plan[operation.name].activation_bits if operation.name in network.sharing.group else None
        if not has_weights and bits in (None, FLOAT_BITS):
            continue
        stored = network.tensor_format(operation.name, exponents) if bits not in (None, FLOAT_BITS) else None
        row: dict[str, object] = {
            "name": operation.name,
            "activation_bits": bits,
            "activation_exponent": None if stored is None else stored.exponent,
            "activation_zero_point": None if stored is None else stored.zero_point,
            **measured.get(operation.name, {"activation_zero": None, "activation_saturated": None}),
            **(_weight_row(network, operation.name, weights.get(operation.name)) if has_weights else {}),
        }
        rows.append(row)
    return {"schema": SCHEMA, "layers": rows, "activation_images": sum(len(batch) for batch in images)}


def float_statistics(graph: Graph) -> dict[str, object]:
    """The same of a float network: the histograms alone."""
    rows = []
    for name, weight in _twin_weights(graph):
        rows.append({"name": name, "activation_bits": FLOAT_BITS, "weight_bits": FLOAT_BITS, "weights": weight.size})
        rows[-1] |= {"weight_zero": _share(weight == 0.0), "histogram": histogram(weight, None, "weights")}
    return {"schema": SCHEMA, "layers": rows, "activation_images": 0}


def program_statistics(program: IntegerProgram) -> dict[str, object]:
    """The same of a model file alone, which holds no float weights: no error, and histograms of the quantized weights only."""
    rows: list[dict[str, object]] = []
    for node in program.convolutions:
        transposed = node.geometry.transposed and node.geometry.groups == 1
        shape = [1] * node.weight.ndim
        # Grouped transposed weights have one exponent for all channels.
        exponents = node.weight_exponents if transposed or not node.geometry.transposed else node.weight_exponents[:1]
        shape[1 if transposed else 0] = len(exponents)
        values = node.weight * 2.0 ** -exponents.reshape(shape).astype(np.float64)
        rows.append(
            {
                "name": node.name,
                "activation_bits": None if node.output is None else node.output.bits,
                "activation_exponent": None if node.output is None else node.output.exponent,
                "activation_zero_point": None if node.output is None else node.output.zero_point,
                "weight_bits": node.weight_bits,
                "weights": node.weight.size,
                "weight_exponents": [int(node.weight_exponents.min()), int(node.weight_exponents.max())],
                **_integer_shares(node.weight, node.weight_bits),
                "histogram": histogram(None, values.ravel(), ""),
            }
        )
    return {"schema": SCHEMA, "layers": rows, "activation_images": 0}


def histogram(before: FloatArray | None, after: FloatArray | None, before_name: str) -> dict[str, object]:
    """Counts of the weights before and after quantization over the same bins.

    Args:
        before: flat float weights, or None.
        after: flat quantized weights, or None.
        before_name: whose weights ``before`` are.

    Returns:
        ``limit``: the ``BINS`` bins of equal width reach from minus it to it; ``before`` and ``after``: counts, or None.
    """
    held = [array for array in (before, after) if array is not None and array.size]
    limit = max((float(np.abs(array).max()) for array in held), default=0.0) or 1.0
    counted = [None if array is None else np.histogram(array, BINS, (-limit, limit))[0].tolist() for array in (before, after)]
    return {"limit": limit, "before": counted[0], "after": counted[1], "before_name": before_name}


def relative_error(quantized: FloatArray, weight: FloatArray) -> float | None:
    """``sum((q - w)**2) / sum(w**2)``, None where all weights are zero or one is not finite."""
    power = float(np.square(weight).sum())
    error = float(np.square(quantized - weight).sum())
    return error / power if power > 0 and np.isfinite(error / power) else None


def _weight_row(network: QuantNetwork, name: str, twin: FloatArray | None) -> dict[str, object]:
    latent = network.layer_parameters(name)[0].detach()
    bits = network.plan[name].weight_bits
    flat = _flat(latent)
    twin = twin if twin is not None and twin.size == flat.size else None
    row: dict[str, object] = {"weight_bits": bits, "weights": flat.size, "weight_exponents": None, "weight_saturated": None}
    quantizer = network.weight_quantizer(name)
    if quantizer is None:
        return row | {"weight_zero": _share(flat == 0.0), "histogram": histogram(twin, flat, "float twin")}
    with torch.no_grad():
        values = _flat(quantizer(latent))
        row |= {"weight_zero": _share(values == 0.0)}
        if isinstance(quantizer, IntegerWeightQuantizer):
            integers, exponents = quantizer.integers(latent)
            row |= {"weight_exponents": [int(exponents.min()), int(exponents.max())]}
            row |= _integer_shares(integers.cpu().numpy(), int(bits or 0))
    # Methods that scale the sums, not the weights, keep weights of another size: their difference says nothing.
    scaled = type(quantizer).sums is not WeightQuantizer.sums
    row |= {
        "rounding_error": None if scaled else relative_error(values, flat),
        "twin_error": None if scaled or twin is None else relative_error(values, twin),
    }
    before, before_name = (flat, "latent weights") if twin is None else (twin, "float twin")
    return row | {"histogram": histogram(before, values, before_name)}


def _integer_shares(integers: NDArray[np.signedinteger], bits: int) -> dict[str, object]:
    low, high = weight_range(bits)
    # Of one bit every weight is at an end of the range.
    saturated = None if bits == 1 else _share((integers == low) | (integers == high))
    return {"weight_zero": _share(integers == 0), "weight_saturated": saturated}


def _activation_shares(network: QuantNetwork, images: Sequence[Tensor]) -> Mapping[str, dict[str, object]]:
    """Shares of zeros and of values at the ends of the range in every tensor the network quantizes, over all images."""
    names = [
        operation.name
        for operation in network.graph
        if operation.name in network.sharing.group and network.plan[operation.name].activation_bits not in (None, FLOAT_BITS)
    ]
    counts: list[tuple[int, int, int]] = []
    exponents = network.exponents()
    formats = {name: network.tensor_format(name, exponents) for name in names}

    def count(_: nn.Module, __: Any, written: Tensor) -> None:
        # Quantizers are called in the order of the operations; some serve several of them.
        stored = formats[names[len(counts) % len(names)]]
        ends = 0
        if stored is not None:
            step = 2.0**-stored.exponent
            ends = int((written >= (stored.highest - stored.zero_point) * step).sum())
            ends += int((written <= -stored.zero_point * step).sum()) if stored.zero_point else 0
        counts.append((written.numel(), int((written == 0).sum()), ends))

    hooks = [quantizer.register_forward_hook(count) for quantizer in network.activation_quantizers.values()]
    try:
        with torch.no_grad():
            for batch in images:
                network(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not counts or len(counts) % len(names):
        return {}
    sums = np.asarray(counts, dtype=np.int64).reshape(-1, len(names), 3).sum(axis=0)
    return {
        name: {"activation_zero": zeros / total, "activation_saturated": None if formats[name] is None else ends / total}
        for name, (total, zeros, ends) in zip(names, sums.tolist(), strict=True)
    }


def _twin_weights(graph: Graph) -> list[tuple[str, FloatArray]]:
    return [(operation.name, _flat(operation.weight)) for operation in graph if isinstance(operation, Convolution | Linear)]


def _flat(tensor: Tensor) -> FloatArray:
    return tensor.detach().cpu().double().numpy().ravel()


def _share(where: NDArray[np.bool_]) -> float:
    return float(where.mean()) if where.size else 0.0
