"""Which tensors share a step, worked out by hand on graphs written as torch networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.sharing import Sharing, find_sharing


class Joins(nn.Module):
    """Two concatenations with a tensor in common, reached through max pooling and a copy; one tensor stays apart."""

    def __init__(self) -> None:
        super().__init__()
        for name, inputs in (("a", 1), ("b", 1), ("c", 4), ("d", 4), ("apart", 4)):
            self.add_module(name, nn.Conv2d(inputs, 2, 3, padding=1))
        self.pool, self.copy = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.relu(self.a(x)), F.relu(self.b(x))
        first = torch.cat([self.copy(self.pool(a)), b], 1)
        c = F.relu(self.c(first))
        d = self.d(torch.cat([b, c], 1))
        y: Tensor = self.apart(torch.cat([d, x, x], 1))
        return y


def sharing_of(module: nn.Module, shape: tuple[int, ...] = (1, 1, 8, 8)) -> Sharing:
    return find_sharing(simplify(capture(module.eval(), torch.zeros(shape))))


def test_joined_tensors_form_groups_through_pooling_and_copies() -> None:
    sharing = sharing_of(Joins())
    # a, b and c meet in two joins; d meets the image; the output is alone.
    assert sharing.group == {"input": "input", "a": "a", "b": "a", "c": "a", "d": "input", "apart": "apart"}
    assert sharing.sources["pool"] == ("a",)
    assert sharing.sources["copy"] == ("a",)
    assert sharing.sources["concat"] == ("a", "b")
    assert sharing.group_of("copy") == "a"
    # The image and d can be negative, and so can the output; what comes out of a rectifier cannot.
    assert sharing.signed == {"input", "apart"}


def test_join_of_a_signed_and_an_unsigned_tensor_is_signed() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1), nn.Conv2d(4, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(torch.cat([F.relu(self.a(x)), self.b(x)], 1))
            return y

    sharing = sharing_of(Mixed())
    assert sharing.group["a"] == sharing.group["b"] == "a"
    assert "a" in sharing.signed


def test_new_values_start_groups_of_their_own_and_keep_their_sign() -> None:
    class Writers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1)
            self.up = nn.Upsample(scale_factor=2, mode="bilinear")

        def forward(self, x: Tensor) -> Tensor:
            a = F.relu(self.a(x))
            mean = F.avg_pool2d(a, 2)
            total = self.up(mean) + a
            y: Tensor = self.head(total + self.b(x))
            return y

    sharing = sharing_of(Writers())
    names = ["input", "a", "avg_pool2d", "up", "add", "b", "add_2", "head"]
    assert sharing.group == {name: name for name in names}
    assert sharing.signed == {"input", "b", "add_2", "head"}


def test_rectifier_behind_a_join_keeps_the_group() -> None:
    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1), nn.Conv2d(4, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(F.relu(torch.cat([self.a(x), self.b(x)], 1)))
            return y

    sharing = sharing_of(Behind())
    assert sharing.sources["relu"] == ("a", "b")
    assert sharing.group_of("relu") == "a"
    assert "a" in sharing.signed
