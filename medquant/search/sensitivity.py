"""How much each layer's bits cost: measured on validation images, one tensor quantized at a time, and expected from the Hessian.

Both are kept in a file that is written after each layer, so that a search can be stopped and go on, and another search over the
same network measures nothing twice.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from medquant.data.bounded import read_bounded_json
from medquant.errors import CheckpointError, InterruptedRunError
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import QuantPlan
from medquant.search.allocation import Costs
from medquant.search.hessian import Trace, squared_error, trace_sample
from medquant.search.space import SearchSpace
from medquant.search.validation_images import LabelledImage, Quality, judge, validation_images
from medquant.train.checkpoint import load_checkpoint
from medquant.train.reporting import Reporter
from medquant.train.run_folder import write_json
from medquant.train.session import TrainingSession
from medquant.train.state import load_model

SCHEMA = 1
# Batches from epochs no training stage reaches.
_EPOCH = 4_000_000


@dataclass(frozen=True)
class Effort:
    """How thoroughly is measured.

    Args:
        images: validation images at the most.
        vectors: random vectors of the Hessian's trace.
    """

    images: int = 8
    vectors: int = 32


@dataclass
class Sensitivity:
    """What was measured on one float network; grows while it is measured.

    Args:
        whole: loss and Dice with everything float.
        weights: layer → bits → loss and Dice with that layer's weights alone quantized.
        activations: the same for what the layer writes.
        errors: layer → bits → squared error of the quantized weights.
        traces: layer → estimates of the trace of its Hessian, one a vector.
        sizes: layer → number of weights.
    """

    whole: Quality | None = None
    weights: dict[str, dict[int, Quality]] = field(default_factory=dict)
    activations: dict[str, dict[int, Quality]] = field(default_factory=dict)
    errors: dict[str, dict[int, float]] = field(default_factory=dict)
    traces: dict[str, list[float]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def measured(self, kind: str) -> Costs:
        """Rise of the loss by layer and bits, of ``weights`` or ``activations``; never lower for fewer bits.

        A rise of more bits than another that is larger, or one below 0, is chance: the larger, or 0, stands for it.
        """
        found: dict[str, dict[int, Quality]] = getattr(self, kind)
        return {name: _falling({bits: each.loss - self.float_loss for bits, each in by_bits.items()}) for name, by_bits in found.items()}

    def expected(self) -> Costs:
        """Rise of the loss that the Hessian predicts for weights, by layer and bits."""
        return {
            name: _falling({bits: self.trace(name).expected_rise(error) for bits, error in by_bits.items()})
            for name, by_bits in self.errors.items()
        }

    def trace(self, layer: str) -> Trace:
        """The trace of a layer."""
        return Trace(tuple(self.traces[layer]), self.sizes[layer])

    @property
    def float_loss(self) -> float:
        """Loss with everything float."""
        return math.nan if self.whole is None else self.whole.loss

    def dice_drop(self, bits: Mapping[str, int]) -> float:
        """Sum over layers of the Dice lost when each alone has these weight bits: pessimistic, since nothing was trained."""
        whole = math.nan if self.whole is None else self.whole.dice
        return math.fsum(max(0.0, whole - self.weights[name][width].dice) for name, width in bits.items())

    def to_json(self) -> dict[str, object]:
        """Plain JSON values; ``from_json`` gives them back."""
        return {
            "float": None if self.whole is None else _quality_json(self.whole),
            "weights": _by_bits_json(self.weights),
            "activations": _by_bits_json(self.activations),
            "squared_errors": {name: {str(bits): error for bits, error in each.items()} for name, each in self.errors.items()},
            "hessian": {
                name: {
                    "samples": samples,
                    "weights": self.sizes[name],
                    "trace": self.trace(name).mean,
                    "standard_error": None if math.isinf(error := self.trace(name).standard_error) else error,
                }
                for name, samples in self.traces.items()
            },
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Sensitivity:
        """Read what ``to_json`` wrote; raises KeyError, TypeError or ValueError on anything else."""
        return Sensitivity(
            None if data["float"] is None else _quality(data["float"]),
            {name: {int(bits): _quality(each) for bits, each in by_bits.items()} for name, by_bits in data["weights"].items()},
            {name: {int(bits): _quality(each) for bits, each in by_bits.items()} for name, by_bits in data["activations"].items()},
            {name: {int(bits): float(each) for bits, each in by_bits.items()} for name, by_bits in data["squared_errors"].items()},
            {name: [float(sample) for sample in each["samples"]] for name, each in data["hessian"].items()},
            {name: int(each["weights"]) for name, each in data["hessian"].items()},
        )


class SensitivityFile:
    """Measurements by what they depend on, in one JSON file.

    Args:
        path: ``sensitivity.json``, there or not.

    Raises:
        CheckpointError: it is there and cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Sensitivity] = {}
        try:
            document: Any = read_bounded_json(path)
            if int(document["schema"]) != SCHEMA:
                raise ValueError(f"schema {document['schema']}, expected {SCHEMA}")
            self.entries = {str(key): Sensitivity.from_json(entry) for key, entry in document["entries"].items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: not readable as sensitivities ({type(error).__name__}: {error}); remove it to measure anew"
            ) from error

    def entry(self, key: str) -> Sensitivity:
        """The measurements under a key, empty where there are none."""
        return self.entries.setdefault(key, Sensitivity())

    def save(self) -> None:
        """Write the file, whole or not at all."""
        write_json(self.path, {"schema": SCHEMA, "entries": {key: entry.to_json() for key, entry in self.entries.items()}})


