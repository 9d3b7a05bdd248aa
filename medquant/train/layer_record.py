"""The layers of a run as statistics: recorded when it ends, or worked out later from what the run folder holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
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
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not readable ({error}); write it again with medquant train --resume") from error
    layers = found.get("layers") if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping) or not isinstance(layers, list) or not all(isinstance(layer, Mapping) for layer in layers):
        raise CheckpointError(f"{file}: found no list of layers; write it again with medquant train --resume")
    if not isinstance(found.get("schema"), int) or found["schema"] > SCHEMA:
        raise CheckpointError(f"{file}: schema {found.get('schema')!r}, this medquant reads up to {SCHEMA}; upgrade medquant")
    return found


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
