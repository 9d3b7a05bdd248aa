"""Every file in configs/ is a configuration, or a sweep whose every trial is one; the trials of the paper's tables counted by hand."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medquant.config.document import ListValue, MappingValue, Value, parse_document
from medquant.config.load import load_config
from medquant.data.datasets import isbi_em, isbi_em_paper, pancreas_ct, spinal_gm, spinal_gm_paper

ROOT = Path(__file__).parents[2] / "configs"
PAPER = ["em", "gm", "nih"]
CONFIGURATIONS = sorted(ROOT.glob("*.yaml"))
# 7 rows, 2 activations, 3 seeds; and 6 rows, 3 seeds.
DATASETS = {"em": isbi_em_paper.INFO, "em_ours": isbi_em.INFO, "gm": spinal_gm_paper.INFO, "gm_ours": spinal_gm.INFO}
DATASETS |= {"nih": pancreas_ct.INFO, "nih_ours": pancreas_ct.INFO}
TRIALS = {**{f"{name}.yaml": 42 for name in PAPER}, **{f"{name}_ours.yaml": 18 for name in PAPER}}


def _plain(value: Value) -> Any:
    if isinstance(value, MappingValue):
        return {entry.key: _plain(entry.value) for entry in value.entries}
    return [_plain(item) for item in value.items] if isinstance(value, ListValue) else value


def _points(file: Path) -> Iterator[tuple[Path | None, dict[str, Any]]]:
    """Base file and settings of every row at every point of the grid."""
    found = _plain(parse_document(file.read_text()))
    base = None if "config" not in found else file.parent / found["config"]
    for row, *values in itertools.product(found["trials"], *found["grid"].values()):
        settings = {key: value for key, value in row.items() if key != "name"}
        yield base, {**found["set"], **settings, **dict(zip(found["grid"], values, strict=True))}


@pytest.mark.parametrize("file", CONFIGURATIONS, ids=lambda file: file.name)
def test_a_configuration_loads(file: Path) -> None:
    assert load_config(file).model.name == "unet"


def test_the_papers_tables_are_all_there() -> None:
    assert {file.name for file in (ROOT / "paper").iterdir()} == set(TRIALS)


@pytest.mark.parametrize("name", list(TRIALS))
def test_every_trial_of_a_paper_table_is_a_configuration(name: str) -> None:
    # As a run puts it together: over what its data set asks for.
    recipe = DATASETS[name.removesuffix(".yaml")].recipe
    configs = [load_config(base, recipe, options=settings) for base, settings in _points(ROOT / "paper" / name)]
    assert len(configs) == TRIALS[name]
    assert len({config.model_dump_json() for config in configs}) == TRIALS[name]
    assert {(config.model.channels, config.model.depth) for config in configs} == {(64, 4)}
    ours = name.endswith("_ours.yaml")
    assert {config.eval.protocol for config in configs} == {"ours" if ours else "paper"}
    assert {config.train.warm_fraction for config in configs} == {0.6 if ours else 0.0}


@pytest.mark.skipif(importlib.util.find_spec("medquant.config.sweep_source") is None, reason="there is no medquant sweep")
@pytest.mark.parametrize("name", list(TRIALS))
def test_medquant_sweep_reads_it(name: str) -> None:
    read_sweep = importlib.import_module("medquant.config.sweep_source").read_sweep
    assert len(list(read_sweep(ROOT / "paper" / name).points())) == TRIALS[name]
