"""Checkpoints: what goes in comes out bit for bit, a failed write changes nothing, and what is damaged is refused."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from medquant.errors import CheckpointError
from medquant.train.checkpoint import INDEX_NAME, Checkpoint, has_checkpoint, load_checkpoint, save_checkpoint

OLD = Checkpoint({"weight": torch.arange(6.0).reshape(2, 3)}, {"epoch": 1})
NEW = Checkpoint({"weight": torch.ones(2, 3)}, {"epoch": 2})


def _full_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, call: int) -> None:
    """Let one call of a function fail as it does on a full disk."""
    function: Callable[..., object] = getattr(owner, name)
    calls = iter(range(1, 10**6))

    def failing(*args: object, **kwargs: object) -> object:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


def _tensor_file(folder: Path) -> Path:
    (file,) = folder.glob("tensors-*.safetensors")
    return file


def _write_index(folder: Path, **changes: object) -> None:
    index = json.loads((folder / INDEX_NAME).read_text())
    (folder / INDEX_NAME).write_text(json.dumps({**index, **changes}))


def _put_tensor_file(folder: Path, data: bytes) -> None:
    """Replace the tensor file and its hash, so that only its content is wrong."""
    _tensor_file(folder).write_bytes(data)
    _write_index(folder, sha256=hashlib.sha256(data).hexdigest())


def test_every_kind_of_tensor_comes_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {
        "float": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
        "bfloat16": torch.randn(3, dtype=torch.bfloat16),
        "int": torch.tensor(-(2**62)),
        "bytes": torch.get_rng_state(),
        "strided": torch.arange(24.0).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
        "empty": torch.empty(0, 3),
    }
    values = {"progress": {"epoch": 3, "loss_sum": 0.1, "stages": ["warm"]}, "none": None}
    save_checkpoint(tmp_path / "last", Checkpoint(tensors, values))
    found = load_checkpoint(tmp_path / "last")
    assert found.values == values
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert found.tensors[name].shape == tensor.shape
        one, other = (value.contiguous().reshape(-1).view(torch.uint8) for value in (found.tensors[name], tensor))
        assert torch.equal(one, other)


def test_the_folder_holds_one_index_and_the_tensor_file_it_names(tmp_path: Path) -> None:
    for checkpoint in (OLD, NEW, NEW):
        save_checkpoint(tmp_path, checkpoint)
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    assert {file.name for file in tmp_path.iterdir()} == {INDEX_NAME, index["file"]}
    assert index["sha256"] == hashlib.sha256(_tensor_file(tmp_path).read_bytes()).hexdigest()
    assert index["size_bytes"] == _tensor_file(tmp_path).stat().st_size


# Both files are made, flushed and renamed: each function fails once for either.
@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize(("owner", "name"), [(tempfile, "mkstemp"), (os, "replace"), (os, "chmod")])
def test_a_full_disk_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, call: int
) -> None:
    save_checkpoint(tmp_path, OLD)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        _full_at(patch, owner, name, call)
        with pytest.raises(CheckpointError, match=r"checkpoint not written .*No space left on device.*free some space"):
            save_checkpoint(tmp_path, NEW)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert load_checkpoint(tmp_path).values == OLD.values
    save_checkpoint(tmp_path, NEW)
    assert load_checkpoint(tmp_path).values == NEW.values


# Files and folders are flushed in turn; not every system can flush a folder, so the second and fourth are allowed to fail.
@pytest.mark.parametrize(("call", "fails"), [(1, True), (2, False), (3, True), (4, False)])
def test_a_failing_flush_leaves_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, fails: bool) -> None:
    save_checkpoint(tmp_path, OLD)
    with monkeypatch.context() as patch:
        _full_at(patch, os, "fsync", call)
        if fails:
            with pytest.raises(CheckpointError, match="the previous one is intact"):
                save_checkpoint(tmp_path, NEW)
        else:
            save_checkpoint(tmp_path, NEW)
    assert load_checkpoint(tmp_path).values == (OLD if fails else NEW).values
    assert len(list(tmp_path.iterdir())) == 2


def test_a_first_checkpoint_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _full_at(monkeypatch, os, "replace", 2)
    with pytest.raises(CheckpointError):
        save_checkpoint(tmp_path, NEW)
    assert list(tmp_path.iterdir()) == []
    assert not has_checkpoint(tmp_path)


def test_a_process_killed_between_the_two_files_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, OLD)
    (tmp_path / ".tensors-1.safetensors.abc.part").write_bytes(b"cut of")
    with monkeypatch.context() as patch:
        replace = os.replace

        def killed(source: str, target: Path) -> None:
            if Path(target).name == INDEX_NAME:
                raise KeyboardInterrupt
            replace(source, target)

        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, NEW)
    assert len(list(tmp_path.glob("tensors-*"))) == 2
    assert torch.equal(load_checkpoint(tmp_path).tensors["weight"], OLD.tensors["weight"])
    save_checkpoint(tmp_path, OLD)
    assert len(list(tmp_path.iterdir())) == 2


def test_an_index_that_cannot_be_read_now_costs_no_tensor_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many open files: neither the new checkpoint can be written nor the old index read, and the old one must stay."""
    save_checkpoint(tmp_path, OLD)
    with monkeypatch.context() as patch:
        _full_at(patch, os, "replace", 2)

        def unreadable(self: Path) -> bytes:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(self))

        patch.setattr(Path, "read_bytes", unreadable)
        with pytest.raises(CheckpointError):
            save_checkpoint(tmp_path, NEW)
        with pytest.raises(CheckpointError, match="Too many open files"):
            load_checkpoint(tmp_path)
    assert load_checkpoint(tmp_path).values == OLD.values


