"""The pictures of a run: training curves, Dice against memory, masks over images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medquant.data.prepared import PreparedCase
from medquant.data.volume import Case, DatasetInfo, Volume
from medquant.evaluate.evaluation import Evaluation
from medquant.evaluate.paper_protocol import slice_id
from medquant.report.overlay import MethodPanel, OverlayRow, focus, overlay_figure
from medquant.report.plots import DicePoint, dice_against_memory, training_curves
from medquant.train.recorder import METRICS_NAME, read_records

if TYPE_CHECKING:
    from medquant.train.session import TrainingSession

_ROWS = 3


def draw_pictures(
    session: TrainingSession, cases: Sequence[PreparedCase], evaluation: Evaluation, twin: Evaluation | None, document: Mapping[str, object]
) -> None:
    """Write ``training.png`` (where something was trained), ``dice_memory.png`` and ``overlay.png`` into the run's ``pictures/``."""
    folder, info = session.run_folder.pictures, session.dataset.info
    folder.mkdir(exist_ok=True)
    quant = session.config.quant
    label = "float" if session.plan.is_float else f"W{quant.wbits}A{quant.abits}"
    if records := read_records(session.run_folder.path / METRICS_NAME):
        training_curves(records, folder / "training.png")
    named = ([("float", twin)] if twin is not None else []) + [(label, evaluation)]
    overlay_figure(_overlay_rows([_as_seen(case) for case in pictured(cases)], info, named), folder / "overlay.png")
    dice_against_memory(
        _points(info, label, evaluation, twin, document), folder / "dice_memory.png", baselines=_best_trivial(document, info)
    )


def drawn_class(info: DatasetInfo, cases: Sequence[Case]) -> int:
    """The class pictures show: the rarest scored one, because a class that covers the image hides everything."""
    numbers = [number for number, name in info.classes.items() if name in info.scored] or list(info.classes)
    shares = {number: np.mean([np.mean(case.mask.array == number) for case in cases if case.mask is not None]) for number in numbers}
    return min(numbers, key=lambda number: shares[number])


def pictured(cases: Sequence[PreparedCase]) -> list[PreparedCase]:
    """The cases that are drawn."""
    return list(cases[:: max(1, len(cases) // _ROWS)][:_ROWS])


def grey_as_seen(case: PreparedCase) -> NDArray[np.generic]:
    """The case's gray values (I, J, K) cut to the window the network sees, so that a CT shows soft tissue instead of bone."""
    rule, array = case.normalisation, case.case.image.array
    return array if rule.kind != "range" else np.clip(np.asarray(array, dtype=np.float32), rule.low, rule.high)


def _as_seen(case: PreparedCase) -> Case:
    if case.normalisation.kind != "range":
        return case.case
    return replace(case.case, image=Volume(grey_as_seen(case), case.case.image.affine, case.case.image.has_geometry))


def _overlay_rows(cases: Sequence[Case], info: DatasetInfo, named: Sequence[tuple[str, Evaluation]]) -> list[OverlayRow]:
    number = drawn_class(info, cases)
    name = info.classes[number]
    rows = []
    for case in cases:
        if case.mask is None:
            continue
        k = int(np.argmax((case.mask.array == number).sum(axis=(0, 1))))
        truth = case.mask.array[:, :, k].astype(np.uint8)
        image = case.image.array[:, :, k].astype(np.float32)
        panels = []
        for label, evaluation in named:
            score = next(score for score in evaluation.scores if score.id in (case.id, slice_id(case, k)))
            panels.append(MethodPanel(label, evaluation.masks[case.id][:, :, k], score.dice[name]))
        zoom = focus([truth, *[panel.prediction for panel in panels]], number) if np.mean(truth == number) < 0.05 else None
        title = case.id if case.image.shape[2] == 1 else f"{case.id} slice {k}"
        rows.append(OverlayRow(title, image, truth, number, name, tuple(panels), case.image.spacing_mm[:2], zoom))
    return rows


def _points(
    info: DatasetInfo, label: str, evaluation: Evaluation, twin: Evaluation | None, document: Mapping[str, object]
) -> list[DicePoint]:
    memory = document["memory"]
    if not isinstance(memory, Mapping):
        return []
    named = ([("float", int(memory["float_bytes"]), twin)] if twin is not None else []) + [
        (label, int(memory["parameter_bytes"]), evaluation)
    ]
    points = []
    for name in info.scored:
        for text, size, scores in named:
            summary = scores.dice_summary(name)
            ends = (None, None) if summary.interval is None else (summary.interval.low, summary.interval.high)
            points.append(DicePoint(text, size, summary.mean or 0.0, ends[0], ends[1], name))
    return points


def _best_trivial(document: Mapping[str, object], info: DatasetInfo) -> dict[str, float]:
    found = document["baseline"]
    if not isinstance(found, Mapping):
        return {}
    return {name: max(float(scores.get(name) or 0.0) for scores in found.values()) for name in info.scored}
