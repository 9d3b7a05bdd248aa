"""The resolved plan of a run, a model file or a configuration, weighed; nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medquant.config.schema import Config
from medquant.deploy.packed import load_model
from medquant.errors import UsageError
from medquant.evaluate.ledger import Ledger, weigh_plan
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import QuantPlan
from medquant.train.building import build_network, configured_method, configured_outputs, patch_size, plan_network
from medquant.train.run_folder import RunFolder, stored_config
from medquant.train.start import TrainRequest, resolve_config


@dataclass(frozen=True)
class PlanRequest:
    """What was asked for: a run or model file, or a configuration with options."""

    target: Path | None = None
    config_file: Path | None = None
    overrides: Sequence[str] = ()
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class PlannedNetwork:
    """A plan, its ledger, and the method it is for.

    Args:
        plan: bits of every layer.
        ledger: what they weigh.
        method: name of the method.
        exact: whether the network is an integer program and leaves as a model file.
    """

    plan: QuantPlan
    ledger: Ledger
    method: str
    exact: bool

    def to_json(self) -> dict[str, object]:
        """Layers and memory as JSON values."""
        return {
            "layers": [vars(layer) for layer in self.plan.layers],
            "memory": self.ledger.to_json(),
            "method": self.method,
            "exact": self.exact,
        }


def make_plan(request: PlanRequest) -> PlannedNetwork:
    """Resolve and weigh.

    Raises:
        UsageError: a rule matches nothing, or options are given beside a run or model.
        ConfigError: mistakes in the configuration.
        CheckpointError: the run or model file cannot be read.
    """
    if request.target is None:
        config, dataset = resolve_config(TrainRequest(request.config_file, request.overrides, request.options))
        return _plan_config(config, len(dataset.info.channels), configured_outputs(config, len(dataset.info.classes)))
    if request.options or request.overrides or request.config_file is not None:
        raise UsageError(f"{request.target} has its plan already; leave out the other options, or leave out {request.target}")
    if request.target.is_dir():
        run = RunFolder.open(request.target)
        return _plan_config(run.config, run.channels, configured_outputs(run.config, len(run.classes)))
    packed = load_model(request.target)
    config = stored_config(packed.metadata.config, request.target)
    return _plan_config(config, len(packed.metadata.channels), configured_outputs(config, len(packed.metadata.classes)))


def _plan_config(config: Config, inputs: int, outputs: int) -> PlannedNetwork:
    network = build_network(config, inputs, outputs)
    graph, plan = plan_network(config, network, inputs)
    method = configured_method(config)
    QuantNetwork(graph, plan, method)  # refuses bits that do not go together
    parameters = sum(parameter.numel() for parameter in network.parameters())
    shape = (1, inputs, *patch_size(config))
    ledger = weigh_plan(graph, method.stored(plan), parameters, config.quant.wbits, shape)
    return PlannedNetwork(plan, ledger, method.name, method.exact and plan.is_integer)
