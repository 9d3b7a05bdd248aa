"""The EM reader, on small made stacks and on the real one. Counts of the real one: its README and Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from medquant.data.datasets import isbi_em
from medquant.data.opening import open_dataset
from medquant.errors import InputError


def write_em(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    tifffile.imwrite(folder / "train-volume.tif", images, photometric="minisblack")
    tifffile.imwrite(folder / "train-labels.tif", labels, photometric="minisblack")


def _small(slices: int = 6) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (slices, 8, 12), dtype=np.uint8), (random.random((slices, 8, 12)) > 0.3).astype(np.uint8) * 255


def test_slices_classes_and_polarity(tmp_path: Path) -> None:
    images, labels = _small()
    write_em(tmp_path, images, labels)
    dataset = open_dataset(tmp_path)
    assert dataset.info.name == "isbi_em"
    assert [case.id for case in dataset.cases] == [f"slice-{k:02d}" for k in range(6)]
    for k, case in enumerate(dataset.cases):
        assert case.image.shape == (12, 8, 1)
        assert case.image.array.dtype == np.float32
        np.testing.assert_array_equal(case.image.array[:, :, 0].T, images[k])
        assert case.mask is not None
        assert case.mask.array.dtype == np.uint8
        np.testing.assert_array_equal(case.mask.array[:, :, 0].T == 1, labels[k] == 255)
    assert "0 = membrane, 255 = cell" in dataset.recognised
    assert "positive class cell = 1" in dataset.recognised
    assert "4×4×50 nm" in dataset.recognised


def test_zero_one_labels_are_accepted_and_said(tmp_path: Path) -> None:
    images, labels = _small()
    write_em(tmp_path, images, labels)
    official = open_dataset(tmp_path)
    write_em(tmp_path, images, labels // 255)
    stored_01 = open_dataset(tmp_path)
    assert "stored as 0/1" in stored_01.recognised
    assert stored_01.content_sha256 == official.content_sha256


def test_other_label_values_are_listed(tmp_path: Path) -> None:
    images, labels = _small()
    labels[2, 3, 4], labels[2, 3, 5] = 7, 128
    write_em(tmp_path, images, labels)
    with pytest.raises(InputError, match=r"train-labels\.tif: found the label values 0, 7, 128, 255, expected only 0 and 255"):
        open_dataset(tmp_path)
    write_em(tmp_path, images, np.arange(images.size, dtype=np.uint16).reshape(images.shape))
    with pytest.raises(InputError, match="0, 1, 2, 3, 4, 5, 6, 7 and 568 more"):
        open_dataset(tmp_path)


def test_different_shape_or_page_number(tmp_path: Path) -> None:
    images, labels = _small()
    write_em(tmp_path, images, labels[:5])
    with pytest.raises(InputError, match=r"6 slices of 12×8.*5 slices of 12×8"):
        open_dataset(tmp_path)
    write_em(tmp_path, images, labels[:, :7])
    with pytest.raises(InputError, match=r"6 slices of 12×8.*6 slices of 12×7"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("missing", ["train-volume.tif", "train-labels.tif"])
def test_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    write_em(tmp_path, *_small())
    (tmp_path / missing).unlink()
    with pytest.raises(InputError, match=f"{missing} is missing"):
        open_dataset(tmp_path)


def test_the_real_stack(shared_data: Path) -> None:
    folder = shared_data / "isbi_em"
    dataset = open_dataset(folder)
    assert len(dataset.cases) == 30
    assert {case.image.shape for case in dataset.cases} == {(512, 512, 1)}
    masks = [case.mask for case in dataset.cases]
    cells = sum(int(np.count_nonzero(mask.array)) for mask in masks if mask is not None)
    assert round(100 * cells / (30 * 512 * 512), 1) == 78.0
    assert "78.0 %" in dataset.recognised
    assert "test-volume.tif is there" in dataset.recognised
    with Image.open(folder / "train-volume.tif") as images, Image.open(folder / "train-labels.tif") as labels:
        for page in (0, 17, 29):
            images.seek(page)
            labels.seek(page)
            case = dataset.cases[page]
            np.testing.assert_array_equal(case.image.array[:, :, 0].T, np.asarray(images))
            assert case.mask is not None
            np.testing.assert_array_equal(case.mask.array[:, :, 0].T * 255, np.asarray(labels))
    # Membranes are the dark lines: the polarity can be told from the images themselves.
    first = dataset.cases[0]
    assert first.mask is not None
    assert first.image.array[first.mask.array == 0].mean() + 30 < first.image.array[first.mask.array == 1].mean()


def test_recognises_by_either_training_file(tmp_path: Path) -> None:
    assert isbi_em.recognise(tmp_path) is None
    (tmp_path / "train-volume.tif").touch()
    assert isbi_em.recognise(tmp_path) == "it holds train-volume.tif"
