"""ISBI 2012 EM segmentation challenge: membranes in serial-section electron microscopy, one stack of 30 slices.

Layout of the official download: ``train-volume.tif``, ``train-labels.tif`` and, without labels, ``test-volume.tif``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medquant.data.content import content_sha256
from medquant.data.reading import ReadOptions
from medquant.data.tiff import read_tiff_stack
from medquant.data.volume import Case, Dataset, DatasetInfo, LabelArray, Volume
from medquant.errors import InputError

IMAGE_FILE, LABEL_FILE, TEST_FILE = "train-volume.tif", "train-labels.tif", "test-volume.tif"
LAYOUT = f"{IMAGE_FILE} and {LABEL_FILE} (optionally {TEST_FILE}) directly in the folder"

VOXEL_SIZE_NM = (4.0, 4.0, 50.0)
"""Size of a voxel along column, row and slice, from Cardona et al. 2010; the files do not hold it."""

INFO = DatasetInfo(
    name="isbi_em",
    modality="EM",
    classes={0: "membrane", 1: "cell"},
    scored=("cell", "membrane"),
    official_score=("v_rand", "v_info"),
    recipe={
        "model.channels": 16,
        "model.depth": 5,
        "train.epochs": 40,
        "train.steps_per_epoch": 40,
        "data.patch_size": [256, 256],
        "data.batch_size": 4,
        "data.normalisation": "zscore_slice",
        "data.augmentation": "em",
    },
    one_stack=True,
    citation="Arganda-Carreras et al. 2015, Front. Neuroanat. 9:142; Cardona et al. 2010, PLoS Biol. 8(10):e1000502",
)

_MAX_LISTED_VALUES = 8


def recognise(path: Path) -> str | None:
    """Say why the folder is taken for the challenge's download, or None.

    One of the two training files is enough: a half-copied download should be named as such when it is loaded.
    """
    present = [name for name in (IMAGE_FILE, LABEL_FILE) if (path / name).is_file()]
    return f"it holds {' and '.join(present)}" if present else None


def load(path: Path, options: ReadOptions | None = None) -> Dataset:
    """Read the labelled stack; each slice becomes a case of shape ``(512, 512, 1)``.

    The slices are all of one animal. A case's subject is nevertheless the slice itself, because a part of one stack is
    all there is to train and test on; ``split.make_split`` then cuts the stack into blocks.

    Raises:
        InputError: a file is missing or unreadable, image and labels differ in shape or page number, or a label value is
            neither 0 nor 255 (nor 1).
    """
    for name in (IMAGE_FILE, LABEL_FILE):
        if not (path / name).is_file():
            raise InputError(f"{path}: {name} is missing, expected {LAYOUT}; copy the missing file into the folder")
    image = read_tiff_stack(path / IMAGE_FILE)
    labels = read_tiff_stack(path / LABEL_FILE)
    if image.shape != labels.shape:
        raise InputError(
            f"{path}: {IMAGE_FILE} has {_describe(image)}, {LABEL_FILE} has {_describe(labels)}; "
            "expected the same, so take both files from one download"
        )
    mask, encoding = _decode_labels(path / LABEL_FILE, labels.array)
    cases = tuple(_case(path, image, mask, number) for number in range(image.shape[2]))
    cell_percent = 100.0 * float(np.count_nonzero(mask)) / mask.size
    has_test = (path / TEST_FILE).is_file()
    recognised = (
        f"ISBI 2012 EM ({recognise(path)}): {_describe(image)}; labels {encoding}, positive class cell = 1 ({cell_percent:.1f} % of the "
        f"pixels), membrane = 0; voxels of 4×4×50 nm by the literature, not by the files"
        f"{'; ' + TEST_FILE + ' is there, has no labels and is not used' if has_test else ''}."
    )
    return Dataset(info=INFO, cases=cases, path=str(path), recognised=recognised, content_sha256=content_sha256(cases))


def _decode_labels(path: Path, values: NDArray[np.generic]) -> tuple[LabelArray, str]:
    """Map the stored values to class numbers; return the mask ``(I, J, K)`` and one phrase on how they were stored."""
    found = {float(value) for value in np.unique(values)}
    if found <= {0.0, 255.0}:
        encoding = "0 = membrane, 255 = cell (the official polarity)"
    elif found <= {0.0, 1.0}:
        encoding = "0 = membrane, 1 = cell (stored as 0/1, not as the official 0/255)"
    else:
        listed = ", ".join(f"{value:g}" for value in sorted(found)[:_MAX_LISTED_VALUES])
        more = f" and {len(found) - _MAX_LISTED_VALUES} more" if len(found) > _MAX_LISTED_VALUES else ""
        raise InputError(f"{path}: found the label values {listed}{more}, expected only 0 and 255 (or 0 and 1); threshold the labels first")
    return (np.asarray(values) != 0).astype(np.uint8), encoding


def _case(path: Path, image: Volume, mask: LabelArray, number: int) -> Case:
    # Voxels of a few nanometres are too small for an affine in millimetres, so it stays nominal, in units of one pixel.
    affine = np.diag([1.0, 1.0, VOXEL_SIZE_NM[2] / VOXEL_SIZE_NM[0], 1.0])
    affine[2, 3] = number * affine[2, 2]
    name = f"slice-{number:02d}"
    pixels = np.ascontiguousarray(image.array[:, :, number : number + 1]).astype(np.float32)
    return Case(
        id=name,
        subject=name,
        site="",
        image=Volume(array=pixels, affine=affine, has_geometry=False),
        mask=Volume(array=np.ascontiguousarray(mask[:, :, number : number + 1]), affine=affine, has_geometry=False),
        source=f"{path / IMAGE_FILE}, page {number}",
    )


def _describe(volume: Volume) -> str:
    columns, rows, pages = volume.shape
    return f"{pages} slices of {columns}×{rows}"
