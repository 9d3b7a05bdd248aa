"""What may be chosen in a network: the layers whose bits are open, what each choice weighs, and the plan a choice makes."""

from __future__ import annotations

import glob
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from medquant.config.bits import BitRule, parse_rule, parse_rules
from medquant.config.schema import Config
from medquant.errors import UsageError
from medquant.evaluate.ledger import Ledger, tensors_alive, weigh_plan
from medquant.quant.formats import FLOAT_BITS
from medquant.quant.graph import Convolution, Graph, Input, Linear
from medquant.quant.methods.base import Method
from medquant.quant.plan import LayerPlan, QuantPlan, resolve_plan
from medquant.quant.sharing import find_sharing
from medquant.search.allocation import Sizes, Tensor


@dataclass(frozen=True)
class BitChoice:
    """The bits of the layers that were open; layers without an entry keep what the configuration says.

    Args:
        weights: layer → bits of its weights.
        activations: layer → bits of what it writes.
    """

    weights: Mapping[str, int]
    activations: Mapping[str, int] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Eight characters that tell one choice from another."""
        text = json.dumps([dict(self.weights), dict(self.activations)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class SearchSpace:
    """The open layers of one network.

    Args:
        config: of the network, with the user's own rules.
        graph: simplified.
        method: quantization method.
        weight_choices: bits a layer's weights may have, ascending.
        activation_choices: bits of what a layer writes, ascending.
        edges_open: whether the first and the last layer, and the image, are layers like others; not where ``quant.edge_bits`` is set.
        parameters: parameters of the float network.
        input_shape: image that activations are counted for, (N, C, *S).
    """

    config: Config
    graph: Graph
    method: Method
    weight_choices: tuple[int, ...]
    activation_choices: tuple[int, ...]
    edges_open: bool
    parameters: int
    input_shape: tuple[int, ...]

    # --- what is open -----------------------------------------------------------------------------------------------

    @property
    def own_rules(self) -> tuple[BitRule, ...]:
        """Rules of the user, whose layers are not open."""
        return parse_rules(self.config.quant.layer_bits)

    @property
    def weight_layers(self) -> tuple[str, ...]:
        """Layers whose weight bits are open, in the order they run."""
        edges = () if self.edges_open else (self.graph.convolutions[0].name, self.graph.convolutions[-1].name)
        ruled = [rule for rule in self.own_rules if rule.weight_bits is not None]
        plan = self._resolved(self.weight_choices[-1], self.activation_choices[-1], self.own_rules)
        return tuple(
            layer.name
            for layer in plan.layers
            if isinstance(self.graph[layer.name], Convolution | Linear)
            and layer.weight_bits != FLOAT_BITS
            and layer.name not in edges
            and not any(rule.matches(layer.name) for rule in ruled)
        )

    @property
    def activation_layers(self) -> tuple[str, ...]:
        """Layers for which the bits of what they write are open, the image among them."""
        ruled = [rule for rule in self.own_rules if rule.activation_bits is not None]
        plan = self._resolved(self.weight_choices[-1], self.activation_choices[-1], self.own_rules)
        return tuple(
            layer.name
            for layer in plan.layers
            if layer.activation_bits not in (None, FLOAT_BITS)
            and (self.edges_open or not isinstance(self.graph[layer.name], Input))
            and not any(rule.matches(layer.name) for rule in ruled)
        )

    @property
    def image(self) -> str:
        """Name of the image among the layers."""
        return next(operation.name for operation in self.graph if isinstance(operation, Input))

    # --- from a choice to a plan ------------------------------------------------------------------------------------

    def configured(self, choice: BitChoice) -> Config:
        """The configuration of a run with these bits: the commonest as its own, a rule for each layer that differs."""
        quant = self.config.quant
        wbits, abits = self._nominal(choice)
        plain = self._resolved(wbits, abits, ())
        rules = [text for layer in plain.layers if (text := _rule(layer, choice)) is not None]
        chosen = {"wbits": wbits, "abits": abits, "layer_bits": (*rules, *quant.layer_bits)}
        return self.config.model_copy(update={"quant": quant.model_copy(update=chosen)})

    def plan(self, choice: BitChoice) -> QuantPlan:
        """The resolved plan of a choice."""
        quant = self.configured(choice).quant
        return self._resolved(quant.wbits, quant.abits, parse_rules(quant.layer_bits))

    def weigh(self, choice: BitChoice) -> Ledger:
        """The ledger of a choice."""
        plan = self.method.stored(self.plan(choice))
        return weigh_plan(self.graph, plan, self.parameters, self._nominal(choice)[0], self.input_shape)

    def alone(self, layer: str, weight_bits: int | None, activation_bits: int | None) -> QuantPlan:
        """A plan with everything float but one layer's weights, or what it writes.

        Tensors that meet in a concatenation share a step, which integers and real values cannot do: the others of such a group are
        8 bits wide, and their step is the one that the narrow tensor asks for, as it would be in the network.
        """
        rules = [parse_rule(f"*={FLOAT_BITS}/{FLOAT_BITS}")]
        if weight_bits is not None:
            rules.append(parse_rule(f"{glob.escape(layer)}={weight_bits}/"))
        if activation_bits is not None:
            sharing = find_sharing(self.graph)
            together = [site for site, group in sharing.group.items() if group == sharing.group[layer] and site != layer]
            rules += [parse_rule(f"{glob.escape(site)}=/8") for site in together]
            rules.append(parse_rule(f"{glob.escape(layer)}=/{activation_bits}"))
        return self._resolved(self.weight_choices[-1], self.activation_choices[-1], rules)

    def _nominal(self, choice: BitChoice) -> tuple[int, int]:
        quant = self.config.quant
        weights = Counter(choice.weights.values()).most_common(1)
        activations = Counter(choice.activations.values()).most_common(1)
        wbits = weights[0][0] if weights else quant.wbits
        return wbits, activations[0][0] if activations else quant.abits

    def _resolved(self, wbits: int, abits: int, rules: tuple[BitRule, ...] | list[BitRule]) -> QuantPlan:
        return resolve_plan(self.graph, wbits, abits, self.config.quant.edge_bits, rules, self.method.default_bits)

    # --- what a choice weighs ---------------------------------------------------------------------------------------

    def uniform(self, bits: int) -> BitChoice:
        """Every open layer's weights with the same bits."""
        return BitChoice(dict.fromkeys(self.weight_layers, bits))

    def weight_sizes(self) -> tuple[Sizes, int]:
        """Bytes of each open layer by width, biases and exponents included, and the bytes of all other layers: the ledger's figures."""
        open_layers = self.weight_layers
        sizes: dict[str, dict[int, int]] = {name: {} for name in open_layers}
        fixed = 0
        for bits in self.weight_choices:
            rows = {row.name: row.parameter_bytes for row in self.weigh(self.uniform(bits)).rows}
            for name in open_layers:
                sizes[name][bits] = rows.pop(name)
            fixed = sum(rows.values())
        return sizes, fixed

    def tensors(self) -> tuple[dict[str, Tensor], list[tuple[str, ...]]]:
        """Every tensor of a run, and which are alive at each of its steps."""
        open_sites = set(self.activation_layers)
        by_bits = {bits: self._row_sizes(dict.fromkeys(open_sites, bits)) for bits in self.activation_choices}
        # With the narrowest open sites, what is left in a joined tensor is the part nobody chooses.
        sharing = find_sharing(self.graph)
        tensors = {}
        for operation in self.graph:
            name, sources = operation.name, sharing.sources[operation.name]
            chosen = tuple(source for source in sources if source in open_sites)
            others = len(chosen) < len(sources)
            sizes = {bits: found[name] for bits, found in by_bits.items()} if chosen else {}
            fixed = min(found[name] for found in by_bits.values()) if others or not chosen else 0
            tensors[name] = Tensor(chosen, sizes, fixed)
        return tensors, list(tensors_alive(self.graph))

    def _row_sizes(self, activations: Mapping[str, int]) -> dict[str, int]:
        weights = dict.fromkeys(self.weight_layers, self.weight_choices[-1])
        return {row.name: row.output_bytes for row in self.weigh(BitChoice(weights, activations)).rows}


