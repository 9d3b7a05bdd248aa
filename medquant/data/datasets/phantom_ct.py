"""A made-up abdomen in CT: something to try the Pancreas-CT path on, and to test geometry against a known truth.

Liver on the patient's right, spleen and stomach on the left, spine, vessels and kidneys, bowel with gas, the table below,
and a pancreas bent over the spine, whose numbers overlap with those of its neighbours. Each slice is outlined on its own,
so the mask is a little ragged across slices, as masks drawn by hand are.
In the liver lies one calcified point at ``MARKER_MM``: the only voxels above ``MARKER_HU``, so a mirrored scan shows itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from medquant.data.volume import Case, Volume
from medquant.errors import ConfigError

MARKER_MM = (96.0, -24.0, 6.0)
"""Middle of the calcified point in every case, RAS millimetres: right, behind, above the middle of the scan."""

MARKER_HU = 900
"""Nothing else in a phantom is brighter than this."""

PADDING_HU = -2048
"""Value of the corners that lie outside the scanner's round field of view."""

FIELD_MM = 409.6
SPAN_MM = 120.0

_FAT_HU, _MUSCLE_HU, _AIR_HU, _MARKER_PEAK_HU = -100.0, 55.0, -1000.0, 1600.0
_LEAST_MARKER_MM = 3.0
_NOISE_FIELDS = 5

Scene = NDArray[np.float32]
Point = tuple[float, float, float]

# Middle line of the pancreas from head to tail: RAS millimetres, and the radius there.
_PANCREAS: tuple[tuple[Point, float], ...] = (
    ((36.0, 8.0, -24.0), 11.0),
    ((33.0, 14.0, -10.0), 14.0),
    ((22.0, 24.0, 0.0), 12.0),
    ((4.0, 31.0, 6.0), 9.0),
    ((-18.0, 27.0, 12.0), 10.0),
    ((-42.0, 14.0, 19.0), 10.5),
    ((-66.0, 0.0, 26.0), 8.0),
)
_HEAD_TO_TAIL_STEPS = 5


