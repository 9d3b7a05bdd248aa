"""An nnU-Net v2 result folder of the plain convolutional kind: network from ``plans.json``, weights from a fold's checkpoint.

nnU-Net's arrays run (z, y, x), or as ``transpose_forward`` turns them; those here run along a scan's own axes (x, y, z). The
network is turned instead of the images: kernels, strides and weights get their spatial axes in this order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from medquant.data.bounded import read_bounded_json
from medquant.errors import CheckpointError
from medquant.models.plain_conv_unet import plain_options
from medquant.train.bring.network import BroughtNetwork
from medquant.train.bring.weights import load_document, weights_in

_CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
_PLAIN = "PlainConvUNet"
# Second names of the same tensors: a block keeps its parts in a list as well, the decoder keeps the encoder.
_TWINS = (".all_modules.", "decoder.encoder.")


def is_nnunet_result(path: Path) -> bool:
    """Whether a folder is a trained configuration of nnU-Net, or one of its folds."""
    return _home(path) is not None


def _home(path: Path) -> Path | None:
    return next((folder for folder in (path, path.parent) if (folder / "plans.json").is_file()), None)


def read_nnunet_result(path: Path) -> BroughtNetwork:
    """The network of a result folder.

    Raises:
        CheckpointError: a part is missing or damaged, asks for code, or the network is not of the plain kind.
        ConfigError: the plans make no network.
    """
    home = _home(path) or path
    plans, dataset = _json(home / "plans.json"), _json(home / "dataset.json")
    file = _checkpoint(path, home)
    document = load_document(file, numpy_scalars=True)
    name = _configuration_name(home, plans, document)
    configuration = _configuration(home / "plans.json", plans, name)
    classes = _classes(home / "dataset.json", dataset)
    channels = dataset.get("channel_names", dataset.get("modality"))
    if not isinstance(channels, Mapping) or not channels:
        raise CheckpointError(f"{home / 'dataset.json'}: names no channels (channel_names); restore it")
    arguments = _arguments(home / "plans.json", plans, configuration, len(channels), len(classes))
    plain_options(arguments)
    order = _axis_order(plans, int(str(arguments["dimensions"])))
    arguments = {**arguments, **{key: [_turned(each, order) for each in _lists(arguments[key])] for key in ("kernel_sizes", "strides")}}
    last = f"decoder.seg_layers.{len(_lists(arguments['strides'])) - 2}."

    def weights() -> dict[str, Tensor]:
        return _own_weights(weights_in(document, file), order, last)

    recipe, notes = _preparation(plans, configuration, len(channels), int(str(arguments["dimensions"])))
    return BroughtNetwork(path, "nnunet_plain", arguments, weights, classes, recipe, notes)


def _json(file: Path) -> dict[str, Any]:
    try:
        found = read_bounded_json(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not readable ({error}); give the folder nnU-Net wrote its results to") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: holds no mapping; restore it")
    return found


def _checkpoint(path: Path, home: Path) -> Path:
    folders = [path] if path != home else sorted(path.glob("fold_*"))
    for folder in folders:
        for name in _CHECKPOINTS:
            if (folder / name).is_file():
                return folder / name
    raise CheckpointError(f"{path}: holds no fold_*/{_CHECKPOINTS[0]}; train a fold to its end, or name the fold's folder")


def _configuration_name(home: Path, plans: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """Which configuration was trained: the checkpoint says so, else the folder's name, else there is only one."""
    made_with = document.get("init_args")
    stated = made_with.get("configuration") if isinstance(made_with, Mapping) else None
    known = plans.get("configurations")
    names = list(known) if isinstance(known, Mapping) else []
    for name in (stated, home.name.rpartition("__")[2], names[0] if len(names) == 1 else None):
        if isinstance(name, str) and name in names:
            return name
    listed = ", ".join(map(str, names)) or "no configurations"
    raise CheckpointError(f"{home}: cannot tell which of {listed} was trained; keep the folder's name")


