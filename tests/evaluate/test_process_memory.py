import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medquant.data.normalise import Normalisation
from medquant.data.prepared import Preparation
from medquant.deploy.metadata import ModelMetadata
from medquant.deploy.native import why_missing
from medquant.deploy.packed import save_model
from medquant.errors import CheckpointError, InputError, MedquantError, UsageError
from medquant.evaluate.process_memory import main, measure_process_peak
from medquant.quant.formats import TensorFormat
from medquant.quant.graph import ConvGeometry
from medquant.quant.program import ConvolutionNode, ImageNode, IntegerProgram

CHANNELS = 16


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One 3x3 convolution to 16 channels, whose output is the largest thing in the process."""
    weight, bias = np.ones((CHANNELS, 1, 3, 3), dtype=np.int64), np.zeros(CHANNELS, dtype=np.int64)
    geometry = ConvGeometry((1, 1), (1, 1), (1, 1))
    nodes = (
        ImageNode("image", (), TensorFormat(8, 0, 5), 1),
        ConvolutionNode("head", ("image",), None, weight, bias, bias, 4, geometry, relu=False),
    )
    metadata = ModelMetadata(
        preparation=Preparation(Normalisation("zscore_slice")).to_json(), size_multiple=4, classes={0: "a", 1: "b"}, scored=("b",),
        float_parameters=160, dataset="none", data_sha256="",
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model") / "m.mq"
    save_model(path, IntegerProgram(nodes, (5,) * CHANNELS), metadata)
    return path


def test_peak_holds_the_output_and_not_the_imports(model_file: Path) -> None:
    # The output alone is 16 * 1024 * 1024 values, in float32 and again in int32: 128 MiB are alive at the end.
    peak = measure_process_peak(model_file, (1, 1, 1024, 1024), "torch")
    # Above them come the accumulators on their way; the imports of the idle process would add about as much again.
    assert 128 * 2**20 < peak < 320 * 2**20


@pytest.mark.skipif(why_missing() is not None, reason=f"needs the library: {why_missing()}")
def test_masks_decided_in_the_library_take_its_sums_alone(model_file: Path) -> None:
    # 16 * 1024 * 1024 sums of 32 bits, once; beside them an image and a mask of a byte a pixel, and the image in its ring.
    peak = measure_process_peak(model_file, (1, 1, 1024, 1024), "native")
    assert 64 * 2**20 < peak < 80 * 2**20


def test_an_error_of_the_child_is_raised_here(model_file: Path) -> None:
    with pytest.raises(UsageError, match="found '1,1,8,-8', expected positive numbers"):
        measure_process_peak(model_file, (1, 1, 8, -8))


def test_a_child_that_takes_too_long_is_ended(model_file: Path) -> None:
    with pytest.raises(InputError, match=r"took longer than 0.05 s; measure a smaller image"):
        measure_process_peak(model_file, (1, 1, 8, 8), timeout_s=0.05)


@pytest.mark.parametrize(
    ("code", "stdout", "stderr", "kind", "message"),
    [
        (6, "", "m.mq: damaged", CheckpointError, "m.mq: damaged"),
        (2, "", "unknown engine 'x'", UsageError, "unknown engine 'x'"),
        (4, "", "a warning\nbad shape", InputError, "^bad shape$"),
        (-9, "", "", InputError, "ended with exit code -9 and said nothing.*probably out of memory"),
        (1, "", "Traceback\nRuntimeError: no memory", InputError, "RuntimeError: no memory"),
        (0, "nothing of use", "", InputError, "could not be measured"),
        (0, "", "", InputError, "could not be measured"),
    ],
)
def test_what_a_child_can_say(
    code: int, stdout: str, stderr: str, kind: type[MedquantError], message: str, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[:2] == [sys.executable, "-P"]
        return subprocess.CompletedProcess(command, code, stdout, stderr)

    monkeypatch.setattr(subprocess, "run", ended)
    with pytest.raises(kind, match=message):
        measure_process_peak(model_file, (1, 1, 8, 8))


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak can be set back on Linux only")
def test_what_rose_before_the_model_does_not_count(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # 256 MiB touched and given back, as an import may do; the model itself needs a few.
    passing = np.ones(256 * 2**20, dtype=np.uint8)
    del passing
    assert main([str(model_file), "1,1,8,8", "reference"]) == 0
    assert json.loads(capsys.readouterr().out)["process_peak_bytes"] < 128 * 2**20


def test_the_childs_report_is_one_line_of_json(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(model_file), "1,1,8,8", "reference"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["idle_bytes"] > 0
    assert report["process_peak_bytes"] >= 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["1,1,8,8", "fastest"], 2, "unknown engine 'fastest'"),
        (["1,2,8,8", "torch"], 4, "expected (N, 1, *S) with spatial axes that are multiples of 4"),
        (["1,1,8,7", "torch"], 4, "expected (N, 1, *S) with spatial axes that are multiples of 4"),
        (["1,1,8", "torch"], 4, "expected (N, 1, *S)"),
        (["1,1,8,-8", "torch"], 2, "found '1,1,8,-8'"),
        (["1,1,1000000,100000000", "torch"], 2, "expected positive numbers"),
        (["1,1,8,8"], 2, "found 2 arguments"),
    ],
)
def test_the_childs_errors_are_one_line(
    arguments: list[str], code: int, message: str, model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(model_file), *arguments]) == code
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not said.out
