"""What the float operations of a quantized network hold: their parameters, which train, and their constants."""

from __future__ import annotations

from torch import Tensor, nn

from medquant.quant.graph import TERNARY_TANH, FloatOperation, Graph
from medquant.quant.ternary_tanh import HoldsSlopes


class FloatTensors(HoldsSlopes):
    """The tensors of every float operation of a graph, by its name.

    Constants are not stored with the network, they are read again with the graph; but for the slopes of ternary tanhs, which training
    raises.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.trained = nn.ParameterDict()
        self._slope_names: list[str] = []
        for operation in graph:
            if not isinstance(operation, FloatOperation):
                continue
            for place, (tensor, learns) in enumerate(zip(operation.tensors, operation.trainable, strict=True)):
                if learns:
                    self.trained[_key(operation, place)] = nn.Parameter(tensor.detach().clone().float())
                else:
                    is_slope = operation.target == TERNARY_TANH
                    self.register_buffer(_key(operation, place), tensor.detach().clone(), persistent=is_slope)
                    self._slope_names += [_key(operation, place)] * is_slope

    def slopes(self) -> list[Tensor]:
        """Those of all ternary tanhs."""
        return [self.get_buffer(name) for name in self._slope_names]

    def of(self, operation: FloatOperation) -> list[Tensor]:
        """The tensors of one operation, in its order."""
        held: list[Tensor] = []
        for place, learns in enumerate(operation.trainable):
            key = _key(operation, place)
            held.append(self.trained[key] if learns else self.get_buffer(key))
        return held


def _key(operation: FloatOperation, place: int) -> str:
    """Torch allows no dots in the names of parameters."""
    return f"{operation.name.replace('.', '/')}/{place}"
