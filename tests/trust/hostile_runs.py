"""Run folders, checkpoints and model files by a stranger."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from attack import HARMLESS, REFUSED, Arguments, Ground, attack, pickled, shell_words, torch_archive

CHECKPOINT = frozenset({6})

Document = dict[str, Any]


def run(name: str, change: Callable[[Ground, Path], object], command: str = "report", codes: frozenset[int] = REFUSED) -> None:
    """An attack by a change to a finished run; ``command``: report, eval, plan or resume."""

    def make(ground: Ground) -> Arguments:
        folder = ground.copied_run()
        change(ground, folder)
        typed: dict[str, Arguments] = {
            "report": ["report", folder, "--out", ground.out],
            "eval": ["eval", folder],
            "plan": ["plan", folder],
            "resume": ["train", "--resume", "--out", folder],
        }
        return typed[command]

    attack(name, codes)(make)


def _instead(file: str, put: Callable[[Path], object]) -> Callable[[Ground, Path], object]:
    return lambda _, folder: ((folder / file).unlink(missing_ok=True), put(folder / file))


def _edited(file: str, edit: Callable[[Document], object]) -> Callable[[Ground, Path], object]:
    def change(_: Ground, folder: Path) -> None:
        document = json.loads((folder / file).read_text())
        edit(document)
        (folder / file).write_text(json.dumps(document))

    return change


def _zero(place: Path) -> None:
    place.symlink_to("/dev/zero")


# --- run.json and eval.json -------------------------------------------------------------------------------------------

for file, command in (
    ("run.json", "eval"),
    ("eval.json", "report"),
    ("best/checkpoint.json", "resume"),
    ("last/checkpoint.json", "resume"),
):
    run(f"{file} that is a pickle", lambda ground, folder, file=file: (folder / file).write_bytes(pickled(ground)), command)
    # A last checkpoint that is none means that nothing was saved yet: the run starts again.
    codes = REFUSED | HARMLESS if file.startswith("last") else REFUSED
    run(f"{file} that is a pipe", _instead(file, os.mkfifo), command, codes)
    run(f"{file} that is a link to /dev/zero", _instead(file, _zero), command, codes)
    run(f"{file} that is a folder", _instead(file, Path.mkdir), command)
    run(f"{file} 100 000 levels deep", _instead(file, lambda place: place.write_text('{"a":' * 100_000)), command)
    run(
        f"{file} of infinite schema",
        _edited(file, lambda document: document.update(schema=float("inf"), values=float("inf"))),
        command,
        REFUSED | HARMLESS,
    )

run("run.json whose data lie elsewhere", lambda g, f: _edited("run.json", lambda d: d["data"].update(path=str(g.outside)))(g, f), "eval")
run(
    "run.json with a shell command for its data",
    lambda g, f: _edited("run.json", lambda d: d["data"].update(path=shell_words(g)))(g, f),
    "eval",
)
run(
    "run.json whose cache lies elsewhere",
    lambda g, f: _edited("run.json", lambda d: d["config"]["data"].update(cache=str(g.outside / "cache"), spacing_mm=[0.8, 0.8]))(g, f),
    "eval",
    REFUSED | HARMLESS,
)
run("run.json with _target_", _edited("run.json", lambda d: d["config"]["model"].update(_target_="os.system")), "plan")
run(
    "run.json that names cases with commands for the terminal",
    _edited("run.json", lambda d: d["split"].update(test=["\x1b[2J\x1b]0;owned\x07"])),
    "eval",
)
run(
    "run.json whose split is no split",
    _edited("run.json", lambda d: d.update(split={"train": 5, "validation": {}, "test": None, "rule": []})),
    "eval",
)
run("run.json whose split leaks", _edited("run.json", lambda d: d["split"].update(test=d["split"]["train"])), "eval")
run("run.json of 10^9 channels", _edited("run.json", lambda d: d["config"]["model"].update(channels=10**9)), "plan")
run("run.json of 2^40 threads", _edited("run.json", lambda d: d.update(threads=2**40)), "eval", REFUSED | HARMLESS)
run("run.json of 10^6 image channels", _edited("run.json", lambda d: d["data"].update(channels=["a"] * 10**6)), "plan")
run(
    "run.json of -1 threads",
    _edited("run.json", lambda d: (d.update(threads=-1), d["config"]["train"].update(threads=None))),
    "eval",
    REFUSED | HARMLESS,
)
run("run.json of odd types", _edited("run.json", lambda d: d.update(data=[], split=[], config=[], status={}, versions=3)), "eval")
run("eval.json of odd types", _edited("eval.json", lambda d: d.update(dice=[1], memory="x", bits={}, metrics=7, split=None)))
run("eval.json of odd bits", _edited("eval.json", lambda d: d["bits"].update(weights="four", activations=[])))
run(
    "eval.json whose scores are text",
    _edited("eval.json", lambda d: d.update(dice={name: "high" for name in d["dice"]})),
    codes=REFUSED | HARMLESS,
)
run("eval.json of huge numbers", _edited("eval.json", lambda d: d["memory"].update(parameter_bytes=10**400)))
run(
    "eval.json of negative sizes",
    _edited("eval.json", lambda d: d["memory"].update(parameter_bytes=-5, float_bytes=-5)),
    codes=REFUSED | HARMLESS,
)
run(
    "eval.json with 100 000 classes",
    _edited("eval.json", lambda d: d.update(dice={f"c{n}": {"mean": 0.5} for n in range(100_000)}, float_twin=None)),
)


def _injected(document: Document) -> None:
    names = ('=HYPERLINK("http://x","y")', "@SUM(A1)", "<script>alert(1)</script>", "\x1b[2J", "$\\frac{", "a\nb", "+1|cmd", 'a,b"c')
    document["metrics"] = {name: {"mean": 0.5} for name in names}
    document["dice"] = dict(zip(names, list(document["dice"].values()) * 8, strict=False))
    document["float_twin"] = None


run("eval.json whose names are formulas, markup and commands", _edited("eval.json", _injected), codes=REFUSED | HARMLESS)


@attack("run folder whose name commands the terminal", REFUSED)
def _named(ground: Ground) -> Arguments:
    folder = ground.copied_run("a\nmedquant: all is well\x1b[2J\x1b]0;owned\x07\x9b31m\u202e$(touch x)")
    (folder / "eval.json").write_text("{")
    return ["report", folder, "--out", ground.out]


for name in ("pictures", "last", "best", "float", "warm", "tensorboard"):

    def _linked(ground: Ground, folder: Path, name: str = name) -> None:
        if (folder / name).exists():
            (folder / name).rename(ground.outside / name)
        else:
            (ground.outside / name).mkdir()
        (folder / name).symlink_to(ground.outside / name, target_is_directory=True)

    run(f"run folder whose {name}/ leads away", _linked, "resume", REFUSED | HARMLESS)

for name in ("metrics.jsonl", "eval.json", "model.mq"):

    def _linked_file(ground: Ground, folder: Path, name: str = name) -> None:
        (folder / name).rename(ground.outside / name)
        (folder / name).symlink_to(ground.outside / name)

    run(f"run folder whose {name} leads away", _linked_file, "resume", REFUSED | HARMLESS)

run(
    "metrics.jsonl that is a pickle",
    lambda ground, folder: (folder / "metrics.jsonl").write_bytes(pickled(ground)),
    "resume",
    REFUSED | HARMLESS,
)
run(
    "metrics.jsonl 100 000 levels deep",
    _instead("metrics.jsonl", lambda place: place.write_text('{"a":' * 100_000)),
    "resume",
    REFUSED | HARMLESS,
)
run(
    "metrics.jsonl of odd records",
    _instead("metrics.jsonl", lambda place: place.write_text('{"stage": [], "epoch": {}}\n')),
    "resume",
    REFUSED | HARMLESS,
)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def tensors(name: str, content: Callable[[Ground, bytes], bytes], part: str = "last", codes: frozenset[int] = CHECKPOINT) -> None:
    """An attack by a tensor file whose digest is right."""

    def change(ground: Ground, folder: Path) -> None:
        index = folder / part / "checkpoint.json"
        document = json.loads(index.read_text())
        file = index.parent / document["file"]
        data = content(ground, file.read_bytes())
        file.write_bytes(data)
        index.write_text(json.dumps({**document, "sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}))

    run(name, change, "resume", codes)


def _header(header: Document, data: bytes = bytes(64)) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


tensors("tensors that are a pickle", lambda ground, _: pickled(ground))
tensors("tensors that are a torch archive", lambda ground, _: torch_archive(ground))
tensors("tensors whose header takes 2^63 bytes", lambda *_: struct.pack("<Q", 2**63) + b"{}")
tensors("tensors at absurd places", lambda *_: _header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [2**62, 2**62 + 16]}}))
tensors("tensors of absurd shapes", lambda *_: _header({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 64]}}))
tensors("tensors one over the other", lambda *_: _header({n: {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]} for n in "ab"}))
tensors("tensors of another network", lambda *_: safetensors.numpy.save({"model/x": np.zeros(4, np.float32)}))
tensors("tensors whose names are no numbers", lambda _, data: _renamed(data), codes=REFUSED)
tensors("warm start that is a pickle", lambda ground, _: pickled(ground), "warm")


def _renamed(data: bytes) -> bytes:
    found = safetensors.numpy.load(data)
    return safetensors.numpy.save({**found, "optimizer/x/y": np.zeros(4, np.float32), "optimizer/-1/exp_avg": np.zeros(4, np.float32)})


run(
    "checkpoint that names a file elsewhere",
    lambda g, f: _edited("last/checkpoint.json", lambda d: d.update(file="../../../outside/notes.txt"))(g, f),
    "resume",
)
run("checkpoint that names an absolute file", _edited("last/checkpoint.json", lambda d: d.update(file="/etc/passwd")), "resume")
run(
    "checkpoint that names a pipe",
    lambda _, f: (os.mkfifo(f / "last" / "x"), _edited("last/checkpoint.json", lambda d: d.update(file="x"))(_, f)),
    "resume",
)
run(
    "checkpoint of odd progress",
    _edited("last/checkpoint.json", lambda d: d["values"].update(progress={"stage": 5, "epoch": "x", "finished_stages": 7})),
    "resume",
)
run(
    "checkpoint of far progress",
    _edited("last/checkpoint.json", lambda d: d["values"]["progress"].update(epoch=10**30, step=-5)),
    "resume",
    REFUSED | HARMLESS,
)


# --- model files ------------------------------------------------------------------------------------------------------


def model(name: str, content: Callable[[Ground, bytes], bytes], codes: frozenset[int] = CHECKPOINT) -> None:
    """Two attacks by a model file: on ``eval`` and on ``plan``."""
    for command in ("eval", "plan"):

        def make(ground: Ground, command: str = command) -> Arguments:
            path = ground.inside / "model.mq"
            path.write_bytes(content(ground, (ground.run / "model.mq").read_bytes()))
            return [command, path]

        # A plan asks no more of a file than that it is sound.
        attack(f"{name}, {command}", codes | ((REFUSED | HARMLESS) if command == "plan" and codes != CHECKPOINT else frozenset()))(make)


def rewritten(edit: Callable[[Document], object]) -> Callable[[Ground, bytes], bytes]:
    """The same file with another header and the right digest: what somebody makes who knows the format."""

    def content(_: Ground, data: bytes) -> bytes:
        magic, version, length = struct.unpack("<8sIQ", data[:20])
        header = json.loads(zlib.decompress(data[20 : 20 + length]))
        edit(header)
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        start = -(-(20 + length) // 64) * 64
        stored = zlib.compress(text)
        head = struct.pack("<8sIQ", magic, version, len(stored)) + stored
        body = head + bytes(-len(head) % 64) + data[start:-32]
        return body + hashlib.sha256(body).digest()

    return content


def _nodes(kind: str, **values: object) -> Callable[[Document], object]:
    def edit(header: Document) -> None:
        for node in header["nodes"]:
            if node["kind"] == kind:
                node.update({key: value for key, value in values.items() if key in node})

    return edit


def _geometry(**values: object) -> Callable[[Document], object]:
    return lambda header: [node["geometry"].update(values) for node in header["nodes"] if node["kind"] == "convolution"]


model("model that is a pickle", lambda ground, _: pickled(ground))
model("model that is a torch archive", lambda ground, _: torch_archive(ground))
model("model whose header takes 2^64 bytes", lambda _, data: data[:12] + b"\xff" * 8 + data[20:])
model("model 200 000 levels deep", lambda *_: _model_of(b'{"metadata":' + b'{"a":' * 200_000))
model("model of a sound header that is no model", lambda *_: _model_of(b"{}"))
model("model with a dotted path for a node", rewritten(lambda h: h["nodes"][1].update(kind="os.system")))
model("model of 2^20 padding", rewritten(_geometry(padding=[2**20, 2**20])), REFUSED)
model("model of 2^20 stride", rewritten(_geometry(stride=[2**20, 2**20])), REFUSED)
model("model that enlarges a millionfold", rewritten(_nodes("upsample", factor=2**20)), REFUSED)
model("model of 2^20 size multiple", rewritten(lambda h: h["metadata"].update(size_multiple=2**20)), REFUSED)
model(
    "model that asks for pixels of a nanometre",
    rewritten(lambda h: h["metadata"]["preparation"]["grid"].update(slice_axis="axial", spacing_mm=[1e-6, 1e-6])),
    REFUSED,
)
model("model whose preparation is none", rewritten(lambda h: h["metadata"].update(preparation={"normalisation": [], "grid": 3})), REFUSED)
model("model whose region is none", rewritten(lambda h: h["metadata"].update(region={"kind": "os.system"})), REFUSED)
model("model whose split is none", rewritten(lambda h: h["metadata"].update(split={"test": 7})), REFUSED)
model("model whose configuration is none", rewritten(lambda h: h["metadata"].update(config={"model": "$(id)"})), REFUSED)
model("model of a dataset elsewhere", rewritten(lambda h: h["metadata"].update(dataset="../../outside")), REFUSED)
model(
    "model whose classes command the terminal",
    rewritten(lambda h: h["metadata"].update(classes={"0": "\x1b[2J", "1": "a", "2": "b"}, scored=["a"])),
    REFUSED,
)
model("model of 5 000 000 figures", rewritten(lambda h: h["metadata"].update(metrics={"a": [0] * 5_000_000})), REFUSED | HARMLESS)


def _model_of(header: bytes) -> bytes:
    head = b"MEDQUANT" + struct.pack("<IQ", 2, len(header)) + header
    return head + hashlib.sha256(head).digest()


@attack("model that is a pipe", CHECKPOINT)
def _pipe(ground: Ground) -> Arguments:
    os.mkfifo(ground.inside / "model.mq")
    return ["eval", ground.inside / "model.mq"]


@attack("model that is /dev/zero", CHECKPOINT)
def _device(ground: Ground) -> Arguments:
    return ["eval", "/dev/zero"]


@attack("newest run that is a pipe", CHECKPOINT)
def _newest(ground: Ground) -> Arguments:
    (ground.work / "runs" / "x").mkdir(parents=True)
    os.mkfifo(ground.work / "runs" / "x" / "run.json")
    return ["eval"]
