"""The stages of a recipe. A stage holds exactly one method block and may have a name."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic.alias_generators import to_camel, to_snake
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from . import algorithms
from .amounts import Duration, Epochs, Scores, SizeBudget, Steps
from .base import ApiModel, Cel, ModuleName, Name, cel_exactly_one, exactly_one, in_words, plain, plain_text, rebuild
from .distill import Distill
from .distill_blocks import DistillBlocks
from .drop import DropExperts, DropLayers
from .mixed_precision import MixedPrecision
from .quantize import Quantize
from .search import Search
from .sparsify import Sparsify

if TYPE_CHECKING:
    PruneAlgorithm = str
    ScheduleType = str
else:  # the rows of algorithms.py; `_follow` keeps the types that use them up to date
    PruneAlgorithm = Literal[algorithms.names("prune")]
    ScheduleType = Literal[tuple(row.name for row in algorithms.schedules())]
Scope = Literal["local", "global"]
Reconstruct = Literal["none", "bias", "leastSquares", "batchNorm", "auto"]
Sparsity = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Threshold = Annotated[float, Field(ge=-1e15, le=1e15)]  # the API server compares whole numbers in 64 bits
Pattern = Annotated[
    str,
    Field(
        max_length=16,
        pattern=r"^(1xchannel|channelx1|[1-9][0-9]{0,3}x[1-9][0-9]{0,3}|[1-9][0-9]{0,2}:[1-9][0-9]{0,2})$",
    ),
]
RoundTo = Annotated[
    str,
    Field(
        max_length=4,
        pattern=r"^(auto|[1-9][0-9]{0,3})$",
        json_schema_extra={"x-kubernetes-int-or-string": True, "minimum": 1, "maximum": 9999},
    ),
    BeforeValidator(plain_text),
]
LoopStep = Annotated[int, Field(ge=0, le=1_000_000_000)]
Rounds = Annotated[int, Field(ge=1, le=1000)]


def _other_algorithms() -> dict[str, str]:
    """What other tools call an algorithm -> what to write."""
    hints = {alias: f"did you mean {name}?" for alias, name in algorithms.spellings("prune").items()}
    for row in algorithms.algorithms("prune"):
        if row.data_driven:
            what = f"write algorithm: {row.name}, and progressiveSteps: 4 in its schedule"
            hints |= dict.fromkeys((f"{row.name}_progressive",), what)
    for name in algorithms.gradual():
        what = f"it is a schedule: write schedule: {{type: {name}}}, and l1 or level here"
        hints |= dict.fromkeys((name, f"{name}_pruner"), what)
    ticket = "write schedule: {type: exp, rounds: 5, rewindTo: 0, train: {epochs: 1}}, and l1 or level here"
    admm = "write sparsify: {penalty: admm, epochs: 3}, and l1 or level here"
    hints |= dict.fromkeys(("lottery_ticket", "lottery_ticket_pruner"), ticket)
    hints |= dict.fromkeys(("admm", "admm_pruner"), admm)
    for name in ("sensitivity", "simulated_annealing", "net_adapt"):
        hints |= dict.fromkeys((name, f"{name}_pruner"), f"write search: {{type: {name}}}, and l1 or level here")
    compress = "write search: {type: auto_compress} and sparsify: {penalty: admm, epochs: 3}, and l1 or level here"
    hints |= dict.fromkeys(("auto_compress", "auto_compress_pruner"), compress)
    amc = "write budget: {metric: macs, maxRatio: 0.5} in place of sparsities, and l1 or taylor here"
    return hints | dict.fromkeys(("amc", "amc_pruner"), amc)


def _known_algorithms() -> dict[str, str]:
    """What other tools call an algorithm, as `plain` has it -> its name."""
    return {plain(alias): name for alias, name in algorithms.spellings("prune").items()}


# Keys of other tools that stand elsewhere here, or under no name at all -> what to write.
_IN_SCHEDULE = "it belongs into schedule: {startStep, endStep, frequency}; move it there"
_SPARED = "what is to be spared has an entry of its own in configList: {%s: [...], exclude: true}"
_ELSEWHERE = {
    **dict.fromkeys(("start_step", "end_step", "pruning_frequency", "update_frequency_on_step"), _IN_SCHEDULE),
    "sparsity_decay_type": "it is the type of schedule; move it there, as in schedule: {type: exp}",
    "total_sparsity": "write it as sparsity, with scope: global",
    "expand_op_names": "write one entry for each layer; then each has a value of its own",
    **dict.fromkeys(("exclude_op_names", "exclude_module_names", "exclude_names"), _SPARED % "opNames"),
    **dict.fromkeys(("excluded_op_names", "excluded_names", "exclude_op_names_re"), _SPARED % "opNamesRe"),
    **dict.fromkeys(("exclude_op_types", "excluded_op_types"), _SPARED % "opTypes"),
}


def _schedule_text() -> str:
    rows = " ".join(f"{row.described}." for row in algorithms.schedules())
    return (
        f"Sparsity after round t of n, from initial i to target s. {rows} By steps: t-startStep of endStep-startStep."
    )


def _schedule_rules() -> tuple[Cel, ...]:
    others = in_words(algorithms.gradual())
    return tuple(
        Cel(f"self.type != '{row.name}' || self.rounds == 1", f"{row.name} has one round; set type to {others}")
        for row in algorithms.schedules()
        if row.at_once
    )


def _algorithm_text() -> str:
    return " ".join(
        "; ".join(filter(None, (row.described, row.data_sentence))) + "." for row in algorithms.algorithms("prune")
    )


class EntrySchedule(ApiModel):
    """How the sparsity of one config entry grows, over the rounds of its stage or over the steps of a training."""

    type: ScheduleType = Field(default="one_shot", description=_schedule_text())
    rounds: Rounds = Field(default=1, description="Rounds until the target is reached.")
    initial_sparsity: Sparsity = Field(default=0.0, description="Sparsity before the first round, or at startStep.")
    start_step: LoopStep | None = Field(
        default=None,
        description="Only in the course of a training (a together, model.script, mp.prepare_compression): how many "
        "optimizer steps are done when pruning begins; 0: before the first.",
    )
    end_step: LoopStep | None = Field(
        default=None, description="Steps done when the target is reached; one_shot reaches it at startStep."
    )
    frequency: Steps | None = Field(
        default=None, description="Steps between two prunings from startStep on; 1 if left out. endStep prunes, too."
    )
    progressive_steps: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=1,
        description="Only in the course of a training: in so many equal parts sparsity grows between two prunings, in "
        "place of at once.",
    )

    other_spellings: ClassVar[dict[str, str]] = {
        "pruning_frequency": "frequency",
        "update_frequency_on_step": "frequency",
    }
    cel_rules: ClassVar[tuple[Cel, ...]] = _schedule_rules()

    @model_validator(mode="after")
    def _one_shot_has_one_round(self) -> Self:
        if algorithms.schedule(self.type).at_once and self.rounds != 1:
            raise PydanticCustomError(
                "one_shot_rounds",
                "{name} has one round; set type to {others}, or leave rounds out",
                {"name": self.type, "others": in_words(algorithms.gradual())},
            )
        return self


class Schedule(EntrySchedule):
    """How sparsity grows over rounds, and how the model is trained after each of them."""

    train: Duration | None = Field(default=None, description="Training after each round; none if left out.")
    rewind_to: LoopStep | None = Field(
        default=None,
        description="Lottery ticket (Frankle and Carbin 2018, arXiv 1803.03635; to a later step: Frankle et al. 2019, "
        "arXiv 1912.05671): the model is trained before the first round, too, and after each round what is left gets "
        "the weights back that it had after so many optimizer steps of the stage; 0: those that the stage began with.",
    )


_ONE_AMOUNT = Cel(
    "!(has(self.sparsity) && has(self.sparsityThreshold))",
    "sparsity and sparsityThreshold are two ways to say how much; give one of them",
)
# Of other tools: keys of entries and of the stage alike.
_SPELLINGS = {
    "sparse_ratio": "sparsity",
    "target_sparsity": "sparsity",
    "sparse_threshold": "sparsity_threshold",
    "pruning_type": "algorithm",
    "prune_type": "algorithm",
    "pruner": "algorithm",
    "prune_domain": "scope",
    "pruning_scope": "scope",
    "min_sparse_ratio": "min_sparsity",
    "max_sparse_ratio": "max_sparsity",
    "min_sparsity_ratio_per_op": "min_sparsity",
    "max_sparsity_ratio_per_op": "max_sparsity",
    "max_sparsity_ratio_per_layer": "max_sparsity",
    "max_sparsity_per_layer": "max_sparsity",
}


def _one_amount(block: "ConfigEntry | Prune") -> None:
    if block.sparsity is not None and block.sparsity_threshold is not None:
        raise PydanticCustomError("two_amounts", _ONE_AMOUNT.message, {})


class ConfigEntry(ApiModel):
    """Selects modules and says how to prune them.

    Selected are (opNames or opNamesRe, else all) that are of opTypes (else the method's own types). Later entries
    override earlier ones, field by field; `exclude` always wins. An entry that matches nothing is an error.
    """

    op_types: Annotated[list[ModuleName], Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="Class names of modules. 'default' stands for the types the method prunes."
    )
    op_names: Annotated[list[ModuleName], Field(min_length=1, max_length=1024)] | None = Field(
        default=None, description="Exact names, as in model.named_modules()."
    )
    op_names_re: Annotated[list[ModuleName], Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="Regular expressions that match a whole name."
    )
    exclude: bool = Field(default=False, description="Leave the selected modules alone, whatever other entries say.")
    sparsity: Sparsity | None = Field(
        default=None, description="Share of output channels (structured methods) or of weights (level) to remove."
    )
    sparsity_threshold: Threshold | None = Field(
        default=None, description="In place of a sparsity: what scores below it is removed."
    )
    min_sparsity: Share | None = Field(default=None, description="In place of the stage's.")
    max_sparsity: Share | None = Field(default=None, description="In place of the stage's.")
    algorithm: PruneAlgorithm | None = Field(default=None, description="In place of the stage's.")
    pattern: Pattern | None = Field(default=None, description="In place of the stage's.")
    scope: Scope | None = Field(default=None, description="In place of the stage's.")
    global_group: Name | None = Field(
        default=None,
        description="With scope global: ranked together are the modules that have the same group, algorithm, pattern "
        "and sparsity.",
    )
    round_to: RoundTo | None = Field(default=None, description="In place of the stage's.")
    schedule: EntrySchedule | None = None

    other_spellings: ClassVar[dict[str, str]] = {
        **_SPELLINGS,
        "sparsity_per_layer": "sparsity",
        "pruning_op_types": "op_types",
        "prune_layer_type": "op_types",
        "global_group_id": "global_group",
    }
    elsewhere: ClassVar[dict[str, str]] = _ELSEWHERE
    other_values: ClassVar[dict[str, dict[str, str]]] = {"algorithm": _other_algorithms()}
    value_spellings: ClassVar[dict[str, dict[str, str]]] = {"algorithm": _known_algorithms()}
    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            "!self.exclude || !(has(self.sparsity) || has(self.algorithm) || has(self.scope) || has(self.schedule))",
            "an excluding entry takes no sparsity, algorithm, scope or schedule",
        ),
        Cel(
            "!self.exclude || !(has(self.sparsityThreshold) || has(self.minSparsity) || has(self.maxSparsity) || "
            "has(self.pattern) || has(self.globalGroup) || has(self.roundTo))",
            "an excluding entry takes nothing but selectors",
        ),
        _ONE_AMOUNT,
    )

    @model_validator(mode="after")
    def _exclude_alone(self) -> Self:
        selects = {"op_types", "op_names", "op_names_re", "exclude"}
        settings = [name for name in type(self).model_fields if name not in selects and getattr(self, name) is not None]
        if self.exclude and settings:
            raise PydanticCustomError(
                "exclude_alone",
                "an excluding entry takes no {given}; remove it or 'exclude'",
                {"given": to_camel(settings[0])},
            )
        _one_amount(self)
        return self


class Prune(ApiModel):
    """Removes weights or channels. algorithm, schedule, scope and sparsity are defaults that entries override."""

    algorithm: PruneAlgorithm = Field(
        default="l1",
        description=_algorithm_text(),
    )
    config_list: Annotated[list[ConfigEntry], Field(min_length=1, max_length=128)]
    sparsity: Sparsity | None = Field(default=None, description="For entries that give none.")
    sparsity_threshold: Threshold | None = Field(
        default=None, description="For entries that give neither it nor a sparsity: what scores below is removed."
    )
    exact: bool = Field(
        default=True,
        description="Only channels go whose removal changes nothing that masks have not changed. false: also those "
        "that a LayerNorm takes its statistics over (hidden width of BERT, ViT, ConvNeXt); how much that moves the "
        "outputs, before any training, is told.",
    )
    min_sparsity: Share | None = Field(default=None, description="The least share that each layer loses.")
    max_sparsity: Share | None = Field(default=None, description="The most that each layer loses, whatever is asked.")
    pattern: Pattern | None = Field(
        default=None,
        description="What is removed as one, of methods that score single weights; a block's score is the mean of its "
        "weights. NxM: N outputs by M inputs (1x1: single weights). N:M: of every M inputs of an output the N best are "
        "kept. channelx1: an input channel. 1xchannel: an output channel, as structured methods have it.",
    )
    round_to: RoundTo | None = Field(
        default=None,
        description="What is kept of a layer's channels is rounded up to a multiple of it. auto: 16 for a target on a "
        "GPU, else 8.",
    )
    scope: Scope = Field(
        default="local",
        description="local: the share within each layer. global: one ranking over all layers that have the "
        "same algorithm and sparsity.",
    )
    schedule: Schedule = Field(default_factory=Schedule)
    scores: Scores | None = Field(
        default=None, description="How algorithms that look at data collect their scores, before each round."
    )
    budget: SizeBudget | None = Field(
        default=None,
        description="In place of sparsities: units go where the least score is lost for what is saved (Dantzig 1957), "
        "until the model fits. min/maxSparsity and roundTo hold. The shares are solved once, before the first round.",
    )
    budgets: Annotated[list[SizeBudget], Field(min_length=1, max_length=16)] | None = Field(
        default=None,
        description="Several budgets of one metric, largest first: the recipe is run for each, from the same scores, "
        "and every size is an artifact of its own, sizes/00 and so on. The job's own is the smallest that meets all "
        "constraints; where none does, the largest.",
    )
    search: Search | None = Field(
        default=None, description="Finds the sparsity of each layer by scores, in place of one sparsity for all."
    )
    sparsify: Sparsify | None = Field(
        default=None, description="Training with a term in the loss that drives what will be removed towards zero."
    )
    reconstruct: Reconstruct = Field(
        default="none",
        description="What comes back without training or labels, over calibration data, behind each round's masks. "
        "bias: layers that lost inputs get their mean (An et al. 2023, arXiv 2312.11983). leastSquares: they are "
        "refitted to their dense outputs by ridge regression (He et al. 2017, arXiv 1707.06168). batchNorm: statistics "
        "are taken anew (Li et al. 2020, arXiv 2007.02491). auto: what scores best of all these and of none.",
    )
    shrink: bool = Field(default=True, description="Physically shrink the model. level has nothing to shrink.")
    shrink_timeout_seconds: Annotated[int, Field(ge=1, le=86_400)] | None = Field(
        default=None,
        description="How long a shrink whose proof has failed may look for the channels that are at fault. What is not "
        "proven by then stays in the model. Default: 60 s or the time of 30 proofs, the longer, but at most 1800 s.",
    )

    earlier_names: ClassVar[dict[str, str]] = {"speedup": "shrink", "speedupTimeoutSeconds": "shrinkTimeoutSeconds"}
    other_spellings: ClassVar[dict[str, str]] = _SPELLINGS
    elsewhere: ClassVar[dict[str, str]] = {
        **_ELSEWHERE,
        **dict.fromkeys(
            ("op_types", "op_names", "op_names_re", "pruning_op_types", "prune_layer_type", "exclude"),
            "it selects modules, so it stands in an entry of configList; move it there",
        ),
    }
    other_values: ClassVar[dict[str, dict[str, str]]] = {"algorithm": _other_algorithms()}
    value_spellings: ClassVar[dict[str, dict[str, str]]] = {"algorithm": _known_algorithms()}
    cel_rules: ClassVar[tuple[Cel, ...]] = (_ONE_AMOUNT,)

    @model_validator(mode="after")
    def _one(self) -> Self:
        _one_amount(self)
        return self


class Finetune(Duration):
    """Trains the compressed model."""


class _OneBlock(ApiModel):
    """What holds exactly one method block."""

    METHODS: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="after")
    def _one(self) -> Self:
        exactly_one(self, *self.METHODS)
        return self

    @property
    def method(self) -> str:
        """The name of the block that is set, in camelCase."""
        return to_camel(exactly_one(self, *self.METHODS))

    @property
    def block(self) -> ApiModel:
        """The block that is set."""
        block = getattr(self, exactly_one(self, *self.METHODS))
        assert isinstance(block, ApiModel)
        return block

    @classmethod
    def add_method(cls, name: str, block: type[ApiModel]) -> None:
        """Lets it hold a further block, under the camelCase key `name`; what holds it follows."""
        field = to_snake(name)
        cls.model_fields[field] = FieldInfo(annotation=block | None, default=None, alias=name)  # type: ignore[arg-type]
        cls.METHODS = (*cls.METHODS, field)
        cls.cel_rules = (cel_exactly_one(*(to_camel(each) for each in cls.METHODS)),)
        rebuild(cls)


class TogetherPart(_OneBlock):
    """A stage that goes along with the training of a together."""

    prune: Prune | None = None
    distill: Distill | None = None
    quantize: Quantize | None = None

    METHODS: ClassVar[tuple[str, ...]] = ("prune", "distill", "quantize")
    cel_rules: ClassVar[tuple[Cel, ...]] = (cel_exactly_one(*METHODS),)


class Together(ApiModel):
    """One training that several stages go along with, in their order.

    Its length is epochs or maxSteps; in a loop of the user's own (model.script, mp.prepare_compression) neither, for
    the loop trains.
    """

    epochs: Epochs | None = Field(default=None, description="Passes over the training data.")
    max_steps: Steps | None = Field(default=None, description="Steps of the optimizer.")
    of: Annotated[list[TogetherPart], Field(min_length=1, max_length=16)] = Field(
        description="What goes along. A loss goes through them in this order, and so does each step; what they "
        "do behind the training, such as a shrink, comes in this order, too. Schedules count optimizer steps."
    )

    other_spellings: ClassVar[dict[str, str]] = {"max_epochs": "epochs", "steps": "max_steps"}
    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel("!(has(self.epochs) && has(self.maxSteps))", "epochs and maxSteps are two lengths; give one of them"),
    )

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.max_steps is not None:
            raise PydanticCustomError("two_lengths", "epochs and maxSteps are two lengths; give one of them", {})
        return self


class Stage(_OneBlock):
    """One step of a recipe."""

    name: Name | None = Field(default=None, description="For reports; its method and number if left out.")
    prune: Prune | None = None
    drop_layers: DropLayers | None = None
    drop_experts: DropExperts | None = None
    finetune: Finetune | None = None
    distill: Distill | None = None
    distill_blocks: DistillBlocks | None = None
    quantize: Quantize | None = None
    mixed_precision: MixedPrecision | None = None
    together: Together | None = None

    METHODS: ClassVar[tuple[str, ...]] = (
        *("prune", "drop_layers", "drop_experts", "finetune", "distill", "distill_blocks", "quantize"),
        *("mixed_precision", "together"),
    )
    cel_rules: ClassVar[tuple[Cel, ...]] = (cel_exactly_one(*map(to_camel, METHODS)),)


def _follow() -> None:
    """Lets the types take what the table of algorithms has now."""
    names: Any = Literal[algorithms.names("prune")]
    for holder, annotation in ((Prune, names), (ConfigEntry, names | None)):
        holder.model_fields["algorithm"].annotation = annotation
        holder.other_values = {"algorithm": _other_algorithms()}
        holder.value_spellings = {"algorithm": _known_algorithms()}
    Prune.model_fields["algorithm"].description = _algorithm_text()
    types: Any = Literal[tuple(row.name for row in algorithms.schedules())]
    for schedule in (EntrySchedule, Schedule):
        schedule.model_fields["type"].annotation = types
        schedule.model_fields["type"].description = _schedule_text()
        schedule.cel_rules = _schedule_rules()
    rebuild(EntrySchedule, Schedule, ConfigEntry, Prune)


algorithms.on_change(_follow)
