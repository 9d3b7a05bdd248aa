"""Methods with state of their own: a run stopped in the middle of quantized training goes on to the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_sessions import after_steps, resume_small, start_small, trained_bits
from torch import Tensor

from medquant.errors import ConfigError, InterruptedRunError
from medquant.quant.methods.ternary import TernaryActivation, ternary_tanh
from medquant.train.checkpoint import load_checkpoint

RUNS = {
    "paper": ("quant.method=paper", "quant.options.activation_scale=auto", "train.warm_fraction=0", "train.float_twin=false"),
    "ternary": ("quant.method=ternary", "quant.wbits=2", "quant.abits=2", "train.warm_fraction=0", "train.float_twin=false"),
}
SHORT = ("train.epochs=2", "model.depth=2", "data.patch_size=[16,16]")
"""Three steps of four lie behind the stop: in the second of two epochs where nothing comes before quantized training."""


@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path: Path, name: str) -> None:
    """Expected: the checkpoints and records of an uninterrupted run of the same command."""
    whole = tmp_path / "whole"
    start_small(whole, *SHORT, *RUNS[name]).run()
    with pytest.raises(InterruptedRunError, match="stopped in stage quantized, epoch 2"):
        start_small(tmp_path / "cut", *SHORT, *RUNS[name], stop_requested=after_steps(3)).run()
    resume_small(tmp_path / "cut").run()
    found, expected = trained_bits(tmp_path / "cut"), trained_bits(whole)
    assert sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)) == []
    # Batch norm that is kept has the statistics of many batches, as the float twin's has.
    best = load_checkpoint(whole / "best")
    assert best.values["statistics_settled"] is True
    last = load_checkpoint(whole / "last").tensors
    statistics = [key for key in best.tensors if key.endswith("running_mean")]
    assert statistics
    assert all(not torch.equal(best.tensors[key], last[key]) for key in statistics)


def test_what_trains_nothing_learns_from_no_teacher(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"quant\.distillation is a part of training, and method uniform trains nothing"):
        start_small(tmp_path / "run", *SHORT, "quant.method=uniform", "quant.distillation=1.0")


def test_the_slope_of_the_ternary_tanh_is_annealed_by_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Expected: 3 to 8 in equal parts over the steps of quantized training, here four; not over the warm start's two."""
    slopes: list[float] = []
    forward = TernaryActivation.forward

    def watched(self: TernaryActivation, x: Tensor, exponent: int, bits: int, relu: bool) -> Tensor:
        if self.training:
            slopes.append(float(self.beta))
            assert torch.equal(forward(self, x, exponent, bits, relu), ternary_tanh(x, slopes[-1]))
        return forward(self, x, exponent, bits, relu)

    monkeypatch.setattr(TernaryActivation, "forward", watched)
    start_small(tmp_path / "run", *SHORT, "train.epochs=3", *RUNS["ternary"][:3], "train.float_twin=false").run()
    assert list(dict.fromkeys(slopes)) == [3.0, 4.25, 5.5, 6.75]
    saved = load_checkpoint(tmp_path / "run" / "last").tensors
    kept = {float(tensor) for name, tensor in saved.items() if name.endswith(".beta")}
    assert kept == {6.75}
