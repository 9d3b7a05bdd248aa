"""What a trained run writes into its model file beside the network: rules for scans, classes, provenance, scores, terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata

import numpy as np

import medquant
from medquant.config.schema import Config
from medquant.data.prepared import PreparedCase
from medquant.deploy.metadata import ModelMetadata
from medquant.evaluate.evaluation import Evaluation
from medquant.train.building import configured_outputs
from medquant.train.session import TrainingSession


def model_metadata(session: TrainingSession, metrics: Mapping[str, object]) -> ModelMetadata:
    """The metadata of the run's model file.

    Args:
        session: a trained run.
        metrics: scores to go with it, see :func:`scored_metrics`; empty before there are any.
    """
    info, config = session.dataset.info, session.config
    stored = {
        "preparation": session.preparation.to_json(),
        "region": region_json(config),
        "channels": info.channels,
        "scan": scan_range(session.prepared("train"), info.modality),
        "regions": dict(info.regions),
        "size_multiple": session.size_multiple,
        "classes": dict(info.classes),
        "scored": info.scored,
        "positive_class": max(info.classes) if configured_outputs(config, len(info.classes)) == 1 else None,
        "float_parameters": sum(parameter.numel() for parameter in session.network.parameters()),
        "dataset": info.name,
        "data_sha256": session.dataset.content_sha256,
        "split": session.split.to_json(),
        "config": _shareable(config),
        "metrics": dict(metrics),
        "created_with": {"medquant": medquant.__version__, "torch": metadata.version("torch")},
        "intended_use": config.card.intended_use,
        "licence": config.card.licence or "",
    }
    return ModelMetadata.model_validate(stored)


def scored_metrics(evaluation: Evaluation, part: str, scored: Sequence[str]) -> dict[str, object]:
    """The scores that go into the model file: mean Dice by class with its interval, and what it was measured on."""
    summaries = {name: evaluation.dice_summary(name) for name in scored}
    return {
        "part": part,
        "cases": len(evaluation.scores),
        "dice": {
            name: {
                "mean": None if summary.mean is None else round(summary.mean, 6),
                "interval_95": None if summary.interval is None else [round(summary.interval.low, 6), round(summary.interval.high, 6)],
            }
            for name, summary in summaries.items()
        },
    }


def scan_range(cases: Sequence[PreparedCase], modality: str) -> dict[str, object]:
    """What the training scans were like, so that a scan of another kind is noticed before it is predicted.

    Returns:
        ``modality`` (None where unknown); ``spacing_mm``, the least and the largest along the axes of the network's grid, before
        resampling (None where a file gives none); ``values``, lowest and highest voxel of each channel in file units.
    """
    spacings = [[case.case.image.spacing_mm[axis] for axis in case.grid.axes] for case in cases if case.case.image.has_geometry]
    known = len(spacings) == len(cases) > 0
    channels = range(len(cases[0].channels)) if cases else range(0)
    return {
        "modality": modality or None,
        "spacing_mm": [np.min(spacings, axis=0).tolist(), np.max(spacings, axis=0).tolist()] if known else None,
        "values": [_range([case.case.channels[number].array for case in cases]) for number in channels],
    }


def _range(arrays: Sequence[np.ndarray]) -> list[float]:
    return [float(min(array.min() for array in arrays)), float(max(array.max() for array in arrays))]


def region_json(config: Config) -> dict[str, object]:
    """The region rule as the model file holds it."""
    data = config.data
    if data.region == "whole":
        return {"kind": "whole"}
    return {"kind": data.region, "margin_mm": data.region_margin_mm, "minimum": list(data.patch_size)}


def _shareable(config: Config) -> dict[str, object]:
    """The configuration without the places of this machine: a model file is passed on."""
    dumped: dict[str, dict[str, object]] = config.model_dump(mode="json")
    dumped["data"]["path"] = None
    dumped["data"]["cache"] = None
    dumped["train"]["twin_from"] = None
    dumped["train"]["init"] = None
    # Stands in the file on its own.
    del dumped["card"]
    return dict(dumped)