def _configuration(file: Path, plans: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    stated = plans["configurations"][name]
    if not isinstance(stated, Mapping):
        raise CheckpointError(f"{file}: configuration {name} is no mapping; restore it")
    found: dict[str, Any] = dict(stated)
    parent = found.get("inherits_from")
    if isinstance(parent, str) and isinstance(plans["configurations"].get(parent), Mapping):
        found = {**plans["configurations"][parent], **found}
    if found.get("previous_stage"):
        raise CheckpointError(f"{file}: {name} is the second stage of a cascade and reads another network's result; give a single stage")
    return found


def _classes(file: Path, dataset: Mapping[str, Any]) -> dict[int, str]:
    labels = dataset.get("labels")
    if not isinstance(labels, Mapping) or not labels:
        raise CheckpointError(f"{file}: names no labels; restore it")
    if any(isinstance(value, list | tuple) for value in labels.values()):
        raise CheckpointError(f"{file}: trained on overlapping regions; only classes that exclude each other are known here")
    try:
        numbers = {int(str(value)): str(name) for name, value in labels.items() if name != "ignore"}
    except ValueError as error:
        raise CheckpointError(f"{file}: labels must be whole numbers ({error})") from error
    return dict(sorted(numbers.items()))


def _arguments(file: Path, plans: Mapping[str, Any], configuration: Mapping[str, Any], channels: int, classes: int) -> dict[str, object]:
    """Arguments of the network in nnU-Net's axis order, from plans of version 2.5 on (``architecture``) or before."""
    architecture = configuration.get("architecture")
    stated = architecture if isinstance(architecture, Mapping) else None
    kind = str(stated.get("network_class_name") if stated is not None else configuration.get("UNet_class_name"))
    if kind.rpartition(".")[2] != _PLAIN:
        raise CheckpointError(f"{file}: the network is a {kind}; only nnU-Net's plain kind ({_PLAIN}) is known here")
    made = {"in_channels": channels, "out_channels": classes}
    if stated is None:
        return {**made, **_old_arguments(file, configuration)}
    given = stated.get("arch_kwargs")
    if not isinstance(given, Mapping):
        raise CheckpointError(f"{file}: architecture without arch_kwargs; restore it")
    expected = {"norm_op": "InstanceNorm", "nonlin": "LeakyReLU", "dropout_op": "None"}
    for key, wanted in expected.items():
        found = str(given.get(key)).rpartition(".")[2]
        if found.rstrip("23d") != wanted:
            raise CheckpointError(f"{file}: {key} is {found}; only {wanted.lower()} is known here")
    norm, nonlin = (_settings(file, given, key) for key in ("norm_op_kwargs", "nonlin_kwargs"))
    dimensions = 2 if str(given.get("conv_op")).endswith("2d") else 3
    if not norm.get("affine", False):
        raise CheckpointError(f"{file}: instance norm without a learned scale is not known here")
    return {
        **made,
        "dimensions": dimensions,
        **{key: _listed(file, given, key) for key in ("features_per_stage", "n_conv_per_stage", "n_conv_per_stage_decoder")},
        **{key: [_spread(each, dimensions) for each in _listed(file, given, key)] for key in ("kernel_sizes", "strides")},
        "conv_bias": bool(given.get("conv_bias", False)),
        "norm_eps": _number(file, norm, "eps", 1e-5),
        "negative_slope": _number(file, nonlin, "negative_slope", 0.01),
    }


def _old_arguments(file: Path, configuration: Mapping[str, Any]) -> dict[str, object]:
    strides, kernels = (_listed(file, configuration, key) for key in ("pool_op_kernel_sizes", "conv_kernel_sizes"))
    base, most = configuration.get("UNet_base_num_features"), configuration.get("unet_max_num_features")
    if not isinstance(base, int) or not isinstance(most, int) or not strides:
        raise CheckpointError(f"{file}: lacks UNet_base_num_features, unet_max_num_features or pool_op_kernel_sizes; restore it")
    return {
        "dimensions": len(_lists(strides[0])),
        "features_per_stage": [min(base * 2**stage, most) for stage in range(min(len(strides), 16))],
        "kernel_sizes": kernels,
        "strides": strides,
        "n_conv_per_stage": _listed(file, configuration, "n_conv_per_stage_encoder"),
        "n_conv_per_stage_decoder": _listed(file, configuration, "n_conv_per_stage_decoder"),
        "conv_bias": True,
        "norm_eps": 1e-5,
        "negative_slope": 0.01,
    }


def _listed(file: Path, values: Mapping[str, Any], key: str) -> list[Any]:
    found = values.get(key)
    if not isinstance(found, list | tuple):
        raise CheckpointError(f"{file}: {key} is no list; restore it")
    return list(found)


def _settings(file: Path, values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key) or {}
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{file}: {key} is no mapping; restore it")
    return found


def _number(file: Path, values: Mapping[str, Any], key: str, default: float) -> float:
    found = values.get(key, default)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise CheckpointError(f"{file}: {key} is no number; restore it")
    try:
        return float(found)
    except OverflowError as error:
        raise CheckpointError(f"{file}: {key} is beyond any number it could be; restore it") from error


def _lists(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _spread(value: Any, axes: int) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value] * axes


def _axis_order(plans: Mapping[str, Any], dimensions: int) -> tuple[int, ...]:
    """For each axis of an image here, in turn, the spatial axis of nnU-Net's network that runs along it.

    Raises:
        CheckpointError: ``transpose_forward`` is no order of three axes.
    """
    turned = plans.get("transpose_forward", [0, 1, 2])
    if not isinstance(turned, list) or sorted(map(str, turned)) != ["0", "1", "2"]:
        raise CheckpointError(f"plans.json: transpose_forward must order three axes; found {turned!r}")
    # Axis a of the network runs along axis turned[a] of (z, y, x), which is axis 2 - turned[a] of (x, y, z). Slices are cut
    # across the first; the two that are left keep their order here.
    along = [2 - int(axis) for axis in turned[3 - dimensions :]]
    return tuple(sorted(range(dimensions), key=lambda axis: along[axis]))


def _turned(values: Sequence[Any], order: Sequence[int]) -> list[Any]:
    return [values[axis] for axis in order]


def _own_weights(weights: Mapping[str, Tensor], order: Sequence[int], last: str) -> dict[str, Tensor]:
    """Each tensor once, without the outputs of coarser levels, spatial axes in the order of an image here."""
    kept = {}
    for name, tensor in weights.items():
        plain = name.removeprefix("_orig_mod.")  # torch.compile's prefix
        coarser = plain.startswith("decoder.seg_layers.") and not plain.startswith(last)
        if not coarser and not any(twin in plain or plain.startswith(twin) for twin in _TWINS):
            spatial = tensor.dim() == len(order) + 2
            kept[plain] = tensor.permute(0, 1, *(2 + axis for axis in order)).contiguous() if spatial else tensor
    return kept


def _preparation(
    plans: Mapping[str, Any], configuration: Mapping[str, Any], channels: int, dimensions: int
) -> tuple[dict[str, object], tuple[str, ...]]:
    """Settings that follow from the plans, and what of them has no counterpart here."""
    schemes = {str(each) for each in _lists(configuration.get("normalization_schemes"))}
    recipe: dict[str, object] = {"model.dimensions": dimensions}
    notes = ["orientation: nnU-Net takes scans as they are stored, here they are turned to RAS first"]
    if schemes == {"ZScoreNormalization"}:
        recipe["data.normalisation"] = "zscore_volume"
    else:
        notes.append(f"normalisation {', '.join(sorted(schemes))} has no exact counterpart here; choose data.normalisation and data.window")
    spacing = configuration.get("spacing")
    if isinstance(spacing, list):
        notes.append(f"trained at a spacing of {spacing} mm (z, y, x); set data.spacing_mm to its in-plane part where scans differ")
    return recipe, tuple(notes)
