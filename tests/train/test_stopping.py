"""A run stopped after any step, in any stage, or ended by a full disk, goes on to the same bits.

Expected: the checkpoints and records of an uninterrupted run of the same command.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_sessions import STEPS, after_steps, finish_small, half_written, resume_small, start_small, train_small, trained_bits

from medquant.errors import CheckpointError, InterruptedRunError
from medquant.train import session as session_module
from medquant.train.checkpoint import has_checkpoint, load_checkpoint
from medquant.train.state import progress_of

# Two warm steps, two float epochs of two steps, two quantized ones: in the middle, at the end of an epoch, in a second epoch.
STOPS = {1: "warm", 4: "float", 9: "quantized"}


@pytest.fixture(scope="module")
def expected(finished_run: Path) -> dict[str, object]:
    """Every trained bit of a run nobody disturbed."""
    return trained_bits(finished_run)


def _differing(found: dict[str, object], expected: dict[str, object]) -> list[str]:
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


@pytest.mark.parametrize("step", STOPS)
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path: Path, expected: dict[str, object], step: int) -> None:
    run = tmp_path / "run"
    session = start_small(run, stop_requested=after_steps(step))
    with pytest.raises(InterruptedRunError, match=f"stopped in stage {STOPS[step]}, .*saved, continue with --resume") as stopped:
        session.run()
    assert stopped.value.exit_code == 130
    assert progress_of(load_checkpoint(run / "last")).stage == STOPS[step]
    resume_small(run).run()
    assert _differing(trained_bits(run), expected) == []


def test_a_run_stopped_at_every_step_resumes_to_the_same_bits(tmp_path: Path, expected: dict[str, object]) -> None:
    run = tmp_path / "run"
    session, stops = start_small(run, stop_requested=lambda: True), 0
    while True:
        try:
            session.run()
            break
        except InterruptedRunError:
            stops += 1
            session = resume_small(run)
            session.stop_requested = lambda: True
    assert stops == STEPS
    assert _differing(trained_bits(run), expected) == []


def test_a_run_with_dropout_resumes_to_the_same_bits(tmp_path: Path) -> None:
    for name, step in (("whole", 10**6), ("cut", 3)):
        session = start_small(tmp_path / name, "model.dropout=0.3", stop_requested=after_steps(step))
        if name == "whole":
            session.run()
        else:
            with pytest.raises(InterruptedRunError):
                session.run()
            resume_small(tmp_path / name).run()
    assert _differing(trained_bits(tmp_path / "cut"), trained_bits(tmp_path / "whole")) == []


def test_the_tail_of_a_stage_is_not_lost_when_killed_before_it_is_saved(
    tmp_path: Path, expected: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while the float twin's statistics are estimated, which follows its last checkpoint."""
    run = tmp_path / "run"
    session = start_small(run)
    reestimate, calls = session_module.reestimate_batch_norm, iter(range(10))

    def killed(*args: object) -> None:
        if next(calls) == 1:
            raise KeyboardInterrupt
        reestimate(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(session_module, "reestimate_batch_norm", killed)
        with pytest.raises(KeyboardInterrupt):
            session.run()
    assert not load_checkpoint(run / "float").values.get("batch_norm_reestimated")
    resume_small(run).run()
    assert _differing(trained_bits(run), expected) == []


def _full_disk(monkeypatch: pytest.MonkeyPatch, call: int) -> Callable[[], int]:
    """From the ``call``-th renaming on no file can be put in its place; returns how many were tried."""
    replace, calls = os.replace, [0]

    def failing(source: object, target: object) -> None:
        calls[0] += 1
        if calls[0] >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", failing)
    return lambda: calls[0]


@pytest.fixture(scope="module")
def renamings(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, int]:
    """How many files a run puts in place until training has ended, and until all is done."""
    from small_sessions import small_world

    with small_world() as patch:
        count = _full_disk(patch, 10**6)
        session = start_small(tmp_path_factory.mktemp("count") / "run")
        session.run()
        trained = count()
        finish_small(session)
        return trained, count()


# run.json and the record come first; then the checkpoints of each stage; then the results.
@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 1.0])
def test_a_disk_that_fills_up_costs_no_checkpoint(
    tmp_path: Path, expected: dict[str, object], renamings: tuple[int, int], monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    run = tmp_path / "run"
    session = start_small(run)
    with monkeypatch.context() as patch:
        _full_disk(patch, 1 + round(share * (renamings[0] - 2)))
        with pytest.raises(CheckpointError, match=r"No space left on device.*free some space") as full:
            session.run()
    assert full.value.exit_code == 6
    assert half_written(run) == []
    if has_checkpoint(run / "last"):
        load_checkpoint(run / "last")
    resume_small(run).run()
    assert _differing(trained_bits(run), expected) == []


def test_a_disk_that_fills_up_while_results_are_written_leaves_no_part(
    tmp_path: Path, renamings: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    whole = train_small(run).document["dice"]
    for name in ("model.mq", "eval.json"):
        (run / name).unlink()
    session = resume_small(run)
    session.run()
    for left in range(renamings[1] - renamings[0]):
        with monkeypatch.context() as patch:
            _full_disk(patch, 1 + left)
            with pytest.raises(CheckpointError, match="No space left on device") as full:
                finish_small(session)
        assert full.value.exit_code == 6
        assert half_written(run) == []
        assert not (run / "eval.json").exists() or left > 1
    assert finish_small(session).document["dice"] == whole


def test_a_disk_that_fills_up_with_the_pictures_is_told_alike(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    shutil.rmtree(run / "pictures")
    session = resume_small(run)
    session.run()
    replace = os.replace

    def failing(source: object, target: object) -> None:
        if str(target).endswith(".png"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(CheckpointError, match=r"pictures: not drawn .*No space left on device.*resume"):
        finish_small(session, pictures=True)
    assert list((run / "pictures").iterdir()) == []
    assert (run / "eval.json").exists()


def test_a_disk_full_for_the_record_alone_is_told_apart(
    tmp_path: Path, expected: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    session = start_small(run)
    recorder = session.around.recorder

    def half(*_: object) -> None:
        with recorder.path.open("a") as stream:
            stream.write('{"epoch": 0, "sta')
        raise CheckpointError("full")

    with monkeypatch.context() as patch:
        patch.setattr(recorder, "append", half)
        with pytest.raises(CheckpointError):
            session.run()
    resume_small(run).run()
    assert _differing(trained_bits(run), expected) == []
