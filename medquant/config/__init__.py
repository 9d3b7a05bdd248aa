"""What a run is asked to do: the schema, how it is put together from files and options, and bits of single layers. Knows no torch."""

from __future__ import annotations

from medquant.config.bits import BitRule, parse_rule, parse_rules, resolve
from medquant.config.load import dump_config, load_config
from medquant.config.schema import Config, DataConfig, EvalConfig, ModelConfig, QuantConfig, TrainConfig

__all__ = [
    "BitRule",
    "Config",
    "DataConfig",
    "EvalConfig",
    "ModelConfig",
    "QuantConfig",
    "TrainConfig",
    "dump_config",
    "load_config",
    "parse_rule",
    "parse_rules",
    "resolve",
]
