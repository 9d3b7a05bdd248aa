"""The image, built and run for real: what it predicts is what this machine predicts, voxel for voxel.

Needs root and a builder of images: ``build-image`` of the shared tools (MEDQUANT_BUILD_IMAGE names it elsewhere).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from real_scans import CASES, small_dataset, untrained_model
from typer.testing import CliRunner

from medquant.cli.main import app

pytestmark = pytest.mark.container

TAG = "medquant:container-test"
MOST_BYTES = 1_600_000_000
USER = 10001
_INSTALL = ["apt-get", "install", "-y", "-qq", "--no-install-recommends"]


@pytest.fixture(scope="session")
def builder(repository: Path) -> Path:
    place = Path(os.environ.get("MEDQUANT_BUILD_IMAGE") or repository.parent / "shared" / "tools" / "build-image")
    if not place.is_file():
        pytest.skip(f"needs a builder of images, which is not at {place}; set MEDQUANT_BUILD_IMAGE to it")
    if os.geteuid() != 0:
        pytest.skip("building an image here needs root")
    missing = [tool for tool in ("buildah", "debootstrap", "crun") if shutil.which(tool) is None]
    if missing and subprocess.run(_INSTALL + missing, capture_output=True, check=False, timeout=900).returncode:
        pytest.skip(f"needs {' and '.join(missing)}, which cannot be installed here")
    return place


@pytest.fixture(scope="session")
def image(builder: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Built from what git would check out, with what is changed here."""
    context = tmp_path_factory.mktemp("context") / "medquant"
    listed = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, listed):
        if (repository / name).is_file():
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, context / name)
    built = subprocess.run([builder, context, TAG], capture_output=True, text=True, check=False, timeout=3000)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-4000:]
    yield TAG
    # A thousand megabytes each, and one more with every run.
    subprocess.run(["buildah", "rmi", f"localhost/{TAG}"], capture_output=True, check=False, env=_buildah_environment())
    subprocess.run(["buildah", "rmi", "--prune"], capture_output=True, check=False, env=_buildah_environment())


@pytest.fixture
def run_inside(image: str, builder: Path, tmp_path: Path) -> Iterator[object]:
    """Run ``medquant ...`` in the image without a network, ``tmp_path/work`` at /work, and nothing else it may write."""
    work, nothing = tmp_path / "work", tmp_path / "nothing"
    work.mkdir()
    nothing.mkdir()
    # Only the image's user owns this folder.
    os.chown(work, USER, USER)

    def run(arguments: Sequence[str], mounts: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        listed = [f"{work}:/work", f"{nothing}:/tmp:ro", f"{nothing}:/var/tmp:ro", *mounts]
        command = ["unshare", "--net", str(builder), "--run", image]
        for mount in listed:
            command += ["--mount", mount]
        return subprocess.run([*command, "--", *arguments], capture_output=True, text=True, check=False, timeout=1200)

    yield run
    assert list(nothing.iterdir()) == []


def _buildah_environment() -> dict[str, str]:
    return {**os.environ, "STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}


def _size_bytes(tag: str) -> int:
    environment = _buildah_environment()
    listed = subprocess.run(
        ["buildah", "images", "--json", f"localhost/{tag}"], capture_output=True, text=True, check=True, env=environment
    )
    found = json.loads(listed.stdout)[0]
    number, unit = found["size"].split()
    return int(float(number) * {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit])


def test_the_image_is_small_and_not_root(image: str) -> None:
    assert _size_bytes(image) < MOST_BYTES
    environment = _buildah_environment()
    command = ["buildah", "inspect", "--type", "image", f"localhost/{image}"]
    inspected = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
    config = inspected["OCIv1"]["config"]
    assert config["User"] == f"{USER}:{USER}"
    assert config["Entrypoint"] == ["medquant"]


def test_doctor_finds_an_exact_engine_without_torch(run_inside) -> None:  # type: ignore[no-untyped-def]
    ended = run_inside(["doctor", "--json"])
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout)
    engines = {each["name"]: each for each in document["engines"]}
    for name in ("openvino", "native"):
        assert engines[name]["works"]
        assert engines[name]["exact"]
    assert document["machine"]["native_uses"] == document["machine"]["native_kernels"][0]
    assert not engines["torch"]["works"]
    assert document["versions"]["torch"] == "not installed"


def test_training_says_that_it_is_not_for_this_image(run_inside) -> None:  # type: ignore[no-untyped-def]
    ended = run_inside(["train"])
    assert ended.returncode == 2
    assert "needs torch" in ended.stderr


@pytest.mark.parametrize("scan", ["pancreas_ct/totalseg_dicom/CT", "spinal_gm/small/site9-sc01-image.nii.gz"])
def test_predicts_a_real_scan_as_this_machine_does(run_inside, shared_data: Path, tmp_path: Path, scan: str) -> None:  # type: ignore[no-untyped-def]
    model, source = untrained_model(tmp_path / "model.mq"), shared_data / scan
    # What is mounted is read as the image's user.
    copied = tmp_path / "scans" / source.name
    (shutil.copytree if source.is_dir() else _copy)(source, copied)
    for path in (copied, *copied.rglob("*"), model):
        path.chmod(0o755 if path.is_dir() else 0o644)
    ended = run_inside(
        ["predict", "/model.mq", f"/scans/{source.name}", "/work/inside.nii.gz"], [f"{model}:/model.mq:ro", f"{copied.parent}:/scans:ro"]
    )
    assert ended.returncode == 0, ended.stderr
    outside = tmp_path / "outside.nii.gz"
    typed = CliRunner().invoke(app, ["predict", str(model), str(copied), str(outside), "--engine", "torch"])
    assert typed.exit_code == 0, typed.output
    mask, expected = nib.load(tmp_path / "work" / "inside.nii.gz"), nib.load(outside)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(expected.dataobj))
    np.testing.assert_array_equal(mask.affine, expected.affine)
    assert len(np.unique(np.asarray(expected.dataobj))) == 3


def test_scores_a_dataset_as_this_machine_does(run_inside, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model, data = untrained_model(tmp_path / "model.mq"), small_dataset(tmp_path / "data")
    for path in (data, *data.rglob("*"), model):
        path.chmod(0o755 if path.is_dir() else 0o644)
    # Decoded scans go to the one place that may be written, which is the working folder.
    ended = run_inside(["eval", "/model.mq", "--data", "/data", "--json"], [f"{model}:/model.mq:ro", f"{data}:/data:ro"])
    assert ended.returncode == 0, ended.stderr
    typed = CliRunner().invoke(app, ["eval", str(model), "--data", str(data), "--json", "--engine", "reference"])
    assert typed.exit_code == 0, typed.output
    inside, outside = json.loads(ended.stdout), json.loads(typed.stdout)
    assert inside["engine"] in ("native", "openvino")
    assert len(inside["cases"]) == CASES
    assert inside["cases"] == outside["cases"]
    assert inside["dice"] == outside["dice"]


def _copy(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, place)
