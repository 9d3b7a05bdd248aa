"""The cache of volumes among processes: killed, at once, in workers. Expected: arrays made here, /proc for memory."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from stored_volumes import AFFINE, made_array
from torch.utils.data import DataLoader, Dataset

from medquant.data.stored import ArrayCache
from medquant.data.volume import Volume

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
    array = made_array(3, (40, 40, 20))
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
    volume = cache.keep("k", lambda: Volume(made_array(), AFFINE))
    loader = DataLoader(_Slices(volume), batch_size=None, num_workers=1, multiprocessing_context=method)
    found = np.stack([np.asarray(page) for page in loader], axis=2)
    np.testing.assert_array_equal(found, made_array())


def test_pickled_it_is_its_path_not_its_voxels(cache: ArrayCache) -> None:
    volume = cache.keep("k", lambda: Volume(made_array(shape=(100, 100, 10)), AFFINE))
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
