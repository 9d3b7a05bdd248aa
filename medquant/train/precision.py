"""Which arithmetic training runs in. Evaluation always runs in float32, where integers are exact."""

from __future__ import annotations

from typing import Literal

import torch

from medquant.errors import UsageError
from medquant.train.distributed import ALONE, Group


def choose_device(wanted: Literal["auto", "cpu", "cuda"], group: Group = ALONE) -> torch.device:
    """The device to train on; ``auto`` takes a GPU where there is one, of several processes each one of its own.

    Raises:
        UsageError: a GPU is asked for and there is none, or there are fewer than processes.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda: no usable NVIDIA GPU found by torch; use --device cpu or auto")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and group.size > 1:
        found = torch.cuda.device_count()
        if group.local_rank >= found:
            raise UsageError(
                f"process {group.local_rank + 1} of this machine finds {found} GPUs, expected one for each process; "
                f"start at most {found} with torchrun --nproc-per-node"
            )
        torch.cuda.set_device(group.local_rank)
        return torch.device("cuda", group.local_rank)
    return torch.device(wanted)


def use_bfloat16(wanted: Literal["auto", "off", "bf16"], device: torch.device) -> bool:
    """Whether to train under bfloat16 autocast; ``auto``: where the hardware multiplies it faster than float32."""
    if wanted != "auto":
        return wanted == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
