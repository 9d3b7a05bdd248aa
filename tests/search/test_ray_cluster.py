"""Sweeps on Ray clusters of one machine: nodes are processes of their own."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from medquant.errors import InputError, UsageError
from medquant.search.executors.base import Places
from medquant.search.executors.ray_cluster import Cluster, RayCluster, _holds
from medquant.search.sweep import Sweep, SweepRequest, list_sweep
from tests.cli.command_line import em_folder

_SWEEP = """
set:
  data.patch_size: [32, 32]
  data.batch_size: 2
  data.augmentation: none
  data.path: em
  train.epochs: 2
  train.warm_fraction: 0.5
  train.steps_per_epoch: 2
  train.validation_slices: 2
  train.float_twin: false
  train.threads: 1
  train.device: cpu
  model.channels: 2
  model.depth: 2
grid:
  train.seed: [0, 1, 2]
  quant.wbits: [4, 8]
keep: scores
"""


@pytest.fixture(autouse=True)
def environment_as_before() -> Iterator[None]:
    """Ray notes in the environment what it was started with."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def test_room_for_trials() -> None:
    # Counted by hand: 8 processors hold 4 trials of 2, 1 GPU holds 2 of half of one.
    found = {"CPU": 8.0, "GPU": 1.0}
    assert _holds(found, Cluster("auto", 2)) == 4
    assert _holds(found, Cluster("auto", 2, 0.5)) == 2
    assert _holds({"CPU": 8.0}, Cluster("auto", 2, 0.5)) == 0


@pytest.mark.parametrize("address", ["nowhere", "ftp://a:1", "a:b", "ray://a"])
def test_no_address(address: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UsageError, match="expected auto, local"):
        RayCluster(Places(str(tmp_path)), lambda *_: False, lambda: False, Cluster(address))


def test_dead_address(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{place.getsockname()[1]}"
    started = time.monotonic()
    with pytest.raises(UsageError, match="nothing answers there"):
        RayCluster(Places(str(tmp_path)), lambda *_: False, lambda: False, Cluster(address))
    assert time.monotonic() - started < 20


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"medquant\[cluster\]"):
        RayCluster(Places(str(tmp_path)), lambda *_: False, lambda: False, Cluster("auto"))


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Any]]:
    """Makes a cluster of so many nodes of one processor each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as Nodes

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made: list[Any] = []

    def make(count: int) -> Any:
        made.append(Nodes(initialize_head=True, head_node_args={"num_cpus": 1 if count == 1 else 0, "include_dashboard": False}))
        if count > 1:
            for _ in range(count):
                made[-1].add_node(num_cpus=1)
        return made[-1]

    yield make
    for cluster in made:
        cluster.shutdown()


def _swept(folder: Path, address: str, ended: Callable[[str], None] = lambda line: None, text: str = _SWEEP) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    # In a folder: the small phantom of these tests is this process's alone, and workers are others.
    em_folder(folder / "em")
    file = folder / "small.yaml"
    file.write_text(text)
    sweep = Sweep(SweepRequest(file, folder / "out", threads=1), list_sweep(file), ended, lambda: False)
    try:
        sweep.run(lambda places, watch, stop: RayCluster(places, watch, stop, Cluster(address)))
    finally:
        sweep.close()
    found = {}
    for trial_id, outcome in sweep.ledger.history.ended.items():
        document = {key: value for key, value in outcome.document.items() if key != "machine" and not key.endswith("_s")}
        found[trial_id] = (outcome.status, document)
    return found


@pytest.mark.slow
def test_one_node_and_four_give_the_same_ledger(tmp_path: Path, nodes: Callable[[int], Any]) -> None:
    started = time.monotonic()
    one = _swept(tmp_path / "one", nodes(1).address)
    middle = time.monotonic()
    four = _swept(tmp_path / "four", nodes(4).address)
    print(f"{len(one)} trials: one node {middle - started:.0f} s, four {time.monotonic() - middle:.0f} s")
    assert len(one) == 6
    assert {status for status, _ in one.values()} == {"finished"}
    assert one == four


@pytest.mark.slow
def test_a_node_that_dies_costs_no_trial(tmp_path: Path, nodes: Callable[[int], Any]) -> None:
    cluster = nodes(2)
    victims = list(cluster.worker_nodes)
    lines: list[str] = []
    timers: list[threading.Timer] = []

    def ended(line: str) -> None:
        lines.append(line)
        if len(lines) == 1:
            # By then its next trial is under way, and far from done.
            timers.append(threading.Timer(2.0, lambda: cluster.remove_node(victims[0], allow_graceful=False)))
            timers[0].start()

    # Trials of some seconds, so that the machine dies in the middle of one.
    text = _SWEEP.replace("steps_per_epoch: 2", "steps_per_epoch: 500").replace("[0, 1, 2]", "[0, 1]")
    found = _swept(tmp_path / "dying", cluster.address, ended, text)
    assert len(found) == 4
    assert {status for status, _ in found.values()} == {"finished"}
    assert sum("finished" in line for line in lines) == 4
    timers[0].join()
    assert sum("once more" in line for line in lines) == 1
    print(lines)


@pytest.mark.slow
def test_another_medquant_on_a_machine(tmp_path: Path, nodes: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import medquant

    address = nodes(1).address
    monkeypatch.setattr(medquant, "__version__", "0.0.0")
    with pytest.raises(InputError, match=r"machine .* of the cluster: medquant is .* there and 0\.0\.0 here"):
        _swept(tmp_path / "other", address)
