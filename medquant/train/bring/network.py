"""A network trained elsewhere, as it was read: its description, where its weights are, what it says of its classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from medquant.config.schema import Config, ModelConfig
from medquant.data.volume import DatasetInfo
from medquant.errors import CheckpointError, ConfigError, InputError
from medquant.models.brought import brought_facts, build_brought
from medquant.models.brought_facts import NetworkFacts

_LISTED = 3
"""Differing tensors that a message names."""


@dataclass(frozen=True)
class BroughtNetwork:
    """What a folder holds.

    Args:
        place: the folder.
        family: of :data:`medquant.models.brought.BROUGHT`.
        arguments: plain data, as ``model.arguments``.
        weights: reads the tensors by name; they are large, and not wanted where only the description is.
        classes: number → name as the folder says, empty where it does not.
        recipe: settings that follow from what it says of its images, dotted key → value.
        notes: what the folder holds that is not taken over.
    """

    place: Path
    family: str
    arguments: Mapping[str, object]
    weights: Callable[[], dict[str, Tensor]]
    classes: Mapping[int, str] = field(default_factory=dict)
    recipe: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def facts(self) -> NetworkFacts:
        """What it reads and writes."""
        return brought_facts(self.family, self.arguments)

    def check_data(self, info: DatasetInfo) -> list[str]:
        """Refuse data the network cannot have been made for.

        Returns:
            Lines worth saying.

        Raises:
            InputError: another number of channels or classes.
        """
        facts, count = self.facts, len(info.classes)
        if facts.inputs != len(info.channels):
            raise InputError(f"{self.place}: takes {facts.inputs} channels, {info.name} has {len(info.channels)}; give data with as many")
        if facts.outputs != count and (facts.outputs, count) != (1, 2):
            found = ", ".join(f"{number} {name}" for number, name in self.classes.items()) or f"{facts.outputs} outputs"
            expected = ", ".join(f"{number} {name}" for number, name in info.classes.items())
            raise InputError(f"{self.place}: finds {found}; {info.name} holds {expected}: give data with these classes")
        named = {number: name.lower() for number, name in self.classes.items()}
        ours = {int(number): name.lower() for number, name in info.classes.items()}
        if named and named != ours:
            return [f"classes are called {dict(self.classes)} there and {dict(info.classes)} in the data; they are matched by number"]
        return []

    def settings(self) -> dict[str, object]:
        """The settings of ``model.*`` that describe it, dotted key → value."""
        facts = self.facts
        # Depth serves the checks of the configuration alone; it cannot say more than six levels.
        depth = min(max(facts.size_multiple.bit_length(), 2), 6)
        return {
            "model.name": self.family,
            "model.arguments": dict(self.arguments),
            "model.dimensions": facts.dimensions,
            "model.depth": depth,
        }

    def check_config(self, config: Config) -> None:
        """Refuse a configuration that says something else of the network, or patches that do not fit it.

        Raises:
            ConfigError: names the key.
        """
        settings, default = self.settings(), ModelConfig()
        expected = {key: settings.get(f"model.{key}", getattr(default, key)) for key in ModelConfig.model_fields}
        stated = [f"model.{key}" for key, value in expected.items() if getattr(config.model, key) != value]
        if stated:
            raise ConfigError(f"train.init {self.place} brings its own network; leave out {', '.join(stated)}")
        multiple, data = self.facts.size_multiple, config.data
        sides = (*data.patch_size, data.patch_slices) if self.facts.dimensions == 3 else data.patch_size
        if any(side % multiple for side in sides):
            raise ConfigError(
                f"{self.place}: takes images whose sides are multiples of {multiple}; found patches of {'×'.join(map(str, sides))}: "
                "change data.patch_size or data.patch_slices"
            )

    def load_into(self, network: nn.Module) -> None:
        """Put the weights into a network of these arguments.

        Raises:
            CheckpointError: names or shapes differ; the first of them are named.
        """
        state = self.weights()
        self._compare(state, network)
        network.load_state_dict(state)

    def check_weights(self) -> None:
        """Compare the weights with the description, without memory for a second set.

        Raises:
            CheckpointError: names or shapes differ.
            ConfigError: the description makes no network.
        """
        self._compare(self.weights(), build_brought(self.family, self.arguments, check_only=True))

    def _compare(self, state: Mapping[str, Tensor], network: nn.Module) -> None:
        own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
        differing = [name for name in [*own, *sorted(set(found) - set(own))] if own.get(name) != found.get(name)]
        if differing:
            listed = "; ".join(f"{name} ({_shape(found.get(name))}, expected {_shape(own.get(name))})" for name in differing[:_LISTED])
            raise CheckpointError(
                f"{self.place}: weights of another network: {len(differing)} of {len(set(own) | set(found))} tensors differ: {listed}; "
                "give the weights that this description belongs to"
            )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else "×".join(map(str, shape)) or "a scalar"
