"""Every command as people type it: help with an example, one JSON document, silence when asked for, the same figures everywhere."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import SMALL_OPTIONS, em_folder, em_stack, only_document, typed
from small_sessions import small_phantom, trained_bits

from medquant.cli.main import app
from medquant.data.nifti import write_nifti
from medquant.deploy.packed import load_model
from medquant.train import stage as stage_module

COMMANDS = [command.name for command in app.registered_commands]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


# --- help ---------------------------------------------------------------------------------------------------------------


def test_help_lists_every_command() -> None:
    result = typed("--help")
    assert result.exit_code == 0
    expected = [
        "train",
        "eval",
        "plan",
        "export",
        "verify",
        "predict",
        "quantize",
        "search",
        "sweep",
        "report",
        "info",
        "doctor",
        "inspect",
        "prepare",
    ]
    assert expected == COMMANDS
    assert all(f" {name} " in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_and_the_shared_options(name: str) -> None:
    result = typed(name, "--help")
    assert result.exit_code == 0
    assert f"Example: medquant {name}" in result.stdout
    assert all(option in result.stdout for option in ("--json", "--quiet", "--verbose"))


@pytest.mark.parametrize("command", app.registered_commands, ids=COMMANDS)
def test_every_option_of_an_example_exists(command: object) -> None:
    example = next(line for line in str(command.callback.__doc__).splitlines() if "Example: " in line)  # type: ignore[attr-defined]
    options = [word for word in shlex.split(example.partition("Example: ")[2]) if word.startswith("-")]
    helped = typed(command.name, "--help").stdout  # type: ignore[attr-defined]
    assert all(option in helped for option in options)


SMALL_SEARCH = ["--wbits-choices", "2,4", "--abits-choices", "8", "--images", "1", "--vectors", "2"]

# --- JSON and quiet -----------------------------------------------------------------------------------------------------


def _arguments(name: str, run: Path) -> list[object]:
    em = em_folder(Path("em"))
    return {
        "eval": [run],
        "plan": [run],
        "export": [run, "model.onnx"],
        "verify": [run, "--no-exports"],
        "predict": [run / "model.mq", _phantom_scan(), "mask.nii.gz"],
        "quantize": [run, "--out", "quantized"],
        "search": ["--budget", "0.7KB", *SMALL_SEARCH, "--out", "searched", *SMALL_OPTIONS],
        "sweep": [_small_sweep(), "--out", "swept"],
        "report": [run, "--out", "out"],
        "info": [],
        "doctor": [],
        "inspect": [em / "train-volume.tif"],
        "prepare": ["isbi-em", em, "prepared"],
        "train": ["--data", em, "--out", "run", *SMALL_OPTIONS, "-o", "train.float_twin=false"],
    }[name]


def _small_sweep() -> Path:
    settings = [option.replace("=", ": ", 1) for option in SMALL_OPTIONS if option != "-o"]
    lines = ["set:", *(f"  {setting}" for setting in settings), "  train.float_twin: false", "grid:", "  train.seed: [0]"]
    Path("sweep.yaml").write_text("\n".join([*lines, ""]))
    return Path("sweep.yaml")


def _phantom_scan() -> Path:
    write_nifti(Path("scan.nii.gz"), small_phantom().cases[0].image)
    return Path("scan.nii.gz")


@pytest.mark.parametrize("name", COMMANDS)
def test_json_is_one_document_and_quiet_is_silent(finished_run: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medquant.train.finish.draw_pictures", lambda *_: None)
    result = typed(name, *_arguments(name, finished_run), "--json", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    document = only_document(result)
    assert document["schema"] == 1
    assert len(document) > 1


def test_a_refusal_prints_no_document() -> None:
    result = typed("train", "--data", "nowhere", "--json")
    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr.startswith("medquant: nowhere: no such folder")


# --- train, eval, plan, report ------------------------------------------------------------------------------------------


def test_train_says_what_it_took_and_what_came_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medquant.train.finish.draw_pictures", lambda *_: None)
    result = typed("train", "--wbits", "3", "--abits", "5", "--layer-bits", "bottom*=8/", "--out", "run", *SMALL_OPTIONS)
    assert result.exit_code == 0, result.stderr
    for words in (
        "Built-in phantom (no data was given)",
        "split: by subject within site",
        "run folder: run",
        "warm: 2 steps",
        "epoch 1  loss",
    ):
        assert words in result.stderr
    for words in ("float twin", "W3A5", "all gray_matter", "run folder: run", "process"):
        assert words in result.stdout
    config = json.loads(Path("run/run.json").read_text())["config"]
    assert (config["quant"]["wbits"], config["quant"]["abits"], config["quant"]["layer_bits"]) == (3, 5, ["bottom*=8/"])
    layers = {layer["name"]: layer for layer in only_document(typed("plan", "run", "--json"))["layers"]}  # type: ignore[attr-defined]
    assert {name: layers[name]["weight_bits"] for name in ("bottom.conv1", "enc2.conv1", "head")} == {
        "bottom.conv1": 8,
        "enc2.conv1": 3,
        "head": 8,
    }


def test_an_em_folder_is_recognised_and_scored_by_its_own_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medquant.train.finish.draw_pictures", lambda *_: None)
    em = em_folder(Path("em"))
    result = typed("train", "--data", em, "--out", "run", *SMALL_OPTIONS, "--json")
    assert result.exit_code == 0, result.stderr
    assert "ISBI 2012 EM (it holds train-volume.tif and train-labels.tif)" in result.stderr
    document = only_document(result)
    assert set(document["metrics"]) == {"v_rand", "v_info"}  # type: ignore[call-overload]
    # Eight slices: one for validation and two to be scored, by the proportion 20 : 4 : 6.
    assert document["split"]["cases"] == ["slice-06", "slice-07"]  # type: ignore[index, call-overload]
    cell = (em_stack()[1][6:] > 0).mean(axis=(1, 2))
    expected = (2 * cell / (1 + cell)).mean()
    assert document["baseline"]["all_cell"]["cell"] == pytest.approx(expected, abs=1e-6)  # type: ignore[index, call-overload]
    # A model file is passed on: it says what it was trained on, not where that lay.
    assert json.loads(Path("run/run.json").read_text())["config"]["data"]["path"] == "em"
    assert load_model(Path("run/model.mq")).metadata.config["data"]["path"] is None  # type: ignore[index, call-overload]
    scored = only_document(typed("eval", "run/model.mq", "--data", em, "--json"))
    assert scored["dice"] == document["dice"]
    assert scored["metrics"] == document["metrics"]
    refused = typed("eval", "run/model.mq")
    assert refused.exit_code == 2
    assert "trained on isbi_em; say where the data to score are with --data" in refused.stderr


def test_eval_takes_the_newest_run_and_plan_takes_a_model(finished_run: Path) -> None:
    Path("runs").mkdir()
    shutil.copytree(finished_run, "runs/mine")
    stored = json.loads((finished_run / "eval.json").read_text())
    assert only_document(typed("eval", "--json"))["dice"] == stored["dice"]
    assert only_document(typed("eval", "--split", "train", "--json"))["dice"] != stored["dice"]
    from_run, from_model = (only_document(typed("plan", target, "--json")) for target in (finished_run, finished_run / "model.mq"))
    assert from_run == from_model
    assert from_run["memory"]["parameter_bytes"] == stored["memory"]["parameter_bytes"]  # type: ignore[index, call-overload]


def test_a_plan_takes_a_method_and_refuses_bits_it_does_not_have() -> None:
    refused = typed("plan", *SMALL_OPTIONS, "--method", "binary", "--wbits", "2")
    assert refused.exit_code == 3
    assert "method binary has weights of 1 or 32 bits; found 2" in refused.stderr
    simulated = typed("plan", *SMALL_OPTIONS, "--method", "learned_step").stdout
    assert "method learned_step is not exact with these options: no integer program, no model file" in simulated
    exact = only_document(typed("plan", *SMALL_OPTIONS, "--method", "uniform", "--json"))
    assert (exact["method"], exact["exact"]) == ("uniform", True)


def test_a_plan_of_options_agrees_with_the_run_they_make(finished_run: Path) -> None:
    planned = only_document(typed("plan", *SMALL_OPTIONS, "--json"))
    assert planned == only_document(typed("plan", finished_run, "--json"))
    text = typed("plan", *SMALL_OPTIONS, "--wbits", "32", "--abits", "32").stdout
    assert "float" in text
    assert "paper's way" in text


def test_a_report_writes_a_table_and_a_picture(finished_run: Path) -> None:
    result = typed("report", finished_run, finished_run, "--out", "new/report")
    assert result.exit_code == 0, result.stderr
    beside = {"report.html", "report.md", *(f"report-{name}.csv" for name in ("summary", "memory", "cases", "layers", "provenance"))}
    assert {"table.md", "table.csv", "dice_memory.png", *beside} <= {file.name for file in Path("new/report").iterdir()}
    header, row = Path("new/report/table.csv").read_text().splitlines()
    assert header.startswith("network,seeds,Dice gray_matter")
    assert row.startswith("W4A6,1,"), "one run named twice is one seed"
    assert "written to new/report/" in result.stdout


def test_a_report_is_one_page_with_its_cases_and_layers(finished_run: Path) -> None:
    result = typed("report", finished_run, "--out", "one.html", "--title", "Two & <three>")
    assert result.exit_code == 0, result.stderr
    text = Path("one.html").read_text()
    assert "<h1>Two &amp; &lt;three&gt;</h1>" in text
    assert text.count('class="pair"') == 2, "one test case: image and truth, prediction and difference"
    assert "Activations: measured on" in text
    assert "Missing:" not in text
    assert not Path("table.md").exists()


def test_a_folder_of_runs_stands_for_the_finished_ones(finished_run: Path) -> None:
    Path("sweep/runs").mkdir(parents=True)
    shutil.copytree(finished_run, "sweep/runs/a", ignore=shutil.ignore_patterns("last", "warm", "tensorboard"))
    shutil.copytree("sweep/runs/a", "sweep/runs/b")
    run = json.loads(Path("sweep/runs/b/run.json").read_text())
    Path("sweep/runs/b/run.json").write_text(json.dumps({**run, "status": "training"}))
    found = only_document(typed("report", "sweep", "--out", "r", "--json"))
    assert (found["unfinished"], len(found["rows"])) == (1, 1)  # type: ignore[arg-type]
    assert "1 run left out: not finished" in Path("r/report.html").read_text()


def test_a_report_of_runs_that_cannot_be_read_says_why(finished_run: Path) -> None:
    Path("empty").mkdir()
    shutil.copytree(finished_run, "half", ignore=shutil.ignore_patterns("eval.json"))
    shutil.copytree(finished_run, "damaged")
    Path("damaged/layers.json").write_text('{"schema": 1, "layers": [{"name": 5}]}')
    for arguments, code, words in (
        (("nowhere",), 2, "no such folder"),
        (("empty",), 6, "no run folder"),
        (("half",), 6, "not finished"),
        ((finished_run, "--out", "missing/one.html"), 2, "does not exist"),
    ):
        result = typed("report", *arguments)
        assert (result.exit_code, words in result.stderr) == (code, True), result.stderr
    result = typed("report", "damaged", "--out", "d.html")
    assert result.exit_code == 0, result.stderr
    assert "no statistics of layers" in Path("d.html").read_text(), "one part that is damaged does not cost the report"


# --- info, doctor, inspect ----------------------------------------------------------------------------------------------


def test_info_lists_the_registries() -> None:
    found = only_document(typed("info", "--json"))
    assert {"methods", "networks", "engines", "datasets", "metrics", "version"} <= set(found)
    assert "fixed_point" in found["methods"]  # type: ignore[operator]
    assert {"reference", "torch"} <= set(found["engines"])  # type: ignore[call-overload]
    text = typed("info").stdout
    assert "isbi_em" in text
    assert "v_rand" in text


def test_doctor_fails_where_an_engine_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from medquant.deploy import self_test

    result = typed("doctor")
    assert result.exit_code == 0
    assert "engine reference   works" in result.stdout
    wrong = self_test.EngineResult("torch", True, False, 3, "WRONG: 3 of 4096 values differ from the reference")
    monkeypatch.setattr(self_test, "check_engines", lambda: [wrong])
    result = typed("doctor")
    assert result.exit_code == 7
    assert "WRONG: 3 of 4096" in result.stdout
    assert "engine torch differs from the reference on this machine; do not use it" in result.stderr


def test_doctor_says_which_kernels_the_native_engine_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    from medquant.deploy.native import library

    def machine() -> tuple[dict[str, object], dict[str, dict[str, object]]]:
        result = typed("doctor", "--json")
        assert result.exit_code == 0
        document = json.loads(result.stdout)
        assert document["machine"]["threads"] >= 1
        return document["machine"], {each["name"]: each for each in document["engines"]}

    class Slow:
        kernels = ("avx2", "portable")

        def open(self, *_: object) -> int:
            raise MemoryError("no more of it")

    monkeypatch.delenv("MEDQUANT_KERNELS", raising=False)
    monkeypatch.setattr(library, "_attempt", lambda path: "the native library was not built")
    found, engines = machine()
    assert (found["native_kernels"], found["native_uses"]) == ([], "none: the native library was not built")
    assert "native" not in found["auto_order"]  # type: ignore[operator]
    assert engines["native"]["verdict"] == "not here: the native library was not built"

    monkeypatch.setattr(library, "_attempt", lambda path: Slow())
    found, engines = machine()
    assert (found["native_kernels"], found["native_uses"]) == (["avx2", "portable"], "avx2")
    order = found["auto_order"]
    assert isinstance(order, list)
    assert order.index("native") > order.index("torch")
    assert "no more of it" in str(engines["native"]["verdict"])
    monkeypatch.setenv("MEDQUANT_KERNELS", "portable")
    assert machine()[0]["native_uses"] == "portable"

    monkeypatch.setenv("MEDQUANT_KERNELS", "portble")
    found, engines = machine()
    expected = "MEDQUANT_KERNELS: unknown kernel set on this processor 'portble' (did you mean 'portable'?); known: auto, avx2, portable"
    assert (found["native_uses"], found["auto_order"]) == (f"none: {expected}", f"stops: {expected}")
    assert engines["native"]["verdict"] == f"not here: {expected}"
    assert f"native_uses    none: {expected}" in typed("doctor").stdout


def test_inspect_says_what_a_folder_is() -> None:
    found = only_document(typed("inspect", em_folder(Path("em")), "--json"))
    assert "isbi_em" in json.dumps(found)
    refused = typed("inspect", "em/nothing.tif", "--json")
    assert refused.exit_code == 4


# --- stopping -----------------------------------------------------------------------------------------------------------


def _stop_after(monkeypatch: pytest.MonkeyPatch, step: int, number: int, times: int = 1) -> None:
    """Send this process a signal while the given optimiser step runs."""
    loss, steps = stage_module.segmentation_loss, iter(range(1, 1000))

    def signalled(*args: object) -> object:
        if next(steps) == step:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return loss(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(stage_module, "segmentation_loss", signalled)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_run_and_resuming_ends_it(finished_run: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr("medquant.train.finish.draw_pictures", lambda *_: None)
    with monkeypatch.context() as patch:
        _stop_after(patch, 5, number)
        result = typed("train", "--out", "run", *SMALL_OPTIONS)
    assert result.exit_code == 130
    assert "stopping after this step; once more to stop at once" in result.stderr
    assert result.stderr.endswith("medquant: stopped in stage float, epoch 2; everything is saved, continue with --resume\n")
    assert result.stdout == ""
    result = typed("train", "--resume", "--out", "run")
    assert result.exit_code == 0, result.stderr
    assert "continuing run" in result.stderr
    assert "float: 4 steps, 3 done before" in result.stderr
    assert trained_bits(Path("run")) == trained_bits(finished_run)


def test_a_second_signal_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _stop_after(monkeypatch, 4, signal.SIGINT, times=2)
    result = typed("train", "--out", "run", *SMALL_OPTIONS)
    assert result.exit_code == 130
    assert result.stderr.endswith("medquant: stopped\n")
    # The epoch that was under way is lost, the one before is not.
    assert json.loads(Path("run/last/checkpoint.json").read_text())["values"]["progress"]["epoch"] == 1


# --- processes of their own ---------------------------------------------------------------------------------------------


def test_a_real_process_trains_in_silence_and_prints_one_document(tmp_path: Path) -> None:
    """Libraries write to stderr past Python, and memory is measured in a child: neither shows in-process."""
    em = em_folder(tmp_path / "em")
    command = [sys.executable, "-m", "medquant.cli.main", "train", "--data", str(em), "--out", "run", *SMALL_OPTIONS, "--json", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    child = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert (child.returncode, child.stderr) == (0, "")
    document = json.loads(child.stdout)
    assert document["schema"] == 1
    memory = document["memory"]
    assert memory["parameter_bytes"] < memory["model_file_bytes"] < memory["process_peak_bytes"] < 300 * 2**20