class SensitivityMeter:
    """Measures one finished float network.

    Args:
        session: over the data, with the network's weights loaded.
        space: over the same weights.
        store: where measurements are kept.
        effort: how thoroughly.
        reporter: told of every layer.
        stop_requested: asked after each measurement; what was measured is kept.
    """

    def __init__(
        self,
        session: TrainingSession,
        space: SearchSpace,
        store: SensitivityFile,
        effort: Effort,
        reporter: Reporter,
        stop_requested: Callable[[], bool],
    ) -> None:
        self.session, self.space, self.store, self.effort = session, space, store, effort
        self.reporter, self.stop_requested = reporter, stop_requested
        self.key = measurement_key(session, space, effort)
        self.found = store.entry(self.key)
        self._images: list[LabelledImage] = []
        self._batches: list[tuple[Tensor, Tensor]] = []

    def measure(self) -> Sensitivity:
        """Everything that is not in the file yet."""
        self._measure_traces()
        self._measure_layers("weights", self.space.weight_layers, self.space.weight_choices)
        self._measure_layers("activations", self.space.activation_layers, self.space.activation_choices)
        return self.found

    # --- the Hessian ------------------------------------------------------------------------------------------------

    def _measure_traces(self) -> None:
        done = min((len(samples) for samples in self.found.traces.values()), default=0)
        if done >= self.effort.vectors:
            return
        network = self._network(self._float_plan())
        batches = self._training_batches()
        for number in range(done, self.effort.vectors):
            images, labels = batches[number % len(batches)]
            for layer, sample in trace_sample(network, images, labels, number).items():
                self.found.traces.setdefault(layer, []).append(sample)
                self.found.sizes[layer] = int(network.parameters_of(layer)[0].numel())
            if number % 8 == 7 or number + 1 == self.effort.vectors:
                self.store.save()
                self.reporter.message(f"Hessian trace: {number + 1} of {self.effort.vectors} vectors")
            self._heed_stop()

    def _float_plan(self) -> QuantPlan:
        first = self.space.graph.convolutions[0].name
        return self.space.alone(first, 32, None)

    # --- one tensor at a time ---------------------------------------------------------------------------------------

    def _measure_layers(self, kind: str, layers: Sequence[str], choices: Sequence[int]) -> None:
        found: dict[str, dict[int, Quality]] = getattr(self.found, kind)
        if self.found.whole is None:
            self.found.whole = judge(self._network(self._float_plan()), self._validation(), self.session.dataset.info)
            self.store.save()
        for number, layer in enumerate(layers, start=1):
            missing = [bits for bits in choices if bits not in found.get(layer, {})]
            for bits in missing:
                quality = self._judge_alone(kind, layer, bits)
                found.setdefault(layer, {})[bits] = quality
                self._heed_stop()
            if missing:
                self.store.save()
                rises = ", ".join(f"{bits}: {each.loss - self.found.float_loss:+.4f}" for bits, each in sorted(found[layer].items()))
                self.reporter.message(f"sensitivity of {kind} {number}/{len(layers)} {layer}: loss {rises}")

    def _judge_alone(self, kind: str, layer: str, bits: int) -> Quality:
        of_weights = kind == "weights"
        plan = self.space.alone(layer, bits if of_weights else None, None if of_weights else bits)
        network = self._network(plan)
        # Weights are calibrated on themselves, unless the method corrects anything from images.
        batches = self._training_batches()
        network.calibrate([images for images, _ in (batches[:1] if of_weights and self.space.method.learns else batches)])
        if of_weights:
            self.found.errors.setdefault(layer, {})[bits] = squared_error(network, layer)
        return judge(network, self._validation(), self.session.dataset.info)

    def _network(self, plan: QuantPlan) -> QuantNetwork:
        return QuantNetwork(self.space.graph, plan, self.space.method).to(self.session.device).eval()

    # --- data -------------------------------------------------------------------------------------------------------

    def _validation(self) -> list[LabelledImage]:
        if not self._images:
            self._images = validation_images(self.session, self.effort.images)
        return self._images

    def _training_batches(self) -> list[tuple[Tensor, Tensor]]:
        if not self._batches:
            loader = self.session.training_batches()
            config = self.session.config
            try:
                steps = min(config.quant.calibration_batches, config.train.steps_per_epoch)
                self._batches = list(loader.epoch(_EPOCH, 0, steps))
            finally:
                loader.close()
        return self._batches

    def _heed_stop(self) -> None:
        if self.stop_requested():
            self.store.save()
            raise InterruptedRunError(f"stopped while measuring sensitivities; {self.store.path} holds what was measured, use --resume")


