"""Shapes of the phantom: signed distances, in millimetres and negative inside, on a grid finer than the image's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from medquant.data.volume import LabelArray

Field = NDArray[np.float64]

FINENESS = 2
"""Fine grid points per voxel and axis; their mean is the voxel's partial volume."""

# How far a rater's outline strays from the true one, in mm: in one point, over how wide a stretch, and as a habit.
_RATER_WANDER_MM, _RATER_STRETCH_MM = 0.14, 0.9
RATER_HABIT_MM = 0.05
"""Standard deviation, over raters, of how far inside or outside the edge of gray matter one draws."""


@dataclass(frozen=True)
class Grid:
    """A square slice of ``size`` voxels of ``spacing_mm``."""

    size: int
    spacing_mm: float

    def coordinates_mm(self) -> tuple[Field, Field]:
        """Position of the fine grid points, shape ``(size · FINENESS,) * 2``, zero in the middle; axis 0 is the first result."""
        count = self.size * FINENESS
        line = (np.arange(count) - (count - 1) / 2) * (self.spacing_mm / FINENESS)
        return np.meshgrid(line, line, indexing="ij")

    def smooth_noise(self, random: np.random.Generator, stretch_mm: float) -> Field:
        """Noise of standard deviation 1 on the fine grid, smooth over ``stretch_mm``."""
        stretch = stretch_mm / self.spacing_mm
        # What is smooth over more than a voxel is drawn voxel by voxel: a quarter of the work, and no visible steps.
        repeat = FINENESS if stretch > 1.5 else 1
        count = self.size * FINENESS // repeat
        noise = gaussian_filter(random.standard_normal((count, count)), stretch * FINENESS / repeat, mode="wrap", truncate=2.5)
        noise = noise / max(float(noise.std()), 1e-12)
        return np.asarray(noise.repeat(repeat, axis=0).repeat(repeat, axis=1))

    def to_voxels(self, fine: Field) -> Field:
        """Mean of the fine grid points in each voxel, shape ``(size, size)``."""
        return np.asarray(fine.reshape(self.size, FINENESS, self.size, FINENESS).mean(axis=(1, 3)))


@dataclass(frozen=True)
class Tissue:
    """One slice: the true shapes on the fine grid, and the mask a rater drew.

    Args:
        gray, cord, canal: signed distances, mm.
        x, y: position relative to the cord's middle, x to growing ``i``, y to the front, mm.
        rated: classes, shape ``(size, size)``.
    """

    gray: Field
    cord: Field
    canal: Field
    x: Field
    y: Field
    rated: LabelArray


