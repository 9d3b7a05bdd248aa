"""Checkpoints that survive a power cut: tensors in safetensors, everything else in JSON, no pickle.

A checkpoint is a folder with one ``checkpoint.json`` and the tensor file it names. The tensor file is written under a new name
first; putting the new ``checkpoint.json`` in place is the one step that makes it count; older tensor files are removed after.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from medquant.data.atomic import write_atomically
from medquant.data.bounded import read_bounded_json
from medquant.errors import CheckpointError, UsageError

INDEX_NAME = "checkpoint.json"
SCHEMA = 1


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors and the JSON values that belong to them."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, object]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; until the last step the previous one in ``folder`` stays valid.

    Raises:
        CheckpointError: the disk is full or cannot be written; the previous checkpoint is intact.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        data = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()})
        digest = hashlib.sha256(data).hexdigest()
        file = folder / f"tensors-{digest[:16]}.safetensors"
        write_atomically(file, lambda stream: _write(stream, data))
        index = {"schema": SCHEMA, "file": file.name, "sha256": digest, "size_bytes": len(data), "values": dict(checkpoint.values)}
        text = json.dumps(index, indent=1, sort_keys=True).encode()
        write_atomically(folder / INDEX_NAME, lambda stream: _write(stream, text))
    except (OSError, UsageError) as error:
        _remove_strays(folder)
        raise CheckpointError(
            f"{folder}: checkpoint not written ({error}); free some space and resume, the previous one is intact"
        ) from error
    _remove_strays(folder)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint and check its hash.

    Raises:
        CheckpointError: there is none, or it is damaged, or of a newer schema.
    """
    index_path = folder / INDEX_NAME
    try:
        index: Any = read_bounded_json(index_path)
        schema, name, digest = int(index["schema"]), str(index["file"]), str(index["sha256"])
        values = dict(index["values"])
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no checkpoint here ({INDEX_NAME} is missing); train first, or name another run") from error
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(
            f"{index_path}: not a checkpoint index ({type(error).__name__}: {error}); restore it or train anew"
        ) from error
    if schema > SCHEMA:
        raise CheckpointError(f"{index_path}: schema {schema}, this medquant reads up to {SCHEMA}; upgrade medquant")
    file = folder / name
    if file.parent != folder or not file.is_file():
        raise CheckpointError(f"{index_path}: names {name!r}, which is not in its folder; restore it or train anew")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error}); restore it or train anew") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise CheckpointError(
            f"{file}: content does not match its SHA-256 ({len(data)} bytes); the file is damaged, restore it or train anew"
        )
    try:
        tensors = safetensors.torch.load(data)
    except SafetensorError as error:
        raise CheckpointError(f"{file}: not a safetensors file ({error}); restore it or train anew") from error
    return Checkpoint(tensors, values)


def has_checkpoint(folder: Path) -> bool:
    """Whether ``folder`` holds a finished checkpoint."""
    return (folder / INDEX_NAME).is_file()


def _write(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)


def _remove_strays(folder: Path) -> None:
    """Remove tensor files the index does not name, also those a killed process left."""
    try:
        found: Any = read_bounded_json(folder / INDEX_NAME)
        named = found["file"]
    except FileNotFoundError:
        named = None
    except (OSError, ValueError, KeyError, TypeError):
        return  # an index that cannot be read just now may name any of them
    for file in [*folder.glob("tensors-*.safetensors"), *folder.glob(".*.part")]:
        if file.name != named:
            with contextlib.suppress(OSError):
                file.unlink()
