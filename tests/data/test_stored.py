"""The cache of volumes: what is read again and what is not, what damage does, how much memory it takes.

Expected: counts of calls by hand, arrays made here, /proc for memory.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from medquant.data import atomic
from medquant.data.content import array_sha256, content_sha256, volume_sha256
from medquant.data.normalise import Normalisation
from medquant.data.prepared import Preparation, prepare_case
from medquant.data.stored import ArrayCache, StoredVolume
from medquant.data.volume import Case, Volume
from medquant.errors import InputError, UsageError

AFFINE = np.array([[0, 0.1 + 0.2, 0, -31.7], [-1e-3, 0, 0, 5], [0, 0, 7.5, 1 / 3], [0, 0, 0, 1]])


def _array(seed: int = 0, shape: tuple[int, int, int] = (5, 4, 3)) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(-2000, 3000, shape).astype(np.int16)


class _Reader:
    """Makes a volume of a file's bytes and counts how often it is asked."""

    def __init__(self, path: Path) -> None:
        self.path, self.calls = path, 0

    def __call__(self) -> Volume:
        self.calls += 1
        return Volume(np.frombuffer(self.path.read_bytes(), np.int16).reshape(5, 4, 3), AFFINE)


@pytest.fixture
def cache(tmp_path: Path) -> ArrayCache:
    return ArrayCache(tmp_path / "cache")


@pytest.fixture
def reader(tmp_path: Path) -> _Reader:
    (tmp_path / "scan").write_bytes(_array().tobytes())
    return _Reader(tmp_path / "scan")


def _only(cache: ArrayCache, ending: str, kind: str = "volumes") -> Path:
    assert cache.folder is not None
    (found,) = (cache.folder / kind).rglob(f"*{ending}")
    return found


# --- what is read again -----------------------------------------------------------------------------------------------


def test_the_same_bytes_are_decoded_once(cache: ArrayCache, reader: _Reader) -> None:
    first = cache.volume([reader.path], "made 1", reader)
    again = ArrayCache(cache.folder).volume([reader.path], "made 1", reader)
    assert reader.calls == 1
    assert first == again
    for volume in (first, again):
        assert isinstance(volume, StoredVolume)
        np.testing.assert_array_equal(volume.array, _array())
        np.testing.assert_array_equal(volume.affine, AFFINE)  # every bit of it
        assert (volume.shape, volume.dtype, volume.has_geometry) == ((5, 4, 3), np.int16, True)


def test_a_changed_file_is_decoded_again(cache: ArrayCache, reader: _Reader) -> None:
    cache.volume([reader.path], "made 1", reader)
    reader.path.write_bytes(_array(1).tobytes())
    np.testing.assert_array_equal(cache.volume([reader.path], "made 1", reader).array, _array(1))
    assert reader.calls == 2
    # What it was before is still known.
    reader.path.write_bytes(_array().tobytes())
    np.testing.assert_array_equal(cache.volume([reader.path], "made 1", reader).array, _array())
    assert reader.calls == 2