@dataclass(frozen=True)
class AbdomenGrid:
    """Where the voxels of a phantom scan lie: rows run from the patient's back to the front, slices from head to feet.

    Args:
        size: columns and rows.
        slices: number of slices.
        spacing_mm: distance of columns and of rows.
        slice_mm: distance of slices.
    """

    size: int
    slices: int
    spacing_mm: float
    slice_mm: float

    @staticmethod
    def of_size(size: int, slices: int, spacing_mm: float | None = None) -> AbdomenGrid:
        """A grid that spans the body: slices 1 mm apart, or as far as it takes to cover the pancreas.

        Raises:
            ConfigError: a count below 1, or a field too small for the body.
        """
        spacing = FIELD_MM / size if spacing_mm is None and size > 0 else float(spacing_mm or 0.0)
        if size < 1 or slices < 1 or not 0.9 * FIELD_MM <= size * spacing <= 2 * FIELD_MM:
            raise ConfigError(
                f"phantom: found {slices} slices of size {size} at {spacing:g} mm, expected counts of at least 1 and a field "
                f"(size × spacing) of {0.9 * FIELD_MM:.0f} to {2 * FIELD_MM:.0f} mm; choose another size or leave the spacing out"
            )
        return AbdomenGrid(size, slices, spacing, max(1.0, SPAN_MM / slices))

    def axes_mm(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
        """RAS coordinate of each column, row and slice."""
        line = (np.arange(self.size) - (self.size - 1) / 2) * self.spacing_mm
        heights = np.asarray(((self.slices - 1) / 2 - np.arange(self.slices)) * self.slice_mm, dtype=np.float64)
        return (-line).astype(np.float32), line.astype(np.float32), heights

    def affine(self) -> NDArray[np.float64]:
        """Voxel index → RAS millimetres: columns to the left, rows to the front, slices to the feet."""
        x, y, z = ((self.size - 1) / 2 * self.spacing_mm,) * 2 + ((self.slices - 1) / 2 * self.slice_mm,)
        matrix = np.diag([-self.spacing_mm, self.spacing_mm, -self.slice_mm, 1.0])
        matrix[:3, 3] = (x, -y, z)
        return matrix


def make_abdomen(seed: int, number: int, grid: AbdomenGrid) -> Case:
    """Generate one scan with its mask; the same arguments give the same bytes, whatever else is made.

    Args:
        seed: non-negative.
        number: case number, enters the id ``PANCREAS_0001`` and the draw.
        grid: where the voxels lie.

    Returns:
        int16 Hounsfield units ``(column, row, slice)`` with ``PADDING_HU`` in the corners, and a uint8 mask, 1 = pancreas.
    """
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 1, number])))
    patient = _Patient.draw(random)
    columns, rows, heights = grid.axes_mm()
    base = _trunk(patient, columns, rows)
    noise = _noise_fields(patient.noise_hu, grid, random)
    outside = np.hypot(columns[None, :], rows[:, None]) > grid.size * grid.spacing_mm / 2
    # Slice by slice and row by row in memory, as a series of files is written.
    image = np.empty((grid.slices, grid.size, grid.size), dtype=np.int16)
    mask = np.empty(image.shape, dtype=np.uint8)
    for k, z in enumerate(heights):
        painter = _Painter(base.copy(), columns, rows, float(z), patient.edge_mm)
        _organs(painter, patient)
        distance = _pancreas(painter, patient, float(random.normal(0.0, 0.35)))
        mask[k] = distance < 0
        radius = max(_LEAST_MARKER_MM, 1.2 * grid.spacing_mm, 0.8 * grid.slice_mm)
        painter.ellipsoid(MARKER_MM, (radius,) * 3, _MARKER_PEAK_HU)
        shift = random.integers(0, grid.size, size=2)
        field = np.roll(noise[int(random.integers(_NOISE_FIELDS))], (int(shift[0]), int(shift[1])), axis=(0, 1))
        image[k] = np.clip(np.rint(painter.scene + field), -1024, 3071)
        image[k][outside] = PADDING_HU
    name, affine = f"PANCREAS_{number:04d}", grid.affine()
    return Case(
        id=name,
        subject=name,
        site="",
        image=Volume(array=image.transpose(2, 1, 0), affine=affine),
        mask=Volume(array=mask.transpose(2, 1, 0), affine=affine),
        source=f"phantom {name} (seed {seed})",
    )


@dataclass(frozen=True)
class _Patient:
    """What makes one abdomen its own: a stretch along each axis, enhancement, noise and sharpness."""

    stretch: Point
    organ_hu: float
    pancreas_hu: float
    noise_hu: float
    edge_mm: float
    bend_mm: float

    @staticmethod
    def draw(random: np.random.Generator) -> _Patient:
        low, high = (0.92, 0.95, 0.95), (1.06, 1.05, 1.08)
        stretch = random.uniform(low, high)
        return _Patient(
            stretch=(float(stretch[0]), float(stretch[1]), float(stretch[2])),
            organ_hu=float(random.uniform(-12.0, 12.0)),
            pancreas_hu=float(random.uniform(80.0, 110.0)),
            noise_hu=float(random.uniform(10.0, 24.0)),
            edge_mm=float(random.uniform(1.2, 2.2)),
            bend_mm=float(random.uniform(-5.0, 5.0)),
        )

    def place(self, point: Point) -> Point:
        """Where a point of the mean body lies in this one."""
        return point[0] * self.stretch[0], point[1] * self.stretch[1], point[2] * self.stretch[2]