def measurement_key(session: TrainingSession, space: SearchSpace, effort: Effort) -> str:
    """A digest of everything a measurement depends on: weights, data, parts, method, and how thoroughly is measured."""
    tensors = hashlib.sha256()
    for operation in space.graph.convolutions:
        tensors.update(operation.name.encode() + operation.weight.detach().cpu().contiguous().numpy().tobytes())
        if operation.bias is not None:
            tensors.update(operation.bias.detach().cpu().contiguous().numpy().tobytes())
    quant, train = session.config.quant, session.config.train
    told = {
        "weights": tensors.hexdigest(),
        "data": session.dataset.content_sha256,
        "split": session.split.to_json(),
        "method": [quant.method, dict(quant.options), quant.calibration_batches],
        "samples": [session.config.data.model_dump(mode="json", exclude={"path", "cache", "workers"}), train.seed, train.steps_per_epoch],
        "effort": [effort.images, effort.vectors],
        "open": space.edges_open,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def load_float(session: TrainingSession, folder: Path) -> None:
    """Put a finished float network's weights into the session's network."""
    load_model(load_checkpoint(folder), session.network)


def _falling(rises: Mapping[int, float]) -> dict[int, float]:
    highest, found = 0.0, {}
    for bits in sorted(rises, reverse=True):
        highest = max(highest, rises[bits])
        found[bits] = highest
    return dict(sorted(found.items()))


def _quality_json(quality: Quality) -> dict[str, float | None]:
    return {"loss": quality.loss, "dice": None if math.isnan(quality.dice) else quality.dice}


def _quality(data: Mapping[str, Any]) -> Quality:
    return Quality(float(data["loss"]), math.nan if data["dice"] is None else float(data["dice"]))


def _by_bits_json(found: Mapping[str, Mapping[int, Quality]]) -> dict[str, object]:
    return {name: {str(bits): _quality_json(each) for bits, each in by_bits.items()} for name, by_bits in found.items()}
