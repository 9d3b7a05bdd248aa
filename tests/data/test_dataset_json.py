"""``dataset.json`` written by an enemy: everything is refused, and nothing outside the folder is opened."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medquant.data.datasets.dataset_json import MAX_BYTES, inside, read_json, stem
from medquant.data.opening import open_dataset
from medquant.data.reading import ReadOptions
from medquant.data.stored import ArrayCache
from medquant.errors import InputError

IMAGE, LABEL = "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"
SECRET = "DOE^JANE 1950-01-01"

_opened: list[str] = []
_listening = False


def _listen(event: str, arguments: tuple[object, ...]) -> None:
    if _listening and event == "open" and isinstance(arguments[0], str | bytes):
        _opened.append(os.path.realpath(os.fsdecode(arguments[0])))


@pytest.fixture(scope="module", autouse=True)
def audit() -> None:
    # A hook cannot be taken away again; it does nothing unless a test listens.
    sys.addaudithook(_listen)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    global _listening
    _opened.clear()
    _listening = True
    yield _opened
    _listening = False


def _scan(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.full((4, 4, 2), value, dtype=np.uint8), np.eye(4)), path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A sound folder of one case, and beside it one that nothing may be read from."""
    _scan(tmp_path / "data" / IMAGE, 7)
    _scan(tmp_path / "data" / LABEL, 1)
    _scan(tmp_path / "outside" / "secret.nii.gz", 1)
    _scan(tmp_path / "outside" / "imagesTr" / "a_0000.nii.gz", 1)
    (tmp_path / "outside" / "dataset.json").write_text(json.dumps(_msd()))
    return tmp_path / "data"


def _msd(**changes: object) -> dict[str, object]:
    return {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "organ"},
        "numTraining": 1,
        "training": [{"image": f"./{IMAGE}", "label": f"./{LABEL}"}],
        **changes,
    }


def _nnunet(**changes: object) -> dict[str, object]:
    labels = {"background": 0, "organ": 1}
    return {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz", **changes}


def _listing(image: str) -> dict[str, object]:
    return _msd(training=[{"image": image, "label": LABEL}])


def _link(name: str, target: str) -> Callable[[Path], object]:
    def make(root: Path) -> object:
        place = root / name
        if place.is_dir():
            for file in place.iterdir():
                file.unlink()
            place.rmdir()
        place.unlink(missing_ok=True)
        place.symlink_to(target)
        return _msd()

    return make


def _with(make: Callable[[Path], object], contents: dict[str, object]) -> Callable[[Path], object]:
    return lambda root: (make(root), contents)[1]


def _fifo(root: Path) -> object:
    (root / IMAGE).unlink()
    os.mkfifo(root / IMAGE)
    return _msd()


ATTACKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "parent": (lambda root: _listing("../outside/secret.nii.gz"), r"climbs out of the folder with '\.\.'"),
    "parent inside": (lambda root: _listing("imagesTr/../../outside/secret.nii.gz"), r"climbs out of the folder with '\.\.'"),
    "parent to itself": (lambda root: _listing(f"imagesTr/../{IMAGE}"), r"climbs out of the folder with '\.\.'"),
    "absolute": (lambda root: _listing(str(root.parent / "outside" / "secret.nii.gz")), "absolute or malformed path"),
    "absolute label": (
        lambda root: _msd(training=[{"image": IMAGE, "label": "/etc/passwd"}]),
        "absolute or malformed path",
    ),
    "drive": (lambda root: _listing("C:/secret.nii.gz"), "absolute or malformed path"),
    "backslash": (lambda root: _listing("..\\outside\\secret.nii.gz"), "absolute or malformed path"),
    "NUL": (lambda root: _listing("imagesTr/a\0.nii.gz"), "absolute or malformed path"),
    "newline": (lambda root: _listing("imagesTr/a\n.nii.gz"), "absolute or malformed path"),
    "empty path": (lambda root: _listing(""), r"training\.0\.image: String should have at least 1 character"),
    "only dots": (lambda root: _listing("./."), "absolute or malformed path"),
    "very long path": (lambda root: _listing("a" * 2000), "at most 1024 characters"),
    "long name": (lambda root: _listing("a" * 1000), "lack a file|cannot be followed"),
    "url": (lambda root: _listing("https://example.org/a.nii.gz"), "lack a file"),
    "folder as image": (lambda root: _listing("imagesTr"), "lack a file"),
    "image is a link": (_link(IMAGE, "../../outside/secret.nii.gz"), "a link leads out of the dataset folder"),
    "label is a link": (_link(LABEL, "../../outside/secret.nii.gz"), "a link leads out of the dataset folder"),
    "folder is a link": (_link("imagesTr", "../outside/imagesTr"), "a link leads out of the dataset folder"),
    "link to itself": (_link(IMAGE, "a_0000.nii.gz"), "cannot be followed|lack a file"),
    "link by two steps": (
        _with(lambda root: ((root / "hop").symlink_to("../outside"), _link(IMAGE, "../hop/secret.nii.gz")(root)), _msd()),
        "a link leads out of the dataset folder",
    ),
    "pipe": (_fifo, "lack a file"),
    "nnU-Net image is a link": (_with(_link(IMAGE, "../../outside/secret.nii.gz"), _nnunet()), "a link leads out"),
    "nnU-Net folder is a link": (_with(_link("imagesTr", "../outside/imagesTr"), _nnunet()), "a link leads out"),
    "nnU-Net test folder is a link": (_with(_link("imagesTs", "../outside/imagesTr"), _nnunet()), "a link leads out"),
    "nnU-Net list climbs": (
        lambda root: _nnunet(dataset={"a": {"images": ["../outside/secret.nii.gz"], "label": LABEL}}),
        r"climbs out of the folder with '\.\.'",
    ),
    "nnU-Net case climbs": (
        lambda root: _nnunet(dataset={"../../a": {"images": [IMAGE], "label": LABEL}}),
        "a case name is empty, longer than 128 characters or has unusual ones",
    ),
    "nnU-Net ending": (lambda root: _nnunet(file_ending="/../../x"), "found a file_ending that is not read"),
    "label name is a path": (lambda root: _msd(labels={"0": "background", "1": "../../x"}), "a label name is empty, longer than 64"),
    "label name is markup": (lambda root: _msd(labels={"0": "background", "1": "a\x1b[2J"}), "a label name is empty, longer than 64"),
    "channel name is long": (lambda root: _msd(modality={"0": "x" * 900}), "a channel name is empty, longer than 64"),
    "channels with a gap": (lambda root: _msd(modality={"0": "a", "2": "b"}), "must be numbered '0', '1' and on without gaps"),
    "no channels": (lambda root: {key: value for key, value in _msd().items() if key != "modality"}, "found no channel_names"),
    "types": (
        lambda root: _msd(training={"image": 1}, numTraining=True),
        "numTraining: Input should be a valid integer; training: Input should be a valid list",
    ),
    "a number for a name": (lambda root: _msd(modality={"0": 5}), r"modality\.0: Input should be a valid string"),
    "no list": (lambda root: {"labels": {"0": "a"}}, "found neither training"),
    "a list": (lambda root: [], "found a JSON list, expected an object"),
    "many classes": (
        lambda root: _msd(labels={str(number): f"c{number}" for number in range(300)}),
        "labels: Dictionary should have at most 256",
    ),
    "secret key": (lambda root: _msd(labels={"0": "background", SECRET: ["x"]}), r"labels\.\(a key with unusual characters\)"),
}

