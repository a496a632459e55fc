"""Which model a job compresses, where its code is, and where its artifacts go."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic.alias_generators import to_camel

from .base import ApiModel, Cel, Name, Uri, cel_exactly_one, exactly_one
from .code import RelativePath, SecretReference, Sha256
from .huggingface import HuggingFace
from .meta import ObjectName


class Source(ApiModel):
    """One file in an object store or on disk."""

    uri: Uri = Field(description="s3://, gs://, az://, file:// or, on one machine, a path.")
    sha256: Sha256 | None = Field(default=None, description="Checked after the download when given.")


Entrypoint = Annotated[
    str,
    Field(
        max_length=512,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$",
    ),
]


class Model(ApiModel):
    """The dense model, in exactly one of the forms that it can be given in."""

    entrypoint: Entrypoint | None = Field(
        default=None,
        description="module:attribute. A CompressionModule, or a function that returns (model, evaluator) or an "
        "mp.Subject. Called again, it must give the same weights.",
    )
    hugging_face: HuggingFace | None = Field(
        default=None, description="A pretrained model of the transformers library; no code is needed."
    )
    script: RelativePath | None = Field(
        default=None,
        description="A Python file with a training loop of its own, below the code's folder: train.py. It hands its "
        "model to mp.prepare_compression, which takes the stages from here, and calls the callbacks that it gets.",
    )
    args: dict[str, Any] | None = Field(
        default=None,
        max_length=64,
        description="Keyword arguments of the entrypoint; of a script the options of its command line, without "
        "the dashes before them: epochs, batch-size.",
    )
    weights: Source | None = Field(
        default=None,
        description="Weights to load into the model: .safetensors, or .pth and .pt read with weights_only.",
    )

    FORMS: ClassVar[tuple[str, ...]] = ("entrypoint", "hugging_face", "script")
    cel_rules: ClassVar[tuple[Cel, ...]] = (cel_exactly_one(*map(to_camel, FORMS)),)

    @model_validator(mode="after")
    def _one(self) -> Self:
        exactly_one(self, *self.FORMS)
        return self

    @property
    def form(self) -> str:
        """The name of the form that is set."""
        return exactly_one(self, *self.FORMS)


class VolumeClaim(ApiModel):
    """A PersistentVolumeClaim in the same namespace, that every pod of the job may mount at once."""

    name: ObjectName = Field(description="Its name.")
    sub_path: RelativePath | None = Field(default=None, description="Folder of the volume; none: its root.")


class Store(ApiModel):
    """Where trials and models are kept."""

    uri: Uri = Field(description="s3://bucket/prefix, gs://, az://, file:///path, or, on one machine, a path.")
    path: Uri | None = Field(
        default=None,
        description="A folder, relative to where the command runs. Local runs use it, whatever stands beside it.",
    )
    endpoint: Uri | None = Field(default=None, description="Endpoint of an S3-compatible server.")
    region: Annotated[str, Field(max_length=64)] | None = Field(default=None, description="Region of the bucket.")
    secret_ref: SecretReference | None = Field(
        default=None,
        description="Its keys are environment variables of the pods: AWS_ACCESS_KEY_ID, GOOGLE_SERVICE_ACCOUNT_KEY, "
        "AZURE_STORAGE_ACCOUNT_KEY, ... None: workload identity. Local runs have their own environment.",
    )
    volume_claim: VolumeClaim | None = Field(
        default=None,
        description="Mounted at the path of a file:// store, which needs it on a cluster. Local runs use the folder of "
        "that path.",
    )


class Target(ApiModel):
    """The form that size, latency and final score are measured on."""

    format: Literal["eager", "compiled", "pt2", "transformers", "onnxruntime", "openvino"] = Field(
        default="eager",
        description="eager: the module itself. compiled: the module under torch.compile, which needs a C++ compiler "
        "where it runs on a CPU. pt2: the exported program, as mp.load opens it. transformers: the "
        "model as from_pretrained reads it; of huggingFace alone, and only where a configuration can say what was cut "
        "away. onnxruntime: model.onnx, run by ONNX Runtime; needs the extra onnx. openvino: model.xml and model.bin, "
        "run by OpenVINO; needs the extras onnx and openvino.",
    )
    device: Literal["cpu", "cuda"] = Field(
        default="cpu",
        description="Where latency is measured. cuda: on one GPU, by its own events; not with pt2, onnxruntime "
        "and openvino, which are exported on the CPU and run there.",
    )
    uniform: bool = Field(
        default=False,
        description="Layers that are alike but for their number keep one width, however a global ranking or a budget "
        "shares out, so that a configuration (intermediate_size, num_attention_heads) says it.",
    )


class Benchmark(ApiModel):
    """How latency is measured: dense and compressed model in turn, in one process, with pinned threads."""

    warmup: Annotated[int, Field(ge=0, le=10_000)] = Field(default=5, description="Untimed calls before the timed.")
    iterations: Annotated[int, Field(ge=1, le=100_000)] = Field(default=50, description="Timed calls of each model.")
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = Field(default=1, description="Samples in each call.")
    cores_per_instance: Annotated[int, Field(ge=1, le=1024)] = Field(default=1, description="Threads of the model.")


class FreeAxis(ApiModel):
    """An axis of an input whose size is not fixed."""

    axis: Annotated[int, Field(ge=1, le=15)] = Field(description="From 0, which is the batch and always free.")
    name: Name = Field(description="Its name in the file; axes of one name have one size.")


ExportFormat = Literal["pt2", "safetensors", "onnx", "openvino"]


class Export(ApiModel):
    """The files that the artifact has, besides model.safetensors and, where the model exports, model.pt2."""

    formats: Annotated[list[ExportFormat], Field(max_length=8)] = Field(
        default=["pt2", "safetensors"],
        description="pt2, safetensors: written always, named or not. onnx: model.onnx, compared with the module by "
        "ONNX Runtime; the run fails where the model has no such form. Needs the extra onnx. openvino: model.xml "
        "and model.bin, alike. Needs the extras onnx and openvino.",
    )
    dynamic_axes: (
        Annotated[dict[Name, Annotated[list[FreeAxis], Field(min_length=1, max_length=15)]], Field(max_length=64)]
        | None
    ) = Field(
        default=None,
        description="Axes that stay free in exported files, besides the batch, by the name of the input: a parameter "
        "of the model's forward.",
    )

    def free_axes(self) -> dict[str, dict[int, str]]:
        """{input: {axis: name}}."""
        return {name: {each.axis: each.name for each in axes} for name, axes in (self.dynamic_axes or {}).items()}
