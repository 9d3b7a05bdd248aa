"""Images and masks a dataset folder lists, read into cases: what the Decathlon and the nnU-Net layout have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache as remember
from functools import partial
from pathlib import Path

import numpy as np

from medquant.data.content import content_sha256
from medquant.data.datasets.folder_labels import Labels
from medquant.data.grids import lay_on
from medquant.data.label_values import check_labels
from medquant.data.prepared_grid import GridRule, choose_slice_axis
from medquant.data.stored import ArrayCache
from medquant.data.volume import Case, Dataset, DatasetInfo, Volume
from medquant.errors import InputError

NAME = "folder"
ENDINGS = (".nii.gz", ".nii", ".tif", ".tiff", ".png")
"""Kinds of files that are read."""

MOST_NAMED = 3
"""Files or cases a message names."""

_CT = "ct"
_PATCH_STEP, _SMALLEST_PATCH, _LARGEST_PATCH = 16, 32, 256
_HIGHEST_CLASS = 255


_MODALITIES = {"CT": "CT", "EM": "EM"} | dict.fromkeys(
    ("MR", "MRI", "T", "TW", "T1W", "T2W", "T1GD", "T1CE", "T1C", "T2STAR", "FLAIR", "ADC", "DWI", "PD", "PDW", "CINE-MRI"), "MR"
)
"""Channel names in use, without a number at their end, and what they are."""


@dataclass(frozen=True)
class ListedCase:
    """Files of one case, each known to lie in the dataset folder.

    Args:
        id: name of the case.
        images: one file a channel, or one file that holds all channels.
        label: file of the mask.
    """

    id: str
    images: tuple[Path, ...]
    label: Path


@dataclass(frozen=True)
class Folder:
    """A dataset folder, as its ``dataset.json`` and its file names describe it.

    Args:
        path: the folder.
        layout: the layout's name, for people.
        channels: names of the channels, in order.
        labels: classes and regions.
        cases: labelled cases.
        remarks: what the user should hear about the folder.
    """

    path: Path
    layout: str
    channels: tuple[str, ...]
    labels: Labels
    cases: tuple[ListedCase, ...]
    remarks: tuple[str, ...] = ()


@dataclass
class _Found:
    """What reading the cases brings to light."""

    reordered: int = 0
    assumed: int = 0
    values: set[int] = field(default_factory=set)


def read_folder(folder: Folder, cache: ArrayCache) -> Dataset:
    """Read every listed case.

    Each case is its own subject: neither layout says which scans are of one person.

    Raises:
        InputError: a file is unreadable, has another number of channels than listed, or a mask holds a value without a label.
        GeometryError: channels or mask do not lie on the grid of the first channel.
    """
    found = _Found()
    cases = tuple(_read_case(listed, folder, cache, found) for listed in folder.cases)
    recipe = _recipe(folder, cases)
    info = DatasetInfo(
        name=NAME,
        classes=folder.labels.classes,
        scored=folder.labels.scored,
        recipe=recipe,
        regions=folder.labels.regions,
        channels=folder.channels,
        modality=_modality(folder.channels),
    )
    parts = [
        f"{folder.layout} folder: {_count(len(cases), 'labelled case')}, each taken for a subject of its own because file names do not say "
        f"whose scan it is; channels {', '.join(folder.channels)}; classes "
        + ", ".join(f"{number} = {name}" for number, name in folder.labels.classes.items()),
        *folder.remarks,
        *_describe_found(found, folder.labels),
    ]
    return Dataset(info=info, cases=cases, path=str(folder.path), recognised="; ".join(parts) + ".", content_sha256=content_sha256(cases))


def _modality(channels: tuple[str, ...]) -> str:
    """By the channels' names in dataset.json, where all of them say the same."""
    named = {_MODALITIES.get(channel.upper().rstrip("0123456789_ -"), "") for channel in channels}
    return named.pop() if len(named) == 1 else ""


def _read_case(listed: ListedCase, folder: Folder, cache: ArrayCache, found: _Found) -> Case:
    channels = _read_channels(listed, len(folder.channels), cache)
    image = channels[0]
    further = tuple(
        _laid(channel, image, (str(path), str(listed.images[0])), cache, found)
        for channel, path in zip(channels[1:], listed.images[1:] or listed.images * len(channels), strict=False)
    )
    stored = cache.volume([listed.label], "mask 1", partial(read_mask, listed.label))
    found.values |= set(check_labels(stored, folder.labels.classes, folder.labels.expected, str(listed.label), cache))
    mask = _laid(stored, image, (str(listed.label), str(listed.images[0])), cache, found)
    return Case(id=listed.id, subject=listed.id, site="", image=image, mask=mask, source=str(listed.images[0]), further_channels=further)


