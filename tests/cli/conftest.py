"""What tests of the command line share: a small world to train in, and one finished run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import small_sessions

from medquant.data.nifti import write_nifti
from medquant.deploy.packed import load_model, save_model
from medquant.quant.program import ConvolutionNode


@pytest.fixture(autouse=True)
def small_world() -> Iterator[pytest.MonkeyPatch]:
    with small_sessions.small_world() as patch:
        yield patch


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished small run; copy it before changing anything."""
    return small_sessions.finished_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory, finished_run: Path) -> Path:
    """The model of the finished run with one weight changed."""
    packed = load_model(finished_run / "model.mq")
    nodes = list(packed.program.nodes)
    place = next(number for number, node in enumerate(nodes) if isinstance(node, ConvolutionNode))
    node = nodes[place]
    if not isinstance(node, ConvolutionNode):
        raise TypeError
    nodes[place] = replace(node, bias=node.bias + 1000)
    path = tmp_path_factory.mktemp("other") / "other.mq"
    save_model(path, replace(packed.program, nodes=tuple(nodes)), packed.metadata)
    return path


@pytest.fixture
def phantom_scan(tmp_path: Path) -> Path:
    """A scan of the small phantom as NIfTI, in a folder of its own."""
    case = small_sessions.small_phantom().cases[0]
    folder = tmp_path / "scan"
    folder.mkdir()
    write_nifti(folder / "scan.nii.gz", case.image)
    return folder / "scan.nii.gz"
