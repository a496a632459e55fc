"""The compressed model as save_pretrained writes it, where a configuration can say what it has become."""

from __future__ import annotations

import copy
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from modelpress_runner.edits.quantize import quantized_layers
from modelpress_runner.errors import first_line
from modelpress_runner.export.layout import LayoutError
from modelpress_runner.huggingface import compressed_tensors
from modelpress_runner.huggingface.source import Pretrained, quiet
from modelpress_runner.runtime.example_inputs import tensors
from modelpress_runner.runtime.preserve import untouched

_MOST_CONFIGURATIONS = 64
_HEADS = ("num_attention_heads", "num_key_value_heads")
_HEAD_WIDTH = "head_dim"
_OPTIONAL_SIZES = ("n_inner",)  # None: four times another size (GPT-2 and its kin)


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
        config = self._fitting(model)
        quantized = bool(quantized_layers(model))
        if quantized:
            config.quantization_config = compressed_tensors.configuration(model)
        try:
            with quiet(), untouched(model):
                if quantized:
                    self._save_quantized(model, config, folder)
                else:
                    self._save(model, config, folder)
                self._processor.save_pretrained(folder)
                again = self.open(folder)
                _compare(model, again, dummy_input)
        except LayoutError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        except Exception as error:  # whatever transformers makes of a model that it did not expect
            shutil.rmtree(folder, ignore_errors=True)
            raise LayoutError(f"transformers does not write and read it ({first_line(error)})") from error

    def open(self, folder: Path) -> Any:
        """The model in a folder that `write` wrote, in eval mode and without its cache of keys and values."""
        import transformers

        with quiet(), compressed_tensors.silent():
            model = getattr(transformers, self.auto_class).from_pretrained(
                folder, dtype="auto", use_safetensors=True, trust_remote_code=False, local_files_only=True
            )
        if getattr(model.config, "use_cache", None):
            model.config.use_cache = False
        return model.eval()

    def _save(self, model: Any, config: Any, folder: Path) -> None:
        own, generation = model.config, getattr(model, "generation_config", None)
        model.config = config
        try:
            model.save_pretrained(folder)
        finally:
            model.config = own
            if generation is not None:
                model.generation_config = generation

    def _save_quantized(self, model: Any, config: Any, folder: Path) -> None:
        folder.mkdir(parents=True)
        config.architectures = [self._class.__name__]
        config.dtype = model.dtype
        config.save_pretrained(folder)
        generation = getattr(model, "generation_config", None)
        if generation is not None:
            generation.save_pretrained(folder)
        save_file(compressed_tensors.tensors(model), str(folder / "model.safetensors"), {"format": "pt"})

    def _fitting(self, model: nn.Module) -> Any:
        """A configuration with which an empty model has the shapes of this one: the source's, or with smaller sizes."""
        shapes = _shapes(model)
        for config in _configurations(self._config, shapes, self._empty(self._config)):
            if self._empty(config) == shapes:
                return copy.deepcopy(config)
        raise LayoutError("no configuration of transformers says what was cut away, as layers differ in what they kept")

    def _empty(self, config: Any) -> dict[str, tuple[int, ...]] | None:
        try:
            with torch.device("meta"), torch.random.fork_rng(devices=[]), quiet():
                return _shapes(self._class(copy.deepcopy(config)))
        except Exception:  # sizes that do not go together
            return None


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in compressed_tensors.weights(model).items()}


def _configurations(
    config: Any, shapes: dict[str, tuple[int, ...]], dense: dict[str, tuple[int, ...]] | None
) -> Iterator[Any]:
    """The configuration, and those in which a size that shrank alike wherever it did has its new value."""
    yield config
    if dense is None or dense.keys() != shapes.keys():
        return
    changed: dict[int, set[int]] = {}
    for name, before in dense.items():
        for old, new in zip(before, shapes[name], strict=False):
            if old != new:
                changed.setdefault(old, set()).add(new)
    if not changed or any(len(values) > 1 for values in changed.values()):
        return
    sizes = {old: values.pop() for old, values in changed.items()}
    changes = [_changes(config, old, new) for old, new in sizes.items()]
    for chosen in itertools.islice(itertools.product(*changes), _MOST_CONFIGURATIONS):
        other = copy.deepcopy(config)
        for key, value in (item for change in chosen for item in change.items()):
            setattr(other, key, value)
        yield other


def _changes(config: Any, old: int, new: int) -> list[dict[str, int]]:
    """What may say that a size has changed: a field that had it, or numbers of heads whose width is a field, too."""
    known = {key: value for key, value in vars(config).items() if type(value) is int}
    changes = [{key: new} for key, value in known.items() if value == old]
    changes += [{key: new} for key in _OPTIONAL_SIZES if getattr(config, key, 0) is None]
    if hasattr(config, _HEAD_WIDTH):
        heads = {key: known[key] for key in _HEADS if known.get(key)}
        fewer = {
            key: {key: new // (old // count), _HEAD_WIDTH: old // count}
            for key, count in heads.items()
            if old % count == 0 and new % (old // count) == 0
        }
        changes += [*fewer.values(), {key: value for each in fewer.values() for key, value in each.items()}]
    return changes


def _compare(model: nn.Module, again: nn.Module, dummy_input: Any) -> None:
    """Raises LayoutError unless both hold the same numbers and give the same outputs."""
    compressed_tensors.decompressed(again)
    ours = compressed_tensors.weights(model)
    theirs = {name: value for name, value in again.state_dict().items() if not name.endswith(compressed_tensors.BESIDE)}
    if ours.keys() != theirs.keys():
        raise LayoutError(f"read back, it differs in {min(ours.keys() ^ theirs.keys())}")
    for name, value in ours.items():
        if value.shape != theirs[name].shape or not torch.equal(value.cpu(), theirs[name].cpu()):
            raise LayoutError(f"read back, {name} is another")
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in dummy_input.items()}
    with torch.no_grad():
        model.eval()
        pairs = list(zip(tensors(model(**inputs)), tensors(again.to(device)(**inputs)), strict=True))
    if not pairs or not all(torch.allclose(one, other, rtol=1e-5, atol=1e-6) for one, other in pairs):
        raise LayoutError("read back, it gives other outputs")
