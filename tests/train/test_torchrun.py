"""Training with torchrun: two real processes on the built-in phantom come to what one comes to, and a killed one ends the job."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_TINY = (
    "train.epochs=3",
    "train.warm_fraction=0.34",
    "train.steps_per_epoch=4",
    "train.threads=1",
    "train.device=cpu",
    "train.amp=off",
    "train.validation_slices=4",
    "data.batch_size=4",
    "data.workers=0",
    "data.patch_size=[32,32]",
    "model.channels=2",
    "model.depth=3",
)
_TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def _command(processes: int | None, *arguments: str) -> list[str]:
    start = [] if processes is None else [*_TORCHRUN, str(processes)]
    return [sys.executable, *start, "-m", "medquant.cli.main", "train", *arguments]


def _start(processes: int | None, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)}
    return subprocess.Popen(_command(processes, *arguments), cwd=_ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def _train(out: Path, processes: int | None, *overrides: str) -> list[dict[str, object]]:
    settings = [part for setting in (*_TINY, *overrides) for part in ("-o", setting)]
    process = _start(processes, "--out", str(out), "--quiet", *settings)
    _, said = process.communicate(timeout=500)
    assert process.returncode == 0, said
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def _without_times(records: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{key: value for key, value in record.items() if not key.endswith("_s")} for record in records]


@pytest.mark.slow
@pytest.mark.parametrize("method", [("fixed_point",), ("learned_step", "model.dropout=0.2", "quant.distillation=0.5"), ("paper",)])
def test_two_processes_train_what_one_trains(tmp_path: Path, method: tuple[str, ...]) -> None:
    settings = (f"quant.method={method[0]}", *method[1:])
    one, two = (_train(tmp_path / str(count), count, *settings) for count in (None, 2))
    assert [record["stage"] for record in two] == [record["stage"] for record in one] == ["warm", *["float"] * 2, *["quantized"] * 2]
    # The warm start is too short for rounding to grow; afterwards it does, and quantizers turn it into steps.
    for index, (mine, theirs) in enumerate(zip(one, two, strict=True)):
        assert theirs["train_loss"] == pytest.approx(mine["train_loss"], rel=1e-5 if index == 0 else 1e-3)
        assert theirs["val_dice"] == pytest.approx(mine["val_dice"], abs=0.01)
    assert json.loads((tmp_path / "2" / "run.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_one_process_under_torchrun_gives_the_same_bits(tmp_path: Path) -> None:
    assert _without_times(_train(tmp_path / "a", None)) == _without_times(_train(tmp_path / "b", 1))
    assert (tmp_path / "a" / "model.mq").read_bytes()[-4096:] == (tmp_path / "b" / "model.mq").read_bytes()[-4096:]
    for file in ("last", "best", "float"):
        first, second = (sorted((tmp_path / run / file).glob("*.safetensors")) for run in "ab")
        assert [each.read_bytes() for each in first] == [each.read_bytes() for each in second]


@pytest.mark.slow
def test_a_killed_process_ends_the_job_which_can_be_resumed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    longer = [part for setting in (*_TINY, "train.steps_per_epoch=200") for part in ("-o", setting)]
    process = _start(2, "--out", str(out), *longer)
    until = time.monotonic() + 300
    while not (out / "metrics.jsonl").is_file() or not (out / "metrics.jsonl").read_text():
        assert time.monotonic() < until
        time.sleep(0.2)
    os.kill(_rank_one(process.pid), signal.SIGKILL)
    killed = time.monotonic()
    _, said = process.communicate(timeout=120)
    assert time.monotonic() - killed < 60
    assert process.returncode != 0
    assert "another process of this run ended" in said
    assert list(out.rglob("*.part")) == []
    again = _start(2, "--out", str(out), "--resume")
    _, said = again.communicate(timeout=500)
    assert again.returncode == 0, said
    assert json.loads((out / "run.json").read_text())["status"] == "finished"


def _rank_one(agent: int) -> int:
    """The process of rank 1 that torchrun has started."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == agent and b"RANK=1" in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError("torchrun has no process of rank 1")
