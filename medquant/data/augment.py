"""Random variation of training patches, the same for an image and its label where it moves pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from medquant.data.volume import FloatArray, LabelArray
from medquant.errors import ConfigError, unknown_name

AugmentationKind = Literal["em", "mr", "mr_sites", "ct", "none"]
KINDS: tuple[str, ...] = get_args(AugmentationKind)

Number = TypeVar("Number", bound=np.generic)

_IMAGE, _LABEL = "image", "label"
_BOTH = (_IMAGE, _LABEL)


@dataclass(frozen=True)
class _Geometry:
    """How far pixels may move. Angles in degrees, lengths in pixels."""

    rotation: float
    scale: float
    control_spacing: int
    magnitude: tuple[float, float]
    probability: float
    quarter_turns: bool
    flips: tuple[int, ...] = (0, 1)


@dataclass(frozen=True)
class _Intensity:
    """How often gray values change, and how much, in units of the normalised image; ``remap`` is a random rising curve."""

    smooth: tuple[float, tuple[float, float]] = (0.15, (0.3, 0.9))
    gamma: tuple[float, tuple[float, float]] = (0.5, (0.7, 1.4))
    scale: tuple[float, float] = (0.5, 0.25)
    shift: tuple[float, float] = (0.5, 0.25)
    noise: tuple[float, float] = (0.3, 0.15)
    bias_field: tuple[float, tuple[float, float]] | None = None
    remap: float = 0.0


_GEOMETRY = {
    # Cut tissue has no up and down, and no preferred direction.
    "em": _Geometry(rotation=180.0, scale=0.15, control_spacing=32, magnitude=(0.0, 3.0), probability=0.8, quarter_turns=True),
    # Patients lie as they always lie; the structures are a few pixels wide.
    "mr": _Geometry(rotation=15.0, scale=0.12, control_spacing=24, magnitude=(0.0, 1.2), probability=0.8, quarter_turns=False),
    # A site that was never seen has its own resolution, too.
    "mr_sites": _Geometry(rotation=15.0, scale=0.2, control_spacing=24, magnitude=(0.0, 1.2), probability=0.8, quarter_turns=False),
    # The liver is on the right and the spine at the back: a mirrored abdomen is no abdomen.
    "ct": _Geometry(rotation=12.0, scale=0.15, control_spacing=40, magnitude=(0.0, 2.0), probability=0.8, quarter_turns=False, flips=()),
}

_INTENSITY = {
    "em": _Intensity(),
    "mr": _Intensity(),
    # What a quantized network has never seen in range, it clips: contrast must vary in training as it does between scanners.
    "mr_sites": _Intensity(
        smooth=(0.3, (0.3, 1.2)),
        gamma=(0.5, (0.6, 1.7)),
        scale=(0.8, 0.4),
        shift=(0.8, 0.6),
        noise=(0.3, 0.15),
        bias_field=(0.3, (0.0, 0.2)),
        remap=0.5,
    ),
    # Hounsfield units mean the same everywhere; the range is 0 to 1.
    "ct": _Intensity(gamma=(0.3, (0.8, 1.25)), scale=(0.3, 0.1), shift=(0.3, 0.05), noise=(0.3, 0.04)),
}


class Augmenter:
    """Turns a window of an image and its label into a training patch; what it does depends on the seed alone.

    Args:
        kind: ``em`` (any rotation and reflection), ``mr`` (small rotations, reflections), ``mr_sites`` (the same with contrasts
            as different as between scanners), ``ct`` (small rotations, no reflection), or ``none`` (cuts out the middle).
        patch_size: ``(H, W)`` of the patches to make.

    Attributes:
        margin: pixels beyond the patch, above and below and at both sides, that a window should bring, so that turned
            corners are filled with image instead of reflections.

    Raises:
        ConfigError: an unknown kind, or a patch side below 1.
    """

    def __init__(self, kind: AugmentationKind, patch_size: tuple[int, int]) -> None:
        if kind not in KINDS:
            raise ConfigError(f"data.augmentation: {unknown_name('augmentation', str(kind), KINDS)}")
        if min(patch_size) < 1:
            raise ConfigError(f"data.patch_size: found {patch_size}, expected sides of at least 1")
        self.kind: AugmentationKind = kind
        self.patch_size = patch_size
        self.margin: tuple[int, int] = (0, 0) if kind == "none" else _margin(_GEOMETRY[kind], patch_size)
        self._transform = None if kind == "none" else _build(_GEOMETRY[kind], _INTENSITY[kind], patch_size)

    def __call__(self, image: FloatArray, label: LabelArray, seed: int) -> tuple[FloatArray, LabelArray]:
        """Make a patch.

        Args:
            image: float32, shape ``(C, H, W)``, normalised, all channels moved alike; at least ``patch_size``, best
                ``patch_size + 2 · margin``.
            label: uint8, shape ``(D, H, W)``, any ``D``.
            seed: any non-negative integer. Neither NumPy's nor torch's global random state is read or changed.

        Returns:
            image float32 ``(C, *patch_size)`` and label uint8 ``(D, *patch_size)``; the inputs are left as they were.
        """
        if self._transform is None:
            # Copies, so that a patch never shares memory with the slice it comes from.
            return self._middle(image).copy(), self._middle(label).copy()
        return self._transform(image, label, seed % 2**32)

    def _middle(self, array: NDArray[Number]) -> NDArray[Number]:
        top, left = ((array.shape[axis + 1] - self.patch_size[axis]) // 2 for axis in (0, 1))
        return array[:, top : top + self.patch_size[0], left : left + self.patch_size[1]]


def _margin(geometry: _Geometry, patch_size: tuple[int, int]) -> tuple[int, int]:
    """How far beyond the patch the deformed grid reaches, but for rare extremes of the elastic part."""
    height, width = patch_size
    angle = min(math.radians(geometry.rotation), math.pi / 2)
    diagonal, corner = math.hypot(height, width), math.atan2(width, height)

    def reach(side: int, offset: float) -> float:
        # The corner is farthest along an axis when it is turned onto that axis, if the range of angles allows.
        return diagonal if angle >= offset else diagonal * math.cos(offset - angle)

    grow, elastic = 1 + geometry.scale, 2 * geometry.magnitude[1]
    down = reach(height, corner) * grow - height
    across = reach(width, math.pi / 2 - corner) * grow - width
    return math.ceil(down / 2 + elastic), math.ceil(across / 2 + elastic)


def _build(
    geometry: _Geometry, intensity: _Intensity, patch_size: tuple[int, int]
) -> Callable[[FloatArray, LabelArray, int], tuple[FloatArray, LabelArray]]:
    """Put the MONAI transforms together; MONAI is imported here because it takes seconds and few commands train."""
    import torch
    from monai import transforms

    from medquant.data.elastic import ElasticAffined

    steps = [
        ElasticAffined(
            keys=_BOTH,
            output_size=patch_size,
            spacing=geometry.control_spacing,
            magnitude=geometry.magnitude,
            rotation=math.radians(geometry.rotation),
            scale=geometry.scale,
            prob=geometry.probability,
        ),
        *(transforms.RandFlipd(keys=_BOTH, prob=0.5, spatial_axis=axis) for axis in geometry.flips),
    ]
    if geometry.quarter_turns and patch_size[0] == patch_size[1]:
        steps.append(transforms.RandRotate90d(keys=_BOTH, prob=0.75, max_k=3))
    if intensity.bias_field is not None:
        steps.append(transforms.RandBiasFieldd(keys=_IMAGE, prob=intensity.bias_field[0], coeff_range=intensity.bias_field[1]))
    if intensity.remap:
        steps.append(transforms.RandHistogramShiftd(keys=_IMAGE, prob=intensity.remap, num_control_points=(4, 10)))
    steps += [
        transforms.RandGaussianSmoothd(keys=_IMAGE, prob=intensity.smooth[0], sigma_x=intensity.smooth[1], sigma_y=intensity.smooth[1]),
        transforms.RandAdjustContrastd(keys=_IMAGE, prob=intensity.gamma[0], gamma=intensity.gamma[1]),
        transforms.RandScaleIntensityd(keys=_IMAGE, prob=intensity.scale[0], factors=intensity.scale[1]),
        transforms.RandShiftIntensityd(keys=_IMAGE, prob=intensity.shift[0], offsets=intensity.shift[1]),
        transforms.RandGaussianNoised(keys=_IMAGE, prob=intensity.noise[0], std=intensity.noise[1]),
    ]
    pipeline = transforms.Compose(steps)

    def run(image: FloatArray, label: LabelArray, seed: int) -> tuple[FloatArray, LabelArray]:
        pipeline.set_random_state(seed=seed)
        data = pipeline({_IMAGE: torch.tensor(image, dtype=torch.float32), _LABEL: torch.tensor(label)})
        # MONAI's tensors carry their history; NumPy takes plain ones.
        image, label = (data[key].as_subclass(torch.Tensor).contiguous().numpy() for key in _BOTH)
        return image, label

    return run
