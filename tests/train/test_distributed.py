"""Several processes on one batch: values and gradients are those of one process with the whole batch."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import part_of_a_batch
import pytest
import torch
from torch import nn

from medquant.errors import UsageError
from medquant.quant.methods import get_method
from medquant.train.batches import _EpochPlan
from medquant.train.distributed import ALONE, Group, join
from medquant.train.whole_batch import whole_batch

_ROOT = Path(__file__).parents[2]


def _free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found."""
    out = tmp_path_factory.mktemp("parts")
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(part_of_a_batch.__file__)), str(out)]
    processes = [
        subprocess.Popen(command, cwd=_ROOT, env={**os.environ, **meeting, "RANK": str(rank), "PYTHONPATH": str(_ROOT)}) for rank in (0, 1)
    ]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_a_step_in_parts_is_the_step_of_the_whole_batch(parts: list[dict[str, Any]]) -> None:
    # torch's own batch norm and dropout over all six images, in one process.
    expected = part_of_a_batch.take_step(ALONE)
    first, second = parts[0]["step"], parts[1]["step"]
    joined = {**first, "image": first["image"] + second["image"]}
    assert joined.keys() == expected.keys()
    for name, values in expected.items():
        assert joined[name] == pytest.approx(values, rel=1e-9, abs=1e-11), name
    # What all processes hold is the same to the bit.
    assert {name: values for name, values in first.items() if name != "image"} == {
        name: values for name, values in second.items() if name != "image"
    }


def test_losses_are_those_of_the_whole_batch(parts: list[dict[str, Any]]) -> None:
    expected = part_of_a_batch.take_losses(ALONE)
    assert parts[0]["losses"]["losses"] == parts[1]["losses"]["losses"] == pytest.approx(expected["losses"], rel=1e-6)
    joined = parts[0]["losses"]["gradient"] + parts[1]["losses"]["gradient"]
    assert joined == pytest.approx(expected["gradient"], rel=1e-4, abs=1e-8)


def test_processes_hear_from_each_other(parts: list[dict[str, Any]]) -> None:
    for part in parts:
        assert part["any"] == [True, False]
        assert part["first"] == {"from": 0, "text": "µ", "number": 0.1}
        assert part["copied"] == [1.0, 1.0, 2**40]


def test_what_one_process_refuses_all_refuse(parts: list[dict[str, Any]]) -> None:
    for part in parts:
        assert part["together"] == ["ConfigError", "process 1 of 2: a mistake\nand another"]
        assert part["agree"][0] == "ConfigError"
        assert "process 1 of 2 has word w1, process 0 has w0" in part["agree"][1]
        assert "same" not in part["agree"][1]
        assert part["batch"][0] == "ConfigError"
        assert "found 3 for 2 processes, expected a multiple of 2" in part["batch"][1]


def test_samples_of_a_batch_are_shared_out() -> None:
    plans = [_EpochPlan(4, Group(rank, 2)) for rank in (0, 1)]
    for plan in plans:
        plan.choose(7, 1, 3)
    assert [list(plan) for plan in plans] == [
        [[(7, 4), (7, 5)], [(7, 8), (7, 9)]],
        [[(7, 6), (7, 7)], [(7, 10), (7, 11)]],
    ]
    plans[1].choose(7, 1, 2, whole=True)
    assert list(plans[1]) == [[(7, 4), (7, 5), (7, 6), (7, 7)]]


def test_alone_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = nn.BatchNorm2d(2)
    with whole_batch(norm, ALONE):
        assert "forward" not in vars(norm)
    x = torch.ones(2)
    assert ALONE.sum(x) is x
    assert ALONE.mean(x) is x
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    assert join() is ALONE
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UsageError, match="expected numbers"):
        join()


def test_learned_steps_are_scaled_by_the_whole_batch() -> None:
    # Their gradients are divided by the root of the number of values, which a process sees a quarter of.
    for name in ("fixed_point", "learned_step"):
        assert get_method(name).shared_step_scale(4) == 0.5
    assert get_method("binary").shared_step_scale(4) == 1.0
    assert not math.isclose(get_method("fixed_point").shared_step_scale(2), 1.0)
