"""Digests of voxels: what a run was made with, and whether two cases are the same image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from medquant.data.volume import Case, Volume

_AT_ONCE_BYTES = 64 * 1024**2


def array_sha256(array: NDArray[np.generic]) -> str:
    """Hex digest of an array's shape, type and values; the same for every memory layout and byte order."""
    digest = hashlib.sha256()
    _feed(digest, array)
    return digest.hexdigest()


def volume_sha256(volume: Volume) -> str:
    """``array_sha256`` of a volume's voxels; one that lies in the cache brings it along."""
    known = getattr(volume, "sha256", None)
    return known if isinstance(known, str) else array_sha256(volume.array)


def content_sha256(cases: Iterable[Case]) -> str:
    """Hex digest over id, channels, mask and raters of every case, in order, with their affines to 1e-4 mm; the path does not enter."""
    digest = hashlib.sha256()
    for case in cases:
        digest.update(f"case {case.id!r} ".encode())
        for volume in (*case.channels, *([] if case.mask is None else [case.mask]), *case.raters):
            digest.update(f"{volume_sha256(volume)} ".encode())
            if volume.has_geometry:
                # Adding zero makes one number of the two zeros.
                digest.update(f"{(np.round(volume.affine, 4) + 0.0).tolist()} ".encode())
        if case.mask is None:
            digest.update(b"no mask")
    return digest.hexdigest()


def _feed(digest: hashlib._Hash, array: NDArray[np.generic]) -> None:
    little = array.dtype.newbyteorder("<")
    digest.update(f"{little.kind}{little.itemsize} {array.shape} ".encode())
    # First axis fastest: slice by slice, which is how scans lie in memory and in the cache. Piece by piece along the last axis,
    # so that a volume of another layout is never copied as a whole.
    turned = array.T
    if not array.ndim:
        digest.update(np.ascontiguousarray(turned, dtype=little).tobytes())
        return
    pages = max(1, _AT_ONCE_BYTES * max(1, len(turned)) // max(1, array.nbytes))
    for start in range(0, len(turned), pages):
        digest.update(np.ascontiguousarray(turned[start : start + pages], dtype=little).reshape(-1).view(np.uint8).data)
