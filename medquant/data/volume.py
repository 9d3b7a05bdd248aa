"""Array and geometry in one value, and the case that holds them: what every reader returns and every writer takes.

Axis convention of the whole package: the spatial axes of an array are ``(i, j, k)`` as NIfTI stores them, ``k`` being the
slice axis of a stack; a 2D image is a volume with one slice. ``affine`` maps voxel indices to millimetres in RAS+.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medquant.errors import GeometryError

FloatArray = NDArray[np.float32]
LabelArray = NDArray[np.uint8]


@dataclass(frozen=True)
class Volume:
    """A scalar array with its place in the world.

    Args:
        array: shape ``(I, J, K)``; float32 for images, uint8 for masks.
        affine: shape ``(4, 4)`` float64, voxel index → RAS millimetres. Must be invertible.
        has_geometry: False where the file says nothing about spacing (a plain TIFF) and the affine is only nominal.

    Raises:
        GeometryError: the array is not 3D, or the affine is not a finite invertible 4×4 matrix.
    """

    array: NDArray[np.generic]
    affine: NDArray[np.float64]
    has_geometry: bool = True

    def __post_init__(self) -> None:
        if self.array.ndim != 3:
            raise GeometryError(f"a volume needs 3 axes (i, j, slice), found an array of shape {self.array.shape}")
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all() or not _spans_space(self.affine[:3, :3]):
            raise GeometryError("a volume needs a finite, invertible 4×4 affine from voxel indices to millimetres")

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance in millimetres between neighbouring voxels along each array axis."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(lengths[0]), float(lengths[1]), float(lengths[2])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Array shape ``(I, J, K)``."""
        i, j, k = self.array.shape
        return i, j, k

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Number type of the voxels."""
        return self.array.dtype


def _spans_space(directions: NDArray[np.float64]) -> bool:
    """Whether the three axes are independent; voxels may be nanometres or metres, so the test does not depend on their size."""
    lengths = np.linalg.norm(directions, axis=0)
    return bool((lengths > 0).all()) and abs(float(np.linalg.det(directions / lengths))) > 1e-6


@dataclass(frozen=True)
class Case:
    """One scored unit of a dataset: an image with, where known, its mask.

    Args:
        id: unique within the dataset, safe to print (never a patient's name).
        subject: cases of one subject must stay in one part of a split.
        site: scanner site or centre, "" where there is none.
        image: volume in the file's own units; of several channels, the first.
        mask: uint8 volume of class numbers on the same grid, or None. What predictions are scored against.
        source: path or description the user would recognise, for messages.
        further_channels: the other channels, on the same grid.
        raters: the masks of single raters that training takes in turn instead of ``mask``, on the same grid; may be empty.
    """

    id: str
    subject: str
    site: str
    image: Volume
    mask: Volume | None
    source: str
    further_channels: tuple[Volume, ...] = ()
    raters: tuple[Volume, ...] = ()

    def __post_init__(self) -> None:
        others = [("mask", self.mask), *(("channel", each) for each in self.further_channels)]
        for name, volume in [*others, *(("rater's mask", each) for each in self.raters)]:
            if volume is not None and volume.shape != self.image.shape:
                raise GeometryError(f"{self.source}: image {self.image.shape} and {name} {volume.shape} differ in shape")

    @property
    def channels(self) -> tuple[Volume, ...]:
        """All channels, in the order the network takes them."""
        return (self.image, *self.further_channels)


@dataclass(frozen=True)
class DatasetInfo:
    """What a dataset is, apart from its voxels.

    Args:
        name: registry name, for example ``isbi_em``.
        classes: class number → name for every value a mask can hold, background (if the dataset has one) included.
        scored: the class names Dice is reported for, in order.
        official_score: names of the dataset's own metrics beyond Dice (for example ``v_rand``), may be empty.
        recipe: configuration defaults that suit the dataset (dotted key → value), below the user's own.
        citation: how to cite it, or "".
        regions: classes joined for scoring, name → class numbers (for example the cord: gray and white matter).
        channels: names of the image channels, in order.
        one_stack: every case is a slice of one and the same stack.
        modality: ``CT``, ``MR`` or ``EM`` where the dataset says what its images are, otherwise "".
        numbered: subjects end in a number of four digits from 1 to this one, gaps included; 0 where they do not.
    """

    name: str
    classes: Mapping[int, str]
    scored: tuple[str, ...]
    official_score: tuple[str, ...] = ()
    recipe: Mapping[str, object] = field(default_factory=dict)
    citation: str = ""
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    channels: tuple[str, ...] = ("image",)
    one_stack: bool = False
    modality: str = ""
    numbered: int = 0


@dataclass(frozen=True)
class Dataset:
    """Cases and what is known about them.

    Args:
        info: static description.
        cases: at least one.
        path: folder it was read from, or None for generated data.
        recognised: one sentence: what the data was taken for, and why.
        content_sha256: digest over every voxel and mask, in case order; identifies the data of a run.
        parts: ``train``, ``validation``, ``test`` → case ids, where the dataset comes divided; empty where it does not.
    """

    info: DatasetInfo
    cases: tuple[Case, ...]
    path: str | None
    recognised: str
    content_sha256: str
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
