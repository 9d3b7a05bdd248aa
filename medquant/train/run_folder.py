"""The folder of a run: what it holds, where, and its ``run.json``."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError

import medquant
from medquant.config.mistakes import describe
from medquant.config.schema import Config
from medquant.data.atomic import write_atomically
from medquant.data.bounded import read_bounded_json
from medquant.data.content import volume_sha256
from medquant.data.split import Split
from medquant.data.volume import Dataset
from medquant.errors import CheckpointError, UsageError
from medquant.train.evaluation_check import evaluation_fault

SCHEMA = 1
RUNS = Path("runs")
"""Where runs go that were given no place."""

RUN_NAME, EVAL_NAME, MODEL_NAME = "run.json", "eval.json", "model.mq"
# Whatever the run opens for writing by its own name, not by a new file that then takes the name.
_PARTS = ("last", "warm", "float", "best", "coarse", "pictures", "tensorboard", "metrics.jsonl")
_MOST_THREADS = 4096
_MOST_CHANNELS = 64
_NOTED_PACKAGES = ("torch", "numpy", "monai", "scikit-image", "safetensors", "pydantic")


class RunFolder:
    """Paths of a run and its document.

    ``run.json``, ``metrics.jsonl``, ``tensorboard/``, checkpoints ``last/`` (to resume), ``warm/`` (end of the float warm
    start), ``float/`` (the float twin), ``best/`` (the network itself), and after training ``model.mq``, ``eval.json``,
    ``pictures/``.
    """

    def __init__(self, path: Path, document: Mapping[str, object]) -> None:
        self.path = path
        self.document: dict[str, object] = dict(document)

    @property
    def last(self) -> Path:
        """Checkpoint to resume from."""
        return self.path / "last"

    @property
    def warm(self) -> Path:
        """Float network at the end of the warm start."""
        return self.path / "warm"

    @property
    def twin(self) -> Path:
        """Best checkpoint of the float twin."""
        return self.path / "float"

    @property
    def best(self) -> Path:
        """Best checkpoint of the network the run is about."""
        return self.path / "best"

    @property
    def model(self) -> Path:
        """The packed model file."""
        return self.path / MODEL_NAME

    @property
    def eval(self) -> Path:
        """Scores on the test part."""
        return self.path / EVAL_NAME

    @property
    def coarse(self) -> Path:
        """Run folder of the coarse stage, where there is one."""
        return self.path / "coarse"

    @property
    def pictures(self) -> Path:
        """Folder of the pictures."""
        return self.path / "pictures"

    @staticmethod
    def check_free(path: Path) -> None:
        """Refuse a place where something is already.

        Raises:
            UsageError: the folder exists and is not empty.
        """
        try:
            taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
        except OSError as error:
            raise UsageError(f"{path}: not a usable place for a run ({error.strerror}); choose another --out") from error
        if taken:
            raise UsageError(f"{path} exists already; continue it with --resume, or choose another --out")

    @classmethod
    def create(cls, path: Path, document: Mapping[str, object]) -> RunFolder:
        """Make a new run folder with its ``run.json``.

        Raises:
            UsageError: something is there already, or the folder cannot be made.
            CheckpointError: its ``run.json`` cannot be written.
        """
        cls.check_free(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{path}: the run folder cannot be made ({error.strerror}); choose another --out") from error
        run = cls(path, document)
        run.save()
        return run

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run.

        Raises:
            CheckpointError: it is no run folder, one of a newer version, or a part of it is a link that leads elsewhere.
        """
        file = path / RUN_NAME
        try:
            document: Any = read_bounded_json(file)
            schema = int(document["schema"])
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: no run folder ({RUN_NAME} is missing); give the folder that medquant train wrote") from error
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise CheckpointError(f"{file}: not readable as a run ({type(error).__name__}: {error}); restore it or train anew") from error
        if schema > SCHEMA:
            raise CheckpointError(f"{file}: schema {schema}, this medquant reads up to {SCHEMA}; upgrade medquant")
        threads = document.get("threads")
        if threads is not None and (not isinstance(threads, int) or not 1 <= threads <= _MOST_THREADS):
            raise CheckpointError(f"{file}: found no number of threads from 1 to {_MOST_THREADS}; restore it or train anew")
        _refuse_links(path)
        return cls(path, document)

    @property
    def config(self) -> Config:
        """The configuration the run was started with.

        Raises:
            CheckpointError: it is damaged.
        """
        return stored_config(self.document.get("config"), self.path / RUN_NAME)

    @property
    def split(self) -> Split:
        """The split the run was started with.

        Raises:
            CheckpointError: it is damaged.
        """
        stored = self.document.get("split")
        if not isinstance(stored, Mapping):
            raise CheckpointError(f"{self.path / RUN_NAME}: holds no split; restore it or train anew")
        try:
            return Split.from_json(stored)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path / RUN_NAME}: {error}; restore it or train anew") from error

    @property
    def data_sha256(self) -> str:
        """Digest of the data the run was started with."""
        data = self.document.get("data")
        return str(data.get("content_sha256", "")) if isinstance(data, Mapping) else ""

    @property
    def channels(self) -> int:
        """Number of channels of an image of the data.

        Raises:
            CheckpointError: more than any dataset has.
        """
        data = self.document.get("data")
        channels = data.get("channels") if isinstance(data, Mapping) else None
        if isinstance(channels, list) and len(channels) > _MOST_CHANNELS:
            raise CheckpointError(
                f"{self.path / RUN_NAME}: found {len(channels)} channels, expected at most {_MOST_CHANNELS}; restore it or train anew"
            )
        return len(channels) if isinstance(channels, list) and channels else 1

    @property
    def classes(self) -> Mapping[str, str]:
        """Class number (as text) → name of the data the run was started with."""
        data = self.document.get("data")
        classes = data.get("classes") if isinstance(data, Mapping) else None
        if not isinstance(classes, Mapping):
            raise CheckpointError(f"{self.path / RUN_NAME}: does not say which classes it finds; restore it or train anew")
        return classes

    @property
    def evaluation(self) -> Mapping[str, object]:
        """The content of ``eval.json``.

        Raises:
            CheckpointError: the run is not finished, or the file is damaged.
        """
        try:
            document = read_bounded_json(self.eval)
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.path}: not finished ({EVAL_NAME} is missing); end it with medquant train --resume") from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.eval}: not readable ({error}); write it again with medquant train --resume") from error
        fault = evaluation_fault(document)
        if fault is not None or not isinstance(document, dict):
            raise CheckpointError(f"{self.eval}: {fault}; write it again with medquant train --resume")
        return document

    def check_data(self, dataset: Dataset) -> None:
        """Refuse data the run was not started with.

        Raises:
            CheckpointError: the voxels or masks differ.
        """
        if dataset.content_sha256 != self.data_sha256:
            raise CheckpointError(
                f"{self.path}: this run was made with other data (digest {self.data_sha256[:12]}, found {dataset.info.name} "
                f"{dataset.content_sha256[:12]}); give the --data it was made with, or start a new run"
            )

    def save(self) -> None:
        """Write ``run.json``."""
        write_json(self.path / RUN_NAME, self.document)

    def note(self, **values: object) -> None:
        """Add to ``run.json`` and write it."""
        self.document.update(values)
        self.save()

    def note_outputs(self) -> None:
        """Record size and SHA-256 of every result file."""
        files = [self.model, self.eval, *sorted(self.best.glob("*")), *sorted(self.twin.glob("*")), *sorted(self.pictures.glob("*"))]
        found = {
            str(file.relative_to(self.path)): {"size_bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
            for file in files
            if file.is_file()
        }
        self.note(outputs=found)


def start_document(config: Config, dataset: Dataset, split: Split, command: str) -> dict[str, object]:
    """The first ``run.json`` of a run: everything needed to know, later, what it was."""
    return {
        "schema": SCHEMA,
        "status": "training",
        "command": command,
        "started": _now(),
        "versions": {
            "medquant": medquant.__version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _NOTED_PACKAGES},
        },
        "git": _git_state(),
        "machine": {"system": platform.system(), "processor": platform.machine()},
        "config": config.model_dump(mode="json"),
        "data": {
            "name": dataset.info.name,
            "path": None if dataset.path is None else str(Path(dataset.path).resolve()),
            "recognised": dataset.recognised,
            "content_sha256": dataset.content_sha256,
            "cases": len(dataset.cases),
            "classes": {str(number): name for number, name in dataset.info.classes.items()},
            "channels": list(dataset.info.channels),
            "image_sha256": {case.id: volume_sha256(case.image) for case in dataset.cases},
            "mask_sha256": {case.id: volume_sha256(case.mask) for case in dataset.cases if case.mask is not None},
        },
        "split": split.to_json(),
        "seed": config.train.seed,
    }


