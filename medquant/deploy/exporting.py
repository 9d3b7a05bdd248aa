"""A model in the form another tool reads: by the ending of the file that is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from medquant.data.atomic import write_atomically
from medquant.deploy.packed import PackedModel, load_model
from medquant.errors import CheckpointError, UsageError

ENDINGS = (".mq", ".onnx", ".xml")


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Args:
        files: path → bytes on disk.
        notes: what the exported form leaves out.
    """

    files: dict[Path, int]
    notes: tuple[str, ...] = ()


def find_model(target: Path) -> Path:
    """The model file of a run folder, or the file itself.

    Raises:
        CheckpointError: a run folder has none: it was not finished, or has float layers.
        UsageError: there is no such folder or file.
    """
    if not target.exists():
        raise UsageError(f"{target}: no such run folder or model file")
    if not target.is_dir():
        return target
    model = target / "model.mq"
    if not model.is_file():
        raise CheckpointError(
            f"{target}: holds no model.mq; a run has one when it is finished, its method is exact (medquant info) and none of its "
            f"layers computes in float: medquant plan {target} says so; an unfinished run ends with medquant train --resume --out {target}"
        )
    return model


def export_model(source: Path, path: Path, overwrite: bool = False) -> Exported:
    """Write the model at ``source`` (run folder or model file) in the form ``path`` ends in.

    Args:
        source: run folder or model file.
        path: ``.mq`` (the packed file itself), ``.onnx``, or ``.xml`` (OpenVINO IR, with a ``.bin`` beside it).
        overwrite: whether what stands there is replaced.

    Raises:
        UsageError: another ending, or something stands there.
        CheckpointError: the model file is damaged.
        EngineMismatchError: the network has a part that this form cannot hold exactly.
    """
    if path.suffix not in ENDINGS:
        raise UsageError(f"{path}: expected an ending of {', '.join(ENDINGS)} (packed, ONNX, OpenVINO)")
    model = find_model(source)
    packed = load_model(model)
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: exists already; choose another name, or replace it with --overwrite")
    if path.suffix == ".mq":
        _copy(model, path)
        return Exported({path: path.stat().st_size})
    if path.suffix == ".onnx":
        from medquant.deploy.export_onnx import export_onnx

        export_onnx(packed.program, packed.metadata, path, overwrite)
        return Exported({path: path.stat().st_size}, _left_out(packed))
    from medquant.deploy.export_openvino import export_openvino

    export_openvino(packed.program, packed.metadata, path, overwrite)
    return Exported({each: each.stat().st_size for each in (path, path.with_suffix(".bin"))}, _left_out(packed))


def _left_out(packed: PackedModel) -> tuple[str, ...]:
    notes = [
        "the file holds the network from the normalised image to the mask; how a scan becomes that image stands in its metadata "
        "(docs/deploy.md)"
    ]
    if packed.coarse is not None:
        notes.append("the coarse network that finds the region is not in it: export the coarse run of its own, or use the .mq file")
    return tuple(notes)


def _copy(source: Path, path: Path) -> None:
    if path.exists() and path.samefile(source):
        raise UsageError(f"{path}: is the model itself; choose another name")

    def write(stream: BinaryIO) -> None:
        stream.write(source.read_bytes())

    write_atomically(path, write)
    if load_model(path).sha256 != load_model(source).sha256:
        raise CheckpointError(f"{path}: differs from {source} although it was just written; check the disk")
