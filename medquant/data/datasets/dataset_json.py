"""``dataset.json``, the table of contents of a Decathlon or nnU-Net dataset folder, read as what it is: text by a stranger.

Nothing in it is believed before it was checked: its size, its depth, that no key stands twice, the types of what is used,
the characters of every name, and that no path leads out of the folder. What is not used is not looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from medquant.errors import InputError

FILE_NAME = "dataset.json"
MAX_BYTES = 8 * 1024**2
"""A Decathlon file has some 50 kB; a hundred thousand cases stay below this."""
MAX_DEPTH = 16

_MOST_CLASSES = 256
_MOST_CHANNELS = 64
_REMEDY = f"correct {FILE_NAME}"
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_NAME = re.compile(r"\w(?:[\w .,:;+/()<>=&%'*-]{0,62}[\w)%+'*])?")
_CASE_ID = re.compile(r"\w(?:[\w .,+()=@~-]{0,126}[\w)+=-])?")
_SHOWN = re.compile(r"[\w-]{1,40}")
_MOST_PROBLEMS = 4

Model = TypeVar("Model", bound=BaseModel)


class DuplicateKeyError(ValueError):
    """A JSON object names one key twice, and which of the two is meant is not known."""


Text = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Count = Annotated[int, Field(ge=0, le=10_000_000)]


class Contents(BaseModel):
    """What both layouts share; other keys (authors, licence, description ..) are not looked at.

    Args:
        labels: as stored; :func:`read_labels` makes sense of it.
        channel_names: channel number (as text) → name; older files call it ``modality``.
        modality: see ``channel_names``.
        training_count: ``numTraining``.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    labels: dict[Text, str | int | list[int]] = Field(min_length=1, max_length=_MOST_CLASSES)
    channel_names: dict[Text, Text] | None = Field(default=None, min_length=1, max_length=_MOST_CHANNELS)
    modality: dict[Text, Text] | None = Field(default=None, min_length=1, max_length=_MOST_CHANNELS)
    training_count: Count | None = Field(default=None, alias="numTraining")


def read_json(folder: Path) -> Mapping[str, object]:
    """The object in the folder's ``dataset.json``.

    Raises:
        InputError: the file is missing, leads out of the folder, is larger than ``MAX_BYTES``, nested deeper than
            ``MAX_DEPTH``, no UTF-8 JSON object, or names a key twice.
    """
    path = inside(folder, FILE_NAME)
    if not is_file_inside(folder, FILE_NAME):
        raise InputError(f"{path}: no such file, expected the table of contents of a Decathlon or nnU-Net folder; copy it there")
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if len(content) > MAX_BYTES:
        raise InputError(f"{folder / FILE_NAME}: larger than {MAX_BYTES // 2**20} MiB, expected a short table of contents; {_REMEDY}")
    # Before the parser, which follows each level with a call of its own.
    if _too_deep(content):
        raise InputError(f"{folder / FILE_NAME}: nested more than {MAX_DEPTH} levels deep; {_REMEDY}")
    try:
        found = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except DuplicateKeyError as error:
        raise InputError(f"{folder / FILE_NAME}: {error}; {_REMEDY}") from error
    except ValueError as error:
        place = f" in line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"{folder / FILE_NAME}: found no valid JSON{place}, expected a UTF-8 JSON object; {_REMEDY}") from error
    if not isinstance(found, dict):
        raise InputError(f"{folder / FILE_NAME}: found a JSON {type(found).__name__}, expected an object; {_REMEDY}")
    return found


def checked(folder: Path, model: type[Model], found: Mapping[str, object]) -> Model:
    """``found`` as ``model``, or an error that names every field which is not as it should be, without repeating values.

    Raises:
        InputError: a field is missing or of another type.
    """
    try:
        return model.model_validate(found)
    except ValidationError as error:
        problems = [f"{_place(problem['loc'])}: {problem['msg']}" for problem in error.errors(include_input=False, include_url=False)]
        more = f"; and {len(problems) - _MOST_PROBLEMS} more" if len(problems) > _MOST_PROBLEMS else ""
        raise InputError(f"{folder / FILE_NAME}: {'; '.join(problems[:_MOST_PROBLEMS])}{more}; {_REMEDY}") from None


