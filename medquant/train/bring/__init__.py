"""Networks trained elsewhere: MONAI bundles and nnU-Net result folders, read as plain data and tensors."""

from __future__ import annotations

from pathlib import Path

from medquant.errors import CheckpointError, UsageError
from medquant.train.bring.monai_bundle import is_bundle, read_bundle
from medquant.train.bring.network import BroughtNetwork
from medquant.train.bring.nnunet_result import is_nnunet_result, read_nnunet_result

__all__ = ["BroughtNetwork", "is_brought_folder", "read_brought"]


def is_brought_folder(path: Path) -> bool:
    """Whether a folder looks like a bundle or an nnU-Net result."""
    return path.is_dir() and (is_bundle(path) or is_nnunet_result(path))


def read_brought(path: Path) -> BroughtNetwork:
    """The network in a folder, not yet built.

    Args:
        path: a MONAI bundle, an nnU-Net v2 result folder, or one of its ``fold_*`` folders.

    Raises:
        UsageError: there is no such folder.
        CheckpointError: it is neither, or damaged, or asks for code.
        ConfigError: its network is none of those known here.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such folder; give a MONAI bundle or an nnU-Net result folder")
    if is_bundle(path):
        return read_bundle(path)
    if is_nnunet_result(path):
        return read_nnunet_result(path)
    raise CheckpointError(
        f"{path}: neither a MONAI bundle (configs/ with inference.json, inference.yaml or train.json) nor an nnU-Net v2 result folder "
        "(plans.json, dataset.json, fold_*/checkpoint_final.pth)"
    )
