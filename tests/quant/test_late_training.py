"""Freezing of oscillating weights and averaging of late weights: values by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medquant.deploy.agreement import check_agreement
from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.lower import lower
from medquant.quant.methods import get_method
from medquant.quant.methods.base import IntegerWeightQuantizer
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import resolve_plan


def network(**options: float) -> QuantNetwork:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 3, padding=1))
    graph = simplify(capture(model, torch.zeros(1, 1, 8, 8)))
    net = QuantNetwork(graph, resolve_plan(graph, 4, 6, 4), get_method("fixed_point", options))
    net.calibrate([image()])
    return net


def image(seed: int = 1) -> Tensor:
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def first_weight(net: QuantNetwork) -> tuple[nn.Parameter, IntegerWeightQuantizer]:
    name, weight = next(net.named_weights())
    quantizer = net.weight_quantizer(name)
    assert isinstance(quantizer, IntegerWeightQuantizer)
    return weight, quantizer


def test_late_weights_are_averaged_and_early_ones_are_not() -> None:
    net = network(average_from=0.5)
    weight, _ = first_weight(net)
    start = weight.detach().clone()
    for done, shift in ((0.0, 9.0), (0.5, 1.0), (0.6, 2.0), (0.9, 6.0)):
        net.before_step(done)
        with torch.no_grad():
            weight.copy_(start + shift)
        net.after_step()
    name = next(net.named_weights())[0]
    # (1 + 2 + 6) / 3
    assert torch.allclose(net.layer_parameters(name)[0], start + 3.0, atol=1e-5)
    assert torch.equal(net.layer_parameters(name, in_training=True)[0], start + 6.0)


def test_a_weight_that_swings_is_frozen_to_its_mean_and_the_others_go_on() -> None:
    net = network(freeze_above=0.1)
    weight, quantizer = first_weight(net)
    step = torch.exp2(-quantizer.exponents().float()).flatten()[0]
    with torch.no_grad():
        weight.zero_()
    net.after_step()
    frozen_after = None
    for number in range(1, 41):
        with torch.no_grad():
            # One weight swings between 0 and 1 step, 0 twice as long; another grows by a fifth of a step, which is no oscillation.
            weight[0, 0, 0, 0] = step * (1.0 if number % 2 else 0.0)
            weight[0, 0, 0, 1] = step * number / 20
        net.after_step()
        if frozen_after is None and bool(net.controller.get_buffer("frozen/0")[0, 0, 0, 0]):
            frozen_after = number
    # The first move has none before it; each move from the second on is an oscillation: 1 - 0.99**k exceeds 0.1 at k = 11.
    assert frozen_after == 12
    frozen = net.controller.get_buffer("frozen/0")
    assert int(frozen.sum()) == 1
    # The running mean of 0, 1, 0, 1, ... with a momentum of 0.01 is still near 0.
    assert weight[0, 0, 0, 0].item() == 0.0
    assert weight[0, 0, 0, 1].item() == pytest.approx(float(step) * 2)


@pytest.mark.parametrize("options", [{"freeze_above": 0.02}, {"average_from": 0.3}, {"freeze_above": 0.02, "average_from": 0.3}])
def test_the_program_is_still_the_simulation_and_the_state_is_whole(options: dict[str, float]) -> None:
    net = network(**options)
    optimiser = torch.optim.SGD(net.parameters(), 0.05)
    for number in range(8):
        net.train()
        net.before_step(number / 8)
        optimiser.zero_grad()
        (net(image(number)) - 1.0).square().mean().backward()
        optimiser.step()
        net.after_step()
    agreement = check_agreement(net, lower(net), image(20).numpy())
    assert (agreement.checked, agreement.differing) == (128, 0)
    again = network(**options)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again.eval()(image(21)), net.eval()(image(21)))


def test_without_options_nothing_is_kept() -> None:
    assert list(network().controller.buffers()) == []


def test_a_frozen_weight_of_one_bit_keeps_the_sign_of_its_average() -> None:
    """An average of -0.3 over signs is nearer to minus one; rounded it would be nought, which counts as plus one."""
    import torch

    from medquant.quant.methods.base import WeightSite
    from medquant.quant.methods.fixed_point import FixedPointWeight
    from medquant.quant.methods.late_training import LateTraining

    quantizer, late = FixedPointWeight(WeightSite("a", (1, 2), 0, 1)), LateTraining(0.5, 1.0)
    state = {"integer": [-1.0, 1.0], "direction": [0.0, 0.0], "frequency": [0.9, 0.9], "average": [-0.3, 0.3]}
    for kind, values in state.items():
        late.register_buffer(f"{kind}/a", torch.tensor([values]))
    late.register_buffer("frozen/a", torch.tensor([[True, True]]))
    late.register_buffer("seen/a", torch.tensor(True))
    weight = torch.tensor([[-0.5, 0.5]])
    late._watch("a", weight, quantizer)
    assert weight.tolist() == [[-1.0, 1.0]]
    assert quantizer.integers(weight)[0].tolist() == [[-1, 1]]
