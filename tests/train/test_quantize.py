"""Post-training quantization of finished runs and of networks trained elsewhere: nothing is trained, nothing but training cases seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from brought_folders import UNET, make_bundle, make_nnunet
from small_sessions import SMALL, after_steps, finish_small, resume_small, small_phantom, start_small, train_small

from medquant.data.datasets import phantom
from medquant.data.patches import PatchDataset
from medquant.deploy.packed import load_model
from medquant.errors import CheckpointError, ConfigError, InterruptedRunError, MedquantError, UsageError
from medquant.evaluate.evaluation import select_cases
from medquant.train import stage as stage_module
from medquant.train.checkpoint import load_checkpoint
from medquant.train.finish import Finished
from medquant.train.quantize import QuantizeRequest, start_quantizing
from medquant.train.reporting import SilentReporter
from medquant.train.session import TrainingSession
from medquant.train.start import TrainRequest, start_training

BROUGHT = tuple(text for text in SMALL if not text.startswith("model."))
"""The options of a small run whose network comes from elsewhere."""


class Listener(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


def quantizing(source: Path, out: Path, *overrides: str, reporter: SilentReporter | None = None, **options: object) -> TrainingSession:
    named = {f"quant.{key}": value for key, value in options.items()}
    request = QuantizeRequest(source, None, overrides, named, out)
    return start_quantizing(request, reporter or SilentReporter(), lambda: False)


def quantized(source: Path, out: Path, *overrides: str, pictures: bool = False, **options: object) -> Finished:
    session = quantizing(source, out, *overrides, **options)
    session.run()
    return finish_small(session, pictures)


@pytest.fixture
def nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_module, "segmentation_loss", None)


# --- runs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_is_trained")
def test_a_run_is_quantized_without_training_and_scored_beside_its_float_twin(finished_run: Path, tmp_path: Path) -> None:
    found = quantized(finished_run, tmp_path / "q", pictures=True)
    assert {entry.name for entry in (tmp_path / "q").iterdir()} == {
        *("run.json", "metrics.jsonl", "tensorboard", "best", "warm", "float", "model.mq", "eval.json", "layers.json", "pictures")
    }
    assert {file.name for file in (tmp_path / "q" / "pictures").iterdir()} == {"dice_memory.png", "overlay.png"}
    assert found.document["bits"] == {"weights": 8, "activations": 8, "method": "uniform", "options": {}}
    assert found.document["agreement"]["differing"] == 0
    source = json.loads((finished_run / "eval.json").read_text())
    # The same float network on the same cases: its scores to the last digit.
    assert found.document["float_twin"]["dice"] == source["float_twin"]["dice"]
    assert found.document["split"] == source["split"]
    assert load_model(tmp_path / "q" / "model.mq").program.dimensions == 2
    run = json.loads((tmp_path / "q" / "run.json").read_text())
    assert run["status"] == "finished"
    assert run["split"] == json.loads((finished_run / "run.json").read_text())["split"]


@pytest.mark.usefixtures("nothing_is_trained")
def test_only_training_cases_are_looked_at(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()
    make = PatchDataset.__init__

    def noted(self: PatchDataset, cases: list, *rest: object) -> None:  # type: ignore[type-arg]
        seen.update(case.id for case in cases)
        make(self, cases, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(PatchDataset, "__init__", noted)
    session = quantizing(finished_run, tmp_path / "q")
    session.run()
    assert seen == {case.id for case in select_cases(session.dataset, session.split.train)}


@pytest.mark.usefixtures("nothing_is_trained")
def test_options_and_bits_of_single_layers(finished_run: Path, tmp_path: Path) -> None:
    found = quantized(
        finished_run,
        tmp_path / "q",
        "quant.options.range=percentile",
        "quant.options.equalization=true",
        wbits=6,
        abits=7,
        layer_bits=["head=4/"],
    )
    assert found.document["bits"]["options"] == {"range": "percentile", "equalization": True}
    nodes = {node.name: node for node in load_model(tmp_path / "q" / "model.mq").program.convolutions}
    assert nodes["head"].weight_bits == 4
    assert nodes["enc1.conv2"].weight_bits == 6


@pytest.mark.usefixtures("nothing_is_trained")
def test_real_scales_are_scored_as_a_simulation(finished_run: Path, tmp_path: Path) -> None:
    found = quantized(finished_run, tmp_path / "q", "quant.options.scale=real")
    assert found.document["agreement"] is None
    assert not (tmp_path / "q" / "model.mq").exists()


@pytest.mark.slow
def test_training_by_a_method_that_learns_nothing_is_the_same_from_its_own_twin(tmp_path: Path) -> None:
    train_small(tmp_path / "run", "quant.method=uniform", "quant.wbits=8", "quant.abits=8")
    quantized(tmp_path / "run", tmp_path / "q")
    assert load_checkpoint(tmp_path / "run" / "best").tensors.keys() == load_checkpoint(tmp_path / "q" / "best").tensors.keys()
    files = [next((tmp_path / name / "best").glob("*.safetensors")).read_bytes() for name in ("run", "q")]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("overrides", "options", "error", "named"),
    [
        ((), {"method": "fixed_point"}, UsageError, r"method fixed_point learns .*medquant train --method fixed_point, .*: uniform"),
        ((), {"method": "unifrom"}, ConfigError, r"unknown quantization method 'unifrom' \(did you mean 'uniform'"),
        (("train.lr=0.1",), {}, ConfigError, r"another recipe \(train\.lr differ\)"),
        ((), {"wbits": 32, "abits": 32}, UsageError, "leaves nothing to quantize"),
        (("quant.options.range=all",), {}, ConfigError, r"quant\.options\.range"),
        ((), {"layer_bits": ["nothing*=4/"]}, UsageError, "matches no layer"),
    ],
)
def test_mistakes_are_refused_before_a_folder_is_made(
    overrides: tuple[str, ...], options: dict[str, object], error: type[MedquantError], named: str, finished_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=named):
        quantizing(finished_run, tmp_path / "q", *overrides, **options)
    assert not (tmp_path / "q").exists()


def test_unfinished_runs_and_other_data_are_refused(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = start_small(tmp_path / "cut", stop_requested=after_steps(3))
    with pytest.raises(InterruptedRunError):
        session.run()
    with pytest.raises(UsageError, match=r"this run is not finished; end it first with medquant train --resume"):
        quantizing(tmp_path / "cut", tmp_path / "q")
    with pytest.raises(CheckpointError, match="neither a MONAI bundle"):
        quantizing(tmp_path, tmp_path / "q")
    monkeypatch.setattr(phantom, "make_phantom", lambda seed=0: small_phantom(seed + 1))
    with pytest.raises(CheckpointError, match="made with other data"):
        quantizing(finished_run, tmp_path / "q")
    assert not (tmp_path / "q").exists()


@pytest.mark.usefixtures("nothing_is_trained")
def test_a_quantization_that_was_stopped_goes_on(finished_run: Path, tmp_path: Path) -> None:
    quantizing(finished_run, tmp_path / "whole").run()
    quantizing(finished_run, tmp_path / "cut")  # nothing but its folder
    resume_small(tmp_path / "cut").run()
    names = [next((tmp_path / run / "best").glob("*.safetensors")).name for run in ("whole", "cut")]  # digests of their contents
    assert names[0] == names[1]


@pytest.mark.slow
def test_volumes_and_the_network_that_finds_their_region_come_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medquant.train.coarse._EPOCHS", 2)
    monkeypatch.setattr("medquant.train.coarse._STEPS", 2)
    volumes = ("model.dimensions=3", "model.depth=2", "data.patch_slices=2", "data.region=coarse")
    train_small(tmp_path / "run", *volumes)
    monkeypatch.setattr(stage_module, "segmentation_loss", None)
    found = quantized(tmp_path / "run", tmp_path / "q")
    assert found.document["agreement"]["differing"] == 0
    assert (tmp_path / "q" / "coarse" / "model.mq").read_bytes() == (tmp_path / "run" / "coarse" / "model.mq").read_bytes()
    packed = load_model(tmp_path / "q" / "model.mq")
    assert packed.program.dimensions == 3
    assert packed.coarse is not None


# --- networks trained elsewhere -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_is_trained")
def test_a_bundle_becomes_an_exact_model_file(tmp_path: Path) -> None:
    bundle, listener = make_bundle(tmp_path / "bundle"), Listener()
    session = quantizing(bundle, tmp_path / "q", *BROUGHT, reporter=listener)
    session.run()
    found = finish_small(session)
    assert found.document["agreement"]["differing"] == 0
    assert found.document["float_twin"] is not None
    assert load_model(tmp_path / "q" / "model.mq").metadata.config["train"]["init"] is None
    assert any("its transforms are not taken over" in line for line in listener.said)
    # The float twin is the network as it came, bit for bit.
    brought = load_checkpoint(tmp_path / "q" / "float").tensors
    import torch

    given = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(brought[f"model/{name}"], tensor) for name, tensor in given.items())
    # A run like any other from here on: the bundle is no longer needed.
    shutil.rmtree(bundle)
    again = quantized(tmp_path / "q", tmp_path / "q4", wbits=4, abits=6)
    assert again.document["float_twin"]["dice"] == found.document["float_twin"]["dice"]


@pytest.mark.usefixtures("nothing_is_trained")
def test_a_network_with_two_outputs_for_two_classes_decides_by_the_larger(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", {**UNET, "out_channels": 2})
    (bundle / "configs" / "metadata.json").unlink()
    (tmp_path / "em").mkdir()
    rng = np.random.default_rng(0)
    for name in ("volume", "labels"):
        stack = (255 * (rng.random((8, 34, 34)) > 0.5)).astype(np.uint8)
        tifffile.imwrite(tmp_path / "em" / f"train-{name}.tif", stack)
    request = QuantizeRequest(bundle, tmp_path / "em", BROUGHT, {}, tmp_path / "q")
    session = start_quantizing(request, SilentReporter(), lambda: False)
    session.run()
    document = finish_small(session).document
    assert "threshold_search" not in document
    assert document["agreement"]["differing"] == 0
    assert load_model(tmp_path / "q" / "model.mq").metadata.positive_class is None


@pytest.mark.usefixtures("nothing_is_trained")
def test_an_nnunet_is_quantized_with_its_norms_in_float(tmp_path: Path) -> None:
    make_nnunet(tmp_path / "nnUNetTrainer__nnUNetPlans__2d")
    session = quantizing(tmp_path / "nnUNetTrainer__nnUNetPlans__2d", tmp_path / "q", *BROUGHT)
    session.run()
    found = finish_small(session)
    assert found.document["agreement"] is None
    assert session.preparation.normalisation.kind == "zscore_volume"
    kinds = {layer.kind for layer in session.plan.layers if layer.activation_bits == 32}
    assert {"instance norm", "leaky relu"} <= kinds


def test_training_starts_from_a_bundle_and_says_so(tmp_path: Path) -> None:
    listener, bundle = Listener(), make_bundle(tmp_path / "bundle")

    def started(out: Path, stop: Callable[[], bool] = lambda: False) -> TrainingSession:
        request = TrainRequest(None, BROUGHT, {"train.init": str(bundle), "quant.wbits": 4, "quant.abits": 6}, out)
        return start_training(request, listener, stop)

    session = started(tmp_path / "whole")
    session.run()
    assert finish_small(session).document["agreement"]["differing"] == 0
    assert any("in the place of the warm start (train.warm_fraction counts as 0)" in line for line in listener.said)
    records = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [record["stage"] for record in records] == ["float"] * 3 + ["quantized"] * 3
    # Stopped and resumed: the same bits, the bundle read once.
    with pytest.raises(InterruptedRunError):
        started(tmp_path / "cut", after_steps(9)).run()
    shutil.rmtree(bundle)
    resume_small(tmp_path / "cut").run()
    for part in ("warm", "float", "best"):
        names = [next((tmp_path / run / part).glob("*.safetensors")).name for run in ("whole", "cut")]
        assert names[0] == names[1]


def test_options_of_the_network_cannot_be_changed(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", UNET)
    with pytest.raises(ConfigError, match=r"brings its own network; leave out model\.channels, model\.dropout"):
        quantizing(bundle, tmp_path / "q", *BROUGHT, "model.channels=8", "model.dropout=0.5")
    assert not (tmp_path / "q").exists()


def test_a_method_that_learns_nothing_wants_the_finished_float_network(tmp_path: Path) -> None:
    """Without the twin there is the warm start alone: trained in part, or with ``train.warm_fraction=0`` not at all."""
    with pytest.raises(
        ConfigError, match=r"method uniform learns nothing and takes the finished float network; set train\.float_twin=true"
    ):
        start_small(tmp_path / "run", "quant.method=uniform", "train.float_twin=false", "train.warm_fraction=0")
    assert not (tmp_path / "run").exists()
