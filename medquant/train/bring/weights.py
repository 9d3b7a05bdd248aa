"""Tensors from files of unknown origin: safetensors, or torch's own format with nothing in it but tensors and plain values."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from medquant.errors import CheckpointError

_NESTED = ("state_dict", "model", "model_state_dict", "network_weights")
"""Keys training scripts put the weights under."""

_PARALLEL = "module."

_SCALARS: list[Any] = [
    (np.dtype, "numpy.dtype"),
    *[(kind, f"numpy.dtypes.{kind.__name__}") for kind in (np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType)],
    *[(np.float64().__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")],
]
"""What nnU-Net's checkpoints hold beside tensors: numbers of its training log as numpy scalars, under their old and new names."""


def load_document(path: Path, numpy_scalars: bool = False) -> Mapping[str, Any]:
    """A torch file's top-level mapping, read without running anything from it.

    Args:
        path: the file.
        numpy_scalars: whether numbers may be numpy's.

    Raises:
        CheckpointError: it is missing, damaged, holds anything but tensors and plain values, or is no mapping.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected the trained weights")
    _refuse_inflated(path)
    try:
        with torch.serialization.safe_globals(_SCALARS if numpy_scalars else []), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch tells of TorchScript archives and of its own format
            document: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError and others, each for one way to be no such file
        raise CheckpointError(f"{path}: {_why(error)}") from error
    if not isinstance(document, Mapping):
        raise CheckpointError(f"{path}: holds {type(document).__name__}, expected weights by name")
    return document


def load_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name, from ``.safetensors`` or torch's own format.

    Raises:
        CheckpointError: as :func:`load_document`, or there is something among the weights that is none.
    """
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load(path.read_bytes())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not readable as safetensors ({error}); restore it") from error
    return weights_in(load_document(path), path)


def weights_in(document: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The weights of a loaded document, found below the keys training scripts use, without the prefix of parallel training.

    Raises:
        CheckpointError: something among them is no tensor.
    """
    found: Any = document
    for key in _NESTED:
        if isinstance(found.get(key), Mapping):
            found = found[key]
            break
    strange = [str(name) for name, value in found.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if strange or not found:
        raise CheckpointError(f"{path}: holds {', '.join(strange[:3]) or 'nothing'} where weights by name were expected")
    if all(name.startswith(_PARALLEL) for name in found):
        found = {name.removeprefix(_PARALLEL): value for name, value in found.items()}
    for name, value in found.items():
        _check_plain(name, value, path)
    return {name: value.detach().clone() for name, value in found.items()}


def _refuse_inflated(path: Path) -> None:
    """Refuse an archive that holds more than its file: torch writes none, but reads them, and a small file could fill the memory.

    Raises:
        CheckpointError: it is one, or no readable archive.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path}: not readable as a torch file ({error}); restore it") from error
    if claimed > path.stat().st_size:
        raise CheckpointError(
            f"{path}: unpacks to {claimed} bytes, more than the file has; torch compresses nothing, save it with torch.save"
        )


def _check_plain(name: str, tensor: Tensor, path: Path) -> None:
    """Refuse a tensor that is not all there: a few stored bytes can claim any shape, and a copy would take its memory.

    Raises:
        CheckpointError: names the tensor.
    """
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized and not tensor.is_complex()
    if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        shape = "×".join(map(str, tensor.shape))
        raise CheckpointError(f"{path}: {name} ({shape}) is sparse, complex, or claims more values than are stored; save plain tensors")


def _why(error: Exception) -> str:
    text = str(error)
    if "Unsupported global" in text or "weights_only" in text.lower() or "Unsupported operand" in text:
        named = text.partition("GLOBAL ")[2].split(" ")[0] if "GLOBAL " in text else ""
        asked = f" ({named})" if named else ""
        return f"asks for code{asked}: only tensors and plain values are read, nothing was run; save the state_dict, or safetensors"
    return f"not readable as a torch file ({text.splitlines()[0] if text else type(error).__name__}); restore it"
