"""One scan to one mask: read, checked, brought to the model's grid, predicted in bounded memory, written in one step."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medquant.data.prepared import PreparedCase
from medquant.data.stored import ArrayCache
from medquant.data.volume import Case, LabelArray
from medquant.errors import UsageError, shortened
from medquant.predict.fit import find_misfits
from medquant.predict.masks import MaskFormat, class_numbers, write_mask, written_classes
from medquant.predict.model_case import OpenModel
from medquant.predict.predictors import ProgramPredictor
from medquant.predict.reading import read_scan
from medquant.predict.scans import Scan
from medquant.predict.scratch import scratch_folder
from medquant.predict.windows import SLICES_AT_ONCE, VALUES_AT_ONCE, predict_canvas
from medquant.predict.working_set import program_bytes

DEFAULT_MEMORY_BYTES = 700 * 10**6
"""What prediction takes at most above the idle process, unless the user says otherwise."""

_SMALL_THINGS_BYTES = 40 * 10**6
"""Buffers of reading, writing and the libraries."""

_SLICE_COPIES_BYTES = 4 * 8
"""Of each pixel of a slice while it is normalised: float64, and its temporary copies."""

PreviewWriter = Callable[[Path, PreparedCase, LabelArray, Mapping[int, str]], None]
"""Draws a picture: file, scan, mask on the grid of its file, classes."""


@dataclass(frozen=True)
class PredictOptions:
    """How scans are predicted.

    Args:
        max_memory_bytes: what prediction may take above the idle process; None for :data:`DEFAULT_MEMORY_BYTES`.
        allow_other_scans: predict scans the model was not made for, too; said aloud.
        preview: draws a picture of each mask; None for none.
    """

    max_memory_bytes: int | None = None
    allow_other_scans: bool = False
    preview: PreviewWriter | None = None


@dataclass(frozen=True)
class Predicted:
    """What became of a scan.

    Args:
        output: the mask's file.
        shape: of the mask, (I, J, K).
        voxels: class number → count.
        voxel_ml: volume of a voxel in millilitres; None where the scan has no geometry.
        engine: what computed it.
        elapsed_s: from reading to writing.
        warnings: what the user has to know.
        preview: the picture's file, None where none was asked for.
    """

    output: Path
    shape: tuple[int, int, int]
    voxels: Mapping[int, int]
    voxel_ml: float | None
    engine: str
    elapsed_s: float
    warnings: tuple[str, ...] = ()
    preview: Path | None = None
    classes: Mapping[int, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """As plain JSON values."""
        return {
            "output": str(self.output),
            "shape": list(self.shape),
            "classes": {
                name: {
                    "number": number,
                    "voxels": self.voxels.get(number, 0),
                    "ml": None if self.voxel_ml is None else round(self.voxels.get(number, 0) * self.voxel_ml, 6),
                }
                for number, name in self.classes.items()
            },
            "engine": self.engine,
            "seconds": round(self.elapsed_s, 3),
            "warnings": list(self.warnings),
            "preview": None if self.preview is None else str(self.preview),
        }


def predict_scan(
    model: OpenModel,
    scan: Scan,
    output: Path,
    mask_format: MaskFormat,
    options: PredictOptions,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[Path], None] | None = None,
) -> Predicted:
    """Predict a scan and write its mask.

    Args:
        model: with its engine.
        scan: what to read.
        output: the mask's file, replaced if it exists.
        mask_format: how the mask is written.
        options: memory, checks and pictures.
        progress: told how many slices of how many are done.
        note: writes down what the mask was made from, given its file before that comes to its place: so no mask lies there unknown.

    Raises:
        InputError: the scan cannot be read, or is not of the kind the model was made for.
        GeometryError: its place is contradictory, or its voxels are far larger or smaller than those of the training.
        UsageError: the memory does not suffice, or a file cannot be written.
    """
    started = time.perf_counter()
    with scratch_folder() as folder:
        scratch = ArrayCache(folder, remedy="set TMPDIR to a folder with more room")
        case, warnings = _read_fitting(model, scan, options, scratch)
        bound_memory(model, case, options.max_memory_bytes)
        prepared = model.prepare(case, scratch, warnings.append)
        mask = predict_mask(model, prepared, progress)
        counts = count_classes(mask)
        with _drawn(output, prepared, mask, model, options) as picture:
            _write(output, note, lambda path: write_mask(path, mask_format, mask, case.image, scan, model.packed))
    image = case.image
    return Predicted(
        output=output,
        shape=image.shape,
        voxels=counts,
        voxel_ml=math.prod(image.spacing_mm) / 1000 if image.has_geometry else None,
        engine=model.predictor.name,
        elapsed_s=time.perf_counter() - started,
        warnings=(*warnings, *_remarks(model, scan, counts, options)),
        preview=picture,
        classes=written_classes(model.packed),
    )


def _read_fitting(model: OpenModel, scan: Scan, options: PredictOptions, scratch: ArrayCache) -> tuple[Case, list[str]]:
    """The scan, and what has to be said of it: in what it is not as the training scans were, where the user allows that."""
    metadata = model.packed.metadata
    read = read_scan(scan, len(metadata.channels), scratch)
    warnings = []
    for misfit in find_misfits(metadata, model.preparation, read.case, read.modality):
        if not (options.allow_other_scans and misfit.can_be_allowed):
            raise misfit.error
        warnings.append(f"{misfit.error}; allowed")
    if not metadata.scan:
        warnings.append(f"{scan.label}: the model file does not say what scans it was trained on; kind and spacing were not checked")
    return read.case, warnings


@contextlib.contextmanager
def _drawn(output: Path, prepared: PreparedCase, mask: LabelArray, model: OpenModel, options: PredictOptions) -> Iterator[Path | None]:
    """Draw the mask's picture, where one is asked for; a picture of a mask that then cannot be written is taken away again."""
    if options.preview is None:
        yield None
        return
    picture = preview_path(output)
    options.preview(picture, prepared, mask, model.packed.metadata.classes)
    try:
        yield picture
    except BaseException:
        with contextlib.suppress(OSError):
            picture.unlink(missing_ok=True)
        raise


