"""What a folder is taken for, and what is said when it is taken for nothing. Expected: the messages a user needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from medquant.data import opening
from medquant.data.datasets import DATASETS, DatasetReader, dataset_names
from medquant.data.datasets.phantom import make_phantom
from medquant.data.opening import ending, open_dataset
from medquant.errors import InputError, UsageError


def test_no_folder_gives_the_phantom() -> None:
    dataset = open_dataset(None, phantom_seed=3)
    assert dataset.info.name == "phantom"
    assert dataset.path is None
    assert "no data was given" in dataset.recognised
    assert "seed 3" in dataset.recognised


def test_names() -> None:
    assert dataset_names() == ("phantom", "isbi_em", "isbi_em_paper", "pancreas_ct", "spinal_gm", "spinal_gm_paper", "folder")
    with pytest.raises(UsageError, match="unknown dataset 'isbi-em' \\(did you mean 'isbi_em'"):
        open_dataset(None, "isbi-em")
    with pytest.raises(UsageError, match="isbi_em needs its folder"):
        open_dataset(None, "isbi_em")
    with pytest.raises(UsageError, match="phantom is generated"):
        open_dataset(Path(), "phantom")


def test_missing_empty_file_and_unknown_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        open_dataset(tmp_path / "none")
    with pytest.raises(InputError, match="is empty"):
        open_dataset(tmp_path)
    (tmp_path / "train_volume.tif").touch()
    (tmp_path / "DOE^JOHN-19500101.nii.gz").touch()
    (tmp_path / "sub").mkdir()
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path)
    message = str(caught.value)
    assert "1 .nii.gz, 1 folder, 1 .tif (among them train_volume.tif)" in message.replace("1 .tif, 1 folder", "1 folder, 1 .tif")
    assert "train-volume.tif and train-labels.tif" in message
    assert "DOE" not in message
    with pytest.raises(InputError, match="found a file"):
        open_dataset(tmp_path / "train_volume.tif")


def test_named_dataset_says_what_it_misses(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"train-volume\.tif is missing"):
        open_dataset(tmp_path, "isbi_em")


def test_ambiguous_and_caseless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scan.tif").touch()
    phantom = make_phantom(subjects_per_site=1, sites=1, slices=1, size=45, spacing_mm=1.0)
    first = DatasetReader("first", "a.tif", lambda _: "it holds tif", lambda _path, _options: replace(phantom, cases=()))
    second = DatasetReader("second", "b.tif", lambda _: "it may", lambda _path, _options: phantom)
    monkeypatch.setattr(opening, "DATASETS", (first, second))
    with pytest.raises(InputError, match="more than one dataset: first, as it holds tif; second, as it may"):
        open_dataset(tmp_path)
    monkeypatch.setattr(opening, "DATASETS", (first,))
    with pytest.raises(InputError, match="holds no case"):
        open_dataset(tmp_path)


def test_every_reader_passes_over_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "x.txt").touch()
    assert [reader.recognise(tmp_path) for reader in DATASETS] == [None] * len(DATASETS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.nii.gz", ".nii.gz"), ("A.NII", ".nii"), ("x.tif", ".tif"), ("CT.1.2.840.113619", "other"), ("README", "other")],
)
def test_ending(name: str, expected: str) -> None:
    assert ending(Path(name)) == expected
