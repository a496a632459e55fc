"""The distill block: what a model learns from, and how much of each."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from .base import ApiModel, Cel, ModuleName, cel_exactly_one, exactly_one
from .huggingface import FolderSource, HuggingFaceTask
from .model import Entrypoint, Source
from .runner import Quantity

LossType = Literal["task", "KL", "CE", "MSE", "cosine"]
LayerLoss = Literal["MSE", "cosine", "KL"]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Epochs = Annotated[int, Field(ge=1, le=100_000)]
Steps = Annotated[int, Field(ge=1, le=1_000_000_000)]

_LOSS_SPELLINGS = {"kl": "did you mean KL?", "kl_div": "did you mean KL?", "mse": "did you mean MSE?"}


class TeacherFolder(ApiModel):
    """A pretrained model of the transformers library; nothing of it is run as code."""

    source: FolderSource
    task: HuggingFaceTask = Field(description="What it was made for, as in model.huggingFace.")


class Teacher(ApiModel):
    """What the student learns from, in exactly one form. It does not train, and runs in eval mode."""

    self_: Literal[True] | None = Field(
        default=None, alias="self", description="The dense model, as it was before the first stage."
    )
    entrypoint: Entrypoint | None = Field(
        default=None,
        description="module:attribute in the code of the job: a function that returns a model, trained, or what "
        "model.entrypoint may name.",
    )
    args: dict[str, Any] | None = Field(default=None, max_length=64, description="Keyword arguments of the entrypoint.")
    weights: Source | None = Field(
        default=None,
        description="Weights for a second model of the dense one's kind: .safetensors, or .pth and .pt read with "
        "weights_only.",
    )
    hugging_face: TeacherFolder | None = Field(
        default=None, description="A model in the layout of transformers, which takes what the model takes."
    )
    student: Literal[True] | None = Field(
        default=None,
        description="The deeper layers of the model that trains: the teacher's layers in layerMappings are its own, "
        "and learn nothing by that.",
    )
    given: Literal[True] | None = Field(
        default=None,
        description="What the code gives: the teacher of its mp.Subject, of mp.compress or mp.prepare_compression, or "
        "the teacher_output of a loop's on_after_compute_loss.",
    )

    FORMS: ClassVar[tuple[str, ...]] = ("self_", "entrypoint", "weights", "hugging_face", "student", "given")
    cel_rules: ClassVar[tuple[Cel, ...]] = (
        cel_exactly_one("self", "entrypoint", "weights", "huggingFace", "student", "given"),
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        exactly_one(self, *self.FORMS)
        return self


class TeacherCache(ApiModel):
    """What the teacher gave is kept for samples that come again: in later epochs, and in other trials of a sweep.

    A sample is known by the content of all that the teacher sees of it, so augmentation makes another one of it. What
    it gives for a sample must not depend on the others in its batch.
    """

    top_k: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None,
        description="Of each output, how many of the greatest numbers are kept; the others count as equal, with their "
        "part of the softmax. Left out: all.",
    )
    max_memory: Quantity = Field(
        default="1Gi", description="What may be kept in the memory of each process; beyond it the teacher is asked."
    )

    other_spellings: ClassVar[dict[str, str]] = {"top": "top_k"}


class LayerMapping(ApiModel):
    """Layers whose outputs shall become alike. Where their widths differ, a linear map of its own trains along."""

    student: ModuleName | None = Field(default=None, description="Exact name, as in model.named_modules().")
    student_re: ModuleName | None = Field(
        default=None, description="Or a regular expression that matches whole names; each learns from its namesake."
    )
    teacher: ModuleName | None = Field(default=None, description="The same name, if left out.")
    loss_type: LayerLoss = Field(
        default="MSE",
        description="MSE: the mean square of the difference. cosine: 1 minus the cosine of the angle. KL: as of the "
        "outputs, over the last dimension.",
    )
    weight: Weight = Field(default=1.0, description="Of this loss in the sum.")

    other_spellings: ClassVar[dict[str, str]] = {"lambda": "weight", "link": "teacher", "apply_method": "loss_type"}
    other_values: ClassVar[dict[str, dict[str, str]]] = {"loss_type": _LOSS_SPELLINGS}
    cel_rules: ClassVar[tuple[Cel, ...]] = (
        cel_exactly_one("student", "studentRe"),
        Cel("!has(self.teacher) || has(self.student)", "a teacher's layer needs one of the student's"),
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        exactly_one(self, "student", "student_re")
        if self.teacher is not None and self.student is None:
            raise PydanticCustomError(
                "teacher_of_one", "a teacher's layer needs one of the student's; write student, not studentRe", {}
            )
        return self


class Distill(ApiModel):
    """Trains the model to give what a teacher gives, beside what the training itself asks of it."""

    teacher: Teacher | None = Field(
        default=None, description="Left out: what the code gives as the teacher, else the dense model (self: true)."
    )
    temperature: Annotated[float, Field(gt=0, le=1000)] = Field(
        default=1.0, description="Divides both sides' outputs in KL and CE, which weigh by its square."
    )
    loss_types: Annotated[list[LossType], Field(min_length=2, max_length=2)] = Field(
        default=["task", "KL"],
        description="Two: task (CE in other tools), the loss of the training itself; and how outputs are compared with "
        "the teacher's: KL, CE, MSE or cosine.",
    )
    loss_weights: Annotated[list[Weight], Field(min_length=2, max_length=2)] = Field(
        default=[0.5, 0.5], description="Of the two, in the sum. 0 leaves one out."
    )
    reduction: Literal["batchMean", "mean"] = Field(
        default="batchMean",
        description="Of KL and CE. batchMean: the sum over classes, its mean over samples or tokens. mean: the mean "
        "over classes, too.",
    )
    layer_mappings: Annotated[list[LayerMapping], Field(min_length=1, max_length=256)] | None = Field(
        default=None, description="Inner layers that learn, too."
    )
    teacher_cache: TeacherCache | None = Field(
        default=None, description="Keeps the teacher's outputs for samples that come again; {} is enough."
    )
    epochs: Epochs | None = Field(default=None, description="Passes over the training data.")
    max_steps: Steps | None = Field(default=None, description="Steps of the optimizer.")

    other_spellings: ClassVar[dict[str, str]] = {"max_epochs": "epochs", "steps": "max_steps"}
    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel("!(has(self.epochs) && has(self.maxSteps))", "epochs and maxSteps are two lengths; give one of them"),
        Cel("self.lossTypes[0] in ['task', 'CE']", "the first of lossTypes is task, the loss of the training itself"),
        Cel("self.lossTypes[1] in ['KL', 'CE', 'MSE', 'cosine']", "the second of lossTypes is KL, CE, MSE or cosine"),
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.epochs is not None and self.max_steps is not None:
            raise PydanticCustomError("two_lengths", "epochs and maxSteps are two lengths; give one of them", {})
        if self.loss_types[0] not in ("task", "CE"):
            raise PydanticCustomError(
                "own_loss",
                "the first of lossTypes is task, the loss of the training itself, not {given}; write task",
                {"given": self.loss_types[0]},
            )
        if self.loss_types[1] not in ("KL", "CE", "MSE", "cosine"):
            raise PydanticCustomError(
                "output_loss",
                "the second of lossTypes is KL, CE, MSE or cosine, not {given}",
                {"given": self.loss_types[1]},
            )
        return self

    @property
    def form(self) -> str | None:
        """The form of the teacher as YAML has it; None: it is left open."""
        if self.teacher is None:
            return None
        name = exactly_one(self.teacher, *Teacher.FORMS)
        return Teacher.model_fields[name].alias or name

    @property
    def output_weight(self) -> float:
        """The weight of the comparison of outputs; deeper layers of the student itself give none to compare."""
        return 0.0 if self.form == "student" else self.loss_weights[1]
