"""``medquant doctor``."""

from __future__ import annotations

import typer

from medquant.cli.output import JsonOption, QuietOption, VerboseOption, Voice, guarded
from medquant.errors import EngineMismatchError, UsageError

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
        **_native_machine(),
    }
    engines = check_engines()
    lines = [f"{name:<14} {version}" for name, version in versions.items()]
    lines += ["", *(f"{name:<14} {_shown(value)}" for name, value in machine.items()), ""]
    lines += [f"engine {result.name:<11} {result.verdict}" for result in engines]
    voice.result(lines, {"versions": versions, "machine": machine, "engines": [vars(result) for result in engines]})
    wrong = [result.name for result in engines if result.works and result.differing]
    if wrong:
        raise EngineMismatchError(f"engine {', '.join(wrong)} differs from the reference on this machine; do not use it, and report this")
    if not any(result.works for result in engines):
        raise typer.Exit(1)


def _shown(value: object) -> str:
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _native_machine() -> dict[str, object]:
    """The kernel sets of the native library and the one in use, or why there is none; and what ``auto`` tries, in its order."""
    from medquant.deploy.engines import auto_order
    from medquant.deploy.native import chosen_kernels, load_library

    found: dict[str, object] = {"native_kernels": [], "native_uses": ""}
    try:
        library = load_library()
        found["native_kernels"] = list(library.kernels)
        found["native_uses"] = chosen_kernels(library)
    except UsageError as error:
        found["native_uses"] = f"none: {error}"
    try:
        found["auto_order"] = [engine.info.name for engine in auto_order()]
    except UsageError as error:
        found["auto_order"] = f"stops: {error}"
    return found


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
