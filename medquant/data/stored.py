"""Volumes that lie in a file and are mapped only while they are looked at, and the cache that keeps them.

Decoding a compressed scan takes a hundred times longer than reading a slice of a plain array, and a data set of eighty
scans does not fit into memory. So a scan is decoded and checked once, and its voxels go into an ``.npy`` file, slice by
slice, named by a digest of what it was made from: the bytes of the source files and the settings of the step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import stat
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from medquant.data.atomic import write_atomically
from medquant.data.bounded import read_bounded
from medquant.data.content import array_sha256
from medquant.data.slabs import FileVolume, SliceSource, npy_sha256, write_npy_slices
from medquant.data.volume import Volume
from medquant.errors import InputError, UsageError

FORMAT = 2
"""Enters every key: raise it when the meaning of stored voxels changes, and old files are simply not found again."""

VOLUMES = "volumes"
"""Subfolder of a cache that holds the arrays."""

_CACHE_VARIABLE = "MEDQUANT_CACHE"
_HASHED_PIECE_BYTES = 4 * 1024**2
_MAX_FACTS_BYTES = 16 * 1024**2
_WRITTEN_SLICES = 32


class StoredVolume(FileVolume):
    """A volume whose voxels stay in a file.

    ``array`` maps the file anew each time it is asked for, so that nothing of it stays in this process once the array is
    let go of. Slices along ``k`` are contiguous in the file; the array is read-only.

    Args:
        path: ``.npy`` file of shape ``(K, J, I)``.
        shape: ``(I, J, K)``.
        dtype: number type.
        affine: as in :class:`Volume`.
        has_geometry: as in :class:`Volume`.
        sha256: ``array_sha256`` of the voxels.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        dtype: np.dtype[np.generic],
        affine: NDArray[np.float64],
        has_geometry: bool,
        sha256: str,
    ) -> None:
        super().__init__(path, shape, dtype, affine, has_geometry)
        self.__dict__["_sha256"] = sha256

    @property
    def array(self) -> NDArray[np.generic]:
        """Shape ``(I, J, K)``, read-only, mapped now.

        Raises:
            UsageError: the file is gone or was changed while medquant was running.
        """
        path: Path = self.__dict__["_path"]
        try:
            # Refuses arrays of objects, which alone would need pickle.
            mapped = np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: the cached array cannot be read ({error}); delete the cache and start again") from error
        if mapped.shape != self.shape[::-1] or mapped.dtype != self.dtype:
            found, wanted = f"{mapped.dtype} {mapped.shape[::-1]}", f"{self.dtype} {self.shape}"
            raise UsageError(f"{path}: the cached array is {found}, expected {wanted}; delete the cache and start again")
        return np.asarray(mapped).transpose(2, 1, 0)

    def verify(self) -> None:
        """Compare the voxels with their digest: a disk may have changed a bit since they were written.

        Raises:
            UsageError: they differ, or the file is gone.
        """
        path: Path = self.__dict__["_path"]
        # Mapped, which checks its shape, and let go of; the voxels are read in pieces, so that they do not stay in this process.
        _ = self.array
        if npy_sha256(path) != self.sha256:
            raise UsageError(f"{path}: the cached array is damaged, its SHA-256 is not the one noted; delete the cache and start again")


