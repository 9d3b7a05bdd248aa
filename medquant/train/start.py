"""From what a user asked for to a training session: a new run, or an old one to be continued."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from pathlib import Path

import medquant
from medquant.config.load import load_config
from medquant.config.schema import Config
from medquant.data.opening import open_dataset
from medquant.data.reading import ReadOptions
from medquant.data.split import Split, SplitRule, check_no_leak, make_split
from medquant.data.stored import VOLUMES
from medquant.data.volume import Dataset
from medquant.errors import InputError, UsageError
from medquant.train.bring import read_brought
from medquant.train.building import configured_cache
from medquant.train.distributed import ALONE, Group
from medquant.train.origins import twin_folders
from medquant.train.reporting import Reporter
from medquant.train.run_folder import RUN_NAME, RUNS, RunFolder, newest_run, start_document
from medquant.train.session import TrainingSession

_SPLIT_SEED = 0
"""The split does not follow the training seed: runs of several seeds are scored on the same cases."""
_SEEN_WITHIN_S = 60.0


@dataclass(frozen=True)
class TrainRequest:
    """What was asked for.

    Args:
        config_file: YAML file, or None.
        overrides: ``key=value`` texts.
        options: dotted key → value of named options that were given.
        out: run folder, or None for a new one below ``runs/`` (with ``resume``: the newest).
        resume: continue an existing run.
        command: the command line, for ``run.json``.
        defaults: dotted key → value of what holds unless a file or an option says otherwise.
    """

    config_file: Path | None = None
    overrides: Sequence[str] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    out: Path | None = None
    resume: bool = False
    command: str = ""
    defaults: Mapping[str, object] = field(default_factory=dict)


def resolve_config(request: TrainRequest) -> tuple[Config, Dataset]:
    """The configuration of a request, the dataset's own defaults included, and the dataset.

    Raises:
        ConfigError: mistakes in the file or the options.
        InputError: the data cannot be read, or the network that was brought along does not fit them.
        CheckpointError: the network that was brought along cannot be read.
    """
    first = load_config(request.config_file, request.defaults, request.overrides, request.options)
    brought = None if first.train.init is None else read_brought(Path(first.train.init))
    dataset = open_configured(first)
    recipe = {**dataset.info.recipe, **request.defaults}
    if brought is not None:
        # The network is what it is: what suits the dataset has no say in it.
        own = {key: value for key, value in recipe.items() if not key.startswith("model.")}
        recipe = {**own, **brought.recipe, **brought.settings()}
    config = load_config(request.config_file, recipe, request.overrides, request.options)
    if brought is not None:
        brought.check_data(dataset.info)
        brought.check_config(config)
    return config, dataset


def open_configured(config: Config, path: str | None = None) -> Dataset:
    """Open the dataset a configuration names, or the one at ``path``."""
    chosen = path if path is not None else config.data.path
    options = ReadOptions(config.data.raters, configured_cache(config))
    return open_dataset(None if chosen is None else Path(chosen), config.data.dataset, config.data.phantom_seed, options)


def start_training(request: TrainRequest, reporter: Reporter, stop_requested: Callable[[], bool], group: Group = ALONE) -> TrainingSession:
    """Make or reopen the run folder and set up the session; nothing is trained yet.

    Raises:
        UsageError: the folder exists, or options that a resumed run cannot take.
        ConfigError: mistakes in the configuration.
        InputError: the data cannot be read, is empty or leaks between parts.
        CheckpointError: the run to resume is damaged or was made with other data.
    """
    if request.resume:
        return resume_training(request, reporter, stop_requested, group)
    config, dataset = group.together(lambda: resolve_config(request))
    reporter.message(dataset.recognised)
    report_brought(config, dataset, reporter)
    split = configured_split(config, dataset)
    reporter.message(f"split: {split.rule}")
    return new_session(config, dataset, split, RunPlace(request.out, request.command), reporter, stop_requested, group=group)


def configured_split(config: Config, dataset: Dataset) -> Split:
    """The parts of a dataset a new run of a configuration gets."""
    data = config.data
    return make_split(dataset, SplitRule(_SPLIT_SEED, data.test_site, data.fold, data.folds))


def report_brought(config: Config, dataset: Dataset, reporter: Reporter) -> None:
    """Check the weights of a network that was brought along, and say what is done with it.

    Raises:
        CheckpointError: they are another network's, damaged, or ask for code.
    """
    if config.train.init is None:
        return
    brought = read_brought(Path(config.train.init))
    brought.check_weights()
    reporter.message(f"{brought.place}: {brought.family}, in the place of the warm start (train.warm_fraction counts as 0)")
    for note in (*brought.notes, *brought.check_data(dataset.info)):
        reporter.message(f"note: {note}")
    reporter.message("note: the split is made here; scores mean something only on cases this network was not trained on")


@dataclass(frozen=True)
class RunPlace:
    """Where a new run goes, None for a place below ``runs/``, and the command line it notes."""

    folder: Path | None
    command: str


def new_session(
    config: Config,
    dataset: Dataset,
    split: Split,
    place: RunPlace,
    reporter: Reporter,
    stop_requested: Callable[[], bool],
    kind: Callable[..., TrainingSession] = TrainingSession,
    group: Group = ALONE,
) -> TrainingSession:
    """A session in a new run folder; what it starts from is checked before the folder is made. ``kind`` makes the session.

    Raises:
        UsageError: the folder exists.
        ConfigError: mistakes in the configuration, or it does not go with what the run starts from.
        CheckpointError: what it starts from is damaged, or was made with other data.
    """
    folder = Path(group.first(lambda: str(place.folder or _new_folder(config, dataset))))
    group.first(lambda: RunFolder.check_free(folder))
    run = RunFolder(folder, start_document(config, dataset, split, place.command))
    session = group.together(lambda: kind(config, dataset, split, run, reporter, stop_requested, group))
    group.agree(_at_work(config, dataset, split))
    twin = config.train.twin_from
    if twin is not None:
        group.together(lambda: twin_folders(session, Path(twin)))
    # Made last: a mistake in the request leaves no folder behind.
    group.first(lambda: _make(folder, run))
    session.run_folder = run
    group.together(lambda: _wait_for(folder))
    return session


def _make(folder: Path, run: RunFolder) -> None:
    RunFolder.create(folder, run.document)


def _wait_for(folder: Path) -> None:
    """Every process reads what the first one writes; a network file system may show it a little later.

    Raises:
        UsageError: it is not seen here.
    """
    until = time.monotonic() + _SEEN_WITHIN_S
    while not (folder / RUN_NAME).is_file():
        if time.monotonic() > until:
            raise UsageError(f"{folder}: the run folder is not seen on {platform.node()}; choose an --out that all machines share")
        time.sleep(0.2)


def _at_work(config: Config, dataset: Dataset, split: Split) -> dict[str, str]:
    """What all processes must have alike."""
    # The place of the data may differ from machine to machine, their content may not.
    dumped = config.model_dump(mode="json")
    dumped["data"] = {key: value for key, value in dumped["data"].items() if key not in ("path", "cache", "workers")}
    return {
        "medquant": medquant.__version__,
        "torch": metadata.version("torch"),
        "the data": dataset.content_sha256[:12],
        "the split": _digest(split.to_json()),
        "a configuration": _digest(dumped),
    }


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def resume_training(request: TrainRequest, reporter: Reporter, stop_requested: Callable[[], bool], group: Group = ALONE) -> TrainingSession:
    """Reopen a run; its configuration is the one it was started with."""
    folder = request.out or _newest(group)
    if folder is None:
        raise UsageError(f"--resume: no run found in {RUNS}/; name the run folder with --out")
    changed = sorted(set(request.options) - {"data.path"}) + [text.partition("=")[0] for text in request.overrides]
    if changed or request.config_file is not None:
        raise UsageError(
            f"--resume continues {folder} with the configuration it was started with; "
            f"leave out {', '.join(changed) or '--config'}, or start a new run"
        )
    session = group.together(
        lambda: open_session(RunFolder.open(folder), request.options.get("data.path"), reporter, stop_requested, group)
    )
    group.agree(_at_work(session.config, session.dataset, session.split))
    reporter.message(f"continuing {folder}")
    before = session.run_folder.document.get("processes", 1)
    if session.run_folder.document.get("device") is not None and before != group.size:
        reporter.message(f"note: with {group.size} processes, before with {before}; results agree up to rounding, not to the bit")
    return session


def _newest(group: Group) -> Path | None:
    found = group.first(lambda: str(newest_run(RUNS) or ""))
    return Path(found) if found else None


def open_session(
    run: RunFolder, data_path: object, reporter: Reporter, stop_requested: Callable[[], bool], group: Group = ALONE
) -> TrainingSession:
    """A session over an existing run, its data read again and checked against the run's digest.

    Args:
        run: the run.
        data_path: folder of the data, None for the one the run remembers.
        reporter: told of every event.
        stop_requested: see :class:`TrainingSession`.
        group: likewise.

    Raises:
        CheckpointError: the data are not those of the run.
    """
    path = data_path if data_path is not None else remembered_data(run)
    config = _with_known_cache(run.config)
    if data_path is None and path is not None and not Path(str(path)).exists():
        raise InputError(f"{run.path}: its data were at {path}, where nothing is now; say where they are with --data")
    dataset = open_configured(config, None if path is None else str(path))
    run.check_data(dataset)
    split = run.split
    check_no_leak(dataset, split)
    return TrainingSession(config, dataset, split, run, reporter, stop_requested, group)


def remembered_data(run: RunFolder) -> str | None:
    """Where the data of a run were, None for the built-in phantom."""
    stored = run.document.get("data")
    path = stored.get("path") if isinstance(stored, Mapping) else None
    return None if path is None else str(path)


def _with_known_cache(config: Config) -> Config:
    """A run may come from elsewhere: its cache is used where it is one, and is not made at a place that nobody here has chosen."""
    named = config.data.cache
    if named in (None, "off") or (Path(str(named)) / VOLUMES).is_dir():
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"cache": None})})


def _new_folder(config: Config, dataset: Dataset) -> Path:
    quant = config.quant
    bits = "float" if quant.wbits == quant.abits == 32 else f"w{quant.wbits}a{quant.abits}"
    stem = f"{dataset.info.name}-{bits}-seed{config.train.seed}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
    folder, count = RUNS / stem, 2
    while folder.exists():
        folder, count = RUNS / f"{stem}-{count}", count + 1
    return folder
