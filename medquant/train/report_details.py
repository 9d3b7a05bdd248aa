"""What a report shows of single runs: the statistics of their layers, and their masks of a few cases, predicted again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medquant.data.bounded import read_bounded
from medquant.data.prepared import PreparedCase, prepare_cases
from medquant.data.volume import DatasetInfo
from medquant.errors import CheckpointError, MedquantError
from medquant.evaluate.evaluation import select_cases
from medquant.predict.windows import predict_case
from medquant.report.case_choice import ChosenCase, choose_cases, shown_record
from medquant.report.record import Prediction, ReportInput, RunDetails, RunRecord, ShownCase
from medquant.train.finish import checked_images, own_predictor
from medquant.train.layer_record import LAYERS_NAME, layers_of_run, layers_of_session
from medquant.train.pictures import drawn_class, grey_as_seen
from medquant.train.reporting import SilentReporter
from medquant.train.run_folder import RunFolder
from medquant.train.session import TrainingSession
from medquant.train.start import open_session

MOST_PREDICTED = 8
"""Groups whose networks predict the shown cases: more do not fit beside each other."""
MOST_SECONDS = 60.0
_MOST_PICTURE_BYTES = 2**26


@dataclass(frozen=True)
class _Drawn:
    """What one session gives: slices of the cases, with its own predictions, and the layers where the run has no record of them."""

    cases: tuple[ShownCase, ...]
    layers: Mapping[str, object] | None


def with_details(asked: ReportInput, folders: Sequence[RunFolder], say: Callable[[str], None]) -> ReportInput:
    """Add to a report what has to be read from, or computed with, the run folders; what cannot be is said in its place.

    Args:
        asked: runs and groups.
        folders: of ``asked.records``, in the same order.
        say: told what is under way.
    """
    chosen = choose_cases(asked)
    details: dict[str, RunDetails] = {}
    cases: list[ShownCase] = []
    notes = list(asked.notes)
    for number, group in enumerate(asked.groups):
        record = shown_record(asked, group)
        run = folders[next(i for i, each in enumerate(asked.records) if each is record)]
        say(f"reading {record.name} ({group.label})")
        wanted = _affordable(chosen, record, MOST_SECONDS / max(1, min(len(asked.groups), MOST_PREDICTED)))
        if number >= MOST_PREDICTED or not wanted:
            why = f"only the first {MOST_PREDICTED} networks are shown on cases" if number >= MOST_PREDICTED else "it would take too long"
            details[group.label] = _layers(run, RunDetails(record, cases_missing=why))
            continue
        try:
            drawn = _draw(run, wanted, group.label, cases[0].class_name if cases else None)
        except MedquantError as error:
            details[group.label] = _layers(run, RunDetails(record, picture=_picture(run), cases_missing=error.lines[0]))
            continue
        details[group.label] = _layers(run, RunDetails(record, drawn.layers))
        cases = _joined(cases, drawn.cases)
    if cases and len(cases) < len(chosen):
        notes.append(f"{len(cases)} of {len(chosen)} chosen cases are drawn: predicting more would take too long")
    return replace(asked, details=details, cases=tuple(cases), notes=tuple(notes))


def _layers(run: RunFolder, details: RunDetails) -> RunDetails:
    if details.layers is not None:
        return details
    try:
        layers, missing = layers_of_run(run)
    except CheckpointError as error:
        return replace(details, layers_missing=error.lines[0])
    return replace(details, layers=layers, layers_missing=missing)


def _affordable(chosen: Sequence[ChosenCase], record: RunRecord, seconds: float) -> list[ChosenCase]:
    """As many of the cases as the run took ``seconds`` for when it was scored; those it did not test are left out."""
    each = record.evaluation.get("seconds_per_case")
    most = int(seconds / each) if isinstance(each, int | float) and each > 0 else len(chosen)
    tested = {str(case.get("id")) for case in record.cases}
    return [case for case in chosen if case.id in tested][:most]


def _draw(run: RunFolder, chosen: Sequence[ChosenCase], label: str, class_name: str | None) -> _Drawn:
    session = open_session(run, None, SilentReporter(), lambda: False)
    info = session.dataset.info
    found = select_cases(session.dataset, [case.id for case in chosen])
    prepared = [session.region.place(case) for case in prepare_cases(found, session.preparation, session.cache)]
    # Which class is rarest depends on the cases, and a slow network is shown on fewer: all show what the first one shows.
    known = next((number for number, name in info.classes.items() if name == class_name), None)
    number = drawn_class(info, [case.case for case in prepared]) if known is None else known
    predictor = own_predictor(session)
    shown = []
    for why, case in ((each, next(case for case in prepared if case.id == each.id)) for each in chosen):
        shown.append(_shown(case, why, predict_case(case, predictor), info, number, label))
    return _Drawn(tuple(shown), None if (run.path / LAYERS_NAME).exists() else _measured(session))


def _measured(session: TrainingSession) -> Mapping[str, object]:
    # One image is enough for shares of a million values, and a report should not take minutes.
    return layers_of_session(session, None if session.only_size else checked_images(session)[:1])


def _shown(case: PreparedCase, chosen: ChosenCase, mask: np.ndarray, info: DatasetInfo, number: int, label: str) -> ShownCase:
    image, truth = grey_as_seen(case), case.case.mask
    truth_array = mask if truth is None else truth.array
    k = int(np.argmax((truth_array == number).sum(axis=(0, 1))))
    name = info.classes[number]
    spacing = case.case.image.spacing_mm
    prediction = Prediction(label, mask[:, :, k] == number, chosen.dice_of(label, name))
    return ShownCase(
        case.id,
        chosen.why,
        k + 1,
        mask.shape[2],
        name,
        np.asarray(image[:, :, k], dtype=np.float32),
        np.asarray(truth_array[:, :, k] == number),
        spacing[1] / spacing[0] if math.isfinite(spacing[1] / spacing[0]) else 1.0,
        (prediction,),
    )


def _joined(cases: list[ShownCase], more: Sequence[ShownCase]) -> list[ShownCase]:
    """The same slices with the predictions of another network beside the others'."""
    by_id = {case.id: case for case in cases}
    for case in more:
        known = by_id.get(case.id)
        by_id[case.id] = case if known is None else replace(known, predictions=(*known.predictions, *case.predictions))
    return list(by_id.values())


def _picture(run: RunFolder) -> bytes | None:
    file: Path = run.pictures / "overlay.png"
    try:
        return read_bounded(file, _MOST_PICTURE_BYTES)
    except OSError:
        return None
