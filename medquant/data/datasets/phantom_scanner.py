"""From the phantom's shapes to an image: tissue contrast, clutter, blur, shading and noise of one scanner."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter

from medquant.data.datasets.phantom_anatomy import FINENESS, Field, Grid, Tissue, capsule, ellipse

MARKER_OFFSET_MM = (13.5, 2.5)
"""Middle of the bright vessel, from the middle of the cord: to growing ``i``, and to the front."""

_MARKER_RADIUS_MM = 1.3


@dataclass(frozen=True)
class Scanner:
    """A site's way of showing tissue. Intensities relative to 1 = brightest fluid, before ``gain``.

    Args:
        gray, white, fluid, muscle, bone: tissue intensity.
        blur_mm: standard deviation of the point spread.
        noise: standard deviation of the noise in each of the two receiver channels.
        shading: strength of the slow change of brightness over the field.
        gain: file units per unit of intensity.
    """

    gray: float
    white: float
    fluid: float
    muscle: float
    bone: float
    blur_mm: float
    noise: float
    shading: float
    gain: float

    @staticmethod
    def of_site(number: int) -> Scanner:
        """The scanner of site 1, 2, 3 and on; from the fifth, the first four come again a little noisier and softer."""
        base = _SCANNERS[(number - 1) % len(_SCANNERS)]
        turn = (number - 1) // len(_SCANNERS)
        return replace(base, noise=base.noise * (1 + 0.1 * turn), blur_mm=base.blur_mm * (1 + 0.05 * turn))


_SCANNERS = (
    Scanner(gray=0.62, white=0.50, fluid=0.95, muscle=0.36, bone=0.14, blur_mm=0.30, noise=0.030, shading=0.15, gain=900.0),
    Scanner(gray=0.57, white=0.47, fluid=0.80, muscle=0.42, bone=0.18, blur_mm=0.40, noise=0.028, shading=0.30, gain=420.0),
    Scanner(gray=0.66, white=0.51, fluid=1.00, muscle=0.30, bone=0.12, blur_mm=0.45, noise=0.045, shading=0.20, gain=1500.0),
    Scanner(gray=0.55, white=0.46, fluid=0.72, muscle=0.47, bone=0.20, blur_mm=0.35, noise=0.024, shading=0.40, gain=230.0),
)


def scan(tissue: Tissue, scanner: Scanner, grid: Grid, random: np.random.Generator) -> Field:
    """Image of a slice, shape ``(size, size)``, intensities before gain."""
    scene = _surroundings(tissue, scanner, grid, random)
    scene = _paint(scene, tissue.canal, scanner.fluid)
    scene = _nerve_roots(scene, tissue, scanner, random)
    scene = _paint(scene, tissue.cord, scanner.white * (1 + 0.025 * grid.smooth_noise(random, 1.2)))
    scene = _paint(scene, tissue.gray, scanner.gray * (1 + 0.03 * grid.smooth_noise(random, 0.8)))
    sharp = np.asarray(gaussian_filter(scene, scanner.blur_mm / grid.spacing_mm * FINENESS, mode="nearest"))
    image = grid.to_voxels(sharp * _shading(scanner, grid, random))
    real, imaginary = (scanner.noise * random.standard_normal(image.shape) for _ in range(2))
    return np.sqrt((image + real) ** 2 + imaginary**2)


def _surroundings(tissue: Tissue, scanner: Scanner, grid: Grid, random: np.random.Generator) -> Field:
    """Muscle with its grain, the vertebra, the marker, and small blobs as bright as gray matter."""
    x, y = tissue.x, tissue.y
    scene = scanner.muscle * (1 + 0.16 * grid.smooth_noise(random, 1.5) + 0.1 * grid.smooth_noise(random, 0.5))
    for side in (-1.0, 1.0):
        scene = _paint(
            scene, ellipse(x - side * 11.0, y + 11.0, 6.5, 4.5), 1.25 * scanner.muscle * (1 + 0.12 * grid.smooth_noise(random, 0.6))
        )
    body = ellipse(x, y - 15.0, 11.0, 7.5)
    scene = _paint(scene, body, scanner.bone)
    scene = _paint(scene, body + 1.2, 0.85 * scanner.gray * (1 + 0.15 * grid.smooth_noise(random, 0.7)))
    scene = _paint(scene, tissue.canal - 1.8, scanner.bone)
    for _ in range(int(random.integers(3, 7))):
        scene = _decoy(scene, tissue, scanner, random)
    marker = np.hypot(x - MARKER_OFFSET_MM[0], y - MARKER_OFFSET_MM[1]) - _MARKER_RADIUS_MM
    return _paint(scene, marker, 1.3 * scanner.fluid)


def _decoy(scene: Field, tissue: Tissue, scanner: Scanner, random: np.random.Generator) -> Field:
    """A tapered streak like a horn of the butterfly, outside the canal."""
    angle, distance = random.uniform(0.0, 2 * np.pi), random.uniform(13.0, 21.0)
    start = (distance * np.cos(angle), distance * np.sin(angle))
    end = (start[0] + random.uniform(-2.5, 2.5), start[1] + random.uniform(1.0, 3.0))
    radius = random.uniform(0.5, 1.2)
    return _paint(scene, capsule(tissue.x, tissue.y, start, end, radius, 0.5 * radius), scanner.gray * random.uniform(0.9, 1.1))


def _nerve_roots(scene: Field, tissue: Tissue, scanner: Scanner, random: np.random.Generator) -> Field:
    """Thin strands of about the cord's brightness in the fluid, so that its outline is not the only edge there."""
    for side in (-1.0, 1.0):
        for front in (-1.0, 1.0):
            x, y = side * random.uniform(5.0, 7.5), front * random.uniform(3.0, 4.5)
            root = capsule(tissue.x, tissue.y, (x, y), (x + side * 1.5, y + front * 0.5), 0.35, 0.25)
            scene = _paint(scene, np.maximum(root, tissue.canal), scanner.white * random.uniform(0.85, 1.15))
    return scene


def _shading(scanner: Scanner, grid: Grid, random: np.random.Generator) -> Field:
    along, up = (axis / (grid.size * grid.spacing_mm / 2) for axis in grid.coordinates_mm())
    a, b, c = random.uniform(-1.0, 1.0, size=3)
    return np.asarray(np.exp(scanner.shading * (a * along + b * up + c * along * up)))


def _paint(scene: Field, distance: Field, value: Field | float) -> Field:
    """Put ``value`` inside a shape, with an edge about 0.3 mm wide instead of a step."""
    share = np.clip(0.5 - distance / 0.3, 0.0, 1.0)
    return scene + share * (value - scene)
