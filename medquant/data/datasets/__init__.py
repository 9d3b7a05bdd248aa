"""The datasets medquant knows. A new one is a file in this folder and a line in ``DATASETS``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medquant.data.datasets import folder, isbi_em, isbi_em_paper, pancreas_ct, spinal_gm, spinal_gm_paper
from medquant.data.reading import ReadOptions
from medquant.data.volume import Dataset

PHANTOM = "phantom"
"""Name of the generated dataset, which needs no folder and is therefore not among the readers."""


@dataclass(frozen=True)
class DatasetReader:
    """How one dataset is told from others, and read.

    Args:
        name: the dataset's name, as in ``DatasetInfo.name``.
        layout: the files it expects, in one line, for messages.
        recognise: folder → why it is this dataset, or None. Looks at names only and never raises for a folder.
        load: folder, options → dataset; raises InputError or GeometryError when the files are not what they should be.
    """

    name: str
    layout: str
    recognise: Callable[[Path], str | None]
    load: Callable[[Path, ReadOptions], Dataset]


DATASETS: tuple[DatasetReader, ...] = (
    DatasetReader("isbi_em", isbi_em.LAYOUT, isbi_em.recognise, isbi_em.load),
    DatasetReader("isbi_em_paper", isbi_em_paper.LAYOUT, isbi_em_paper.recognise, isbi_em_paper.load),
    DatasetReader("pancreas_ct", pancreas_ct.LAYOUT, pancreas_ct.recognise, pancreas_ct.load),
    DatasetReader("spinal_gm", spinal_gm.LAYOUT, spinal_gm.recognise, spinal_gm.load),
    DatasetReader("spinal_gm_paper", spinal_gm_paper.LAYOUT, spinal_gm_paper.recognise, spinal_gm_paper.load),
    DatasetReader("folder", folder.LAYOUT, folder.recognise, folder.load),
)  # fmt: skip


def dataset_names() -> tuple[str, ...]:
    """Every name ``open_dataset`` accepts besides ``auto``."""
    return (PHANTOM, *(reader.name for reader in DATASETS))
