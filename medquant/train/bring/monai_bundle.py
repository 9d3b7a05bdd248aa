"""A MONAI bundle: its network by class and arguments, its weights, its classes. Configurations are data here: nothing is evaluated.

Layout: https://docs.monai.io/en/stable/mb_specification.html. A bundle's transforms are not taken over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from medquant.config.document import DocumentError, ListValue, MappingValue, Value, parse_document
from medquant.data.bounded import read_bounded, read_bounded_json
from medquant.errors import CheckpointError
from medquant.models.monai_class import TARGET, known_class, monai_class_facts
from medquant.train.bring.network import BroughtNetwork
from medquant.train.bring.weights import load_weights

_CONFIGS = ("inference.json", "inference.yaml", "inference.yml", "train.json", "train.yaml", "train.yml")
_KEYS = ("network_def", "network")
_WEIGHTS = ("model.safetensors", "model.pt")
_MOST_BYTES = 2**20
_MOST_VALUES, _DEEPEST = 1000, 8
_CLASS_NUMBER = re.compile("[0-9]{1,5}")


def is_bundle(path: Path) -> bool:
    """Whether a folder is laid out as a bundle."""
    return (path / "configs").is_dir()


def read_bundle(path: Path) -> BroughtNetwork:
    """The network of a bundle.

    Raises:
        CheckpointError: a part is missing or damaged, or the network asks for code.
        ConfigError: the network is none of the known classes, or lacks an argument.
    """
    file, config = _find_config(path)
    definition = next((config[key] for key in _KEYS if isinstance(config.get(key), Mapping)), None)
    if not isinstance(definition, Mapping):
        raise CheckpointError(f"{file}: states no network ({' or '.join(_KEYS)} with {TARGET}); name its class and arguments there")
    known_class(definition.get(TARGET))
    reader = _Arguments(file, config)
    arguments = {str(key): reader.resolved(str(key), value) for key, value in definition.items() if key != "_desc_"}
    monai_class_facts(arguments)
    weights = next((path / "models" / name for name in _WEIGHTS if (path / "models" / name).is_file()), None)
    if weights is None:
        raise CheckpointError(f"{path}: holds no models/{' or models/'.join(_WEIGHTS)}; a model.ts is a program and is not read")
    notes = ("its transforms are not taken over: data.normalisation, data.spacing_mm and data.slice_axis say how images are read",)
    return BroughtNetwork(path, "monai_class", arguments, lambda: _without_twins(load_weights(weights)), _classes(path), {}, notes)


def _find_config(path: Path) -> tuple[Path, Mapping[str, object]]:
    for name in _CONFIGS:
        file = path / "configs" / name
        if file.is_file():
            return file, _read(file)
    raise CheckpointError(f"{path}: configs/ holds none of {', '.join(_CONFIGS)}")


def _read(file: Path) -> Mapping[str, object]:
    try:
        if file.suffix == ".json":
            found = read_bounded_json(file, _MOST_BYTES)
        else:
            found = _plain(parse_document(read_bounded(file, _MOST_BYTES).decode("utf-8-sig")))
    except (OSError, ValueError, DocumentError) as error:
        raise CheckpointError(f"{file}: not readable as plain data ({error})") from error
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{file}: holds no mapping; expected a bundle's configuration")
    return found


def _plain(value: Value) -> object:
    if isinstance(value, MappingValue):
        return {entry.key: _plain(entry.value) for entry in value.entries}
    return [_plain(item) for item in value.items] if isinstance(value, ListValue) else value


@dataclass
class _Arguments:
    """The network's arguments as plain data; ``@name`` is looked up where it names a plain value of the same file.

    Args:
        file: for messages.
        config: the whole file.
        left: values that may still be read. A few references to each other make endless arguments of a short file.
    """

    file: Path
    config: Mapping[str, object]
    left: int = _MOST_VALUES

    def resolved(self, key: str, value: object, depth: int = 0) -> object:
        """An argument as plain data.

        Raises:
            CheckpointError: an expression, a marker such as ``_requires_``, or more than any network has.
        """
        self.left -= 1
        if depth > _DEEPEST or self.left < 0:
            raise CheckpointError(
                f"{self.file}: argument {key} of the network has more than {_MOST_VALUES} values or {_DEEPEST} levels, "
                "or refers to itself; write its values out"
            )
        if key.startswith("_") and key != TARGET:
            raise CheckpointError(f"{self.file}: the network asks for code: {key} is evaluated nowhere here; leave it out")
        if isinstance(value, str) and value[:1] in ("$", "%", "@"):
            return self.resolved(key, self._referred(key, value), depth + 1)
        if isinstance(value, list):
            return [self.resolved(key, item, depth + 1) for item in value]
        if isinstance(value, Mapping):
            return {str(inner): self.resolved(str(inner), item, depth + 1) for inner, item in value.items()}
        return value

    def _referred(self, key: str, text: str) -> object:
        asks = f"{self.file}: argument {key} of the network asks for code: {text[:60]!r}"
        if not text.startswith("@"):
            raise CheckpointError(f"{asks} is never evaluated; write its value")
        target = self.config.get(text[1:])
        if target is None or (isinstance(target, str) and target[:1] in ("$", "@", "%")) or isinstance(target, Mapping):
            raise CheckpointError(f"{asks} names no plain value here")
        return target


def _classes(path: Path) -> dict[int, str]:
    """Class numbers and names from ``metadata.json``, empty where it says none."""
    file = path / "configs" / "metadata.json"
    if not file.is_file():
        return {}
    found: object = _read(file)
    for key in ("network_data_format", "outputs", "pred", "channel_def"):
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping) or not all(
        _CLASS_NUMBER.fullmatch(str(number)) and isinstance(name, str) for number, name in found.items()
    ):
        return {}
    return {int(str(number)): str(name) for number, name in found.items()}


def _without_twins(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the second names a DynUNet gives its blocks."""
    return {name: tensor for name, tensor in weights.items() if not name.startswith("skip_layers.")}
