"""What the trials of one process share: datasets, their prepared cases, folders in memory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from medquant.config.schema import Config
from medquant.data.content import volume_sha256
from medquant.data.normalise import Normalisation
from medquant.data.patches import PatchDataset
from medquant.data.prepared import PreparedCase
from medquant.data.prepared_grid import GridRule
from medquant.data.volume import Dataset
from medquant.train.recorder import METRICS_NAME, read_records
from medquant.train.session import TrainingSession
from medquant.train.start import open_configured

Made = TypeVar("Made")

Patch = tuple[Tensor, Tensor]

_KEPT_PATCH_BYTES = 256 * 1024**2

_MEMORY = Path("/dev/shm")
_SCRATCH = "medquant-sweep-"
_NEW = "medquant-new-sweep-"
_LOCK = "lock"


class Shared:
    """Keeps what several trials of one process need, by what it was made from."""

    def __init__(self) -> None:
        self._made: dict[object, Any] = {}
        self._patches: OrderedDict[object, Patch] = OrderedDict()
        self._patch_bytes = 0
        self.threads = torch.get_num_threads()
        """Processor threads of torch before any trial asked for another number."""

    def patch(self, key: object, make: Callable[[], Patch]) -> Patch:
        """A training patch; of those made before, the latest are kept."""
        if key not in self._patches:
            self._patches[key] = made = make()
            self._patch_bytes += _size_bytes(made)
            while self._patch_bytes > _KEPT_PATCH_BYTES:
                self._patch_bytes -= _size_bytes(self._patches.popitem(last=False)[1])
            return made
        self._patches.move_to_end(key)
        return self._patches[key]

    def dataset(self, config: Config) -> Dataset:
        """The dataset of a configuration, opened once."""
        data = config.data
        key = ("dataset", data.path, data.dataset, data.phantom_seed, data.raters, data.cache)
        return self.once(key, lambda: _with_digests(open_configured(config)))

    def once(self, key: object, make: Callable[[], Made]) -> Made:
        """What ``make`` gave when it was first called for this key."""
        if key not in self._made:
            self._made[key] = make()
        found: Made = self._made[key]
        return found


def _with_digests(dataset: Dataset) -> Dataset:
    """The dataset, each volume of which brings its digest along, as those of the cache do: every run folder notes them anew."""
    for case in dataset.cases:
        for volume in (case.image, *([] if case.mask is None else [case.mask])):
            if getattr(volume, "sha256", None) is None:
                volume.__dict__["sha256"] = volume_sha256(volume)
    return dataset


class SweptSession(TrainingSession):
    """A session that prepares no case twice in a process. Values are those of any session: what is kept is never changed.

    Args:
        shared: what the trials of this process share.
        only_scores: see :class:`TrainingSession`.
        arguments: of the session.
    """

    def __init__(self, shared: Shared, only_scores: bool, *arguments: Any) -> None:
        self._shared, self.only_scores = shared, only_scores
        super().__init__(*arguments)

    def recorded(self) -> list[dict[str, object]]:
        """The epochs a run that is gone on with has behind it."""
        kept = self._kept_records()
        return [each for each in read_records(self.run_folder.path / METRICS_NAME) if (each["stage"], each["epoch"]) in kept]

    def _key(self, purpose: str, *more: object) -> object:
        data = self.config.data
        settings = (data.normalisation, data.window, data.spacing_mm, data.slice_axis, data.region, data.patch_size, data.cache)
        return (purpose, id(self.dataset), self.split, settings, *more)

    def _make_normalisation(self) -> Normalisation:
        return self._shared.once(self._key("normalisation"), super()._make_normalisation)

    def _grid_rule(self) -> GridRule:
        return self._shared.once(self._key("grid"), super()._grid_rule)

    def prepared(self, part: str, for_training: bool = False) -> list[PreparedCase]:
        """See :meth:`TrainingSession.prepared`."""
        if self.config.data.region == "coarse":
            return super().prepared(part, for_training)  # its windows are those of a network of its own
        make = super().prepared
        return list(self._shared.once(self._key("cases", part, for_training), lambda: make(part, for_training)))

    def _patches(self) -> PatchDataset:
        made, data, train = super()._patches(), self.config.data, self.config.train
        if data.region == "coarse":
            return made  # cut from windows of this trial's own coarse network
        shape = (data.augmentation, data.raters, data.patch_slices, data.batch_size, self.dimensions)
        return _KeptPatches(made, self._shared, self._key("patches", *shape, train.steps_per_epoch, train.seed))


class _KeptPatches(PatchDataset):
    """Patches that are cut once for all stages and trials that see them: drawing them takes longer than a step of a small network."""

    def __init__(self, patches: PatchDataset, shared: Shared, key: object) -> None:
        self.__dict__.update(patches.__dict__)
        self._shared, self._key = shared, key

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, Tensor]:
        # Kept as they are: batches are stacked copies.
        return self._shared.patch((self._key, place), lambda: super(_KeptPatches, self).__getitem__(place))


class Scratch:
    """A folder in memory for what a trial writes and nobody keeps; removed at the end, and by the next sweep after a kill."""

    def __init__(self) -> None:
        home = _MEMORY if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
        _remove_abandoned(home)
        new = Path(tempfile.mkdtemp(prefix=_NEW, dir=home))
        self._lock = (new / _LOCK).open("wb")
        # The system lets go of it however the process ends, so that a folder nobody holds is one nobody needs.
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = new.rename(home / f"{_SCRATCH}{new.name.removeprefix(_NEW)}")

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _remove_abandoned(home: Path) -> None:
    for folder in home.glob(f"{_SCRATCH}*"):
        # Another user's, or one that is being made or removed just now, stays.
        with contextlib.suppress(OSError):
            # Anybody may make a folder of this name here: opening a pipe in it must not wait for its other end.
            lock = os.open(folder / _LOCK, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _size_bytes(patch: Patch) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in patch)


def mapping(value: object) -> Mapping[str, Any]:
    """A JSON object, empty where there is none."""
    return value if isinstance(value, Mapping) else {}
