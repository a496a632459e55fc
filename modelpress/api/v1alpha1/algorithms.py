"""Facts about methods, without torch: types, rules, documents and the runner's registry derive from this one table.

A method is a row here and a module of its name in the room of its family, such as
`modelpress_runner/methods/prune/scores/l1.py`, which calls its object METHOD. A method of another package is
`register(Algorithm(...))` in a plug-in (modelpress.api.plugins), whose row says where its object is. A schedule is a
row and nothing else.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Family = Literal["prune", "quantize"]
# What one score of a pruning method stands for: a single weight, or an output channel with all its weights. A
# quantizing method has none.
Granularity = Literal["weight", "channel", "none"]
# What a method needs besides the model. activations: what modules take and give in a pass over calibration data, else
# over the evaluation, else in training steps. gradients: of training steps. Both are collected before each round, over
# the frozen model. evaluate: scores of the model on the way. dummy_input: something to run the model on.
Need = Literal["activations", "gradients", "evaluate", "dummy_input"]

DATA: frozenset[Need] = frozenset({"activations", "gradients"})
FAMILIES: dict[Family, str] = {
    "prune": "modelpress_runner.methods.prune.scores",
    "quantize": "modelpress_runner.methods.quantize.algorithms",
}
# Types whose output channels can be scored and physically removed; their weights can be quantized.
CHANNEL_TYPES = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Linear")


@dataclass(frozen=True)
class Algorithm:
    """One method.

    Attributes:
        name: in YAML.
        family: the block that takes it.
        granularity: what one score stands for.
        needs: what it needs besides the model.
        default_types: class names of the modules that it takes where an entry names none.
        paper: authors, year and arXiv number; "" where it is nobody's.
        sentence: what it does, in a few words, for documents and the CRD.
        aliases: what other tools call it. Python and `modelpress convert` take them, in any case, with hyphens or
            underscores or none, for the name; YAML is answered with the name.
        runner: module and attribute of its object; "": METHOD in the module of its name in the family's room.
        threshold: it takes no sparsity, and removes what scores below this.
        targets: of a quantizing method, what of a layer it quantizes if nothing is said.
        trains: a quantizing method that goes along with a training.
        bits: the bits that a quantizing method takes for weights, fewest and most.
        keeps_zero: of a quantizing method: a weight of zero stays zero.
        schemes: of a quantizing method: the schemes that it takes.
    """

    name: str
    family: Family
    granularity: Granularity
    needs: frozenset[Need]
    default_types: tuple[str, ...]
    paper: str
    sentence: str
    aliases: tuple[str, ...] = ()
    runner: str = ""
    threshold: float | None = None
    targets: tuple[str, ...] = ()
    trains: bool = False
    bits: tuple[int, int] = (2, 8)
    keeps_zero: bool = True
    schemes: tuple[str, ...] = ("affine", "symmetric")

    @property
    def structured(self) -> bool:
        """Whether it removes whole units, which a speed-up can cut out, and not single weights."""
        return self.granularity == "channel"

    @property
    def data_driven(self) -> bool:
        """Whether it looks at a pass over data."""
        return bool(self.needs & DATA)

    @property
    def data(self) -> str:
        """What of the pass it looks at, as a message says it: `gradients`."""
        return " and ".join(sorted(self.needs & DATA))

    @property
    def data_sentence(self) -> str:
        """What it needs to be given for that, for documents; "" if nothing."""
        if "gradients" in self.needs:
            return "needs an evaluator that can train"
        return "needs calibration data or an evaluator" if self.data_driven else ""

    @property
    def place(self) -> str:
        """Module and attribute of its object, as `module:attribute`."""
        return self.runner or f"{FAMILIES[self.family]}.{self.name}:METHOD"

    @property
    def described(self) -> str:
        """Name, sentence and paper: `l1: output channels of smallest norm (Li et al. 2016, arXiv 1608.08710)`."""
        return f"{self.name}: {self.sentence}" + (f" ({self.paper})" if self.paper else "")


@dataclass(frozen=True)
class SparsitySchedule:
    """How sparsity grows.

    Attributes:
        name: `type` in YAML.
        sparsity: from initial and final sparsity and the share of rounds or steps that are done, in (0, 1).
        formula: in documents, with t of n rounds done, initial sparsity i and final s.
        paper: as of an algorithm.
        at_once: reaches its end in the first round, so it takes neither rounds nor an initial sparsity.
    """

    name: str
    sparsity: Callable[[float, float, float], float]
    formula: str
    paper: str = ""
    at_once: bool = False

    @property
    def described(self) -> str:
        """Name, formula and paper."""
        return f"{self.name}: {self.formula}" + (f" ({self.paper})" if self.paper else "")


def _row(
    name: str,
    granularity: Granularity,
    sentence: str,
    paper: str = "",
    needs: Need | None = None,
    aliases: tuple[str, ...] = (),
    default_types: tuple[str, ...] = CHANNEL_TYPES,
    threshold: float | None = None,
) -> Algorithm:
    wanted: frozenset[Need] = frozenset() if needs is None else frozenset({needs})
    return Algorithm(name, "prune", granularity, wanted, default_types, paper, sentence, aliases, threshold=threshold)


def _quantizer(
    name: str,
    targets: tuple[str, ...],
    sentence: str,
    paper: str = "",
    aliases: tuple[str, ...] = (),
    *,
    needs: Need | None = None,
    trains: bool = False,
    bits: tuple[int, int] = (2, 8),
    keeps_zero: bool = True,
    schemes: tuple[str, ...] = ("affine", "symmetric"),
) -> Algorithm:
    return Algorithm(
        name,
        "quantize",
        "none",
        frozenset() if needs is None else frozenset({needs}),
        (*CHANNEL_TYPES, "Embedding", "Conv1D"),
        paper,
        sentence,
        aliases,
        targets=targets,
        trains=trains,
        bits=bits,
        keeps_zero=keeps_zero,
        schemes=schemes,
    )


_ALGORITHMS: dict[tuple[Family, str], Algorithm] = {
    (row.family, row.name): row
    for row in (
        _row(
            "level",
            "weight",
            "single weights of smallest magnitude",
            "Han et al. 2015, arXiv 1506.02626",
            aliases=("magnitude", "level_pruner", "basic_magnitude", "unstructured"),
        ),
        _row(
            "l1",
            "channel",
            "output channels of smallest L1 norm",
            "Li et al. 2016, arXiv 1608.08710",
            aliases=("l1_norm", "l1_filter", "l1filter_pruner"),
        ),
        _row(
            "l2",
            "channel",
            "output channels of smallest L2 norm",
            aliases=("l2_norm", "l2_filter", "l2filter_pruner"),
        ),
        _row("random", "channel", "output channels at random, the baseline that a score must beat"),
        _row(
            "taylor",
            "channel",
            "output channels by how little the loss would change without them, to first order",
            "Molchanov et al. 2019, arXiv 1906.10771",
            "gradients",
            ("taylor_fo", "taylorfo", "taylor_fo_weight", "taylor_fo_weight_filter", "group_taylor"),
        ),
        _row(
            "group_norm",
            "channel",
            "output channels of smallest L2 norm, with all weights that a shrink takes with them",
            "Fang et al. 2023, arXiv 2301.12900",
            aliases=("group_magnitude", "depgraph"),
        ),
        _row(
            "fpgm",
            "channel",
            "output channels nearest to the geometric median of their layer",
            "He et al. 2018, arXiv 1811.00250",
            aliases=("fpgm_filter", "fpgm_pruner"),
        ),
        _row(
            "slim",
            "channel",
            "channels whose norm has the smallest factors",
            "Liu et al. 2017, arXiv 1708.06519",
            aliases=("slim_pruner", "network_slimming", "bn_scale"),
            default_types=("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"),
        ),
        _row(
            "apoz",
            "channel",
            "output channels that are above zero most seldom",
            "Hu et al. 2016, arXiv 1607.03250",
            "activations",
            ("activation_apoz_rank", "activation_apoz_rank_filter", "apoz_rank_filter"),
        ),
        _row(
            "mean_activation",
            "channel",
            "output channels whose mean behind a ReLU is smallest",
            "Molchanov et al. 2016, arXiv 1611.06440",
            "activations",
            ("activation_mean_rank", "activation_mean_rank_filter", "activation_mean"),
        ),
        _row(
            "lamp",
            "weight",
            "single weights of smallest magnitude relative to what would be left of their layer",
            "Lee et al. 2020, arXiv 2010.07611",
        ),
        _row(
            "movement",
            "weight",
            "single weights that training moves towards zero",
            "Sanh et al. 2020, arXiv 2005.07683",
            "gradients",
            ("movement_pruner",),
        ),
        _row("gradient", "weight", "single weights of smallest gradient", "", "gradients"),
        _row(
            "snip",
            "weight",
            "single weights to which the loss is least sensitive, by |w dL/dw|",
            "Lee et al. 2018, arXiv 1810.02340",
            "gradients",
        ),
        _row(
            "snip_momentum",
            "weight",
            "as snip, S <- 0.9 S + |w dL/dw| from step to step",
            "Lee et al. 2018, arXiv 1810.02340",
            "gradients",
        ),
        _row(
            "fisher",
            "weight",
            "single weights by w^2/2 times the diagonal of the Fisher information",
            "Theis et al. 2018, arXiv 1801.05787",
            "gradients",
            ("fisher_diagonal", "hessian", "hessian_diagonal", "optimal_brain_damage"),
        ),
        _row(
            "wanda",
            "weight",
            "single weights by magnitude times the norm of their inputs, each output's own smallest",
            "Sun et al. 2023, arXiv 2306.11695",
            "activations",
        ),
        _row(
            "sparse_gpt",
            "weight",
            "single weights by what their layer's outputs lose, the others making up for it",
            "Frantar and Alistarh 2023, arXiv 2301.00774",
            "activations",
            ("sparsegpt", "sparse_gpt_pruner"),
            ("Conv1d", "Conv2d", "Linear"),
        ),
        _row("pattern_lock", "weight", "no weight but those that are zero, which stay zero", threshold=0.5),
        _quantizer(
            "ptq_static",
            ("weight", "input"),
            "weights and, by ranges that a pass over data finds, inputs",
            "Jacob et al. 2017, arXiv 1712.05877",
            ("naive", "observer", "ptq", "static", "post_training_static_quant"),
            needs="activations",
        ),
        _quantizer(
            "ptq_dynamic",
            ("weight", "input"),
            "weights, and inputs by their range in each call",
            aliases=("dynamic", "post_training_dynamic_quant"),
        ),
        _quantizer(
            "weight_only", ("weight",), "weights, rounded to the nearest", aliases=("rtn", "round_to_nearest", "woq")
        ),
        _quantizer(
            "gptq",
            ("weight",),
            "weights, column by column, what is not rounded yet making up for what was",
            "Frantar et al. 2022, arXiv 2210.17323",
            ("optq",),
            needs="activations",
        ),
        _quantizer(
            "awq",
            ("weight",),
            "weights, after those behind large inputs were scaled up and the inputs down",
            "Lin et al. 2023, arXiv 2306.00978",
            ("activation_aware",),
            needs="activations",
        ),
        _quantizer(
            "smoothquant",
            ("weight", "input"),
            "as ptq_static, after outliers of inputs were moved into weights",
            "Xiao et al. 2022, arXiv 2211.10438",
            ("smooth_quant", "sq"),
            needs="activations",
        ),
        _quantizer(
            "hqq",
            ("weight",),
            "weights, by scales and zero points of the least p-norm of errors, without data",
            "Badri and Shaji 2023, mobiusml.github.io/hqq_blog",
            ("half_quadratic",),
        ),
        _quantizer(
            "qat",
            ("weight", "input"),
            "training goes through rounded weights and inputs, with straight-through gradients",
            "Jacob et al. 2017, arXiv 1712.05877",
            ("qat_quantizer", "quant_aware_training"),
            trains=True,
        ),
        _quantizer(
            "lsq",
            ("weight", "input"),
            "as qat, and the scales learn, too",
            "Esser et al. 2019, arXiv 1902.08153",
            ("lsq_quantizer", "learned_step_size"),
            trains=True,
            schemes=("symmetric",),
        ),
        _quantizer(
            "dorefa",
            ("weight",),
            "training through weights that are a rounded tanh, inputs and outputs in [0, 1]",
            "Zhou et al. 2016, arXiv 1606.06160",
            ("dorefa_quantizer", "dorefanet"),
            trains=True,
            bits=(1, 8),
            keeps_zero=False,
            schemes=("affine",),
        ),
        _quantizer(
            "bnn",
            ("weight",),
            "training through signs",
            "Courbariaux et al. 2016, arXiv 1602.02830",
            ("bnn_quantizer", "binary"),
            trains=True,
            bits=(1, 1),
            keeps_zero=False,
            schemes=("symmetric",),
        ),
    )
}
_SCHEDULES: dict[str, SparsitySchedule] = {
    row.name: row
    for row in (
        SparsitySchedule("one_shot", lambda i, s, done: s, "s at once", at_once=True),
        SparsitySchedule("linear", lambda i, s, done: i + (s - i) * done, "i+(s-i)t/n"),
        SparsitySchedule(
            "agp",
            lambda i, s, done: s + (i - s) * (1 - done) ** 3,
            "s+(i-s)(1-t/n)^3",
            "Zhu and Gupta 2017, arXiv 1710.01878",
        ),
        SparsitySchedule(
            "exp", lambda i, s, done: 1 - (1 - i) * ((1 - s) / (1 - i)) ** done, "1-(1-i)((1-s)/(1-i))^(t/n)"
        ),
        SparsitySchedule(
            "cos", lambda i, s, done: i + (s - i) * (1 - math.cos(math.pi / 2 * done)), "i+(s-i)(1-cos(pi/2 t/n))"
        ),
        SparsitySchedule("cube", lambda i, s, done: i + (s - i) * done**3, "i+(s-i)(t/n)^3"),
    )
}
_LISTENERS: list[Callable[[], None]] = []


def algorithm(family: Family, name: str) -> Algorithm:
    """The facts of a method; KeyError if there is none of this name."""
    return _ALGORITHMS[family, name]


def algorithms(family: Family) -> tuple[Algorithm, ...]:
    """All methods of a family, shipped ones first."""
    return tuple(row for row in _ALGORITHMS.values() if row.family == family)


def names(family: Family) -> tuple[str, ...]:
    """Their names."""
    return tuple(row.name for row in algorithms(family))


def gradual() -> tuple[str, ...]:
    """Names of the schedules that take rounds, or steps."""
    return tuple(row.name for row in _SCHEDULES.values() if not row.at_once)


def schedule(name: str) -> SparsitySchedule:
    """The facts of a schedule; KeyError if there is none of this name."""
    return _SCHEDULES[name]


def schedules() -> tuple[SparsitySchedule, ...]:
    """All schedules, shipped ones first."""
    return tuple(_SCHEDULES.values())


def spellings(family: Family) -> dict[str, str]:
    """Alias -> name of all methods of a family."""
    return {alias: row.name for row in algorithms(family) for alias in row.aliases}


def register(row: Algorithm | SparsitySchedule) -> None:
    """Makes a further method or schedule known: recipes may name it from now on.

    Raises:
        ValueError: another one has this name or alias; or a method of another package does not say where it is.
    """
    if isinstance(row, SparsitySchedule):
        if _SCHEDULES.setdefault(row.name, row) != row:
            raise ValueError(f"there is a schedule called {row.name!r} already")
    elif _ALGORITHMS.get((row.family, row.name)) != row:
        taken = {*names(row.family), *spellings(row.family)}
        if twice := taken & {row.name, *row.aliases}:
            raise ValueError(f"there is a method of {row.family} called {min(twice)!r} already")
        if ":" not in row.runner:
            raise ValueError(f"the row of {row.name!r} needs runner='module:attribute', which says where its object is")
        _ALGORITHMS[row.family, row.name] = row
    for changed in _LISTENERS:
        changed()


def on_change(listener: Callable[[], None]) -> None:
    """Has `listener` called whenever a row is added; the types that list the names are built anew."""
    _LISTENERS.append(listener)
