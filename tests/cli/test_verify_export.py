"""``medquant export`` and ``medquant verify``, typed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import only_document, typed
from small_models import ct_values, model_file, oblique, unet

from medquant.data.nifti import write_nifti
from medquant.data.prepared_grid import GridRule
from medquant.data.volume import Volume
from medquant.deploy.engines import ENGINES
from medquant.deploy.engines.reference import ReferenceEngine
from medquant.deploy.packed import load_model

FORMS = [("model.onnx", "onnx"), ("model.xml", "openvino")]


@pytest.mark.parametrize(("name", "package"), FORMS)
def test_an_export_agrees_and_is_found_out_when_it_is_another_models(
    name: str, package: str, finished_run: Path, other_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip(package)
    out = tmp_path / name
    exported = only_document(typed("export", finished_run, out, "--json"))
    assert exported["files"] == {str(path): path.stat().st_size for path in sorted(tmp_path.iterdir())}
    right = typed("verify", finished_run, "--against", out, "--no-exports", "--json")
    assert right.exit_code == 0, right.stderr
    verdicts = {each["name"]: each["verdict"] for each in only_document(right)["comparisons"]}  # type: ignore[attr-defined]
    assert verdicts[f"{name} in OpenVINO"] == "equal"
    wrong = typed("verify", other_model, "--against", out, "--no-exports")
    assert wrong.exit_code == 7
    assert f"{name} in OpenVINO give other values than the reference" in wrong.stderr.replace(f"{name} in ONNX Runtime, ", "")


@pytest.mark.parametrize(("name", "package"), FORMS)
def test_what_stands_there_is_not_replaced(name: str, package: str, finished_run: Path, tmp_path: Path) -> None:
    pytest.importorskip(package)
    (tmp_path / name).write_text("mine")
    refused = typed("export", finished_run, tmp_path / name)
    assert refused.exit_code == 2
    assert "exists already" in refused.stderr
    assert (tmp_path / name).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert typed("export", finished_run, tmp_path / name, "--overwrite").exit_code == 0
    assert (tmp_path / name).stat().st_size > 1000


def test_the_packed_file_itself_can_be_taken_out(finished_run: Path, tmp_path: Path) -> None:
    assert typed("export", finished_run, tmp_path / "copy.mq").exit_code == 0
    assert (tmp_path / "copy.mq").read_bytes() == (finished_run / "model.mq").read_bytes()
    again = typed("export", tmp_path / "copy.mq", tmp_path / "copy.mq", "--overwrite")
    assert again.exit_code == 2
    assert "is the model itself" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("export", "{run}", "{tmp}/model.pt"), 2, "expected an ending of .mq, .onnx, .xml"),
        (("export", "{tmp}/none", "{tmp}/model.onnx"), 2, "no such run folder or model file"),
        (("export", "{tmp}", "{tmp}/model.onnx"), 6, "holds no model.mq"),
        (("export", "{run}", "{tmp}/none/model.onnx"), 2, "does not exist"),
        (("verify", "{tmp}/none"), 2, "no such run folder or model file"),
        (("verify", "{run}", "{tmp}/none.nii.gz"), 4, "none.nii.gz"),
        (("verify", "{run}", "--against", "{tmp}/none.onnx", "--no-exports"), 2, "no such file"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], code: int, words: str, finished_run: Path, tmp_path: Path) -> None:
    ended = typed(*(part.format(run=finished_run, tmp=tmp_path) for part in arguments))
    assert ended.exit_code == code, ended.stderr
    assert words in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_model_is_not_verified(finished_run: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.mq"
    shutil.copy(finished_run / "model.mq", model)
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    ended = typed("verify", model)
    assert ended.exit_code == 6
    assert "damaged" in ended.stderr


def test_an_engine_that_differs_ends_with_7(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Off(ReferenceEngine):
        def run(self, image: Any) -> Any:
            return super().run(image) + 1

    for name in set(ENGINES) - {"reference"}:
        monkeypatch.delitem(ENGINES, name)
    monkeypatch.setitem(ENGINES, "off", Off)
    ended = typed("verify", finished_run, "--no-exports", "--json")
    assert ended.exit_code == 7
    assert only_document(ended)["equal"] is False
    assert "off give other values than the reference" in ended.stderr


def test_a_scan_is_run_as_well(finished_run: Path, phantom_scan: Path) -> None:
    alone = only_document(typed("verify", finished_run, "--no-exports", "--json"))
    with_scan = typed("verify", finished_run, phantom_scan, "--slices", "2", "--no-exports", "--json")
    assert with_scan.exit_code == 0, with_scan.stderr
    document = only_document(with_scan)
    assert document["images"] == alone["images"] + 2  # type: ignore[operator]
    assert document["sha256"] == load_model(finished_run / "model.mq").sha256


def test_a_scan_that_shrinks_to_nothing_on_the_models_grid_is_refused(tmp_path: Path) -> None:
    """As predict does: otherwise the padding of one pixel would be compared, after minutes of averaging."""
    model = model_file(tmp_path / "m.mq", unet(3, seed=1), grid=GridRule("axial", (1000.0, 1000.0)))
    write_nifti(tmp_path / "a.nii.gz", Volume(ct_values((33, 28, 5)), oblique()))
    ended = typed("verify", model, tmp_path / "a.nii.gz", "--no-exports")
    assert ended.exit_code == 4, ended.stderr
    assert "a.nii.gz: slices of 1×1 pixels on the model's grid" in ended.stderr


@pytest.mark.parametrize("place", ["../outside.bin", "{tmp}/outside.bin", "link.bin", "pipe.bin"])
def test_an_exported_file_is_not_read_beyond_its_folder(place: str, finished_run: Path, tmp_path: Path) -> None:
    """Tensors that an ONNX file says lie elsewhere: refused by the runtime, and said in a line."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = tmp_path / "in" / "model.onnx"
    path.parent.mkdir()
    assert typed("export", finished_run, path).exit_code == 0
    model = onnx.load(path)
    tensor = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    (tmp_path / "outside.bin").write_bytes(tensor.raw_data)
    (path.parent / "link.bin").symlink_to(tmp_path / "outside.bin")
    os.mkfifo(path.parent / "pipe.bin")
    for key, value in (("location", place.format(tmp=tmp_path)), ("offset", "0"), ("length", str(len(tensor.raw_data)))):
        tensor.external_data.add(key=key, value=value)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    path.write_bytes(model.SerializeToString())
    ended = typed("verify", finished_run, "--no-exports", "--against", path)
    assert ended.exit_code == 6, ended.stderr
    assert "cannot read it" in ended.stderr
    assert "Traceback" not in ended.stderr
