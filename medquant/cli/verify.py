"""``medquant verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medquant.cli.output import JsonOption, QuietOption, VerboseOption, Voice, guarded
from medquant.errors import EngineMismatchError


@guarded
def verify(
    model: Annotated[Path, typer.Argument(metavar="RUN|MODEL", help="Run folder or model file.")],
    scan: Annotated[Path | None, typer.Argument(help="A scan to run as well: NIfTI, a DICOM folder, TIFF.")] = None,
    against: Annotated[list[Path] | None, typer.Option(help="An exported .onnx or .xml that must agree; repeatable.")] = None,
    slices: Annotated[int, typer.Option(min=1, help="Slices of the scan to run at most, evenly spaced.")] = 16,
    exports: Annotated[bool, typer.Option("--exports/--no-exports", help="Also export the model and check the exports.")] = True,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Prove that a model file is whole and that every engine and export here gives its masks, voxel for voxel.

    Example: medquant verify runs/my-run/model.mq scan.nii.gz --against model.onnx
    """
    from medquant.predict.proof import ProofRequest, prove
    from medquant.report.tables import Table

    voice = Voice(as_json, quiet, verbose)
    proof = prove(ProofRequest(model, scan, tuple(against or ()), slices, exports), voice.say)
    rows = [
        (each.name, each.verdict, f"{each.differing_values} of {each.values}", f"{each.differing_voxels} of {each.voxels}")
        if each.values
        else (each.name, each.verdict, "", "")
        for each in proof.comparisons
    ]
    for each in proof.comparisons:
        if each.reason:
            voice.say(f"{each.name}: {each.reason}")
    document = {
        "model": str(proof.model),
        "sha256": proof.sha256,
        "tensors": proof.tensors,
        "images": proof.images,
        "comparisons": [vars(each) for each in proof.comparisons],
        "equal": not proof.differing,
    }
    voice.result(
        Table(("held to the reference", "verdict", "values that differ", "mask voxels that differ"), tuple(rows)).to_text(), document
    )
    if proof.differing:
        raise EngineMismatchError(
            f"{proof.model}: {', '.join(proof.differing)} give other values than the reference; do not use them, and report this"
        )
