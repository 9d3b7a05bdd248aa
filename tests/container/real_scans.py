"""A model for the container's tests: untrained, so that its mask is nonsense of which every voxel has to agree; and data to score."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from medquant.data.nifti import write_nifti
from medquant.data.normalise import Normalisation
from medquant.data.prepared import Preparation
from medquant.data.prepared_grid import GridRule
from medquant.data.volume import Volume
from medquant.deploy.metadata import ModelMetadata
from medquant.deploy.packed import save_model
from medquant.models.unet import UNet, UNetOptions
from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.lower import lower
from medquant.quant.methods import get_method
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import resolve_plan

CASES = 2


def small_dataset(folder: Path) -> Path:
    """A dataset folder in nnU-Net's layout with the classes of the model; noise, and masks that hold every class."""
    random = np.random.default_rng(5)
    affine = np.diag([0.8, 0.8, 3.0, 1.0])
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number in range(CASES):
        image, mask = random.integers(0, 900, (48, 40, 3)), random.integers(0, 3, (48, 40, 3))
        write_nifti(folder / "imagesTr" / f"case_{number:03d}_0000.nii.gz", Volume(image.astype(np.int16), affine))
        write_nifti(folder / "labelsTr" / f"case_{number:03d}.nii.gz", Volume(mask.astype(np.uint8), affine))
    document = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "first": 1, "second": 2},
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def untrained_model(path: Path) -> Path:
    """A W4A6 U-Net of three classes that takes scans of any spacing, each slice normalised by itself."""
    torch.manual_seed(3)
    image = torch.randn(1, 1, 64, 64)
    float_network = UNet(UNetOptions(1, 3, 8, 3)).eval()
    with torch.no_grad():
        # No class wins everywhere.
        float_network.head.bias -= float_network(image).mean(dim=(0, 2, 3))
    graph = simplify(capture(float_network, image))
    network = QuantNetwork(graph, resolve_plan(graph, 4, 6, 8), get_method("fixed_point"))
    network.calibrate([image])
    metadata = ModelMetadata(
        preparation=Preparation(Normalisation("zscore_slice"), GridRule("axial", (0.8, 0.8))).to_json(),
        size_multiple=4,
        classes={0: "background", 1: "first", 2: "second"},
        scored=("first", "second"),
        float_parameters=1,
        dataset="container test",
        data_sha256="0" * 64,
    )
    save_model(path, lower(network.eval()), metadata)
    return path
