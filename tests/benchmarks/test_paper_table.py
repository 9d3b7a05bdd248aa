"""The paper's table from made ledgers and run folders; sizes by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.paper_table import classify, paper_table, read_results

# The paper's network: 4,837,249 parameters.
MEMORY = {"float_bytes": 4 * 4837249, "parameter_bytes": 3 * 2**20}


def _bits(weights: int, activations: int, method: str = "paper", **options: object) -> dict[str, object]:
    return {"weights": weights, "activations": activations, "method": method, "options": options}


def _event(number: int, name: str, bits: dict[str, object], dice: float) -> str:
    document = {"bits": bits, "dice": {"cell": dice, "membrane": 0.1}, "memory": MEMORY}
    return json.dumps({"event": "ended", "id": str(number), "name": name, "outcome": {"status": "finished", "document": document}})


def test_rows_are_known_by_their_bits() -> None:
    assert classify(_bits(32, 32, "fixed_point")) == ("full precision", (32, 32))
    assert classify(_bits(8, 8, weight_integer_bits=8, activation_fraction_bits=8)) == ("Q8.8 Q8.8", (16, 16))
    assert classify(_bits(8, 8)) == ("Q8.0 Q0.8", (8, 8))
    assert classify(_bits(4, 6)) == ("Q6.0 Q0.4", (4, 6))
    assert classify(_bits(1, 1, "binary")) == ("BNN", (1, 1))
    assert classify(_bits(2, 32, "ternary")) == ("Ternary", (2, 32))
    assert classify(_bits(4, 6, "fixed_point")) == ("W4A6", (4, 6))


def test_a_sweeps_ledger_becomes_the_papers_table(tmp_path: Path) -> None:
    (tmp_path / "ledger-1-of-2.jsonl").write_text(
        "\n".join(
            [
                _event(1, "full precision activation=relu seed=0", _bits(32, 32), 0.94),
                _event(2, "full precision activation=ternary_tanh seed=0", _bits(32, 32), 0.90),
                _event(3, "Q6.0 Q0.4 activation=relu seed=0", _bits(4, 6), 0.92),
                '{"event": "ended", "id": "9", "na',
            ]
        )
    )
    (tmp_path / "ledger-2-of-2.jsonl").write_text(_event(4, "Q6.0 Q0.4 activation=relu seed=1", _bits(4, 6), 0.90) + "\n")
    table = paper_table(read_results(tmp_path, None), 2.21)
    # 18.45 and 2.31 MiB are the paper's sizes; 94 - (92 + 90) / 2 = 3 points, deviation of 92 and 90 sqrt 2
    assert table.rows == (
        ("full precision", "32/32", "18.45", "3.00 MiB", "94.00 (n=1)", "+0.00", "90.00 (n=1)", "+0.00", ""),
        ("Q6.0 Q0.4", "4/6", "2.31", "3.00 MiB", "91.00 ± 1.41 (n=2)", "+3.00", "–", "–", "2.21"),
    )


@pytest.mark.parametrize("name", [None, "membrane"])
def test_run_folders_are_read_too(name: str | None, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    document = {
        "bits": _bits(32, 32),
        "network": {"activation": "ternary_tanh"},
        "dice": {"cell": {"mean": 0.5}, "membrane": {"mean": 0.25}},
        "memory": MEMORY,
        "at_half": {"dice": {"cell": {"mean": 0.75}}},
    }
    (tmp_path / "a" / "eval.json").write_text(json.dumps(document))
    (found,) = read_results(tmp_path, name)
    assert (found.activation, found.dice) == ("ternary_tanh", 0.5 if name is None else 0.25)
    (half,) = read_results(tmp_path, "cell", at_half=True)
    assert half.dice == 0.75
