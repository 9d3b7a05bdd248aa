"""Cases on the network's grid: resampled once, normalised and cut to their region slice by slice, never held as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from medquant.data.content import volume_sha256
from medquant.data.normalise import Normalisation, Statistics
from medquant.data.prepared_grid import GridRule, PreparedGrid
from medquant.data.slabs import SliceSource
from medquant.data.stored import ArrayCache, StoredVolume
from medquant.data.volume import Case, FloatArray, LabelArray, Volume
from medquant.errors import CheckpointError, GeometryError, InputError


@dataclass(frozen=True)
class Window:
    """A box of the prepared grid: first voxel and one past the last, along each axis."""

    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    @staticmethod
    def whole(shape: tuple[int, int, int]) -> Window:
        """The box that leaves nothing out."""
        return Window((0, 0, 0), shape)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size of the box."""
        i, j, k = (stop - start for start, stop in zip(self.start, self.stop, strict=True))
        return i, j, k

    @property
    def in_plane(self) -> tuple[slice, slice]:
        """Index of the box in a slice."""
        return slice(self.start[0], self.stop[0]), slice(self.start[1], self.stop[1])

    @property
    def index(self) -> tuple[slice, slice, slice]:
        """Index of the box in the whole array."""
        return (*self.in_plane, slice(self.start[2], self.stop[2]))


@dataclass(frozen=True)
class Preparation:
    """How any image becomes what a network takes; stored in the model file.

    Args:
        normalisation: file units → network units, within the region.
        grid: orientation and in-plane spacing.
    """

    normalisation: Normalisation
    grid: GridRule = field(default_factory=GridRule)

    def to_json(self) -> dict[str, object]:
        """The rules as plain JSON values; ``from_json`` gives them back."""
        return {"normalisation": self.normalisation.to_json(), "grid": self.grid.to_json()}

    @staticmethod
    def from_json(data: Mapping[str, object]) -> Preparation:
        """Read what ``to_json`` wrote.

        Raises:
            CheckpointError: it is not a preparation.
        """
        normalisation, grid = data.get("normalisation"), data.get("grid")
        if set(data) != {"normalisation", "grid"} or not isinstance(normalisation, Mapping) or not isinstance(grid, Mapping):
            raise CheckpointError(f"stored preparation has the keys {sorted(map(str, data))}, expected normalisation and grid")
        return Preparation(Normalisation.from_json(normalisation), GridRule.from_json(grid))


@dataclass(frozen=True)
class PreparedCase:
    """A case on the network's grid.

    Args:
        case: the case as it was read.
        grid: the way to its prepared grid and back.
        normalisation: applied to each slice that is asked for.
        channels: images on the prepared grid, in file units.
        masks: what training takes in turn: the raters' masks, or the one mask; empty where there is none.
        window: what the network sees; beyond it everything is background.
        statistics: of each channel inside the window, None where normalising needs none.
        scored_inside: score only what the window shows. For the crop around the truth, and for nothing else.
    """

    case: Case
    grid: PreparedGrid
    normalisation: Normalisation
    channels: tuple[Volume, ...]
    masks: tuple[Volume, ...]
    window: Window
    statistics: tuple[Statistics | None, ...]
    scored_inside: bool = False

    @property
    def id(self) -> str:
        """The case's id."""
        return self.case.id

    @property
    def slices(self) -> int:
        """Number of slices in the window."""
        return self.window.shape[2]

    def with_window(self, window: Window, scored_inside: bool = False) -> PreparedCase:
        """The same case, cut to another box."""
        moved = replace(self, window=window, scored_inside=scored_inside)
        return replace(moved, statistics=_window_statistics(moved.case, moved.channels, window, self.normalisation))

    def image(self, k: int) -> FloatArray:
        """Normalised slice ``k`` of the window, shape ``(C, I, J)``.

        Raises:
            InputError: it holds NaN or Inf.
        """
        place = (*self.window.in_plane, self.window.start[2] + k)
        pairs = zip(self.channels, self.statistics, strict=True)
        try:
            return np.stack([self.normalisation.apply_slice(channel.array[place], statistics) for channel, statistics in pairs])
        except InputError as error:
            raise InputError(f"{self.case.source}: {error}") from error

    def label(self, k: int, rater: int = 0) -> LabelArray:
        """Slice ``k`` of a mask inside the window, shape ``(I, J)``."""
        return np.ascontiguousarray(self.masks[rater].array[(*self.window.in_plane, self.window.start[2] + k)], dtype=np.uint8)

    def foreground_slices(self, rater: int = 0) -> list[bool]:
        """For each slice of the window, whether the mask holds anything but class 0."""
        held = np.asarray(self.masks[rater].array[self.window.index], dtype=np.uint8)
        return [bool(found) for found in np.any(held, axis=(0, 1)).tolist()]

    def images(self, at_once: int) -> Iterator[FloatArray]:
        """All slices of the window in groups, shape ``(N, C, I, J)`` with ``N`` up to ``at_once``."""
        for first in range(0, self.slices, at_once):
            yield np.stack([self.image(k) for k in range(first, min(first + at_once, self.slices))])

    def canvas(self) -> LabelArray:
        """An empty mask on the grid of the file, ``(I, J, K)``, slices contiguous."""
        return np.zeros(self.grid.stored_shape[::-1], dtype=np.uint8).transpose(2, 1, 0)

    def place(self, canvas: LabelArray, first: int, slices: LabelArray) -> None:
        """Put some slices of the window's mask, ``(I, J, N)``, the first of them ``first``, into a mask on the grid of the file.

        All slices together give what ``restore`` gives, and no second mask is held.
        """
        for number in range(slices.shape[2]):
            pixels = slices[:, :, number]
            if self.window.shape[:2] != self.grid.shape[:2]:
                whole = np.zeros(self.grid.shape[:2], dtype=np.uint8)
                whole[self.window.in_plane] = pixels
                pixels = whole
            self.grid.place(canvas, self.window.start[2] + first + number, pixels)

    def restore(self, mask: LabelArray) -> LabelArray:
        """A mask of the window ``(I, J, K)`` → the mask on the grid of the file, background (class 0) beyond the window.

        Raises:
            GeometryError: the mask has not the window's shape.
        """
        if mask.shape != self.window.shape:
            raise GeometryError(f"{self.case.source}: a mask of shape {mask.shape} does not fit the region {self.window.shape}")
        if self.window.shape == self.grid.shape:
            return self.grid.restore(mask)
        full = np.zeros(self.grid.shape[::-1], dtype=np.uint8).transpose(2, 1, 0)
        full[self.window.index] = mask
        return self.grid.restore(full)

    def visible(self) -> LabelArray:
        """1 where the window lies, on the grid of the file."""
        return self.restore(np.ones(self.window.shape, dtype=np.uint8))


