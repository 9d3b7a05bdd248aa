"""From a folder, or nothing, to a dataset."""

from __future__ import annotations

import difflib
from collections import Counter
from pathlib import Path

from medquant.data.datasets import DATASETS, PHANTOM, DatasetReader, dataset_names
from medquant.data.reading import ReadOptions
from medquant.data.stored import ArrayCache
from medquant.data.volume import Dataset
from medquant.errors import InputError, UsageError, unknown_name

AUTO = "auto"


def open_dataset(path: Path | None, name: str = AUTO, phantom_seed: int = 0, options: ReadOptions | None = None) -> Dataset:
    """Open the dataset in a folder; without a folder, make the phantom.

    Args:
        path: folder of an official download, or None for the built-in phantom.
        name: a dataset's name, or ``auto`` to recognise it by its files.
        phantom_seed: seed of the phantom; unused where a folder is given.
        options: how to read a folder; by default the majority of raters, and the cache in its usual place.

    Raises:
        UsageError: ``name`` is unknown, or does not go with ``path``.
        InputError: the folder is missing, empty, of no known layout, of more than one, holds no case, or cannot be read.
    """
    if name != AUTO and name not in dataset_names():
        raise UsageError(unknown_name("dataset", name, (AUTO, *dataset_names())))
    if path is None:
        if name not in (AUTO, PHANTOM):
            raise UsageError(f"the dataset {name} needs its folder, but none was given; add it, or leave the name out for the phantom")
        from medquant.data.datasets.phantom import make_phantom

        return make_phantom(seed=phantom_seed)
    if name == PHANTOM:
        raise UsageError(f"the phantom is generated and reads no folder, but {path} was given; leave one of the two out")
    _check_folder(path)
    reader = _recognise(path) if name == AUTO else next(reader for reader in DATASETS if reader.name == name)
    dataset = reader.load(path, options or ReadOptions(cache=ArrayCache(ArrayCache.default_folder())))
    if not dataset.cases:
        raise InputError(
            f"{path}: read as {reader.name}, but it holds no case; expected at least one, so check that the download is complete"
        )
    return dataset


def _check_folder(path: Path) -> None:
    if not path.exists():
        raise InputError(f"{path}: no such folder; check the path, or leave it out to use the built-in phantom")
    if not path.is_dir():
        raise InputError(f"{path}: found a file, expected a dataset folder; give the folder the file lies in")
    try:
        empty = next(path.iterdir(), None) is None
    except OSError as error:
        raise InputError(f"{path}: the folder cannot be listed ({error.strerror}); check its permissions") from error
    if empty:
        raise InputError(f"{path}: the folder is empty, expected a dataset; download one into it, or give another folder")


def _recognise(path: Path) -> DatasetReader:
    matches = [(reader, reason) for reader in DATASETS if (reason := reader.recognise(path)) is not None]
    if len(matches) == 1:
        return matches[0][0]
    if matches:
        listed = "; ".join(f"{reader.name}, as {reason}" for reader, reason in matches)
        raise InputError(f"{path}: could be more than one dataset: {listed}. Name the one that is meant")
    layouts = "; ".join(f"{reader.name}: {reader.layout}" for reader in DATASETS)
    raise InputError(
        f"{path}: no known dataset; found {describe_folder(path)}, expected {layouts}.",
        "Give the folder that holds these files itself, or name the dataset to see what it misses.",
    )


def describe_folder(path: Path) -> str:
    """Count what lies in a folder by kind, and name entries that look like a misspelt expected file.

    Other names are kept out: they may be those of patients.
    """
    kinds: Counter[str] = Counter()
    near: list[str] = []
    expected = [word.strip("();,") for reader in DATASETS for word in reader.layout.split() if "." in word]
    for entry in sorted(path.iterdir()):
        kinds["folder" if entry.is_dir() else ending(entry)] += 1
        if difflib.get_close_matches(entry.name.lower(), expected, n=1, cutoff=0.75):
            near.append(entry.name)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(6)) or "nothing"
    return counts + (f" (among them {', '.join(near[:3])})" if near else "")


def ending(path: Path) -> str:
    """The file name's ending in lower case, ``.nii.gz`` counting as one; ``other`` where it tells nothing.

    Only endings of a known kind are repeated: a name such as ``CT.1.2.840.113`` ends in an identifier.
    """
    lower = path.name.lower()
    known = (".nii.gz", ".nii", ".tif", ".tiff", ".png", ".jpg", ".dcm", ".zip", ".gz", ".txt", ".json", ".csv", ".pdf")
    return next((end for end in known if lower.endswith(end)), "other")
