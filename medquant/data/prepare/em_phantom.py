"""The electron microscopy phantom in the layout of the ISBI 2012 challenge: three TIFF stacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medquant.data.datasets.isbi_em import IMAGE_FILE, LABEL_FILE, TEST_FILE, VOXEL_SIZE_NM
from medquant.data.datasets.phantom_em import make_em_stack
from medquant.data.tiff import write_tiff_stack
from medquant.data.volume import Case, Volume


@dataclass(frozen=True)
class EmPhantom:
    """What to generate.

    Args:
        seed: non-negative.
        slices: slices of each stack.
        size: columns and rows.
    """

    seed: int = 0
    slices: int = 30
    size: int = 512

    def cases(self) -> Iterator[Case]:
        """Each labelled slice, classes 0 membrane and 1 cell."""
        image, labels = make_em_stack(self.seed, 0, self.size, self.slices)
        affine = np.diag([1.0, 1.0, VOXEL_SIZE_NM[2] / VOXEL_SIZE_NM[0], 1.0])
        for k in range(self.slices):
            name = f"slice-{k:02d}"
            page, mask = image[:, :, k : k + 1], (labels[:, :, k : k + 1] == 255).astype(np.uint8)
            yield Case(
                id=name,
                subject=name,
                site="",
                image=Volume(array=page, affine=affine, has_geometry=False),
                mask=Volume(array=mask, affine=affine, has_geometry=False),
                source=f"phantom {name} (seed {self.seed})",
            )

    def write(self, folder: Path) -> int:
        """Write the challenge's files: 0 = membrane, 255 = cell; returns the number of labelled slices."""
        image, labels = make_em_stack(self.seed, 0, self.size, self.slices)
        write_tiff_stack(folder / IMAGE_FILE, image)
        write_tiff_stack(folder / LABEL_FILE, labels)
        write_tiff_stack(folder / TEST_FILE, make_em_stack(self.seed, 1, self.size, self.slices)[0])
        return self.slices
