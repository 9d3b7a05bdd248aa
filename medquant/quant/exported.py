"""What torch.export makes of a network, kept for further networks of the same architecture: tracing takes longer than small trainings."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_MOST_KEPT = 64
_kept: OrderedDict[object, Exported] = OrderedDict()


@dataclass(frozen=True)
class Exported:
    """A traced program without the tensors of the network it was traced from.

    Args:
        graph: its operations.
        signature: which of its inputs are parameters, buffers, constants or images.
        constants: tensors that are no part of a network's state.
    """

    graph: torch.fx.Graph
    signature: Any
    constants: Mapping[str, Any]

    def bound_tensors(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Placeholder → tensor of a network of this architecture, whose state is given."""
        fixed = {**self.signature.inputs_to_buffers, **self.signature.inputs_to_lifted_tensor_constants}
        known = {**state, **self.constants}
        parameters = {placeholder: known[target] for placeholder, target in self.signature.inputs_to_parameters.items()}
        # Copies: constants are computed with while the program is read, some of them in place.
        return {**parameters, **{placeholder: known[target].detach().clone() for placeholder, target in fixed.items()}}


def export_once(
    model: nn.Module, example: Tensor, architecture: str | None, export: Callable[[], torch.export.ExportedProgram]
) -> tuple[Exported, Mapping[str, Tensor]]:
    """The traced program of a network, and the network's state.

    Args:
        model: the network.
        example: the image it is traced with.
        architecture: everything the network was built from, so that two networks of one text and one layout of tensors are traced to
            the same program; None: traced anew each time.
        export: traces it.
    """
    if architecture is None:
        program = export()
        return Exported(program.graph, program.graph_signature, program.constants), program.state_dict
    state = model.state_dict(keep_vars=True)
    layout = tuple((name, tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for name, tensor in state.items())
    key = (type(model), architecture, layout, example.shape, example.dtype, example.device)
    if key not in _kept:
        program = export()
        _kept[key] = Exported(program.graph, program.graph_signature, program.constants)
        while len(_kept) > _MOST_KEPT:
            _kept.popitem(last=False)
    _kept.move_to_end(key)
    return _kept[key], state
