"""Bits of single layers as people type them: ``PATTERN=W/A``, for example ``dec*=8/`` or ``head=32/32``.

``PATTERN`` is a glob on layer names (``*``, ``?`` and ``[...]``, case matters). ``W`` are the bits of the weights, ``A`` those of
the activations; either may be left out. Rules apply in order, and for each side the last match wins.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from medquant.errors import UsageError

FLOAT_BITS = 32
"""The width that stands for "not quantized"."""

MAX_BITS = 8
"""The widest integer a layer may use."""

_FORM = "expected PATTERN=W/A, for example 'dec*=8/6', 'dec*=8/' or 'dec*=/6'"
# ASCII digits only: int() would also take '٤', '1_0' and '+4', which nobody means.
_DIGITS = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class BitRule:
    """One rule for the bits of some layers.

    Args:
        pattern: glob on layer names, as :func:`fnmatch.fnmatchcase` reads it.
        weight_bits: 1 to 8, 32 for float, or None to leave the weights as they are.
        activation_bits: likewise for what the layer writes.
        text: the rule as it was typed, for messages.
    """

    pattern: str
    weight_bits: int | None
    activation_bits: int | None
    text: str

    def matches(self, layer: str) -> bool:
        """Whether the rule speaks of this layer."""
        return fnmatchcase(layer, self.pattern)


def is_bits(bits: int) -> bool:
    """Whether a layer may have this width: 1 to 8, or 32 for float."""
    return 1 <= bits <= MAX_BITS or bits == FLOAT_BITS


def parse_rule(text: str) -> BitRule:
    """Read one rule of the form ``PATTERN=W/A``.

    Raises:
        UsageError: a part is missing, both sides are empty, or a width is not 1 to 8 or 32.
    """
    pattern, equals, widths = (part.strip() for part in text.rpartition("="))
    if not equals:
        raise UsageError(f"bit rule {text!r} has no '='; {_FORM}")
    if not pattern:
        raise UsageError(f"bit rule {text!r} names no layer before the '='; {_FORM}")
    weight, slash, activation = (part.strip() for part in widths.partition("/"))
    if not slash:
        raise UsageError(f"bit rule {text!r} has no '/' between weight and activation bits; {_FORM}")
    if not weight and not activation:
        raise UsageError(f"bit rule {text!r} gives no bits on either side of the '/'; {_FORM}")
    return BitRule(pattern, _parse_bits(text, "weight", weight), _parse_bits(text, "activation", activation), text)


def parse_rules(texts: Iterable[str]) -> tuple[BitRule, ...]:
    """Read rules in order.

    Raises:
        UsageError: as :func:`parse_rule`; all bad rules are named together, one a line.
    """
    rules, mistakes = [], []
    for text in texts:
        try:
            rules.append(parse_rule(text))
        except UsageError as error:
            mistakes.append(str(error))
    if mistakes:
        raise UsageError(*mistakes)
    return tuple(rules)


def resolve(rules: Sequence[BitRule], layer_names: Sequence[str], defaults: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Decide the bits of every layer.

    Args:
        rules: in the order they apply; for each side the last match wins.
        layer_names: all layers a rule may name.
        defaults: (weight bits, activation bits) of each layer before any rule.

    Returns:
        (weight bits, activation bits) by layer, in the order of ``layer_names``.

    Raises:
        UsageError: one or more patterns match no layer; near matches are named.
    """
    idle = [rule for rule in rules if not any(rule.matches(name) for name in layer_names)]
    if idle:
        raise UsageError(*(_matches_nothing(rule, layer_names) for rule in idle))
    resolved: dict[str, tuple[int, int]] = {}
    for name in layer_names:
        weight, activation = defaults[name]
        for rule in rules:
            if rule.matches(name):
                weight = weight if rule.weight_bits is None else rule.weight_bits
                activation = activation if rule.activation_bits is None else rule.activation_bits
        resolved[name] = (weight, activation)
    return resolved


def _parse_bits(text: str, side: str, digits: str) -> int | None:
    if not digits:
        return None
    if not _DIGITS.fullmatch(digits) or not is_bits(int(digits)):
        raise UsageError(f"bit rule {text!r}: {side} bits must be 1 to 8, or 32 for float; found {digits!r}")
    return int(digits)


def _matches_nothing(rule: BitRule, layer_names: Sequence[str]) -> str:
    if not layer_names:
        return f"bit rule {rule.text!r} matches no layer: the network has none"
    # The stem of the pattern is compared with whole names and with what stands before each dot ('dec1' of 'dec1.conv1').
    prefixes = {name[:end] for name in layer_names for end in _dots(name)}
    near = difflib.get_close_matches(rule.pattern.strip("*?"), [*layer_names, *sorted(prefixes)], n=3, cutoff=0.5)
    if near:
        found = ", ".join(f"'{name}*'" if name in prefixes else repr(name) for name in near)
        return f"bit rule {rule.text!r} matches no layer; near: {found}"
    shown = ", ".join(layer_names[:5]) + (", ..." if len(layer_names) > 5 else "")
    return f"bit rule {rule.text!r} matches no layer; `medquant plan` prints all {len(layer_names)} names: {shown}"


def _dots(name: str) -> list[int]:
    return [position for position, character in enumerate(name) if character == "."]
