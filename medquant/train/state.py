"""What a training stage needs to go on from where it stood, to and from a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor, nn

from medquant.errors import CheckpointError
from medquant.train.checkpoint import Checkpoint

_OPTIMIZER_KEY = re.compile(r"optimizer/(?P<index>[0-9]{1,6})/(?P<name>[a-z_]+)")


# As many epochs, and steps in one, as a configuration may ask for.
_MOST_STEPS = 1_000_000


@dataclass
class Progress:
    """Where a run stands; read back, unknown fields are refused.

    Args:
        stage: name of the stage under way.
        epoch: epochs of it that are complete.
        step: optimiser steps of the epoch under way that are complete.
        loss_sum: sum of the loss over those steps.
        best_score: the best validation score of the stage so far.
        best_epoch: the epoch it was reached in.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    stage: str
    epoch: Annotated[int, Field(ge=0, le=_MOST_STEPS)] = 0
    step: Annotated[int, Field(ge=0, le=_MOST_STEPS)] = 0
    loss_sum: float = 0.0
    best_score: float = -1.0
    best_epoch: int = -1
    finished_stages: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return dict(vars(self))


_PROGRESS = TypeAdapter(Progress)


def pack_state(model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> Checkpoint:
    """Model, optimiser, random state and progress as one checkpoint."""
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for index, parameter in enumerate(parameter for group in optimizer.param_groups for parameter in group["params"]):
        for name, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{index}/{name}"] = torch.as_tensor(value)
    tensors["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    return Checkpoint(tensors, {"progress": progress.to_json()})


def unpack_state(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Put a checkpoint's state into a model and its optimiser, bit for bit.

    Raises:
        CheckpointError: it belongs to another network or optimiser.
    """
    load_model(checkpoint, model)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, value in checkpoint.tensors.items():
        if key.startswith("optimizer/"):
            match = _OPTIMIZER_KEY.fullmatch(key)
            if match is None:
                raise CheckpointError("checkpoint holds optimiser state under an unknown name; it was not written by a training run")
            index, name = match["index"], match["name"]
            if int(index) >= len(parameters):
                raise CheckpointError(f"checkpoint holds optimiser state for parameter {index}, the network has {len(parameters)}")
            parameter = parameters[int(index)]
            # The step count is a CPU scalar in torch's Adam unless it is capturable or fused.
            moved = value if name == "step" and not optimizer.defaults.get("fused") else value.to(parameter.device)
            optimizer.state[parameter][name] = _like(moved, parameter)
    if "random/cpu" not in checkpoint.tensors:
        raise CheckpointError("checkpoint without the random state; it was not written by a training run")
    torch.set_rng_state(checkpoint.tensors["random/cpu"].to(torch.uint8))
    if torch.cuda.is_available() and "random/cuda" in checkpoint.tensors:
        torch.cuda.set_rng_state(checkpoint.tensors["random/cuda"].to(torch.uint8))
    return progress_of(checkpoint)


def progress_of(checkpoint: Checkpoint) -> Progress:
    """The progress a checkpoint was written at.

    Raises:
        CheckpointError: it holds none.
    """
    stored = checkpoint.values.get("progress")
    if not isinstance(stored, Mapping):
        raise CheckpointError("checkpoint without progress; it was not written by a training run")
    try:
        return _PROGRESS.validate_python(dict(stored))
    except ValidationError as error:
        raise CheckpointError(f"checkpoint with unreadable progress ({error.error_count()} fields); it is of another version") from error


def load_model(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Put a checkpoint's weights into ``model``.

    Raises:
        CheckpointError: names or shapes differ.
    """
    state = {key.removeprefix("model/"): value for key, value in checkpoint.tensors.items() if key.startswith("model/")}
    own = model.state_dict()
    wrong = sorted(set(own) ^ set(state)) or sorted(name for name in own if own[name].shape != state[name].shape)
    if wrong:
        raise CheckpointError(
            f"checkpoint of another network: {len(wrong)} tensors differ, first {wrong[0]}; use the configuration it was made with"
        )
    model.load_state_dict(state)


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """``value`` in the parameter's memory layout, which decides in which order sums are formed."""
    if value.shape == parameter.shape and value.dim() >= 4:
        laid_out = torch.empty_like(parameter, dtype=value.dtype)
        return laid_out.copy_(value)
    return value.clone()


def weights_of(network: nn.Module) -> Checkpoint:
    """The parameters and buffers of a network, and nothing else."""
    return Checkpoint({f"model/{name}": tensor for name, tensor in network.state_dict().items()}, {})
