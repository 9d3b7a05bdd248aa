"""A float twin taken over from another run: the same bits as one trained anew, and only from a run made the same way."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from small_sessions import after_steps, resume_small, start_small, train_small, trained_bits

from medquant.errors import CheckpointError, ConfigError, InterruptedRunError
from medquant.train.checkpoint import load_checkpoint


def test_an_adopted_twin_gives_the_same_run_as_one_trained_anew(finished_run: Path, tmp_path: Path) -> None:
    bits = ("quant.wbits=2", "quant.layer_bits=['bottom*=8/']")
    own = train_small(tmp_path / "own", *bits)
    adopted = train_small(tmp_path / "adopted", *bits, f"train.twin_from={finished_run}")
    found, expected = trained_bits(tmp_path / "adopted"), trained_bits(tmp_path / "own")
    records = [record for record in expected.pop("metrics") if record["stage"] == "quantized"]  # type: ignore[attr-defined]
    assert found.pop("metrics") == records
    assert found == expected
    assert adopted.document["float_twin"] is not None
    assert adopted.document["dice"] == own.document["dice"]
    assert adopted.document["dice_minus_twin"] == own.document["dice_minus_twin"]


def test_a_stopped_run_with_an_adopted_twin_resumes_without_the_other_run(finished_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished_run, other)
    for name, step in (("whole", 10**6), ("cut", 3)):
        session = start_small(tmp_path / name, f"train.twin_from={other}", stop_requested=after_steps(step))
        if name == "whole":
            session.run()
        else:
            with pytest.raises(InterruptedRunError, match="stage quantized, epoch 2"):
                session.run()
    shutil.rmtree(other)
    resume_small(tmp_path / "cut").run()
    assert trained_bits(tmp_path / "cut") == trained_bits(tmp_path / "whole")


def test_a_twin_half_copied_to_a_full_disk_is_copied_again(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    session = start_small(run, f"train.twin_from={finished_run}")
    with monkeypatch.context() as patch:
        copy, calls = shutil.copy2, iter(range(100))

        def full(source: str, target: str, **options: bool) -> object:
            if next(calls) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return copy(source, target, **options)

        patch.setattr(shutil.copytree, "__defaults__", (False, None, full, False, False))
        with pytest.raises(CheckpointError, match=r"twin cannot be copied .*No space left on device.*free some space and resume"):
            session.run()
    resume_small(run).run()
    for folder in ("warm", "float"):
        assert load_checkpoint(run / folder).values == load_checkpoint(finished_run / folder).values


def test_the_network_of_a_float_run_is_a_twin(tmp_path: Path) -> None:
    start_small(tmp_path / "float", "quant.wbits=32", "quant.abits=32").run()
    session = start_small(tmp_path / "run", f"train.twin_from={tmp_path / 'float'}")
    session.run()
    found = load_checkpoint(tmp_path / "run" / "float")
    assert found.values == load_checkpoint(tmp_path / "float" / "best").values


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.seed=1", "train.seed"),
        ("train.lr=0.01", "train.lr"),
        ("model.channels=3", "model.channels"),
        ("data.batch_size=1", "data.batch_size"),
    ],
)
def test_another_recipe_is_refused_by_its_name(finished_run: Path, tmp_path: Path, override: str, named: str) -> None:
    with pytest.raises(ConfigError, match=rf"train\.twin_from .*made with another recipe \({named} differ\); train the twin anew"):
        start_small(tmp_path / "run", override, f"train.twin_from={finished_run}")
    assert not (tmp_path / "run").exists()


def test_other_data_and_another_split_are_refused(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="made with other data"):
        start_small(tmp_path / "run", "data.phantom_seed=1", f"train.twin_from={finished_run}")
    other = tmp_path / "other"
    shutil.copytree(finished_run, other)
    document = json.loads((other / "run.json").read_text())
    document["split"]["train"], document["split"]["test"] = document["split"]["test"], document["split"]["train"]
    (other / "run.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=r"\(split differ\)"):
        start_small(tmp_path / "run", f"train.twin_from={other}")


def test_a_float_run_takes_no_twin(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.twin_from .*a float run has no float twin; leave it out"):
        start_small(tmp_path / "run", "quant.wbits=32", "quant.abits=32", f"train.twin_from={finished_run}")


def test_an_unfinished_twin_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    session = start_small(other, stop_requested=after_steps(5))  # the first of two float epochs is done and has left a checkpoint
    with pytest.raises(InterruptedRunError):
        session.run()
    with pytest.raises(CheckpointError, match=r"not the finished float network.*end that run first"):
        start_small(tmp_path / "run", f"train.twin_from={other}")


def test_a_run_without_a_twin_and_a_damaged_twin_are_refused(finished_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished_run, other)
    shutil.rmtree(other / "float")
    with pytest.raises(CheckpointError, match="not the finished float network"):
        start_small(tmp_path / "run", f"train.twin_from={other}")
    (next((other / "warm").glob("*.safetensors"))).write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="does not match its SHA-256"):
        start_small(tmp_path / "run", f"train.twin_from={other}")
