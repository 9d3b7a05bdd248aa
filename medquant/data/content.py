"""Digests of voxels: what identifies the data of a run, and what tells that two scans are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from medquant.data.volume import Case


def array_sha256(array: NDArray[np.generic]) -> str:
    """Hex digest of an array's shape, type and values; the same for every memory layout and byte order."""
    digest = hashlib.sha256()
    _feed(digest, array)
    return digest.hexdigest()


def content_sha256(cases: Iterable[Case]) -> str:
    """Hex digest over id, image and mask of every case, in order. The affine and the path do not enter."""
    digest = hashlib.sha256()
    for case in cases:
        digest.update(f"case {case.id!r} ".encode())
        _feed(digest, case.image.array)
        if case.mask is None:
            digest.update(b"no mask")
        else:
            _feed(digest, case.mask.array)
    return digest.hexdigest()


def _feed(digest: hashlib._Hash, array: NDArray[np.generic]) -> None:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    digest.update(f"{little.dtype.kind}{little.dtype.itemsize} {little.shape} ".encode())
    digest.update(np.ascontiguousarray(little).tobytes())
