"""The layers of a run as statistics: recorded when it ends, or worked out later from what the run folder holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from medquant.config.schema import Config
from medquant.data.bounded import read_bounded_json
from medquant.data.volume import FloatArray
from medquant.deploy.packed import load_model as load_packed
from medquant.errors import CheckpointError, MedquantError
from medquant.evaluate.layer_statistics import SCHEMA, float_statistics, layer_statistics, program_statistics
from medquant.quant.network import QuantNetwork
from medquant.train.building import build_network, configured_method, configured_outputs, plan_network
from medquant.train.checkpoint import has_checkpoint, load_checkpoint
from medquant.train.run_folder import RunFolder, write_json
from medquant.train.session import TrainingSession
from medquant.train.state import load_model

LAYERS_NAME = "layers.json"

_Share = Annotated[float, Field(ge=0.0, le=1.0)]
_Counts = Annotated[list[Annotated[int, Field(ge=0, le=2**62)]], Field(min_length=1, max_length=1024)]


class _Part(BaseModel):
    """The file may come from anywhere: what a page shows of it is checked first."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class _Histogram(_Part):
    limit: float
    before: _Counts | None
    after: _Counts | None
    before_name: Annotated[str, Field(max_length=64)] = ""


class _Layer(_Part):
    name: Annotated[str, Field(max_length=256)]
    weight_bits: int | None = None
    weight_exponents: tuple[int, int] | None = None
    weight_zero: _Share | None = None
    weight_saturated: _Share | None = None
    rounding_error: float | None = None
    twin_error: float | None = None
    activation_bits: int | None = None
    activation_exponent: int | None = None
    activation_zero_point: int | None = None
    activation_zero: _Share | None = None
    activation_saturated: _Share | None = None
    histogram: _Histogram | None = None


class _Document(_Part):
    schema_: Annotated[int, Field(alias="schema", ge=1, le=SCHEMA)]
    layers: Annotated[list[_Layer], Field(max_length=4096)]
    activation_images: Annotated[int, Field(ge=0)] = 0


def record_layers(session: TrainingSession, images: FloatArray | None) -> None:
    """Write ``layers.json``.

    Args:
        session: a trained run.
        images: (N, C, *S), padded to the network's size multiple; activations are measured on them, and not without.

    Raises:
        CheckpointError: a checkpoint is missing or the disk is full.
    """
    write_json(session.run_folder.path / LAYERS_NAME, layers_of_session(session, images))


def layers_of_session(session: TrainingSession, images: FloatArray | None) -> Mapping[str, Any]:
    """What :func:`record_layers` writes."""
    config = session.config
    network = build_network(config, session.inputs, configured_outputs(config, len(session.dataset.info.classes)))
    batches = [] if images is None else [torch.from_numpy(images)]
    return _from_checkpoints(session.run_folder, config, network, session.inputs, batches)


def layers_of_run(run: RunFolder) -> tuple[Mapping[str, Any], str]:
    """The statistics of a finished run: as recorded, else from its checkpoints, else from its model file.

    Returns:
        The document, and what is missing in it and why ("" where nothing is).

    Raises:
        CheckpointError: none of the three can be read.
    """
    file = run.path / LAYERS_NAME
    if file.exists():
        return _recorded(run), ""
    try:
        config = run.config
        network = build_network(config, run.channels, configured_outputs(config, len(run.classes)))
        found = _from_checkpoints(run, config, network, run.channels, [])
        quantized = any(layer.get("weight_bits") not in (None, 32) for layer in found["layers"])
        return found, f"activations were not measured: the run has no {LAYERS_NAME}" if quantized else ""
    except MedquantError as error:
        if not run.model.is_file():
            raise CheckpointError(f"{run.path}: no {LAYERS_NAME}, and its checkpoints cannot be read: {error}") from error
        packed = load_packed(run.model)
        return program_statistics(packed.program), f"from {run.model.name} alone, which holds no float weights ({error})"


def _recorded(run: RunFolder) -> Mapping[str, Any]:
    file = run.path / LAYERS_NAME
    try:
        found = read_bounded_json(file)
        return _Document.model_validate(found).model_dump()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise CheckpointError(f"{file}: no statistics of layers ({first['msg']}); write it again with medquant train --resume") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not readable ({error}); write it again with medquant train --resume") from error


def _from_checkpoints(run: RunFolder, config: Config, network: nn.Module, inputs: int, images: Sequence[Tensor]) -> dict[str, Any]:
    network.eval()
    # A float run has its network in best/ and no twin. A twin's graph is that of the quantized network too: it is captured once.
    has_twin = has_checkpoint(run.twin)
    is_float = config.quant.wbits == config.quant.abits == 32 and not config.quant.layer_bits
    load_model(load_checkpoint(run.best if is_float else run.twin if has_twin else run.warm), network)
    graph, plan = plan_network(config, network, inputs)
    if plan.is_float:
        load_model(load_checkpoint(run.best), network)
        return float_statistics(graph if is_float else plan_network(config, network, inputs)[0])
    quantized = QuantNetwork(graph, plan, configured_method(config))
    load_model(load_checkpoint(run.best), quantized)
    return layer_statistics(quantized.eval(), graph if has_twin else None, images)
