"""Scans to predict, and how the tests of predict run a model on one."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from small_models import ct_values, oblique

from medquant.data.nifti import write_nifti
from medquant.data.volume import Volume
from medquant.predict.many_scans import PredictRequest, predict
from medquant.predict.one_scan import Predicted, PredictOptions


def run(model: Path, scan: Path, out: Path, **options: object) -> tuple[Predicted, list[str]]:
    said: list[str] = []
    chosen = {name: options.pop(name) for name in ("max_memory_bytes", "allow_other_scans", "preview") if name in options}
    engine = str(options.pop("engine", "reference"))
    report = predict(PredictRequest(model, scan, out, engine, options=PredictOptions(**chosen), **options), said.append)  # type: ignore[arg-type]
    (result,) = report.results
    assert result.predicted is not None
    return result.predicted, said


def scan_file(path: Path, shape: tuple[int, int, int] = (45, 38, 7), affine: np.ndarray | None = None, seed: int = 0) -> Path:
    write_nifti(path, Volume(ct_values(shape, seed), oblique() if affine is None else affine))
    return path


def stored(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)
