"""One stage of training: some epochs of one network at one peak learning rate, saved after each epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from medquant.config.schema import QuantConfig, TrainConfig
from medquant.errors import ConfigError, InterruptedRunError
from medquant.quant.network import QuantNetwork
from medquant.quant.ternary_tanh import set_slope, slope_at
from medquant.train.batches import EpochBatches
from medquant.train.checkpoint import Checkpoint, has_checkpoint, load_checkpoint, save_checkpoint
from medquant.train.distributed import ALONE, Group
from medquant.train.losses import distillation_loss, segmentation_loss
from medquant.train.optimizers import make_optimizer
from medquant.train.recorder import Recorder
from medquant.train.reporting import Reporter
from medquant.train.schedule import learning_rate
from medquant.train.state import Progress, pack_state, progress_of, unpack_state
from medquant.train.whole_batch import whole_batch

Validate = Callable[[nn.Module], Mapping[str, float]]


@dataclass(frozen=True)
class StagePlan:
    """What a stage is.

    Args:
        name: ``warm``, ``float`` or ``quantized``.
        epochs: number of epochs.
        first_epoch: number of its first epoch counted over the whole run, which decides which samples it sees.
        peak_lr: highest learning rate.
        best_folder: where the best checkpoint goes, None where nobody needs one.
        float32_epochs: last epochs without autocast.
    """

    name: str
    epochs: int
    first_epoch: int
    peak_lr: float
    best_folder: Path | None
    float32_epochs: int = 0


@dataclass(frozen=True)
class Surroundings:
    """What all stages of a run share; the recorder is None in all processes but the first."""

    config: TrainConfig
    batches: EpochBatches
    validate: Validate
    recorder: Recorder | None
    reporter: Reporter
    last_folder: Path
    device: torch.device
    bfloat16: bool
    stop_requested: Callable[[], bool]
    group: Group = ALONE


class StageRunner:
    """Trains one network through one stage, resuming where the last checkpoint of that stage stands.

    Args:
        plan: the stage.
        network: what is trained, on the device already.
        around: what all stages share.
        finished: names of the stages before.
        quant: how a quantized network is trained, None for other networks.
        teacher: float network whose probabilities are learned from as well, or None.
    """

    def __init__(
        self,
        plan: StagePlan,
        network: nn.Module,
        around: Surroundings,
        finished: Iterable[str],
        quant: QuantConfig | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        self.plan, self.network, self.around, self.quant, self.teacher = plan, network, around, quant, teacher
        self.optimizer = make_optimizer(network, around.config.weight_decay, quant)
        self.progress = Progress(plan.name, finished_stages=list(finished))
        if has_checkpoint(around.last_folder):
            last = load_checkpoint(around.last_folder)
            if progress_of(last).stage == plan.name:
                self.progress = unpack_state(last, network, self.optimizer)

    def run(self) -> None:
        """Train to the end of the stage.

        Raises:
            InterruptedRunError: a stop was asked for; everything done so far is saved.
            ConfigError: the loss is no longer finite.
        """
        steps = self.around.config.steps_per_epoch
        if self.progress.epoch == 0 and self.progress.step == 0:
            # Each stage starts from the seed, so that one entered by resuming draws the same numbers (dropout).
            torch.manual_seed(self.around.config.seed)
        self.around.reporter.stage_started(self.plan.name, self.plan.epochs * steps, self.progress.epoch * steps + self.progress.step)
        while self.progress.epoch < self.plan.epochs:
            self._run_epoch()
        self.around.reporter.stage_finished()

    def _run_epoch(self) -> None:
        started, epoch, steps = time.monotonic(), self.progress.epoch, self.around.config.steps_per_epoch
        self._freeze_steps()
        # By epochs of the whole run, whichever stage they belong to, as the 2019 paper's code does.
        set_slope(self.network, slope_at(self.plan.first_epoch + epoch, self.around.config.epochs))
        self.network.train()
        self.around.group.copy_first(self.network)
        waited, asked = 0.0, time.monotonic()
        for images, labels in self.around.batches.epoch(self.plan.first_epoch + epoch, self.progress.step, steps):
            waited += time.monotonic() - asked
            self._set_rate(epoch * steps + self.progress.step)
            loss = self._step(images, labels)
            self.progress.step += 1
            self.progress.loss_sum += loss
            self.around.reporter.stepped(loss)
            if self.around.group.any(self.around.stop_requested()):
                self.around.group.first(self._save_last)
                self.around.group.told = not self.around.group.is_first
                raise InterruptedRunError(
                    f"stopped in stage {self.plan.name}, epoch {epoch + 1}; everything is saved, continue with --resume"
                )
            asked = time.monotonic()
        self._finish_epoch(started, waited)

    def _step(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        group, exact = self.around.group, self.progress.epoch >= self.plan.epochs - self.plan.float32_epochs
        if isinstance(self.network, QuantNetwork):
            steps = self.around.config.steps_per_epoch
            self.network.before_step((self.progress.epoch * steps + self.progress.step) / (self.plan.epochs * steps))
        with whole_batch(self.network, group):
            with torch.autocast(self.around.device.type, torch.bfloat16, enabled=self.around.bfloat16 and not exact):
                logits = self.network(images)
                taught = None if self.teacher is None else self.teacher(images)
            loss = segmentation_loss(logits, labels, self.around.config.loss, group)
            if taught is not None and self.quant is not None:
                loss = loss + self.quant.distillation * distillation_loss(logits, taught, group)
            loss.backward()
        group.sum_gradients(self.network.parameters())
        if isinstance(self.network, QuantNetwork):
            self.network.batch_was_shared(group.size)
        if self.around.config.clip_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.around.config.clip_norm)
        if isinstance(self.network, QuantNetwork):
            self.network.after_backward()
        self.optimizer.step()
        if isinstance(self.network, QuantNetwork):
            self.network.after_step()
        value = float(loss.detach())
        if not math.isfinite(value):
            group.told = not group.is_first
            raise ConfigError(
                f"the loss became {value} in stage {self.plan.name}, epoch {self.progress.epoch + 1}; "
                "lower train.lr or train.quant_lr, or set train.amp=off"
            )
        return value

    def _finish_epoch(self, started: float, waited: float) -> None:
        steps = self.around.config.steps_per_epoch
        self.network.eval()
        scores = self.around.group.first(lambda: dict(self.around.validate(self.network)))
        known = [score for score in scores.values() if not math.isnan(score)]
        mean = sum(known) / len(known) if known else 0.0
        record: dict[str, object] = {
            "stage": self.plan.name,
            "epoch": self.progress.epoch,
            "train_loss": self.progress.loss_sum / steps,
            "val_dice": {name: None if math.isnan(score) else score for name, score in scores.items()},
            # Of its last step, which a run stopped right after that step does not take again.
            "lr": self._rate((self.progress.epoch + 1) * steps - 1),
            "elapsed_s": round(time.monotonic() - started, 3),
            "waited_for_data_s": round(waited, 3),
        }
        self.progress.epoch += 1
        self.progress.step, self.progress.loss_sum = 0, 0.0
        # Without anything to watch, the latest network is the one to keep.
        is_best = not scores or mean > self.progress.best_score or self.around.config.select == "last"
        if is_best:
            self.progress.best_score, self.progress.best_epoch = mean, self.progress.epoch - 1
        self.around.group.first(lambda: self._save_epoch(record, is_best))
        self.around.reporter.epoch_finished(record)

    def _save_epoch(self, record: Mapping[str, object], is_best: bool) -> None:
        if is_best and self.plan.best_folder is not None:
            save_checkpoint(self.plan.best_folder, self._model_checkpoint())
        # Last of all: only now does the epoch count as done. Killed before, it is run again with the same result.
        if self.around.recorder is not None:
            self.around.recorder.append(record, self.plan.first_epoch + self.progress.epoch)
        self._save_last()

    def _model_checkpoint(self) -> Checkpoint:
        tensors = {f"model/{name}": tensor for name, tensor in self.network.state_dict().items()}
        return Checkpoint(tensors, {"stage": self.plan.name, "epoch": self.progress.best_epoch, "val_score": self.progress.best_score})

    def _save_last(self) -> None:
        save_checkpoint(self.around.last_folder, pack_state(self.network, self.optimizer, self.progress))

    def _rate(self, step: int) -> float:
        train = self.around.config
        return learning_rate(self.plan.peak_lr, step, self.plan.epochs * train.steps_per_epoch, train.schedule)

    def _set_rate(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(step) * group["scale"]

    def _freeze_steps(self) -> None:
        """Late flips of a power-of-two step change a whole channel at once, with too little time left to recover."""
        if (
            self.quant is not None
            and isinstance(self.network, QuantNetwork)
            and self.progress.epoch >= self.quant.freeze_exponents_at * self.plan.epochs
        ):
            for parameter in self.network.step_parameters():
                parameter.requires_grad_(False)
