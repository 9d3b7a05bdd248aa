"""One scan or a folder of them: every scan is tried, what is broken is reported and skipped, what is finished may be kept."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from medquant.deploy.engines import check_engine
from medquant.deploy.packed import load_model
from medquant.errors import MedquantError, UsageError
from medquant.predict.masks import (
    FORMATS,
    MaskFormat,
    check_writable_as,
    checked_format,
    file_name,
    format_of_file,
    format_of_scan,
    is_mask_name,
)
from medquant.predict.model_case import OpenModel, open_model
from medquant.predict.one_scan import Predicted, PredictOptions, predict_scan, preview_path
from medquant.predict.reading import scan_sha256
from medquant.predict.records import FILE_NAME, Record, Records, file_sha256, only_writer
from medquant.predict.scans import Scan, Scans, find_scans


@dataclass(frozen=True)
class PredictRequest:
    """What was asked for.

    Args:
        model: model file.
        scan: a scan, or a folder of scans.
        out: the mask's file, or the folder for the masks of a folder.
        engine: engine name or ``auto``.
        mask_format: one of :data:`FORMATS`; None for what the ending of ``out`` says or, in a folder, the kind of the scan.
        overwrite: replace masks that exist; with ``resume``, those alone that are not known to the folder's record.
        resume: keep finished masks of a folder.
        options: memory, checks and pictures.
    """

    model: Path
    scan: Path
    out: Path
    engine: str = "auto"
    mask_format: str | None = None
    overwrite: bool = False
    resume: bool = False
    options: PredictOptions = field(default_factory=PredictOptions)


@dataclass(frozen=True)
class ScanResult:
    """What became of one scan: ``predicted``, or ``error``, or a finished mask that was kept.

    Args:
        name: of the scan.
        predicted: the mask and what is in it.
        error: why there is none.
        kept: the finished mask of an earlier run.
    """

    name: str
    predicted: Predicted | None = None
    error: MedquantError | None = None
    kept: Path | None = None

    def to_json(self) -> dict[str, object]:
        """As plain JSON values."""
        if self.predicted is not None:
            return {"scan": self.name, "status": "written", **self.predicted.to_json()}
        if self.kept is not None:
            return {"scan": self.name, "status": "kept", "output": str(self.kept)}
        return {"scan": self.name, "status": "skipped", "error": str(self.error), "exit_code": self.error.exit_code if self.error else 1}


@dataclass(frozen=True)
class PredictReport:
    """What became of all scans.

    Args:
        model: model file.
        model_sha256: its digest.
        engine: what the network ran on.
        results: one for each scan.
    """

    model: Path
    model_sha256: str
    engine: str
    results: tuple[ScanResult, ...]

    @property
    def error(self) -> MedquantError | None:
        """The first error, None where every scan has its mask."""
        return next((result.error for result in self.results if result.error is not None), None)

    def summary(self) -> str:
        """How many masks were written, kept and skipped, in a line."""
        counts = self._counts()
        kept = f", {counts['kept']} kept from before" if counts["kept"] else ""
        return f"{counts['written']} of {len(self.results)} masks written{kept}, {counts['skipped']} scans skipped"

    def to_json(self) -> dict[str, object]:
        """The document of the command."""
        head = {"model": str(self.model), "model_sha256": self.model_sha256, "engine": self.engine}
        return {**head, **self._counts(), "scans": [result.to_json() for result in self.results]}

    def _counts(self) -> dict[str, int]:
        found = Counter(str(result.to_json()["status"]) for result in self.results)
        return {status: found[status] for status in ("written", "kept", "skipped")}


def predict(
    request: PredictRequest, notify: Callable[[str], None], progress: Callable[[str, int, int], None] = lambda *_: None
) -> PredictReport:
    """Predict one scan, or every scan of a folder.

    Args:
        request: what is asked for.
        notify: told, in a line each, what the user has to know while it runs.
        progress: told the scan, and how many of its slices are done.

    Raises:
        UsageError: the output exists, does not fit the scan, or cannot be written; or the engine is unknown.
        CheckpointError: the model file is damaged or foreign.
        InputError: there is no scan; or, for a single scan, it is refused. Of a folder, refused scans are in the report.
        GeometryError: for a single scan, as before.
        EngineMismatchError: the engine cannot run the network exactly.
    """
    check_engine(request.engine)
    asked = checked_format(request.mask_format)
    packed = load_model(request.model)
    scans = find_scans(request.scan, len(packed.metadata.channels))
    outputs = _outputs(request, scans, asked)
    model = open_model(packed, request.engine, notify)
    # With it the weights go, where the engine has its own.
    del packed
    if scans.ignored:
        notify(f"{request.scan}: {scans.ignored} files or folders that are no scan are left out")
    if not scans.is_folder:
        results = [_predict_single(request, model, scans.scans[0], *outputs[0], notify, progress)]
    else:
        with only_writer(request.out):
            results = _predict_folder(request, model, scans, outputs, notify, progress)
    return PredictReport(request.model, model.packed.sha256, model.predictor.name, tuple(results))


def _outputs(request: PredictRequest, scans: Scans, asked: MaskFormat | None) -> list[tuple[Path, MaskFormat]]:
    """Where each mask goes; all that can be refused before a scan is read is refused here."""
    out = request.out
    if out.resolve() == request.scan.resolve():
        raise UsageError(f"{out}: is the scan itself; choose another place for its mask")
    if not scans.is_folder:
        if out.is_dir():
            raise UsageError(f"{out}: is a folder, expected a file name for the mask, ending in .nii.gz, .dcm or .tif")
        if request.resume:
            raise UsageError("--resume goes with a folder of scans; leave it out, or give --overwrite")
        found = format_of_file(out, asked)
        check_writable_as(scans.scans[0], found)
        _refuse_existing([out, *([preview_path(out)] if request.options.preview else [])], request.overwrite)
        if not out.parent.is_dir():
            raise UsageError(f"{out}: the folder {out.parent} does not exist; make it first or choose another place")
        _check_writable(out.parent, out)
        return [(out, found)]
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file, expected a folder for the masks of {len(scans.scans)} scans")
    if not out.exists() and is_mask_name(out):
        raise UsageError(
            f"{out}: is called like one mask, but {request.scan} is a folder of {len(scans.scans)} scan(s); name a folder for the masks, "
            "or one scan"
        )
    if out.is_dir() and any(out.iterdir()) and not (request.overwrite or request.resume):
        raise UsageError(f"{out}: exists and is not empty; give --resume to go on, --overwrite to replace, or another folder")
    formats = [format_of_scan(scan, asked) for scan in scans.scans]
    outputs = [(out / file_name(scan, each), each) for scan, each in zip(scans.scans, formats, strict=True)]
    twice = [path.name for path, count in Counter(path for path, _ in outputs).items() if count > 1]
    if twice:
        raise UsageError(f"{request.scan}: several scans would be written to {twice[0]}; rename them, or predict them one by one")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: cannot be made ({error.strerror}); choose another place") from error
    _check_writable(out, out)
    return outputs


def _check_writable(folder: Path, out: Path) -> None:
    """Refuse at once what would be refused only after minutes of prediction."""
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".medquant-"):
            pass
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror}); choose another place") from error


def _refuse_existing(paths: list[Path], overwrite: bool) -> None:
    for path in paths:
        if path.exists() and not overwrite:
            raise UsageError(f"{path}: exists; give --overwrite to replace it, or another name")


def _predict_single(
    request: PredictRequest,
    model: OpenModel,
    scan: Scan,
    output: Path,
    mask_format: MaskFormat,
    notify: Callable[[str], None],
    progress: Callable[[str, int, int], None],
    note: Callable[[Path], None] | None = None,
) -> ScanResult:
    def done(slices: int, total: int) -> None:
        progress(scan.name, slices, total)

    predicted = predict_scan(model, scan, output, mask_format, request.options, done, note)
    for warning in predicted.warnings:
        notify(f"warning: {warning}")
    return ScanResult(scan.name, predicted)


def _predict_folder(
    request: PredictRequest,
    model: OpenModel,
    scans: Scans,
    outputs: list[tuple[Path, MaskFormat]],
    notify: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> list[ScanResult]:
    records = Records(request.out)
    results = []
    for scan, (output, mask_format) in zip(scans.scans, outputs, strict=True):
        try:
            check_writable_as(scan, mask_format)
            source, options = scan_sha256(scan), _options_text(request, mask_format)
            if request.resume and _is_finished(records.get(output.name), output, (source, model.packed.sha256, options), request, notify):
                results.append(ScanResult(scan.name, kept=output))
                continue

            def note(mask: Path, name: str = output.name, source: str = source, options: str = options) -> None:
                records.note(name, Record(source, model.packed.sha256, options, file_sha256(mask)))

            result = _predict_single(request, model, scan, output, mask_format, notify, progress, note)
        except MedquantError as error:
            notify(f"skipped {scan.name}: {error}")
            result = ScanResult(scan.name, error=error)
        results.append(result)
    return results


def _is_finished(
    record: Record | None, output: Path, made_of: tuple[str, str, str], request: PredictRequest, notify: Callable[[str], None]
) -> bool:
    """Whether a mask of an earlier run is what would be written now.

    Raises:
        UsageError: a file stands there that this command did not write, or that was changed since.
    """
    if not output.exists():
        return False
    if record is None or file_sha256(output) != record.output_sha256:
        if request.overwrite:
            notify(f"{output}: not as {FILE_NAME} says, made again")
            return False
        found = "is not known to" if record is None else "was changed since it was noted in"
        raise UsageError(f"{output}: {found} {FILE_NAME}, so it may be someone's work; move it elsewhere, or give --overwrite too")
    if not record.is_of(*made_of):
        notify(f"{output}: was made from another scan, model or options, made again")
        return False
    return request.options.preview is None or preview_path(output).exists()


def _options_text(request: PredictRequest, mask_format: MaskFormat) -> str:
    """What a mask depends on beside scan and model; engines are exact, and give one and the same."""
    memory = request.options.max_memory_bytes
    return f"{mask_format}, {'any memory' if memory is None else f'{memory} bytes'}"


__all__ = ["FORMATS", "PredictReport", "PredictRequest", "ScanResult", "predict"]
