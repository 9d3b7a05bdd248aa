"""``medquant plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medquant.cli.output import JsonOption, QuietOption, VerboseOption, Voice, guarded


@guarded
def plan(
    target: Annotated[Path | None, typer.Argument(metavar="[RUN|MODEL]", help="Run folder or model file.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML configuration, instead of a run.")] = None,
    data: Annotated[Path | None, typer.Option(help="Dataset folder, for its defaults and classes. [default: built-in phantom]")] = None,
    wbits: Annotated[int | None, typer.Option(help="Bits of weights: 1 to 8, or 32 for float.")] = None,
    abits: Annotated[int | None, typer.Option(help="Bits of activations: 1 to 8, or 32 for float.")] = None,
    method: Annotated[str | None, typer.Option(help="Quantization method; medquant info lists them. [default: fixed_point]")] = None,
    layer_bits: Annotated[list[str] | None, typer.Option(help="PATTERN=W/A for some layers; repeatable.")] = None,
    override: Annotated[list[str] | None, typer.Option("-o", help="key=value of the configuration; repeatable.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show the resolved bits of each layer and what it weighs.

    Example: medquant plan --wbits 4 --abits 6 --layer-bits 'dec*=8/' -o model.channels=64
    """
    from medquant.report.plan_table import plan_table
    from medquant.report.tables import format_bytes
    from medquant.train.planning import PlanRequest, make_plan

    voice = Voice(as_json, quiet, verbose)
    given = {
        "data.path": None if data is None else str(data),
        "quant.wbits": wbits,
        "quant.abits": abits,
        "quant.method": method,
        "quant.layer_bits": layer_bits or None,
    }
    options = {key: value for key, value in given.items() if value is not None}
    planned = make_plan(PlanRequest(target, config, override or [], options))
    ledger = planned.ledger
    shape = "×".join(str(length) for length in ledger.input_shape)
    totals = [
        f"parameters   {format_bytes(ledger.parameter_bytes)} as stored, every leftover counted",
        f"paper's way  {format_bytes(ledger.paper_bytes)} (all parameters × weight bits); float {format_bytes(ledger.float_bytes)}",
        f"activations  {format_bytes(ledger.activation_peak_bytes)} at once for an image of {shape}; "
        f"float {format_bytes(ledger.float_activation_peak_bytes)}",
    ]
    floats = [layer for layer in planned.plan.layers if 32 in (layer.weight_bits, layer.activation_bits)]
    if floats:
        totals.append(f"float        in {len(floats)} of {len(planned.plan.layers)} layers: no integer program, no model file")
    elif not planned.exact:
        totals.append(f"simulation   method {planned.method} is not exact with these options: no integer program, no model file")
    voice.result("\n".join([plan_table(planned.plan, ledger).to_text(), "", *totals]), planned.to_json())
