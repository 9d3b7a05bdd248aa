"""The layout of the Medical Segmentation Decathlon (Antonelli et al. 2022): ``dataset.json`` lists an image and a label a case.

Several channels lie in one file, along its fourth axis. The list is the authority: files it does not name are not used.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    stem,
)
from medquant.data.datasets.folder_cases import ENDINGS, MOST_NAMED, Folder, ListedCase
from medquant.data.datasets.folder_labels import read_labels
from medquant.errors import InputError

LAYOUT = "Medical Segmentation Decathlon"

_Path = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class _Pair(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    image: _Path
    label: _Path


class _Contents(Contents):
    training: list[_Pair] = Field(min_length=1, max_length=100_000)


def describe(path: Path, found: Mapping[str, object]) -> Folder:
    """What the folder holds, by its ``dataset.json``; every listed file is there and lies in the folder.

    Raises:
        InputError: ``found`` is not such a table of contents, a file is missing, of a kind that is not read, listed twice, or
            lies elsewhere.
    """
    contents = checked(path, _Contents, found)
    channels = channel_names(path, contents)
    labels = read_labels(path, contents.labels)
    cases = _cases(path, contents.training)
    remarks = [f"{FILE_NAME} lists the files"]
    if contents.training_count not in (None, len(cases)):
        remarks.append(f"its numTraining says {contents.training_count}, its list has {len(cases)}; the list is believed")
    unlisted = _unlisted(path, cases)
    if unlisted:
        remarks.append(f"{unlisted} further files in imagesTr are not listed and not used")
    return Folder(path=path, layout=LAYOUT, channels=channels, labels=labels, cases=cases, remarks=tuple(remarks))


def _cases(path: Path, pairs: list[_Pair]) -> tuple[ListedCase, ...]:
    missing = [pair for pair in pairs if not (is_file_inside(path, pair.image) and is_file_inside(path, pair.label))]
    if missing:
        _refuse_missing(path, missing)
    cases: dict[str, ListedCase] = {}
    labels: set[Path] = set()
    for pair in pairs:
        image, label = inside(path, pair.image), inside(path, pair.label)
        for file in (image, label):
            if not file.name.lower().endswith(ENDINGS):
                raise InputError(f"{file}: found a file of another kind, expected {', '.join(ENDINGS)}; convert the dataset")
        name = check_case_id(path, stem(image.name, ENDINGS))
        if name in cases or label in labels:
            raise InputError(f"{path / FILE_NAME}: the case {name} or its label is listed twice, expected once; correct {FILE_NAME}")
        cases[name] = ListedCase(id=name, images=(image,), label=label)
        labels.add(label)
    return tuple(cases.values())


def _refuse_missing(path: Path, missing: list[_Pair]) -> None:
    first = [pair.label if is_file_inside(path, pair.image) else pair.image for pair in missing[:MOST_NAMED]]
    ending = next((ending for ending in ENDINGS if first[0].endswith(ending)), "")
    if ending and is_file_inside(path, f"{first[0].removesuffix(ending)}_0000{ending}"):
        raise InputError(
            f"{path}: the images are named with _0000 and listed without it, as nnU-Net 1 did; convert the folder with "
            "nnUNetv2_convert_old_nnUNet_dataset"
        )
    raise InputError(f"{path}: {len(missing)} of the listed cases lack a file, first {', '.join(first)}; complete the download")


def _unlisted(path: Path, cases: tuple[ListedCase, ...]) -> int:
    listed = {case.images[0].name for case in cases}
    return sum(name not in listed for name in file_names(path, "imagesTr", ENDINGS))
