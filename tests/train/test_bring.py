"""Networks trained elsewhere: read exactly, run exactly, and nothing of their folders is ever executed."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from brought_folders import UNET, make_bundle, make_nnunet
from small_sessions import start_small

from medquant.errors import CheckpointError, ConfigError, InputError, MedquantError, UsageError
from medquant.models.brought import build_brought
from medquant.train.bring import is_brought_folder, read_brought
from medquant.train.bring.weights import load_document


def built(folder: Path) -> torch.nn.Module:
    brought = read_brought(folder)
    brought.check_weights()
    network = build_brought(brought.family, brought.arguments)
    brought.load_into(network)
    return network.eval()


# --- MONAI bundles ----------------------------------------------------------------------------------------------------

NETWORKS: dict[str, dict[str, Any]] = {
    "UNet": UNET,
    "UNet of MONAI's defaults": {key: UNET[key] for key in UNET if key not in ("norm", "act")},
    "BasicUNet": {"_target_": "monai.networks.nets.BasicUNet", "spatial_dims": 2, "out_channels": 3, "features": [4, 4, 8, 8, 8, 4]},
    "DynUNet": {
        **{"_target_": "monai.networks.nets.dynunet.DynUNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3},
        **{"kernel_size": [3, 3, 3], "strides": [1, 2, [2, 2, 1]], "upsample_kernel_size": [2, [2, 2, 1]], "filters": [4, 8, 8]},
        **{"norm_name": ["instance", {"affine": True}], "deep_supervision": True, "deep_supr_num": 1},
    },
    "SegResNet": {
        "_target_": "SegResNet",
        "spatial_dims": 3,
        "out_channels": 3,
        "init_filters": 8,
        "blocks_down": [1, 1],
        "blocks_up": [1],
    },
    "AttentionUnet": {**{key: UNET[key] for key in UNET if key not in ("norm", "act", "num_res_units")}, "_target_": "AttentionUnet"},
}
MULTIPLES = {"UNet": 4, "UNet of MONAI's defaults": 4, "BasicUNet": 16, "DynUNet": 4, "SegResNet": 2, "AttentionUnet": 4}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_bundle_computes_what_monai_computes(name: str, tmp_path: Path) -> None:
    definition = NETWORKS[name]
    folder = make_bundle(tmp_path / "bundle", definition)
    from monai.networks import nets

    made = {key: value for key, value in definition.items() if key != "_target_"}
    theirs = getattr(nets, str(definition["_target_"]).rpartition(".")[2])(**made).eval()
    theirs.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))
    facts = read_brought(folder).facts
    assert (facts.inputs, facts.outputs, facts.dimensions, facts.size_multiple) == (1, 3, made["spatial_dims"], MULTIPLES[name])
    x = torch.randn(1, 1, *[2 * facts.size_multiple] * facts.dimensions, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(built(folder)(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("file", "weights"), [("inference.yaml", "model.safetensors"), ("train.json", "model.pt")])
def test_configurations_and_weights_in_every_form(file: str, weights: str, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle", file=file, weights=weights)
    brought = read_brought(folder)
    assert brought.arguments == UNET
    assert brought.classes == {0: "background", 1: "gray matter", 2: "white matter"}
    built(folder)


def test_weights_below_a_key_and_of_parallel_training_are_found(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")
    file = folder / "models" / "model.pt"
    state = torch.load(file, weights_only=True)
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, file)
    assert set(read_brought(folder).weights()) == set(state)


def test_a_reference_to_a_plain_value_is_followed(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle", config={"network_def": {**UNET, "out_channels": "@classes"}, "classes": 3})
    assert read_brought(folder).arguments == UNET


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"out_channels": "$__import__('os').system('touch {mark}')"}, "argument out_channels of the network asks for code"),
        ({"norm": ["batch", {"eps": "$open('{mark}', 'w')"}]}, "argument eps of the network asks for code"),
        ({"out_channels": "@device"}, "argument out_channels of the network asks for code"),
        ({"_requires_": "$open('{mark}', 'w')"}, "the network asks for code: _requires_"),
        ({"act": {"_target_": "builtins.open", "file": "{mark}"}}, "act asks for code: _target_"),
        ({"_target_": "os.system"}, "_target_ is never imported: unknown network class 'os.system'"),
        ({"_target_": "monai.networks.nets.unetr.UNet"}, "_target_ is never imported"),
        ({"_target_": "evil.UNet"}, "_target_ is never imported"),
        ({"nonsense": 1}, "unknown argument of UNet 'nonsense'"),
        ({"in_channels": "1"}, "in_channels must be a whole number"),
        ({"channels": [4096] * 6, "strides": [2] * 5}, "a network of [0-9]+ parameters; expected at most"),
        ({"channels": [4]}, "these make no network"),
        ({"num_res_units": 10**8}, "num_res_units must be at most 64; found 100000000"),
        ({"kernel_size": 10**9}, "kernel_size must be at most 4096"),
        ({"channels": [1] * 400, "strides": [1] * 399}, "channels must have at most 64 entries; found 400"),
        ({"act": json.loads("[" * 500 + "]" * 500)}, "argument act of the network has more than 1000 values or 8 levels"),
    ],
)
def test_a_bundle_that_asks_for_code_or_makes_no_sense_is_refused(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    folder = make_bundle(tmp_path / "bundle")
    definition = json.loads(json.dumps({**UNET, **change}).replace("{mark}", str(mark)))
    config = json.loads((folder / "configs" / "inference.json").read_text())
    (folder / "configs" / "inference.json").write_text(json.dumps({**config, "network_def": definition}))
    with pytest.raises(MedquantError, match=named):
        read_brought(folder).check_weights()
    assert not mark.exists()


@pytest.mark.parametrize(
    "around",
    [
        {"a": ["@a"]},
        {"a": ["@b"] * 50, "b": ["@c"] * 50, "c": ["@d"] * 50, "d": ["@e"] * 50, "e": ["@f"] * 50, "f": ["x"] * 50},
    ],
    ids=["in a circle", "50 ** 6 values"],
)
def test_references_that_never_end_are_refused(around: dict[str, Any], tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle", config={"network_def": {**UNET, "act": "@a"}, **around})
    with pytest.raises(CheckpointError, match="argument act of the network has more than 1000 values or 8 levels, or refers to itself"):
        read_brought(folder)


@pytest.mark.parametrize(
    "claimed",
    [torch.zeros(1).expand(10**6, 10**7), torch.empty(4, 1, 3, 3, device="meta"), torch.zeros(4, 1, 3, 3).to_sparse()],
    ids=["one value for all", "meta", "sparse"],
)
def test_a_tensor_that_claims_more_than_is_stored_takes_no_memory(claimed: torch.Tensor, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")
    torch.save({"a": claimed}, folder / "models" / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt: a \([0-9×]+\) is sparse, complex, or claims more values than are stored"):
        read_brought(folder).check_weights()


def test_a_compressed_archive_is_not_unpacked(tmp_path: Path) -> None:
    """torch reads deflated records although it writes none: 64 MiB of zeros in some 70 KiB."""
    folder = make_bundle(tmp_path / "bundle")
    file, stored = folder / "models" / "model.pt", tmp_path / "stored.pt"
    torch.save({"a": torch.zeros(2**24)}, stored)
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(CheckpointError, match=r"model\.pt: unpacks to [0-9]+ bytes, more than the file has"):
        load_document(file)


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("numpy_scalars", [False, True])
def test_a_pickle_with_code_runs_nothing(tmp_path: Path, numpy_scalars: bool) -> None:
    mark = tmp_path / "mark"
    folder = make_bundle(tmp_path / "bundle")
    file = folder / "models" / "model.pt"
    torch.save({"a": torch.zeros(1), "b": Hostile(mark)}, file)
    with pytest.raises(CheckpointError, match=r"model\.pt: asks for code.*nothing was run"):
        load_document(file, numpy_scalars)
    file.write_bytes(pickle.dumps({"b": Hostile(mark)}))
    with pytest.raises(CheckpointError, match=r"model\.pt: (asks for code|not readable)"):
        read_brought(folder).check_weights()
    assert not mark.exists()


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")
    other = make_bundle(tmp_path / "other", {**UNET, "channels": [4, 8, 16]})
    (folder / "models" / "model.pt").write_bytes((other / "models" / "model.pt").read_bytes())
    with pytest.raises(
        CheckpointError, match=r"weights of another network: \d+ of \d+ tensors differ: model\.1\.submodule\S* \(\S+, expected \S+\)"
    ):
        read_brought(folder).check_weights()


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        read_brought(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"neither a MONAI bundle .* nor an nnU-Net v2 result folder"):
        read_brought(tmp_path)
    assert not is_brought_folder(tmp_path)
    folder = make_bundle(tmp_path / "bundle")
    assert is_brought_folder(folder)
    (folder / "models" / "model.pt").rename(folder / "models" / "model.ts")
    with pytest.raises(CheckpointError, match=r"holds no models/model\.safetensors or models/model\.pt; a model\.ts is a program"):
        read_brought(folder)
    (folder / "configs" / "inference.json").write_text('{"network": {"a": 1}')
    with pytest.raises(CheckpointError, match=r"inference\.json: not readable as plain data"):
        read_brought(folder)
    (folder / "configs" / "inference.json").unlink()
    with pytest.raises(CheckpointError, match=r"configs/ holds none of inference\.json"):
        read_brought(folder)


# --- nnU-Net ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old_plans", [False, True])
@pytest.mark.parametrize(("axes", "transpose"), [(2, (0, 1, 2)), (3, (0, 1, 2)), (3, (1, 0, 2)), (3, (2, 0, 1)), (2, (2, 0, 1))])
def test_an_nnunet_computes_the_same_on_axes_turned_to_ours(old_plans: bool, axes: int, transpose: tuple[int, ...], tmp_path: Path) -> None:
    theirs = make_nnunet(tmp_path / "result", axes, old_plans, transpose).eval()
    brought = read_brought(tmp_path / "result")
    assert brought.recipe["data.normalisation"] == "zscore_volume"
    network = built(tmp_path / "result" / "fold_0")
    image = torch.randn(1, 1, *[16] * 3, generator=torch.Generator().manual_seed(0))  # a scan (x, y, z)
    with torch.no_grad():
        if axes == 3:
            # nnU-Net reads (z, y, x) and transposes as its plans say; its result goes back the same way.
            order = [0, 1, *(2 + (2 - axis) for axis in transpose)]
            back = sorted(range(5), key=order.__getitem__)
            torch.testing.assert_close(network(image), theirs(image.permute(order)).permute(back), rtol=1e-4, atol=1e-5)
            return
        # A slice across the first transposed axis: its two axes are the others, in their transposed order.
        along = [2 - axis for axis in transpose]
        volume = image.permute(0, 1, *(2 + axis for axis in along))[:, :, 5]
        ours = image.select(2 + along[0], 5)
        flipped = along[1] > along[2]
        expected = theirs(volume)
        torch.testing.assert_close(network(ours), expected.transpose(2, 3) if flipped else expected, rtol=1e-4, atol=1e-5)


def test_only_plain_networks_of_single_stages_are_taken(tmp_path: Path) -> None:
    make_nnunet(tmp_path / "residual", kind="ResidualEncoderUNet")
    with pytest.raises(CheckpointError, match=r"the network is a \S*ResidualEncoderUNet; only nnU-Net's plain kind"):
        read_brought(tmp_path / "residual")
    make_nnunet(tmp_path / "regions")
    file = tmp_path / "regions" / "dataset.json"
    file.write_text(json.dumps({"channel_names": {"0": "MRI"}, "labels": {"background": 0, "cord": [1, 2]}}))
    with pytest.raises(CheckpointError, match="overlapping regions"):
        read_brought(tmp_path / "regions")
    make_nnunet(tmp_path / "unfinished")
    (tmp_path / "unfinished" / "fold_0" / "checkpoint_final.pth").unlink()
    with pytest.raises(CheckpointError, match=r"holds no fold_\*/checkpoint_final\.pth"):
        read_brought(tmp_path / "unfinished")
    make_nnunet(tmp_path / "hostile")
    torch.save({"network_weights": Hostile(tmp_path / "mark")}, tmp_path / "hostile" / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(CheckpointError, match="asks for code"):
        read_brought(tmp_path / "hostile")
    assert not (tmp_path / "mark").exists()


# --- training from them ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"out_channels": 4}, InputError, r"finds 0 background, 1 gray matter, 2 white matter; phantom holds"),
        ({"in_channels": 2}, InputError, r"takes 2 channels, phantom has 1"),
        ({"channels": [4] * 6, "strides": [2] * 5 + [2][:0]}, ConfigError, None),
    ],
)
def test_data_that_do_not_fit_are_refused_before_anything_is_made(
    change: dict[str, Any], error: type[MedquantError], named: str | None, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "bundle", {**UNET, **change})
    overrides = ["model.channels=32", "model.depth=4"] if named else ["model.channels=32", "model.depth=6", "data.patch_size=[48,48]"]
    with pytest.raises(error, match=named or "sides are multiples of 32|patch_size must hold multiples of 32"):
        start_small(tmp_path / "run", *overrides, f"train.init={bundle}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"norm_op_kwargs": [1]}, "norm_op_kwargs is no mapping"),
        ({"norm_op_kwargs": {"eps": "x", "affine": True}}, "eps is no number"),
        ({"nonlin_kwargs": {"negative_slope": [1]}}, "negative_slope is no number"),
        ({"nonlin_kwargs": {"negative_slope": 10**400}}, "negative_slope is beyond any number"),
        (None, "configuration 2d is no mapping"),
    ],
)
def test_plans_of_another_form_are_named(change: dict[str, Any] | None, named: str, tmp_path: Path) -> None:
    folder = tmp_path / "nnUNetTrainer__nnUNetPlans__2d"
    make_nnunet(folder)
    plans = json.loads((folder / "plans.json").read_text())
    if change is None:
        plans["configurations"]["2d"] = "abc"
    else:
        plans["configurations"]["2d"]["architecture"]["arch_kwargs"].update(change)
    (folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(CheckpointError, match=named):
        read_brought(folder)


@pytest.mark.parametrize("number", ["²", "9" * 5000])
def test_class_numbers_that_are_none_are_passed_by(number: str, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")
    stated = {"network_data_format": {"outputs": {"pred": {"channel_def": {number: "a"}}}}}
    (folder / "configs" / "metadata.json").write_text(json.dumps(stated))
    assert read_brought(folder).classes == {}
