"""The mixedPrecision block: which layers compute in half precision."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .base import ApiModel
from .selection import ModuleEntry

HalfPrecision = Literal["bf16", "fp16"]
_OTHER = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16"}


class PrecisionEntry(ModuleEntry):
    """Selects modules.

    Selected are (opNames or opNamesRe, else all) that are of opTypes (else convolutions, linear layers and embeddings).
    `exclude` always wins. An entry that matches nothing is an error.
    """


class MixedPrecision(ApiModel):
    """Layers keep their weights and compute in half precision; what lies between them stays in single."""

    dtype: HalfPrecision = Field(
        default="bf16",
        description="bf16: the range of float32 with 8 bits of precision. fp16: 11 bits, and nothing beyond 65504.",
    )
    config_list: Annotated[list[PrecisionEntry], Field(min_length=1, max_length=128)] | None = Field(
        default=None,
        description="Which layers. Left out, or where all entries exclude: all other convolutions, linear layers and "
        "embeddings.",
    )

    other_spellings: ClassVar[dict[str, str]] = {"precision": "dtype", "precisions": "dtype"}
    other_values: ClassVar[dict[str, dict[str, str]]] = {
        "dtype": {name: f"did you mean {ours}?" for name, ours in _OTHER.items()}
    }
    value_spellings: ClassVar[dict[str, dict[str, str]]] = {"dtype": _OTHER}
