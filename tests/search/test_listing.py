"""Trials a file lists: counts by hand, ids that depend on values alone, mistakes all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from medquant.config.sweep_source import read_sweep
from medquant.errors import ConfigError
from medquant.search.sweep import list_sweep
from tests.search.sweep_files import write_sweep

ROWS = """
trials:
  - {name: a, quant.wbits: 8}
  - {name: b, quant.wbits: 4, quant.options.average_from: 0.5}
  - {name: c, quant.wbits: 2}
grid:
  train.lr: [1.0e-3, 2.0e-3]
  train.seed: [0, 1, 2]
"""


def test_rows_times_grid(tmp_path: Path) -> None:
    listed = list_sweep(write_sweep(tmp_path, ROWS))
    assert len(listed.trials) == 3 * 2 * 3
    assert [trial.name for _, trial in listed.trials[:4]] == [
        "a lr=0.001 seed=0", "a lr=0.001 seed=1", "a lr=0.001 seed=2", "a lr=0.002 seed=0"
    ]  # fmt: skip
    assert len({point.label for point, _ in listed.trials}) == 3 * 2
    _, trial = listed.trials[6]
    assert trial.config["quant"]["options"] == {"average_from": 0.5}
    assert trial.varied == {"quant.wbits": 4, "quant.options.average_from": 0.5, "train.lr": 0.001, "train.seed": 0}


def test_the_id_follows_values_not_their_order_nor_defaults_written_out(tmp_path: Path) -> None:
    one = write_sweep(tmp_path, "trials:\n- {name: x, quant.wbits: 4, train.lr: 1.0e-3}\n- {name: y, quant.wbits: 8}\n")
    first = [trial.id for _, trial in list_sweep(one).trials]
    two = write_sweep(
        tmp_path, "trials:\n- {name: z, train.lr: 0.001, quant.abits: 6, data.workers: 3, quant.wbits: 4}\n- {name: y, quant.wbits: 8}\n"
    )
    # quant.abits 6 is the default, data.workers no part of what is trained.
    assert [trial.id for _, trial in list_sweep(two).trials] == first
    assert len(set(first)) == 2
    other = write_sweep(
        tmp_path, "trials:\n- {name: x, quant.wbits: 4, train.lr: 1.1e-3}\n- {name: y, data.phantom_seed: 1, quant.wbits: 8}\n"
    )
    assert not set(first) & {trial.id for _, trial in list_sweep(other).trials}


def test_equal_trials_are_one(tmp_path: Path) -> None:
    listed = list_sweep(write_sweep(tmp_path, "trials:\n- {name: x, quant.wbits: 4}\n- {name: y, quant.abits: 6}\n"))
    assert [trial.name for _, trial in listed.trials] == ["x"]


def test_all_mistakes_of_a_file_at_once_with_their_places(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        "set:\n"
        "  train.lr: fast\n"  # 2
        "trials:\n"
        "  - {name: a, quant.wbits: 9}\n"  # 4
        "  - {name: a, quant.wbit: 4}\n"  # 5: name twice, unknown key
        "grid:\n"
        "  train.seed: [0, 0]\n"  # 7
        "  train.epochs: [0]\n"  # 8
        "sample:\n"
        "  trials: 3\n"
        "  space: {train.seed: [0, 1]}\n"  # 11: varied by the grid too
    )
    with pytest.raises(ConfigError) as caught:
        read_sweep(file)
    text = str(caught.value)
    assert caught.value.lines[0] == "7 mistakes in the configuration:"
    for place, words in (
        (2, "train.lr must be a number"), (4, "1 to 8, or 32"), (5, "unknown key 'quant.wbit'"), (5, "given twice"),
        (7, "holds a value twice"), (8, "at least 1"), (11, "varied by grid or trials as well"),
    ):  # fmt: skip
        assert any(f"bad.yaml:{place}:" in line and words in line for line in text.split("\n")), (place, words, text)


def test_mistakes_in_the_sweeps_own_keys(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        "keeep: run\nsample:\n  trials: 0\n  space:\n    train.lr: {low: 2.0, high: 1.0}\nprune: {pruner: mean}\ngrid: {train.seed: 3}\n"
    )
    with pytest.raises(ConfigError) as caught:
        read_sweep(file)
    lines = caught.value.lines
    assert lines[0] == "5 mistakes in the configuration:"
    for place, words in ((1, "'keep'"), (3, "at least 1"), (5, "low must be below high"), (6, "'median'"), (7, "must be a list")):
        assert any(f"bad.yaml:{place}:" in line and words in line for line in lines), (place, words, lines)


def test_what_only_a_method_or_network_knows_is_found_before_anything_is_trained(tmp_path: Path) -> None:
    text = """
trials:
  - {name: fine, quant.wbits: 4}
  - {name: unknown method, quant.method: fixed_pont}
  - {name: unknown network, model.name: unett}
  - {name: unknown option, quant.options.overflow: round}
  - {name: no such layer, quant.layer_bits: [nowhere=8/8]}
  - {name: patch too odd, model.depth: 6, data.patch_size: [40, 40]}
"""
    with pytest.raises(ConfigError) as caught:
        list_sweep(write_sweep(tmp_path, text))
    message = str(caught.value)
    for name in ("unknown method", "unknown network", "unknown option", "no such layer", "patch too odd"):
        assert f"trial '{name}'" in message
    assert "trial 'fine'" not in message


def test_what_goes_against_the_data_is_found_before_anything_is_trained(tmp_path: Path) -> None:
    text = "trials:\n- {name: a, train.loss: dice}\n- {name: b, eval.threshold: 0.9}\n- {name: c}\n"
    with pytest.raises(ConfigError) as caught:
        list_sweep(write_sweep(tmp_path, text))
    # The phantom has three classes.
    assert "trial 'a': train.loss dice is for two classes, found 3" in str(caught.value)
    assert "trial 'b': eval.threshold 0.9, eval.batch_statistics false: method fixed_point makes an integer program" in str(caught.value)
    assert "'c'" not in str(caught.value)


def test_paths_are_meant_from_the_sweep_file(tmp_path: Path) -> None:
    written = read_sweep(write_sweep(tmp_path, "trials:\n- {name: a, data.path: scans, data.cache: 'off'}\n"))
    row = dict((setting.key, setting.value) for setting in written.rows[0][1].settings)
    assert row == {"data.path": str(tmp_path / "scans"), "data.cache": "off"}


def test_shards_are_disjoint_and_together_the_whole(tmp_path: Path) -> None:
    listed = list_sweep(write_sweep(tmp_path, ROWS))
    shares = [[trial.id for trial in listed.of_shard((number, 4))] for number in (1, 2, 3, 4)]
    assert sorted(len(share) for share in shares) == [4, 4, 5, 5]
    assert sorted(id_ for share in shares for id_ in share) == sorted(trial.id for _, trial in listed.trials)


def test_trials_that_share_a_float_network_stay_in_one_shard(tmp_path: Path) -> None:
    listed = list_sweep(write_sweep(tmp_path, ROWS + "share_float: true\n"))
    # The three rows differ in bits alone: one float network for each of the 2 × 3 points of the grid.
    assert len({trial.float_id for _, trial in listed.trials}) == 6
    shares = [{trial.float_id for trial in listed.of_shard((number, 4))} for number in (1, 2, 3, 4)]
    assert sorted(len(share) for share in shares) == [1, 1, 2, 2]
    assert len(set().union(*shares)) == 6
