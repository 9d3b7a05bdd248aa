"""From points of a sweep to trials: configurations with the recipe of their dataset, checked before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from medquant.config.load import join_sources, listed_mistakes
from medquant.config.mistakes import describe
from medquant.config.schema import Config, DataConfig, QuantConfig
from medquant.config.sources import Setting, Source, from_recipe
from medquant.config.sweep_source import Point, WrittenSweep
from medquant.data.volume import Dataset
from medquant.deploy.engines import check_engine
from medquant.errors import ConfigError, MedquantError
from medquant.evaluate.ledger import weigh_plan
from medquant.quant.network import QuantNetwork
from medquant.search.shared import Shared
from medquant.search.trials import Trial, trial_id
from medquant.train.bring import read_brought
from medquant.train.building import build_network, configured_method, configured_outputs, plan_network
from medquant.train.config_check import check_trainable

_FLOAT_QUANT: Mapping[str, Any] = QuantConfig(wbits=32, abits=32, edge_bits=32).model_dump(mode="json")


@dataclass(frozen=True)
class Facts:
    """What is known of a configuration before it is trained.

    Args:
        is_float: whether nothing of it is quantized.
        is_integer: whether it leaves as an integer program.
        parameters: numbers the float network holds.
        parameter_bytes: what the network will weigh.
    """

    is_float: bool
    is_integer: bool
    parameters: int
    parameter_bytes: int


class Listing:
    """Makes trials of points.

    Args:
        sweep: the sweep as written.
        shared: opens datasets.
    """

    def __init__(self, sweep: WrittenSweep, shared: Shared) -> None:
        self.sweep, self._shared = sweep, shared
        self._facts: dict[str, Facts] = {}

    def trials(self, points: Iterable[Point]) -> list[tuple[Point, Trial]]:
        """A trial for each point, equal ones once.

        Raises:
            ConfigError: one or more configurations that cannot run, all in one message.
        """
        found: dict[str, tuple[Point, Trial]] = {}
        mistakes: dict[tuple[str, str], list[str]] = {}
        for point in points:
            try:
                trial = self.trial(point, self._example())
                found.setdefault(trial.id, (point, trial))
            except MedquantError as error:
                for line in error.lines:
                    mistakes.setdefault((point.place, line), []).append(point.name)
        if mistakes:
            raise listed_mistakes([f"{place}: {_named(names)}: {line}" for (place, line), names in mistakes.items()])
        return list(found.values())

    def _example(self) -> dict[str, Any] | None:
        """What a sampler might choose, None where there is none: what is wrong with it is most likely wrong with all."""
        sample = self.sweep.file.sample
        return None if sample is None else {key: (each.choice or (each.low,))[0] for key, each in sample.space.items()}

    def trial(self, point: Point, sampled: Mapping[str, Any] | None = None, number: int = 0) -> Trial:
        """The trial of a point, with what a sampler chose for it.

        Raises:
            MedquantError: it cannot run, or its data cannot be read.
        """
        chosen = {key: self.sweep.resolve_path(key, value) for key, value in (sampled or {}).items()}
        extra = Source([Setting(key, value, "sample") for key, value in chosen.items()])
        sources = (*point.sources, extra)
        config, dataset = self._config(sources)
        facts = self.facts(config, dataset)
        trial = Trial(
            id=trial_id(config, dataset.content_sha256),
            name=point.name if sampled is None else f"{point.name} #{number}",
            config=config.model_dump(mode="json"),
            varied={**point.varied, **chosen},
            keep=self.sweep.file.keep,
            group="" if sampled is None else point.name,
        )
        if self.sweep.file.share_float and not facts.is_float and config.train.init is None and config.train.float_twin:
            trial = replace(trial, float_id=self.float_trial(trial).id)
        return trial

    def float_trial(self, trial: Trial) -> Trial:
        """The float network a trial shares with those that differ from it in quantization alone."""
        # Its batch norm statistics are taken over a number of batches that stands among the settings of quantization.
        quant = {**_FLOAT_QUANT, "calibration_batches": trial.config["quant"]["calibration_batches"]}
        config = Config.model_validate_json(json.dumps({**trial.config, "quant": quant}))
        dataset = self._shared.dataset(config)
        name = f"float network of {trial.name}"
        made = trial_id(config, dataset.content_sha256)
        return Trial(id=made, name=name, config=config.model_dump(mode="json"), is_float=True)

    def known_facts(self, trial: Trial) -> Facts:
        """What is known of a trial before it is trained."""
        config = Config.model_validate_json(json.dumps(dict(trial.config)))
        return self.facts(config, self._shared.dataset(config))

    def facts(self, config: Config, dataset: Dataset) -> Facts:
        """Check all that can be checked without training, once for each network and quantization.

        Raises:
            MedquantError: the configuration cannot run.
        """
        train, quant = config.train, config.quant
        size = f"{config.data.patch_size} {config.data.patch_slices}"
        key = f"{dataset.content_sha256} {config.model.model_dump_json()} {quant.model_dump_json()} {size} {train.init}"
        if key not in self._facts:
            self._facts[key] = _weigh(config, dataset)
        facts = self._facts[key]
        check_engine(config.eval.engine)
        check_trainable(config, facts.is_float, facts.is_integer, len(dataset.info.classes))
        return facts

    def _config(self, sources: tuple[Source, ...]) -> tuple[Config, Dataset]:
        named = {setting.key.partition(".")[2]: setting.value for source in sources for setting in source.settings if _is_data(setting)}
        init = next((s.value for source in reversed(sources) for s in source.settings if s.key == "train.init"), None)
        try:
            dataset = self._shared.dataset(Config(data=DataConfig.model_validate(named)))
        except ValidationError as error:
            raise ConfigError(*(message for _, message in describe(error))) from error
        recipe = dict(dataset.info.recipe)
        brought = None if init is None else read_brought(Path(str(init)))
        if brought is not None:
            own = {key: value for key, value in recipe.items() if not key.startswith("model.")}
            recipe = {**own, **brought.recipe, **brought.settings()}
        config = join_sources((from_recipe(recipe), *sources))
        if not isinstance(config, Config):
            raise ConfigError(*config)
        if brought is not None:
            brought.check_data(dataset.info)
            brought.check_config(config)
        return config, dataset


def _named(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"trial '{names[0]}'{more}"


def _is_data(setting: Setting) -> bool:
    return setting.key.startswith("data.")


def _weigh(config: Config, dataset: Dataset) -> Facts:
    inputs, outputs = len(dataset.info.channels), configured_outputs(config, len(dataset.info.classes))
    network = build_network(config, inputs, outputs)
    if config.train.channels_last and config.model.dimensions == 2:
        # As training lays it out: its graph is captured here, and not once more when the trial runs.
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    graph, plan = plan_network(config, network, inputs)
    method = configured_method(config)
    QuantNetwork(graph, plan, method)  # bits that do not go together
    parameters = sum(parameter.numel() for parameter in network.parameters())
    size = config.data.patch_size if config.model.dimensions == 2 else (*config.data.patch_size, config.data.patch_slices)
    weighed = weigh_plan(graph, method.stored(plan), parameters, config.quant.wbits, (1, inputs, *size))
    return Facts(plan.is_float, plan.is_integer and method.exact, parameters, weighed.parameter_bytes)
