"""``medquant prepare``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medquant.cli.output import JsonOption, QuietOption, VerboseOption, Voice, guarded
from medquant.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from medquant.data.prepare.downloads import Prepared

_DATASETS = {"spinal-gm": "spinal_gm", "isbi-em": "isbi_em", "pancreas-ct": "pancreas_ct"}
_PHANTOM = "phantom"


@guarded
def prepare(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="spinal-gm, isbi-em, pancreas-ct or phantom.")],
    raw: Annotated[str, typer.Argument(metavar="RAW", help="Folder of the download; for phantom: whose layout (spinal-gm ..).")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, new or empty.")],
    layout: Annotated[
        str | None, typer.Option(help="nnunet or msd; for phantom also official or older. [default: nnunet; phantom: official]")
    ] = None,
    raters: Annotated[
        str | None, typer.Option(help="spinal-gm: majority or staple; phantom spinal-gm: how many. [default: majority; 4]")
    ] = None,
    subjects: Annotated[int | None, typer.Option(help="Phantom: subjects (spinal-gm: a site).")] = None,
    sites: Annotated[int | None, typer.Option(help="Phantom spinal-gm: sites.")] = None,
    slices: Annotated[int | None, typer.Option(help="Phantom: slices of a scan.")] = None,
    size: Annotated[int | None, typer.Option(help="Phantom: columns and rows.")] = None,
    spacing_mm: Annotated[float | None, typer.Option(help="Phantom: in-plane spacing.")] = None,
    seed: Annotated[int | None, typer.Option(help="Phantom: seed. [default: 0]")] = None,
    label_fault: Annotated[str | None, typer.Option(help="Phantom pancreas-ct: plant a fault, mirrored or origin.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Turn a download into a dataset folder other tools read too, or generate a phantom in a download's layout.

    Example: medquant prepare pancreas-ct downloads/Pancreas-CT Dataset101_Pancreas --layout nnunet
    """
    voice = Voice(as_json, quiet, verbose)
    made: dict[str, object] = {
        "subjects": subjects,
        "sites": sites,
        "slices": slices,
        "size": size,
        "spacing_mm": spacing_mm,
        "label_fault": label_fault,
    }
    if dataset == _PHANTOM:
        done = _phantom(raw, out, layout, raters, seed or 0, made, voice)
    else:
        given = [name.replace("_", "-") for name, value in {**made, "seed": seed}.items() if value is not None]
        if given:
            raise UsageError(f"--{', --'.join(given)} only goes with phantom, found dataset {dataset}; leave it out")
        done = _download(dataset, Path(raw), out, layout, raters, voice)
    document = {"dataset": done.dataset, "layout": done.layout, "cases": done.cases, "recognised": done.recognised, "out": str(out)}
    voice.result([done.recognised, f"{done.cases} labelled cases written to {out}/ ({done.layout})"], document)


def _download(dataset: str, raw: Path, out: Path, layout: str | None, raters: str | None, voice: Voice) -> Prepared:
    from medquant.data.prepare.downloads import prepare_download
    from medquant.data.prepare.layouts import FOLDER_LAYOUTS
    from medquant.data.reading import ReadOptions
    from medquant.data.stored import ArrayCache

    if dataset not in _DATASETS:
        raise UsageError(unknown_name("dataset", dataset, (*_DATASETS, _PHANTOM)))
    wanted = next((each for each in FOLDER_LAYOUTS if each == (layout or "nnunet")), None)
    if wanted is None:
        raise UsageError(unknown_name("layout", str(layout), FOLDER_LAYOUTS))
    if raters is not None and (dataset != "spinal-gm" or raters not in ("majority", "staple")):
        raise UsageError(f"found --raters {raters} for {dataset}; expected majority or staple, for spinal-gm only")
    cache = ArrayCache(ArrayCache.default_folder())
    options = ReadOptions(raters="staple", cache=cache) if raters == "staple" else ReadOptions(cache=cache)
    with _Counter(voice) as counter:
        return prepare_download(_DATASETS[dataset], raw, out, wanted, options, counter)


def _phantom(kind: str, out: Path, layout: str | None, raters: str | None, seed: int, made: dict[str, object], voice: Voice) -> Prepared:
    from typing import get_args

    from medquant.data.prepare.phantoms import PhantomLayout, PhantomRequest, prepare_phantom

    name = {**_DATASETS, **{value: value for value in _DATASETS.values()}}.get(kind)
    if name is None:
        raise UsageError(unknown_name("phantom", kind, _DATASETS))
    layouts: tuple[PhantomLayout, ...] = get_args(PhantomLayout)
    if layout is not None and layout not in layouts:
        raise UsageError(unknown_name("layout", layout, layouts))
    if raters is not None and not raters.isdecimal():
        raise UsageError(f"found --raters {raters}, expected a number of raters for the phantom")
    if made["label_fault"] not in (None, "mirrored", "origin"):
        raise UsageError(unknown_name("label fault", str(made["label_fault"]), ("mirrored", "origin")))
    options = {**made, "raters": None if raters is None else int(raters)}
    request = PhantomRequest(kind=name, layout=layout or "official", seed=seed, **options)  # type: ignore[arg-type]
    with _Counter(voice) as counter:
        return prepare_phantom(request, out, counter)


class _Counter:
    """Says which case is being written: in one changing line on a terminal, in lines when asked to be verbose."""

    def __init__(self, voice: Voice) -> None:
        self._voice = voice
        self._on_terminal = sys.stderr.isatty() and not voice.quiet
        self._count = 0

    def __enter__(self) -> _Counter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._on_terminal and self._count:
            print(file=sys.stderr)

    def __call__(self, what: str) -> None:
        self._count += 1
        if self._on_terminal:
            print(f"\r\x1b[K{self._count}: {what}", end="", file=sys.stderr, flush=True)
        elif self._voice.verbose:
            self._voice.say(what)
