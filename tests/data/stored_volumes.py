"""Volumes for the tests of the cache, and a reader that counts how often it is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medquant.data.stored import ArrayCache
from medquant.data.volume import Volume

AFFINE = np.array([[0, 0.1 + 0.2, 0, -31.7], [-1e-3, 0, 0, 5], [0, 0, 7.5, 1 / 3], [0, 0, 0, 1]])


def made_array(seed: int = 0, shape: tuple[int, int, int] = (5, 4, 3)) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(-2000, 3000, shape).astype(np.int16)


class Reader:
    """Makes a volume of a file's bytes and counts how often it is asked."""

    def __init__(self, path: Path) -> None:
        self.path, self.calls = path, 0

    def __call__(self) -> Volume:
        self.calls += 1
        return Volume(np.frombuffer(self.path.read_bytes(), np.int16).reshape(5, 4, 3), AFFINE)


def only(cache: ArrayCache, ending: str, kind: str = "volumes") -> Path:
    assert cache.folder is not None
    (found,) = (cache.folder / kind).rglob(f"*{ending}")
    return found
