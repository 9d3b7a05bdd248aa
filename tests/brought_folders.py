"""MONAI bundles and nnU-Net result folders as their makers lay them out, with small random networks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

UNET: dict[str, Any] = {
    "_target_": "UNet",
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 3,
    "channels": [4, 8, 8],
    "strides": [2, 2],
    "num_res_units": 1,
    "norm": "batch",
    "act": "relu",
}
"""A network whose every layer is an integer program's."""

CLASSES = {"0": "background", "1": "gray matter", "2": "white matter"}


def make_bundle(
    folder: Path,
    definition: Mapping[str, Any] = UNET,
    config: Mapping[str, Any] | None = None,
    file: str = "inference.json",
    weights: str = "model.pt",
    seed: int = 0,
) -> Path:
    """A bundle with the network MONAI makes of ``definition``, untrained, its batch statistics not those of a fresh one."""
    from monai.networks import nets

    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    # What a real bundle holds beside the network: code for other programs, which must not disturb.
    around = {
        "imports": ["$import glob"],
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "preprocessing": {"_target_": "Compose", "transforms": [{"_target_": "LoadImaged", "keys": ["image"]}]},
    }
    content = {**around, "network_def": dict(definition), **(config or {})}
    if file.endswith("json"):
        (folder / "configs" / file).write_text(json.dumps(content))
    else:
        lines = ["imports:", "- $import glob", "network_def:", *(f"  {key}: {json.dumps(value)}" for key, value in definition.items())]
        (folder / "configs" / file).write_text("\n".join(lines) + "\n")
    metadata = {"network_data_format": {"outputs": {"pred": {"channel_def": CLASSES}}}}
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    torch.manual_seed(seed)
    made = {key: value for key, value in definition.items() if key != "_target_"}
    network = getattr(nets, str(definition["_target_"]).rpartition(".")[2])(**made)
    randomise(network)
    if weights.endswith(".pt"):
        torch.save(network.state_dict(), folder / "models" / weights)
    else:
        import safetensors.torch

        safetensors.torch.save_file(network.state_dict(), folder / "models" / weights)
    return folder


def randomise(network: nn.Module) -> None:
    """Norms that do something: gains, offsets and statistics away from one and zero."""
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif name.endswith(("running_mean", "norm.bias")):
            tensor.uniform_(-0.5, 0.5)
        elif name.endswith("norm.weight"):
            tensor.uniform_(0.5, 1.5)


class NnunetBlock(nn.Module):
    """Convolution, norm and rectifier under nnU-Net's names, which include a list of the same parts."""

    def __init__(
        self, conv: type[nn.Module], norm: type[nn.Module], inputs: int, outputs: int, kernel: list[int], stride: list[int]
    ) -> None:
        super().__init__()
        self.conv = conv(inputs, outputs, kernel, stride, [(size - 1) // 2 for size in kernel])  # type: ignore[call-arg]
        self.norm = norm(outputs, eps=1e-5, affine=True)  # type: ignore[call-arg]
        self.all_modules = nn.Sequential(self.conv, self.norm, nn.LeakyReLU(0.01))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.all_modules(x)
        return found


class NnunetStage(nn.Module):
    def __init__(self, blocks: Sequence[NnunetBlock]) -> None:
        super().__init__()
        self.convs = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.convs(x)
        return found


class NnunetDecoder(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.stages, self.transpconvs, self.seg_layers = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()


class Nnunet(nn.Module):
    """nnU-Net's plain network, put together from torch's modules: its names and its order of operations."""

    def __init__(self, inputs: int, outputs: int, features: list[int], kernels: list[list[int]], strides: list[list[int]]) -> None:
        super().__init__()
        axes = len(kernels[0])
        conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if axes == 2 else (nn.Conv3d, nn.InstanceNorm3d)
        up = nn.ConvTranspose2d if axes == 2 else nn.ConvTranspose3d
        ones = [1] * axes
        self.encoder = nn.Module()
        stages, width = [], inputs
        for feature, kernel, stride in zip(features, kernels, strides, strict=True):
            blocks = [NnunetBlock(conv, norm, width, feature, kernel, stride), NnunetBlock(conv, norm, feature, feature, kernel, ones)]
            stages.append(nn.Sequential(NnunetStage(blocks)))
            width = feature
        self.encoder.stages = nn.Sequential(*stages)
        self.decoder = NnunetDecoder(self.encoder)
        for level in range(len(features) - 2, -1, -1):
            feature, kernel = features[level], kernels[level]
            self.decoder.transpconvs.append(up(features[level + 1], feature, strides[level + 1], strides[level + 1]))  # type: ignore[arg-type]
            block = NnunetBlock(conv, norm, 2 * feature, feature, kernel, ones)
            self.decoder.stages.append(NnunetStage([block, NnunetBlock(conv, norm, feature, feature, kernel, ones)]))
            self.decoder.seg_layers.append(conv(feature, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for stage in self.encoder.stages:  # type: ignore[union-attr]
            x = stage(x)
            skips.append(x)
        for number, (up, stage) in enumerate(zip(self.decoder.transpconvs, self.decoder.stages, strict=True)):
            x = stage(torch.cat((up(x), skips[-(number + 2)]), 1))
        logits: Tensor = self.decoder.seg_layers[-1](x)
        return logits


NNUNET: dict[int, dict[str, Any]] = {
    2: {"features": [4, 8, 8], "kernels": [[3, 3], [3, 5], [3, 3]], "strides": [[1, 1], [2, 2], [2, 2]]},
    3: {"features": [4, 8], "kernels": [[1, 3, 3], [3, 3, 3]], "strides": [[1, 1, 1], [1, 2, 2]]},
}


def make_nnunet(
    folder: Path, axes: int = 2, old_plans: bool = False, transpose: Sequence[int] = (0, 1, 2), kind: str = "PlainConvUNet"
) -> Nnunet:
    """A result folder of one fold; returns the network whose weights it holds."""
    torch.manual_seed(1)
    shape, name = NNUNET[axes], "2d" if axes == 2 else "3d_fullres"
    network = Nnunet(1, 3, shape["features"], shape["kernels"], shape["strides"])
    randomise(network)
    configuration: dict[str, Any] = {"spacing": [1.0] * axes, "normalization_schemes": ["ZScoreNormalization"], "patch_size": [32] * axes}
    stages = len(shape["features"])
    if old_plans:
        configuration |= {
            "UNet_class_name": kind,
            "UNet_base_num_features": 4,
            "unet_max_num_features": 8,
            "n_conv_per_stage_encoder": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "pool_op_kernel_sizes": shape["strides"],
            "conv_kernel_sizes": shape["kernels"],
        }
    else:
        configuration["architecture"] = {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": shape["features"],
                "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
                "kernel_sizes": shape["kernels"],
                "strides": shape["strides"],
                "n_conv_per_stage": [2] * stages,
                "n_conv_per_stage_decoder": [2] * (stages - 1),
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }
    plans = {"configurations": {name: configuration}, "transpose_forward": list(transpose)}
    fold = folder / "fold_0"
    fold.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    labels = {"background": 0, "gray matter": 1, "white matter": 2}
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MRI"}, "labels": labels, "file_ending": ".nii.gz"}))
    document = {
        "network_weights": network.state_dict(),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01, "params": [0]}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)], "train_losses": [np.float32(-0.25)], "lrs": [0.01]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 1,
        "init_args": {"plans": plans, "configuration": name, "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
    }
    torch.save(document, fold / "checkpoint_final.pth")
    return network
