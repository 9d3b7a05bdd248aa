"""Exit codes are those of the design's table; near names are checked by hand."""

from __future__ import annotations

import inspect

import pytest

from medquant import errors


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("MedquantError", 1),
        ("UsageError", 2),
        ("ConfigError", 3),
        ("InputError", 4),
        ("GeometryError", 5),
        ("CheckpointError", 6),
        ("EngineMismatchError", 7),
        ("QualityGateError", 8),
        ("InterruptedRunError", 130),
    ],
)
def test_exit_code(name: str, code: int) -> None:
    kind = getattr(errors, name)
    assert kind.exit_code == code
    assert kind("a message").exit_code == code
    assert str(kind("a message")) == "a message"


def test_every_kind_is_a_medquant_error_with_its_own_code() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]
    assert all(issubclass(kind, errors.MedquantError) for kind in kinds)
    assert len({kind.exit_code for kind in kinds}) == len(kinds) == 9


def test_unknown_name_puts_near_matches_first_and_lists_all_in_order() -> None:
    line = errors.unknown_name("method", "fixd_point", ["ternary", "fixed_point", "binary"])
    assert line == "unknown method 'fixd_point' (did you mean 'fixed_point'?); known: binary, fixed_point, ternary"


def test_unknown_name_offers_nothing_where_nothing_is_near() -> None:
    assert errors.unknown_name("engine", "zzz", ["torch"]) == "unknown engine 'zzz'; known: torch"
    assert errors.unknown_name("engine", "torch", []) == "unknown engine 'torch'; known: none"
