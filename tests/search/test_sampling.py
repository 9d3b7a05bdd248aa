"""Samplers and pruners: what is asked does not depend on kills in between; bounds and counts by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from medquant.config.sweep import Prune, Sample
from medquant.errors import UsageError
from medquant.search.executors.base import Places, Watch
from medquant.search.ledger import read_ledgers
from medquant.search.run_trial import run_folder_name
from medquant.search.sampling import Study
from medquant.search.sweep import Sweep, SweepRequest, list_sweep
from medquant.search.table import sweep_rows
from medquant.search.trials import Outcome, Trial
from tests.search.sweep_files import Scripted, finished, run_scripted, write_sweep

SPACE = {
    "train.lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "quant.wbits": [2, 4, 8],
    "model.channels": {"low": 2, "high": 6, "int": True},
}


def quality(parameters: dict[str, object]) -> Outcome:
    return finished(float(str(parameters["model.channels"])) / 10)


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "nsga2", "gp"])
def test_a_study_taught_again_asks_what_it_would_have_asked(sampler: str) -> None:
    sample = Sample.model_validate({"sampler": sampler, "trials": 14, "seed": 3, "space": SPACE})
    straight, answers = Study("s", sample, None), []
    for _ in range(14):
        number, parameters = straight.ask()
        answers.append(parameters)
        straight.tell(number, quality(parameters))
    assert len({json.dumps(each, sort_keys=True) for each in answers}) > 10
    for each in answers:
        assert 1e-4 <= each["train.lr"] <= 1e-2
        assert each["quant.wbits"] in (2, 4, 8)
        assert each["model.channels"] in (2, 3, 4, 5, 6)
    again = Study("s", sample, None)
    for known in answers[:12]:
        number, parameters = again.ask(known)
        assert parameters == known
        again.tell(number, quality(parameters))
    for expected in answers[12:]:
        number, parameters = again.ask()
        assert parameters == expected
        again.tell(number, quality(parameters))


def test_the_median_pruner_ends_what_lies_below_the_median() -> None:
    study = Study("s", None, Prune(warmup_trials=2))
    for value in (0.5, 0.6):
        number, _ = study.ask()
        assert not study.watch(number, 0, value)
        study.tell(number, Outcome("finished", {"validation_dice": value, "curve": [[0, value]]}))
    # The median of 0.5 and 0.6 is 0.55.
    assert study.watch(study.ask()[0], 0, 0.54)
    assert not study.watch(study.ask()[0], 0, 0.56)


SAMPLED = """
trials:
- {name: a, quant.method: fixed_point}
- {name: b, quant.method: learned_step}
sample:
  sampler: random
  trials: 3
  space:
    train.lr: {low: 1.0e-4, high: 1.0e-2, log: true}
    quant.wbits: [2, 4]
