"""The quantize block: which numbers of a model get few bits, how many, and how their range is found."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from . import algorithms, backends
from .base import ApiModel, Cel, ModuleName, cel_exactly_one, exactly_one, plain, rebuild

if TYPE_CHECKING:
    QuantizeAlgorithm = str
else:  # the rows of algorithms.py; `_follow` keeps the types that use them up to date
    QuantizeAlgorithm = Literal[algorithms.names("quantize")]
Target = Literal["weight", "input", "output"]
Targets = Annotated[list[Target], Field(min_length=1, max_length=3)]
Scheme = Literal["affine", "symmetric"]
Granularity = Literal["tensor", "channel", "group"]
Observer = Literal["minMax", "ema", "percentile", "kl", "mse"]
Backend = Literal["torch", "onnxruntime", "openvino", "torchao", "compressed-tensors"]
Epochs = Annotated[int, Field(ge=1, le=100_000)]
Steps = Annotated[int, Field(ge=1, le=1_000_000_000)]
GroupSize = Annotated[int, Field(ge=2, le=65_536)]
# One for all targets, or a map of targets to their own. What a map holds is judged with the stage's other rules: the
# schema of an API server has no such union.
Bits = Annotated[int, Field(ge=1, le=8)] | Annotated[dict[str, Any], Field(min_length=1, max_length=3)]
Dtype = (
    Annotated[str, Field(max_length=8, pattern=r"^u?int[2-8]$")]
    | Annotated[dict[str, Any], Field(min_length=1, max_length=3)]
)
# Eight bits as floats, by the names that other tools have for them.
FP8 = (
    "fp8 is for GPUs of compute capability 8.9 and above, and no backend of this version makes files whose kernels "
    "compute in it there; write int8"
)
_FP8_NAMES = ("fp8", "float8", "e4m3", "e5m2", "fp8_e4m3", "fp8_e5m2", "float8_e4m3fn", "float8_e5m2", "w8a8_fp8")
# As one for all: a scheme, or a map.
Schemes = (
    Annotated[str, Field(max_length=16, pattern=r"^(affine|symmetric)$")]
    | Annotated[dict[str, Any], Field(min_length=1, max_length=3)]
)

_SPELLINGS = {
    "quant_types": "targets",
    "target_names": "targets",
    "quant_scheme": "scheme",
    "quantizer": "algorithm",
    "approach": "algorithm",
    "percdamp": "damping",
    "damp_percent": "damping",
    "dampening_frac": "damping",
    "desc_act": "act_order",
    "actorder": "act_order",
    "smooth_quant_alpha": "alpha",
    "smoothing_strength": "alpha",
}
_ELSEWHERE = {
    "quant_start_step": "write it as startStep, beside algorithm",
    "fuse_names": "norms behind convolutions are found and folded; foldBatchNorm: false leaves them",
    **dict.fromkeys(
        ("exclude_op_names", "exclude_module_names"),
        "what is to be spared has an entry of its own in configList: {opNames: [...], exclude: true}",
    ),
}


def is_fp8(text: str) -> bool:
    """Whether a type is one of eight-bit floats, by whatever name."""
    return plain(text) in {plain(name) for name in _FP8_NAMES}


def _other_algorithms() -> dict[str, str]:
    """What other tools call an algorithm -> what to write."""
    return {alias: f"did you mean {name}?" for alias, name in algorithms.spellings("quantize").items()}


def _known_algorithms() -> dict[str, str]:
    """What other tools call an algorithm, as `plain` has it -> its name."""
    return {plain(alias): name for alias, name in algorithms.spellings("quantize").items()}


def _algorithm_text() -> str:
    return " ".join(
        "; ".join(filter(None, (row.described, row.data_sentence))) + "." for row in algorithms.algorithms("quantize")
    )


def _backend_text() -> str:
    said = " ".join(f"{each.name}: {each.sentence}." for each in backends.backends())
    return f"What runs the result. {said} Which takes which algorithm and numbers is a table of the reference."


class QuantizeEntry(ApiModel):
    """Selects modules and says how to quantize them.

    Selected are (opNames or opNamesRe, else all) that are of opTypes (else the method's own types). Later entries
    override earlier ones, field by field; `exclude` always wins. An entry that matches nothing is an error.
    """

    op_types: Annotated[list[ModuleName], Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="Class names of modules. 'default' stands for the types the method quantizes."
    )
    op_names: Annotated[list[ModuleName], Field(min_length=1, max_length=1024)] | None = Field(
        default=None, description="Exact names, as in model.named_modules()."
    )
    op_names_re: Annotated[list[ModuleName], Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="Regular expressions that match a whole name."
    )
    exclude: bool = Field(default=False, description="Leave the selected modules alone, whatever other entries say.")
    targets: Targets | None = Field(default=None, description="In place of the stage's.")
    quant_dtype: Dtype | None = Field(default=None, description="In place of the stage's.")
    quant_bits: Bits | None = Field(default=None, description="In place of the stage's.")
    scheme: Schemes | None = Field(default=None, description="In place of the stage's.")
    granularity: Granularity | None = Field(default=None, description="In place of the stage's.")
    group_size: GroupSize | None = Field(default=None, description="In place of the stage's.")

    other_spellings: ClassVar[dict[str, str]] = {
        key: value for key, value in _SPELLINGS.items() if value not in ("algorithm", "damping", "act_order", "alpha")
    }
    other_values: ClassVar[dict[str, dict[str, str]]] = {"quant_dtype": dict.fromkeys(_FP8_NAMES, FP8)}
    elsewhere: ClassVar[dict[str, str]] = _ELSEWHERE
    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            "!self.exclude || !(has(self.targets) || has(self.granularity) || has(self.groupSize))",
            "an excluding entry takes nothing but selectors",
        ),
    )

    @model_validator(mode="after")
    def _exclude_alone(self) -> Self:
        typed = ("targets", "granularity", "group_size")
        settings = [name for name in typed if getattr(self, name) is not None]
        if self.exclude and settings:
            raise PydanticCustomError(
                "exclude_alone",
                "an excluding entry takes no {given}; remove it or 'exclude'",
                {"given": to_camel(settings[0])},
            )
        return self


class Calibration(ApiModel):
    """How ranges of activations are found: by a pass over calibration data, else over the evaluation."""

    observer: Observer = Field(
        default="minMax",
        description="minMax: the least and the greatest value. ema: their moving average over batches. percentile: "
        "the range that leaves out the outermost values. kl: the range whose distribution the quantized one is "
        "nearest to. mse: the range of the least squared error.",
    )
    steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="Batches that are looked at, at most; all, if left out."
    )
    percentile: Annotated[float, Field(gt=50, le=100)] = Field(
        default=99.99, description="Of observer percentile: the share of values, in percent, below the greatest."
    )


class BitBudget(ApiModel):
    """How many bits, bytes or ms the result may have; exactly one of max and maxRatio. Bits of each layer are solved
    for it."""

    metric: Literal["effectiveBits", "sizeBytes", "latencyMs"] = Field(
        description="effectiveBits: of the selected layers' weights, scales among them, by the number of weights. "
        "sizeBytes: of the result, as measured in the target's format. latencyMs: of a call of it there, worked out "
        "from a table of what each layer takes alone with each number of bits, and measured at the end."
    )
    max: Annotated[float, Field(gt=0)] | None = Field(default=None, description="Greatest value.")
    max_ratio: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="Greatest share of what it is when the stage begins."
    )
    bits: Annotated[list[Annotated[int, Field(ge=2, le=8)]], Field(min_length=1, max_length=7)] = Field(
        default_factory=lambda: [4, 8], description="What a layer's weights may have."
    )
    keep_float: bool = Field(default=True, description="Layers may also stay as they are.")

    cel_rules: ClassVar[tuple[Cel, ...]] = (cel_exactly_one("max", "maxRatio"),)

    @model_validator(mode="after")
    def _one(self) -> Self:
        exactly_one(self, "max", "max_ratio")
        return self


class TuneCriterion(ApiModel):
    """What the quantized model's score may lose against that of the model when the stage begins."""

    metric: Annotated[str, Field(min_length=1, max_length=63)] = Field(
        default="default", description="One that the evaluator returns."
    )
    goal: Literal["maximize", "minimize"] | None = Field(
        default=None, description="Of the metric; of default that of the job, of others maximize, if left out."
    )
    relative: Annotated[float, Field(ge=-1, le=1)] | None = Field(
        default=None, description="Greatest loss as a share of the score; 0.01 if neither is given."
    )
    absolute: float | None = Field(default=None, description="Greatest loss in units of the score.")

    other_spellings: ClassVar[dict[str, str]] = {"higher_is_better": "goal"}
    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel("!(has(self.relative) && has(self.absolute))", "relative and absolute are two bounds; give one of them"),
    )

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if self.relative is not None and self.absolute is not None:
            raise PydanticCustomError("two_bounds", "relative and absolute are two bounds; give one of them", {})
        return self