def stored_config(stored: object, place: Path) -> Config:
    """The configuration a run or a model file holds.

    Args:
        stored: JSON values.
        place: the file they stand in, for messages.

    Raises:
        CheckpointError: it is damaged, or of another version.
    """
    try:
        return Config.model_validate_json(json.dumps(stored))
    except ValidationError as error:
        mistakes = [message.strip() for _, message in describe(error)]
        more = f" and {len(mistakes) - 1} more" if len(mistakes) > 1 else ""
        raise CheckpointError(f"{place}: its configuration cannot be read ({mistakes[0]}{more}); restore it or train anew") from error


def _refuse_links(path: Path) -> None:
    """What a run writes and removes must be its own, so none of its parts may be a link to somewhere else.

    Raises:
        CheckpointError: one of them is.
    """
    home = path.resolve()
    for part in _PARTS:
        if (path / part).is_symlink() and not (path / part).resolve().is_relative_to(home):
            raise CheckpointError(f"{path}: {part} is a link that leads out of the run folder; put the folder itself there")


def newest_run(folder: Path) -> Path | None:
    """The run folder below ``folder`` that was written to last."""
    found = [file for pattern in (RUN_NAME, f"*/{RUN_NAME}", f"*/*/{RUN_NAME}") for file in folder.glob(pattern)]
    return max(found, key=lambda file: file.stat().st_mtime).parent if found else None


def write_json(path: Path, document: object) -> None:
    """Write a JSON file atomically; keys in order, NaN refused.

    Raises:
        CheckpointError: the disk is full or cannot be written; what stood there before is intact.
    """
    data = (json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()

    def write(stream: BinaryIO) -> None:
        stream.write(data)

    try:
        write_atomically(path, write)
    except UsageError as error:
        raise CheckpointError(str(error)) from error


def finished_now() -> str:
    """The present time for ``run.json``."""
    return _now()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@functools.cache
def _git_state() -> dict[str, object] | None:
    """Commit of the checkout the code runs from, None for an installed package."""
    home = Path(medquant.__file__).resolve().parent.parent
    if not (home / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "-C", str(home), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
        status = subprocess.run(
            ["git", "-C", str(home), "status", "--porcelain"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "modified": bool(status.strip())}
