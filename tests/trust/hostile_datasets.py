"""Dataset folders and configurations by a stranger: paths that lead away, pipes, devices, payloads in YAML and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from attack import HARMLESS, REFUSED, Arguments, Ground, attack, nifti_file, object_array, pickled, shell_words
from hostile_scans import series

CONFIG = frozenset({3})
INPUT = frozenset({4})

Change = Callable[[Ground, Path], object]


# --- folders with a dataset.json --------------------------------------------------------------------------------------


def folder_dataset(root: Path, cases: int = 6) -> Path:
    """A sound Decathlon folder."""
    pairs = []
    for number in range(cases):
        nifti_file(root / f"imagesTr/case{number}.nii.gz", seed=number)
        nifti_file(root / f"labelsTr/case{number}.nii.gz", mask=True)
        pairs.append({"image": f"./imagesTr/case{number}.nii.gz", "label": f"./labelsTr/case{number}.nii.gz"})
    contents = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "a", "2": "b"}, "numTraining": cases, "training": pairs}
    (root / "dataset.json").write_text(json.dumps(contents))
    return root


def listed(name: str, change: Change, codes: frozenset[int] = INPUT, command: str = "train") -> None:
    """An attack by a change to a Decathlon folder."""

    def make(ground: Ground) -> Arguments:
        root = folder_dataset(ground.inside / "data", 2)
        change(ground, root)
        return ["inspect", root] if command == "inspect" else ["train", "--data", root, "--out", ground.out]

    attack(name, codes)(make)


def _contents(**values: object) -> Change:
    def change(_: Ground, root: Path) -> None:
        contents = json.loads((root / "dataset.json").read_text())
        (root / "dataset.json").write_text(json.dumps({**contents, **values}))

    return change


def _image(path: str) -> Change:
    return _contents(training=[{"image": path, "label": "./labelsTr/case0.nii.gz"}])


def _text(text: bytes) -> Change:
    return lambda _, root: (root / "dataset.json").write_bytes(text)


def _instead(file: str, put: Callable[[Path], object]) -> Change:
    """Put something else in the place of a file."""
    return lambda _, root: ((root / file).unlink(), put(root / file))


IMAGE, LABEL = "imagesTr/case0.nii.gz", "labelsTr/case0.nii.gz"
listed("dataset.json that is a pickle", lambda ground, root: (root / "dataset.json").write_bytes(pickled(ground)))
listed("dataset.json that climbs out", _image("../../outside/secret.nii"))
listed("dataset.json with an absolute path", lambda ground, root: _image(str(ground.outside / "secret.nii"))(ground, root))
listed("dataset.json with a shell command for a path", lambda ground, root: _image(shell_words(ground))(ground, root))
listed("dataset.json 100 000 levels deep", _text(b'{"a":' * 100_000))
listed("dataset.json of 20 MB", _text(b'{"a":"' + b"x" * 20_000_000 + b'"}'))
listed("dataset.json with a number of 1 000 000 digits", _text(b'{"training": [], "numTraining": ' + b"9" * 1_000_000 + b"}"))
listed("dataset.json with a key twice", _text(b'{"training": [], "training": []}'))
listed("dataset.json with 200 000 classes", _contents(labels={str(number): f"c{number}" for number in range(200_000)}))
listed("class name that commands the terminal", _contents(labels={"0": "background", "1": "a\x1b[2J", "2": "b"}))
listed("class name that is a formula", _contents(labels={"0": "background", "1": "=cmd|'/c calc'!A1", "2": "b"}))
listed("channel name that is markup", _contents(modality={"0": "<script>alert(1)</script>"}))
listed(
    "image that is a link out of the folder",
    lambda ground, root: _instead(IMAGE, lambda p: p.symlink_to(ground.outside / "secret.nii"))(ground, root),
)
listed(
    "imagesTr that is a link out of the folder",
    lambda ground, root: ((root / "imagesTr").rename(root / "x"), (root / "imagesTr").symlink_to(ground.outside)),
)
listed("image that is a pipe", _instead(IMAGE, os.mkfifo))
listed("label that is a pipe", _instead(LABEL, os.mkfifo), command="inspect")
listed("image that is a link to /dev/zero", _instead(IMAGE, lambda place: place.symlink_to("/dev/zero")))
listed("image that is a folder", _instead(IMAGE, Path.mkdir))
listed("dataset.json that is a pipe", _instead("dataset.json", os.mkfifo))
listed("dataset.json that is a link to /dev/zero", _instead("dataset.json", lambda place: place.symlink_to("/dev/zero")), command="inspect")


# --- official layouts -------------------------------------------------------------------------------------------------


def official(
    name: str, make_data: Callable[[Path], Path], file: str, put: Callable[[Path], object], codes: frozenset[int] = REFUSED
) -> None:
    """Two attacks by one file of an official layout: one on ``inspect``, one on ``prepare``."""
    for command in ("inspect", "prepare"):

        def make(ground: Ground, command: str = command) -> Arguments:
            root = make_data(ground.inside / "data")
            (root / file).unlink()
            put(root / file)
            dataset = {"site1": "spinal-gm", "train": "isbi-em"}.get(file[:5], "pancreas-ct")
            return ["inspect", root] if command == "inspect" else ["prepare", dataset, root, ground.out]

        attack(f"{name}, {command}", codes)(make)


def spinal(root: Path) -> Path:
    """Two subjects of the gray matter challenge."""
    for number in (1, 2):
        nifti_file(root / f"site1-sc{number:02d}-image.nii.gz", seed=number)
        nifti_file(root / f"site1-sc{number:02d}-mask-r1.nii.gz", mask=True)
    return root


def em(root: Path) -> Path:
    """The two training stacks of the EM challenge."""
    root.mkdir(parents=True)
    labels = np.full((8, 34, 34), 255, dtype=np.uint8)
    labels[:, 10] = 0
    tifffile.imwrite(root / "train-volume.tif", labels // 2)
    tifffile.imwrite(root / "train-labels.tif", labels)
    return root


def pancreas(root: Path) -> Path:
    """One case of Pancreas-CT: three slices and a label."""
    series(root / "PANCREAS_0001" / "study" / "series")
    nifti_file(root / "label0001.nii.gz", (4, 4, 3), mask=True)
    return root


def _zero(place: Path) -> None:
    place.symlink_to("/dev/zero")


official("spinal image that is a pipe", spinal, "site1-sc01-image.nii.gz", os.mkfifo)
official("spinal image that is a link to /dev/zero", spinal, "site1-sc01-image.nii.gz", _zero)
official("spinal mask that is a pipe", spinal, "site1-sc01-mask-r1.nii.gz", os.mkfifo)
official("spinal mask that is a folder", spinal, "site1-sc01-mask-r1.nii.gz", Path.mkdir)
official("EM labels that are a pipe", em, "train-labels.tif", os.mkfifo)
official("EM volume that is a link to /dev/zero", em, "train-volume.tif", _zero)
official("pancreas slice that is a pipe", pancreas, "PANCREAS_0001/study/series/1-002.dcm", os.mkfifo)
official("pancreas slice that is a link to /dev/zero", pancreas, "PANCREAS_0001/study/series/1-002.dcm", _zero)
official("pancreas label that is a pipe", pancreas, "label0001.nii.gz", os.mkfifo)


@attack("pancreas folder that holds itself")
def _endless(ground: Ground) -> Arguments:
    root = pancreas(ground.inside / "data")
    (root / "PANCREAS_0001" / "study" / "again").symlink_to(root, target_is_directory=True)
    return ["inspect", root]


@attack("prepare into a link that leads away")
def _linked_out(ground: Ground) -> Arguments:
    ground.out.with_name("out.part").symlink_to(ground.outside / "new")
    return ["prepare", "isbi-em", em(ground.inside / "data"), ground.out]


@attack("prepare into a folder that is a link")
def _linked_folder(ground: Ground) -> Arguments:
    (ground.outside / "empty").mkdir()
    ground.out.symlink_to(ground.outside / "empty", target_is_directory=True)
    return ["prepare", "isbi-em", em(ground.inside / "data"), ground.out]


@attack("cache of arrays that hold objects", HARMLESS)
def _cache(ground: Ground) -> Arguments:
    return _poisoned(ground, lambda file: file.write_bytes(object_array(ground)) if file.suffix == ".npy" else None)


@attack("cache of links that lead away", HARMLESS)
def _linked_cache(ground: Ground) -> Arguments:
    # They may be read; nothing may be written through them.
    (ground.inside / "precious.txt").write_text("untouched")
    return _poisoned(ground, lambda file: (file.unlink(), file.symlink_to(ground.inside / "precious.txt")))


@attack("cache of pipes", HARMLESS | REFUSED)
def _piped_cache(ground: Ground) -> Arguments:
    return _poisoned(ground, lambda file: (file.unlink(), os.mkfifo(file)))


@attack("cache of links to /dev/zero", HARMLESS | REFUSED)
def _endless_cache(ground: Ground) -> Arguments:
    return _poisoned(ground, lambda file: (file.unlink(), file.symlink_to("/dev/zero")))


def _poisoned(ground: Ground, change: Callable[[Path], object]) -> Arguments:
    """A folder that was read once, and whose files in the cache are others now."""
    from medquant.data.inspection import inspect_path

    root = folder_dataset(ground.inside / "data", 2)
    inspect_path(root)
    for file in [file for file in Path(os.environ["MEDQUANT_CACHE"]).rglob("*") if file.is_file()]:
        change(file)
    return ["inspect", root]


# --- configurations ---------------------------------------------------------------------------------------------------


def config(name: str, text: Callable[[Ground], str | bytes], codes: frozenset[int] = CONFIG) -> None:
    """An attack by a configuration file."""

    def make(ground: Ground) -> Arguments:
        content = text(ground)
        (ground.inside / "run.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        return ["train", "--config", ground.inside / "run.yaml", "--out", ground.out]

    attack(name, codes)(make)


config("configuration that is a pickle", pickled)
config("YAML tag that calls a function", lambda g: f"data: !!python/object/apply:os.system ['touch {g.canary}']\n")
config("YAML tag that imports a module", lambda g: "data: !!python/module:antigravity\n")
config("YAML tag that makes an object", lambda g: "train: !!python/object/new:pathlib.Path ['x']\n")
config("YAML tag of its own", lambda g: f"%TAG ! tag:yaml.org,2002:python/\n---\ntrain: !object/apply:os.system ['touch {g.canary}']\n")
config(
    "YAML aliases that grow a billionfold",
    lambda g: (
        "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9))
    ),
)
config("YAML merge key", lambda g: "train: &t {lr: 1e-3}\nquant:\n  <<: *t\n")
config("YAML list 500 000 levels deep", lambda g: "[" * 500_000)
config("YAML mapping 200 000 levels deep", lambda g: "{a: " * 200_000)
config("YAML blocks 100 000 levels deep", lambda g: "- " * 100_000)
config("YAML key twice", lambda g: "train:\n  lr: 1e-3\n  lr: 1.0\n")
config("configuration with _target_", lambda g: f"model:\n  _target_: os.system\n  command: touch {g.canary}\n")
config("configuration with an expression", lambda g: f"train:\n  lr: \"$__import__('os').system('touch {g.canary}')\"\n")
config("configuration with a shell command for a path", lambda g: f"data:\n  path: {json.dumps(shell_words(g))}\n", INPUT)
config("network name that is a dotted path", lambda g: "model:\n  name: os.system\n")
config("method name that is a dotted path", lambda g: "quant:\n  method: subprocess.Popen\n")
config("configuration of 60 000 unknown keys", lambda g: "".join(f"key{number}: 1\n" for number in range(60_000)))
config("configuration of 20 000 numbers that are text", lambda g: "quant:\n  layer_bits: [" + "x, " * 20_000 + "x]\n")
config("configuration of 3 MB", lambda g: "# " + "x" * 3_000_000)
config("key that commands the terminal", lambda g: '"a\\e[2J\\e]0;owned\\a": 1\n')
config("value that commands the terminal", lambda g: 'train:\n  device: "\\e[2J\\u202e"\n')
config("number of 1 000 000 digits", lambda g: "train:\n  epochs: " + "9" * 900_000 + "\n")
config("NUL and no UTF-8", lambda g: b"\0\xff\xfe")


def not_a_file(name: str, put: Callable[[Path], object]) -> None:
    """An attack by something that is no file where a configuration is expected."""

    def make(ground: Ground) -> Arguments:
        put(ground.inside / "run.yaml")
        return ["train", "--config", ground.inside / "run.yaml", "--out", ground.out]

    attack(name, CONFIG)(make)


not_a_file("configuration that is a pipe", os.mkfifo)
not_a_file("configuration that is a link to /dev/zero", _zero)
not_a_file("configuration that is a folder", Path.mkdir)


@attack("override with a tag", CONFIG)
def _override(ground: Ground) -> Arguments:
    return ["train", "--out", ground.out, "-o", f"train.lr=!!python/object/apply:os.system ['touch {ground.canary}']"]


@attack("override with a shell command", INPUT)
def _override_shell(ground: Ground) -> Arguments:
    return ["train", "--out", ground.out, "-o", f"data.path={json.dumps(shell_words(ground))}"]
