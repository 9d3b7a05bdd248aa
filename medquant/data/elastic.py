"""Rotation, scale and elastic deformation of an image and its label in one resampling, as a MONAI dictionary transform.

Built from MONAI's own parts instead of its ``Rand2DElasticd``: that one (MONAI 1.6) interpolates the *coordinates* of its
control points with a bicubic kernel that does not keep straight lines straight, so that even with zero magnitude every point
of the grid is moved, by up to 1.5 pixels for control points 32 pixels apart and always in the same pattern, and odd sizes by
half a pixel. Here the *offsets* are interpolated and added to an exact grid.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping

import torch
from monai.transforms.spatial.array import RandAffineGrid, Resample
from monai.transforms.transform import MapTransform, RandomizableTransform
from torch import Tensor


class ElasticAffined(RandomizableTransform, MapTransform):  # type: ignore[misc]  # MONAI's classes are untyped here
    """With probability ``prob``, deform all keys by one random field; otherwise cut out their middle untouched.

    Args:
        keys: the first is interpolated linearly (image), the others take the nearest value (labels).
        output_size: size cut out of the middle; margins of the input that are wider fill the corners after a rotation.
        spacing: distance of the control points of the elastic field, pixels.
        magnitude: range of the standard deviation of their offsets, pixels.
        rotation: largest angle, radians.
        scale: largest change of size along either axis, 0.1 meaning from 0.9 to 1.1.
        prob: probability of deforming at all.
    """

    def __init__(
        self,
        keys: tuple[str, ...],
        output_size: tuple[int, int],
        spacing: int,
        magnitude: tuple[float, float],
        rotation: float,
        scale: float,
        prob: float,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.output_size = output_size
        self.spacing = spacing
        self.magnitude = magnitude
        self.affine_grid = RandAffineGrid(rotate_range=rotation, scale_range=(scale, scale))
        # Single precision is enough: a coordinate below 1024 is then known to 1e-4 pixels.
        self.resample = Resample(padding_mode="reflection", dtype=None)

    def set_random_state(self, seed: int | None = None, state: object = None) -> ElasticAffined:
        """Seed this transform and the affine part in it, the two apart from each other."""
        super().set_random_state(seed, state)
        self.affine_grid.set_random_state(seed=int(self.R.randint(2**32, dtype="uint32")))
        return self

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Transform the tensors ``(C, H, W)`` under the keys to ``(C, *output_size)``; the input is left as it was."""
        result = dict(data)
        self.randomize(None)
        grid = self.affine_grid(grid=self._elastic_grid()) if self._do_transform else None
        for position, key in enumerate(self.key_iterator(result)):
            value = result[key]
            if grid is None:
                top, left = (round((value.shape[axis + 1] - self.output_size[axis]) / 2) for axis in (0, 1))
                result[key] = value[:, top : top + self.output_size[0], left : left + self.output_size[1]]
            else:
                deformed = self.resample(value.float(), grid, mode="bilinear" if position == 0 else "nearest")
                result[key] = deformed.to(value.dtype)
        return result

    def _elastic_grid(self) -> Tensor:
        """Sampling positions about the middle, shape ``(3, H, W)``, homogeneous."""
        height, width = self.output_size
        # Two control points beyond each end: the outermost ones would be flattened by the interpolation at the border.
        controls = tuple(math.ceil(length / self.spacing) + 4 for length in self.output_size)
        strength = self.R.uniform(*self.magnitude)
        offsets = torch.from_numpy(self.R.normal(scale=strength, size=(1, 2, *controls))).float()
        fine = torch.nn.functional.interpolate(
            offsets, size=tuple(count * self.spacing for count in controls), mode="bicubic", align_corners=False
        )[0]
        top, left = (fine.shape[1] - height) // 2, (fine.shape[2] - width) // 2
        lines = [torch.arange(length, dtype=torch.float32) - (length - 1) / 2 for length in self.output_size]
        exact = torch.stack(torch.meshgrid(*lines, indexing="ij"))
        moved = exact + fine[:, top : top + height, left : left + width]
        return torch.cat([moved, torch.ones(1, height, width)])
