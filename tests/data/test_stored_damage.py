"""Damage to the cache of volumes, and folders it cannot be written to. Expected: arrays made here, counts of calls by hand."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stored_volumes import AFFINE, Reader, made_array, only

from medquant.data import atomic
from medquant.data.content import array_sha256, volume_sha256
from medquant.data.normalise import Normalisation
from medquant.data.prepared import Preparation, prepare_case
from medquant.data.stored import ArrayCache, StoredVolume
from medquant.data.volume import Case, Volume
from medquant.errors import UsageError

# --- damage -----------------------------------------------------------------------------------------------------------


def _made_again(cache: ArrayCache, damage: Callable[[Path, Path], object]) -> bool:
    """Store a volume, damage its two files, ask again; whether it was made again. What comes back must be right."""
    calls = []

    def make() -> Volume:
        calls.append(1)
        return Volume(made_array(), AFFINE)

    cache.keep("k", make)
    damage(only(cache, ".npy"), only(cache, ".json"))
    for _ in range(2):
        found = cache.keep("k", make)
        np.testing.assert_array_equal(found.array, made_array())
        np.testing.assert_array_equal(found.affine, AFFINE)
        assert (found.shape, found.dtype, volume_sha256(found)) == ((5, 4, 3), np.int16, array_sha256(made_array()))
    return len(calls) == 2


# 120 bytes of voxels behind the header; cut by one byte, by the voxels, and into the header.
@pytest.mark.parametrize("left", [-1, -119, -120, -150, 6, 0])
def test_a_cut_array_is_made_again(cache: ArrayCache, left: int) -> None:
    assert _made_again(cache, lambda npy, _: npy.write_bytes(npy.read_bytes()[:left]))


def test_an_array_that_is_gone_longer_or_another_one_is_made_again(cache: ArrayCache, tmp_path: Path) -> None:
    np.save(tmp_path / "turned.npy", made_array().transpose(0, 1, 2))
    np.save(tmp_path / "type.npy", made_array().transpose(2, 1, 0).astype(np.uint16))
    np.save(tmp_path / "order.npy", np.asfortranarray(made_array().transpose(2, 1, 0)))
    others = [(tmp_path / f"{name}.npy").read_bytes() for name in ("turned", "type", "order")]
    for number, data in enumerate((None, b"", b"x" * 248, pickle.dumps(made_array()), *others)):
        own = ArrayCache(tmp_path / f"cache{number}")
        assert _made_again(own, lambda npy, _, data=data: npy.unlink() if data is None else npy.write_bytes(data))
    assert _made_again(cache, lambda npy, _: npy.write_bytes(npy.read_bytes() + b"\0"))


def _flip_facts(cache: ArrayCache, step: int) -> None:
    cache.keep("k", lambda: Volume(made_array(), AFFINE))
    facts = only(cache, ".json")
    whole = facts.read_bytes()
    for place in range(0, 8 * len(whole), step):
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        facts.write_bytes(bytes(data))
        found = cache.keep("k", lambda: Volume(made_array(), AFFINE))
        np.testing.assert_array_equal(found.affine, AFFINE)
        assert (found.shape, found.dtype, found.has_geometry, volume_sha256(found)) == (
            (5, 4, 3),
            np.int16,
            True,
            array_sha256(made_array()),
        )


def test_no_flipped_bit_of_the_facts_is_believed(cache: ArrayCache) -> None:
    _flip_facts(cache, 131)


@pytest.mark.slow
def test_none_of_all_flipped_bits_of_the_facts_is_believed(cache: ArrayCache) -> None:
    _flip_facts(cache, 1)


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"null", b"\xff", b'{"facts": {}, "sha256": ""}', b"[" * 50, b'{"sha256": "0"}'])
def test_facts_and_notes_that_are_none_are_made_again(cache: ArrayCache, reader: Reader, text: bytes) -> None:
    assert _made_again(cache, lambda _, facts: facts.write_bytes(text))
    cache.volume([reader.path], "made 1", reader)
    only(cache, ".json", "notes").write_bytes(text)
    np.testing.assert_array_equal(cache.volume([reader.path], "made 1", reader).array, made_array())
    assert reader.calls == 1


def test_an_array_changed_under_a_running_program_is_named(cache: ArrayCache) -> None:
    volume = cache.keep("k", lambda: Volume(made_array(), AFFINE))
    path = only(cache, ".npy")
    np.save(path, np.zeros((5, 4, 3), np.int16))
    with pytest.raises(UsageError, match=r"the cached array is int16 \(3, 4, 5\), expected int16 \(5, 4, 3\); delete the cache"):
        _ = volume.array
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"cannot be read .*delete the cache"):
        _ = volume.array
    path.unlink()
    with pytest.raises(UsageError, match=r"cannot be read .*delete the cache"):
        _ = volume.array


# --- a folder that cannot be written to -------------------------------------------------------------------------------


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    cache = ArrayCache(tmp_path / "taken")
    for ask in (lambda: cache.keep("k", lambda: Volume(made_array(), AFFINE)), lambda: cache.note("k", lambda: {})):
        with pytest.raises(UsageError, match=r"taken.*set data\.cache to another folder or to off") as refused:
            ask()
        assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_a_read_only_folder_is_named(cache: ArrayCache, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> tuple[int, str]:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.tempfile, "mkstemp", refuse)
    with pytest.raises(UsageError, match=rf"{os.strerror(number)}.*set data\.cache to another folder or to off"):
        cache.keep("k", lambda: Volume(made_array(), AFFINE))


_FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from medquant.data.stored import ArrayCache
from medquant.data.volume import Case, Volume
from medquant.errors import UsageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    ArrayCache(Path(sys.argv[1])).keep("k", lambda: Volume(np.zeros((64, 64, 64), np.int16), np.eye(4)))
except UsageError as error:
    print(error)
"""


def test_a_disk_that_is_full_half_way_is_named_and_left_clean(tmp_path: Path) -> None:
    # A limit on the size of files stands for the end of the disk: the write fails at the same place.
    found = subprocess.run([sys.executable, "-c", _FULL, str(tmp_path)], capture_output=True, text=True, timeout=100, check=True)
    assert "set data.cache to another folder or to off" in found.stdout
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# --- the usual place --------------------------------------------------------------------------------------------------


def test_a_flipped_voxel_bit_is_found_before_a_case_is_used(cache: ArrayCache) -> None:
    volume = cache.keep("made", lambda: Volume(made_array(), AFFINE))
    mask = cache.keep("mask", lambda: Volume((made_array() > 0).astype(np.uint8), AFFINE))
    assert isinstance(volume, StoredVolume)
    volume.verify()
    case = Case("a", "a", "", volume, mask, "made")
    prepare_case(case, Preparation(Normalisation("zscore_slice")), cache)
    path = next(file for file in cache.folder.rglob("*.npy") if np.load(file).dtype == np.int16)  # type: ignore[union-attr]
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(bytes(content))
    with pytest.raises(UsageError, match="cached array is damaged"):
        prepare_case(case, Preparation(Normalisation("zscore_slice")), cache)