def test_a_change_is_seen_where_size_and_time_are_those_of_before(cache: ArrayCache, reader: _Reader) -> None:
    state = reader.path.stat()
    cache.volume([reader.path], "made 1", reader)
    time.sleep(0.02)  # the clock of a file system ticks every few milliseconds
    with reader.path.open("r+b") as stream:
        stream.write(_array(1).tobytes())
    os.utime(reader.path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert reader.path.stat().st_mtime_ns == state.st_mtime_ns
    np.testing.assert_array_equal(cache.volume([reader.path], "made 1", reader).array, _array(1))


def test_a_touched_or_moved_file_is_hashed_but_not_decoded(cache: ArrayCache, reader: _Reader, tmp_path: Path) -> None:
    cache.volume([reader.path], "made 1", reader)
    os.utime(reader.path, (1, 1))
    cache.volume([reader.path], "made 1", reader)
    other = shutil.copy(reader.path, tmp_path / "copy")
    cache.volume([Path(other)], "made 1", reader)
    assert reader.calls == 1


def test_an_unchanged_file_is_not_even_hashed(cache: ArrayCache, reader: _Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.volume([reader.path], "made 1", reader)
    monkeypatch.setattr("medquant.data.stored._hash_files", None)
    cache.volume([reader.path], "made 1", reader)
    assert reader.calls == 1


def test_other_settings_and_another_order_of_files_are_other_volumes(cache: ArrayCache, reader: _Reader, tmp_path: Path) -> None:
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


def test_without_a_folder_nothing_is_kept(reader: _Reader, tmp_path: Path) -> None:
    cache = ArrayCache(None)
    volumes = [cache.volume([reader.path], "made 1", reader) for _ in range(2)]
    assert reader.calls == 2
    assert not any(isinstance(volume, StoredVolume) for volume in volumes)
    assert cache.note("facts", lambda: {"a": 1}) == {"a": 1}
    assert list(tmp_path.iterdir()) == [reader.path]


def test_errors_of_the_reader_pass_through_and_leave_nothing(cache: ArrayCache, reader: _Reader) -> None:
    def fail() -> Volume:
        raise InputError("scan: broken")

    with pytest.raises(InputError, match="scan: broken"):
        cache.volume([reader.path], "made 1", fail)
    assert cache.folder is not None
    assert not (cache.folder / "volumes").exists()


def test_a_missing_source_is_named(cache: ArrayCache, reader: _Reader, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone: cannot be read \(No such file"):
        cache.volume([tmp_path / "gone"], "made 1", reader)
    with pytest.raises(InputError, match=r"found a folder, a pipe or a device, expected a file"):
        cache.volume([tmp_path], "made 1", reader)
    assert reader.calls == 0


# --- what is stored ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_every_type_layout_and_byte_order_comes_back(cache: ArrayCache, dtype: str) -> None:
    array = (_array() % 200).astype(dtype)
    wide = np.zeros((10, 4, 6), dtype)
    wide[::2, :, ::-2] = array
    layouts = [array, np.asfortranarray(array), array.astype(array.dtype.newbyteorder(">")), wide[::2, :, ::-2]]
    for number, layout in enumerate(layouts):
        stored = cache.keep(f"{dtype} {number}", lambda layout=layout: Volume(layout, AFFINE, has_geometry=False))
        np.testing.assert_array_equal(stored.array, array)
        assert (stored.array.dtype, stored.dtype, stored.has_geometry) == (np.dtype(dtype), np.dtype(dtype), False)
        assert volume_sha256(stored) == array_sha256(array) == array_sha256(stored.array)


def test_the_file_is_a_plain_npy_of_slices(cache: ArrayCache) -> None:
    cache.keep("k", lambda: Volume(_array(), AFFINE))
    np.testing.assert_array_equal(np.load(_only(cache, ".npy")), _array().transpose(2, 1, 0))


def test_the_array_cannot_be_written_to(cache: ArrayCache) -> None:
    array = cache.keep("k", lambda: Volume(_array(), AFFINE)).array
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0, 0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True


def test_notes_are_made_once(cache: ArrayCache) -> None:
    made: list[int] = []
    facts = [cache.note("k", lambda: {"n": len(made), "made": made.append(1) is None, "x": 0.1 + 0.2}) for _ in range(2)]
    assert facts == [{"n": 0, "made": True, "x": 0.1 + 0.2}] * 2


# --- damage -----------------------------------------------------------------------------------------------------------


def _made_again(cache: ArrayCache, damage: Callable[[Path, Path], object]) -> bool:
    """Store a volume, damage its two files, ask again; whether it was made again. What comes back must be right."""
    calls = []

    def make() -> Volume:
        calls.append(1)
        return Volume(_array(), AFFINE)

    cache.keep("k", make)
    damage(_only(cache, ".npy"), _only(cache, ".json"))
    for _ in range(2):
        found = cache.keep("k", make)
        np.testing.assert_array_equal(found.array, _array())
        np.testing.assert_array_equal(found.affine, AFFINE)
        assert (found.shape, found.dtype, volume_sha256(found)) == ((5, 4, 3), np.int16, array_sha256(_array()))
    return len(calls) == 2


# 120 bytes of voxels behind the header; cut by one byte, by the voxels, and into the header.
@pytest.mark.parametrize("left", [-1, -119, -120, -150, 6, 0])
def test_a_cut_array_is_made_again(cache: ArrayCache, left: int) -> None:
    assert _made_again(cache, lambda npy, _: npy.write_bytes(npy.read_bytes()[:left]))


def test_an_array_that_is_gone_longer_or_another_one_is_made_again(cache: ArrayCache, tmp_path: Path) -> None:
    np.save(tmp_path / "turned.npy", _array().transpose(0, 1, 2))
    np.save(tmp_path / "type.npy", _array().transpose(2, 1, 0).astype(np.uint16))
    np.save(tmp_path / "order.npy", np.asfortranarray(_array().transpose(2, 1, 0)))
    others = [(tmp_path / f"{name}.npy").read_bytes() for name in ("turned", "type", "order")]
    for number, data in enumerate((None, b"", b"x" * 248, pickle.dumps(_array()), *others)):
        own = ArrayCache(tmp_path / f"cache{number}")
        assert _made_again(own, lambda npy, _, data=data: npy.unlink() if data is None else npy.write_bytes(data))
    assert _made_again(cache, lambda npy, _: npy.write_bytes(npy.read_bytes() + b"\0"))


def _flip_facts(cache: ArrayCache, step: int) -> None:
    cache.keep("k", lambda: Volume(_array(), AFFINE))
    facts = _only(cache, ".json")
    whole = facts.read_bytes()
    for place in range(0, 8 * len(whole), step):
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        facts.write_bytes(bytes(data))
        found = cache.keep("k", lambda: Volume(_array(), AFFINE))
        np.testing.assert_array_equal(found.affine, AFFINE)
        assert (found.shape, found.dtype, found.has_geometry, volume_sha256(found)) == ((5, 4, 3), np.int16, True, array_sha256(_array()))


def test_no_flipped_bit_of_the_facts_is_believed(cache: ArrayCache) -> None:
    _flip_facts(cache, 131)


@pytest.mark.slow
def test_none_of_all_flipped_bits_of_the_facts_is_believed(cache: ArrayCache) -> None:
    _flip_facts(cache, 1)


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"null", b"\xff", b'{"facts": {}, "sha256": ""}', b"[" * 50, b'{"sha256": "0"}'])
def test_facts_and_notes_that_are_none_are_made_again(cache: ArrayCache, reader: _Reader, text: bytes) -> None:
    assert _made_again(cache, lambda _, facts: facts.write_bytes(text))
    cache.volume([reader.path], "made 1", reader)
    _only(cache, ".json", "notes").write_bytes(text)
    np.testing.assert_array_equal(cache.volume([reader.path], "made 1", reader).array, _array())
    assert reader.calls == 1


def test_an_array_changed_under_a_running_program_is_named(cache: ArrayCache) -> None:
    volume = cache.keep("k", lambda: Volume(_array(), AFFINE))
    path = _only(cache, ".npy")
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
    for ask in (lambda: cache.keep("k", lambda: Volume(_array(), AFFINE)), lambda: cache.note("k", lambda: {})):
        with pytest.raises(UsageError, match=r"taken.*set data\.cache to another folder or to off") as refused:
            ask()
        assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_a_read_only_folder_is_named(cache: ArrayCache, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> tuple[int, str]:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.tempfile, "mkstemp", refuse)
    with pytest.raises(UsageError, match=rf"{os.strerror(number)}.*set data\.cache to another folder or to off"):
        cache.keep("k", lambda: Volume(_array(), AFFINE))


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


# --- several processes ------------------------------------------------------------------------------------------------

_KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from medquant.data import stored
from medquant.data.volume import Case, Volume
left = int(sys.argv[2])
def die(*arguments):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return contiguous(*arguments, **{"dtype": "<i2"})
contiguous = np.ascontiguousarray
class Numpy:
    ascontiguousarray = staticmethod(lambda page, dtype: die(page))
    def __getattr__(self, name):
        return getattr(np, name)
sealed = stored._sealed
def die_sealing(facts):
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return sealed(facts)
stored._sealed = die_sealing
stored._WRITTEN_SLICES = 1
stored.np = Numpy()
array = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
stored.ArrayCache(Path(sys.argv[1])).keep("k", lambda: Volume(array, np.eye(4)))
"""


def test_killed_while_writing_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    array = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    # In the second of three slices, and between the array and its facts.
    for pages in (1, 3):
        folder = tmp_path / str(pages)
        child = subprocess.run([sys.executable, "-c", _KILLED, str(folder), str(pages)], timeout=100, check=False)
        assert child.returncode == -9
        assert list(folder.rglob("*.json")) == []
        calls: list[int] = []
        found = ArrayCache(folder).keep("k", lambda calls=calls: (calls.append(1), Volume(array, np.eye(4)))[1])
        np.testing.assert_array_equal(found.array, array)
        assert len(calls) == 1


def _keep_often(folder: Path, barrier: object, failures: object) -> None:
    array = _array(3, (40, 40, 20))
    for number in range(15):
        barrier.wait()  # type: ignore[attr-defined]
        volume = ArrayCache(folder).keep(f"k{number}", lambda: Volume(array, AFFINE))
        if not np.array_equal(volume.array, array):
            failures.put(number)  # type: ignore[attr-defined]


def test_two_processes_may_make_the_same_volume(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, failures = context.Barrier(2), context.Queue()
    children = [context.Process(target=_keep_often, args=(tmp_path, barrier, failures)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout=100)
    assert [child.exitcode for child in children] == [0, 0]
    assert failures.empty()
    failures.close()
    failures.join_thread()
    assert len(list(tmp_path.rglob("*.npy"))) == 15
    assert list(tmp_path.rglob("*.part")) == []


class _Slices(Dataset[NDArray[np.float64]]):
    def __init__(self, volume: Volume) -> None:
        self.volume = volume

    def __len__(self) -> int:
        return self.volume.shape[2]

    def __getitem__(self, k: int) -> NDArray[np.float64]:
        return self.volume.array[:, :, k].astype(np.float64)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_loader_take_it_along(cache: ArrayCache, method: str) -> None:
    volume = cache.keep("k", lambda: Volume(_array(), AFFINE))
    loader = DataLoader(_Slices(volume), batch_size=None, num_workers=1, multiprocessing_context=method)
    found = np.stack([np.asarray(page) for page in loader], axis=2)
    np.testing.assert_array_equal(found, _array())


def test_pickled_it_is_its_path_not_its_voxels(cache: ArrayCache) -> None:
    volume = cache.keep("k", lambda: Volume(_array(shape=(100, 100, 10)), AFFINE))
    data = pickle.dumps(volume)
    assert len(data) < 2000
    again = pickle.loads(data)
    assert again == volume
    assert hash(again) == hash(volume)
    np.testing.assert_array_equal(again.array, volume.array)


_MEMORY = """
import sys
from pathlib import Path
import numpy as np
from medquant.data.stored import ArrayCache
from medquant.data.volume import Case, Volume
def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) // 1024
cache = ArrayCache(Path(sys.argv[1]))
make = lambda: Volume(np.ones((256, 256, 256), np.int16), np.eye(4))
volumes = [cache.keep(f"k{number}", make) for number in range(8)]
before = resident()
for volume in volumes:
    assert int(volume.array.sum()) == 256**3
print(resident() - before)
"""


def test_memory_does_not_grow_with_the_volumes_looked_at(tmp_path: Path) -> None:
    # 8 volumes of 32 MiB, every voxel touched: held all together they would take 256 MiB.
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    found = subprocess.run([sys.executable, "-c", textwrap.dedent(_MEMORY), str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 48


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


def test_a_flipped_voxel_bit_is_found_before_a_case_is_used(cache: ArrayCache) -> None:
    volume = cache.keep("made", lambda: Volume(_array(), AFFINE))
    mask = cache.keep("mask", lambda: Volume((_array() > 0).astype(np.uint8), AFFINE))
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
    cases = [Case("a", "a", "", Volume(_array(), affine), None, "made") for affine in (AFFINE, moved, AFFINE + 1e-6)]
    first, other, rounded = (content_sha256([case]) for case in cases)
    assert first != other
    # Headers hold single precision: a micrometre apart is the same place.
    assert first == rounded
