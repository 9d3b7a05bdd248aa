"""The cache of volumes: what is read again and what is not, what is stored and where.

Expected: counts of calls by hand, arrays made here.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from stored_volumes import AFFINE, Reader, made_array, only

from medquant.data.content import array_sha256, content_sha256, volume_sha256
from medquant.data.stored import ArrayCache, StoredVolume
from medquant.data.volume import Case, Volume
from medquant.errors import InputError, UsageError

# --- what is read again -----------------------------------------------------------------------------------------------


def test_the_same_bytes_are_decoded_once(cache: ArrayCache, reader: Reader) -> None:
    first = cache.volume([reader.path], "made 1", reader)
    again = ArrayCache(cache.folder).volume([reader.path], "made 1", reader)
    assert reader.calls == 1
    assert first == again
    for volume in (first, again):
        assert isinstance(volume, StoredVolume)
        np.testing.assert_array_equal(volume.array, made_array())
        np.testing.assert_array_equal(volume.affine, AFFINE)  # every bit of it
        assert (volume.shape, volume.dtype, volume.has_geometry) == ((5, 4, 3), np.int16, True)


def test_a_changed_file_is_decoded_again(cache: ArrayCache, reader: Reader) -> None:
    cache.volume([reader.path], "made 1", reader)
    reader.path.write_bytes(made_array(1).tobytes())
    np.testing.assert_array_equal(cache.volume([reader.path], "made 1", reader).array, made_array(1))
    assert reader.calls == 2
    # What it was before is still known.
    reader.path.write_bytes(made_array().tobytes())
    np.testing.assert_array_equal(cache.volume([reader.path], "made 1", reader).array, made_array())
    assert reader.calls == 2


def test_a_change_is_seen_where_size_and_time_are_those_of_before(cache: ArrayCache, reader: Reader) -> None:
    state = reader.path.stat()
    cache.volume([reader.path], "made 1", reader)
    time.sleep(0.02)  # the clock of a file system ticks every few milliseconds
    with reader.path.open("r+b") as stream:
        stream.write(made_array(1).tobytes())
    os.utime(reader.path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert reader.path.stat().st_mtime_ns == state.st_mtime_ns
    np.testing.assert_array_equal(cache.volume([reader.path], "made 1", reader).array, made_array(1))


def test_a_touched_or_moved_file_is_hashed_but_not_decoded(cache: ArrayCache, reader: Reader, tmp_path: Path) -> None:
    cache.volume([reader.path], "made 1", reader)
    os.utime(reader.path, (1, 1))
    cache.volume([reader.path], "made 1", reader)
    other = shutil.copy(reader.path, tmp_path / "copy")
    cache.volume([Path(other)], "made 1", reader)
    assert reader.calls == 1


def test_an_unchanged_file_is_not_even_hashed(cache: ArrayCache, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.volume([reader.path], "made 1", reader)
    monkeypatch.setattr("medquant.data.stored._hash_files", None)
    cache.volume([reader.path], "made 1", reader)
    assert reader.calls == 1


def test_other_settings_and_another_order_of_files_are_other_volumes(cache: ArrayCache, reader: Reader, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.write_bytes(b"second")
    for sources, settings in (
        ([reader.path], "made 1"), ([reader.path], "made 2"), ([reader.path, second], "made 1"), ([second, reader.path], "made 1"),
    ):  # fmt: skip
        cache.volume(sources, settings, reader)
    assert reader.calls == 4


def test_bytes_moved_from_one_file_to_the_next_are_another_volume(cache: ArrayCache, tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    digests = set()
    for parts in ((b"12", b"34"), (b"123", b"4"), (b"", b"1234")):
        for file, part in zip(files, parts, strict=True):
            file.write_bytes(part)
        digests.add(cache.files_digest(files))
    assert len(digests) == 3


def test_without_a_folder_nothing_is_kept(reader: Reader, tmp_path: Path) -> None:
    cache = ArrayCache(None)
    volumes = [cache.volume([reader.path], "made 1", reader) for _ in range(2)]
    assert reader.calls == 2
    assert not any(isinstance(volume, StoredVolume) for volume in volumes)
    assert cache.note("facts", lambda: {"a": 1}) == {"a": 1}
    assert list(tmp_path.iterdir()) == [reader.path]


def test_errors_of_the_reader_pass_through_and_leave_nothing(cache: ArrayCache, reader: Reader) -> None:
    def fail() -> Volume:
        raise InputError("scan: broken")

    with pytest.raises(InputError, match="scan: broken"):
        cache.volume([reader.path], "made 1", fail)
    assert cache.folder is not None
    assert not (cache.folder / "volumes").exists()


def test_a_missing_source_is_named(cache: ArrayCache, reader: Reader, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone: cannot be read \(No such file"):
        cache.volume([tmp_path / "gone"], "made 1", reader)
    with pytest.raises(InputError, match=r"found a folder, a pipe or a device, expected a file"):
        cache.volume([tmp_path], "made 1", reader)
    assert reader.calls == 0


# --- what is stored ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_every_type_layout_and_byte_order_comes_back(cache: ArrayCache, dtype: str) -> None:
    array = (made_array() % 200).astype(dtype)
    wide = np.zeros((10, 4, 6), dtype)
    wide[::2, :, ::-2] = array
    layouts = [array, np.asfortranarray(array), array.astype(array.dtype.newbyteorder(">")), wide[::2, :, ::-2]]
    for number, layout in enumerate(layouts):
        stored = cache.keep(f"{dtype} {number}", lambda layout=layout: Volume(layout, AFFINE, has_geometry=False))
        np.testing.assert_array_equal(stored.array, array)
        assert (stored.array.dtype, stored.dtype, stored.has_geometry) == (np.dtype(dtype), np.dtype(dtype), False)
        assert volume_sha256(stored) == array_sha256(array) == array_sha256(stored.array)


def test_the_file_is_a_plain_npy_of_slices(cache: ArrayCache) -> None:
    cache.keep("k", lambda: Volume(made_array(), AFFINE))
    np.testing.assert_array_equal(np.load(only(cache, ".npy")), made_array().transpose(2, 1, 0))


def test_the_array_cannot_be_written_to(cache: ArrayCache) -> None:
    array = cache.keep("k", lambda: Volume(made_array(), AFFINE)).array
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0, 0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True


def test_notes_are_made_once(cache: ArrayCache) -> None:
    made: list[int] = []
    facts = [cache.note("k", lambda: {"n": len(made), "made": made.append(1) is None, "x": 0.1 + 0.2}) for _ in range(2)]
    assert facts == [{"n": 0, "made": True, "x": 0.1 + 0.2}] * 2


# --- the usual place --------------------------------------------------------------------------------------------------


def test_the_usual_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path / "named"))
    assert ArrayCache.default_folder() == tmp_path / "named"
    monkeypatch.delenv("MEDQUANT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert ArrayCache.default_folder() == tmp_path / "xdg" / "medquant"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert ArrayCache.default_folder() == tmp_path / "home" / ".cache" / "medquant"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert tmp_path / "home" not in ArrayCache.default_folder().parents


def test_the_temporary_folder_is_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDQUANT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "cache"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    own = tmp_path / f"medquant-{os.getuid()}"
    assert ArrayCache.default_folder() == own
    assert own.stat().st_mode & 0o077 == 0
    assert ArrayCache.default_folder() == own  # a second time, now that it is there
    own.chmod(0o777)
    with pytest.raises(UsageError, match="belongs to somebody else"):
        ArrayCache.default_folder()


def test_the_digest_of_a_dataset_knows_where_the_voxels_lie() -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 1.0
    cases = [Case("a", "a", "", Volume(made_array(), affine), None, "made") for affine in (AFFINE, moved, AFFINE + 1e-6)]
    first, other, rounded = (content_sha256([case]) for case in cases)
    assert first != other
    # Headers hold single precision: a micrometre apart is the same place.
    assert first == rounded