class ArrayCache:
    """Keeps decoded and prepared volumes in a folder; or, without a folder, keeps nothing and hands out plain arrays.

    Args:
        folder: where the files go, made when first needed; None for no cache.
        remedy: what messages advise where it cannot be written.
    """

    def __init__(self, folder: Path | None, remedy: str = "set data.cache to another folder or to off") -> None:
        self.folder, self.remedy = folder, remedy

    @staticmethod
    def default_folder() -> Path:
        """``$MEDQUANT_CACHE``, or ``medquant`` in the user's cache folder, or, where that cannot be written, a temporary one.

        Raises:
            UsageError: the folder in the temporary folder belongs to another user.
        """
        named = os.environ.get(_CACHE_VARIABLE)
        if named:
            return Path(named)
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        parent = next((folder for folder in (base, *base.parents) if folder.exists()), base)
        if os.access(parent, os.W_OK):
            return base / "medquant"
        # Shared by all users of a machine: a name of one's own, and below it nothing that another user could have put there.
        own = Path(tempfile.gettempdir()) / f"medquant-{os.getuid()}"
        with contextlib.suppress(FileExistsError):
            own.mkdir(mode=0o700)
        state = own.lstat()
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o022:
            raise UsageError(f"{own}: the cache folder belongs to somebody else; set MEDQUANT_CACHE or data.cache to a folder of your own")
        return own

    def volume(self, sources: Sequence[Path], settings: str, read: Callable[[], Volume]) -> Volume:
        """The volume made from some files.

        Args:
            sources: every file the result depends on.
            settings: what else it depends on: name and options of the reading step.
            read: makes the volume where it is not known yet; its errors pass through and leave nothing behind.
        """
        return self.keep(f"files {self.files_digest(sources)} {settings}", read) if self.folder is not None else read()

    def keep(self, key: str, make: Callable[[], Volume]) -> Volume:
        """The volume of a key that says everything it was made from; ``make`` is called where there is none yet."""
        if self.folder is None:
            return make()
        name = _digest(f"format {FORMAT} {key}")
        place = self.folder / VOLUMES / name[:2] / f"{name}.json"
        known = _read_facts(place)
        return known if known is not None else self._store(place, make())

    def keep_slices(self, key: str, source: SliceSource) -> Volume:
        """As ``keep``, for a volume that is made slice by slice and is never in memory as a whole, unless there is no folder."""
        if self.folder is None:
            return source.volume()
        name = _digest(f"format {FORMAT} {key}")
        place = self.folder / VOLUMES / name[:2] / f"{name}.json"
        known = _read_facts(place)
        if known is not None:
            return known
        found: list[str] = []
        self._write(place.with_suffix(".npy"), lambda stream: found.append(write_npy_slices(stream, source)))
        return self._note_volume(place, source.shape, source.dtype, source.affine, source.has_geometry, found[0])

    def note(self, key: str, make: Callable[[], Mapping[str, object]]) -> Mapping[str, object]:
        """Small facts, kept as JSON under a key that says everything they were made from."""
        if self.folder is None:
            return make()
        name = _digest(f"format {FORMAT} {key}")
        place = self.folder / "notes" / name[:2] / f"{name}.json"
        with contextlib.suppress(OSError, ValueError):
            return _unsealed(read_bounded(place, _MAX_FACTS_BYTES))
        facts = make()
        self._write(place, lambda stream: stream.write(_sealed(facts)))
        return facts

    def files_digest(self, sources: Sequence[Path]) -> str:
        """Digest over the bytes of files; of files whose place, size and times are as before, the one found before.

        Raises:
            InputError: a file is missing or cannot be read.
        """
        stamps = []
        for source in sources:
            try:
                state = source.stat()
            except OSError as error:
                raise _unreadable(source, error) from error
            # A copy may bring the time of the original along; the time of the last change of any kind cannot be set.
            times = f"{state.st_mtime_ns}|{state.st_ctime_ns}"
            stamps.append(f"{source.resolve()}|{state.st_size}|{times}|{state.st_ino}")
        return str(self.note("stamps " + "\n".join(stamps), lambda: {"sha256": _hash_files(sources)})["sha256"])

    def _store(self, place: Path, volume: Volume) -> Volume:
        if isinstance(volume, StoredVolume):
            return volume
        array = volume.array
        slices = array.transpose(2, 1, 0)
        self._write(place.with_suffix(".npy"), lambda stream: _write_npy(stream, slices))
        return self._note_volume(place, volume.shape, array.dtype, volume.affine, volume.has_geometry, array_sha256(array))

    def _note_volume(
        self,
        place: Path,
        shape: tuple[int, int, int],
        dtype: np.dtype[np.generic],
        affine: NDArray[np.float64],
        has_geometry: bool,
        sha256: str,
    ) -> Volume:
        facts = {"shape": list(shape), "dtype": dtype.name, "affine": affine.tolist(), "has_geometry": has_geometry, "sha256": sha256}
        # The facts come last: a file without them is not there.
        self._write(place, lambda stream: stream.write(_sealed(facts)))
        stored = _read_facts(place)
        if stored is None:
            raise UsageError(f"{place.parent}: what was just written there cannot be read; free some space, or choose another data.cache")
        return stored

    def _write(self, path: Path, write: Callable[[BinaryIO], object]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda stream: _discard(write(stream)))
        except OSError as error:
            raise UsageError(f"{path.parent}: the cache cannot be written ({error.strerror}); {self.remedy}") from error
        except UsageError as error:
            raise UsageError(f"{error}. This is the cache of decoded scans: {self.remedy}") from error