class _Painter:
    """One slice being painted: each shape touches only the box it lies in, which is what makes a full-size scan quick."""

    def __init__(self, scene: Scene, columns: NDArray[np.float32], rows: NDArray[np.float32], z: float, edge_mm: float) -> None:
        self.scene, self.columns, self.rows, self.z, self.edge_mm = scene, columns, rows, z, edge_mm

    def box(self, middle: tuple[float, float], reach: tuple[float, float]) -> tuple[slice, slice] | None:
        """Rows and columns within ``reach`` (right-left, front-back) of ``middle``, or None where there are none."""
        # Columns run from right to left, so their coordinates fall.
        first_column, last_column = np.searchsorted(-self.columns, (-(middle[0] + reach[0]), -(middle[0] - reach[0])))
        first_row, last_row = np.searchsorted(self.rows, (middle[1] - reach[1], middle[1] + reach[1]))
        if first_column >= last_column or first_row >= last_row:
            return None
        return slice(int(first_row), int(last_row)), slice(int(first_column), int(last_column))

    def ellipse(self, middle: tuple[float, float], radii: tuple[float, float], value_hu: float) -> None:
        """Paint an ellipse of this slice, with an edge of ``edge_mm``."""
        if min(radii) <= 0:
            return
        box = self.box(middle, (radii[0] + self.edge_mm, radii[1] + self.edge_mm))
        if box is None:
            return
        across = (self.columns[box[1]] - middle[0]) / radii[0]
        along = (self.rows[box[0]] - middle[1]) / radii[1]
        distance = (np.sqrt(across[None, :] ** 2 + along[:, None] ** 2) - 1.0) * min(radii)
        self.blend(box, distance.astype(np.float32, copy=False), value_hu)

    def ellipsoid(self, middle: Point, radii: Point, value_hu: float) -> None:
        """Paint where an ellipsoid meets this slice."""
        rest = 1.0 - ((self.z - middle[2]) / radii[2]) ** 2
        if rest > 0:
            self.ellipse((middle[0], middle[1]), (radii[0] * rest**0.5, radii[1] * rest**0.5), value_hu)

    def blend(self, box: tuple[slice, slice], distance: Scene, value_hu: float) -> None:
        """Put ``value_hu`` where ``distance`` (mm, negative inside) says, shares of a voxel at the edge."""
        share = np.clip(0.5 - distance / self.edge_mm, 0.0, 1.0)
        self.scene[box] += share * (value_hu - self.scene[box])


def _trunk(patient: _Patient, columns: NDArray[np.float32], rows: NDArray[np.float32]) -> Scene:
    """What is the same in each slice: air, table, skin and fat, the muscles' ring, the spine."""
    scene = np.full((len(rows), len(columns)), _AIR_HU, dtype=np.float32)
    painter = _Painter(scene, columns, rows, 0.0, patient.edge_mm)
    sx, sy, _ = patient.stretch
    painter.ellipse((0.0, -180.0), (210.0, 60.0), -250.0)
    painter.ellipse((0.0, -188.0), (215.0, 60.0), _AIR_HU)
    painter.ellipse((0.0, 0.0), (168.0 * sx, 112.0 * sy), _FAT_HU)
    painter.ellipse((0.0, 0.0), (150.0 * sx, 95.0 * sy), _MUSCLE_HU)
    painter.ellipse((0.0, 4.0), (137.0 * sx, 84.0 * sy), _FAT_HU + 5.0)
    for side in (-1.0, 1.0):
        painter.ellipse((side * 38.0 * sx, -74.0 * sy), (28.0, 18.0), _MUSCLE_HU + 5.0)
    painter.ellipse((0.0, -42.0 * sy), (23.0, 19.0), 480.0)
    painter.ellipse((0.0, -42.0 * sy), (20.5, 16.5), 240.0)
    painter.ellipse((0.0, -70.0 * sy), (13.0, 12.0), 420.0)
    painter.ellipse((0.0, -69.0 * sy), (8.5, 7.5), 25.0)
    return scene


