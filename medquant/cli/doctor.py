"""``medquant doctor``."""

from __future__ import annotations

import typer

from medquant.cli.output import JsonOption, QuietOption, VerboseOption, Voice, guarded
from medquant.errors import EngineMismatchError


@guarded
def doctor(as_json: JsonOption = False, quiet: QuietOption = False, verbose: VerboseOption = False) -> None:
    """Show versions, devices, and which engines work here: each runs a small network and is held to the reference.

    Example: medquant doctor
    """
    import platform
    from importlib import metadata

    import torch

    import medquant
    from medquant.deploy.self_test import check_engines
    from medquant.train.precision import use_bfloat16

    voice = Voice(as_json, quiet, verbose)
    packages = ("torch", "numpy", "scipy", "scikit-image", "monai", "nibabel", "tifffile", "pydantic", "typer", "safetensors")
    versions = {
        "medquant": medquant.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    device = torch.device("cuda" if gpus else "cpu")
    machine: dict[str, object] = {
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "trains_in": "bfloat16" if use_bfloat16("auto", device) else "float32",
    }
    engines = check_engines()
    lines = [f"{name:<14} {version}" for name, version in versions.items()]
    lines += ["", *(f"{name:<14} {value if value != [] else 'none'}" for name, value in machine.items()), ""]
    lines += [f"engine {result.name:<11} {result.verdict}" for result in engines]
    voice.result("\n".join(lines), {"versions": versions, "machine": machine, "engines": [vars(result) for result in engines]})
    wrong = [result.name for result in engines if result.works and result.differing]
    if wrong:
        raise EngineMismatchError(f"engine {', '.join(wrong)} differs from the reference on this machine; do not use it, and report this")
    if not any(result.works for result in engines):
        raise typer.Exit(1)
