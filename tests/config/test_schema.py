"""The schema: defaults as the design states them, limits tried at their edges."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from medquant.config.schema import Config, DataConfig, EvalConfig, ModelConfig, QuantConfig, TrainConfig

SECTIONS: list[type[BaseModel]] = [DataConfig, ModelConfig, QuantConfig, TrainConfig, EvalConfig]


def test_defaults() -> None:
    config = Config()
    assert (config.quant.wbits, config.quant.abits, config.quant.edge_bits) == (4, 6, 8)
    assert (config.train.epochs, config.train.lr, config.train.quant_lr, config.train.weight_decay) == (40, 2e-3, 5e-4, 1e-4)
    assert (config.data.path, config.data.patch_size, config.data.batch_size) == (None, (256, 256), 4)
    assert (config.model.name, config.model.channels, config.model.depth) == ("unet", 32, 4)
    assert (config.eval.split, config.eval.engine, config.schema_version) == ("test", "auto", 1)


@pytest.mark.parametrize("section", [Config, *SECTIONS])
def test_every_field_says_what_it_is_in_one_line(section: type[BaseModel]) -> None:
    for name, field in section.model_fields.items():
        assert field.description, name
        assert "\n" not in field.description
        assert not field.is_required()


@pytest.mark.parametrize("section", [Config, *SECTIONS])
def test_unknown_keys_are_refused_and_values_cannot_change(section: type[BaseModel]) -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        section.model_validate({"no_such_key": 1})
    name = next(iter(section.model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(section(), name, getattr(section(), name))


@pytest.mark.parametrize("field", ["wbits", "abits", "edge_bits"])
def test_bits(field: str) -> None:
    for bits in (1, 2, 3, 4, 5, 6, 7, 8, 32):
        assert getattr(QuantConfig.model_validate({field: bits}), field) == bits
    for bits in (-1, 0, 9, 12, 16, 31, 33):
        with pytest.raises(ValidationError, match=f"{field} must be 1 to 8, or 32 for float; found {bits}"):
            QuantConfig.model_validate({field: bits})


@pytest.mark.parametrize("side", [16, 24, 200, 1024])
def test_patch_sides_that_fit(side: int) -> None:
    assert DataConfig.model_validate({"patch_size": [side, 16]}).patch_size == (side, 16)


@pytest.mark.parametrize("side", [-16, 0, 8, 20, 1032, 16.0, "16", True])
def test_patch_sides_that_do_not(side: object) -> None:
    with pytest.raises(ValidationError):
        DataConfig.model_validate({"patch_size": [side, 16]})


@pytest.mark.parametrize(("depth", "side", "fits"), [(4, 24, True), (5, 24, False), (5, 48, True), (6, 48, False), (6, 64, True)])
def test_patches_must_halve_at_every_level(depth: int, side: int, fits: bool) -> None:
    # depth levels halve depth - 1 times: 5 levels need multiples of 16, 6 levels of 32
    values = {"model": {"depth": depth}, "data": {"patch_size": [side, 64]}}
    if fits:
        assert Config.model_validate(values).model.depth == depth
    else:
        with pytest.raises(ValidationError, match=f"multiples of {2 ** (depth - 1)} for model.depth {depth}"):
            Config.model_validate(values)


@pytest.mark.parametrize(
    ("section", "key", "inside", "outside"),
    [
        (ModelConfig, "channels", [1, 256], [0, 257]),
        (ModelConfig, "depth", [2, 6], [1, 7]),
        (ModelConfig, "dimensions", [2, 3], [1, 4, 2.0, "2"]),
        (ModelConfig, "dropout", [0, 0.5], [-0.1, 1.0, float("nan")]),
        (DataConfig, "batch_size", [1], [0, 1.0, True, "4"]),
        (DataConfig, "path", ["x", None], ["", 3]),
        (TrainConfig, "lr", [1e-6, 1], [0, -1e-3, float("inf"), float("nan"), "1e-4", True]),
        (TrainConfig, "warm_fraction", [0, 1], [-0.01, 1.01]),
        (TrainConfig, "seed", [0, 2**32 - 1], [-1, 2**32]),
        (TrainConfig, "threads", [None, 1], [0, 1.5]),
        (TrainConfig, "channels_last", [True, False], ["no", 1, None]),
        (TrainConfig, "device", ["cpu"], ["tpu", None]),
        (QuantConfig, "freeze_exponents_at", [0, 1], [-0.1, 1.1]),
        (QuantConfig, "layer_bits", [[], ["a=1/2"], ("a=1/2",)], ["a=1/2", ["a"], ["a=9/1"], [3]]),
        (Config, "schema_version", [1], [0, 2, True, 1.0, "1"]),
    ],
)
def test_limits(section: type[BaseModel], key: str, inside: list[object], outside: list[object]) -> None:
    for value in inside:
        section.model_validate({key: value})
    for value in outside:
        with pytest.raises(ValidationError):
            section.model_validate({key: value})
