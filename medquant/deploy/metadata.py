"""What a packed model file says about itself beside the network: data, classes, scores, terms of use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from medquant.errors import shortened

_LONGEST_MODALITY = 16
_SPACING_MM = (1e-9, 1e6)
"""From electron microscopes, a few nanometres, to more than any scanner holds."""
_LARGEST = float(np.finfo(np.float64).max)


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


def _checked_scan(scan: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Scans are held against these facts: what could not be of any scan must not decide that."""
    unknown = sorted(scan.keys() - {"modality", "spacing_mm", "values"})
    if unknown:
        raise ValueError(f"found {shortened(repr(unknown))}, expected modality, spacing_mm and values")
    modality, spacing, values = scan.get("modality"), scan.get("spacing_mm"), scan.get("values", [])
    if not (modality is None or (isinstance(modality, str) and 0 < len(modality) <= _LONGEST_MODALITY and modality.isprintable())):
        raise ValueError(f"found the modality {shortened(repr(modality))}, expected a word such as CT, MR or EM, or null")
    if spacing is not None and not _is_spacing_range(spacing):
        raise ValueError(
            f"found spacing_mm {shortened(repr(spacing))}, expected null, or the least and the largest of three axes, "
            f"{_SPACING_MM[0]:g} to {_SPACING_MM[1]:g} mm"
        )
    if not (isinstance(values, list) and all(_is_range(pair) for pair in values)):
        raise ValueError(f"found values {shortened(repr(values))}, expected the lowest and the highest of each channel, finite")
    return scan


def _is_spacing_range(spacing: JsonValue) -> bool:
    if not (isinstance(spacing, list) and [len(each) for each in spacing if isinstance(each, list)] == [3, 3] and len(spacing) == 2):
        return False
    least, largest = (each if isinstance(each, list) else [] for each in spacing)
    return all(_is_range([low, high], *_SPACING_MM) for low, high in zip(least, largest, strict=True))


def _is_range(pair: JsonValue, least: float = -_LARGEST, most: float = _LARGEST) -> bool:
    if not isinstance(pair, list):
        return False
    numbers = [each for each in pair if isinstance(each, int | float) and not isinstance(each, bool)]
    # Compared and not converted: a whole number of JSON can be longer than any float.
    return len(pair) == len(numbers) == 2 and least <= numbers[0] <= numbers[1] <= most


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
    scan: Annotated[JsonDict, AfterValidator(_checked_scan)] = {}
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
            classes = ", ".join(f"{number} {shortened(name)}" for number, name in self.classes.items())
            scored = [shortened(name) for name in self.scored]
            raise ValueError(f"scored {scored} and positive_class {self.positive_class} must be among classes {shortened(classes, 400)}")
        ranges = self.scan.get("values", [])
        if isinstance(ranges, list) and len(ranges) not in (0, len(self.channels)):
            raise ValueError(f"scan: found values of {len(ranges)} channels, the model takes {len(self.channels)}")
        return self