class Tune(ApiModel):
    """Tries which layers are quantized, and with which observers, until the score is within bounds; the best is taken
    in any case."""

    strategy: Literal["basic", "mse", "bayesian", "random", "exhaustive"] = Field(
        default="basic",
        description="basic: observers for all layers, then types of layers left as they are, then layers by what the "
        "score gains without them. mse: layers by the error that they make in the model's outputs. bayesian: TPE. "
        "random. exhaustive: all combinations, those with most layers quantized first.",
    )
    criteria: Annotated[list[TuneCriterion], Field(min_length=1, max_length=8)] = Field(
        default_factory=lambda: [TuneCriterion()], description="All must hold."
    )
    timeout: Annotated[int, Field(ge=0, le=31_536_000)] = Field(
        default=0, description="Seconds of trials, after which no other begins; 0: the first success ends it."
    )
    max_trials: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=100, description="Quantized and scored, at most."
    )
    quant_level: Annotated[int, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="0: types of layers are quantized one after another, those stay that keep the score. 1: the "
        "strategy, from everything quantized. Left out: 0, and then 1 unless all types stayed.",
    )

    other_spellings: ClassVar[dict[str, str]] = {
        "tolerable_loss": "criteria",
        "accuracy_criterion": "criteria",
        "criterion": "criteria",
    }