@dataclass(frozen=True)
class Anatomy:
    """What makes one subject's neck its own. Lengths in mm; ``left`` and ``right`` scale the two wings of the butterfly."""

    half_width: float
    half_height: float
    canal_gap: float
    horn_reach: float
    horn_width: float
    left: float
    right: float
    shift_x: float
    shift_y: float
    tilt: float
    drift_x: float
    drift_y: float
    swelling_at_mm: float
    habit: float

    @staticmethod
    def draw(random: np.random.Generator) -> Anatomy:
        """Draw a subject."""
        return Anatomy(
            half_width=random.uniform(5.6, 7.4),
            half_height=random.uniform(3.7, 4.9),
            canal_gap=random.uniform(1.0, 2.6),
            horn_reach=random.uniform(0.88, 1.1),
            horn_width=random.uniform(0.85, 1.2),
            left=random.uniform(0.92, 1.08),
            right=random.uniform(0.92, 1.08),
            shift_x=random.uniform(-4.0, 4.0),
            shift_y=random.uniform(-4.0, 4.0),
            tilt=random.uniform(-0.16, 0.16),
            drift_x=random.uniform(-0.06, 0.06),
            drift_y=random.uniform(-0.06, 0.06),
            swelling_at_mm=random.uniform(0.0, 30.0),
            habit=random.normal(0.0, RATER_HABIT_MM),
        )

    def slice_at(self, height_mm: float, grid: Grid, random: np.random.Generator) -> Tissue:
        """Shapes at a height along the cord, with the small irregularities of this slice, and the rater's mask of them."""
        x, y = self._local_coordinates(height_mm, grid, random)
        # The cord and its front horns are thickest where the nerves of the arm leave.
        swelling = float(np.exp(-(((height_mm - self.swelling_at_mm) / 12.0) ** 2)))
        width, depth = self.half_width * (1 + 0.1 * swelling), self.half_height * (1 + 0.04 * swelling)
        cord = ellipse(x, y, width, depth)
        canal = ellipse(x, y + 0.3, width + self.canal_gap + 0.8, depth + self.canal_gap)
        gray = self._butterfly(x, y, width, depth, swelling)
        return Tissue(gray=gray, cord=cord, canal=canal, x=x, y=y, rated=rate(gray, cord, grid, self.habit, random))

    def _local_coordinates(self, height_mm: float, grid: Grid, random: np.random.Generator) -> tuple[Field, Field]:
        along, up = grid.coordinates_mm()
        x = along - self.shift_x - self.drift_x * height_mm
        y = up - self.shift_y - self.drift_y * height_mm
        cosine, sine = np.cos(self.tilt), np.sin(self.tilt)
        warp_x, warp_y = (0.25 * grid.smooth_noise(random, 2.5) for _ in range(2))
        return cosine * x + sine * y + warp_x, -sine * x + cosine * y + warp_y

    def _butterfly(self, x: Field, y: Field, width: float, depth: float, swelling: float) -> Field:
        """Two wings, each a thick front horn and a thin back horn, and the bridge between them."""
        reach, thick = self.horn_reach, self.horn_width
        shape = capsule(x, y, (-0.2 * width, 0.0), (0.2 * width, 0.0), 0.45 * thick, 0.45 * thick)
        for side, scale in ((-1.0, self.left), (1.0, self.right)):
            root = (side * 0.2 * width, -0.02 * depth)
            front = (side * 0.36 * width * reach * scale, 0.46 * depth * reach * scale)
            back = (side * 0.44 * width * reach * scale, -0.64 * depth * reach * scale)
            shape = np.minimum(shape, capsule(x, y, root, front, 0.62 * thick, (0.82 + 0.3 * swelling) * thick * scale))
            shape = np.minimum(shape, capsule(x, y, root, back, 0.6 * thick, 0.34 * thick * scale))
        return shape


def rate(gray: Field, cord: Field, grid: Grid, habit_mm: float, random: np.random.Generator) -> LabelArray:
    """Classes ``(size, size)`` as a rater draws them who stays ``habit_mm`` inside the gray matter's edge and whose hand wanders."""
    wander_gray, wander_cord = (_RATER_WANDER_MM * grid.smooth_noise(random, _RATER_STRETCH_MM) for _ in range(2))
    in_gray = grid.to_voxels((gray + wander_gray + habit_mm < 0).astype(np.float64)) >= 0.5
    in_cord = grid.to_voxels((cord + wander_cord < 0).astype(np.float64)) >= 0.5
    return np.where(in_gray & in_cord, 1, np.where(in_cord, 2, 0)).astype(np.uint8)


def ellipse(x: Field, y: Field, half_width: float, half_height: float) -> Field:
    """Distance to an ellipse about the origin."""
    # Exact on the outline and of about unit slope near it, which is all that edges and raters need.
    radius = np.sqrt((x / half_width) ** 2 + (y / half_height) ** 2)
    slope = np.sqrt((x / half_width**2) ** 2 + (y / half_height**2) ** 2)
    return np.asarray((radius - 1.0) * radius / np.maximum(slope, 1e-6))


def capsule(x: Field, y: Field, start: tuple[float, float], end: tuple[float, float], start_radius: float, end_radius: float) -> Field:
    """Distance to a line with round ends whose radius changes from one end to the other."""
    along_x, along_y = end[0] - start[0], end[1] - start[1]
    length = along_x**2 + along_y**2
    place = np.clip(((x - start[0]) * along_x + (y - start[1]) * along_y) / length, 0.0, 1.0)
    distance = np.sqrt((x - start[0] - place * along_x) ** 2 + (y - start[1] - place * along_y) ** 2)
    return np.asarray(distance - (start_radius + place * (end_radius - start_radius)))
