"""What of a configuration can only be judged with its method, its plan and its data at hand; nothing is trained for it."""

from __future__ import annotations

from medquant.config.schema import Config
from medquant.errors import ConfigError
from medquant.predict.float_predictor import Decision
from medquant.train.building import configured_method, configured_outputs


def configured_decision(config: Config) -> Decision:
    """How the output of a network that torch runs is decided."""
    chosen = config.eval
    return Decision(chosen.threshold, chosen.batch_statistics, chosen.hard_ternary)


def warm_epochs(config: Config) -> int:
    """Epochs of the float warm start; none where a network brought along takes its place."""
    return 0 if config.train.init is not None else round(config.train.epochs * config.train.warm_fraction)


def check_trainable(config: Config, is_float: bool, is_integer: bool, classes: int) -> None:
    """Refuse what would fail, or mean nothing, only after hours of training.

    Args:
        config: checked by its schema.
        is_float: whether no layer is quantized.
        is_integer: whether what is trained leaves as an integer program.
        classes: number of classes of the data.

    Raises:
        ConfigError: settings that do not go together.
    """
    _check_epochs(config)
    _check_decision(config, is_integer, classes)
    method, quant, train = configured_method(config), config.quant, config.train
    if quant.distillation > 0 and not method.learns:
        raise ConfigError(f"quant.distillation is a part of training, and method {method.name} trains nothing; leave it out")
    if quant.distillation > 0 and not train.float_twin:
        raise ConfigError("quant.distillation needs the float twin to learn from; set train.float_twin=true, or quant.distillation=0")
    if not (method.learns or is_float or train.float_twin or train.init):
        # The warm start alone is a network that is not trained to its end, or not at all.
        raise ConfigError(f"method {method.name} learns nothing and takes the finished float network; set train.float_twin=true")


def _check_epochs(config: Config) -> None:
    if warm_epochs(config) == config.train.epochs:
        raise ConfigError(
            f"train.warm_fraction {config.train.warm_fraction} leaves none of {config.train.epochs} epochs "
            "for the training after the warm start; lower it"
        )


def _check_decision(config: Config, is_integer: bool, classes: int) -> None:
    decision, outputs = configured_decision(config), configured_outputs(config, classes)
    if is_integer and not decision.is_plain:
        raise ConfigError(
            f"eval.threshold {decision.threshold}, eval.batch_statistics {str(decision.batch_statistics).lower()}: method "
            f"{config.quant.method} makes an integer program, which decides by the sign of its output (0.5) and has no batch norm; "
            "leave both out"
        )
    if decision.threshold != 0.5 and outputs != 1:
        raise ConfigError(f"eval.threshold {config.eval.threshold} decides between two classes only; leave it at 0.5")
    if config.train.loss != "ce_dice" and outputs != 1:
        raise ConfigError(f"train.loss {config.train.loss} is for two classes, found {classes}; use ce_dice")
