"""One place that makes a run repeatable: seeds, threads and deterministic kernels."""

from __future__ import annotations

import random

import numpy as np
import torch


def make_repeatable(seed: int, threads: int | None) -> int:
    """Seed every generator and fix the thread count; same seed and threads give the same bits on one processor. On a GPU
    some of torch's gradients (linear up-sampling) add up in no fixed order, and bits may differ.

    Args:
        seed: any non-negative number.
        threads: torch threads, None for torch's own choice.

    Returns:
        The thread count in force.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  libraries that use the old generator
    torch.manual_seed(seed)
    if threads is not None:
        torch.set_num_threads(threads)
    # TF32 keeps 10 bits of a float32 factor: enough for quantized layers, not for the float network they are compared with.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    return torch.get_num_threads()
