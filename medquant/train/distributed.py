"""Several processes that train one network. Each takes an equal share of every batch, and all reach the same weights.

What depends on the whole batch is summed over the processes: the loss, the statistics of batch norm, the gradients. Each process
then holds the same loss, so the gradient of a sum with respect to a process's own part is the gradient of the loss itself, and
nothing is averaged. The first process alone writes and prints; others hear from it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from medquant import errors
from medquant.errors import ConfigError, InputError, MedquantError, UsageError

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_MEETING = timedelta(minutes=10)
# While the first process validates or trains a coarse network, the others wait; a process that ends is noticed at once all the same.
_WAITING = timedelta(days=30)
_BUCKET = 2**23
"""Values of the gradient that are summed at once: 32 MiB."""

Value = TypeVar("Value")


@dataclass(eq=False)
class Group:
    """The processes of one run; a run without torchrun is a group of one, for which everything here is what it would be without.

    Args:
        rank: number of this process, from 0.
        size: how many there are.
        local_rank: its number on its machine, which is also that of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    told: bool = field(default=False, init=False)
    """Whether the error under way is another process's too, which has it printed already."""
    _control: Any = field(default=None, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def share(self, indices: range) -> range:
        """This process's part of the samples of a batch."""
        part = len(indices) // self.size
        return indices[self.rank * part : (self.rank + 1) * part]

    def check_batch(self, batch_size: int) -> None:
        """Refuse a batch that cannot be shared out equally.

        Raises:
            ConfigError: the number of processes does not divide it.
        """
        if batch_size % self.size:
            raise ConfigError(
                f"data.batch_size: found {batch_size} for {self.size} processes, expected a multiple of {self.size} "
                "(it is the batch of all processes together); change it, or the number of processes"
            )

    # --- sums that gradients pass ---------------------------------------------------------------------------------

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all processes, same shape; its gradient passes to each as it is."""
        if self.size == 1:
            return x
        total: Tensor = _Sum.apply(x, self)  # type: ignore[no-untyped-call]
        return total

    def mean(self, x: Tensor) -> Tensor:
        """The mean over all processes, same shape."""
        return x if self.size == 1 else self.sum(x) / self.size

    def total(self, x: Tensor) -> Tensor:
        """The sum over all processes, without gradients."""
        summed = x.detach().clone(memory_format=torch.contiguous_format)
        with _connected():
            dist.all_reduce(summed)
        return summed

    def gather(self, x: Tensor) -> Tensor:
        """The tensors of all processes, stacked: (processes, *shape), without gradients."""
        own = x.detach().contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)]
        with _connected():
            dist.all_gather(parts, own)
        return torch.stack(parts)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Put the gradient of the whole batch into every parameter, in place."""
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        for gradient in [parameter.grad for parameter in parameters if parameter.grad is not None]:
            bucket.append(gradient)
            if sum(each.numel() for each in bucket) >= _BUCKET:
                self._sum_bucket(bucket)
                bucket = []
        if bucket:
            self._sum_bucket(bucket)

    def _sum_bucket(self, bucket: list[Tensor]) -> None:
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        with _connected():
            dist.all_reduce(flat)
        for gradient, part in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
            gradient.copy_(part.view(gradient.shape))

    def copy_first(self, network: nn.Module) -> None:
        """Give every process the first one's parameters and buffers, bit for bit: other processors may round otherwise."""
        if self.size == 1:
            return
        with torch.no_grad():
            tensors = list(network.state_dict().values())
            flat = torch.cat([tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in tensors])
            with _connected():
                dist.broadcast(flat, 0)
            offset = 0
            for tensor in tensors:
                length = tensor.numel() * tensor.element_size()
                part = flat[offset : offset + length].clone()
                tensor.copy_(part.view(tensor.dtype).view(tensor.shape))
                offset += length

    # --- what the processes tell each other -----------------------------------------------------------------------

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        if self.size == 1:
            return flag
        value = torch.tensor([int(flag)])
        with _connected():
            dist.all_reduce(value, dist.ReduceOp.MAX, group=self._control)
        return bool(value)

    def first(self, action: Callable[[], Value]) -> Value:
        """What ``action``, done by the first process alone, gives: JSON values. The others wait for it, however long it takes.

        Raises:
            MedquantError: the first process met it, on every process.
        """
        if self.size == 1:
            return action()
        if not self.is_first:
            return self._heard(json.loads(self._tell("")))  # type: ignore[no-any-return]
        try:
            value = action()
        except MedquantError as error:
            self._tell(json.dumps(_error_json(error)))
            raise
        self._tell(json.dumps({"value": value}))
        return value

    def _heard(self, document: Mapping[str, Any]) -> Any:
        if "kind" in document:
            self.told = True
            raise _error_from(document)
        return document["value"]

    def together(self, action: Callable[[], Value]) -> Value:
        """What ``action`` gives in each process, once it has succeeded in all of them.

        Raises:
            MedquantError: of the first process that met one, on every process; printed by the first.
        """
        if self.size == 1:
            return action()
        result, own = None, None
        try:
            result = action()
        except MedquantError as error:
            own = error
        met = [
            (rank, json.loads(text)) for rank, text in enumerate(self._texts("" if own is None else json.dumps(_error_json(own)))) if text
        ]
        if not met:
            return result  # type: ignore[return-value]
        self.told = not self.is_first
        if own is not None and self.is_first:
            raise own
        rank, document = met[0]
        raise _error_from(document, f"process {rank} of {self.size}: ") from own

    def agree(self, facts: Mapping[str, str]) -> None:
        """Refuse processes that are not at the same work.

        Args:
            facts: what is known by that name here; short texts.

        Raises:
            ConfigError: another process has another text for one of them.
        """
        if self.size == 1:
            return
        everywhere = [json.loads(text) for text in self._texts(json.dumps(dict(facts)))]
        wrong = [
            f"process {rank} of {self.size} has {name} {theirs.get(name)}, process 0 has {everywhere[0].get(name)}; make them alike"
            for name in facts
            for rank, theirs in enumerate(everywhere)
            if theirs.get(name) != everywhere[0].get(name)
        ]
        if wrong:
            self.told = not self.is_first
            raise ConfigError(*wrong)

    def _tell(self, text: str) -> str:
        """The first process's text."""
        data = text.encode()
        length = torch.tensor([len(data)])
        with _connected():
            dist.broadcast(length, 0, group=self._control)
            content = _as_tensor(data, int(length))
            dist.broadcast(content, 0, group=self._control)
        return bytes(content.tolist()).decode()

    def _texts(self, text: str) -> list[str]:
        """The texts of all processes."""
        data = text.encode()
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with _connected():
            dist.all_gather(lengths, torch.tensor([len(data)]), group=self._control)
            longest = max(int(length) for length in lengths)
            contents = [torch.zeros(max(longest, 1), dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(contents, _as_tensor(data, max(longest, 1)), group=self._control)
        return [bytes(content[: int(length)].tolist()).decode() for content, length in zip(contents, lengths, strict=True)]

    def leave(self) -> None:
        """Wait for all processes and part from them; afterwards each is on its own."""
        if self.size > 1 and dist.is_initialized():
            self.any(False)
            dist.destroy_process_group()


ALONE = Group()
"""A run of one process."""


def join(meeting: timedelta = _MEETING) -> Group:
    """Meet the other processes that torchrun, or whatever else sets its variables, has started; a group of one without them.

    Args:
        meeting: how long to wait for the others.

    Raises:
        UsageError: the variables make no sense, or the others cannot be reached.
    """
    if any(name not in os.environ for name in _VARIABLES):
        return ALONE
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_rank = int(os.environ.get("LOCAL_RANK", rank))
    except ValueError as error:
        raise UsageError(f"RANK, WORLD_SIZE and LOCAL_RANK: expected numbers ({error}); start the processes with torchrun") from error
    if size == 1:
        return ALONE
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        dist.init_process_group(backend, rank=rank, world_size=size, timeout=meeting)
        control = dist.new_group(backend="gloo", timeout=_WAITING)
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"process {rank} of {size} could not meet the others at {place} ({reason}); check that all are started and that the "
            "address can be reached (GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network to use)"
        ) from error
    return Group(rank, size, local_rank, control)


LOST = (
    "another process of this run ended, or the connection to it was lost (its own message tells why); what was saved is kept, "
    "continue with --resume"
)


def connection_lost(error: RuntimeError) -> bool:
    """Whether this is torch's way of saying so where it met it by itself: on GPUs exchanges end later than they are asked for."""
    return isinstance(error, dist.DistError)


@contextmanager
def _connected() -> Iterator[None]:
    """Every exchange: a process that is gone shows as an error of torch's own."""
    try:
        yield
    except RuntimeError as error:
        raise InputError(LOST) from error


class _Sum(torch.autograd.Function):
    """Sum over the processes. Each holds the same loss of it, so each one's gradient is complete already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return group.total(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _as_tensor(data: bytes, length: int) -> Tensor:
    return torch.tensor(list(data.ljust(length, b"\0")), dtype=torch.uint8)


def _error_json(error: MedquantError) -> dict[str, object]:
    return {"kind": type(error).__name__, "lines": list(error.lines)}


def _error_from(document: Mapping[str, Any], prefix: str = "") -> MedquantError:
    kind = getattr(errors, str(document["kind"]), MedquantError)
    lines = [str(line) for line in document["lines"]]
    error: MedquantError = kind(*[f"{prefix}{line}" if index == 0 else line for index, line in enumerate(lines)])
    return error
