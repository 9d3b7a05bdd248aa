"""From an official download to a dataset folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medquant.data.opening import open_dataset
from medquant.data.prepare.layouts import FolderLayout, Licence, Notify, write_dataset_folder
from medquant.data.prepare.staging import staged_folder
from medquant.data.reading import ReadOptions

LICENCES = {
    "spinal_gm": Licence(
        "research use under the challenge's own terms (license.txt of the download)", "doi 10.1016/j.neuroimage.2017.03.010"
    ),
    "isbi_em": Licence(
        "free for generating or testing non-commercial image segmentation software, with citation", "doi 10.3389/fnana.2015.00142"
    ),
    "pancreas_ct": Licence("CC BY 3.0", "doi 10.7937/K9/TCIA.2016.tNB1kqBU"),
}
"""Terms of each dataset that can be prepared."""


@dataclass(frozen=True)
class Prepared:
    """What was written.

    Args:
        dataset: registry name.
        layout: of the folder written.
        cases: number of labelled cases.
        recognised: what the download was taken for; for generated data, what it is.
    """

    dataset: str
    layout: str
    cases: int
    recognised: str


def prepare_download(name: str, raw: Path, out: Path, layout: FolderLayout, options: ReadOptions, notify: Notify) -> Prepared:
    """Read a download as ``medquant train`` would, with all its checks, and write it as a dataset folder.

    Args:
        name: registry name, a key of ``LICENCES``.
        raw: folder of the download; nothing in it is changed.
        out: new or empty folder.
        layout: ``nnunet`` or ``msd``.
        options: how to read it.
        notify: told of each case.

    Raises:
        InputError, GeometryError: the download is not what it should be.
        UsageError: ``out`` is filled or cannot be written.
    """
    # The place is tried before hours of reading.
    with staged_folder(out) as staged:
        dataset = open_dataset(raw, name, options=options)
        cases = write_dataset_folder(staged, dataset.info, dataset.cases, layout, LICENCES[name], dataset.recognised, notify)
    return Prepared(name, layout, cases, dataset.recognised)
