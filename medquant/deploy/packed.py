"""The packed model file ``.mq``: everything that passes from training to prediction, and nothing that could run.

Layout, schema version 3, all numbers little-endian:

====================  ==================================================================================================
bytes                 content
====================  ==================================================================================================
0 to 7                ``MEDQUANT``
8 to 11               schema version, uint32
12 to 19              length of the header as stored, uint64
20 ...                header: canonical JSON (sorted keys, no blanks, UTF-8), deflated (zlib) since version 3,
                      see :class:`~medquant.deploy.header.Header`
... multiple of 64    zeros
tensor data           each tensor begins at a multiple of 64 from the file's start, zeros between them
coarse network        where the header names one: a whole model file, at the next multiple of 64
last 32               SHA-256 over every byte before
====================  ==================================================================================================

Weights are packed at their true width (:mod:`medquant.deploy.bitpacking`), biases are int32, exponents int8.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from medquant.data.atomic import write_atomically
from medquant.deploy.bitpacking import pack, packed_size_bytes, unpack
from medquant.deploy.header import (
    BIAS_BITS,
    EXPONENT_BITS,
    FIRST_COMPRESSED_VERSION,
    REMEDY,
    SCHEMA_VERSION,
    CoarseEntry,
    Header,
    TensorEntry,
    TensorRole,
    deflate,
    inflate,
    parse_header,
    tensor_sha256,
)
from medquant.deploy.metadata import ModelMetadata
from medquant.deploy.program_check import check_program
from medquant.deploy.stored_nodes import StoredConvolution, store_node
from medquant.deploy.stored_rules import check_rules
from medquant.errors import CheckpointError, ConfigError, UsageError
from medquant.quant.program import ConvolutionNode, IntegerProgram, Node, WeightArray

__all__ = ["MAGIC", "ModelMetadata", "PackedModel", "load_model", "save_model"]

MAGIC = b"MEDQUANT"

_PREFIX = struct.Struct("<8sIQ")
_ALIGNMENT = 64
_DIGEST_BYTES = 32
_MAX_HEADER_BYTES = 1 << 26
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class PackedModel:
    """A model read from a file.

    Args:
        program: the network.
        metadata: what the file says beside it.
        size_bytes: size of the file.
        sha256: hex digest of the whole file, as ``sha256sum`` prints it.
        coarse: the network that finds the region, None where the whole scan is taken.
    """

    program: IntegerProgram
    metadata: ModelMetadata
    size_bytes: int
    sha256: str
    coarse: PackedModel | None = None


# --- writing ----------------------------------------------------------------------------------------------------------


def save_model(path: Path, program: IntegerProgram, metadata: ModelMetadata, coarse: Path | None = None) -> None:
    """Write a model file in one step: a reader finds the old file or the new one, never a part.

    Args:
        path: the file.
        program: the network.
        metadata: what the file says beside it.
        coarse: model file of the network that finds the region; it goes into this one.

    Raises:
        CheckpointError: the program or its metadata cannot be stored, or the file cannot be written; what stood at
            ``path`` before is left as it was.
    """
    try:
        _check_model(program, metadata)
        check_rules(metadata, coarse is not None)
        entries, blocks = _tensors(program)
        nodes = tuple(store_node(node) for node in program)
        place = None
        if coarse is not None:
            # What a reader of this file would refuse is refused now.
            if load_model(coarse).coarse is not None:
                raise CheckpointError(f"the coarse network {coarse} holds another one, expected none; train it without a region")
            blocks.append(coarse.read_bytes())
            place = CoarseEntry(offset=_aligned(_end_of(entries)), size_bytes=len(blocks[-1]))
        header = Header(nodes=nodes, output_exponents=program.output_exponents, tensors=tuple(entries), metadata=metadata, coarse=place)
        text = header.to_bytes()
        if len(text) > _MAX_HEADER_BYTES:
            raise CheckpointError(f"the header takes {len(text)} bytes, expected at most {_MAX_HEADER_BYTES}; shorten the metadata")
        # A file that could be written but not read again would be found out too late.
        parse_header(text, SCHEMA_VERSION)
    except (CheckpointError, ConfigError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be written: {error}") from error
    try:
        write_atomically(path, lambda stream: _write(stream, deflate(text), blocks))
    except UsageError as error:
        raise CheckpointError(str(error)) from error


def _check_model(program: IntegerProgram, metadata: ModelMetadata) -> None:
    outputs = check_program(program, metadata.size_multiple)
    if outputs == 1 and metadata.positive_class is None:
        raise ConfigError("the network has one output, but the metadata names no positive class")
    if outputs > 1 and metadata.positive_class is not None:
        raise ConfigError(f"the network has {outputs} outputs, but the metadata names a positive class, which only one output has")


def _tensors(program: IntegerProgram) -> tuple[list[TensorEntry], list[bytes]]:
    entries: list[TensorEntry] = []
    blocks: list[bytes] = []
    end = 0
    for node in program.convolutions:
        for role, (array, bits) in _arrays(node).items():
            block = _encode(array, bits, f"{node.name} {role}")
            offset = _aligned(end)
            entries.append(TensorEntry(node.name, role, bits, array.shape, offset, len(block), tensor_sha256(block)))
            blocks.append(block)
            end = offset + len(block)
    return entries, blocks


def _arrays(node: ConvolutionNode) -> dict[TensorRole, tuple[WeightArray, int]]:
    return {"weight": (node.weight, node.weight_bits), "bias": (node.bias, BIAS_BITS), "exponents": (node.weight_exponents, EXPONENT_BITS)}


def _encode(array: WeightArray, bits: int, what: str) -> bytes:
    if bits == BIAS_BITS:
        # check_program has bounded the accumulators, and with them the biases, to 32 bits.
        return array.astype("<i4").tobytes()
    try:
        return pack(array, bits)
    except CheckpointError as error:
        raise CheckpointError(f"{what}: {error}") from error


def _write(stream: BinaryIO, header: bytes, blocks: list[bytes]) -> None:
    digest = hashlib.sha256()
    position = 0
    for part in (_PREFIX.pack(MAGIC, SCHEMA_VERSION, len(header)) + header, *blocks):
        for piece in (bytes(_aligned(position) - position), part):
            stream.write(piece)
            digest.update(piece)
            position += len(piece)
    stream.write(digest.digest())


def _end_of(entries: list[TensorEntry]) -> int:
    return entries[-1].offset + entries[-1].size_bytes if entries else 0


def _aligned(position: int) -> int:
    return -(-position // _ALIGNMENT) * _ALIGNMENT


# --- reading ----------------------------------------------------------------------------------------------------------


def load_model(path: Path) -> PackedModel:
    """Read a model file; every byte is checked before any of it is used.

    Raises:
        CheckpointError: there is no such file, it is no model file, a newer medquant made it, or it is damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: found {'no regular file' if path.exists() else 'nothing'}, expected a model file (.mq)")
    try:
        with path.open("rb") as stream:
            return _read(stream, os.fstat(stream.fileno()).st_size)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); {REMEDY}") from error


