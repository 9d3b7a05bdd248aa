"""Which device and which arithmetic are chosen, for machines that are only pretended."""

from __future__ import annotations

import pytest
import torch

from medquant.errors import UsageError
from medquant.train.precision import choose_device, use_bfloat16

CPU = torch.device("cpu")


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there_is_one, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda answer=there_is_one: answer)
        assert choose_device("auto").type == expected
    assert choose_device("cpu") == CPU


def test_a_missing_gpu_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"device cuda: no usable NVIDIA GPU.*--device cpu"):
        choose_device("cuda")


@pytest.mark.parametrize(("multiplies", "tiles", "expected"), [(False, False, False), (True, False, True), (False, True, True)])
def test_auto_takes_bfloat16_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, multiplies: bool, tiles: bool, expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: multiplies)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    assert use_bfloat16("auto", CPU) is expected
    assert use_bfloat16("off", CPU) is False
    assert use_bfloat16("bf16", CPU) is True


def test_on_a_gpu_torch_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda answer=answer: answer)
        assert use_bfloat16("auto", torch.device("cuda")) is answer
