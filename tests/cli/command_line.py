"""Commands typed in-process, and the data and options they are typed with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from small_sessions import SMALL
from typer.testing import CliRunner, Result

from medquant.cli.main import app

SMALL_OPTIONS = [part for text in SMALL for part in ("-o", text)]
"""The options of a small run on the small phantom."""

EM_SIDE, EM_SLICES = 34, 8


def typed(*arguments: object) -> Result:
    """Type a command; what it writes to stdout and stderr is kept apart."""
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, [str(argument) for argument in arguments])


def only_document(result: Result) -> dict[str, object]:
    """The one JSON document on stdout."""
    document = json.loads(result.stdout)
    assert isinstance(document, dict)
    return document


def em_stack() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Slices and labels of cells between membranes, (K, rows, columns) as in the challenge's files."""
    rng = np.random.default_rng(0)
    labels = np.full((EM_SLICES, EM_SIDE, EM_SIDE), 255, dtype=np.uint8)
    for page in range(EM_SLICES):
        labels[page, (8 + page) % EM_SIDE] = 0
        labels[page, :, (20 - page) % EM_SIDE] = 0
    image = np.clip(labels * 0.6 + rng.normal(40, 10, labels.shape), 0, 255).astype(np.uint8)
    return image, labels


def em_folder(folder: Path, image: NDArray[np.generic] | None = None, labels: NDArray[np.generic] | None = None) -> Path:
    """A folder like the challenge's download."""
    own_image, own_labels = em_stack()
    folder.mkdir(parents=True)
    tifffile.imwrite(folder / "train-volume.tif", own_image if image is None else image)
    tifffile.imwrite(folder / "train-labels.tif", own_labels if labels is None else labels)
    return folder
