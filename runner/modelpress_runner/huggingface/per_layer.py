"""A pretrained model whose layers differ in width: `per_layer_config` in config.json, and a loader beside it.

The numbers of the configuration are the dense model's, and `per_layer_config` says of each layer which of them are
others, as configurations of transformers have it since 5.14. transformers itself builds no such model yet; the loader
does, and so do servers that read the field.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelpress_runner.edits.quantize import quantized_layers
from modelpress_runner.export.layout import Layout, LayoutError
from modelpress_runner.huggingface.gaps import without_gaps
from modelpress_runner.huggingface.saving import save_as, whole_or_gone, without_cache
from modelpress_runner.huggingface.source import quiet
from modelpress_runner.huggingface.widths import NO_INTEGERS, compare, configurations, fields_of, nearest, shapes_of
from modelpress_runner.runtime.preserve import untouched

LOADER = Path(__file__).with_name("loader.py")


class PerLayerLayout:
    """Writes a compressed form of one pretrained model as a folder with a loader of its own.

    Args:
        config: of the dense model, as its source has it.
        kind: the model's class.
        processor: tokenizer or image processor.
    """

    name = "per_layer"
    otherwise: Layout | None = None

    def __init__(self, config: Any, kind: type[nn.Module], processor: Any) -> None:
        self._config, self._class, self._processor = config, kind, processor

    def write(self, model: nn.Module, dummy_input: Any, folder: Path) -> None:
        """As Layout.write: config.json, model.safetensors, the processor's files and loader.py.

        Raises:
            LayoutError: something else than layers became smaller, or what was read back differs.
        """
        if not isinstance(model, self._class):
            raise LayoutError(f"it has become a {type(model).__name__}, which transformers does not load")
        if quantized_layers(model):
            raise LayoutError(NO_INTEGERS)
        written, config = without_gaps(model, self._config)
        changes = self._changes(written, config)
        with whole_or_gone(folder), quiet(), untouched(model):
            save_as(written, copy.deepcopy(config), folder)
            self._processor.save_pretrained(folder)
            plain = json.loads((folder / "config.json").read_text())
            plain["per_layer_config"] = {str(number): values for number, values in enumerate(changes) if values}
            (folder / "config.json").write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n")
            shutil.copyfile(LOADER, folder / LOADER.name)
            compare(written, self.open(folder), model, dummy_input)

    def open(self, folder: Path) -> Any:
        """The model in a folder that `write` wrote, by our copy of its loader, without its cache of keys and values."""
        spec = importlib.util.spec_from_file_location("modelpress_per_layer_loader", LOADER)
        assert spec is not None
        assert spec.loader is not None
        loader = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loader)
        with quiet():
            model = loader.load(
                folder, dtype="auto", use_safetensors=True, trust_remote_code=False, local_files_only=True
            )
        return without_cache(model)

    def _changes(self, model: nn.Module, config: Any) -> list[dict[str, Any]]:
        """Of each layer the numbers that are others than the configuration's."""
        with torch.device("meta"), torch.random.fork_rng(devices=[]), quiet():
            dense = self._class(copy.deepcopy(config))
        total = getattr(config, "num_hidden_layers", None)
        found = [name for name, each in dense.named_modules() if isinstance(each, nn.ModuleList) and len(each) == total]
        if len(found) != 1:
            raise LayoutError("no configuration says what was cut away, as the model has no one list of layers")
        ours, theirs = shapes_of(model), shapes_of(dense)
        outside = {
            name
            for name in ours.keys() | theirs.keys()
            if not name.startswith(f"{found[0]}.") and ours.get(name) != theirs.get(name)
        }
        if outside:
            raise LayoutError(f"layers differ in what they kept, and {min(outside)}, in none of them, is narrower, too")
        return [
            self._of_layer(model.get_submodule(f"{found[0]}.{number}"), layer, number, config)
            for number, layer in enumerate(dense.get_submodule(found[0]).children())
        ]

    def _of_layer(self, model: nn.Module, dense: nn.Module, number: int, config: Any) -> dict[str, Any]:
        shapes, kind = shapes_of(model), type(dense)
        known = inspect.signature(kind.__init__).parameters

        def empty(other: Any) -> nn.Module | None:
            try:
                with torch.device("meta"), torch.random.fork_rng(devices=[]), quiet():
                    return kind(other, number) if "layer_idx" in known else kind(other)
            except Exception:  # sizes that do not go together
                return None

        fitting = [
            (other, made)
            for other in configurations(config, shapes, shapes_of(dense))
            if (made := empty(other)) is not None and shapes_of(made) == shapes
        ]
        if fitting:
            return fields_of(config, nearest(model, fitting))
        raise LayoutError(f"no numbers of a configuration say what layer {number} has kept")
