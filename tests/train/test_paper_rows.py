"""Every row of the 2019 paper's table, with rectifier and with ternary tanh, trains and is scored in the paper's way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from medquant.data.datasets.isbi_em import IMAGE_FILE, LABEL_FILE
from medquant.errors import ConfigError
from medquant.train.checkpoint import load_checkpoint
from tests.small_sessions import small_world, start_small, train_small

SETTING = (
    "data.dataset=isbi_em",
    "data.normalisation=range",
    "data.window=[0,255]",
    "data.augmentation=none",
    "model.block=conv_act_norm",
    "model.channels=4",
    "train.warm_fraction=0",
    "train.epochs=2",
    "train.steps_per_epoch=1",
    "train.quant_lr=1e-3",
    "train.weight_decay=0",
    "train.clip_norm=0",
    "train.loss=bce_dice",
    "train.schedule=paper_steps",
    "train.select=last",
    "train.float_twin=false",
    "eval.threshold=0.999",
    "eval.protocol=paper",
    "eval.batch_statistics=true",
)

FLOAT_EDGES = "quant.layer_bits=['enc1.conv2=32/']"

ROWS: dict[str, tuple[str, ...]] = {
    "full precision": ("quant.wbits=32", "quant.abits=32"),
    "Q8.8 Q8.8": (
        "quant.method=paper", "quant.wbits=8", "quant.abits=8",
        "quant.options.weight_integer_bits=8", "quant.options.activation_fraction_bits=8",
    ),
    "Q8.0 Q0.8": ("quant.method=paper", "quant.wbits=8", "quant.abits=8"),
    "Q6.0 Q0.4": ("quant.method=paper", "quant.wbits=4", "quant.abits=6"),
    "Q4.0 Q0.2": ("quant.method=paper", "quant.wbits=2", "quant.abits=4"),
    "BNN": (
        "quant.method=binary", "quant.wbits=1", "quant.abits=1", "quant.edge_bits=32", "quant.options.init=uniform",
        "quant.options.W_LR_scale=1.0", "quant.options.edges=float", "quant.layer_bits=['enc1.conv2=32/','dec?.up=/32']",
    ),
    "Ternary": ("quant.method=ternary", "quant.wbits=2", "quant.abits=32", "quant.options.init=uniform", FLOAT_EDGES),
}  # fmt: skip


@pytest.fixture(scope="module")
def em(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten slices of 32×32, made up, half of them cell."""
    folder = tmp_path_factory.mktemp("em")
    random = np.random.default_rng(0)
    mask = np.zeros((10, 32, 32), dtype=np.uint8)
    mask[:, :, 16:] = 255
    tifffile.imwrite(folder / IMAGE_FILE, (mask // 2 + random.integers(0, 60, mask.shape)).astype(np.uint8))
    tifffile.imwrite(folder / LABEL_FILE, mask)
    return folder


# One of the fourteen stands for all of them by default, beside the one whose slopes are looked at below.
_QUICK = [("BNN", "relu")]
_ALL = [(row, activation) for row in ROWS for activation in ("relu", "ternary_tanh")]


@pytest.mark.parametrize(("row", "activation"), [case if case in _QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in _ALL])
def test_a_row_trains_and_is_scored(row: str, activation: str, em: Path, tmp_path: Path) -> None:
    with small_world():
        finished = train_small(tmp_path / "run", *SETTING, *ROWS[row], f"data.path={em}", f"model.activation={activation}")
    document = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert document["scoring"] == {"threshold": 0.999, "protocol": "paper", "batch_statistics": True, "hard_ternary": False}
    assert set(document["at_half"]["dice"]) == {"cell", "membrane"}
    assert len(document["cases"]) == 2  # of 10 slices 2 are tested
    assert all(score.dice["cell"] >= 0.0 for score in finished.evaluation.scores)
    assert finished.document["agreement"] is None


def test_slopes_rise_over_the_epochs_and_the_last_one_is_scored(em: Path, tmp_path: Path) -> None:
    with small_world():
        train_small(tmp_path / "run", *SETTING, *ROWS["Q6.0 Q0.4"], f"data.path={em}", "model.activation=ternary_tanh", "model.depth=2")
    kept = load_checkpoint(tmp_path / "run" / "best").tensors
    slopes = {float(tensor) for name, tensor in kept.items() if "float_tensors" in name}
    assert slopes == {8.0}  # of the second of two epochs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("model.activation=ternary_tanh", "eval.threshold=0.5", "eval.batch_statistics=false"),
            "method fixed_point makes integer programs",
        ),
        (("eval.batch_statistics=false",), "decides by the sign of its output"),
        (("eval.threshold=0.5",), "has no batch norm"),
        (
            ("data.path=null", "data.dataset=phantom", "data.normalisation=zscore_slice", "data.window=null", "quant.method=paper"),
            "two classes",
        ),
        (("model.activation=ternary_tanh", "model.block=conv_norm_act"), "needs model.block conv_act_norm"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: tuple[str, ...], message: str, em: Path, tmp_path: Path) -> None:
    with small_world(), pytest.raises(ConfigError, match=message):
        start_small(tmp_path / "run", *SETTING, f"data.path={em}", *settings)
    assert not (tmp_path / "run").exists()
