"""The coarse stage: a small network that finds the region at low resolution, a whole run of its own inside the run's folder."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medquant.config.schema import Config
from medquant.data.content import content_sha256, volume_sha256
from medquant.data.prepared_grid import GridRule, SliceAxis
from medquant.data.split import Split
from medquant.data.volume import Case, Dataset, DatasetInfo, Volume
from medquant.errors import CheckpointError
from medquant.train.finish import finish
from medquant.train.run_folder import RUN_NAME, RunFolder, start_document
from medquant.train.session import TrainingSession

_FIELD_PIXELS = 128
"""Pixels across the widest slice at the coarse spacing."""

_PATCH, _BATCH, _CHANNELS, _DEPTH, _EPOCHS, _STEPS = 96, 8, 8, 4, 12, 30


def train_coarse(session: TrainingSession) -> None:
    """Train the coarse network of a session to its end, from wherever it stands; a finished one is left alone.

    Raises:
        InterruptedRunError: stopped on request, saved.
        CheckpointError: its folder is damaged.
    """
    folder = session.run_folder.coarse
    dataset = foreground_dataset(session.dataset)
    config = coarse_config(session.config, session.dataset, session.split, session.preparation.grid.slice_axis)
    if (folder / RUN_NAME).exists():
        run = RunFolder.open(folder)
        run.check_data(dataset)
        if run.document.get("status") == "finished":
            return
        if _placeless(run.config) != _placeless(config):
            raise CheckpointError(f"{folder}: made with another configuration than the run it belongs to; train anew")
    else:
        # Killed while the folder was made: nothing in it is of use, and a half-made one must not stop the run for good.
        shutil.rmtree(folder, ignore_errors=True)
        run = RunFolder.create(folder, start_document(config, dataset, session.split, "coarse stage"))
    session.reporter.message("coarse stage: a small network learns where the region lies")
    coarse = TrainingSession(config, dataset, session.split, run, session.reporter, session.stop_requested)
    coarse.run()
    finish(coarse)
    session.reporter.message("coarse stage finished")


def _placeless(config: Config) -> Config:
    """Without the place of the cache, which may be another one when a run is continued."""
    return config.model_copy(update={"data": config.data.model_copy(update={"cache": None})})


def coarse_config(config: Config, dataset: Dataset, split: Split, axis: SliceAxis) -> Config:
    """What the coarse network is trained with: few channels, 8 bits, slices of about 128 pixels across."""
    grids = [GridRule(axis).grid(case.image) for case in dataset.cases]
    spacing = max(max(grid.shape[side] * grid.spacing_mm[side] for side in (0, 1)) for grid in grids) / _FIELD_PIXELS
    data = {
        "region": "whole",
        "spacing_mm": (spacing, spacing),
        "patch_size": (_PATCH, _PATCH),
        "batch_size": _BATCH,
        "raters": "majority",
    }
    model = {"name": "unet", "arguments": {}, "dimensions": 2, "channels": _CHANNELS, "depth": _DEPTH, "dropout": 0.0}
    quant = {"method": "fixed_point", "wbits": 8, "abits": 8, "edge_bits": 8, "layer_bits": (), "options": {}, "distillation": 0.0}
    train = {
        "epochs": _EPOCHS,
        "warm_fraction": 0.6,
        "steps_per_epoch": _STEPS,
        "float_twin": False,
        "twin_from": None,
        "init": None,
        "float32_epochs": 0,
    }
    watched = "validation" if split.validation else "train"
    return config.model_copy(
        update={
            "data": config.data.model_copy(update=data),
            "model": config.model.model_copy(update=model),
            "quant": config.quant.model_copy(update=quant),
            "train": config.train.model_copy(update=train),
            # Never the test part: what the coarse network does there shows in the scores of the network itself.
            "eval": config.eval.model_copy(update={"split": watched}),
        }
    )


def foreground_dataset(dataset: Dataset) -> Dataset:
    """The same images, with one class for everything that is not background."""
    info = DatasetInfo(
        name=f"{dataset.info.name}-coarse",
        classes={0: "background", 1: "foreground"},
        scored=("foreground",),
        citation=dataset.info.citation,
        channels=dataset.info.channels,
        modality=dataset.info.modality,
        numbered=dataset.info.numbered,
    )
    cases = tuple(_foreground_case(case) for case in dataset.cases)
    return Dataset(info, cases, dataset.path, f"{dataset.recognised} All classes as one.", content_sha256(cases))


def _foreground_case(case: Case) -> Case:
    return replace(case, mask=None if case.mask is None else ForegroundVolume(case.mask), raters=())


class ForegroundVolume(Volume):
    """A mask in which every class but 0 is 1; made when asked for."""

    def __init__(self, mask: Volume) -> None:
        object.__setattr__(self, "affine", mask.affine)
        object.__setattr__(self, "has_geometry", mask.has_geometry)
        self.__dict__["_mask"] = mask

    @property
    def _base(self) -> Volume:
        mask: Volume = self.__dict__["_mask"]
        return mask

    @property
    def array(self) -> NDArray[np.generic]:
        """Shape ``(I, J, K)``, 0 or 1."""
        foreground: NDArray[np.generic] = (np.asarray(self._base.array, dtype=np.uint8) > 0).astype(np.uint8)
        return foreground

    @property
    def shape(self) -> tuple[int, int, int]:
        """Array shape ``(I, J, K)``."""
        return self._base.shape

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Always uint8."""
        return np.dtype(np.uint8)

    @property
    def sha256(self) -> str:
        """Names the voxels by the mask they come from."""
        return f"foreground of {volume_sha256(self._base)}"
