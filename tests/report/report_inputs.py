"""Made-up runs for reports: documents as medquant writes them, with figures that are easy to follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from medquant.report.comparison import group_runs
from medquant.report.record import Prediction, ReportInput, RunDetails, RunRecord, ShownCase

CASES = ("first", "second", "third", "fourth", "fifth", "sixth")


def evaluation(
    bits: tuple[int, int], dice: float, file_bytes: int | None, cases: tuple[str, ...] = CASES, **network: object
) -> dict[str, Any]:
    """An ``eval.json``: the case at place n has a Dice 0.01 * n above ``dice``."""
    memory = {"parameter_bytes": 1024 * bits[0], "paper_bytes": 1000, "float_bytes": 32768, "activation_peak_bytes": 2048}
    layer = {"name": "enc1.conv1", "weight_bytes": 100, "bias_bytes": 20, "exponent_bytes": 3, "format_bytes": 3}
    return {
        "bits": {"weights": bits[0], "activations": bits[1], "method": "fixed_point"},
        "data": {"content_sha256": "abc", "name": "made_up"},
        "split": {"cases": list(cases), "part": "test", "rule": "by hand"},
        "network": {"name": "unet", "channels": 2, "depth": 3, "dimensions": 2, "layer_bits": [], **network},
        "cases": [{"id": case, "dice": {"lesion": dice + 0.01 * place}} for place, case in enumerate(cases)],
        "dice": {"lesion": {"mean": dice, "interval_95": [dice - 0.02, dice + 0.02]}},
        "metrics": {},
        "baseline": {"all_lesion": {"lesion": 0.25}, "all_background": {"lesion": 0.0}},
        "float_twin": None if bits == (32, 32) else {"dice": {"lesion": {"mean": dice + 0.01}}},
        "memory": {
            **memory,
            "model_file_bytes": file_bytes,
            "process_peak_bytes": 5_000_000,
            "input_shape": [1, 1, 64, 48],
            "layers": [layer],
        },
        "seconds_per_case": 0.1,
    }


def record(name: str, document: dict[str, Any], command: str = "medquant train") -> RunRecord:
    """A run with two epochs of training."""
    run = {
        "command": command,
        "seed": 0,
        "started": "2026-01-01T00:00:00Z",
        "finished": "2026-01-01T01:00:00Z",
        "versions": {"medquant": "0.1.0", "torch": "2.13.0"},
        "git": {"commit": "0123456789abcdef", "modified": True},
        "split": {"rule": "by hand", "train": ["t1"], "validation": ["v1"], "test": list(CASES)},
        "outputs": {"model.mq": {"sha256": "f" * 64}},
    }
    epochs = tuple({"stage": "quantized", "epoch": n, "train_loss": 0.5, "val_dice": {"lesion": 0.8}, "lr": 0.1} for n in range(2))
    return RunRecord(name, run, document, epochs, {"card": {"intended_use": "For tests.", "licence": None}, "train": {"seed": 0}})


def layers(name: str = "enc1.conv1") -> dict[str, Any]:
    """A ``layers.json`` of one layer."""
    counts = {"limit": 0.5, "before": [0, 3, 5, 1], "after": [0, 0, 9, 0], "before_name": "float twin"}
    row = {"name": name, "weight_bits": 4, "weight_exponents": [5, 6], "rounding_error": 0.0123, "twin_error": 0.5, "weight_zero": 0.25}
    return {
        "schema": 1,
        "layers": [{**row, "weight_saturated": 0.03125, "activation_bits": 6, "histogram": counts}],
        "activation_images": 4,
    }


def shown_case(name: str, labels: tuple[str, ...]) -> ShownCase:
    """A slice of 8 × 6 pixels: the truth is a block of 3 × 2, every prediction one column more."""
    image = np.arange(48.0).reshape(8, 6)
    truth, mask = np.zeros((8, 6), bool), np.zeros((8, 6), bool)
    truth[2:5, 2:4], mask[2:6, 2:4] = True, True
    return ShownCase(name, "worst", 1, 1, "lesion", image, truth, 1.0, tuple(Prediction(label, mask, 0.75) for label in labels))


def asked(**changes: Any) -> ReportInput:
    """A float run and two seeds at W4A6, with layers and one case."""
    records = (
        record("float", evaluation((32, 32), 0.9, 40_000)),
        record("w4a6-s0", evaluation((4, 6), 0.86, 8000)),
        record("w4a6-s1", evaluation((4, 6), 0.88, 8100)),
    )
    groups = tuple(group_runs([each.evaluation for each in records]))
    details = {"W4A6": RunDetails(records[1], layers()), "float": RunDetails(records[0], layers_missing="no checkpoint")}
    made = ReportInput("A title", records, groups, details, (shown_case("first", ("float", "W4A6")),))
    return replace(made, **changes)
