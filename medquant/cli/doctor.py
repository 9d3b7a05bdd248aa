"""``medquant doctor``."""

from __future__ import annotations

import typer

from medquant.cli.output import JsonOption, QuietOption, VerboseOption, Voice, guarded
from medquant.errors import EngineMismatchError

_PACKAGES = (
    *("torch", "openvino", "onnxruntime", "onnx", "numpy", "scipy", "scikit-image", "monai", "nibabel", "pydicom", "highdicom"),
    *("tifffile", "pydantic", "typer", "safetensors"),
)


@guarded
def doctor(as_json: JsonOption = False, quiet: QuietOption = False, verbose: VerboseOption = False) -> None:
    """Show versions, devices, and which engines work here: each runs a small network and is held to the reference.

    Example: medquant doctor
    """
    import platform

    import medquant
    from medquant.deploy.engines.exactness import byte_products_saturate
    from medquant.deploy.self_test import check_engines

    voice = Voice(as_json, quiet, verbose)
    versions = {
        "medquant": medquant.__version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
    }
    machine: dict[str, object] = {
        "system": platform.platform(),
        "byte_products": "saturate in 16 bits: 8-bit weights with 8-bit activations run slower" if byte_products_saturate() else "exact",
        **_torch_machine(),
    }
    engines = check_engines()
    lines = [f"{name:<14} {version}" for name, version in versions.items()]
    lines += ["", *(f"{name:<14} {value if value != [] else 'none'}" for name, value in machine.items()), ""]
    lines += [f"engine {result.name:<11} {result.verdict}" for result in engines]
    voice.result(lines, {"versions": versions, "machine": machine, "engines": [vars(result) for result in engines]})
    wrong = [result.name for result in engines if result.works and result.differing]
    if wrong:
        raise EngineMismatchError(f"engine {', '.join(wrong)} differs from the reference on this machine; do not use it, and report this")
    if not any(result.works for result in engines):
        raise typer.Exit(1)


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _torch_machine() -> dict[str, object]:
    """What training would use; a server that only predicts has no torch."""
    from importlib.util import find_spec

    from medquant.deploy.engines.base import thread_count

    if find_spec("torch") is None:
        return {"threads": thread_count(), "gpus": [], "trains_in": "nothing: torch is not installed"}
    import torch

    from medquant.train.precision import use_bfloat16

    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    device = torch.device("cuda" if gpus else "cpu")
    return {
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "trains_in": "bfloat16" if use_bfloat16("auto", device) else "float32",
    }
