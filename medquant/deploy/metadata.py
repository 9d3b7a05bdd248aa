"""What a packed model file says about itself beside the network: data, classes, scores, terms of use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator


def _plain(value: object) -> object:
    """JSON has no NaN and no infinity: a score that is not defined is stored as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def _by_number(classes: dict[int, str]) -> dict[int, str]:
    return dict(sorted(classes.items()))


JsonDict = Annotated[dict[str, JsonValue], BeforeValidator(_plain)]


class ModelMetadata(BaseModel):
    """What a model file says about itself beside the network. Plain values only; nothing of a patient belongs here.

    Args:
        preparation: the rules that make an image of a scan, as ``Preparation.to_json`` writes them.
        region: what of a scan the network sees: ``kind`` and, as it applies, ``margin_mm`` and ``minimum``.
        channels: names of the image channels, in order.
        scan: what the training scans were like: ``modality`` (``CT``, ``MR``, ``EM`` or None), ``spacing_mm`` (least and largest
            along the axes of the network's grid before resampling, None where files give none) and ``values`` (lowest and
            highest voxel of each channel).
        regions: classes joined for scoring.
        size_multiple: every spatial axis of an image must be a multiple of this.
        classes: class number → name for every value a mask can hold.
        scored: names of the classes that are scored, in order.
        positive_class: the class a network of one output finds; None where there is one output for each class.
        float_parameters: parameters of the float network it was trained from, batch norm included.
        dataset: name of the dataset.
        data_sha256: digest over the dataset's voxels and masks.
        split: case ids of each part, as ``Split.to_json`` writes it.
        config: the run's resolved configuration.
        metrics: scores by name; what is not finite becomes None.
        created_with: package → version.
        intended_use: what the model is for, and what it is not for.
        licence: terms under which it may be used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preparation: JsonDict
    region: JsonDict = {"kind": "whole"}
    channels: tuple[str, ...] = ("image",)
    scan: JsonDict = {}
    regions: dict[str, tuple[int, ...]] = {}
    size_multiple: Annotated[int, Field(ge=1, le=2**10)]
    classes: Annotated[dict[int, str], AfterValidator(_by_number)]
    scored: tuple[str, ...]
    positive_class: int | None = None
    float_parameters: Annotated[int, Field(ge=0, le=2**53)]
    dataset: str
    data_sha256: str
    split: JsonDict = {}
    config: JsonDict = {}
    metrics: JsonDict = {}
    created_with: dict[str, str] = {}
    intended_use: str = ""
    licence: str = ""

    @model_validator(mode="after")
    def _names_exist(self) -> ModelMetadata:
        unknown = [name for name in self.scored if name not in (*self.classes.values(), *self.regions)]
        if unknown or (self.positive_class is not None and self.positive_class not in self.classes):
            raise ValueError(f"scored {list(self.scored)} and positive_class {self.positive_class} must be among classes {self.classes}")
        return self
