"""What an attack is: a place to plant files in, a command that reads them, and a payload that shows whether it was run."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

REFUSED = frozenset({2, 3, 4, 5, 6})
"""Exit codes of a mistake that was recognised; 1 would be an internal error."""

HARMLESS = frozenset({0})
"""For files whose hostile part is rightly not looked at, or made anew: the command succeeds and nothing else happens."""


@dataclass(frozen=True)
class Ground:
    """Folders of one attack.

    Args:
        folder: everything of the attack lies below it.
        run: a finished run, to be copied.
    """

    folder: Path
    run: Path

    @property
    def inside(self) -> Path:
        """What the command is pointed at."""
        return self._made("in")

    @property
    def outside(self) -> Path:
        """What the command has no business with; holds ``notes.txt`` and a sound scan ``secret.nii``."""
        return self._made("outside")

    @property
    def work(self) -> Path:
        """The current folder of the command."""
        return self._made("work")

    @property
    def out(self) -> Path:
        """The only place the command may write to, besides its cache. Not made."""
        return self.work / "out"

    @property
    def canary(self) -> Path:
        """The file a payload makes when it is run."""
        return self.folder / "CANARY"

    def copied_run(self, name: str = "run") -> Path:
        """A copy of the finished run, without pictures."""
        copy = self.inside / name
        shutil.copytree(self.run, copy, ignore=shutil.ignore_patterns("pictures", "tensorboard"))
        return copy

    def _made(self, name: str) -> Path:
        place = self.folder / name
        if not place.exists():
            place.mkdir(parents=True)
        return place


Arguments = list[object]
Make = Callable[[Ground], Arguments]


@dataclass(frozen=True)
class Attack:
    """One attack.

    Args:
        make: plants the files and says what to type.
        codes: exit codes that are right.
        words: part of what must be said on stderr.
    """

    make: Make
    codes: frozenset[int] = REFUSED
    words: str = ""


ATTACKS: dict[str, Attack] = {}
"""Name → attack; the modules ``hostile_*`` fill it."""


def attack(name: str, codes: frozenset[int] = REFUSED, words: str = "") -> Callable[[Make], Make]:
    """Enter a maker under a name."""

    def enter(make: Make) -> Make:
        if name in ATTACKS:
            raise ValueError(f"two attacks are called {name}")
        ATTACKS[name] = Attack(make, codes, words)
        return make

    return enter


# --- payloads ---------------------------------------------------------------------------------------------------------


class _Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch '{self.canary}'",)


def pickled(ground: Ground) -> bytes:
    """A pickle that makes the canary when it is loaded."""
    return pickle.dumps(_Payload(ground.canary))


def torch_archive(ground: Ground) -> bytes:
    """What ``torch.save`` writes, a zip archive with a pickle in it, the pickle being the payload."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(ground))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return stream.getvalue()


def object_array(ground: Ground) -> bytes:
    """An ``.npy`` file of objects, whose only element is the payload."""
    stream = io.BytesIO()
    np.save(stream, np.array([_Payload(ground.canary)], dtype=object), allow_pickle=True)
    return stream.getvalue()


def shell_words(ground: Ground) -> str:
    """A value that a shell would run."""
    return f"$(touch {ground.canary})`touch {ground.canary}`;touch {ground.canary}"


def deflated_zeros(size_bytes: int, wbits: int) -> bytes:
    """A stream that unpacks to so many zeros before its checksum fails; the same block over and over, so made at once."""
    piece = 2**24
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(piece)) + packer.flush(zlib.Z_FULL_FLUSH)
    body = block * (size_bytes // piece) + b"\x03\x00"
    if wbits == 31:
        return b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + body + struct.pack("<2I", 0, size_bytes % 2**32)
    return b"\x78\xda" + body + bytes(4) if wbits == 15 else body


def nifti_file(path: Path, shape: tuple[int, int, int] = (34, 34, 4), seed: int = 0, mask: bool = False) -> Path:
    """A sound scan or mask, written by nibabel."""
    random = np.random.default_rng(seed)
    values = np.zeros(shape, dtype=np.uint8) if mask else random.integers(0, 200, shape).astype(np.int16)
    if mask:
        values[8:20, 8:20] = 1
        values[12:16, 12:16] = 2
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 1.0, 3.0, 1.0])), path)
    return path
