"""Post-training quantization of what was trained before: a run of its own, calibrated and scored, that trains nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medquant.config.load import load_config
from medquant.config.schema import Config, QuantConfig
from medquant.data.split import check_no_leak
from medquant.errors import CheckpointError, InputError, UsageError
from medquant.quant.formats import FLOAT_BITS
from medquant.quant.methods import METHODS
from medquant.train.bring import read_brought
from medquant.train.building import configured_method
from medquant.train.reporting import Reporter
from medquant.train.run_folder import RUN_NAME, RunFolder
from medquant.train.session import TrainingSession
from medquant.train.start import RunPlace, TrainRequest, new_session, open_configured, remembered_data, resolve_config, start_training

_BITS = 8
"""Width of weights and activations unless another is asked for: post-training quantization to fewer costs accuracy."""

_DEFAULTS: dict[str, object] = {"quant.method": "uniform", "quant.wbits": _BITS, "quant.abits": _BITS}

_KEPT = ("edge_bits", "calibration_batches")
"""What of the source's own quantization goes for the new one too."""


@dataclass(frozen=True)
class QuantizeRequest:
    """What was asked for.

    Args:
        source: a finished run, or a network trained elsewhere: a MONAI bundle, an nnU-Net result folder.
        data: dataset folder, None for the run's own (for a network trained elsewhere: the built-in phantom).
        overrides: ``key=value`` texts.
        options: dotted key → value of named options that were given.
        out: run folder, None for a new one below ``runs/``.
        command: the command line, for ``run.json``.
    """

    source: Path
    data: Path | None = None
    overrides: Sequence[str] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    out: Path | None = None
    command: str = ""


def start_quantizing(request: QuantizeRequest, reporter: Reporter, stop_requested: Callable[[], bool]) -> TrainingSession:
    """Check everything and make the new run's folder; :meth:`TrainingSession.run` then calibrates.

    Raises:
        UsageError: the source is not finished, the method learns, nothing is to be quantized, or the folder exists.
        ConfigError: mistakes in the options, or one that would make another float network.
        CheckpointError: the source is damaged, or the data are not those it was trained on.
        InputError: the data cannot be read.
    """
    if not (request.source / RUN_NAME).is_file():
        return _start_from_brought(request, reporter, stop_requested)
    source = RunFolder.open(request.source)
    if source.document.get("status") != "finished":
        raise UsageError(f"{request.source}: this run is not finished; end it first with medquant train --resume --out {request.source}")
    path = remembered_data(source) if request.data is None else str(request.data)
    config = _config_for(source.config, request, path)
    _check_method(config)
    if request.data is None and path is not None and not Path(path).exists():
        raise InputError(f"{request.source}: its data were at {path}, where nothing is now; say where they are with --data")
    dataset = open_configured(config)
    reporter.message(dataset.recognised)
    source.check_data(dataset)
    split = source.split
    check_no_leak(dataset, split)
    reporter.message(f"split of {request.source}: {split.rule}")
    session = new_session(config, dataset, split, RunPlace(request.out, request.command), reporter, stop_requested)
    _copy_coarse(source, session.run_folder)
    return session


def _start_from_brought(request: QuantizeRequest, reporter: Reporter, stop_requested: Callable[[], bool]) -> TrainingSession:
    read_brought(request.source)  # a folder that is neither run nor network is refused before any data are read
    options = {"train.init": str(request.source), "data.path": None if request.data is None else str(request.data), **request.options}
    command = TrainRequest(None, request.overrides, options, request.out, command=request.command, defaults=_DEFAULTS)
    config, _ = resolve_config(command)
    _check_method(config)
    return start_training(command, reporter, stop_requested)


def _config_for(source: Config, request: QuantizeRequest, path: str | None) -> Config:
    """The source's configuration with a quantization of its own; what made the float network stays."""
    fresh = QuantConfig().model_dump(mode="json") | {key: getattr(source.quant, key) for key in _KEPT}
    sections = {**source.model_dump(mode="json"), "quant": fresh}
    # Lists as they came from a file; the schema makes tuples of them again.
    recipe: dict[str, object] = {
        f"{section}.{key}": value for section, values in sections.items() if isinstance(values, dict) for key, value in values.items()
    }
    chosen = {"data.path": path, "train.twin_from": str(request.source), "train.float_twin": True}
    return load_config(None, {**recipe, **_DEFAULTS, **chosen}, request.overrides, request.options)


def _check_method(config: Config) -> None:
    method = configured_method(config)
    if method.learns:
        known = ", ".join(name for name, each in METHODS.items() if not each.learns)
        raise UsageError(
            f"method {method.name} learns while it trains; use medquant train --method {method.name}, or a method without training: {known}"
        )
    if (config.quant.wbits, config.quant.abits) == (FLOAT_BITS, FLOAT_BITS) and not config.quant.layer_bits:
        raise UsageError("--wbits 32 --abits 32 leaves nothing to quantize; give 1 to 8 bits")


def _copy_coarse(source: RunFolder, made: RunFolder) -> None:
    """The network that finds the region is quantized as it is: it comes along."""
    if source.coarse.is_dir():
        try:
            shutil.copytree(source.coarse, made.coarse)
        except OSError as error:
            raise CheckpointError(f"{made.path}: the coarse stage cannot be copied ({error}); free some space and resume") from error
