"""Any dataset in the folder layout of the Medical Segmentation Decathlon or of nnU-Net, told apart by its ``dataset.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medquant.data.datasets import msd, nnunet
from medquant.data.datasets.dataset_json import FILE_NAME, read_json
from medquant.data.datasets.folder_cases import Folder, read_folder
from medquant.data.reading import ReadOptions
from medquant.data.volume import Dataset
from medquant.errors import InputError

LAYOUT = f"{FILE_NAME} beside imagesTr and labelsTr, as in the Medical Segmentation Decathlon and nnU-Net"


def recognise(path: Path) -> str | None:
    """Say why the folder is taken for a Decathlon or nnU-Net dataset, or None."""
    try:
        return f"it holds {FILE_NAME}" if (path / FILE_NAME).is_file() else None
    except OSError:
        return None


def load(path: Path, options: ReadOptions | None = None) -> Dataset:
    """Read every labelled case.

    Raises:
        InputError: ``dataset.json`` is damaged, contradicts itself or the files, or names a file outside the folder; or a file
            is unreadable, or a mask holds a value without a label.
        GeometryError: channels or mask of a case do not lie on one grid.
    """
    options = options or ReadOptions()
    return read_folder(_describe(path, read_json(path)), options.cache)


def _describe(path: Path, found: Mapping[str, object]) -> Folder:
    if "file_ending" in found:
        return nnunet.describe(path, found)
    if "training" in found:
        return msd.describe(path, found)
    raise InputError(
        f"{path / FILE_NAME}: found neither training (the list of a Decathlon folder) nor file_ending (which nnU-Net 2 asks for); "
        "add the one that is missing"
    )
