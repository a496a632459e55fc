"""What runs the result of a quantize stage: the backends, and what each makes of which method.

Validation, documents and the runner read this table, and nothing else says what is supported.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .algorithms import CHANNEL_TYPES, Algorithm, algorithms

_LINEAR = ("Linear", "Conv1D")
_MODULE = ("eager", "compiled", "pt2")  # the module itself, and its program
RUNTIMES = ("onnxruntime", "openvino")  # values of target.format whose files a runtime of their own runs


@dataclass(frozen=True)
class Way:
    """What a backend makes of a method.

    Attributes:
        formats: values of target.format in which the result has few bits.
        weights: bits that weights may have.
        inputs: bits that inputs may have; none: they stay as they are.
        layers: class names of the modules that it quantizes.
        granularities: of weights.
        weight_schemes: of weights.
        input_schemes: of inputs.
        observers: of calibration.
        each: entries of configList may have numbers of their own; else they select alone.
    """

    formats: tuple[str, ...]
    weights: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    inputs: tuple[int, ...] = ()
    layers: tuple[str, ...] = ()
    granularities: tuple[str, ...] = ("channel", "tensor", "group")
    weight_schemes: tuple[str, ...] = ("symmetric", "affine")
    input_schemes: tuple[str, ...] = ("affine", "symmetric")
    observers: tuple[str, ...] = ("minMax", "ema", "percentile", "kl", "mse")
    each: bool = True

    def row(self, row: Algorithm) -> Algorithm:
        """The method as it is here: fewer layers, bits and schemes."""
        schemes = tuple(each for each in row.schemes if each in (*self.weight_schemes, *self.input_schemes))
        bits = (max(row.bits[0], min(self.weights)), min(row.bits[1], max(self.weights)))
        return replace(row, default_types=self.layers or row.default_types, bits=bits, schemes=schemes)


@dataclass(frozen=True)
class Backend:
    """One backend.

    Attributes:
        name: as in `quantize.backend`.
        sentence: what it does, for documents.
        ways: by the method's name, what it makes of it; torch has one for each method.
        format: the target.format that a job with it has; None: any.
        extra: of modelpress, that brings it; None: nothing more is needed.
        quantizes: its own library quantizes the exported model of floats; else torch does.
    """

    name: str
    sentence: str
    ways: Mapping[str, Way] = field(default_factory=dict)
    format: str | None = None
    extra: str | None = None
    quantizes: bool = False

    def way(self, row: Algorithm) -> Way | None:
        """What it makes of a method; None: nothing."""
        if self.name == "torch":
            return _in_torch(row)
        if self.name == "compressed-tensors" and row.name not in self.ways and _weights_alone(row):
            return self.ways["weight_only"]
        return self.ways.get(row.name)


def backend(name: str) -> Backend:
    """The backend of this name; KeyError if nothing makes results for it."""
    return _BACKENDS[name]


def backends() -> tuple[Backend, ...]:
    """All."""
    return tuple(_BACKENDS.values())


def supported() -> list[tuple[Backend, Algorithm, Way]]:
    """Every backend with every method that it knows."""
    pairs = [(each, row) for each in backends() for row in algorithms("quantize")]
    return [(each, row, way) for each, row in pairs if (way := each.way(row)) is not None]


def _weights_alone(row: Algorithm) -> bool:
    return row.targets == ("weight",) and row.keeps_zero and not row.trains and "symmetric" in row.schemes


def _in_torch(row: Algorithm) -> Way:
    """Files of runtimes hold integers whose zero is one of them, and scales that are known beforehand."""
    portable = row.keeps_zero and row.name != "ptq_dynamic"
    return Way(
        _MODULE + (RUNTIMES if portable else ()),
        tuple(range(row.bits[0], row.bits[1] + 1)),
        tuple(range(2, 9)) if "input" in row.targets else (),
        row.default_types,
        ("channel", "tensor", "group") if row.keeps_zero else ("tensor",),
        row.schemes,
        row.schemes,
    )


_BACKENDS = {
    each.name: each
    for each in (
        Backend("torch", "the program itself, which computes in floats what the integers stand for"),
        Backend(
            "onnxruntime",
            "ONNX Runtime's own tools quantize model.onnx: weights, inputs and outputs, for its integer kernels",
            {
                "ptq_static": Way(
                    ("onnxruntime",),
                    (8,),
                    (8,),
                    ("Conv1d", "Conv2d", "Conv3d", *_LINEAR, "Embedding"),
                    ("channel", "tensor"),
                    ("symmetric",),
                    observers=("minMax", "ema", "percentile", "kl"),
                    each=False,
                ),
                "ptq_dynamic": Way(
                    ("onnxruntime",),
                    (8,),
                    (8,),
                    (*_LINEAR, "Embedding"),
                    ("channel", "tensor"),
                    ("symmetric",),
                    ("affine",),
                    (),
                    each=False,
                ),
            },
            "onnxruntime",
            "onnx",
            quantizes=True,
        ),
        Backend(
            "openvino",
            "NNCF quantizes model.xml, with SmoothQuant where there is attention, and corrects biases",
            {
                "ptq_static": Way(
                    ("openvino",),
                    (8,),
                    (8,),
                    (*CHANNEL_TYPES, "Conv1D", "Embedding"),
                    ("channel",),
                    ("symmetric",),
                    observers=("minMax",),
                    each=False,
                ),
                "weight_only": Way(
                    ("openvino",),
                    (4, 8),
                    (),
                    (*CHANNEL_TYPES, "Conv1D", "Embedding"),
                    ("channel", "group"),
                    each=False,
                ),
            },
            "openvino",
            "onnx,openvino",
            quantizes=True,
        ),
        Backend(
            "compressed-tensors",
            "the folder transformers with a quantization_config, which transformers and vLLM load",
            {
                "weight_only": Way(
                    ("transformers",), (4, 8), (), ("Linear",), ("channel", "group"), ("symmetric",), ("symmetric",)
                ),
                "ptq_dynamic": Way(
                    ("transformers",), (8,), (8,), ("Linear",), ("channel",), ("symmetric",), ("symmetric",), ()
                ),
            },
            "transformers",
            "transformers,compressed-tensors",
        ),
    )
}
