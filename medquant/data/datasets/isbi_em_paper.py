"""ISBI 2012 EM as the 2019 U-Net fixed-point paper's released code had it: two small, augmented copies of every slice.

The paper took its images from a repository that holds 60 pairs of 256×256 made from the 30 slices by Keras' ImageDataGenerator, and
cut 200×200 out of each. Here the copies are made from the official files, with the same kinds of change and a seed of its own; they
are not the paper's copies themselves, whose random numbers are unknown.

The dataset leaks by design. The copies of a slice are cases of their own, so that a split at random over the cases puts a copy into
training and its sister into the part that is scored. Figures on it can be compared with the paper's and with nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medquant.data.content import content_sha256
from medquant.data.datasets import isbi_em
from medquant.data.reading import ReadOptions
from medquant.data.volume import Case, Dataset, FloatArray, LabelArray, Volume

NAME = "isbi_em_paper"
LAYOUT = f"{isbi_em.LAYOUT}, when asked for by name"

COPIES = 2
SIDE = 256
CROP = slice(28, 228)

_SEED = 20190803
_ROTATION_DEGREES = 0.2
_SHIFT = _SHEAR_DEGREES = _ZOOM = 0.05

INFO = replace(
    isbi_em.INFO,
    name=NAME,
    official_score=(),
    one_stack=False,
    recipe={
        "model.channels": 64,
        "model.depth": 4,
        "data.patch_size": [200, 200],
        "data.batch_size": 5,
        "data.normalisation": "range",
        "data.window": [0.0, 255.0],
        "data.augmentation": "none",
    },
)


def recognise(path: Path) -> str | None:
    """Never: a dataset that leaks is taken only when it is named."""
    return None


def load(path: Path, options: ReadOptions | None = None) -> Dataset:
    """Read the official files and make the copies; each is a case of shape ``(200, 200, 1)`` with itself for its subject.

    First come the first copies of all slices, then the second ones. The same files give the same voxels on every machine.

    Raises:
        InputError: as :func:`isbi_em.load`.
    """
    original = isbi_em.load(path, options)
    cases = tuple(_copy(case, slice_number, copy) for copy in range(COPIES) for slice_number, case in enumerate(original.cases))
    recognised = (
        f"ISBI 2012 EM as in the 2019 fixed-point paper: {COPIES} augmented copies of each of {len(original.cases)} slices, {SIDE}×{SIDE}, "
        f"cut to {CROP.stop - CROP.start}×{CROP.stop - CROP.start}. LEAKS BY DESIGN: copies of a slice lie in different parts, so Dice is "
        "too high and comparable with the paper's alone; use isbi_em for anything else."
    )
    return Dataset(info=INFO, cases=cases, path=str(path), recognised=recognised, content_sha256=content_sha256(cases))


@dataclass(frozen=True)
class _Change:
    """One draw of Keras' ranges: rows and columns in pixels, angles in radians."""

    rotation: float
    shift: tuple[float, float]
    shear: float
    zoom: tuple[float, float]
    mirrored: bool

    @staticmethod
    def draw(random: np.random.Generator) -> _Change:
        rotation, shear = np.deg2rad(random.uniform(-1, 1, 2) * (_ROTATION_DEGREES, _SHEAR_DEGREES))
        rows, columns = random.uniform(-_SHIFT, _SHIFT, 2) * SIDE
        tall, wide = random.uniform(1 - _ZOOM, 1 + _ZOOM, 2)
        mirrored = bool(random.random() < 0.5)
        return _Change(float(rotation), (float(rows), float(columns)), float(shear), (float(tall), float(wide)), mirrored)

    def matrix(self) -> NDArray[np.float64]:
        """From a pixel (row, column, 1) of the copy, counted from the middle, to where it is read: rotation · shift · shear · zoom."""
        cos, sin = np.cos(self.rotation), np.sin(self.rotation)
        rotation = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        shift = np.array([[1, 0, self.shift[0]], [0, 1, self.shift[1]], [0, 0, 1]])
        shear = np.array([[1, -np.sin(self.shear), 0], [0, np.cos(self.shear), 0], [0, 0, 1]])
        zoom = np.diag([self.zoom[0], self.zoom[1], 1.0])
        product: NDArray[np.float64] = rotation @ shift @ shear @ zoom
        return product

    def apply(self, plane: FloatArray) -> FloatArray:
        """A plane (rows, columns) changed: linear between pixels, beyond the edge the nearest pixel."""
        from scipy.ndimage import affine_transform

        middle = (np.array(plane.shape) - 1) / 2
        matrix = self.matrix()
        offset = middle + matrix[:2, 2] - matrix[:2, :2] @ middle
        moved: FloatArray = affine_transform(plane, matrix[:2, :2], offset, order=1, mode="nearest").astype(np.float32)
        return moved[:, ::-1] if self.mirrored else moved


def _copy(case: Case, slice_number: int, copy: int) -> Case:
    change = _Change.draw(np.random.default_rng([_SEED, slice_number, copy]))
    if case.mask is None:
        raise TypeError(f"{case.id}: the EM reader gives every slice its mask")
    grey, cell = _small(np.asarray(case.image.array[:, :, 0])), _small(np.asarray(case.mask.array[:, :, 0]))
    # As 8-bit pictures, which the paper's copies were stored as.
    image = np.rint(change.apply(grey.astype(np.float32))).astype(np.float32)
    mask: LabelArray = (change.apply(cell.astype(np.float32)) > 0.5).astype(np.uint8)
    name = f"{case.id}-copy-{copy + 1}"
    return Case(
        id=name,
        # Of its own on purpose: it is what lets the parts share slices, as the paper's do.
        subject=name,
        site="",
        image=_volume(image, case.image),
        mask=_volume(mask, case.mask),
        source=case.source,
    )


def _small(columns_first: NDArray[np.generic]) -> NDArray[np.generic]:
    """A slice (columns, rows) as (256 rows, 256 columns), each the pixel nearest to its middle."""
    rows, columns = (((np.arange(SIDE) + 0.5) * length / SIDE).astype(np.int64) for length in columns_first.shape[::-1])
    return columns_first.T[np.ix_(rows, columns)]


def _volume(plane: NDArray[np.generic], like: Volume) -> Volume:
    cut = np.ascontiguousarray(plane[CROP, CROP].T[:, :, None])
    return Volume(array=cut, affine=like.affine, has_geometry=False)
