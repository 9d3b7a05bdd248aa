"""A network read through the trace of another one of its architecture is read as it would be through its own."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from medquant.models import build_model
from medquant.quant import exported
from medquant.quant.capture import capture


def network(seed: int, channels: int = 2) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_model("unet", in_channels=1, out_channels=1, size=(16, 16), channels=channels, depth=2).eval()


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    if dataclasses.is_dataclass(one) or isinstance(one, dict):
        mine, theirs = (each if isinstance(each, dict) else vars(each) for each in (one, other))
        return mine.keys() == theirs.keys() and all(same(mine[key], theirs[key]) for key in mine)
    return one == other


def test_weights_are_those_of_the_network_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = []
    export = torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *args, **kwargs: traced.append(args) or export(*args, **kwargs))
    monkeypatch.setattr(exported, "_kept", type(exported._kept)())
    image = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    for seed in (1, 2):
        each = network(seed)
        known, anew = capture(each, image, "unet 2"), capture(each, image)
        assert [type(operation) for operation in known.operations] == [type(operation) for operation in anew.operations]
        for one, other in zip(known.operations, anew.operations, strict=True):
            assert same(vars(one), vars(other))
    # This network is exported twice: its up-sampling asks for any number of images.
    assert len(traced) == 2 * (1 + 2)
    # Another width under the same text is another network, and without a text nothing is kept.
    capture(network(1, channels=3), image, "unet 2")
    capture(network(1), image)
    assert len(traced) == 2 * (3 + 2)
