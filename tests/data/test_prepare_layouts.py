"""Dataset folders for other programs. Expected: keys of the two formats by hand, arrays and affines by nibabel, real downloads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medquant.data.atomic import write_text
from medquant.data.content import array_sha256
from medquant.data.opening import open_dataset
from medquant.data.prepare import layouts
from medquant.data.prepare.downloads import LICENCES, prepare_download
from medquant.data.prepare.layouts import FolderLayout, Licence, write_dataset_folder
from medquant.data.prepare.phantoms import PhantomRequest, prepare_phantom
from medquant.data.prepare.staging import staged_folder
from medquant.data.reading import ReadOptions
from medquant.data.stored import ArrayCache
from medquant.data.volume import Case, DatasetInfo, Volume
from medquant.errors import InputError, UsageError

REAL = {"spinal_gm": "spinal_gm", "isbi_em": "isbi_em", "pancreas_ct": "pancreas_ct/Pancreas-CT"}
NAMES = {
    "spinal_gm": {"background": 0, "gray_matter": 1, "white_matter": 2},
    "isbi_em": {"background": 0, "cell": 1},
    "pancreas_ct": {"background": 0, "pancreas": 1},
}
CASES = {"spinal_gm": 5, "isbi_em": 30, "pancreas_ct": 2}
TERMS = Licence("none", "none")


def _quiet(what: str) -> None:
    """Progress nobody looks at."""


def _prepare(name: str, raw: Path, out: Path, layout: FolderLayout) -> None:
    options = ReadOptions(cache=ArrayCache(ArrayCache.default_folder()))
    prepared = prepare_download(name, raw, out, layout, options, _quiet)
    assert (prepared.dataset, prepared.layout, prepared.cases) == (name, layout, CASES[name])


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("pancreas_ct", "nnunet"),
        ("isbi_em", "msd"),
        pytest.param("pancreas_ct", "msd", marks=pytest.mark.slow),
        pytest.param("isbi_em", "nnunet", marks=pytest.mark.slow),
        pytest.param("spinal_gm", "msd", marks=pytest.mark.slow),
        pytest.param("spinal_gm", "nnunet", marks=pytest.mark.slow),
    ],
)
def test_real_downloads(tmp_path: Path, shared_data: Path, name: str, layout: FolderLayout) -> None:
    raw, out = shared_data / REAL[name], tmp_path / "out"
    _prepare(name, raw, out, layout)
    contents = json.loads((out / "dataset.json").read_text())
    assert contents["numTraining"] == CASES[name]
    assert contents["licence"] == LICENCES[name].name
    stored = {value: int(key) for key, value in contents["labels"].items()} if layout == "msd" else contents["labels"]
    assert stored == NAMES[name]
    source = open_dataset(raw)
    read = {case.id: case for case in open_dataset(out).cases}
    assert set(read) == {case.id for case in source.cases}
    for case in source.cases:
        image = nib.load(out / "imagesTr" / f"{case.id}{'_0000' if layout == 'nnunet' else ''}.nii.gz")
        label = nib.load(out / "labelsTr" / f"{case.id}.nii.gz")
        assert case.mask is not None
        np.testing.assert_array_equal(np.asarray(image.dataobj), case.image.array)
        np.testing.assert_array_equal(np.asarray(label.dataobj), case.mask.array)
        assert label.get_data_dtype() == np.uint8
        if case.image.has_geometry:
            np.testing.assert_allclose(image.affine, case.image.affine, atol=1e-4)
            np.testing.assert_allclose(label.affine, image.affine)
        again = read[case.id]
        assert again.mask is not None
        np.testing.assert_array_equal(again.image.array, case.image.array)
        np.testing.assert_array_equal(again.mask.array, case.mask.array)
    assert not any(path.name.endswith(".part") for path in tmp_path.rglob("*"))


def test_nnunet_contents_by_hand(tmp_path: Path) -> None:
    prepare_phantom(PhantomRequest("pancreas_ct", "nnunet", size=48, slices=12, subjects=2), tmp_path / "out", _quiet)
    contents = json.loads((tmp_path / "out" / "dataset.json").read_text())
    wanted = {"channel_names": {"0": "CT"}, "labels": NAMES["pancreas_ct"], "numTraining": 2, "file_ending": ".nii.gz"}
    assert {key: contents[key] for key in wanted} == wanted
    files = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert files == [
        "dataset.json",
        "imagesTr/PANCREAS_0001_0000.nii.gz",
        "imagesTr/PANCREAS_0002_0000.nii.gz",
        "labelsTr/PANCREAS_0001.nii.gz",
        "labelsTr/PANCREAS_0002.nii.gz",
        "provenance.json",
    ]


def test_nnunet_calls_class_zero_background(tmp_path: Path) -> None:
    prepare_phantom(PhantomRequest("isbi_em", "nnunet", size=32, slices=1), tmp_path / "out", _quiet)
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["labels"] == NAMES["isbi_em"]


def test_msd_contents_by_hand(tmp_path: Path) -> None:
    prepare_phantom(PhantomRequest("isbi_em", "msd", size=32, slices=2), tmp_path / "out", _quiet)
    contents = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert contents["labels"] == {"0": "background", "1": "cell"}
    assert contents["modality"] == {"0": "image"}
    assert "class 0 is membrane" in contents["description"]
    assert contents["test"] == []
    assert contents["training"][1] == {"image": "./imagesTr/slice-01.nii.gz", "label": "./labelsTr/slice-01.nii.gz"}
    for pair in contents["training"]:
        assert all((tmp_path / "out" / path).is_file() for path in pair.values())


def test_provenance(tmp_path: Path) -> None:
    prepare_phantom(PhantomRequest("spinal_gm", "nnunet", subjects=2, sites=2, slices=2), tmp_path / "out", _quiet)
    found = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert found["subjects"] == {f"site{site}-sc0{number}": [f"site{site}-sc0{number}"] for site in (1, 2) for number in (1, 2)}
    first = found["cases"][0]
    assert (first["id"], first["site"], first["shape"]) == ("site1-sc01", "site1", [96, 96, 2])
    voxels = np.asarray(nib.load(tmp_path / "out" / "imagesTr" / "site1-sc01_0000.nii.gz").dataobj)
    assert first["image_sha256"] == [array_sha256(voxels)]


INFO = DatasetInfo(name="made", classes={0: "background", 1: "thing"}, scored=("thing",), channels=("T1", "T2"))


def _case(name: str, dtype: str, channels: int = 1, labelled: bool = True) -> Case:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    array = array + 0.5 if dtype == "float64" else array
    volumes = [Volume(array=array + number, affine=np.eye(4)) for number in range(channels)]
    mask = Volume(array=(array > 5).astype(np.uint8), affine=np.eye(4)) if labelled else None
    return Case(name, name, "", volumes[0], mask, name, further_channels=tuple(volumes[1:]))


def test_several_channels_and_number_types(tmp_path: Path) -> None:
    cases = [
        _case("a", "uint16", 2),
        _case("b", "float64", 2),
        _case("c", "int8", 2),
        _case("e", "float32", 2),
        _case("d", "int16", 2, labelled=False),
    ]
    assert write_dataset_folder(tmp_path, INFO, iter(cases), "nnunet", TERMS, "made", _quiet) == 4
    assert json.loads((tmp_path / "dataset.json").read_text())["channel_names"] == {"0": "T1", "1": "T2"}
    for name, stored in (("a", "int32"), ("b", "float32"), ("c", "int32"), ("e", "uint8")):
        image = nib.load(tmp_path / "imagesTr" / f"{name}_0001.nii.gz")
        assert image.get_data_dtype() == stored
        np.testing.assert_array_equal(np.asarray(image.dataobj), np.arange(24).reshape(2, 3, 4) + (1.5 if stored == "float32" else 1))
    assert not (tmp_path / "imagesTr" / "d_0000.nii.gz").exists()


@pytest.mark.parametrize(("cases", "message"), [([_case("a", "int16", 2)], "found 2 channels"), ([], "no case with a mask")])
def test_what_cannot_be_written(tmp_path: Path, cases: list[Case], message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_dataset_folder(tmp_path, INFO, iter(cases), "msd", TERMS, "made", _quiet)
    assert not (tmp_path / "dataset.json").exists()


# ----------------------------------------------------------------------------------------------------------------- staging


def _fail_inside(out: Path, error: type[BaseException]) -> None:
    with staged_folder(out) as staged:
        write_text(staged / "a.txt", "a")
        raise error


def test_staged_folder_appears_whole_or_not(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with staged_folder(out) as staged:
        write_text(staged / "a.txt", "a")
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == ["a.txt"]
    for error in (KeyboardInterrupt, InputError):
        with pytest.raises(error):
            _fail_inside(tmp_path / "other", error)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["deep"]


def test_staged_folder_takes_no_used_place(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with staged_folder(tmp_path / "empty") as staged:
        write_text(staged / "a.txt", "a")
    assert (tmp_path / "empty" / "a.txt").is_file()
    for message in ("empty: is there and not empty", "file: is there", r"new\.part: is left from a command"):
        (tmp_path / "file").touch()
        (tmp_path / "new.part").mkdir(exist_ok=True)
        with pytest.raises(UsageError, match=message), staged_folder(tmp_path / message.split(":")[0].removesuffix(r"\.part")):
            pytest.fail("nothing may be written")
    assert (tmp_path / "empty" / "a.txt").read_text() == "a"
    assert (tmp_path / "new.part").is_dir()


def test_failure_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def full(path: Path, volume: Volume) -> None:
        written.append(path)
        if len(written) == 4:
            raise UsageError("no space left")

    monkeypatch.setattr(layouts, "write_nifti", full)
    with pytest.raises(UsageError, match="no space left"):
        prepare_phantom(PhantomRequest("isbi_em", "msd", size=32, slices=3), tmp_path / "out", _quiet)
    assert len(written) == 4
    assert list(tmp_path.iterdir()) == []


def _kill_after(seconds: float, out: Path) -> None:
    command = [sys.executable, "-m", "medquant.cli.main", "prepare", "phantom", "spinal-gm", str(out), "--subjects", "4", "--layout", "msd"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()


def _check_kills(tmp_path: Path, delays: list[float]) -> int:
    """Kill the command after each delay; returns how often it had begun to write."""
    begun = 0
    for number, delay in enumerate(delays):
        out = tmp_path / f"out{number}"
        _kill_after(delay, out)
        begun += out.exists() or out.with_name(out.name + ".part").exists()
        if out.exists():
            assert len(open_dataset(out).cases) == 16
    return begun


def test_killed_at_any_moment(tmp_path: Path) -> None:
    # The last is late enough for a slow machine to have begun.
    assert _check_kills(tmp_path, [0.8, 1.6, 8.0]) >= 1


@pytest.mark.slow
def test_killed_at_many_moments(tmp_path: Path) -> None:
    assert _check_kills(tmp_path, list(np.linspace(0.3, 6.0, 30))) >= 15
