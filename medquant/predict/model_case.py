"""A model file ready to predict: its engine, how it takes a case, and the network that finds its region."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from medquant.data.prepared import Preparation, PreparedCase, prepare_case
from medquant.data.stored import ArrayCache
from medquant.data.volume import Case
from medquant.deploy.packed import PackedModel
from medquant.errors import InputError
from medquant.predict.predictors import ProgramPredictor
from medquant.predict.regions import CoarseRegion, region_from_json

_MOST_GROWTH = 64
_ALWAYS_ALLOWED_VOXELS = 2**22


@dataclass(frozen=True)
class OpenModel:
    """A model file with an engine.

    Args:
        packed: the file; its programs are those of the engines, which may have let the weights go.
        predictor: the network on its engine.
        preparation: how it takes a case.
        coarse: the network that finds the region, and how that takes a case; None where there is none.
    """

    packed: PackedModel
    predictor: ProgramPredictor
    preparation: Preparation
    coarse: tuple[ProgramPredictor, Preparation] | None

    def prepare(self, case: Case, cache: ArrayCache, notify: Callable[[str], None] | None = None) -> PreparedCase:
        """The case as the network takes it, cut to its region.

        Args:
            case: as it was read.
            cache: where resampled arrays go.
            notify: told where the network that finds the region finds nothing.

        Raises:
            InputError: it holds NaN or Inf, or the network's pixels are far too small for it.
            GeometryError: its channels do not lie on one grid.
        """
        region = region_from_json(self.packed.metadata.region, self.coarse, cache)
        for rule in (self.preparation, *([] if self.coarse is None else [self.coarse[1]])):
            _check_grid(rule, case)
        whole = prepare_case(replace(case, raters=()), self.preparation, cache)
        placed = region.place(whole)
        if notify is not None and isinstance(region, CoarseRegion) and placed is whole:
            notify(f"{case.source}: the network that looks for the region found nothing; the whole scan was searched")
        return placed


def open_model(packed: PackedModel, engine: str, notify: Callable[[str], None] | None = None) -> OpenModel:
    """Open the networks of a model file: the one meant on ``engine``, the one that finds its region on the fastest exact one.

    Args:
        packed: the file; a caller that keeps it keeps its weights, which the model may do without.
        engine: name of an engine, or ``auto``.
        notify: told why ``auto`` passes an engine over.

    Raises:
        UsageError: there is no engine of this name, or it does not work on this machine.
        EngineMismatchError: the engine cannot run the network exactly.
        CheckpointError: a stored rule is not readable.
    """
    coarse = stored = None
    if packed.coarse is not None:
        found = ProgramPredictor(packed.coarse.program, packed.coarse.metadata.size_multiple, notify=notify)
        coarse = found, Preparation.from_json(packed.coarse.metadata.preparation)
        stored = replace(packed.coarse, program=found.program)
    predictor = ProgramPredictor(packed.program, packed.metadata.size_multiple, engine, notify)
    packed = replace(packed, program=predictor.program, coarse=stored)
    return OpenModel(packed, predictor, Preparation.from_json(packed.metadata.preparation), coarse)


def _check_grid(preparation: Preparation, case: Case) -> None:
    """A model file may ask for pixels of any size; grids that would fill the memory are refused before they are made."""
    wanted, stored = math.prod(preparation.grid.grid(case.image).shape), math.prod(case.image.shape)
    if wanted > max(_MOST_GROWTH * stored, _ALWAYS_ALLOWED_VOXELS):
        raise InputError(
            f"{case.source}: the model takes pixels of {preparation.grid.spacing_mm} mm, {wanted / stored:.3g} of them a voxel of "
            f"the scan, expected at most {_MOST_GROWTH}; give a model for such scans, or copy it again if it is damaged"
        )