def test_every_flipped_bit_of_the_tensor_file_is_caught(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, OLD)
    file = _tensor_file(tmp_path)
    data = file.read_bytes()
    for position in range(len(data)):
        file.write_bytes(data[:position] + bytes([data[position] ^ 1 << position % 8]) + data[position + 1 :])
        with pytest.raises(CheckpointError, match="does not match its SHA-256"):
            load_checkpoint(tmp_path)
    file.write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=f"{len(data) - 1} bytes.*restore it or train anew"):
        load_checkpoint(tmp_path)


FOREIGN = ["", "{", "[]", "null", "3", '"text"', "{}", "\xff", '{"schema": 1}']
FOREIGN += [f'{{"schema": {a}, "file": "a", "sha256": "b", "values": {b}}}' for a, b in (('"x"', "{}"), (1, 5), (1, '["ab", "c"]'))]


@pytest.mark.parametrize("text", FOREIGN)
def test_a_foreign_index_is_refused(tmp_path: Path, text: str) -> None:
    save_checkpoint(tmp_path, OLD)
    (tmp_path / INDEX_NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"checkpoint\.json: not a checkpoint index .*restore it or train anew"):
        load_checkpoint(tmp_path)
    # The next save puts a whole one in its place.
    save_checkpoint(tmp_path, NEW)
    assert load_checkpoint(tmp_path).values == NEW.values
    assert len(list(tmp_path.iterdir())) == 2


def test_a_newer_schema_asks_for_a_newer_medquant(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, OLD)
    _write_index(tmp_path, schema=2)
    with pytest.raises(CheckpointError, match="schema 2, this medquant reads up to 1; upgrade"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("form", ["../{name}", "{outside}/{name}", "sub/{name}", "../inside/../{name}", ".", "", "..", "{name}\0"])
def test_a_tensor_file_outside_the_folder_is_not_read(tmp_path: Path, form: str) -> None:
    inside = tmp_path / "inside"
    save_checkpoint(inside, OLD)
    name, data = "x.safetensors", _tensor_file(inside).read_bytes()
    (inside / "sub").mkdir()
    for folder in (tmp_path, inside / "sub"):
        (folder / name).write_bytes(data)
    _write_index(inside, file=form.format(name=name, outside=tmp_path))
    with pytest.raises(CheckpointError, match="not in its folder"):
        load_checkpoint(inside)


def test_no_checkpoint_and_no_tensor_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint here \(checkpoint\.json is missing\)"):
        load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, OLD)
    _tensor_file(tmp_path).unlink()
    with pytest.raises(CheckpointError, match="not in its folder"):
        load_checkpoint(tmp_path)


class _Bomb:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.place,)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    folder, place = tmp_path / "last", tmp_path / "it ran"
    save_checkpoint(folder, OLD)
    for data in (pickle.dumps(_Bomb(place)), b"", safetensors.torch.save(dict(OLD.tensors))[:-4]):
        _put_tensor_file(folder, data)
        with pytest.raises(CheckpointError, match="not a safetensors file"):
            load_checkpoint(folder)
    assert not place.exists()
