"""The file of a sweep: what all its trials have in common, and what they vary. Its schema, and the trials it lists."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from medquant.config.schema import Name, Section, Seed

Scalar = bool | int | float | str | None
MINIMISED = ("parameter_bytes", "paper_bytes", "model_file_bytes", "activation_peak_bytes")
"""Sizes a search can make small."""


def _as_choice(value: object) -> object:
    return {"choice": value} if isinstance(value, list) else value


class Range(Section):
    """What a sampler may choose for one key: ``choice`` alone, or ``low`` and ``high``; a bare list is a choice."""

    choice: tuple[JsonValue, ...] | None = Field(default=None, strict=False, min_length=1, description="one of these values")
    low: int | float | None = Field(default=None, description="smallest value")
    high: int | float | None = Field(default=None, description="largest value")
    log: bool = Field(default=False, description="chosen by its logarithm")
    step: Annotated[int | float, Field(gt=0)] | None = Field(default=None, description="distance of the values, counted from low")
    whole: bool = Field(default=False, alias="int", description="whole numbers")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.choice is not None:
            if (self.low, self.high, self.log, self.step, self.whole) != (None, None, False, None, False):
                raise ValueError("choice stands alone; leave out low, high, log, step and int, or the choice")
            return self
        if self.low is None or self.high is None:
            raise ValueError("expected choice, or both low and high")
        if not self.low < self.high:
            raise ValueError(f"low must be below high; found {self.low} and {self.high}")
        if self.log and self.step is not None:
            raise ValueError("log and step do not go together; leave one out")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low above 0; found {self.low}")
        if self.whole and any(isinstance(value, float) for value in (self.low, self.high, self.step)):
            raise ValueError(f"int needs whole numbers; found low {self.low}, high {self.high}, step {self.step}")
        return self


class Sample(Section):
    """Trials chosen by a sampler of Optuna."""

    sampler: Literal["tpe", "random", "qmc", "nsga2", "gp"] = Field(default="tpe", description="sampler of Optuna")
    trials: int = Field(ge=1, le=1_000_000, description="trials of each study")
    seed: Seed = Field(default=0, description="seed of the sampler")
    space: dict[Name, Annotated[Range, BeforeValidator(_as_choice)]] = Field(min_length=1, description="dotted key → what may be chosen")
    maximise: Literal["dice"] = Field(default="dice", description="dice: mean validation Dice; the test part chooses nothing")
    minimise: Literal["parameter_bytes", "paper_bytes", "model_file_bytes", "activation_peak_bytes"] | None = Field(
        default=None, description="a size to be made small as well"
    )


class Prune(Section):
    """Trials that do badly beside the others are ended early, by their validation Dice."""

    pruner: Literal["median", "halving", "hyperband"] = Field(default="median", description="pruner of Optuna")
    warmup_trials: int = Field(default=5, ge=0, le=1_000_000, description="trials that are never ended early (median)")
    warmup_epochs: int = Field(
        default=0, ge=0, le=1_000_000, description="epochs before which no trial is ended; least epochs of the others"
    )
    interval: int = Field(default=1, ge=1, le=1_000_000, description="epochs from one look to the next (median)")


class SweepFile(Section):
    """A sweep as it is written."""

    schema_version: Literal[1] = Field(default=1, description="version of this schema")
    config: Name | None = Field(default=None, description="configuration file all trials start from, relative to this file")
    set: dict[Name, JsonValue] = Field(default={}, description="dotted key → value of all trials")
    trials: tuple[dict[Name, JsonValue], ...] = Field(default=(), strict=False, description="rows: name, and dotted key → value")
    grid: dict[Name, Annotated[tuple[JsonValue, ...], Field(min_length=1, strict=False)]] = Field(
        default={}, strict=False, description="dotted key → values, each with each"
    )
    sample: Sample | None = Field(default=None, description="further keys, chosen by a sampler")
    prune: Prune | None = Field(default=None, description="end trials early")
    keep: Literal["run", "model", "scores"] = Field(default="scores", description="what stays of a trial on disk")
    share_float: bool = Field(default=False, description="one float network for all trials that differ in quantization alone")

    @model_validator(mode="after")
    def _prunes_one_goal(self) -> Self:
        if self.prune is not None and self.sample is not None and self.sample.minimise is not None:
            raise ValueError("prune and sample.minimise do not go together: Optuna prunes by one figure; leave one out")
        return self

    def resolved(self) -> dict[str, Any]:
        """Plain JSON values, every default written out."""
        return self.model_dump(mode="json", by_alias=True)
