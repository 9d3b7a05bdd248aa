"""Read a torch network into a :class:`~medquant.quant.graph.Graph` through torch.export.

The network itself is left as it is: it is exported in evaluation mode from an example input, and its parameters are copied.
What has an integer form becomes a typed operation; everything else that computes the same each time becomes a float operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medquant.errors import ConfigError
from medquant.quant.capture_float import (
    ANY_SIZE,
    Gathered,
    NoIntegerFormError,
    base_name,
    check_repeatable,
    float_operation,
    is_in_place,
    may_share_memory,
)
from medquant.quant.capture_operations import BUILDERS, argument, module_path, where
from medquant.quant.exported import Exported, export_once
from medquant.quant.graph import BatchNorm, FloatOperation, Graph, Input, Linear, Operation
from medquant.quant.plan import writes_new_values

# Operations that change nothing at inference: the tensor goes through as it is.
_TRANSPARENT = {
    "aten.dropout.default", "aten.dropout_.default", "aten.feature_dropout.default", "aten.feature_dropout_.default",
    "aten.contiguous.default", "aten.clone.default", "aten.alias.default", "aten.detach.default",
}  # fmt: skip
_GETITEM = "<built-in function getitem>"


def capture(model: nn.Module, example: Tensor, architecture: str | None = None) -> Graph:
    """Export ``model`` and translate every operation.

    Args:
        model: a network with one image in and one logit map out. Convolutions, transposed convolutions, batch norm, rectifiers,
            pooling, up-sampling, concatenation and addition have integer forms; anything else is read as a float operation.
        example: shape (N, C, *S), 2 or 3 spatial axes, of a size the network accepts; two images, where the network holds float
            operations that are read for one size only.
        architecture: everything the network was built from, where further networks of the same are to be read without tracing.

    Returns:
        The graph as the network computes it in evaluation mode; no operation is folded or fused yet.

    Raises:
        ConfigError: the network cannot be exported, or computes something else each time.
    """
    exported, state = export_once(model, example, architecture, lambda: _export(model, example))
    return _Translator(exported, state, int(example.shape[1])).graph()


def _export(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            program = torch.export.export(model, (example,), strict=False)
            if not all(_is_known(node) for node in program.graph.nodes):
                # Lengths that follow the number of images must not be read as constants.
                dynamic = ({0: torch.export.Dim.AUTO},)
                program = torch.export.export(model, (example,), strict=False, dynamic_shapes=dynamic)
            return program
    except Exception as error:  # torch.export raises many kinds; each means the same to the user
        raise ConfigError(f"this network cannot be read as a graph: {type(error).__name__}: {str(error).splitlines()[0]}") from error
    finally:
        model.train(was_training)


class _Translator:
    """Walks an exported program once and builds the operations."""

    def __init__(self, program: Exported, state: Mapping[str, Tensor], channels: int) -> None:
        self.program = program
        self.channels = channels
        self.tensors = program.bound_tensors(state)
        self.images = set(program.signature.user_inputs)
        self.names: dict[str, str] = {}  # torch node → operation name
        self.parameter_nodes = set(program.signature.inputs_to_parameters)
        self.roots: dict[str, Any] = {}  # torch node → the first node of the same memory
        self.floating: set[str] = set()  # operations that write real values
        self.operations: list[Operation] = []
        self.parameters_used: dict[str, str] = {}
        self.batch: Any = None

    def graph(self) -> Graph:
        result = None
        for node in self.program.graph.nodes:
            if node.op == "placeholder" and node.name in self.images:
                self._append(node, Input("input", (), self.channels))
                images = node.meta["val"].shape[0]
                self.batch = images.node.expr if isinstance(images, torch.SymInt) else None
            elif node.op == "call_function":
                self._translate(node)
            elif node.op == "output":
                outputs = node.args[0]
                if len(outputs) != 1:
                    raise ConfigError(f"the network returns {len(outputs)} tensors; expected one logit map")
                result = self.names[outputs[0].name]
        if result is None:
            raise ConfigError("the network returns nothing; expected one logit map")
        return Graph(tuple(self._needed(result)), result)

    def _needed(self, output: str) -> list[Operation]:
        """The operations the output depends on, in order: what a network computes and throws away has no place in its copy."""
        needed = {output}
        for operation in reversed(self.operations):
            if operation.name in needed:
                needed.update(operation.inputs)
        return [operation for operation in self.operations if operation.name in needed]

    def _append(self, node: Any, operation: Operation) -> None:
        self.names[node.name] = operation.name
        self.operations.append(operation)
        # A batch norm ends in a convolution, folded or of its own.
        quantized = isinstance(operation, BatchNorm) or writes_new_values(operation)
        moves_floats = not quantized and any(name in self.floating for name in operation.inputs)
        if isinstance(operation, FloatOperation | Linear) or moves_floats:
            self.floating.add(operation.name)

    def _translate(self, node: Any) -> None:
        target = str(node.target)
        if target.startswith("aten._assert") or isinstance(node.meta.get("val"), int | torch.SymInt):
            return
        if self._is_constant(node):
            self._compute(node)
        elif _changes_nothing(node):
            self._pass_through(node, target)
        elif target == _GETITEM:
            self._float(node.args[0], None, int(node.args[1]), node)
        elif not isinstance(node.meta.get("val"), list | tuple):  # of several results each is an operation where it is taken
            self._operate(node)

    def _pass_through(self, node: Any, target: str) -> None:
        if "dropout" in target and argument(node, 2, "train", False):
            raise ConfigError(f"{where(node)}: dropout stays on in evaluation mode; use nn.Dropout, or pass training=self.training")
        source = node.args[0]
        if "clone" not in target:
            self._same_memory(node, source)
        if source.name in self.names:
            self.names[node.name] = self.names[source.name]
        elif source.name in self.tensors:
            self.tensors[node.name] = self.tensors[source.name].clone() if "clone" in target else self.tensors[source.name]
            if source.name in self.parameter_nodes:
                self.parameter_nodes.add(node.name)

    def _operate(self, node: Any) -> None:
        """Append the operation of a node, and let those that read what it changed in place read the changed tensor."""
        build = BUILDERS.get(str(node.target))
        try:
            if build is None:
                raise NoIntegerFormError
            operation = build(self, node)
            self._append(node, operation)
        except NoIntegerFormError as found:
            self._float(node, str(found) or None, None, node)
        if is_in_place(str(node.target)):
            self._changed_in_place(node)
        elif may_share_memory(str(node.target)):
            self._same_memory(node, node.args[0])

    def _float(self, node: Any, reason: str | None, part: int | None, result: Any) -> None:
        if not str(node.target).startswith("aten."):
            raise ConfigError(f"{where(node)}: {node.target} cannot be copied; only torch's own operators can")
        check_repeatable(node, where(node))
        gathered = Gathered(self.names, self.tensors, self.parameter_nodes, self.batch)
        operation = float_operation(lambda suffix: self.float_name(node, suffix), node, gathered, reason, part)
        for held in gathered.held:
            if held in self.parameter_nodes:
                self.use_once(held, operation.name)
        self._append(result, operation)

    def _is_constant(self, node: Any) -> bool:
        """Whether a node depends on neither the image nor a parameter; such are computed now, in-place changes included."""
        reads = node.all_input_nodes
        return all(read.name in self.tensors and read.name not in self.parameter_nodes for read in reads)

    def _compute(self, node: Any) -> None:
        check_repeatable(node, where(node))
        values = torch.fx.node.map_arg((node.args, node.kwargs), lambda read: self.tensors[read.name])
        with torch.no_grad():
            self.tensors[node.name] = node.target(*values[0], **values[1])

    def _same_memory(self, node: Any, source: Any) -> None:
        if isinstance(source, torch.fx.Node):
            self.roots[node.name] = self.roots.get(source.name, source)

    def _changed_in_place(self, node: Any) -> None:
        changed = node.args[0]
        root = self.roots.get(changed.name, changed)
        before = self.names.get(changed.name)
        self.roots[node.name] = root
        for other in [other for other in self.program.graph.nodes if self.roots.get(other.name, other) is root and other is not node]:
            if other is changed or (before is not None and self.names.get(other.name) == before):
                self.names[other.name] = self.names[node.name]
            elif other.name in self.names and any(node < user for user in other.users):
                raise ConfigError(f"{where(node)}: {node.target} changes a tensor of which a view is read later; write it without '_'")

    def float_name(self, node: Any, suffix: str) -> str:
        """The name of a float operation: that of its module where the module is this operation, otherwise with what it is."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        own = bool(stack) and str(stack[-1][1]).replace("<class '", "").startswith("torch.nn.modules.")
        return self.name(node, "" if own else suffix)

    def use_once(self, key: str, name: str) -> None:
        """Note who reads a parameter; two readers would learn two values of it."""
        if key in self.parameters_used:
            raise ConfigError(f"{name} shares its weight with {self.parameters_used[key]}; shared weights are not supported")
        self.parameters_used[key] = name

    def name(self, node: Any, suffix: str = "") -> str:
        """A unique name: the module's path and the suffix; torch's name of the operation where there is neither."""
        base = ".".join(part for part in (module_path(node), suffix) if part) or str(node.target).split(".")[1].rstrip("_")
        taken = {operation.name for operation in self.operations}
        name, count = base, 2
        while name in taken:
            name, count = f"{base}_{count}", count + 1
        return name

    def source(self, argument: Any) -> str:
        """The operation that computes an argument."""
        if not isinstance(argument, torch.fx.Node) or argument.name not in self.names:
            raise ConfigError(f"an operation reads {argument}, which is no activation; constants in the graph are not supported")
        return self.names[argument.name]

    def parameter(self, argument: Any) -> Tensor:
        """A copy of the parameter or buffer an argument stands for."""
        if argument.name not in self.tensors:
            raise ConfigError(f"{argument.name} is computed, not a parameter; convolutions need fixed weights")
        return self.tensors[argument.name].detach().clone()


def _changes_nothing(node: Any) -> bool:
    target = str(node.target)
    return target in _TRANSPARENT or (target == "aten.pad.default" and not any(node.args[1]))


def _is_known(node: Any) -> bool:
    """Whether a node surely holds no length of the example image or of the number of images."""
    if node.op != "call_function" or _changes_nothing(node):
        return True
    target = str(node.target)
    return (target in BUILDERS and "linear" not in target) or base_name(target) in ANY_SIZE