def channel_names(folder: Path, contents: Contents) -> tuple[str, ...]:
    """Names of the channels, in order.

    Raises:
        InputError: there are none, they are not numbered 0, 1, 2 .., or a name has odd characters.
    """
    found = contents.channel_names or contents.modality
    if found is None:
        raise InputError(f"{folder / FILE_NAME}: found no channel_names (or modality), expected for example {{'0': 'MRI'}}; {_REMEDY}")
    if set(found) != {str(number) for number in range(len(found))}:
        raise InputError(f"{folder / FILE_NAME}: channel_names must be numbered '0', '1' and on without gaps; {_REMEDY}")
    return tuple(check_name(folder, "channel", found[str(number)]) for number in range(len(found)))


def check_name(folder: Path, kind: str, name: str) -> str:
    """``name``, if it can stand in a table, a message and a file.

    Raises:
        InputError: it is empty, too long, or has control or other odd characters.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{folder / FILE_NAME}: a {kind} name is empty, longer than 64 characters or has unusual ones, expected letters, digits and "
            f"plain punctuation; {_REMEDY}"
        )
    return name


def check_case_id(folder: Path, name: str) -> str:
    """``name``, if it can name a case and the files made for it.

    Raises:
        InputError: it is empty, too long, hidden, or has characters that mean something to a file system.
    """
    if not _CASE_ID.fullmatch(name):
        raise InputError(
            f"{folder}: a case name is empty, longer than 128 characters or has unusual ones, expected letters, digits, '_' and '-'; "
            "rename the file"
        )
    return name


def inside(folder: Path, relative: str) -> Path:
    """The place ``relative`` names, which is in ``folder`` also after every link was followed. There may be nothing there.

    Raises:
        InputError: the path is absolute, malformed, climbs with ``..``, or leads out of the folder through a link.
    """
    parts = PurePosixPath(relative).parts
    if not parts or not relative.isprintable() or "\\" in relative or relative[1:2] == ":" or PurePosixPath(relative).is_absolute():
        raise InputError(f"{folder}: a file is named by an absolute or malformed path, expected one like ./imagesTr/case.nii.gz; {_REMEDY}")
    if ".." in parts:
        raise InputError(f"{folder}: a path climbs out of the folder with '..', expected one like ./imagesTr/case.nii.gz; {_REMEDY}")
    try:
        leads_out = not (folder / relative).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError) as error:
        # A link that leads to itself, or a name no file system takes.
        raise InputError(f"{folder}: a file or link cannot be followed ({type(error).__name__}); copy the files into the folder") from error
    if leads_out:
        raise InputError(f"{folder / relative}: a link leads out of the dataset folder and is not followed; copy the file into the folder")
    return folder / relative


def is_file_inside(folder: Path, relative: str) -> bool:
    """Whether a regular file lies there; see :func:`inside`, whose errors pass through."""
    try:
        return inside(folder, relative).is_file()
    except OSError:
        return False


def file_names(folder: Path, part: str, endings: tuple[str, ...]) -> list[str]:
    """Sorted names of the files of some kinds in a subfolder, hidden ones (such as ``._x.nii.gz`` from macOS) left out.

    Raises:
        InputError: the subfolder leads out of the folder, or cannot be listed; where there is none, there are no names.
    """
    place = inside(folder, part)
    try:
        return sorted(entry.name for entry in place.iterdir() if entry.name.endswith(endings) and not entry.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{place}: the folder cannot be listed ({error.strerror}); check its permissions") from error


def stem(name: str, endings: Iterable[str]) -> str:
    """A file name without its ending, the longest of ``endings`` that fits."""
    fitting = [ending for ending in endings if name.lower().endswith(ending)]
    return name[: -len(max(fitting, key=len))] if fitting else name


def _too_deep(content: bytes) -> bool:
    """Whether brackets nest beyond ``MAX_DEPTH``; those in strings do not count."""
    level = 0
    for bracket in _STRING.sub(b"", content).translate(None, _NOT_BRACKETS):
        level += 1 if bracket in b"[{" else -1
        if level > MAX_DEPTH:
            return True
    return False


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        double = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise DuplicateKeyError(f"the key {_shown(double)} stands twice in one object, expected once")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _place(location: tuple[int | str, ...]) -> str:
    return ".".join(_shown(part) if isinstance(part, str) else str(part) for part in location) or "the object"


def _shown(key: str) -> str:
    """A key as far as a message may repeat it."""
    return key if _SHOWN.fullmatch(key) else "(a key with unusual characters)"
