"""Methods with state of their own: a run stopped in the middle of quantized training goes on to the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_sessions import after_steps, resume_small, start_small, trained_bits

from medquant.errors import InterruptedRunError

RUNS = {
    "paper": ("quant.method=paper", "quant.options.activation_scale=auto", "train.warm_fraction=0", "train.float_twin=false"),
}
SHORT = ("train.epochs=2", "model.depth=2", "data.patch_size=[16,16]")
"""Three steps of four lie behind the stop: in the second of two epochs where nothing comes before quantized training."""


@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path: Path, name: str) -> None:
    """Expected: the checkpoints and records of an uninterrupted run of the same command."""
    start_small(tmp_path / "whole", *SHORT, *RUNS[name]).run()
    with pytest.raises(InterruptedRunError, match="stopped in stage quantized, epoch 2"):
        start_small(tmp_path / "cut", *SHORT, *RUNS[name], stop_requested=after_steps(3)).run()
    resume_small(tmp_path / "cut").run()
    found, expected = trained_bits(tmp_path / "cut"), trained_bits(tmp_path / "whole")
    assert sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)) == []
