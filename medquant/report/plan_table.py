"""The resolved plan of a network as a table: the bits of every layer and what they weigh."""

from __future__ import annotations

from medquant.evaluate.ledger import Ledger
from medquant.quant.plan import LayerPlan, QuantPlan
from medquant.report.tables import Alignment, Table, format_bytes


def plan_table(plan: QuantPlan, ledger: Ledger | None = None) -> Table:
    """One row a layer; with a ledger also its bytes.

    Args:
        plan: resolved bits.
        ledger: the same network weighed, or None.
    """
    rows = {row.name: row for row in ledger.rows} if ledger is not None else {}
    sizes = ("parameters", "writes") if ledger is not None else ()
    columns = ("layer", "kind", "W", "A", "weights", *sizes, "note")
    lines = []
    for layer in plan.layers:
        row = rows.get(layer.name)
        weighed = (format_bytes(row.parameter_bytes), format_bytes(row.output_bytes)) if row is not None else ("",) * len(sizes)
        count = f"{layer.weights:,}" if layer.weights else ""
        lines.append((layer.name, layer.kind, _bits(layer.weight_bits, ""), _written(layer), count, *weighed, layer.note))
    sides: list[Alignment] = ["right"] * len(columns)
    sides[0] = sides[1] = sides[-1] = "left"
    return Table(columns, tuple(lines), tuple(sides))


def _written(layer: LayerPlan) -> str:
    return _bits(layer.activation_bits, "acc")


def _bits(bits: int | None, nothing: str) -> str:
    if bits is None:
        return nothing
    return "float" if bits == 32 else str(bits)
