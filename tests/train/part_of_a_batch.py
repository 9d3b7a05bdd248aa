"""One of several processes that compute parts of one batch; started by test_distributed.py, writes what it found as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn

from medquant.errors import ConfigError, MedquantError
from medquant.train.distributed import Group, join
from medquant.train.losses import distillation_loss, segmentation_loss
from medquant.train.whole_batch import whole_batch


def network() -> nn.Sequential:
    """Both kinds of dropout behind both kinds of batch norm, float64, the same weights everywhere."""
    torch.manual_seed(1)
    parts = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout2d(0.3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3, momentum=None))
    return nn.Sequential(*parts, nn.Dropout(0.2)).double().train()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Six images far from zero, (6, 1, 7, 8), and labels of three classes."""
    random = torch.Generator().manual_seed(2)
    images = 100.0 + torch.randn(6, 1, 7, 8, generator=random, dtype=torch.float64)
    return images, torch.randint(3, (6, 5, 6), generator=random)


def take_step(group: Group) -> dict[str, list[float]]:
    """Gradients and statistics of a step, in float64."""
    trained, (images, labels) = network(), batch()
    rows = group.share(range(len(images)))
    part = images[rows.start : rows.stop].clone().requires_grad_(True)
    torch.manual_seed(3)
    with whole_batch(trained, group):
        value = group.sum((trained(part) * (labels[rows.start : rows.stop, None] + 1)).pow(2).sum()).sqrt()
        value.backward()
    group.sum_gradients(trained.parameters())
    assert part.grad is not None
    found = {"value": value.detach(), "image": part.grad, **{f"gradient {name}": each.grad for name, each in trained.named_parameters()}}
    found |= {f"buffer {name}": buffer.double() for name, buffer in trained.named_buffers()}
    return {name: tensor.flatten().tolist() for name, tensor in found.items() if tensor is not None}


def take_losses(group: Group) -> dict[str, list[float]]:
    """Losses of one output, of three and of two levels of three, and the distillation loss; the gradient of their sum."""
    random = torch.Generator().manual_seed(4)
    rows = group.share(range(6))
    logits = torch.randn(6, 2, 3, 5, 6, generator=random)[rows.start : rows.stop].requires_grad_(True)
    # Classes are rare in the second half of the batch: a mean of two Dice losses would be another.
    labels = (torch.randint(3, (6, 5, 6), generator=random) * (torch.rand(6, 5, 6, generator=random) > torch.arange(6).view(6, 1, 1) / 6))[
        rows.start : rows.stop
    ]
    losses = [
        segmentation_loss(logits[:, 0, :1], (labels > 0).long(), group=group),
        segmentation_loss(logits[:, 0], labels, group=group),
        segmentation_loss(logits, labels, group=group),
        distillation_loss(logits[:, 0], logits[:, 1], group),
        distillation_loss(logits[:, 0, :1], logits[:, 1, :1], group),
    ]
    torch.stack(losses).sum().backward()
    assert logits.grad is not None
    return {"losses": [float(loss.detach()) for loss in losses], "gradient": logits.grad.flatten().tolist()}


def _kind(error: MedquantError) -> list[str]:
    return [type(error).__name__, str(error)]


def main(out: Path) -> None:
    """Join the others and do everything once."""
    group = join()
    found: dict[str, object] = {
        "step": take_step(group),
        "losses": take_losses(group),
        "any": [group.any(group.rank == 1), group.any(False)],
    }
    found["first"] = group.first(lambda: {"from": group.rank, "text": "µ", "number": 0.1})
    copied = nn.BatchNorm1d(2).bfloat16()
    with torch.no_grad():
        copied.weight.fill_(group.rank + 1.0)
        copied.num_batches_tracked.fill_(group.rank + 2**40)
    group.copy_first(copied)
    found["copied"] = [*copied.weight.tolist(), int(copied.num_batches_tracked)]

    def fail_in_second() -> None:
        if group.rank == 1:
            raise ConfigError("a mistake", "and another")

    for name, attempt in (
        ("together", lambda: group.together(fail_in_second)),
        ("agree", lambda: group.agree({"word": f"w{group.rank}", "same": "s"})),
        ("batch", lambda: group.check_batch(3)),
    ):
        try:
            attempt()
        except MedquantError as error:
            found[name] = _kind(error)
    group.leave()
    (out / f"{group.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