def _organs(painter: _Painter, patient: _Patient) -> None:
    place, gain = patient.place, patient.organ_hu
    painter.ellipsoid(place((72.0, 12.0, 34.0)), (62.0, 66.0, 84.0), 105.0 + gain)
    painter.ellipsoid(place((20.0, 48.0, 42.0)), (55.0, 28.0, 36.0), 105.0 + gain)
    painter.ellipsoid(place((-104.0, -18.0, 38.0)), (25.0, 40.0, 46.0), 118.0 + gain)
    painter.ellipsoid(place((-56.0, 46.0, 30.0)), (38.0, 26.0, 34.0), 35.0)
    painter.ellipsoid(place((-60.0, 62.0, 34.0)), (20.0, 8.0, 18.0), -850.0)
    for side in (-1.0, 1.0):
        middle = place((side * 64.0, -44.0, -26.0))
        painter.ellipsoid(middle, (24.0, 25.0, 50.0), 185.0 + gain)
        painter.ellipsoid((middle[0] - side * 8.0, middle[1] + 3.0, middle[2]), (9.0, 8.0, 25.0), -60.0)
    painter.ellipsoid(place((20.0, 62.0, -44.0)), (48.0, 18.0, 30.0), 45.0)
    painter.ellipsoid(place((26.0, 70.0, -40.0)), (24.0, 8.0, 18.0), -900.0)
    painter.ellipsoid(place((-62.0, 22.0, -40.0)), (34.0, 28.0, 34.0), 60.0)
    painter.ellipse((-13.0, -12.0), (10.0, 10.0), 165.0 + gain)
    painter.ellipse((16.0, -11.0), (12.0, 9.0), 140.0 + gain)


def _pancreas(painter: _Painter, patient: _Patient, wander_mm: float) -> Scene:
    """Paint the pancreas and return the signed distance to its outline, mm, negative inside, ``(row, column)``."""
    distance: Scene = np.full(painter.scene.shape, 1e3, dtype=np.float32)
    for middle, radius in _middle_line(patient):
        depth = painter.z - middle[2]
        box = painter.box((middle[0], middle[1]), (radius + 4.0, radius + 4.0))
        if abs(depth) >= radius or box is None:
            continue
        across = (painter.columns[box[1]] - middle[0]) ** 2
        along = (painter.rows[box[0]] - middle[1]) ** 2
        ball = np.sqrt(across[None, :] + along[:, None] + depth**2) - radius + wander_mm
        distance[box] = np.minimum(distance[box], ball)
    whole = (slice(0, distance.shape[0]), slice(0, distance.shape[1]))
    rows, columns = np.nonzero(distance < 5.0)
    if len(rows):
        whole = (slice(int(rows.min()), int(rows.max()) + 1), slice(int(columns.min()), int(columns.max()) + 1))
        painter.blend(whole, distance[whole], patient.pancreas_hu)
    return distance


def _middle_line(patient: _Patient) -> list[tuple[Point, float]]:
    """Balls along the pancreas, close enough that their union is a tube."""
    points = np.array([patient.place(point) for point, _ in _PANCREAS])
    radii = np.array([radius for _, radius in _PANCREAS])
    knots = np.arange(len(points), dtype=np.float64)
    steps = np.linspace(0.0, knots[-1], (len(points) - 1) * _HEAD_TO_TAIL_STEPS + 1)
    x, y, z = (np.interp(steps, knots, points[:, axis]) for axis in range(3))
    y = y + patient.bend_mm * np.sin(steps / knots[-1] * np.pi)
    radius = np.interp(steps, knots, radii)
    return [((float(a), float(b), float(c)), float(r)) for a, b, c, r in zip(x, y, z, radius, strict=True)]


def _noise_fields(noise_hu: float, grid: AbdomenGrid, random: np.random.Generator) -> list[Scene]:
    """A few fields of grain about 1 mm wide; slices take one of them, shifted, which is far cheaper than drawing each anew."""
    fields = []
    for _ in range(_NOISE_FIELDS):
        field = gaussian_filter(random.standard_normal((grid.size, grid.size), dtype=np.float32), 0.6 / grid.spacing_mm, mode="wrap")
        fields.append((field * (noise_hu / max(float(field.std()), 1e-6))).astype(np.float32))
    return fields
