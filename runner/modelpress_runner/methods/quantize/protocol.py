"""Interface of quantizing methods."""

from __future__ import annotations

import importlib
from typing import ClassVar

import torch

from modelpress.api.stages.quantize import Numbers
from modelpress.api.v1alpha1 import Quantize
from modelpress.api.v1alpha1.algorithms import Algorithm, algorithm
from modelpress_runner.edits.quantizers import Quantizer, QuantizerSpec
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.methods.quantize.observers import observe_weight


class QuantizeMethod:
    """Says which quantizer stands before a target, and what becomes of it while a model trains.

    What can be said of a method without torch stands in its row of modelpress.api.v1alpha1.algorithms.

    Attributes:
        name: of its row.
        observes: while it trains, ranges of activations are moving averages, and those of weights follow them.
        learns: while it trains, scales are parameters.
        clamps: while it trains, weights stay within -1 and 1.
    """

    name: ClassVar[str]
    observes: ClassVar[bool] = False
    learns: ClassVar[bool] = False
    clamps: ClassVar[bool] = False

    @property
    def facts(self) -> Algorithm:
        """Its row."""
        return algorithm("quantize", self.name)

    def spec(self, target: str, numbers: Numbers, axis: int | None, group: int | None) -> QuantizerSpec:
        """What stands before a target.

        Args:
            target: weight, input or output.
            numbers: that were asked for.
            axis: of a weight, that has a scale for each entry; None: one scale.
            group: as of QuantizerSpec.
        """
        return QuantizerSpec("affine", numbers, axis, group)

    def begin(self, quantizer: Quantizer, weight: torch.Tensor, how: str) -> None:
        """Sets a weight's quantizer, by the weight as it is.

        Args:
            how: minMax or mse.
        """
        observe_weight(weight, quantizer, how)

    def start(self, quantizer: Quantizer, weight: torch.Tensor, block: Quantize) -> None:
        """As begin, with the scale rounded to the type that it is kept in."""
        self.begin(quantizer, weight, block.weight_observer)
        if (kept := scale_type(block, weight)) != quantizer.scale.dtype:
            quantizer.scale.copy_(quantizer.scale.to(kept))


def scale_type(block: Quantize, weight: torch.Tensor) -> torch.dtype:
    """In which scales are kept: files of compressed-tensors have them in the type of the weight, whose loaders multiply
    in it."""
    return weight.dtype if block.backend == "compressed-tensors" else torch.float32


def method(name: str) -> QuantizeMethod:
    """The method of this name.

    Raises:
        KeyError: the table has none of this name.
        InvalidSpecError: what its row names cannot be loaded, or is none.
    """
    place = algorithm("quantize", name).place
    module, _, attribute = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InvalidSpecError(f"the quantizing method {name} cannot be loaded from {place}: {error}") from error
    if not isinstance(found, QuantizeMethod) or found.name != name:
        raise InvalidSpecError(f"{place} is no QuantizeMethod called {name}, which its row says it is")
    return found