"""


def test_each_row_has_a_study_of_its_own_and_kills_change_nothing(tmp_path: Path) -> None:
    file, whole = write_sweep(tmp_path, SAMPLED), tmp_path / "whole"
    run_scripted(file, whole, Scripted(lambda trial: finished()))
    history = read_ledgers(whole)
    assert [(asked.group, asked.number) for asked in history.asked] == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("b", 2)]
    # Both start from the same seed: methods are compared at the same points.
    assert [asked.parameters for asked in history.asked[:3]] == [asked.parameters for asked in history.asked[3:]]
    lines = (whole / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    for kept in range(1, len(lines), 5):
        out = tmp_path / f"cut{kept}"
        out.mkdir()
        (out / "sweep.json").write_bytes((whole / "sweep.json").read_bytes())
        (out / "ledger.jsonl").write_bytes(b"".join(lines[:kept]))
        again = run_scripted(file, out, Scripted(lambda trial: finished()))
        assert [asked.trial_id for asked in again.asked] == [asked.trial_id for asked in history.asked]
        assert set(again.ended) == set(history.ended)


def test_shards_share_the_trials_of_a_study(tmp_path: Path) -> None:
    file, out = write_sweep(tmp_path, SAMPLED), tmp_path / "out"
    for number in (1, 2):
        run_scripted(file, out, Scripted(lambda trial: finished()), shard=(number, 2))
    # 3 trials: 2 for the first shard, 1 for the second, of each of two studies.
    assert len((out / "ledger-1-of-2.jsonl").read_text().splitlines()) == 3 * 2 * 2
    assert len((out / "ledger-2-of-2.jsonl").read_text().splitlines()) == 3 * 1 * 2
    assert len(sweep_rows(out, list_sweep(file))) == 6


def test_shards_that_come_to_the_same_values_share_no_folder(tmp_path: Path) -> None:
    # One value to choose: all shards choose it.
    text = "sample: {sampler: random, trials: 2, space: {quant.wbits: [4]}}\nkeep: run\nshare_float: true\n"
    file, out, places, folders = write_sweep(tmp_path, text), tmp_path / "out", [], []
    for number in (1, 2):
        executor = Scripted(lambda trial: finished())

        def make(place: Places, watch: Watch, stop: Callable[[], bool], made: Scripted = executor) -> Scripted:
            places.append(place.floats)
            return made(place, watch, stop)

        def answer(trial: Trial, shard: int = number) -> Outcome:
            if trial.is_float:
                best = out / places[-1] / trial.id / "best"
                best.mkdir(parents=True)
                (best / "checkpoint.json").write_text("{}")
            else:
                folders.append(run_folder_name(trial))
            return finished()

        executor.answer = answer
        sweep = Sweep(SweepRequest(file, out, (number, 2)), list_sweep(file), lambda line: None, lambda: False)
        sweep.run(make)
        sweep.close()
    assert places == ["floats-1-of-2", "floats-2-of-2"]
    assert len(folders) == len(set(folders)) == 2


def test_samplers_are_not_asked_by_another_number_of_shards(tmp_path: Path) -> None:
    file, out = write_sweep(tmp_path, SAMPLED), tmp_path / "out"
    run_scripted(file, out, Scripted(lambda trial: finished()), shard=(1, 2))
    with pytest.raises(UsageError, match="samplers are asked by another number of shards"):
        run_scripted(file, out, Scripted(lambda trial: finished()))


def test_values_that_do_not_go_together_fail_and_the_study_goes_on(tmp_path: Path) -> None:
    space = "    data.fold: {low: 0, high: 7, int: true}\n    train.seed: {low: 0, high: 999999, int: true}\n"
    text = "sample:\n  sampler: random\n  trials: 8\n  space:\n" + space
    file = write_sweep(tmp_path, text)
    executor = Scripted(lambda trial: finished())
    history = run_scripted(file, tmp_path / "out", executor)
    # There are 4 folds, 0 to 3.
    assert all(trial.config["data"]["fold"] < 4 for trial in executor.submitted)
    failed = [outcome.error for outcome in history.ended.values() if outcome.status == "failed"]
    assert len(failed) > 0
    assert all("data.fold must be below data.folds 4" in error for error in failed)
    assert len(failed) + len({trial.id for trial in executor.submitted}) == len(history.ended) == 8


def test_a_pruned_trial_is_ended_and_kept_as_such(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, "grid: {train.seed: [0, 1, 2]}\nprune: {pruner: median, warmup_trials: 1}\n")
    executor = Scripted(lambda trial: finished())

    def answer(trial: Trial) -> Outcome:
        value = {0: 0.5, 1: 0.4, 2: 0.6}[trial.config["train"]["seed"]]
        pruned = executor.watch(trial.id, 0, value)
        return Outcome("pruned", {"curve": [[0, value]]}) if pruned else finished(value)

    executor.answer = answer
    history = run_scripted(file, tmp_path / "out", executor)
    assert [outcome.status for outcome in history.ended.values()] == ["finished", "pruned", "finished"]
