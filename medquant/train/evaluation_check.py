"""What of an ``eval.json`` tables and plots rely on, checked before it is used: the file may come from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds characters that cannot be shown")
    return text


_Name = Annotated[str, Field(max_length=256), AfterValidator(_printable)]
_Bytes = Annotated[int, Field(ge=0, le=2**62)]
_Bits = Annotated[int, Field(ge=1, le=32, strict=True)]
_Dice = Annotated[float, Field(ge=0.0, le=1.0)] | None


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)


class _Summary(_Part):
    mean: float | None = None
    interval_95: tuple[float, float] | None = None


_Summaries = Annotated[dict[_Name, _Summary], Field(max_length=4096)]


class _Scores(_Part):
    dice: Annotated[dict[_Name, _Summary], Field(min_length=1, max_length=256)]
    metrics: _Summaries = {}


class _Case(_Part):
    id: _Name
    dice: Annotated[dict[_Name, _Dice], Field(max_length=256)]


class _Layer(_Part):
    name: _Name
    weight_bytes: _Bytes | None = None
    bias_bytes: _Bytes | None = None
    exponent_bytes: _Bytes | None = None
    format_bytes: _Bytes | None = None


class _Bitwidths(_Part):
    weights: _Bits
    activations: _Bits


class _Memory(_Part):
    parameter_bytes: _Bytes | None = None
    paper_bytes: _Bytes | None = None
    float_bytes: _Bytes | None = None
    model_file_bytes: _Bytes | None = None
    activation_peak_bytes: _Bytes | None = None
    float_activation_peak_bytes: _Bytes | None = None
    process_peak_bytes: _Bytes | None = None
    layers: list[_Layer] | None = None


class _Data(_Part):
    content_sha256: _Name


class _Split(_Part):
    cases: list[_Name]


class _Evaluation(_Scores):
    metrics: _Summaries
    memory: _Memory
    bits: _Bitwidths
    data: _Data
    split: _Split
    float_twin: _Scores | None = None
    official_metrics: list[_Name] | None = None
    network: dict[_Name, object] | None = None
    cases: list[_Case] = []
    baseline: dict[_Name, dict[_Name, _Dice]] = {}
    scoring: dict[_Name, object] = {}


def evaluation_fault(document: object) -> str | None:
    """Why a JSON value is no evaluation, in a few words that repeat nothing of it; None where it is one."""
    if not isinstance(document, Mapping):
        return "not an evaluation"
    try:
        _Evaluation.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        # Keys below the first are the file's own.
        return f"not an evaluation ({first['loc'][0] if first['loc'] else 'it'}: {first['msg']})"
    return None
