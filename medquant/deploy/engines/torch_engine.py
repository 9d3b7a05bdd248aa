"""``torch``: runs wherever torch does, and needs nothing beside it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medquant.deploy.engines.base import Engine, EngineInfo
from medquant.quant.program import IntegerProgram


class TorchEngine(Engine):
    """Float32 convolutions of integers on the CPU, or float64 on a GPU."""

    info = EngineInfo(
        "torch", "integers in float32 (float64 where accumulators pass 2**24, and on GPU)", exact=True, priority=10, package="torch"
    )

    def __init__(self, program: IntegerProgram) -> None:
        super().__init__(program)
        from medquant.deploy.engines.torch_float import FloatTorchProgram

        self._run = FloatTorchProgram(program)

    def run(self, image: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Run the program, see :meth:`Engine.run`."""
        return self._run.run(image)
