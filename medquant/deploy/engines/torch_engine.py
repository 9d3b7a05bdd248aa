"""``torch``: runs wherever torch does, and needs nothing beside it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medquant.deploy.engines.base import Engine, EngineInfo
from medquant.quant.program import IntegerProgram

if TYPE_CHECKING:
    import torch


class TorchEngine(Engine):
    """Bytes on a CPU that multiplies them (VNNI), otherwise integers in float; on a GPU bytes where they prove exact."""

    info = EngineInfo(
        "torch", "8-bit operators of oneDNN on CPU, 8-bit matrix products on GPU, float where they are not exact", True, 20, "torch"
    )

    def __init__(self, program: IntegerProgram) -> None:
        super().__init__(program)
        _load_quietly()
        import torch

        self._walk = _on_gpu(program, torch.device("cuda")) if torch.cuda.is_available() else _on_cpu(program)

    @property
    def arithmetic(self) -> str:
        """What the program runs in here: the name of the class that walks it."""
        return type(self._walk).__name__

    def run(self, image: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Run the program, see :meth:`Engine.run`."""
        return self._walk.run(image)


def _load_quietly() -> None:
    """Load torch with threads that sleep, not spin, while they wait for one another, unless it is loaded or the user decided.

    With two threads and another process on the same cores, spinning made an image take two to eight times as long as with
    sleeping threads. OpenMP reads its setting once, from the environment, when torch is loaded; it is taken back at once.
    """
    if "torch" in sys.modules or "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return
    os.environ["OMP_WAIT_POLICY"] = "passive"
    try:
        import torch  # noqa: F401
    finally:
        del os.environ["OMP_WAIT_POLICY"]


def _on_cpu(program: IntegerProgram) -> Engine:
    from medquant.deploy.engines.torch_float import FloatTorchProgram
    from medquant.deploy.engines.torch_int8 import Int8TorchProgram

    return Int8TorchProgram(program) if Int8TorchProgram.helps(program) else FloatTorchProgram(program)


def _on_gpu(program: IntegerProgram, device: torch.device) -> Engine:
    from medquant.deploy.engines.torch_float import FloatTorchProgram
    from medquant.deploy.engines.torch_gpu import MatmulTorchProgram, byte_products_work

    return MatmulTorchProgram(program, device) if byte_products_work(device) else FloatTorchProgram(program, device)
