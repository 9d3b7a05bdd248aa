"""``medquant info``."""

from __future__ import annotations

from medquant.cli.output import JsonOption, QuietOption, VerboseOption, Voice, guarded


@guarded
def info(as_json: JsonOption = False, quiet: QuietOption = False, verbose: VerboseOption = False) -> None:
    """List methods, networks, engines, datasets and metrics, as found in the registries.

    Example: medquant info --json
    """
    import medquant
    from medquant.data.datasets import DATASETS
    from medquant.deploy.engines import ENGINES
    from medquant.evaluate.metrics import METRICS
    from medquant.models import MODELS
    from medquant.quant.methods import METHODS

    voice = Voice(as_json, quiet, verbose)
    found: dict[str, dict[str, str]] = {
        "methods": {name: method.summary for name, method in METHODS.items()},
        "networks": {name: network.describe() for name, network in MODELS.items()},
        "engines": {name: engine.info.summary for name, engine in ENGINES.items()},
        "datasets": {reader.name: reader.layout for reader in DATASETS},
        "metrics": dict(METRICS),
    }
    options = {
        name: {key: (field.default, field.description) for key, field in method.options_type.model_fields.items()}
        for name, method in METHODS.items()
    }
    lines = [f"medquant {medquant.__version__}"]
    for kind, entries in found.items():
        lines += ["", kind]
        for name, text in entries.items():
            lines.append(f"  {name:<19} {text}")
            if kind == "methods":
                lines += [f"      quant.options.{key}={value[0]}  {value[1]}" for key, value in options[name].items()]
    voice.result(lines, {"version": medquant.__version__, **found, "method_options": options})
