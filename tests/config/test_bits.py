"""Bit rules. Expected bits are worked out by hand from the rule text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medquant.config.bits import BitRule, is_bits, parse_rule, parse_rules, resolve
from medquant.errors import UsageError

LAYERS = ["input", "enc1.conv1", "enc1.conv2", "dec1.conv1", "dec1.conv2", "head"]
UNIFORM = dict.fromkeys(LAYERS, (4, 6))
WIDTHS = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 32])


@pytest.mark.parametrize(
    ("text", "pattern", "weight", "activation"),
    [
        ("dec*=8/6", "dec*", 8, 6),
        ("dec*=8/", "dec*", 8, None),
        ("dec*=/6", "dec*", None, 6),
        ("head=32/32", "head", 32, 32),
        (" enc1.conv? = 1 / 2 ", "enc1.conv?", 1, 2),
        ("a=b=2/3", "a=b", 2, 3),
    ],
)
def test_parse_rule(text: str, pattern: str, weight: int | None, activation: int | None) -> None:
    assert parse_rule(text) == BitRule(pattern, weight, activation, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dec*", "no '='"),
        ("", "no '='"),
        ("=4/6", "names no layer"),
        ("dec*=4", "no '/'"),
        ("dec*=/", "no bits on either side"),
        ("dec*=0/6", "weight bits must be 1 to 8, or 32 for float; found '0'"),
        ("dec*=9/6", "weight bits must be 1 to 8, or 32 for float; found '9'"),
        ("dec*=4/16", "activation bits must be 1 to 8, or 32 for float; found '16'"),
        ("dec*=-4/6", "weight bits .* found '-4'"),
        ("dec*=4.0/6", "weight bits .* found '4.0'"),
        ("dec*=4/6/8", "activation bits .* found '6/8'"),
        ("dec*=٤/6", "weight bits"),
        ("dec*=" + "9" * 5000 + "/6", "weight bits"),
    ],
)
def test_bad_rules_are_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_rule(text)
    assert repr(text) in str(caught.value)


def test_all_bad_rules_are_named_together() -> None:
    with pytest.raises(UsageError) as caught:
        parse_rules(["a=4/6", "b", "c=99/1"])
    assert [line.split("'")[1] for line in str(caught.value).splitlines()] == ["b", "c=99/1"]


@given(st.text(min_size=1).map(str.strip).filter(bool), st.none() | WIDTHS, st.none() | WIDTHS)
def test_a_written_rule_is_read_back(pattern: str, weight: int | None, activation: int | None) -> None:
    text = f"{pattern}={'' if weight is None else weight}/{'' if activation is None else activation}"
    if weight is None and activation is None:
        with pytest.raises(UsageError):
            parse_rule(text)
    else:
        assert parse_rule(text) == BitRule(pattern, weight, activation, text)


@given(st.integers())
def test_widths(bits: int) -> None:
    assert is_bits(bits) == (bits in {1, 2, 3, 4, 5, 6, 7, 8, 32})


def test_last_match_wins_for_each_side_by_itself() -> None:
    rules = parse_rules(["*=2/3", "dec*=8/", "dec1.conv2=/5", "enc1.*=7/7"])
    assert resolve(rules, LAYERS, UNIFORM) == {
        "input": (2, 3),
        "enc1.conv1": (7, 7),
        "enc1.conv2": (7, 7),
        "dec1.conv1": (8, 3),
        "dec1.conv2": (8, 5),
        "head": (2, 3),
    }


def test_a_later_general_rule_hides_an_earlier_special_one() -> None:
    assert resolve(parse_rules(["head=8/8", "*=2/"]), LAYERS, UNIFORM)["head"] == (2, 8)


def test_without_rules_the_defaults_stand_in_the_order_of_the_layers() -> None:
    defaults = {**UNIFORM, "head": (8, 32)}
    assert list(resolve([], LAYERS, defaults).items()) == [(name, defaults[name]) for name in LAYERS]


def test_case_matters() -> None:
    with pytest.raises(UsageError, match="near: 'head'"):
        resolve(parse_rules(["Head=8/8"]), LAYERS, UNIFORM)
    assert resolve(parse_rules(["Head=8/8"]), ["head", "Head"], {"head": (4, 6), "Head": (4, 6)}) == {"head": (4, 6), "Head": (8, 8)}


@pytest.mark.parametrize(
    ("rule", "near"),
    [("haed=8/8", "'head'"), ("dec=8/8", "'dec1*'"), ("enc1.conv3=8/8", "'enc1.conv1'"), ("decoder1*=8/", "'dec1*'")],
)
def test_a_pattern_that_matches_nothing_names_near_layers(rule: str, near: str) -> None:
    with pytest.raises(UsageError, match="matches no layer; near: ") as caught:
        resolve(parse_rules([rule]), LAYERS, UNIFORM)
    assert near in str(caught.value)
    assert repr(rule) in str(caught.value)


def test_all_idle_patterns_are_named_and_point_to_the_plan() -> None:
    with pytest.raises(UsageError) as caught:
        resolve(parse_rules(["zzz=8/8", "head=8/8", "qqq*=2/2"]), LAYERS, UNIFORM)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all("medquant plan" in line for line in lines)


def test_a_network_without_layers_matches_nothing() -> None:
    with pytest.raises(UsageError, match="the network has none"):
        resolve(parse_rules(["*=8/8"]), [], {})


@given(st.lists(st.tuples(st.sampled_from(["*", "enc*", "dec*", "*.conv1", "head"]), st.none() | WIDTHS, WIDTHS), max_size=6))
def test_resolve_against_applying_rules_one_at_a_time(written: list[tuple[str, int | None, int]]) -> None:
    rules = [BitRule(pattern, weight, activation, "") for pattern, weight, activation in written]
    step = UNIFORM
    for rule in rules:
        step = resolve([rule], LAYERS, step)
    assert resolve(rules, LAYERS, UNIFORM) == step
