"""A whole small run: what it leaves behind, and the kinds of run there are."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_sessions import PROCESS_PEAK_BYTES, SLICE_SIDE, finish_small, half_written, resume_small, small_phantom, start_small, train_small

from medquant.deploy.engines import auto_order
from medquant.deploy.packed import load_model
from medquant.errors import CheckpointError, ConfigError, EngineMismatchError, InputError, UsageError
from medquant.train import finish as finish_module
from medquant.train import stage as stage_module
from medquant.train.checkpoint import load_checkpoint
from medquant.train.finish import finish
from medquant.train.reporting import SilentReporter

# What the reference page of the command line promises.
EVAL_KEYS = {"schema", "data", "split", "cases", "dice", "baseline", "memory", "engine", "seconds_per_case"}
MEMORY_KEYS = {"parameter_bytes", "paper_bytes", "float_bytes", "model_file_bytes", "activation_peak_bytes", "process_peak_bytes"}
RUN_KEYS = {"schema", "status", "command", "started", "finished", "versions", "git", "machine", "device", "config", "data", "split"}
RUN_KEYS |= {"seed", "outputs", "threads", "bfloat16"}


def _json(path: Path) -> dict[str, object]:
    document = json.loads(path.read_text())
    assert isinstance(document, dict)
    return document


def _timeless(document: object) -> object:
    """A document without what differs between two runs of the same command."""
    if isinstance(document, dict):
        return {key: _timeless(value) for key, value in document.items() if not key.startswith("seconds") and key != "run"}
    return [_timeless(item) for item in document] if isinstance(document, list) else document


def test_the_run_folder_holds_what_is_promised(finished_run: Path) -> None:
    assert {entry.name for entry in finished_run.iterdir()} == {
        *("run.json", "metrics.jsonl", "tensorboard", "best", "last", "warm", "float", "model.mq", "eval.json", "layers.json", "pictures")
    }
    for folder in ("best", "last", "warm", "float"):
        assert sorted(file.suffix for file in (finished_run / folder).iterdir()) == [".json", ".safetensors"]
    assert {file.name for file in (finished_run / "pictures").iterdir()} == {"training.png", "dice_memory.png", "overlay.png"}
    assert all("tfevents" in file.name and file.stat().st_size > 200 for file in (finished_run / "tensorboard").iterdir())
    assert half_written(finished_run) == []


def test_run_json_says_what_the_run_was(finished_run: Path) -> None:
    document = _json(finished_run / "run.json")
    assert set(document) >= RUN_KEYS
    assert (document["schema"], document["status"], document["seed"], document["device"], document["threads"]) == (
        1,
        "finished",
        0,
        "cpu",
        1,
    )
    assert isinstance(document["versions"], dict)
    assert {"medquant", "python", "torch", "numpy"} <= set(document["versions"])
    split = document["split"]
    assert isinstance(split, dict)
    assert sorted(split["train"] + split["validation"] + split["test"]) == ["site1-sub01", "site1-sub02", "site1-sub03"]


def test_run_json_holds_the_hash_of_every_result(finished_run: Path) -> None:
    outputs = _json(finished_run / "run.json")["outputs"]
    assert isinstance(outputs, dict)
    files = [finished_run / "model.mq", finished_run / "eval.json", finished_run / "layers.json"]
    files += [file for folder in ("best", "float", "pictures") for file in (finished_run / folder).iterdir()]
    assert set(outputs) == {str(file.relative_to(finished_run)) for file in files}
    for file in files:
        data = file.read_bytes()
        expected = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        assert outputs[str(file.relative_to(finished_run))] == expected


def test_metrics_hold_one_line_an_epoch(finished_run: Path) -> None:
    records = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    stages = [(record["stage"], record["epoch"]) for record in records]
    assert stages == [("warm", 0), ("float", 0), ("float", 1), ("quantized", 0), ("quantized", 1)]
    for record in records:
        assert set(record) == {"stage", "epoch", "train_loss", "val_dice", "lr", "elapsed_s", "waited_for_data_s"}
        assert set(record["val_dice"]) == {"gray_matter", "white_matter"}
        assert 0 < record["train_loss"] < 20
        assert 0 <= record["waited_for_data_s"] <= record["elapsed_s"]


class _Listener(SilentReporter):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def stepped(self, loss: float) -> None:
        self.losses.append(loss)


def test_metrics_hold_the_mean_loss_and_the_last_rate_of_an_epoch(tmp_path: Path) -> None:
    session, listener = start_small(tmp_path / "run"), _Listener()
    session.reporter = listener
    session.run()
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    pairs = zip(listener.losses[::2], listener.losses[1::2], strict=True)
    assert [record["train_loss"] for record in records] == [pytest.approx((first + second) / 2) for first, second in pairs]
    # Of four steps the second stands at the peak; the last is two thirds down half a cosine, where it is 1/4.
    second_stage = [5e-4, pytest.approx(5e-4 * (0.01 + 0.99 / 4))]
    assert [record["lr"] for record in records] == [2e-3, *second_stage, *second_stage]


def test_tensorboard_holds_the_same_figures(finished_run: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(finished_run / "tensorboard"))
    events.Reload()
    records = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    for stage, steps in (("warm", [1]), ("float", [2, 3]), ("quantized", [2, 3])):
        expected = [record["train_loss"] for record in records if record["stage"] == stage]
        found = events.Scalars(f"{stage}/train_loss")
        assert [event.step for event in found] == steps
        np.testing.assert_allclose([event.value for event in found], expected, rtol=1e-6)


def test_eval_json_holds_what_is_promised(finished_run: Path) -> None:
    document = _json(finished_run / "eval.json")
    assert set(document) >= EVAL_KEYS
    # The fastest exact one that is installed.
    assert document["engine"] == auto_order()[0].info.name
    assert document["agreement"] == {"checked": 2 * 3 * 48 * 48, "differing": 0}
    (case,) = document["cases"]  # type: ignore[misc]
    assert case["id"] == "site1-sub01"
    for section in (document, document["float_twin"]):
        assert isinstance(section, dict)
        for name in ("gray_matter", "white_matter"):
            assert {"mean", "std", "interval_95"} <= set(section["dice"][name])
            assert section["dice"][name]["mean"] == section["cases"][0]["dice"][name]
    assert set(document["baseline"]) == {"all_background", "all_gray_matter", "all_white_matter"}  # type: ignore[call-overload]


def test_memory_is_counted_from_the_file_and_the_network(finished_run: Path) -> None:
    memory = _json(finished_run / "eval.json")["memory"]
    assert isinstance(memory, dict)
    assert set(memory) >= MEMORY_KEYS
    # Convolutions 1→2→2, 2→4→4, 4→4→4, 8→4→4, 6→2→2 of 3×3 with batch norm on each, and a head 2→3, biases included.
    widths = [(1, 2), (2, 2), (2, 4), (4, 4), (4, 4), (4, 4), (8, 4), (4, 4), (6, 2), (2, 2)]
    parameters = sum(9 * a * b + b + 2 * b for a, b in widths) + 9 * 2 * 3 + 3
    assert memory["float_bytes"] == 4 * parameters
    assert memory["paper_bytes"] == -(-parameters * 4 // 8)
    assert memory["model_file_bytes"] == (finished_run / "model.mq").stat().st_size
    assert memory["process_peak_bytes"] == PROCESS_PEAK_BYTES
    side = SLICE_SIDE + -SLICE_SIDE % 4
    assert memory["input_shape"] == [1, 1, side, side]


def test_the_model_file_says_what_it_was_trained_on_and_how_it_scored(finished_run: Path, tmp_path: Path) -> None:
    card = load_model(finished_run / "model.mq").metadata
    document = json.loads((finished_run / "eval.json").read_text())
    assert card.metrics["part"] == "test"
    assert card.metrics["cases"] == len(document["cases"])
    for name, summary in document["dice"].items():
        assert card.metrics["dice"][name] == {"mean": summary["mean"], "interval_95": summary["interval_95"]}  # type: ignore[index, call-overload]
    assert document["memory"]["model_file_bytes"] == (finished_run / "model.mq").stat().st_size
    # The phantom's own figures: what its generator was asked for, not what the run found.
    train = [case for case in small_phantom().cases if case.id in card.split["train"]]  # type: ignore[operator]
    spacings = np.array([case.image.spacing_mm for case in train])
    assert card.scan["spacing_mm"] == [spacings.min(axis=0).tolist(), spacings.max(axis=0).tolist()]
    assert card.scan["values"] == [
        [min(float(case.image.array.min()) for case in train), max(float(case.image.array.max()) for case in train)]
    ]
    assert "not a medical device" in card.intended_use.lower()
    train_small(tmp_path / "run", "card.licence=CC-BY-4.0", "card.intended_use=Teaching.", "train.float_twin=false")
    stated = load_model(tmp_path / "run" / "model.mq").metadata
    assert (stated.licence, stated.intended_use) == ("CC-BY-4.0", "Teaching.")


def test_the_model_file_tells_nothing_of_this_machine(finished_run: Path) -> None:
    metadata = load_model(finished_run / "model.mq").metadata
    assert metadata.config["data"]["path"] is None  # type: ignore[index, call-overload]
    assert str(finished_run.parent) not in metadata.model_dump_json()
    assert str(finished_run.parent).encode() not in (finished_run / "model.mq").read_bytes()
    assert metadata.data_sha256 == _json(finished_run / "run.json")["data"]["content_sha256"]  # type: ignore[index, call-overload]


def test_two_runs_of_one_seed_are_the_same_and_another_seed_is_not(finished_run: Path, tmp_path: Path) -> None:
    train_small(tmp_path / "again")
    other = start_small(tmp_path / "other", "train.seed=1", "train.float_twin=false")
    other.run()
    for name in ("best", "last", "warm", "float"):
        expected = sorted(file.name for file in (finished_run / name).iterdir())
        assert sorted(file.name for file in (tmp_path / "again" / name).iterdir()) == expected
        if name != "float":
            assert sorted(file.name for file in (tmp_path / "other" / name).iterdir()) != expected
    assert (tmp_path / "again" / "model.mq").read_bytes() == (finished_run / "model.mq").read_bytes()
    assert not (tmp_path / "other" / "float").exists()
    assert _timeless(_json(tmp_path / "again" / "eval.json")) == _timeless(_json(finished_run / "eval.json"))


def test_resuming_a_finished_run_repeats_only_what_follows_training(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    before = _timeless(_json(run / "eval.json"))
    (run / "eval.json").unlink()
    (run / "model.mq").unlink()
    monkeypatch.setattr(stage_module, "segmentation_loss", None)  # not a step is trained
    session = resume_small(run)
    session.run()
    finish_small(session)
    assert _timeless(_json(run / "eval.json")) == before
    assert (run / "model.mq").read_bytes() == (finished_run / "model.mq").read_bytes()
    assert (run / "metrics.jsonl").read_text() == (finished_run / "metrics.jsonl").read_text()


def test_a_float_run_is_scored_without_a_model_file(tmp_path: Path) -> None:
    run = tmp_path / "run"
    document = train_small(run, "quant.wbits=32", "quant.abits=32", "quant.edge_bits=32").document
    assert document["engine"] == "float"
    assert document["float_twin"] is None
    assert document["agreement"] is None
    assert not (run / "model.mq").exists()
    assert not (run / "float").exists()
    assert load_checkpoint(run / "best").values["batch_norm_reestimated"] is True
    assert _json(run / "run.json")["is_float"] is True
    session = resume_small(run)
    session.run()
    assert _timeless(finish_small(session).document) == _timeless(document)


def test_bits_of_32_alone_make_a_float_run(tmp_path: Path) -> None:
    session = start_small(tmp_path / "run", "quant.wbits=32", "quant.abits=32")
    assert session.plan.is_float


def test_a_run_with_one_float_layer_is_scored_by_its_simulation(tmp_path: Path) -> None:
    run = tmp_path / "run"
    document = train_small(run, "quant.layer_bits=['head=32/']").document
    assert document["engine"] == "float"
    assert document["float_twin"] is not None
    assert document["agreement"] is None
    assert not (run / "model.mq").exists()
    layers = {layer["name"]: layer for layer in document["memory"]["layers"]}  # type: ignore[index, call-overload]
    assert (layers["head"]["weight_bits"], layers["bottom.conv1"]["weight_bits"]) == (32, 4)


def test_the_last_epoch_is_kept_where_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The first epoch of each stage looks best, so the choice shows.
    def falling(scores: list[float]) -> object:
        return lambda *_: {"gray_matter": scores.pop(0), "white_matter": 0.5}

    epochs = {}
    for select in ("best", "last"):
        monkeypatch.setattr("medquant.train.session.mean_dice", falling([0.1, 0.9, 0.2, 0.8, 0.3]))
        session = start_small(tmp_path / select, f"train.select={select}")
        session.run()
        kept = load_checkpoint(tmp_path / select / "best").values
        epochs[select] = (kept["stage"], kept["epoch"], kept["val_score"])
    assert epochs == {"best": ("quantized", 0, pytest.approx(0.65)), "last": ("quantized", 1, pytest.approx(0.4))}


def test_scores_that_do_not_exist_still_leave_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medquant.train.session.mean_dice", lambda *_: {"gray_matter": float("nan"), "white_matter": float("nan")})
    start_small(tmp_path / "run", "train.float_twin=false").run()
    assert load_checkpoint(tmp_path / "run" / "best").values["epoch"] == 0


def test_a_loss_that_is_no_number_ends_the_run_with_advice(tmp_path: Path) -> None:
    session = start_small(tmp_path / "run", "train.lr=10")
    session.network.get_parameter("head.bias").data.fill_(float("inf"))
    with pytest.raises(ConfigError, match=r"the loss became nan in stage warm, epoch 1; lower train\.lr.*train\.amp=off"):
        session.run()
    assert not (tmp_path / "run" / "last").exists()


def test_a_difference_to_the_simulation_writes_no_model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = start_small(tmp_path / "run", "train.float_twin=false")
    session.run()
    monkeypatch.setattr(finish_module, "check_agreement", lambda *_: finish_module.Agreement(100, 1))
    with pytest.raises(EngineMismatchError, match="differ in 1 of 100 values; no model file was written"):
        finish(session)
    assert not (tmp_path / "run" / "model.mq").exists()
    assert _json(tmp_path / "run" / "run.json")["status"] == "training"


@pytest.mark.parametrize("bits", [(), ("quant.wbits=32", "quant.abits=32")])
def test_no_epoch_after_the_warm_start_is_a_mistake(tmp_path: Path, bits: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"train\.warm_fraction 1\.0 leaves none of 3 epochs.*lower it"):
        start_small(tmp_path / "run", "train.warm_fraction=1.0", *bits)
    assert not (tmp_path / "run").exists()


def test_no_warm_start_at_all_is_possible(tmp_path: Path) -> None:
    start_small(tmp_path / "run", "train.warm_fraction=0", "train.epochs=1", "train.float_twin=false").run()
    records = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(record)["stage"] for record in records] == ["quantized"]


@pytest.mark.parametrize(
    ("override", "error", "words"),
    [
        ("eval.engine=tpu", UsageError, "unknown engine 'tpu'.*known: auto, .*reference, torch"),
        ("quant.method=fixd_point", ConfigError, "unknown quantization method 'fixd_point'.*'fixed_point'"),
        ("model.name=unett", ConfigError, "unknown network 'unett'.*'unet'"),
        ("quant.layer_bits=['dec9*=8/']", UsageError, "matches no layer; near"),
        ("train.twin_from=nowhere", CheckpointError, "nowhere: no run folder"),
    ],
)
def test_a_wrong_name_is_found_before_anything_is_written(tmp_path: Path, override: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        start_small(tmp_path / "run", override)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_loading_process_is_named_and_other_errors_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, kind in (("DataLoader worker (pid 7) is killed by signal: Killed. ", InputError), ("mat1 and mat2", RuntimeError)):

        def fail(_: object, text: str = text) -> None:
            raise RuntimeError(text)

        session = start_small(tmp_path / kind.__name__)
        monkeypatch.setattr("medquant.train.stage.StageRunner.run", fail)
        with pytest.raises(kind, match="continue with --resume where more is free" if kind is InputError else text):
            session.run()
