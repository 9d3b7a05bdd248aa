"""The runs a report is asked for: folders found, documents read, nothing computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medquant.errors import CheckpointError, UsageError
from medquant.models import resolve_choices
from medquant.models.brought import is_brought
from medquant.report.record import RunRecord
from medquant.train.recorder import METRICS_NAME, read_records
from medquant.train.run_folder import RUN_NAME, RunFolder

# What runs of one row may differ in: seeds and folds, and where and on what they ran.
_OF_NO_ROW = {
    "train": ("seed", "device", "threads", "channels_last", "float_twin", "twin_from", "init"),
    "data": ("path", "dataset", "cache", "workers", "fold", "folds", "test_site"),
}


@dataclass(frozen=True)
class FoundRuns:
    """Run folders in the order they were named, each once.

    Args:
        folders: the runs.
        unfinished: how many runs inside a folder of runs are left out because they are not finished.
    """

    folders: tuple[RunFolder, ...]
    unfinished: int


def find_runs(places: Sequence[Path]) -> FoundRuns:
    """Open what was named; a folder of runs (``OUT/runs/*`` of a sweep or a search, or ``OUT/*``) stands for those that are finished.

    Raises:
        UsageError: a place does not exist, or a folder of runs holds no finished one.
        CheckpointError: a folder is no run and holds none, or a run is damaged.
    """
    found: dict[Path, RunFolder] = {}
    unfinished = 0
    for place in places:
        if not place.is_dir():
            raise UsageError(f"{place}: no such folder; give finished run folders, or the folder of a sweep")
        inside = [] if (place / RUN_NAME).exists() else _runs_inside(place)
        opened = [RunFolder.open(folder) for folder in (inside or [place])]
        finished = [run for run in opened if not inside or _is_finished(run)]
        if not finished:
            raise UsageError(f"{place}: holds {len(opened)} runs, of which none is finished; end one with medquant train --resume")
        unfinished += len(opened) - len(finished)
        found.update((run.path.resolve(), run) for run in finished)
    return FoundRuns(tuple(found.values()), unfinished)


def read_run(run: RunFolder) -> RunRecord:
    """The documents of a finished run.

    Raises:
        CheckpointError: it is not finished, or one of them is damaged.
    """
    evaluation = dict(run.evaluation)
    settings: Mapping[str, Mapping[str, object]] = {}
    try:
        config = run.config
        settings = config.model_dump(mode="json")
        # Runs of older versions do not say beside their scores which network they are of.
        own = {**settings["model"], "edge_bits": config.quant.edge_bits, "layer_bits": list(config.quant.layer_bits)}
        network = {**own, **_mapping(evaluation.get("network")), **_recipe(settings)}
        if not is_brought(config.model.name):
            # What auto stands for, so that a run that names it is of the same network.
            network |= resolve_choices(config.model.name, {key: network[key] for key in ("upsample", "norm", "activation")})
        evaluation["network"] = network
    except CheckpointError:
        # Of another version: what stands in eval.json has to do.
        pass
    name = run.path.resolve().name
    return RunRecord(name, run.document, evaluation, tuple(read_records(run.path / METRICS_NAME)), settings)


def _recipe(settings: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """How a network was trained, dotted key → value: runs of one row agree in it."""
    return {
        f"{section}.{key}": value for section, others in _OF_NO_ROW.items() for key, value in settings[section].items() if key not in others
    }


def _runs_inside(place: Path) -> list[Path]:
    for pattern in (f"runs/*/{RUN_NAME}", f"*/{RUN_NAME}"):
        if folders := sorted(file.parent for file in place.glob(pattern)):
            return folders
    return []


def _is_finished(run: RunFolder) -> bool:
    return run.document.get("status") == "finished" and run.eval.is_file()


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