def _read(stream: BinaryIO, size: int, is_coarse: bool = False) -> PackedModel:
    version, header_bytes = _read_prefix(stream, size)
    whole = _check_digest(stream, size)
    stream.seek(_PREFIX.size)
    stored = stream.read(header_bytes)
    header = parse_header(stored if version < FIRST_COMPRESSED_VERSION else inflate(stored, _MAX_HEADER_BYTES), version)
    if is_coarse and header.coarse is not None:
        # Before it is looked at: a file could nest as many as its maker liked.
        raise CheckpointError(f"it holds another one, expected none; {REMEDY}")
    data_start = _aligned(_PREFIX.size + header_bytes)
    _check_layout(header, data_start, size)
    arrays = {(entry.node, entry.role): _read_tensor(stream, entry, data_start) for entry in header.tensors}
    program = IntegerProgram(tuple(_restore(header, arrays)), header.output_exponents)
    check_rules(header.metadata, header.coarse is not None)
    try:
        _check_model(program, header.metadata)
    except ConfigError as error:
        raise CheckpointError(f"the stored network does not fit together: {error}; {REMEDY}") from error
    return PackedModel(program, header.metadata, size, whole, _read_coarse(stream, header.coarse, data_start))


def _read_coarse(stream: BinaryIO, entry: CoarseEntry | None, data_start: int) -> PackedModel | None:
    if entry is None:
        return None
    stream.seek(data_start + entry.offset)
    try:
        return _read(io.BytesIO(stream.read(entry.size_bytes)), entry.size_bytes, is_coarse=True)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"its coarse network: {error}") from error


