"""``medquant predict``."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from medquant.cli.output import JsonOption, QuietOption, VerboseOption, Voice, guarded


@guarded
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model file (.mq).")],
    scan: Annotated[Path, typer.Argument(metavar="SCAN", help="NIfTI, DICOM folder, TIFF or PNG, or a folder of these.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Mask: .nii.gz, .dcm (DICOM SEG), .tif; a folder for a folder of scans.")],
    engine: Annotated[str, typer.Option(help="Engine, see medquant doctor; auto: the fastest exact one.")] = "auto",
    mask_format: Annotated[
        str | None, typer.Option("--format", help="For a folder: nifti, dicom-seg or tiff. [default: that of the scan]")
    ] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Draw a picture of each mask beside it.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Of a folder: keep the masks that are finished; with --overwrite, replace what is not known.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace masks that exist.")] = False,
    max_memory: Annotated[
        str | None, typer.Option(help="Memory above the idle process, e.g. 500MB; tiles are cut to fit. [default: 700MB]")
    ] = None,
    allow_other_scans: Annotated[
        bool, typer.Option("--allow-other-scans", help="Predict scans of another kind than the model was trained on; said aloud.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Segment a scan, or a folder of scans, with a model file; the mask lies on the scan's own voxels.

    Example: medquant predict model.mq scans/ masks/ --resume --preview
    """
    from medquant.errors import shortened
    from medquant.predict.many_scans import PredictRequest
    from medquant.predict.many_scans import predict as run
    from medquant.predict.one_scan import PredictOptions
    from medquant.predict.working_set import parse_bytes

    voice = Voice(as_json, quiet, verbose)
    picture = None
    if preview:
        from medquant.report.preview import write_preview

        picture = write_preview
    options = PredictOptions(None if max_memory is None else parse_bytes(max_memory), allow_other_scans, picture)
    request = PredictRequest(model, scan, out, engine, mask_format, overwrite, resume, options)
    with _stopped_like_ctrl_c(), _Progress(voice) as progress:
        report = run(request, progress.say, progress)
    lines = []
    for result in report.results:
        if result.predicted is not None:
            classes = ", ".join(
                f"{shortened(name)} {report_of['ml']:.1f} ml"
                if report_of["ml"] is not None
                else f"{shortened(name)} {report_of['voxels']} voxels"
                for name, report_of in _foreground(result.predicted.to_json())
            )
            lines.append(f"{result.predicted.output}: {classes or 'empty'} ({result.predicted.engine}, {result.predicted.elapsed_s:.1f} s)")
        elif result.kept is not None:
            lines.append(f"{result.kept}: kept")
        else:
            lines.append(f"{result.name}: skipped")
    if len(report.results) > 1 or report.error is not None:
        lines.append(report.summary())
    voice.result(lines, report.to_json())
    if report.error is not None:
        raise type(report.error)(f"{report.summary()}; the first: {report.error}")


def _foreground(predicted: dict[str, object]) -> list[tuple[str, dict[str, float | None]]]:
    classes = predicted["classes"]
    return [(name, each) for name, each in classes.items() if each["number"] and each["voxels"]] if isinstance(classes, dict) else []


@contextlib.contextmanager
def _stopped_like_ctrl_c() -> Iterator[None]:
    """SIGTERM, which ``docker stop`` and job queues send, ends as ctrl-C does: Python alone would leave the decoded scan in TMPDIR."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Progress:
    """How far a scan is, in one changing line on a terminal; warnings on lines of their own, even when quiet."""

    def __init__(self, voice: Voice) -> None:
        self._voice = voice
        self._on_terminal = sys.stderr.isatty() and not voice.quiet
        self._is_open = False

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_line()

    def __call__(self, name: str, done: int, total: int) -> None:
        if self._on_terminal:
            print(f"\r\x1b[Kslice {done} of {total}", end="", file=sys.stderr, flush=True)
            self._is_open = True

    def say(self, text: str) -> None:
        """A line; what a mask lacks must be heard."""
        self._end_line()
        Voice().say(text)

    def _end_line(self) -> None:
        if self._is_open:
            print(file=sys.stderr)
        self._is_open = False
