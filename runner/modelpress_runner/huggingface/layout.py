"""The compressed model as save_pretrained writes it, where a configuration can say what it has become."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from modelpress_runner.edits.quantize import quantized_layers
from modelpress_runner.export.layout import Layout, LayoutError
from modelpress_runner.huggingface import compressed_tensors
from modelpress_runner.huggingface.gaps import without_gaps
from modelpress_runner.huggingface.per_layer import PerLayerLayout
from modelpress_runner.huggingface.saving import save_as, whole_or_gone, without_cache
from modelpress_runner.huggingface.source import Pretrained, quiet
from modelpress_runner.huggingface.widths import compare, configurations, nearest, shapes_of
from modelpress_runner.runtime.preserve import untouched


class PretrainedLayout:
    """Writes a compressed form of one pretrained model as a folder that transformers loads.

    Args:
        pretrained: the dense model with its processor. Its cache of keys and values is switched off from here on, as
            no stage wants it; what is written has the setting of the source.
    """

    name = "transformers"

    def __init__(self, pretrained: Pretrained) -> None:
        self._config = copy.deepcopy(pretrained.model.config)
        self._class, self._processor = type(pretrained.model), pretrained.processor
        self.auto_class = pretrained.auto_class
        self.otherwise: Layout | None = PerLayerLayout(self._config, self._class, self._processor)
        if getattr(pretrained.model.config, "use_cache", None):
            pretrained.model.config.use_cache = False

    def write(self, model: nn.Module, dummy_input: Any, folder: Path) -> None:
        """Writes config.json, model.safetensors and the processor's files, and proves that they give the same model.

        Args:
            model: the compressed model; it stays as it is.
            dummy_input: example inputs for the proof.
            folder: made by this, and removed again when it fails.

        Raises:
            LayoutError: no configuration says what the model has become, or what was read back differs.
        """
        if not isinstance(model, self._class):
            raise LayoutError(f"it has become a {type(model).__name__}, which transformers does not load")
        written, base = without_gaps(model, self._config)
        config = self._fitting(written, base)
        quantized = bool(quantized_layers(written))
        if quantized:
            config.quantization_config = compressed_tensors.configuration(written)
        with whole_or_gone(folder), quiet(), untouched(model):
            if quantized:
                self._save_quantized(written, config, folder)
            else:
                save_as(written, config, folder)
            self._processor.save_pretrained(folder)
            again = self.open(folder)
            compare(written, again, model, dummy_input)

    def open(self, folder: Path) -> Any:
        """The model in a folder that `write` wrote, in eval mode and without its cache of keys and values."""
        import transformers

        with quiet(), compressed_tensors.silent():
            model = getattr(transformers, self.auto_class).from_pretrained(
                folder, dtype="auto", use_safetensors=True, trust_remote_code=False, local_files_only=True
            )
        return without_cache(model).eval()

    def _save_quantized(self, model: Any, config: Any, folder: Path) -> None:
        folder.mkdir(parents=True)
        config.architectures = [self._class.__name__]
        config.dtype = model.dtype
        config.save_pretrained(folder)
        generation = getattr(model, "generation_config", None)
        if generation is not None:
            generation.save_pretrained(folder)
        save_file(compressed_tensors.tensors(model), str(folder / "model.safetensors"), {"format": "pt"})

    def _fitting(self, model: nn.Module, base: Any) -> Any:
        """A configuration with which an empty model has the shapes of this one: `base`, or with smaller sizes."""
        shapes = shapes_of(model)
        dense = self._empty(base)
        fitting = [
            (config, empty)
            for config in configurations(base, shapes, None if dense is None else shapes_of(dense))
            if (empty := self._empty(config)) is not None and shapes_of(empty) == shapes
        ]
        if fitting:
            return copy.deepcopy(nearest(model, fitting))
        raise LayoutError("no configuration of transformers says what was cut away, as layers differ in what they kept")

    def _empty(self, config: Any) -> nn.Module | None:
        """A model of this configuration without weights; None: there is none."""
        try:
            with torch.device("meta"), torch.random.fork_rng(devices=[]), quiet():
                made: nn.Module = self._class(copy.deepcopy(config))
                return made
        except Exception:  # sizes that do not go together
            return None
