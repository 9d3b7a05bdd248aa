"""A whole search on the small phantom: what it leaves, what it counts, that it goes on, what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_sessions
from small_sessions import SMALL

from medquant.config.load import load_config
from medquant.errors import CheckpointError, ConfigError, InterruptedRunError, QualityGateError, UsageError
from medquant.search import bit_search
from medquant.search.bit_search import run_search
from medquant.search.request import SearchRequest
from medquant.search.result import SearchResult
from medquant.search.sensitivity import SensitivityFile
from medquant.train import finish as finish_module
from medquant.train.planning import PlanRequest, make_plan
from medquant.train.reporting import SilentReporter

EFFORT = {"images": 2, "vectors": 3, "weight_choices": (2, 4, 8), "activation_choices": (2, 8)}
BUDGET = 900
PEAK = 29_000


@pytest.fixture(scope="module", autouse=True)
def small_world() -> Iterator[pytest.MonkeyPatch]:
    with small_sessions.small_world() as patch:
        patch.setattr(finish_module, "draw_pictures", lambda *_: None)
        yield patch


def request(out: Path, *overrides: str, resume: bool = False, source: Path | None = None, **given: object) -> SearchRequest:
    recipe = () if resume else (*SMALL, *overrides)
    return SearchRequest(given if resume else {**EFFORT, **given}, out, overrides=recipe, resume=resume, source=source)


def search(*args: object, **given: object) -> SearchResult:
    return run_search(request(*args, **given), SilentReporter(), lambda: False)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """Both budgets, both sensitivities; not to be changed."""
    out = tmp_path_factory.mktemp("search") / "out"
    return search(out, budget=BUDGET, activation_budget=PEAK, sensitivity="both")


@pytest.mark.slow
def test_every_plan_fits_by_the_ledger_of_its_trained_file(searched: SearchResult) -> None:
    assert any(each.candidate.searched for each in searched.candidates)
    for each in searched.candidates:
        memory = each.evaluations[0]["memory"]
        assert memory["parameter_bytes"] == each.candidate.parameter_bytes <= BUDGET
        assert memory["activation_peak_bytes"] == each.candidate.activation_peak_bytes <= PEAK


@pytest.mark.slow
def test_uniform_plans_stand_beside_it(searched: SearchResult) -> None:
    uniform = [each.candidate for each in searched.candidates if not each.candidate.searched]
    widths = set(uniform[0].choice.weights.values())
    assert uniform[0].label == f"uniform W{min(widths)}"
    assert len(widths) == 1
    assert len(searched.comparisons) == len(uniform)
    assert "beat" in searched.sentences[-1]


@pytest.mark.slow
def test_the_folder_holds_what_is_promised(searched: SearchResult) -> None:
    out = searched.search.out
    document = json.loads((out / "search.json").read_text())
    assert document["schema"] == 1
    assert {each["slug"] for each in document["plans"]} == {each.candidate.slug for each in searched.candidates}
    assert len((out / "table.csv").read_text().splitlines()) == 1 + len(searched.candidates) + 1
    layers = document["sensitivity"]["2"]["weights"]
    assert set(layers) == set(document["plans"][0]["weight_bits"]) == set(document["sensitivity"]["2"]["hessian"])
    for name in ("best", "uniform"):
        config = load_config(out / f"{name}.yaml")
        chosen = searched.best if name == "best" else searched.best_uniform
        assert config.model.channels == 2
        planned = make_plan(PlanRequest(config_file=out / f"{name}.yaml"))
        assert planned.ledger.parameter_bytes == chosen.candidate.parameter_bytes
        assert {layer.name: layer.weight_bits for layer in planned.plan.layers if layer.weights} == dict(chosen.candidate.choice.weights)


@pytest.mark.slow
def test_the_test_part_has_no_say(searched: SearchResult) -> None:
    validation = max(each.mean_validation for each in searched.candidates)
    assert searched.best.mean_validation == validation
    measured = SensitivityFile(searched.search.out / "sensitivity.json").entries
    assert len(measured) == 1


@pytest.mark.slow
def test_going_on_trains_and_measures_nothing_again(searched: SearchResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "copy"
    shutil.copytree(searched.search.out, out)

    def refuse(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("medquant.search.sensitivity.judge", refuse)
    monkeypatch.setattr("medquant.search.sensitivity.trace_sample", refuse)
    again = search(out, resume=True)
    assert again.trainings == 0
    assert again.sentences == searched.sentences
    smaller = search(out, resume=True, budget=700, sensitivity="hessian")
    assert all(each.candidate.parameter_bytes <= 700 for each in smaller.candidates)
    assert {path.name for path in (out / "searches").iterdir()} == {"900B-both.json", "700B-hessian.json"}


@pytest.mark.slow
def test_stopped_anywhere_it_comes_to_the_same(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole", budget=BUDGET, images=1, vectors=2, weight_choices=(2, 4), activation_choices=(8,))
    out, stops = tmp_path / "stopped", 0
    first = True
    while True:
        asked = request(out, budget=BUDGET, images=1, vectors=2, weight_choices=(2, 4), activation_choices=(8,))
        try:
            found = run_search(asked if first else request(out, resume=True), SilentReporter(), small_sessions.after_steps(7))
            break
        except InterruptedRunError:
            first, stops = False, stops + 1
    assert stops > 3
    assert found.sentences == whole.sentences
    assert [each.validation for each in found.candidates] == [each.validation for each in whole.candidates]


@pytest.mark.slow
def test_a_given_float_network_is_used_and_another_recipe_refused(searched: SearchResult, tmp_path: Path) -> None:
    source = searched.search.out / "runs" / "c2-float-s0"
    given = {"budget": BUDGET, "activation_budget": PEAK, **EFFORT}
    found = run_search(SearchRequest(given, tmp_path / "from", source=source), SilentReporter(), lambda: False)
    assert found.best_uniform.validation == searched.best_uniform.validation
    assert not (tmp_path / "from" / "runs" / "c2-float-s0").exists()
    with pytest.raises(ConfigError, match=r"train\.epochs"):
        run_search(SearchRequest(given, tmp_path / "other", overrides=("train.epochs=4",), source=source), SilentReporter(), lambda: False)
    with pytest.raises(UsageError, match="--seeds"):
        run_search(SearchRequest({**given, "seeds": (1, 2)}, tmp_path / "other", source=source), SilentReporter(), lambda: False)
    assert not (tmp_path / "other").exists()


def test_what_cannot_be_met_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    out = tmp_path / "none"
    for given, match in (
        ({}, "either --budget or --max-dice-drop; found none"),
        ({"budget": 10_000, "max_dice_drop": 1.0}, "found both"),
        ({"budget": 523}, r"below the smallest plan, 524 bytes"),
        ({"budget": 10_000, "activation_budget": 100}, r"below the smallest peak, 28,800 bytes"),
        ({"budget": 10_000, "sensitivity": "guess"}, "guess"),
        ({"budget": 10_000, "weight_choices": (0, 9)}, "--wbits-choices"),
        ({"budget": 10_000, "seeds": (1, 1)}, "--seeds"),
    ):
        with pytest.raises(UsageError, match=match):
            search(out, **given)
    with pytest.raises(ConfigError, match="binary has weights of 1"):
        search(out, "quant.method=binary", budget=10_000)
    assert not out.exists()


@pytest.mark.slow
def test_another_search_in_the_same_folder_is_refused(searched: SearchResult, tmp_path: Path) -> None:
    out = searched.search.out
    with pytest.raises(UsageError, match="exists already"):
        search(out, budget=BUDGET)
    other = SearchRequest({"budget": BUDGET}, out, overrides=(*SMALL, "train.lr=0.001"), resume=True)
    with pytest.raises(UsageError, match=r"another search \(train\.lr differ\)"):
        run_search(other, SilentReporter(), lambda: False)
    with pytest.raises(UsageError, match=r"request\.json is missing"):
        search(tmp_path, resume=True)
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    (copy / "sensitivity.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"sensitivity\.json"):
        search(copy, resume=True)


def test_another_float_network_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    stored = {"schema": 1, "settings": {"budget": 10_000}, "source": None, "config": {}, "edges_open": True, "data_sha256": "0"}
    (tmp_path / "request.json").write_text(json.dumps(stored))
    with pytest.raises(UsageError, match="started from float networks of its own"):
        search(tmp_path, resume=True, source=tmp_path / "run")


def test_the_users_own_rules_and_edges_are_left_alone(tmp_path: Path) -> None:
    spaces = []

    def stop(found: object, *_: object) -> None:
        spaces.append(found)
        raise InterruptedRunError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bit_search, "keep_request", stop)
        patch.setattr(bit_search, "_given", lambda _, spaces: stop(spaces))
        for overrides in ((), ("quant.edge_bits=8",), ("quant.layer_bits=['dec*=8/']",)):
            with pytest.raises(InterruptedRunError):
                search(tmp_path / "out", *overrides, budget=10_000)
    free, edges, ruled = (each[2].weight_layers for each in spaces)
    assert set(free) - set(edges) == {"enc1.conv1", "head"}
    assert set(free) - set(ruled) == {"dec2.conv1", "dec2.conv2", "dec1.conv1", "dec1.conv2"}


@pytest.mark.slow
def test_the_smallest_plan_within_a_drop(tmp_path: Path) -> None:
    found = search(tmp_path / "drop", max_dice_drop=100.0, rounds=2, images=1, vectors=2, weight_choices=(2, 8), activation_choices=(8,))
    # Everything holds at 100 points: the first guess is the smallest plan, and there is nothing below it.
    assert len(found.tried) == 1
    assert found.tried[0]["parameter_bytes"] == min(each.candidate.parameter_bytes for each in found.candidates)


@pytest.mark.slow
def test_no_plan_within_a_drop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bit_search, "noted_validation", lambda run: 0.9 if "float" in run.path.name else 0.5)
    with pytest.raises(QualityGateError, match=r"within 0\.0 points"):
        search(tmp_path / "never", max_dice_drop=0.0, rounds=2, images=1, vectors=2, weight_choices=(2, 8), activation_choices=(8,))
