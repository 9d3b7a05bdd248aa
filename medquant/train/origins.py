"""What a run starts from: its own checkpoint, the warm start and float twin of another run, or a network trained elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from medquant.config.schema import Config
from medquant.errors import CheckpointError, ConfigError
from medquant.models import resolve_choices
from medquant.models.brought import is_brought
from medquant.train.bring import read_brought
from medquant.train.checkpoint import Checkpoint, has_checkpoint, load_checkpoint, save_checkpoint
from medquant.train.run_folder import RunFolder
from medquant.train.state import progress_of, weights_of

if TYPE_CHECKING:
    from medquant.train.session import TrainingSession


def stages_before(session: TrainingSession) -> list[str]:
    """The stages a run need not train: those it has behind it, or those of what it starts from, which is copied into its folder.

    Raises:
        CheckpointError: what it starts from is missing, damaged or was made with other data; or the disk is full.
        ConfigError: what it starts from was made in another way.
    """
    if has_checkpoint(session.run_folder.last):
        return progress_of(load_checkpoint(session.run_folder.last)).finished_stages
    if session.config.train.twin_from is not None:
        found = twin_folders(session, Path(session.config.train.twin_from))
        try:
            for folder, destination in zip(found, (session.run_folder.warm, session.run_folder.twin), strict=True):
                shutil.copytree(folder, destination, dirs_exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{session.run_folder.path}: the twin cannot be copied ({error}); free some space and resume") from error
        return ["warm", "float"]
    if session.config.train.init is not None:
        return _take_over(session, Path(session.config.train.init))
    return []


def _take_over(session: TrainingSession, place: Path) -> list[str]:
    """Start from a network trained elsewhere; where nothing will be trained, it is the float twin as it is."""
    read_brought(place).load_into(session.network)
    given = Checkpoint(weights_of(session.network).tensors, {"stage": "given", "epoch": 0, "val_score": 0.0})
    save_checkpoint(session.run_folder.warm, given)
    if session.method.learns or session.plan.is_float:
        return ["warm"]
    # As finished as it can be: its statistics are those it came with.
    save_checkpoint(session.run_folder.twin, Checkpoint(given.tensors, {**given.values, "batch_norm_reestimated": True}))
    return ["warm", "float"]


def twin_folders(session: TrainingSession, source: Path) -> tuple[Path, Path]:
    """Warm start and float twin of another run, which must have been made the same way.

    Raises:
        CheckpointError: there is no such run, or it was made with other data, or is not that far.
        ConfigError: it was made with another recipe or split, or this run is a float run itsession.
    """
    if session.plan.is_float:
        raise ConfigError(f"train.twin_from {source}: a float run has no float twin; leave it out")
    other = RunFolder.open(source)
    other.check_data(session.dataset)
    mine, theirs = _recipe(session.config), _recipe(other.config)
    if mine != theirs or other.split != session.split:
        differing = sorted(key for key in mine if mine[key] != theirs.get(key)) or ["split"]
        raise ConfigError(f"train.twin_from {source}: made with another recipe ({', '.join(differing)} differ); train the twin anew")
    # A float run keeps its network in best/; a quantized one keeps its float twin apart.
    twin = other.twin if has_checkpoint(other.twin) else other.best
    load_checkpoint(other.warm)  # refuses what is missing or damaged
    # The last thing done to a float network; without it, it is unfinished, or best/ is no float network.
    if not load_checkpoint(twin).values.get("batch_norm_reestimated"):
        raise CheckpointError(
            f"{twin}: not the finished float network of a run; end that run first, or name one trained with train.float_twin"
        )
    return other.warm, twin


def _recipe(config: Config) -> dict[str, object]:
    """What must agree for two runs to share a float network: everything but bits, places and what is scored."""
    dumped = config.model_dump(mode="json")
    train = {key: value for key, value in dumped["train"].items() if key not in ("twin_from", "float_twin")}
    data = {key: value for key, value in dumped["data"].items() if key not in ("path", "workers", "cache")}
    # What auto stands for, so that a run that names it is the same.
    options = {key: dumped["model"][key] for key in ("upsample", "norm", "activation")}
    chosen = options if is_brought(config.model.name) else resolve_choices(config.model.name, options)
    return {
        f"{name}.{key}": value
        for name, section in (("train", train), ("data", data), ("model", {**dumped["model"], **chosen}))
        for key, value in section.items()
    }