def check_choices(space: SearchSpace) -> None:
    """Refuse widths the method does not have, and a network with nothing to choose.

    Raises:
        UsageError: either of them.
    """
    mistakes = []
    for option, chosen, known in (
        ("--wbits-choices", space.weight_choices, space.method.weight_bits),
        ("--abits-choices", space.activation_choices, space.method.activation_bits),
    ):
        if unknown := sorted(set(chosen) - known):
            can = ", ".join(map(str, sorted(known)))
            mistakes.append(f"{option}: method {space.method.name} has {can} bits; found {', '.join(map(str, unknown))}; leave them out")
    if not mistakes and not space.weight_layers:
        mistakes.append("no layer's weight bits are open: quant.layer_bits or the method fix all of them; leave out some rules")
    if mistakes:
        raise UsageError(*mistakes)


def with_graph(space: SearchSpace, graph: Graph) -> SearchSpace:
    """The same space over trained weights."""
    return replace(space, graph=graph)


def _rule(layer: LayerPlan, choice: BitChoice) -> str | None:
    weight, activation = choice.weights.get(layer.name), choice.activations.get(layer.name)
    left = "" if weight is None or weight == layer.weight_bits else str(weight)
    right = "" if activation is None or activation == layer.activation_bits else str(activation)
    return f"{glob.escape(layer.name)}={left}/{right}" if left or right else None
