"""One trial, from its configuration to its scores: what every executor calls, in whatever process."""

from __future__ import annotations

import functools
import json
import math
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from medquant.config.schema import Config
from medquant.data.volume import Dataset
from medquant.errors import CheckpointError, InterruptedRunError, MedquantError
from medquant.search.executors.base import Places
from medquant.search.shared import Scratch, Shared, SweptSession, mapping
from medquant.search.trials import Outcome, Trial, trial_id
from medquant.train.checkpoint import load_checkpoint
from medquant.train.finish import Finished, finish
from medquant.train.reporting import SilentReporter
from medquant.train.run_folder import RUN_NAME, RunFolder, stored_config, write_json
from medquant.train.session import TrainingSession
from medquant.train.start import RunPlace, configured_split, new_session
from medquant.train.state import load_model

Report = Callable[[int, float], bool]
"""Told epoch and mean validation Dice; True ends the trial as pruned."""

RUNS = "runs"
_LONGEST_NAME = 60
_KEPT_OF_MODEL = ("model.mq", "eval.json", "run.json", "metrics.jsonl")


class _PrunedError(Exception):
    """The trial is not worth its remaining epochs."""


def run_trial(trial: Trial, places: Places, report: Report | None = None, stop_requested: Callable[[], bool] = lambda: False) -> Outcome:
    """Run a trial to its end; whatever goes wrong becomes an outcome, and only a stop by the system is passed on.

    Args:
        trial: what to run.
        places: where things are found and left.
        report: told of each epoch; None: nobody prunes.
        stop_requested: asked after each step; True ends the trial as stopped.
    """
    started, watching = time.monotonic(), _Watching(trial.config, report)
    status, document, error = "finished", {}, ""
    try:
        document = _train(trial, places, watching, stop_requested)
    except _PrunedError:
        status = "pruned"
    except InterruptedRunError as stopped:
        status, error = "stopped", str(stopped)
    except MedquantError as failure:
        status, error = "failed", str(failure)
    except MemoryError:
        status, error = "failed", "out of memory; lower data.batch_size, data.patch_size or model.channels"
    except Exception as failure:  # one trial must not end the others
        status, error = "failed", f"{type(failure).__name__}: {failure}"
    values = {"status": status, "document": {**document, "curve": watching.curve}, "error": error}
    return Outcome.from_json({**values, "elapsed_s": round(time.monotonic() - started, 3)})