class Quantize(ApiModel):
    """Gives weights, inputs and outputs of layers few bits. All but configList are defaults that entries override."""

    algorithm: QuantizeAlgorithm = Field(default="ptq_static", description=_algorithm_text())
    backend: Backend = Field(
        default="torch",
        description=_backend_text(),
    )
    config_list: Annotated[list[QuantizeEntry], Field(min_length=1, max_length=128)]
    targets: Targets | None = Field(
        default=None, description="What of a layer is quantized; the algorithm's own, if left out."
    )
    quant_dtype: Dtype | None = Field(
        default=None,
        description="int8, uint4 and so on; one, or a map {weight: int4, input: uint8}. Symmetric int8 has the numbers "
        "-127 to 127.",
    )
    quant_bits: Bits | None = Field(
        default=None,
        description="In place of quantDtype: how many bits, one number or a map {weight: 4, input: 8}; symmetric ones "
        "are signed, affine ones are not. 8 if both are left out.",
    )
    scheme: Schemes | None = Field(
        default=None,
        description="symmetric: zero is the middle. affine: the range is what the values need. One, or a map of "
        "targets. Left out: weights symmetric, inputs and outputs affine.",
    )
    granularity: Granularity | None = Field(
        default=None,
        description="What of a weight has a scale of its own: each output channel, which it is if left out, each group "
        "of groupSize values of a channel, or all of it (tensor; dorefa and bnn know nothing else). Inputs and "
        "outputs have one.",
    )
    group_size: GroupSize | None = Field(default=None, description="With granularity group; 128 if left out.")
    weight_observer: Literal["minMax", "mse"] = Field(
        default="minMax",
        description="How the range of weights is found: all of it, or that of the least squared error.",
    )
    calibration: Calibration | None = Field(
        default=None,
        description="Of ptq_static and smoothquant; of what trains, for the ranges that it begins with; and its "
        "steps of gptq and awq.",
    )
    damping: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.01,
        description="Of gptq: so much of the mean second moment of its inputs is added to that of each.",
    )
    act_order: bool = Field(
        default=False,
        description="Of gptq: columns of large inputs are rounded first; scales of groups are those of the weights as "
        "they were.",
    )
    alpha: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5,
        description="Of smoothquant: how much of the outliers moves into weights; 0: weights are evened out instead.",
    )
    budget: BitBudget | None = Field(
        default=None, description="Solves the bits of each layer's weights, by what each does to the model's outputs."
    )
    tune: Tune | None = Field(
        default=None, description="Of what does not train: leaves layers as they are until scores are within bounds."
    )
    keep_only_if_faster: bool = Field(
        default=False,
        description="Of what does not train: a layer is quantized only where it was measured to be at least 2 % faster "
        "for it, alone and in the target's format; others stay as they are.",
    )
    fold_batch_norm: bool = Field(
        default=True,
        description="Norms right behind a selected convolution or linear layer become part of its weights first, where "
        "example inputs prove that the outputs stay the same.",
    )
    start_step: Annotated[int, Field(ge=0, le=1_000_000_000)] = Field(
        default=0, description="Of what trains: optimizer steps before anything is quantized."
    )
    epochs: Epochs | None = Field(default=None, description="Of what trains: passes over the training data.")
    max_steps: Steps | None = Field(default=None, description="Of what trains: steps of the optimizer.")

    other_spellings: ClassVar[dict[str, str]] = {
        **_SPELLINGS,
        "max_epochs": "epochs",
        "steps": "max_steps",
        "quant_start_step": "start_step",
    }
    elsewhere: ClassVar[dict[str, str]] = {
        **{key: text for key, text in _ELSEWHERE.items() if key != "quant_start_step"},
        **dict.fromkeys(
            ("op_types", "op_names", "op_names_re", "exclude"),
            "it selects modules, so it stands in an entry of configList; move it there",
        ),
        "effective_bits": "write budget: {metric: effectiveBits, max: ...}",
        "quant_level": "it stands in tune; move it there",
    }
    other_values: ClassVar[dict[str, dict[str, str]]] = {
        "algorithm": _other_algorithms(),
        "quant_dtype": dict.fromkeys(_FP8_NAMES, FP8),
    }
    value_spellings: ClassVar[dict[str, dict[str, str]]] = {"algorithm": _known_algorithms()}
    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel("!(has(self.epochs) && has(self.maxSteps))", "epochs and maxSteps are two lengths; give one of them"),
    )

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.max_steps is not None:
            raise PydanticCustomError("two_lengths", "epochs and maxSteps are two lengths; give one of them", {})
        return self


def _follow() -> None:
    """Lets the type take what the table of algorithms has now."""
    names: Any = Literal[algorithms.names("quantize")]
    Quantize.model_fields["algorithm"].annotation = names
    Quantize.model_fields["algorithm"].description = _algorithm_text()
    Quantize.other_values = {**Quantize.other_values, "algorithm": _other_algorithms()}
    Quantize.value_spellings = {"algorithm": _known_algorithms()}
    rebuild(Quantize)


algorithms.on_change(_follow)
