"""What a search was asked for, checked, and what of it stands in its folder for going on later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from medquant.config.bits import MAX_BITS
from medquant.config.load import load_config
from medquant.config.schema import Config, QuantConfig
from medquant.data.bounded import read_bounded_json
from medquant.data.split import Split, SplitRule, check_no_leak, make_split
from medquant.data.volume import Dataset
from medquant.errors import CheckpointError, ConfigError, MedquantError, UsageError
from medquant.quant.formats import FLOAT_BITS
from medquant.train.run_folder import RunFolder, stored_config, write_json
from medquant.train.start import TrainRequest, open_configured, remembered_data, resolve_config

SCHEMA = 1
REQUEST_NAME = "request.json"
SENSITIVITIES = ("measured", "hessian", "both")


@dataclass(frozen=True)
class SearchSettings:
    """What is searched, beside the recipe.

    Args:
        budget: bytes of all parameters as stored, or None.
        max_dice_drop: points of validation Dice that may be lost, or None; one of the two is given.
        activation_budget: bytes of activations alive at once, None: activation bits are not searched.
        widths: channels of the first level; empty: that of the recipe.
        weight_choices: bits a layer's weights may have.
        activation_choices: bits of what a layer writes.
        seeds: each plan is trained once a seed.
        sensitivity: what drives the allocation; ``both`` trains the plans of both.
        images: validation images that are measured on, at the most.
        vectors: random vectors of the Hessian's trace.
        rounds: plans trained to find the smallest within ``max_dice_drop``, at the most.
    """

    budget: int | None = None
    max_dice_drop: float | None = None
    activation_budget: int | None = None
    widths: tuple[int, ...] = ()
    weight_choices: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8)
    activation_choices: tuple[int, ...] = (2, 3, 4, 5, 6, 8)
    seeds: tuple[int, ...] = (0,)
    sensitivity: str = "measured"
    images: int = 8
    vectors: int = 32
    rounds: int = 6

    def check(self) -> None:
        """Refuse what does not go together.

        Raises:
            UsageError: every mistake, one a line.
        """
        mistakes = []
        if (self.budget is None) == (self.max_dice_drop is None):
            found = "none" if self.budget is None else "both"
            mistakes.append(f"give either --budget or --max-dice-drop; found {found}")
        if self.max_dice_drop is not None and not 0.0 <= self.max_dice_drop <= 100.0:
            mistakes.append(f"--max-dice-drop {self.max_dice_drop}: expected points of Dice from 0 to 100, for example 0.5")
        if self.sensitivity not in SENSITIVITIES:
            mistakes.append(f"--sensitivity {self.sensitivity!r}: expected {', '.join(SENSITIVITIES)}")
        for option, values, low, high in (
            ("--wbits-choices", self.weight_choices, 1, MAX_BITS),
            ("--abits-choices", self.activation_choices, 1, MAX_BITS),
            ("--widths", self.widths or (1,), 1, 256),
            ("--seeds", self.seeds, 0, 2**32 - 1),
        ):
            if not values or any(not low <= value <= high for value in values) or len(set(values)) < len(values):
                mistakes.append(f"{option}: expected different numbers from {low} to {high}; found {', '.join(map(str, values)) or 'none'}")
        # Two rounds at the least: where the first guess fails, the largest plan has to be tried.
        for option, value, least in (("--images", self.images, 1), ("--vectors", self.vectors, 1), ("--rounds", self.rounds, 2)):
            if not least <= value <= 10_000:
                mistakes.append(f"{option} {value}: expected {least} to 10000")
        if mistakes:
            raise UsageError(*mistakes)


@dataclass(frozen=True)
class SearchRequest:
    """What was asked for.

    Args:
        given: fields of :class:`SearchSettings` that were given.
        config_file: YAML file, or None.
        overrides: ``key=value`` texts.
        options: dotted key → value of named options that were given.
        source: finished run whose float network and recipe are used, or None.
        out: the search's folder.
        resume: go on in a folder that is there.
        command: the command line, for the records.
    """

    given: Mapping[str, object]
    out: Path
    config_file: Path | None = None
    overrides: Sequence[str] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    source: Path | None = None
    resume: bool = False
    command: str = ""


@dataclass(frozen=True)
class ResolvedSearch:
    """A checked request.

    Args:
        settings: what is searched.
        config: the recipe.
        edges_open: whether nobody has set ``quant.edge_bits``.
        dataset: the data.
        split: its parts.
        source: run with a float network, or None.
        out: the search's folder, which may not be there yet.
        command: the command line.
    """

    settings: SearchSettings
    config: Config
    edges_open: bool
    dataset: Dataset
    split: Split
    source: Path | None
    out: Path
    command: str


def resolve_search(request: SearchRequest) -> ResolvedSearch:
    """Check a request and read the data; nothing is written.

    Raises:
        UsageError: options that do not go together, or a folder of another search.
        ConfigError: mistakes in the configuration, or a run of another recipe.
        InputError: the data cannot be read.
        CheckpointError: the folder or the run is damaged.
    """
    stored = _stored(request)
    settings = _settings(request, {} if stored is None else stored["settings"])
    settings.check()
    if stored is not None and request.source is not None and stored["source"] != str(request.source.resolve()):
        # Plans that are there already start from the other network, and are compared with it.
        before = stored["source"] or "float networks of its own"
        raise UsageError(
            f"--from {request.source}: the search in {request.out} started from {before}; leave it out, or choose another --out"
        )
    source = request.source or (None if stored is None or stored["source"] is None else Path(stored["source"]))
    recipe_given = bool(request.overrides or set(request.options) - {"data.path"} or request.config_file or request.source)
    if stored is not None and not recipe_given:
        config = _moved(stored_config(stored["config"], request.out / REQUEST_NAME), request.options.get("data.path"))
        edges_open, dataset = bool(stored["edges_open"]), open_configured(config)
    else:
        config, dataset, edges_open = _recipe(request, source)
    split = _split(config, dataset, source)
    if not split.validation:
        raise UsageError(f"the validation part of this split is empty ({split.rule}); a search chooses by it, so use data with more cases")
    if config.data.region == "coarse":
        raise ConfigError("data.region coarse: a search does not know what its coarse network weighs; use whole, or search without it")
    if config.train.init is not None and settings.widths:
        raise UsageError("--widths: a network that was brought along (train.init) has the width it has; leave the option out")
    settings = settings if settings.widths else replace(settings, widths=(config.model.channels,))
    if stored is not None:
        _check_same_search(stored, config, dataset, edges_open, request.out)
    return ResolvedSearch(settings, config, edges_open, dataset, split, source, request.out, request.command)


def _moved(config: Config, path: object) -> Config:
    """The same recipe over data that lie elsewhere now."""
    return config if path is None else config.model_copy(update={"data": config.data.model_copy(update={"path": str(path)})})


def _stored(request: SearchRequest) -> Mapping[str, Any] | None:
    file = request.out / REQUEST_NAME
    if not request.resume:
        RunFolder.check_free(request.out)
        return None
    try:
        document: Any = read_bounded_json(file)
        if int(document["schema"]) != SCHEMA or not {"settings", "source", "config", "edges_open", "data_sha256"} <= set(document):
            raise ValueError("not the request of a search")
    except FileNotFoundError as error:
        raise UsageError(
            f"--resume: {request.out} is not the folder of a search ({REQUEST_NAME} is missing); name one with --out"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: not readable ({type(error).__name__}: {error}); start a new search") from error
    checked: Mapping[str, Any] = document
    return checked


def _settings(request: SearchRequest, stored: Mapping[str, Any]) -> SearchSettings:
    known = {each.name for each in fields(SearchSettings)}
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items() if name in known}
    for one, other in (("budget", "max_dice_drop"), ("max_dice_drop", "budget")):
        if one in request.given and other not in request.given:
            values.pop(other, None)
    given: dict[str, Any] = dict(request.given)
    for name in ("weight_choices", "activation_choices"):
        if name in given:
            given[name] = tuple(sorted(given[name]))
    return SearchSettings(**{**values, **given})


def _recipe(request: SearchRequest, source: Path | None) -> tuple[Config, Dataset, bool]:
    """The recipe, the data, and whether the edges are open."""
    if source is None:
        config, dataset = resolve_config(TrainRequest(request.config_file, request.overrides, request.options))
        return _to_quantize(config), dataset, "edge_bits" not in config.quant.model_fields_set
    run = RunFolder.open(source)
    theirs = run.config
    sections = theirs.model_dump(mode="json")
    sections["train"].update(twin_from=None, float_twin=True)
    recipe = {
        f"{section}.{key}": value
        for section, values in sections.items()
        if isinstance(values, dict) and section != "quant"
        for key, value in values.items()
    }
    recipe["data.path"] = remembered_data(run)
    recipe["quant.calibration_batches"] = theirs.quant.calibration_batches
    config = load_config(request.config_file, recipe, request.overrides, request.options)
    dataset = open_configured(config)
    run.check_data(dataset)
    check_no_leak(dataset, run.split)
    return _to_quantize(config), dataset, "edge_bits" not in config.quant.model_fields_set


def _to_quantize(config: Config) -> Config:
    """Without what belongs to one run; a float recipe gets the default widths, which the search replaces."""
    quant, defaults = config.quant, QuantConfig()
    widths = {name: getattr(defaults, name) for name in ("wbits", "abits") if getattr(quant, name) == FLOAT_BITS}
    train = config.train.model_copy(update={"twin_from": None, "float_twin": True})
    return config.model_copy(update={"quant": quant.model_copy(update=widths), "train": train})


def _split(config: Config, dataset: Dataset, source: Path | None) -> Split:
    if source is not None:
        return RunFolder.open(source).split
    data = config.data
    return make_split(dataset, SplitRule(0, data.test_site, data.fold, data.folds))


def _check_same_search(stored: Mapping[str, Any], config: Config, dataset: Dataset, edges_open: bool, out: Path) -> None:
    theirs = stored_config(stored["config"], out / REQUEST_NAME)
    mine, other = ({**flat(each), "quant.edge_bits set": open_} for each, open_ in ((config, edges_open), (theirs, stored["edges_open"])))
    differing = sorted(key for key in mine if mine[key] != other.get(key) and key not in ("data.path", "data.cache", "data.workers"))
    if dataset.content_sha256 != stored["data_sha256"]:
        differing.append("data")
    if differing:
        raise UsageError(f"{out} holds another search ({', '.join(differing)} differ); leave those out, or choose another --out")


def flat(config: Config) -> dict[str, object]:
    """A configuration as dotted keys."""
    sections = config.model_dump(mode="json").items()
    return {f"{section}.{key}": value for section, values in sections if isinstance(values, dict) for key, value in values.items()}


def keep_request(search: ResolvedSearch) -> None:
    """Make the folder and write down what was asked for.

    Raises:
        UsageError: the folder cannot be made.
    """
    try:
        (search.out / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{search.out}: the folder cannot be made ({error.strerror}); choose another --out") from error
    document = {
        "schema": SCHEMA,
        "command": search.command,
        "settings": asdict(search.settings),
        "source": None if search.source is None else str(search.source.resolve()),
        "config": search.config.model_dump(mode="json"),
        "edges_open": search.edges_open,
        "data_sha256": search.dataset.content_sha256,
    }
    try:
        write_json(search.out / REQUEST_NAME, document)
    except MedquantError as error:
        raise UsageError(f"{search.out}: cannot be written ({error}); choose another --out") from error
