"""Everything a run can be told, with its defaults: one frozen model a subject, joined in :class:`Config`.

Names of methods, networks, datasets and engines are text here; their registries, which this package does not know, check them.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationInfo, model_validator

from medquant.config.bits import is_bits, parse_rule
from medquant.errors import UsageError


def _check_bits(bits: int, info: ValidationInfo) -> int:
    if not is_bits(bits):
        raise ValueError(f"{info.field_name} must be 1 to 8, or 32 for float; found {bits}")
    return bits


def _check_whole(value: object, info: ValidationInfo) -> object:
    # To a Literal True is 1 and 2.0 is 2, strict or not.
    if isinstance(value, bool | float):
        raise ValueError(f"{info.field_name} must be a whole number; found {value}")
    return value


def _check_side(pixels: int) -> int:
    if not 16 <= pixels <= 1024 or pixels % 8:
        raise ValueError(f"patch_size must hold multiples of 8 from 16 to 1024; found {pixels}")
    return pixels


def _check_rule(text: str) -> str:
    try:
        parse_rule(text)
    except UsageError as error:
        raise ValueError(str(error)) from error
    return text


Bits = Annotated[int, AfterValidator(_check_bits)]
PatchSide = Annotated[int, AfterValidator(_check_side)]
RuleText = Annotated[str, AfterValidator(_check_rule)]
Name = Annotated[str, Field(min_length=1)]
Spacing = Annotated[float, Field(gt=0.001, le=100)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """What all sections share: values cannot change, unknown keys and values of another type are mistakes."""

    # Strict: True is no 1 and "4" is no 4. A mistake in a file should be named, not interpreted.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataConfig(Section):
    """Which images, and how they reach the network."""

    path: Name | None = Field(default=None, description="dataset folder or official download; none: the built-in phantom")
    dataset: Name = Field(default="auto", description="dataset name in the registry, or auto: recognised by its files")
    # Not strict at this place only: a list in a file is the tuple that is meant.
    patch_size: tuple[PatchSide, PatchSide] = Field(
        default=(256, 256), strict=False, description="training patch, rows and columns in pixels, multiples of 8 from 16 to 1024"
    )
    patch_slices: int = Field(default=16, ge=2, le=512, description="slices of a training patch, for model.dimensions 3")
    batch_size: int = Field(default=4, ge=1, le=4096, description="patches in a training step")
    normalisation: Literal["zscore_slice", "zscore_volume", "range"] = Field(
        default="zscore_slice",
        description="grey values to zero mean and unit variance by slice or by volume, or the range of the training images to 0..1",
    )
    augmentation: Literal["em", "mr", "mr_sites", "ct", "none"] = Field(
        default="em", description="random changes of training patches, by kind of image"
    )
    window: tuple[float, float] | None = Field(
        default=None,
        strict=False,
        description="ends of the range normalisation in file units; none: of the training images, for CT of what is labelled there",
    )
    spacing_mm: tuple[Spacing, Spacing] | None = Field(
        default=None, strict=False, description="in-plane spacing the network sees; none: that of each file"
    )
    slice_axis: Literal["auto", "axial", "coronal", "sagittal", "stored"] = Field(
        default="auto", description="axis across which volumes are sliced; auto: that of thick slices, else axial; stored: the file's last"
    )
    region: Literal["whole", "coarse", "paper_truth_centred"] = Field(
        default="whole",
        description="what the network sees: the whole slice; the region a coarse network finds; or, not to be compared with any other "
        "figure, the crop around the truth of the 2019 paper",
    )
    region_margin_mm: float = Field(default=10.0, ge=0, le=200, description="kept around what the coarse network finds")
    raters: Literal["majority", "each", "staple"] = Field(
        default="majority", description="where several raters drew: their vote, each as a sample of training, or the STAPLE estimate"
    )
    test_site: Name | None = Field(default=None, description="site held out as the test part; none: every site in every part")
    fold: Annotated[int, Field(ge=0, lt=64)] | None = Field(default=None, description="fold that is tested, from 0; none: one fixed split")
    folds: int = Field(default=4, ge=2, le=64, description="number of folds, of neighbouring subjects or slices")
    cache: Name | None = Field(
        default=None, description="folder of decoded scans, or off; none: $MEDQUANT_CACHE or the user's cache folder"
    )
    workers: Annotated[int, Field(ge=0, le=256)] | None = Field(
        default=None,
        description="processes that load patches; 0: the training process itself; none: one, where there is a processor for it",
    )
    phantom_seed: Seed = Field(default=0, description="seed of the built-in phantom dataset")


class ModelConfig(Section):
    """Which network."""

    name: Name = Field(default="unet", description="network name in the registry")
    channels: int = Field(default=32, ge=1, le=256, description="channels of the first level")
    depth: int = Field(default=4, ge=2, le=6, description="levels of resolution, the bottom included")
    block: Literal["conv_norm_act", "conv_act_norm"] = Field(default="conv_norm_act", description="order inside a block")
    upsample: Literal["auto", "bilinear", "nearest", "transposed"] = Field(
        default="auto", description="how the decoder doubles the resolution; auto: the network's own way"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of channels dropped in float training; 0: none")
    dimensions: Annotated[Literal[2, 3], BeforeValidator(_check_whole)] = Field(default=2, description="2 for slices, 3 for volumes")
    norm: Literal["auto", "batch", "instance", "group"] = Field(
        default="auto", description="normalisation; auto: batch, which folds away exactly, where the network offers it; others stay float"
    )
    activation: Literal["auto", "relu", "leaky_relu", "prelu", "ternary_tanh"] = Field(
        default="auto",
        description="rectifier; auto: relu, which is exact, where the network offers it; others stay float; ternary_tanh: the 2019 "
        "paper's Tanh networks (unet with conv_act_norm), slope 3 to 8 over the epochs",
    )
    residual_units: int = Field(default=0, ge=0, le=4, description="residual units of a level (monai_unet), residual blocks (dynunet)")
    arguments: dict[str, JsonValue] = Field(
        default={}, description="of a network that was brought along (train.init), as its own maker wrote them; not for users to write"
    )
    deep_supervision: bool = Field(default=False, description="also train the outputs of coarser levels in float training (dynunet)")


class QuantConfig(Section):
    """How many bits, and by which method."""

    method: Name = Field(default="fixed_point", description="quantization method in the registry")
    wbits: Bits = Field(default=4, description="bits of weights, 1 to 8, or 32 for float")
    abits: Bits = Field(default=6, description="bits of activations, 1 to 8, or 32 for float")
    edge_bits: Bits = Field(
        default=8, description="bits of the weights of the first and last layer and of the image, 1 to 8, or 32 for float"
    )
    layer_bits: tuple[RuleText, ...] = Field(
        default=(), strict=False, description="rules PATTERN=W/A for single layers; the last match wins"
    )
    options: dict[str, bool | int | float | str] = Field(
        default={}, description="options of the method by its paper's names, e.g. quant.options.overflow=wrap; listed by medquant info"
    )
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="optimiser of quantized training; sgd: Nesterov, momentum 0.9")
    distillation: float = Field(
        default=0.0, ge=0, le=100, description="weight of the distance to the float twin's probabilities in the loss; 0: none"
    )
    step_lr_scale: float = Field(default=1.0, gt=0, le=1000, description="learning rate of quantizer steps, as a multiple of quant_lr")
    calibration_batches: int = Field(default=8, ge=1, le=10_000, description="training batches the first quantizer ranges are measured on")
    freeze_exponents_at: float = Field(default=0.7, ge=0, le=1, description="share of quantized training after which exponents stay")

    def record(self) -> dict[str, object]:
        """What a run was quantized with, for its records: bits, method, its options.

        What trains and is not a method's own stands among the options where it is not the default: such runs are no seeds of others.
        """
        fields = type(self).model_fields
        extra = {name: value for name in ("distillation", "optimizer") if (value := getattr(self, name)) != fields[name].default}
        return {"weights": self.wbits, "activations": self.abits, "method": self.method, "options": {**self.options, **extra}}


class TrainConfig(Section):
    """How long, how fast, where."""

    epochs: int = Field(default=40, ge=1, le=1_000_000, description="epochs in all, float warm start and quantized training together")
    warm_fraction: float = Field(default=0.6, ge=0, le=1, description="share of epochs in the float warm start")
    steps_per_epoch: int = Field(default=30, ge=1, le=1_000_000, description="training steps in an epoch")
    lr: float = Field(default=2e-3, gt=0, le=10, description="learning rate of the float warm start")
    quant_lr: float = Field(default=5e-4, gt=0, le=10, description="learning rate of quantized training")
    weight_decay: float = Field(default=1e-4, ge=0, le=10, description="decoupled weight decay")
    seed: Seed = Field(default=0, description="seed of weights, patches and augmentation")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where to train; auto: a GPU where there is one")
    amp: Literal["auto", "off", "bf16"] = Field(default="auto", description="mixed precision in training; evaluation is always exact")
    float32_epochs: int = Field(default=0, ge=0, le=1_000_000, description="last epochs trained without mixed precision")
    channels_last: bool = Field(default=True, description="store tensors channels last, which is faster")
    float_twin: bool = Field(default=True, description="also finish the float network, for comparison")
    twin_from: Name | None = Field(default=None, description="run folder whose warm start and float twin are used instead of new ones")
    init: Name | None = Field(
        default=None, description="MONAI bundle or nnU-Net result folder whose network and weights take the place of the warm start"
    )
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="processor threads; none: as many as torch takes"
    )
    validation_slices: int = Field(
        default=256, ge=1, le=1_000_000, description="slices watched after each epoch, evenly spaced over the validation cases"
    )
    loss: Literal["ce_dice", "bce_dice", "bce_dice_double_sigmoid", "dice"] = Field(
        default="ce_dice",
        description="cross-entropy plus Dice of both classes; as the 2019 paper, for two classes: half cross-entropy, half soft Dice of "
        "class 1 over the whole batch; the same of a probability taken for a logit, as its EM code has it; or that Dice alone",
    )
    schedule: Literal["cosine", "paper_steps", "cosine_to_zero"] = Field(
        default="cosine",
        description="rate over a stage: warm-up and cosine to 1 %; or, without warm-up, a tenth at every fifth of it, or cosine to 0",
    )
    clip_norm: float = Field(default=5.0, ge=0, le=1e6, description="largest norm of all gradients together; 0: any")
    select: Literal["best", "last"] = Field(default="best", description="checkpoint that is kept: best on validation, or the last")


class EvalConfig(Section):
    """What is scored, and by which engine."""

    split: Literal["train", "validation", "test"] = Field(default="test", description="part of the dataset that is scored")
    engine: Name = Field(default="auto", description="engine in the registry; auto: the fastest exact one that works here")
    threshold: float = Field(
        default=0.5, gt=0, lt=1, description="probability from which a pixel is class 1; but for 0.5 only where torch runs the network"
    )
    protocol: Literal["ours", "paper"] = Field(
        default="ours",
        description="Dice of whole cases; or, not to be compared with it, of single slices as the 2019 paper has it, an empty one being 0",
    )
    batch_statistics: bool = Field(
        default=False, description="batch norm with the statistics of the scored slices, as the 2019 paper validated EM; torch only"
    )
    hard_ternary: bool = Field(default=False, description="score model.activation ternary_tanh with its limit: -1, 0 or 1")


class CardConfig(Section):
    """``card``: what the model file says of itself to whoever gets it."""

    intended_use: str = Field(
        default="Research. Not a medical device; not validated for diagnosis or treatment.",
        max_length=4000,
        description="what the model is for, and what it is not for; travels in the model file",
    )
    licence: Annotated[str, Field(min_length=1, max_length=4000)] | None = Field(
        default=None, description="terms under which the model may be used; none: not stated"
    )


class Config(Section):
    """One run. Every field has a default, so ``Config()`` is a valid run on the phantom dataset."""

    schema_version: Annotated[Literal[1], BeforeValidator(_check_whole)] = Field(default=1, description="version of this schema")
    data: DataConfig = Field(default=DataConfig(), description="which images, and how they reach the network")
    model: ModelConfig = Field(default=ModelConfig(), description="which network")
    quant: QuantConfig = Field(default=QuantConfig(), description="how many bits, and by which method")
    train: TrainConfig = Field(default=TrainConfig(), description="how long, how fast, where")
    eval: EvalConfig = Field(default=EvalConfig(), description="what is scored, and by which engine")
    card: CardConfig = Field(default=CardConfig(), description="what the model file says of its use")

    @model_validator(mode="after")
    def _data_fit_together(self) -> Self:
        if self.data.window is not None and self.data.normalisation != "range":
            raise ValueError(f"data.window goes with data.normalisation range; found {self.data.normalisation}")
        if self.data.window is not None and not self.data.window[0] < self.data.window[1]:
            raise ValueError(f"data.window needs its lower end first; found {list(self.data.window)}")
        if self.data.fold is not None and self.data.test_site is not None:
            raise ValueError("data.fold and data.test_site both choose the test part; leave one out")
        if self.data.fold is not None and self.data.fold >= self.data.folds:
            raise ValueError(f"data.fold must be below data.folds {self.data.folds}; found {self.data.fold}")
        return self

    @model_validator(mode="after")
    def _paper_options_fit_together(self) -> Self:
        if self.model.activation == "ternary_tanh" and self.model.block != "conv_act_norm":
            raise ValueError("model.activation ternary_tanh needs model.block conv_act_norm, the order it is quantized in; set both")
        if self.eval.hard_ternary and self.model.activation != "ternary_tanh":
            raise ValueError(f"eval.hard_ternary goes with model.activation ternary_tanh; found {self.model.activation}")
        if self.eval.protocol == "paper" and self.model.dimensions == 3:
            raise ValueError("eval.protocol paper scores slices; it goes with model.dimensions 2")
        return self

    @model_validator(mode="after")
    def _patches_halve_evenly(self) -> Self:
        factor = 2 ** (self.model.depth - 1)
        if any(side % factor for side in self.data.patch_size):
            rows, columns = self.data.patch_size
            raise ValueError(
                f"data.patch_size must hold multiples of {factor} for model.depth {self.model.depth}; found [{rows}, {columns}]"
            )
        if self.model.dimensions == 3 and self.data.patch_slices % factor:
            raise ValueError(
                f"data.patch_slices must be a multiple of {factor} for model.depth {self.model.depth}; found {self.data.patch_slices}"
            )
        at_the_bottom = self.data.batch_size * (self.data.patch_size[0] // factor) * (self.data.patch_size[1] // factor)
        if at_the_bottom < 2:
            raise ValueError(
                f"data.batch_size 1 leaves one value a channel at the bottom of model.depth {self.model.depth}, too few for batch norm; "
                "use a larger data.batch_size or data.patch_size"
            )
        return self
