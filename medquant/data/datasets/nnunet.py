"""The layout of nnU-Net 2 (``nnUNet_raw``): one file a channel, ``imagesTr/CASE_0000.nii.gz``, and ``labelsTr/CASE.nii.gz``.

Cases are those the folders hold, unless ``dataset.json`` has a ``dataset`` table that lists the files of each case.
Format: documentation/dataset_format.md of MIC-DKFZ/nnUNet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from medquant.data.datasets.dataset_json import (
    FILE_NAME,
    Contents,
    channel_names,
    check_case_id,
    checked,
    file_names,
    inside,
    is_file_inside,
)
from medquant.data.datasets.folder_cases import ENDINGS, MOST_NAMED, Folder, ListedCase
from medquant.data.datasets.folder_labels import read_labels
from medquant.errors import InputError

LAYOUT = "nnU-Net"
IMAGES, LABELS, TEST_IMAGES = "imagesTr", "labelsTr", "imagesTs"

_Path = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class _Files(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    images: list[_Path] = Field(min_length=1, max_length=64)
    label: _Path


class _Contents(Contents):
    file_ending: Annotated[str, StringConstraints(min_length=1, max_length=16)]
    training_count: Annotated[int, Field(ge=0, le=10_000_000, alias="numTraining")]
    regions_class_order: list[int] | None = Field(default=None, max_length=256)
    dataset: dict[_Path, _Files] | None = Field(default=None, min_length=1, max_length=100_000)


def describe(path: Path, found: Mapping[str, object]) -> Folder:
    """What the folder holds, by its ``dataset.json`` and its file names; every file is there and lies in the folder.

    ``overwrite_image_reader_writer`` is not looked at: the ending alone says how a file is read.

    Raises:
        InputError: ``found`` is not such a table of contents, a case lacks a channel or its label, a label lacks its image, or
            the folders hold another number of cases than ``numTraining`` says.
    """
    contents = checked(path, _Contents, found)
    channels = channel_names(path, contents)
    labels = read_labels(path, contents.labels, contents.regions_class_order)
    if contents.file_ending not in ENDINGS:
        raise InputError(
            f"{path / FILE_NAME}: found a file_ending that is not read, expected one of {', '.join(ENDINGS)}; convert the images"
        )
    remarks: list[str] = []
    if contents.dataset is None:
        cases = _cases_by_name(path, contents.file_ending, len(channels))
        # The count is all there is to tell half a download from a whole one.
        if len(cases) != contents.training_count:
            raise InputError(
                f"{path}: found {len(cases)} cases in {IMAGES}, but numTraining in {FILE_NAME} says {contents.training_count}; "
                "complete the download, or correct numTraining"
            )
    else:
        cases = _cases_by_list(path, contents.dataset, contents.file_ending, len(channels))
        remarks.append(f"{FILE_NAME} lists the files")
        if len(cases) != contents.training_count:
            remarks.append(f"its numTraining says {contents.training_count}, its list has {len(cases)}; the list is believed")
    unlabelled = {_split(name, contents.file_ending)[0] for name in file_names(path, TEST_IMAGES, (contents.file_ending,))}
    if unlabelled:
        remarks.append(f"not used: {len(unlabelled)} cases without labels in {TEST_IMAGES}")
    return Folder(path=path, layout=LAYOUT, channels=channels, labels=labels, cases=cases, remarks=tuple(remarks))


def _cases_by_name(path: Path, ending: str, channels: int) -> tuple[ListedCase, ...]:
    numbers: dict[str, set[int]] = {}
    for name in file_names(path, IMAGES, (ending,)):
        case, channel = _split(name, ending)
        if channel is None:
            raise InputError(
                f"{path / IMAGES / name}: has no channel number, expected a name like CASE_0000{ending}; rename the file, or remove it"
            )
        numbers.setdefault(case, set()).add(channel)
    labelled = {name.removesuffix(ending) for name in file_names(path, LABELS, (ending,))}
    _refuse(path, f"have images in {IMAGES} but no label in {LABELS}", numbers.keys() - labelled)
    _refuse(path, f"have a label in {LABELS} but no image in {IMAGES}", labelled - numbers.keys())
    wanted = set(range(channels))
    _refuse(path, f"do not have the {channels} channels 0000 to {channels - 1:04d}", [case for case in numbers if numbers[case] != wanted])
    return tuple(
        ListedCase(
            id=check_case_id(path, case),
            images=tuple(_file(path, f"{IMAGES}/{case}_{number:04d}{ending}") for number in range(channels)),
            label=_file(path, f"{LABELS}/{case}{ending}"),
        )
        for case in sorted(numbers)
    )


def _cases_by_list(path: Path, listed: Mapping[str, _Files], ending: str, channels: int) -> tuple[ListedCase, ...]:
    cases = []
    for name, files in listed.items():
        check_case_id(path, name)
        if len(files.images) != channels or not all(file.endswith(ending) for file in (*files.images, files.label)):
            raise InputError(
                f"{path / FILE_NAME}: the case {name} must list {channels} images and a label ending in {ending}; correct the list"
            )
        images = tuple(_file(path, file) for file in files.images)
        cases.append(ListedCase(id=name, images=images, label=_file(path, files.label)))
    return tuple(cases)


def _file(path: Path, relative: str) -> Path:
    file = inside(path, relative)
    if not is_file_inside(path, relative):
        raise InputError(f"{file}: no such file, but {FILE_NAME} or the file names promise it; complete the download")
    return file


def _split(name: str, ending: str) -> tuple[str, int | None]:
    """Case and channel of an image file's name."""
    match = re.fullmatch(r"(.+)_([0-9]{4})", name.removesuffix(ending))
    return (match[1], int(match[2])) if match else (name, None)


def _refuse(path: Path, what: str, cases: Iterable[str]) -> None:
    names = sorted(cases)
    if names:
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        raise InputError(f"{path}: the cases {', '.join(names[:MOST_NAMED])}{more} {what}; complete the download, or remove the odd files")
