"""Whether a model file is whole, and every engine and export gives its masks: on random images and on a scan."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from medquant.data.prepared import PreparedCase
from medquant.data.stored import ArrayCache
from medquant.data.volume import FloatArray
from medquant.deploy.exporting import export_model, find_model
from medquant.deploy.packed import PackedModel, load_model
from medquant.deploy.verification import Comparison, Expected, compare_engines, compare_file, random_images, run_reference
from medquant.errors import EngineMismatchError, InputError
from medquant.predict.blocks import CORE
from medquant.predict.fit import find_misfits
from medquant.predict.model_case import open_model
from medquant.predict.reading import read_scan
from medquant.predict.scans import find_scans
from medquant.predict.scratch import scratch_folder

_EXPORTS = (("onnx", "model.onnx"), ("openvino", "model.xml"))


@dataclass(frozen=True)
class ProofRequest:
    """What is to be proved.

    Args:
        model: run folder or model file.
        scan: a scan to run as well, None for random images alone.
        against: exported files that must give the same masks.
        slices: slices of the scan that are run at most, evenly spaced; networks that take volumes see one block from its middle.
        exports: whether the model is also exported, into a folder that is thrown away, and the exports held to the reference.
    """

    model: Path
    scan: Path | None = None
    against: tuple[Path, ...] = ()
    slices: int = 16
    exports: bool = True


@dataclass(frozen=True)
class Proof:
    """What was found.

    Args:
        model: the file.
        sha256: of the whole file; it and the hash of every tensor were right.
        tensors: how many tensors that are.
        images: random images and slices of the scan that were run.
        comparisons: engines and files, each held to the reference.
    """

    model: Path
    sha256: str
    tensors: int
    images: int
    comparisons: tuple[Comparison, ...]

    @property
    def differing(self) -> list[str]:
        """Names of what does not give the reference's values and masks."""
        return [each.name for each in self.comparisons if each.verdict == "differs"]


def prove(request: ProofRequest, notify: Callable[[str], None]) -> Proof:
    """Hold every engine and export of a model to the reference.

    Raises:
        CheckpointError: the model file is damaged, or a runtime cannot read an exported file.
        InputError, GeometryError: the scan cannot be read, or the model was not made for it.
        UsageError: something named does not exist.
    """
    path = find_model(request.model)
    packed = load_model(path)
    notify(f"{path}: {packed.size_bytes} bytes, SHA-256 {packed.sha256[:16]}..., every tensor's own hash right")
    images = list(random_images(packed.program, packed.metadata.size_multiple))
    if request.scan is not None:
        found = _scan_images(packed, request.scan, request.slices, notify)
        notify(f"{len(found)} image(s) of the scan and {len(images)} random ones")
        images += found
    expected = run_reference(packed.program, images)
    comparisons = list(compare_engines(packed.program, expected))
    if packed.coarse is not None:
        coarse = run_reference(packed.coarse.program, random_images(packed.coarse.program, packed.coarse.metadata.size_multiple))
        comparisons += [replace(each, name=f"{each.name}, coarse network") for each in compare_engines(packed.coarse.program, coarse)]
    if request.exports:
        comparisons += _compare_exports(path, expected)
    for file in request.against:
        comparisons += compare_file(file, expected)
    return Proof(path, packed.sha256, _tensor_count(packed), len(images), tuple(comparisons))


def _compare_exports(model: Path, expected: Sequence[Expected]) -> list[Comparison]:
    found = []
    with tempfile.TemporaryDirectory(prefix="medquant-verify-") as folder:
        for package, name in _EXPORTS:
            if find_spec(package) is None:
                found.append(Comparison(f"export to {Path(name).suffix}", "absent", reason=f"{package} is not installed"))
                continue
            try:
                export_model(model, Path(folder) / name)
            except EngineMismatchError as error:
                found.append(Comparison(f"export to {Path(name).suffix}", "refused", reason=str(error)))
                continue
            found += [replace(each, name=f"export {each.name}") for each in compare_file(Path(folder) / name, expected)]
    return found


def _scan_images(packed: PackedModel, path: Path, slices: int, notify: Callable[[str], None]) -> list[FloatArray]:
    """Normalised images of a scan's region, padded by their edge to sizes the network takes."""
    scans = find_scans(path, len(packed.metadata.channels))
    if len(scans.scans) != 1:
        raise InputError(f"{path}: holds {len(scans.scans)} scans, expected one; name one of them")
    with scratch_folder() as folder:
        scratch = ArrayCache(folder, remedy="set TMPDIR to a folder with more room")
        model = open_model(packed, "auto", notify)
        read = read_scan(scans.scans[0], len(packed.metadata.channels), scratch)
        # Scans of another kind still show whether engines agree; one that shrinks to nothing on the model's grid shows nothing.
        for misfit in find_misfits(packed.metadata, model.preparation, read.case, read.modality):
            if not misfit.can_be_allowed:
                raise misfit.error
        case = model.prepare(read.case, scratch)
        images = _middle_block(case) if packed.program.dimensions == 3 else _spaced_slices(case, slices)
    multiple = packed.metadata.size_multiple
    return [np.pad(each, [(0, 0), (0, 0), *((0, -length % multiple) for length in each.shape[2:])], mode="edge") for each in images]


def _spaced_slices(case: PreparedCase, most: int) -> list[FloatArray]:
    chosen = np.unique(np.linspace(0, case.slices - 1, min(most, case.slices)).round().astype(int))
    return [case.image(int(k))[None] for k in chosen]


def _middle_block(case: PreparedCase) -> list[FloatArray]:
    starts = [max(0, (length - core) // 2) for length, core in zip(case.window.shape, CORE, strict=True)]
    i, j, k = (slice(start, start + core) for start, core in zip(starts, CORE, strict=True))
    layers = [case.image(each)[:, i, j] for each in range(k.start, min(k.stop, case.slices))]
    return [np.stack(layers, axis=3)[None]]


def _tensor_count(packed: PackedModel) -> int:
    own = 3 * len(packed.program.convolutions)
    return own if packed.coarse is None else own + _tensor_count(packed.coarse)
