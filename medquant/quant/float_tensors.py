"""What the float operations of a quantized network hold: their parameters, which train, and their constants."""

from __future__ import annotations

from torch import Tensor, nn

from medquant.quant.graph import FloatOperation, Graph


class FloatTensors(nn.Module):
    """The tensors of every float operation of a graph, by its name.

    Constants are not stored with the network: they are read again with the graph.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.trained = nn.ParameterDict()
        for operation in graph:
            if not isinstance(operation, FloatOperation):
                continue
            for place, (tensor, learns) in enumerate(zip(operation.tensors, operation.trainable, strict=True)):
                if learns:
                    self.trained[_key(operation, place)] = nn.Parameter(tensor.detach().clone().float())
                else:
                    self.register_buffer(_key(operation, place), tensor.detach().clone(), persistent=False)

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