TEXTS: dict[str, tuple[bytes, str]] = {
    "duplicate key": (b'{"training": [], "training": []}', "the key training stands twice"),
    "duplicate secret key": (f'{{"{SECRET}": 1, "{SECRET}": 2}}'.encode(), r"the key \(a key with unusual characters\) stands twice"),
    "duplicate deep down": (b'{"a": [{"b": {"c": 1, "c": 2}}]}', "the key c stands twice"),
    "depth of lists": (b"[" * 100_000, "nested more than 16 levels deep"),
    "depth of objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested more than 16 levels deep"),
    "hidden depth": (b'["\\"", ' + b"[" * 2000 + b"]" * 2000 + b"]", "nested more than 16 levels deep"),
    "size": (b" " * (MAX_BYTES + 1), "larger than 8 MiB"),
    "cut short": (b'{"training": [', "found no valid JSON in line 1, column 15"),
    "no text": (b"\x80\x81\x82", "found no valid JSON"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "found no valid JSON"),
    "NaN": (b'{"a": NaN}', "found no valid JSON"),
    "huge number": (b'{"a": ' + b"9" * 100_000 + b"}", "found no valid JSON"),
    "empty": (b"", "found no valid JSON"),
    "code": (b"__import__('os').system('true')", "found no valid JSON"),
    "a word": (f'"{SECRET}"'.encode(), "found a JSON str"),
}


def _open(root: Path) -> None:
    open_dataset(root, options=ReadOptions(cache=ArrayCache(None)))


def _check_refused(root: Path, message: str, opened: list[str]) -> None:
    opened.clear()
    start = time.monotonic()
    with pytest.raises(InputError, match=message) as caught:
        _open(root)
    assert time.monotonic() - start < 5
    assert SECRET not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert str(root / "dataset.json") in opened  # the listener hears
    assert not [path for path in opened if path.startswith(str(root.parent / "outside"))]


def test_the_sound_folders_are_read(root: Path) -> None:
    for contents in (_msd(description='"[' + "[" * 100), _nnunet(), _nnunet(dataset={"a": {"images": [IMAGE], "label": LABEL}})):
        (root / "dataset.json").write_text(json.dumps(contents))
        _open(root)
    (root / "dataset.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(_msd()).encode())
    _open(root)
    # A link that stays inside, as git-annex makes them, is one way of storing a file.
    (root / IMAGE).rename(root / "store.nii.gz")
    (root / IMAGE).symlink_to("../store.nii.gz")
    _open(root)


@pytest.mark.parametrize("name", ATTACKS)
def test_contents_of_an_enemy_are_refused(root: Path, opened: list[str], name: str) -> None:
    make, message = ATTACKS[name]
    (root / "dataset.json").write_text(json.dumps(make(root)))
    _check_refused(root, message, opened)


@pytest.mark.parametrize("name", TEXTS)
def test_text_of_an_enemy_is_refused(root: Path, opened: list[str], name: str) -> None:
    content, message = TEXTS[name]
    (root / "dataset.json").write_bytes(content)
    _check_refused(root, message, opened)


def test_a_table_of_contents_that_lies_elsewhere_is_refused(root: Path, opened: list[str]) -> None:
    (root / "dataset.json").symlink_to("../outside/dataset.json")
    with pytest.raises(InputError, match="a link leads out of the dataset folder"):
        _open(root)
    assert not [path for path in opened if path.startswith(str(root.parent / "outside"))]


def test_inside_and_stem(root: Path) -> None:
    assert inside(root, f"./{IMAGE}") == root / IMAGE
    assert inside(root, "imagesTr/not there.nii.gz") == root / "imagesTr" / "not there.nii.gz"
    assert stem("la_003.nii.gz", (".nii", ".nii.gz")) == "la_003"
    assert stem("la.003.NII", (".nii", ".nii.gz")) == "la.003"
    (root / "dataset.json").unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"dataset\.json: no such file"):
        read_json(root)
