"""The header of a packed model file: canonical JSON, its schema, and the way from older schemas."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from medquant.deploy.metadata import ModelMetadata
from medquant.deploy.stored_nodes import StoredConvolution, StoredNode
from medquant.errors import CheckpointError

SCHEMA_VERSION = 3
FIRST_COMPRESSED_VERSION = 3
"""From this version on the header is deflated: hashes, names and the split of a large dataset would outweigh a small network."""
REMEDY = "copy the file again or export the model anew"

TensorRole = Literal["weight", "bias", "exponents"]
ROLES: tuple[TensorRole, ...] = ("weight", "bias", "exponents")
BIAS_BITS = 32
EXPONENT_BITS = 8


_SINCE_VERSION_2 = ("preparation", "region", "channels", "regions")
"""Metadata that version 1 had not."""


def _with_preparation(values: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Version 1 knew a normalisation, and took every scan as it was stored, as a whole, with one channel."""
    metadata = values.get("metadata")
    if not isinstance(metadata, dict):
        return values
    later = sorted({"coarse", *_SINCE_VERSION_2} & {*values, *metadata})
    if later or "normalisation" not in metadata:
        raise ValueError(
            f"found {', '.join(later) or 'no normalisation'} in version 1, which has a normalisation and nothing of later versions"
        )
    rest = {key: value for key, value in metadata.items() if key != "normalisation"}
    grid: JsonValue = {"slice_axis": "stored", "spacing_mm": None}
    return {**values, "metadata": {**rest, "preparation": {"normalisation": metadata.get("normalisation"), "grid": grid}}}


def _without_scan(values: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Version 2 said nothing of the scans it was trained on; what is not known stays empty."""
    metadata = values.get("metadata")
    if isinstance(metadata, dict) and "scan" in metadata:
        raise ValueError("found scan in version 2, which says nothing of scans")
    return values


# Schema version → what turns a header of that version (as JSON values) into one of the next.
_UPGRADES: dict[int, Callable[[dict[str, JsonValue]], dict[str, JsonValue]]] = {1: _with_preparation, 2: _without_scan}


class TensorEntry(NamedTuple):
    """Where one array of a convolution lies; in the JSON a list in this order, since keys would outweigh small tensors.

    Args:
        node: the convolution.
        role: which of its arrays.
        bits: stored width of an element.
        shape: shape of the array.
        offset: bytes from the start of the tensor data.
        size_bytes: ``ceil(elements * bits / 8)``.
        sha256: digest of these bytes, as URL-safe base64 without padding.
    """

    node: str
    role: TensorRole
    bits: Annotated[int, Field(ge=1, le=32)]
    shape: Annotated[tuple[Annotated[int, Field(ge=1, le=2**40)], ...], Field(min_length=1, max_length=5)]
    offset: Annotated[int, Field(ge=0)]
    size_bytes: Annotated[int, Field(ge=1)]
    sha256: str


class CoarseEntry(BaseModel):
    """Where the coarse network lies: a model file of its own, behind the tensors.

    Args:
        offset: bytes from the start of the tensor data.
        size_bytes: its length.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    offset: Annotated[int, Field(ge=0)]
    size_bytes: Annotated[int, Field(ge=1)]


def tensor_sha256(data: bytes) -> str:
    """The digest of a tensor's bytes as a :class:`TensorEntry` holds it."""
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


class Header(BaseModel):
    """What the file holds: the nodes in the order they run, the place of every tensor, the metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: tuple[StoredNode, ...]
    output_exponents: tuple[int, ...]
    tensors: tuple[TensorEntry, ...]
    metadata: ModelMetadata
    coarse: CoarseEntry | None = None

    def wanted_tensors(self) -> list[tuple[str, TensorRole, int]]:
        """Node, role and bits of each tensor the nodes ask for, in the order of the file."""
        convolutions = [node for node in self.nodes if isinstance(node, StoredConvolution)]
        return [
            (node.name, role, bits)
            for node in convolutions
            for role, bits in ((ROLES[0], node.weight_bits), (ROLES[1], BIAS_BITS), (ROLES[2], EXPONENT_BITS))
        ]

    def to_bytes(self) -> bytes:
        """The canonical JSON: one header has one spelling."""
        return _canonical(self.model_dump(mode="json"))


def deflate(text: bytes) -> bytes:
    """A header's JSON as it stands in the file."""
    return zlib.compress(text, 9)


def inflate(data: bytes, most_bytes: int) -> bytes:
    """The JSON of a stored header; never makes more than ``most_bytes`` of it.

    Raises:
        CheckpointError: it is not deflated, longer than that, or something follows it.
    """
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(data, most_bytes + 1)
    except zlib.error as error:
        raise CheckpointError(f"header: found no deflated JSON ({error}); {REMEDY}") from error
    if len(text) > most_bytes or not stream.eof or stream.unused_data:
        raise CheckpointError(
            f"header: found {'more' if len(text) > most_bytes else 'other'} than one deflated JSON of at most {most_bytes} bytes; {REMEDY}"
        )
    return text


def parse_header(text: bytes, version: int) -> Header:
    """Read a header of schema ``version``, which is at most :data:`SCHEMA_VERSION`.

    Raises:
        CheckpointError: it is no JSON, a field is missing, unknown or out of range, or there is no way from its version.
    """
    try:
        header = Header.model_validate_json(text if version == SCHEMA_VERSION else _upgraded(text, version), strict=True)
        # Also refuses a key that stands twice, of which a parser would take one in silence.
        canonical = version != SCHEMA_VERSION or header.to_bytes() == text
    except ValidationError as error:
        raise CheckpointError(f"header: {_mistakes(error)}; {REMEDY}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"header: {error}; {REMEDY}") from error
    if not canonical:
        raise CheckpointError(f"header: found JSON in another spelling than medquant writes, expected sorted keys, each once; {REMEDY}")
    return header


def _canonical(values: dict[str, JsonValue]) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _upgraded(text: bytes, version: int) -> bytes:
    steps = [_UPGRADES.get(step) for step in range(version, SCHEMA_VERSION)]
    values = json.loads(text)
    # As with the present version: what is spelt otherwise (a key that stands twice) was not written by medquant.
    if not isinstance(values, dict) or _canonical(values) != text:
        raise ValueError("found no JSON as medquant writes it, expected sorted keys, each once")
    for upgrade in steps:
        if upgrade is None:
            raise CheckpointError(f"found schema version {version}, expected {SCHEMA_VERSION}: no way to upgrade it; export the model anew")
        values = upgrade(values)
    return _canonical(values)


def _mistakes(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False)
    shown = [f"{'.'.join(str(part) for part in mistake['loc']) or 'JSON'}: {mistake['msg']}" for mistake in found[:3]]
    return "; ".join(shown) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
