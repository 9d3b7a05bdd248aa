"""What a report is made of: finished runs and a few of their cases, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medquant.report.comparison import Group


@dataclass(frozen=True)
class RunRecord:
    """One finished run.

    Args:
        name: of its folder.
        run: content of ``run.json``.
        evaluation: content of ``eval.json``.
        epochs: lines of ``metrics.jsonl``.
        settings: configuration, section → key → value; empty where it cannot be read.
    """

    name: str
    run: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    epochs: tuple[Mapping[str, Any], ...] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def cases(self) -> list[Mapping[str, Any]]:
        """The scores of single cases, as far as they are readable."""
        found = self.evaluation.get("cases")
        return [case for case in found if isinstance(case, Mapping)] if isinstance(found, list) else []


@dataclass(frozen=True)
class RunDetails:
    """What is shown of one run of a group, the one in the middle.

    Args:
        record: the run.
        layers: content of ``layers.json``, None where there is nothing of the kind.
        layers_missing: what of it is missing and why, "" where nothing is.
        picture: the run's own overlay picture as PNG, where the cases themselves could not be predicted again.
        cases_missing: why they could not, "" where they could.
    """

    record: RunRecord
    layers: Mapping[str, Any] | None = None
    layers_missing: str = ""
    picture: bytes | None = None
    cases_missing: str = ""


@dataclass(frozen=True)
class Prediction:
    """One network's mask of a shown slice: where it says the shown class, (I, J), and the Dice of the whole case."""

    label: str
    mask: NDArray[np.bool_]
    dice: float | None


@dataclass(frozen=True)
class ShownCase:
    """One slice of one case.

    Args:
        id: of the case.
        why: why it is shown, in words.
        slice_number: from 1, with ``slices`` in all.
        class_name: the class whose outline is drawn.
        image: grey values, (I, J).
        truth: where the truth says that class, (I, J).
        height_to_width: of a pixel, j over i.
        predictions: one a group.
    """

    id: str
    why: str
    slice_number: int
    slices: int
    class_name: str
    image: NDArray[np.floating]
    truth: NDArray[np.bool_]
    height_to_width: float
    predictions: tuple[Prediction, ...] = ()


@dataclass(frozen=True)
class ReportInput:
    """All a report shows.

    Args:
        title: heading.
        records: the runs.
        groups: the same, by network, bits and method.
        details: group label → its shown run.
        cases: slices with outlines.
        notes: what was left out, in words.
        folds: the runs tested different cases of one data set.
    """

    title: str
    records: tuple[RunRecord, ...]
    groups: tuple[Group, ...]
    details: Mapping[str, RunDetails] = field(default_factory=dict)
    cases: tuple[ShownCase, ...] = ()
    notes: tuple[str, ...] = ()
    folds: bool = False

    def records_of(self, group: Group) -> list[RunRecord]:
        """The runs of a group."""
        return [record for record in self.records if any(record.evaluation is document for document in group.documents)]