def prepare_case(case: Case, preparation: Preparation, cache: ArrayCache) -> PreparedCase:
    """Bring a case to the network's grid; resampled arrays go into the cache.

    Raises:
        GeometryError: the channels, masks and the image do not lie on one grid.
        InputError: an image holds NaN or Inf.
        UsageError: what the cache holds of the case is damaged.
    """
    check_same_place(case)
    for volume in (*case.channels, *case.raters, *(() if case.mask is None else (case.mask,))):
        if isinstance(volume, StoredVolume):
            volume.verify()
    grid = preparation.grid.grid(case.image)
    channels = tuple(_on_grid(volume, grid, cache, is_mask=False) for volume in case.channels)
    drawn = case.raters or (() if case.mask is None else (case.mask,))
    masks = tuple(_on_grid(volume, grid, cache, is_mask=True) for volume in drawn)
    window = Window.whole(grid.shape)
    statistics = _window_statistics(case, channels, window, preparation.normalisation)
    return PreparedCase(case, grid, preparation.normalisation, channels, masks, window, statistics)


def prepare_cases(cases: Sequence[Case], preparation: Preparation, cache: ArrayCache) -> list[PreparedCase]:
    """``prepare_case`` for each."""
    return [prepare_case(case, preparation, cache) for case in cases]


def check_same_place(case: Case) -> None:
    """Refuse a case whose volumes lie on grids that are more than a tenth of a voxel apart anywhere.

    Raises:
        GeometryError: they do.
    """
    others = [("channel", each) for each in case.further_channels] + [("mask", each) for each in case.raters]
    for name, volume in others + ([] if case.mask is None else [("mask", case.mask)]):
        if not (volume.has_geometry and case.image.has_geometry):
            continue
        ends = np.asarray([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=np.float64)
        ends[:, :3] *= np.asarray(case.image.shape) - 1
        apart = np.abs(np.linalg.solve(case.image.affine, volume.affine @ ends.T)[:3].T - ends[:, :3]).max()
        if apart > 0.1:
            raise GeometryError(
                f"{case.source}: {name} and image lie up to {apart:.2f} voxels apart by their affines; "
                "expected one grid, so resample the one to the other, or repair the header that is wrong"
            )


def _on_grid(volume: Volume, grid: PreparedGrid, cache: ArrayCache, is_mask: bool) -> Volume:
    # Nominal: prepared arrays are only indexed; the way back to millimetres leads through the stored volume.
    affine = np.diag([*grid.spacing_mm, 1.0])
    if grid.plane is None:
        return volume if grid.is_identity else ReorientedVolume(volume, grid)

    plane, dtype = grid.plane, np.dtype(np.uint8 if is_mask else np.float32)

    def slices() -> Iterator[NDArray[np.generic]]:
        for k in range(grid.shape[2]):
            # Asked for anew each time: of a volume that lies in a file, no more than a slice is mapped.
            pixels = grid.orient(volume.array)[:, :, k]
            yield plane.mask(np.asarray(pixels, dtype=np.uint8)) if is_mask else plane.image(pixels)

    key = f"prepared 1 {volume_sha256(volume)} {grid} {'mask' if is_mask else 'image'}"
    kept = cache.keep_slices(key, SliceSource(grid.shape, dtype, affine, volume.has_geometry, slices))
    if isinstance(kept, StoredVolume):
        kept.verify()
    return kept


class ReorientedVolume(Volume):
    """A volume seen along permuted and flipped axes; its array is a view, made when asked for."""

    def __init__(self, volume: Volume, grid: PreparedGrid) -> None:
        object.__setattr__(self, "affine", np.diag([*grid.spacing_mm, 1.0]))
        object.__setattr__(self, "has_geometry", volume.has_geometry)
        self.__dict__.update(_volume=volume, _grid=grid)

    @property
    def array(self) -> NDArray[np.generic]:
        """Shape ``(I, J, K)`` of the prepared grid."""
        grid: PreparedGrid = self.__dict__["_grid"]
        volume: Volume = self.__dict__["_volume"]
        return grid.orient(volume.array)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the prepared grid."""
        grid: PreparedGrid = self.__dict__["_grid"]
        return grid.shape

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Number type of the voxels."""
        volume: Volume = self.__dict__["_volume"]
        return volume.dtype


def _window_statistics(
    case: Case, channels: Sequence[Volume], window: Window, normalisation: Normalisation
) -> tuple[Statistics | None, ...]:
    if normalisation.kind != "zscore_volume":
        return (None,) * len(channels)
    try:
        return tuple(normalisation.statistics(channel.array[window.index]) for channel in channels)
    except InputError as error:
        raise InputError(f"{case.source}: {error}") from error