def run_folder_name(trial: Trial) -> str:
    """The name of the folder of a trial below ``runs/``."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', trial.name)[:_LONGEST_NAME]}-{trial.id[:8]}"


class _Watching(SilentReporter):
    """Keeps the validation Dice of each epoch that tells something of the network itself, and hands it on.

    Epochs are counted over the warm start and what follows; those of the float twin of a quantized network are left out, so that an
    epoch is the same point of every trial, whether it shares its float network or not.
    """

    def __init__(self, config: Mapping[str, Any], report: Report | None) -> None:
        self.curve: list[list[float]] = []
        self.own_stages: tuple[str, ...] = ("warm", "quantized")
        self._report = report
        train = config["train"]
        self._warm = 0 if train["init"] is not None else round(train["epochs"] * train["warm_fraction"])

    def epoch_finished(self, record: Mapping[str, object]) -> None:
        """Note it, report it, and end the trial where the answer says so."""
        if record["stage"] not in self.own_stages:
            return
        self.note(record)
        if self._report is not None and self._report(int(self.curve[-1][0]), self.curve[-1][1]):
            raise _PrunedError

    def note(self, record: Mapping[str, object]) -> None:
        """Keep an epoch, one from before an interruption as well."""
        if record["stage"] in self.own_stages:
            known = [score for score in mapping(record["val_dice"]).values() if score is not None]
            epoch = int(str(record["epoch"])) + (0 if record["stage"] == "warm" else self._warm)
            self.curve.append([epoch, math.fsum(known) / len(known) if known else 0.0])


@functools.cache
def shared() -> Shared:
    """What the trials of this process share."""
    return Shared()


def _train(trial: Trial, places: Places, watching: _Watching, stop_requested: Callable[[], bool]) -> dict[str, Any]:
    config = _configured(trial, places)
    dataset = shared().dataset(config)
    if trial_id(config, dataset.content_sha256) != trial.id:
        raise CheckpointError(f"{config.data.path}: these are not the data the sweep was made for; give it a new --out")
    if trial.is_float or trial.keep == "run":
        folder = Path(places.out) / (f"{places.floats}/{trial.id}" if trial.is_float else f"{RUNS}/{run_folder_name(trial)}")
        return _train_in(folder, trial, config, dataset, watching, stop_requested)
    scratch = Scratch()
    try:
        document = _train_in(scratch.path / "run", trial, config, dataset, watching, stop_requested)
        if trial.keep == "model":
            _keep_model(scratch.path / "run", Path(places.out) / RUNS / run_folder_name(trial))
        return document
    finally:
        scratch.close()


def _configured(trial: Trial, places: Places) -> Config:
    config = stored_config(trial.config, Path(f"trial {trial.name}"))
    changed: dict[str, object] = {}
    if config.train.threads is None:
        # Named, because torch keeps the number the trial before asked for.
        changed["threads"] = places.threads or shared().threads
    if trial.float_id is not None:
        changed["twin_from"] = str(Path(places.out) / places.floats / trial.float_id)
    data = config.data
    if data.workers is None:
        # The same patches; a process that loads them takes longer to start than a small trial, and there are other trials beside.
        data = data.model_copy(update={"workers": 0})
    return config.model_copy(update={"data": data, "train": config.train.model_copy(update=changed)})


def _train_in(
    folder: Path, trial: Trial, config: Config, dataset: Dataset, watching: _Watching, stop_requested: Callable[[], bool]
) -> dict[str, Any]:
    only_scores = trial.keep != "run" or trial.is_float
    kind = functools.partial(SweptSession, shared(), only_scores)
    reopened = _reopened(folder, trial, dataset, kind, watching, stop_requested)
    before = [] if reopened is None else reopened.recorded()
    session: TrainingSession
    if reopened is not None:
        session = reopened
    else:
        split = configured_split(config, dataset)
        place = RunPlace(folder, f"medquant sweep (trial {trial.name})")
        session = new_session(config, dataset, split, place, watching, stop_requested, kind)
    watching.own_stages = ("warm", "float") if session.plan.is_float else ("warm", "quantized")
    for record in before:
        watching.note(record)
    session.run()
    finished = finish(session)
    document = _document(session, finished, trial)
    # It holds the session, and the session it: without this, both stay until the collector comes around.
    session.__dict__.pop("around", None)
    return document


def _reopened(
    folder: Path,
    trial: Trial,
    dataset: Dataset,
    kind: Callable[..., SweptSession],
    watching: _Watching,
    stop_requested: Callable[[], bool],
) -> SweptSession | None:
    """The session of a run folder an earlier sweep left, None where there is none to go on with; what is left of another is removed."""
    if not folder.exists():
        return None
    try:
        run = RunFolder.open(folder)
        if trial_id(run.config, run.data_sha256) == trial.id:
            return kind(run.config, dataset, run.split, run, watching, stop_requested)
    except CheckpointError:
        pass
    shutil.rmtree(folder)
    return None


def _keep_model(source: Path, destination: Path) -> None:
    """Copy what is kept; the folder appears whole or not at all."""
    part = destination.with_name(f".{destination.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for name in _KEPT_OF_MODEL:
            if (source / name).exists():
                shutil.copyfile(source / name, part / name)
        if not (source / "model.mq").exists():
            shutil.copytree(source / "best", part / "best")
        evaluation = json.loads((part / "eval.json").read_text())
        write_json(part / "eval.json", {**evaluation, "run": str(destination)})
        RunFolder(part, json.loads((part / RUN_NAME).read_text())).note_outputs()
        shutil.rmtree(destination, ignore_errors=True)
        part.rename(destination)
    except OSError as error:
        raise CheckpointError(f"{destination}: the model cannot be kept ({error}); free some space and repeat the sweep") from error


def _document(session: TrainingSession, finished: Finished, trial: Trial) -> dict[str, Any]:
    found = finished.document
    twin = mapping(found["float_twin"])
    best = load_checkpoint(session.run_folder.best)
    validation = best.values.get("val_score")
    if validation is None and trial.group:
        validation = _validated(session)
    return {
        "bits": found["bits"],
        "seed": found["seed"],
        "engine": found["engine"],
        "dice": {name: summary["mean"] for name, summary in found["dice"].items()},
        "metrics": {name: found["metrics"][name]["mean"] for name in found["official_metrics"] if name in found["metrics"]},
        "float_twin": {name: summary["mean"] for name, summary in mapping(twin.get("dice")).items()},
        "dice_minus_twin": dict(mapping(found.get("dice_minus_twin"))),
        "memory": {name: value for name, value in found["memory"].items() if name != "layers"},
        "agreement": found["agreement"],
        "validation_dice": validation,
        # Of the checkpoint itself: two runs of one digest have the same weights, to the last bit.
        "weights_sha256": json.loads((session.run_folder.best / "checkpoint.json").read_text())["sha256"],
    }


def _validated(session: TrainingSession) -> float | None:
    """Mean validation Dice of a network that was not watched, because nothing of it was trained."""
    network: nn.Module = session.network if session.plan.is_float else session.quantized_network()
    load_model(load_checkpoint(session.run_folder.best), network)
    known = [score for score in session.around.validate(network.eval()).values() if not math.isnan(score)]
    return math.fsum(known) / len(known) if known else None