def _laid(volume: Volume, image: Volume, names: tuple[str, str], cache: ArrayCache, found: _Found) -> Volume:
    laid, how = lay_on(volume, image, names, cache)
    found.reordered += how == "reordered"
    found.assumed += how == "assumed"
    return laid


def _read_channels(listed: ListedCase, count: int, cache: ArrayCache) -> list[Volume]:
    if len(listed.images) == count:
        return [cache.volume([path], "image 1", partial(read_image, path)) for path in listed.images]
    from medquant.data.nifti import read_nifti_channels

    path = listed.images[0]

    # Decoded once for all channels, and not at all where every channel is in the cache.
    @remember
    def decoded() -> tuple[Volume, ...]:
        channels = read_nifti_channels(path)
        if len(channels) != count:
            raise InputError(
                f"{path}: found {_count(len(channels), 'channel')}, expected {count} as dataset.json lists; correct one of them"
            )
        return channels

    def channel(number: int) -> Volume:
        return decoded()[number]

    return [cache.volume([path], f"channel {number} of {count} 1", partial(channel, number)) for number in range(count)]


def read_image(path: Path) -> Volume:
    """Read an image of any of the :data:`ENDINGS`, in the file's own number type.

    Raises:
        InputError: the file is unreadable or not one gray value a voxel.
        GeometryError: the place of its voxels is missing or contradictory.
    """
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        from medquant.data.nifti import read_nifti

        return read_nifti(path)
    if name.endswith(".png"):
        from medquant.data.png import read_png

        return read_png(path)
    from medquant.data.tiff import read_tiff_stack

    return read_tiff_stack(path)


def read_mask(path: Path) -> Volume:
    """Read a mask of any of the :data:`ENDINGS` as uint8 class numbers.

    Raises:
        InputError: as for :func:`read_image`; or a value is no whole number from 0 to 255.
        GeometryError: as for :func:`read_image`.
    """
    if path.name.lower().endswith((".nii", ".nii.gz")):
        from medquant.data.nifti import read_nifti_mask

        return read_nifti_mask(path)
    volume = read_image(path)
    values = np.asarray(volume.array)
    if values.dtype != np.uint8 and bool(((values < 0) | (values > _HIGHEST_CLASS) | (values != np.trunc(values))).any()):
        raise InputError(
            f"{path}: found values that are no whole numbers from 0 to {_HIGHEST_CLASS}, expected class numbers; give the mask"
        )
    return Volume(array=values.astype(np.uint8), affine=volume.affine, has_geometry=volume.has_geometry)


def _recipe(folder: Folder, cases: Sequence[Case]) -> Mapping[str, object]:
    """Configuration that suits the images."""
    rule = GridRule(choose_slice_axis([case.image for case in cases]))
    planes = np.array([rule.grid(case.image).shape[:2] for case in cases])
    recipe: dict[str, object] = {
        "model.channels": 16,
        "model.depth": 4,
        "data.patch_size": [_patch_side(float(length)) for length in np.median(planes, axis=0)],
        "data.batch_size": 8,
        "data.normalisation": "zscore_volume",
        "data.augmentation": "mr",
    }
    if any(name.lower() != _CT for name in folder.channels):
        return recipe
    # The window itself is left to training, which knows which cases it may look at.
    return {**recipe, "data.normalisation": "range", "data.augmentation": "ct"}


def _patch_side(median: float) -> int:
    whole = _PATCH_STEP * math.floor(median / _PATCH_STEP)
    return min(_LARGEST_PATCH, max(_SMALLEST_PATCH, whole))


def _describe_found(found: _Found, labels: Labels) -> list[str]:
    absent = [name for number, name in labels.classes.items() if number not in found.values]
    return [
        *([f"{_count(found.reordered, 'file')} stored along other axes than the image, brought into its order"] if found.reordered else []),
        *([f"{_count(found.assumed, 'file')} taken to lie on the image by shape alone"] if found.assumed else []),
        *([f"no mask holds {', '.join(absent)}"] if absent else []),
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