def _discard(value: object) -> None:
    return None


def _write_npy(stream: BinaryIO, slices: NDArray[np.generic]) -> None:
    """An ``.npy`` of ``(K, J, I)``, written slice by slice, so that no second copy of the volume is made."""
    dtype = slices.dtype.newbyteorder("<")
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": slices.shape}
    np.lib.format.write_array_header_1_0(stream, header)
    # Some slices at a time: where the slicing axis lies innermost in memory, one slice would touch every cache line of the volume.
    for start in range(0, len(slices), _WRITTEN_SLICES):
        stream.write(np.ascontiguousarray(slices[start : start + _WRITTEN_SLICES], dtype=dtype).reshape(-1).view(np.uint8).data)


def _read_facts(place: Path) -> StoredVolume | None:
    try:
        facts = _unsealed(read_bounded(place, _MAX_FACTS_BYTES))
        i, j, k = (int(length) for length in cast(list[int], facts["shape"]))
        dtype = np.dtype(str(facts["dtype"]))
        affine = np.asarray(facts["affine"], dtype=np.float64)
        path = place.with_suffix(".npy")
        if dtype.kind not in "iuf" or affine.shape != (4, 4) or not _is_whole(path, (k, j, i), dtype):
            return None
        return StoredVolume(path, (i, j, k), dtype, affine, bool(facts["has_geometry"]), str(facts["sha256"]))
    except (OSError, ValueError, KeyError, TypeError):
        # Absent or damaged: made again, which is what a cache is for.
        return None


def _is_whole(path: Path, shape: tuple[int, int, int], dtype: np.dtype[np.generic]) -> bool:
    """Whether an ``.npy`` file holds this array, to its last byte and not beyond; the voxels are not read."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        np.lib.format.read_magic(stream)
        found, fortran_order, stored = np.lib.format.read_array_header_1_0(stream)
        ends_at = stream.tell() + math.prod(shape) * dtype.itemsize
        return (found, fortran_order, stored) == (shape, False, dtype.newbyteorder("<")) and os.fstat(stream.fileno()).st_size == ends_at


def _sealed(facts: Mapping[str, object]) -> bytes:
    """Facts as JSON, with a digest over them: one digit of an affine that changed on the disk must not be believed."""
    text = json.dumps(facts)
    return json.dumps({"facts": text, "sha256": _digest(text)}).encode()


def _unsealed(data: bytes) -> Mapping[str, object]:
    """The facts of ``_sealed``; ValueError where they are not what was written."""
    found = json.loads(data)
    if not isinstance(found, dict) or not isinstance(found.get("facts"), str) or found.get("sha256") != _digest(found["facts"]):
        raise ValueError("damaged")
    facts = json.loads(found["facts"])
    if not isinstance(facts, dict):
        raise ValueError("damaged")
    return facts


def _hash_files(sources: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        try:
            if not source.is_file():
                raise InputError(f"{source}: found a folder, a pipe or a device, expected a file; copy the file itself there")
            digest.update(f"file {source.stat().st_size} ".encode())
            with source.open("rb") as stream:
                while piece := stream.read(_HASHED_PIECE_BYTES):
                    digest.update(piece)
        except OSError as error:
            raise _unreadable(source, error) from error
    return digest.hexdigest()


def _unreadable(source: Path, error: OSError) -> InputError:
    return InputError(f"{source}: cannot be read ({error.strerror or error}); check the path and its permissions")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
