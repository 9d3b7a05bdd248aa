"""A sweep runs every trial once, whatever happens in between. Counts are by hand; scores are those of ``medquant train``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medquant.config.schema import Config, DataConfig
from medquant.errors import CheckpointError, InterruptedRunError, UsageError
from medquant.search.shared import SweptSession
from medquant.search.sweep import Sweep, SweepRequest, list_sweep
from medquant.search.table import count_by_status, seed_table, sweep_rows, trial_table, write_tables
from medquant.search.trials import Outcome, Trial
from medquant.train.finish import finish
from medquant.train.reporting import SilentReporter
from medquant.train.session import TrainingSession
from medquant.train.start import TrainRequest, start_training
from tests.search.sweep_files import Scripted, finished, run_here, run_scripted, write_sweep

SIX = "trials:\n- {name: a, quant.wbits: 8}\n- {name: b, quant.wbits: 4}\ngrid: {train.seed: [0, 1, 2]}\n"


def test_killed_between_any_two_events_every_trial_ends_once(tmp_path: Path) -> None:
    file, whole = write_sweep(tmp_path, SIX), tmp_path / "whole"
    every = Scripted(lambda trial: finished(), slots=2)
    history = run_scripted(file, whole, every)
    assert len(every.submitted) == len(history.ended) == 6
    lines = (whole / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 12
    for kept in range(len(lines) + 1):
        out = tmp_path / f"cut{kept}"
        out.mkdir()
        (out / "sweep.json").write_bytes((whole / "sweep.json").read_bytes())
        (out / "ledger.jsonl").write_bytes(b"".join(lines[:kept]) + (lines[kept][:9] if kept < len(lines) else b""))
        done = {json.loads(line)["id"] for line in lines[:kept] if json.loads(line)["event"] == "ended"}
        again = Scripted(lambda trial: finished(), slots=2)
        assert set(run_scripted(file, out, again).ended) == set(history.ended)
        assert {trial.id for trial in again.submitted} == set(history.ended) - done
        assert len(again.submitted) == 6 - len(done)


def test_a_failure_is_kept_and_the_rest_goes_on(tmp_path: Path) -> None:
    file, out = write_sweep(tmp_path, SIX), tmp_path / "out"
    executor = Scripted(lambda trial: Outcome("failed", error="no memory") if trial.name == "a seed=1" else finished())
    run_scripted(file, out, executor)
    rows = sweep_rows(out, list_sweep(file))
    assert count_by_status(rows) == {"finished": 5, "failed": 1}
    assert "no memory" in trial_table(rows).to_csv()
    again = Scripted(lambda trial: finished())
    run_scripted(file, out, again)
    assert again.submitted == []
    run_scripted(file, out, again, retry_failed=True)
    assert [trial.name for trial in again.submitted] == ["a seed=1"]
    assert count_by_status(sweep_rows(out, list_sweep(file))) == {"finished": 6}


def test_a_trial_whose_process_died_is_run_once_more_and_no_more(tmp_path: Path) -> None:
    file, out = write_sweep(tmp_path, SIX), tmp_path / "out"
    executor = Scripted(lambda trial: Outcome("lost") if trial.name == "b seed=0" else finished())
    history = run_scripted(file, out, executor)
    assert [trial.name for trial in executor.submitted].count("b seed=0") == 2
    assert len(executor.submitted) == 7
    assert [outcome.error[:26] for outcome in history.ended.values() if outcome.status == "failed"] == ["the process it ran in died"]


def test_another_sweep_in_the_folder_is_refused_with_what_differs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_scripted(write_sweep(tmp_path, SIX), out, Scripted(lambda trial: finished()))
    other = write_sweep(tmp_path, SIX.replace("[0, 1, 2]", "[0, 1]"))
    with pytest.raises(CheckpointError, match=r"holds another sweep \(grid: train.seed was \[0, 1, 2\], is \[0, 1\]\)"):
        run_scripted(other, out, Scripted(lambda trial: finished()))


def test_shards_fill_one_folder(tmp_path: Path) -> None:
    file, out = write_sweep(tmp_path, SIX), tmp_path / "out"
    executor = Scripted(lambda trial: finished())
    for number in (1, 2):
        run_scripted(file, out, executor, shard=(number, 2))
    assert len(executor.submitted) == len({trial.id for trial in executor.submitted}) == 6
    assert count_by_status(sweep_rows(out, list_sweep(file))) == {"finished": 6}


def test_what_shards_have_done_is_not_done_again_without_them(tmp_path: Path) -> None:
    file, out = write_sweep(tmp_path, SIX), tmp_path / "out"
    run_scripted(file, out, Scripted(lambda trial: finished()), shard=(1, 2))
    rest = Scripted(lambda trial: Outcome("failed", error="no memory"))
    run_scripted(file, out, rest)
    assert len(rest.submitted) == 3
    # What failed there and went well here has gone well, whichever ledger is read last.
    again = Scripted(lambda trial: finished())
    run_scripted(file, out, again, shard=(1, 3), retry_failed=True)
    assert len(again.submitted) == 1
    assert count_by_status(sweep_rows(out, list_sweep(file))) == {"finished": 4, "failed": 2}


def test_other_shards_that_run_now_are_left_alone(tmp_path: Path) -> None:
    file, out = write_sweep(tmp_path, SIX), tmp_path / "out"
    listed = list_sweep(file)
    running = Sweep(SweepRequest(file, out, (1, 2)), listed, lambda line: None, lambda: False)
    Sweep(SweepRequest(file, out, (2, 2)), listed, lambda line: None, lambda: False).close()
    with pytest.raises(UsageError, match=r"ledger-1-of-2\.jsonl: another process runs this sweep now"):
        Sweep(SweepRequest(file, out), listed, lambda line: None, lambda: False)
    running.close()
    Sweep(SweepRequest(file, out), listed, lambda line: None, lambda: False).close()


def test_seeds_are_joined(tmp_path: Path) -> None:
    file, out = write_sweep(tmp_path, SIX), tmp_path / "out"
    dice = {"a seed=0": 0.5, "a seed=1": 0.6, "a seed=2": 0.7}
    run_scripted(file, out, Scripted(lambda trial: finished(dice.get(trial.name, 0.25))))
    rows = sweep_rows(out, list_sweep(file))
    table = seed_table(rows)
    # Mean and sample standard deviation of 50, 60, 70; of 25, 25, 25.
    assert table is not None
    assert [row[:3] for row in table.rows] == [("a", "3", "60.00 ± 10.00"), ("b", "3", "25.00 ± 0.00")]
    write_tables(out, rows)
    assert len((out / "table.csv").read_text().splitlines()) == 7
    assert (out / "table.md").read_text().count("\n| ") == (2 + 2) + (2 + 6)


SHARED = "trials:\n- {name: a, quant.wbits: 8}\n- {name: b, quant.wbits: 4}\nshare_float: true\n"


def test_a_float_network_is_trained_once_and_before_those_that_take_it(tmp_path: Path) -> None:
    file, out = write_sweep(tmp_path, SHARED), tmp_path / "out"
    executor = Scripted(lambda trial: finished(), slots=3)

    def answer(trial: Trial) -> Outcome:
        if trial.is_float:
            best = out / "floats" / trial.id / "best"
            best.mkdir(parents=True)
            (best / "checkpoint.json").write_text("{}")
        return finished()

    executor.answer = answer
    run_scripted(file, out, executor)
    assert [trial.is_float for trial in executor.submitted] == [True, False, False]
    assert {trial.float_id for trial in executor.submitted[1:]} == {executor.submitted[0].id}


def test_a_shared_float_network_has_the_batches_its_trials_estimate_statistics_over(tmp_path: Path) -> None:
    rows = "trials:\n- {name: a, quant.wbits: 8}\n- {name: b, quant.wbits: 8, quant.calibration_batches: 1}\nshare_float: true\n"
    listed = list_sweep(write_sweep(tmp_path, rows))
    floats = [listed.listing.float_trial(trial) for _, trial in listed.trials]
    # The default is 8; medquant train takes twice as many for the statistics of warm start and twin.
    assert [made.config["quant"]["calibration_batches"] for made in floats] == [8, 1]
    assert floats[0].id != floats[1].id


def test_where_the_float_network_failed_so_do_those_that_take_it(tmp_path: Path) -> None:
    file, out = write_sweep(tmp_path, SHARED), tmp_path / "out"
    executor = Scripted(lambda trial: Outcome("failed", error="no memory"))
    run_scripted(file, out, executor)
    assert len(executor.submitted) == 1
    errors = [row.outcome.error for row in sweep_rows(out, list_sweep(file)) if row.outcome is not None]
    assert errors == ["its float network failed: no memory"] * 2


def train_alone(folder: Path, *overrides: str) -> dict[str, object]:
    """What ``medquant train`` makes of the configuration of a small sweep: dice and the digest of the weights."""
    settings = (
        "data.patch_size=[32,32]", "data.batch_size=2", "data.augmentation=none", "train.epochs=2", "train.warm_fraction=0.5",
        "train.steps_per_epoch=2", "train.threads=1", "train.device=cpu", "model.channels=2", "model.depth=2", "data.workers=0",
    )  # fmt: skip
    session = start_training(TrainRequest(overrides=(*settings, *overrides), out=folder), SilentReporter(), lambda: False)
    session.only_scores = True
    session.run()
    document = finish(session).document
    return {
        "dice": {name: summary["mean"] for name, summary in document["dice"].items()},
        "float_twin": {name: summary["mean"] for name, summary in document["float_twin"]["dice"].items()},
        "weights_sha256": json.loads((folder / "best" / "checkpoint.json").read_text())["sha256"],
    }


@pytest.mark.parametrize("share", ["false", "true"])
def test_a_swept_trial_is_the_run_medquant_train_makes(tmp_path: Path, share: str) -> None:
    file = write_sweep(
        tmp_path, f"trials:\n- {{name: a, quant.wbits: 8}}\n- {{name: b, quant.wbits: 4, train.seed: 5}}\nshare_float: {share}\n"
    )
    history = run_here(file, tmp_path / "out")
    for (_, trial), overrides in zip(list_sweep(file).trials, (["quant.wbits=8"], ["quant.wbits=4", "train.seed=5"]), strict=True):
        alone = train_alone(tmp_path / f"{trial.name}-alone", *overrides)
        assert history.ended[trial.id].status == "finished", history.ended[trial.id].error
        assert {key: history.ended[trial.id].document[key] for key in alone} == alone


def test_what_is_kept(tmp_path: Path) -> None:
    for keep, names in (("model", {"model.mq", "eval.json", "run.json", "metrics.jsonl"}), ("scores", None)):
        out = tmp_path / keep
        run_here(write_sweep(tmp_path, f"trials:\n- {{name: a/b, quant.wbits: 8}}\nkeep: {keep}\n"), out)
        found = list(out.glob("runs/*"))
        if names is None:
            assert found == []
        else:
            assert [folder.name[:4] for folder in found] == ["a_b-"]
            assert {file.name for file in found[0].iterdir()} == names
            assert json.loads((found[0] / "eval.json").read_text())["run"] == str(found[0])


def test_a_stopped_trial_is_saved_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    # Drawing takes longer than all the rest: a run folder of a float network is one nothing is drawn in.
    file = write_sweep(tmp_path, "trials:\n- {name: a, quant.wbits: 8}\nshare_float: true\n")
    with pytest.raises(InterruptedRunError):
        run_here(file, tmp_path / "stopped", lambda: any((tmp_path / "stopped").glob("floats/*/warm")))
    assert len(list((tmp_path / "stopped").glob("floats/*/last"))) == 1
    stopped = run_here(file, tmp_path / "stopped")
    straight = run_here(file, tmp_path / "straight")
    assert {trial: outcome.document["weights_sha256"] for trial, outcome in stopped.ended.items()} == {
        trial: outcome.document["weights_sha256"] for trial, outcome in straight.ended.items()
    }
    # Pruners are taught the epochs before the stop as well.
    assert {trial: outcome.document["curve"] for trial, outcome in stopped.ended.items()} == {
        trial: outcome.document["curve"] for trial, outcome in straight.ended.items()
    }


def test_patches_around_what_a_coarse_network_found_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two trials may differ in the margin alone, or in what their coarse networks found: their windows have no key.
    made = object()
    monkeypatch.setattr(TrainingSession, "_patches", lambda self: made)
    session = object.__new__(SweptSession)
    session.config = Config(data=DataConfig(region="coarse"))
    assert session._patches() is made
