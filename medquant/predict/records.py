"""What a folder of masks was made from: read when a run is resumed, so that a finished mask is known and any other is not believed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from medquant.data.atomic import write_text
from medquant.data.bounded import read_bounded_json
from medquant.data.stored import ArrayCache
from medquant.errors import UsageError

FILE_NAME = "predictions.json"
_SCHEMA = 1


@dataclass(frozen=True)
class Record:
    """How one mask was made; digests alone, nothing of the scan.

    Args:
        scan_sha256: of the bytes of the scan's files.
        model_sha256: of the model file.
        options: what else the mask depends on.
        output_sha256: of the mask's file.
    """

    scan_sha256: str
    model_sha256: str
    options: str
    output_sha256: str

    def is_of(self, scan_sha256: str, model_sha256: str, options: str) -> bool:
        """Whether the mask was made from these."""
        return (self.scan_sha256, self.model_sha256, self.options) == (scan_sha256, model_sha256, options)


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a folder of masks for this process alone: two that write the same masks would each forget what the other noted.

    Raises:
        UsageError: another process is writing masks there.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems know no locks; there the user has to see to it.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(
                    f"{folder}: another medquant predict is writing masks there; wait for it, or choose another folder"
                ) from error
        yield
    finally:
        os.close(descriptor)


class Records:
    """The records of a folder, one for each file name.

    Args:
        folder: where the masks lie.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self._known = _read(self.path)

    def get(self, name: str) -> Record | None:
        """The record of a file, None where there is none."""
        return self._known.get(name)

    def note(self, name: str, record: Record) -> None:
        """Add a record; the file is replaced in one step.

        Raises:
            UsageError: it cannot be written.
        """
        self._known[name] = record
        document = {"schema": _SCHEMA, "masks": {each: asdict(known) for each, known in sorted(self._known.items())}}
        write_text(self.path, json.dumps(document, indent=1) + "\n")


def file_sha256(path: Path) -> str:
    """Digest over the bytes of a file; InputError where it cannot be read."""
    return ArrayCache(None).files_digest([path])


def _read(path: Path) -> dict[str, Record]:
    """The records of a file; none where it is absent or damaged, for then nothing is known of the masks."""
    try:
        found = read_bounded_json(path)
    except (OSError, ValueError):
        return {}
    masks = found.get("masks") if isinstance(found, Mapping) and found.get("schema") == _SCHEMA else None
    fields = ("scan_sha256", "model_sha256", "options", "output_sha256")
    if not isinstance(masks, Mapping):
        return {}
    return {
        str(name): Record(*(str(each[field]) for field in fields))
        for name, each in masks.items()
        if isinstance(each, Mapping) and set(each) == set(fields)
    }
