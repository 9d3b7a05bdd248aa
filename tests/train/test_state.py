"""A network and its optimiser taken apart and put together again go on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from medquant.errors import CheckpointError
from medquant.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from medquant.train.state import Progress, load_model, pack_state, progress_of, unpack_state


def _network(channels: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.Dropout(0.5), nn.Conv2d(channels, 2, 3))
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _optimizer(network: nn.Module) -> torch.optim.Optimizer:
    first, *others = network.parameters()
    return torch.optim.AdamW([{"params": [first]}, {"params": others, "weight_decay": 0.0}], lr=1e-2)


def _train(network: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        images = torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(seed)).contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        network(images).square().mean().backward()
        optimizer.step()


def test_training_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    whole, cut = _network(), _network()
    whole_optimizer, cut_optimizer = _optimizer(whole), _optimizer(cut)
    torch.manual_seed(5)
    _train(whole, whole_optimizer, range(6))
    torch.manual_seed(5)
    _train(cut, cut_optimizer, range(3))
    save_checkpoint(tmp_path, pack_state(cut, cut_optimizer, Progress("warm", epoch=1, step=2, loss_sum=0.1 + 0.2)))

    torch.manual_seed(99)  # what a new process draws first
    again, progress = _network(), Progress("warm", 1, 2, 0.1 + 0.2)
    again_optimizer = _optimizer(again)
    assert unpack_state(load_checkpoint(tmp_path), again, again_optimizer) == progress
    for one, other in ((cut_optimizer, again_optimizer),):
        for a, b in zip(cut.parameters(), again.parameters(), strict=True):
            assert one.state[a].keys() == other.state[b].keys()
            assert all(torch.equal(one.state[a][key], other.state[b][key]) for key in one.state[a])
            # The layout decides the order in which sums are formed.
            assert other.state[b]["exp_avg"].stride() == one.state[a]["exp_avg"].stride() == b.stride()
    _train(again, again_optimizer, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


def test_another_network_is_refused() -> None:
    network = _network()
    checkpoint = pack_state(network, _optimizer(network), Progress("warm"))
    with pytest.raises(CheckpointError, match=r"checkpoint of another network: \d+ tensors differ, first 0\.bias"):
        load_model(checkpoint, _network(5))
    with pytest.raises(CheckpointError, match=r"first 0\.bias; use the configuration it was made with"):
        load_model(checkpoint, nn.Linear(2, 2))


@pytest.mark.parametrize("values", [{}, {"progress": None}, {"progress": {}}, {"progress": {"stage": "warm", "mood": 1}}])
def test_foreign_progress_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="progress"):
        progress_of(Checkpoint({}, values))


def test_state_without_what_resuming_needs_is_refused() -> None:
    network = _network()
    checkpoint = pack_state(network, _optimizer(network), Progress("warm"))
    lacking = Checkpoint({name: tensor for name, tensor in checkpoint.tensors.items() if name != "random/cpu"}, checkpoint.values)
    foreign = Checkpoint({**checkpoint.tensors, "optimizer/77/step": torch.tensor(1.0)}, checkpoint.values)
    for found in (lacking, foreign):
        with pytest.raises(CheckpointError):
            unpack_state(found, network, _optimizer(network))
