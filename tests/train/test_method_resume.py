"""Methods with a state of their own: a run stopped in quantized training resumes to the same bits.

Expected: the checkpoints and records of an uninterrupted run of the same command.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from small_sessions import after_steps, resume_small, start_small, trained_bits

from medquant.errors import InterruptedRunError

# Random signs of every step and a start of its own; ranges, their counts, and a search for them that ends in between.
RUNS = {
    "binary": ("quant.wbits=1", "quant.abits=32", "quant.options.binarization=stochastic", "quant.options.init=uniform"),
    "dynamic_fixed_point": (
        *("quant.wbits=6", "quant.abits=8", "quant.options.update_bits=14"),
        *("quant.options.warm_up_batches=2", "quant.options.period=2", "quant.options.initial_integer_bits=5"),
    ),
}


# Two warm steps, four quantized ones: stopped before the first of these is saved, in the first epoch, and in the second.
@pytest.mark.parametrize("stop", [pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow), 5])
@pytest.mark.parametrize("method", RUNS)
def test_a_stopped_run_of_a_method_resumes_to_the_same_bits(tmp_path: Path, method: str, stop: int) -> None:
    options = (f"quant.method={method}", "train.float_twin=false", "train.warm_fraction=0.34", *RUNS[method])
    start_small(tmp_path / "whole", *options).run()
    with pytest.raises(InterruptedRunError):
        start_small(tmp_path / "cut", *options, stop_requested=after_steps(stop)).run()
    resume_small(tmp_path / "cut").run()
    whole, resumed = trained_bits(tmp_path / "whole"), trained_bits(tmp_path / "cut")
    assert sorted(name for name in whole.keys() | resumed.keys() if whole.get(name) != resumed.get(name)) == []