def predict_mask(model: OpenModel, prepared: PreparedCase, progress: Callable[[int, int], None] | None = None) -> LabelArray:
    """The mask of a prepared case as it is written: class numbers on the grid of its file, (I, J, K), slices contiguous."""
    mask = predict_canvas(prepared, model.predictor, progress)
    numbers = class_numbers(model.packed)
    if len(numbers) == 2 and numbers[1] != 1:
        for k in range(mask.shape[2]):
            mask[:, :, k] = numbers[mask[:, :, k]]
    return mask


def bound_memory(model: OpenModel, case: Case, max_memory_bytes: int | None) -> None:
    """Share the memory out: what the mask, the slices and the weights do not take is left to the networks.

    With the default amount a network whose smallest exact tile needs more is run in such tiles all the same. An amount that the user
    gave is kept, with margins below the receptive field if it must be, or refused.

    Raises:
        UsageError: the amount does not even suffice for mask and weights.
    """
    allowed = DEFAULT_MEMORY_BYTES if max_memory_bytes is None else max_memory_bytes
    networks: list[ProgramPredictor] = [model.predictor, *([] if model.coarse is None else [model.coarse[0]])]
    grid = model.preparation.grid.grid(case.image)
    pixels = max(math.prod(grid.shape[:2]), *(math.prod(case.image.shape) // length for length in case.image.shape))
    channels = len(case.channels)
    taken = sum(program_bytes(network.program) for network in networks) + math.prod(case.image.shape) + _SMALL_THINGS_BYTES
    at_once = max(1, min(SLICES_AT_ONCE, VALUES_AT_ONCE // (pixels * channels)))
    taken += pixels * channels * (_SLICE_COPIES_BYTES + 2 * 4 * at_once)
    for network in networks:
        network.bound(allowed - taken, max_memory_bytes is not None, taken)


def count_classes(mask: LabelArray) -> dict[int, int]:
    """Class number → voxels, of the classes that a mask holds."""
    counts = np.zeros(256, dtype=np.int64)
    for k in range(mask.shape[2]):
        counts += np.bincount(mask[:, :, k].ravel(), minlength=256)
    return {number: int(count) for number, count in enumerate(counts) if count}


def preview_path(output: Path) -> Path:
    """Where the picture of a mask goes: beside it, its ending replaced."""
    lower = output.name.lower()
    end = next((each for each in (".nii.gz", ".nii", ".dcm", ".tiff", ".tif") if lower.endswith(each)), "")
    return output.with_name(f"{output.name[: len(output.name) - len(end)]}_preview.png")


def _remarks(model: OpenModel, scan: Scan, counts: Mapping[int, int], options: PredictOptions) -> list[str]:
    remarks = []
    if set(counts) <= {0}:
        names = ", ".join(shortened(name) for number, name in model.packed.metadata.classes.items() if number != 0)
        remarks.append(f"{scan.label}: the mask is EMPTY, nothing was found of {names}")
    networks = [model.predictor, *([] if model.coarse is None else [model.coarse[0]])]
    if not all(network.is_exact for network in networks):
        allowed = (options.max_memory_bytes or DEFAULT_MEMORY_BYTES) / 1e6
        remarks.append(
            f"{scan.label}: within {allowed:.0f} MB the network saw less around each voxel than it looks at; the mask may differ from that "
            "of the whole image, allow more with --max-memory"
        )
    return remarks


def _write(output: Path, note: Callable[[Path], None] | None, write: Callable[[Path], None]) -> None:
    if note is None:
        write(output)
        return
    waiting = output.with_name(f".unfinished-{output.name}")
    try:
        write(waiting)
        note(waiting)
        waiting.replace(output)
    except OSError as error:
        raise UsageError(f"{output}: cannot be written ({error.strerror}); choose another place") from error
    finally:
        # Where even this cannot be done the error above says why.
        with contextlib.suppress(OSError):
            waiting.unlink(missing_ok=True)
