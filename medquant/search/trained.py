"""The trainings of a search: float networks and plans over them, each a run folder that is kept, continued and not made twice."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from medquant.config.schema import Config, QuantConfig
from medquant.data.split import Split
from medquant.data.volume import Dataset
from medquant.errors import CheckpointError
from medquant.evaluate.evaluation import mean_dice
from medquant.quant.formats import FLOAT_BITS
from medquant.train.checkpoint import load_checkpoint
from medquant.train.finish import finish
from medquant.train.origins import twin_folders
from medquant.train.reporting import Reporter
from medquant.train.run_folder import RUN_NAME, RunFolder
from medquant.train.session import TrainingSession
from medquant.train.start import RunPlace, new_session
from medquant.train.state import load_model

# What a finished training notes in run.json.
_VALIDATION = "validation_dice"


@dataclass
class Trainings:
    """Where runs go and what they share.

    Args:
        folder: of the runs.
        dataset: the data.
        split: its parts.
        command: the command line, for ``run.json``.
        reporter: told of every event.
        stop_requested: asked after each step.
        given: float networks that are there already, by width and seed.
    """

    folder: Path
    dataset: Dataset
    split: Split
    command: str
    reporter: Reporter
    stop_requested: Callable[[], bool]
    given: dict[tuple[int, int], Path] = field(default_factory=dict)
    made: int = 0

    def float_network(self, config: Config, seed: int) -> Path:
        """A run folder that holds the finished float network of a configuration; trained where there is none."""
        width = config.model.channels
        if (width, seed) in self.given:
            return self.given[width, seed]
        folder = self.folder / f"c{width}-float-s{seed}"
        plain = QuantConfig(wbits=FLOAT_BITS, abits=FLOAT_BITS, calibration_batches=config.quant.calibration_batches)
        wanted = with_seed(config, seed).model_copy(update={"quant": plain})
        if not (folder / RUN_NAME).is_file() or _VALIDATION not in RunFolder.open(folder).document:
            self.reporter.message(f"float network: {width} channels, seed {seed}")
        self._train(folder, wanted)
        return folder

    def quantized(self, config: Config, slug: str, seed: int) -> RunFolder:
        """The trained run of a configuration, from the float network of its width and seed; not yet scored on the test part."""
        source = self.float_network(config, seed)
        seeded = with_seed(config, seed)
        train = seeded.train.model_copy(update={"twin_from": str(source), "float_twin": True})
        return self._train(self.folder / f"c{config.model.channels}-{slug}-s{seed}", seeded.model_copy(update={"train": train}))

    def score(self, run: RunFolder) -> RunFolder:
        """Finish a trained run: model file, and scores on the test part."""
        if run.document.get("status") != "finished":
            finish(self._reopen(run))
            run = RunFolder.open(run.path)
        return run

    def session(self, config: Config, seed: int, source: Path) -> TrainingSession:
        """A session that trains nothing, over the float network of a run; its weights are loaded.

        Raises:
            ConfigError: the run was made with another recipe or split.
            CheckpointError: it has no finished float network, or was made with other data.
        """
        seeded = with_seed(config, seed)
        session = TrainingSession(seeded, self.dataset, self.split, RunFolder(source, {}), self.reporter, self.stop_requested)
        _, twin = twin_folders(session, source)
        load_model(load_checkpoint(twin), session.network)
        return session

    def _train(self, folder: Path, config: Config) -> RunFolder:
        if (folder / RUN_NAME).is_file():
            run = RunFolder.open(folder)
            _check_same(run, config)
            if _VALIDATION in run.document:
                return run
            session = self._reopen(run)
        else:
            # Killed before its run.json was there, a folder holds nothing.
            shutil.rmtree(folder, ignore_errors=True)
            place = RunPlace(folder, self.command)
            session = new_session(config, self.dataset, self.split, place, self.reporter, self.stop_requested)
        session.run()
        self.made += 1
        session.run_folder.note(**{_VALIDATION: validation_dice(session, trained_network(session))})
        return session.run_folder

    def _reopen(self, run: RunFolder) -> TrainingSession:
        run.check_data(self.dataset)
        return TrainingSession(run.config, self.dataset, run.split, run, self.reporter, self.stop_requested)


def with_seed(config: Config, seed: int) -> Config:
    """A configuration with another seed."""
    return config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})


def with_channels(config: Config, channels: int) -> Config:
    """A configuration with another width."""
    return config.model_copy(update={"model": config.model.model_copy(update={"channels": channels})})


def trained_network(session: TrainingSession) -> nn.Module:
    """The kept network of a session that has run, in evaluation mode."""
    network: nn.Module = session.network if session.plan.is_float else session.quantized_network()
    load_model(load_checkpoint(session.run_folder.best), network)
    return network.eval()


def validation_dice(session: TrainingSession, network: nn.Module) -> float:
    """Mean Dice over the scored classes of the validation part, on the network's grid, as watched in training."""
    most = session.config.train.validation_slices
    scores = mean_dice(session.prepared("validation"), session.dataset.info, session.float_predictor(network), most)
    known = [score for score in scores.values() if not math.isnan(score)]
    return math.fsum(known) / len(known) if known else 0.0


def noted_validation(run: RunFolder) -> float:
    """What a training of a search noted."""
    noted = run.document.get(_VALIDATION)
    if not isinstance(noted, int | float):
        raise CheckpointError(f"{run.path / RUN_NAME}: holds no {_VALIDATION}; remove the folder and use --resume")
    return float(noted)


def _check_same(run: RunFolder, config: Config) -> None:
    """Refuse a folder of this name that holds another run."""
    mine, theirs = (each.model_dump(mode="json") for each in (config, run.config))
    for each in (mine, theirs):
        for section, keys in (("data", ("path", "cache", "workers")), ("train", ("twin_from",))):
            each[section] = {key: value for key, value in each[section].items() if key not in keys}
    if mine != theirs:
        differing = sorted(
            f"{section}.{key}"
            for section, values in mine.items()
            if isinstance(values, dict)
            for key in values
            if values[key] != theirs[section].get(key)
        )
        raise CheckpointError(f"{run.path}: holds another run ({', '.join(differing)} differ); choose another --out")