def _read_prefix(stream: BinaryIO, size: int) -> tuple[int, int]:
    if size < _PREFIX.size + _DIGEST_BYTES:
        raise CheckpointError(f"found {size} bytes, expected a model file of more than {_PREFIX.size + _DIGEST_BYTES}; {REMEDY}")
    magic, version, header_bytes = _PREFIX.unpack(stream.read(_PREFIX.size))
    if magic != MAGIC:
        raise CheckpointError(f"no model file: found {magic!r} at its start, expected {MAGIC!r}; {REMEDY}")
    if version > SCHEMA_VERSION:
        raise CheckpointError(
            f"found schema version {version}, expected at most {SCHEMA_VERSION}: made by a newer medquant, upgrade (or damaged: {REMEDY})"
        )
    room = min(size - _PREFIX.size - _DIGEST_BYTES, _MAX_HEADER_BYTES)
    if header_bytes > room:
        raise CheckpointError(f"found a header of {header_bytes} bytes, expected at most {room} in a file of {size}; {REMEDY}")
    return version, header_bytes


def _check_digest(stream: BinaryIO, size: int) -> str:
    """Compare the SHA-256 at the end with the bytes before it, a piece at a time; returns the digest of the whole file."""
    digest = hashlib.sha256()
    stream.seek(0)
    left = size - _DIGEST_BYTES
    while left:
        piece = stream.read(min(left, _CHUNK_BYTES))
        if not piece:
            raise CheckpointError(f"became shorter while it was read; {REMEDY}")
        digest.update(piece)
        left -= len(piece)
    stored = stream.read(_DIGEST_BYTES)
    if stored != digest.digest():
        raise CheckpointError(
            f"damaged or incomplete: its {size} bytes have SHA-256 {digest.hexdigest()[:16]}..., expected {stored.hex()[:16]}...; {REMEDY}"
        )
    digest.update(stored)
    return digest.hexdigest()


def _check_layout(header: Header, data_start: int, size: int) -> None:
    """Every tensor where a writer puts it, in order, without overlap, and nothing behind the last one."""
    if [(entry.node, entry.role, entry.bits) for entry in header.tensors] != header.wanted_tensors():
        raise CheckpointError(f"found {len(header.tensors)} tensors, expected weight, bias and exponents of each convolution; {REMEDY}")
    end = 0
    for entry in header.tensors:
        expected = packed_size_bytes(math.prod(entry.shape), entry.bits)
        if entry.offset != _aligned(end) or entry.size_bytes != expected:
            found = f"{entry.size_bytes} bytes at {entry.offset}"
            wanted = f"{expected} at {_aligned(end)}"
            raise CheckpointError(f"tensor {entry.node} {entry.role}: found {found}, expected {wanted}; {REMEDY}")
        end = entry.offset + entry.size_bytes
    if header.coarse is not None:
        if header.coarse.offset != _aligned(end):
            raise CheckpointError(f"coarse network: found it at {header.coarse.offset}, expected {_aligned(end)}; {REMEDY}")
        end = header.coarse.offset + header.coarse.size_bytes
    total = (data_start if header.tensors or header.coarse else 0) + end + _DIGEST_BYTES
    if total != size:
        raise CheckpointError(f"found {size} bytes, expected {total} for the tensors of its header; {REMEDY}")


def _read_tensor(stream: BinaryIO, entry: TensorEntry, data_start: int) -> WeightArray:
    stream.seek(data_start + entry.offset)
    data = stream.read(entry.size_bytes)
    if tensor_sha256(data) != entry.sha256:
        raise CheckpointError(f"tensor {entry.node} {entry.role}: found other bytes than its SHA-256 stands for; {REMEDY}")
    if entry.bits == BIAS_BITS:
        return np.frombuffer(data, dtype="<i4").astype(np.int64).reshape(entry.shape)
    values = unpack(data, entry.bits, math.prod(entry.shape)).reshape(entry.shape)
    # Exponents are added and shifted by; weights stay a byte each.
    return values if entry.role == "weight" else values.astype(np.int64)


def _restore(header: Header, arrays: Mapping[tuple[str, TensorRole], WeightArray]) -> Iterator[Node]:
    for stored in header.nodes:
        if isinstance(stored, StoredConvolution):
            weight, bias, exponents = (arrays[stored.name, role] for role in ("weight", "bias", "exponents"))
            yield stored.restore(weight, bias, exponents)
        else:
            yield stored.restore()
