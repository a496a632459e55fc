"""The second form of a model: model.safetensors, masks.safetensors and shrink.json, to be put into a dense model.

Tensors that share their memory are written once, under the name that sorts first; the model they are loaded into ties
the others again. Nothing here reads or writes a pickle.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from modelpress.plainjson import json_of
from modelpress_runner.edits.base import Edit
from modelpress_runner.edits.masks import Masks
from modelpress_runner.edits.replay import read, replay, write
from modelpress_runner.errors import ArtifactError, InvalidModelError, first_line

WEIGHTS_FILE = "model.safetensors"
MASKS_FILE = "masks.safetensors"
SHRINK_FILE = "shrink.json"
MAX_SHRINK_BYTES = 64 * 2**20
_METADATA = {"format": "pt"}  # one entry only: the library writes several in no fixed order


def save(model: nn.Module, folder: Path, edits: Sequence[Edit], masks: Masks | None = None) -> list[Path]:
    """Writes model.safetensors and shrink.json, and masks.safetensors if there are masks, into `folder`.

    Raises:
        InvalidModelError: the state of the model holds something that is no tensor.
    """
    files = [folder / WEIGHTS_FILE, folder / SHRINK_FILE]
    save_weights(model, files[0])
    files[1].write_text(json.dumps(write(edits), sort_keys=True, separators=(",", ":")) + "\n")
    flat = {f"{module}.{name}": mask for module, named in (masks or {}).items() for name, mask in named.items()}
    if flat:
        files.append(folder / MASKS_FILE)
        save_file({name: _storable(flat[name]) for name in sorted(flat)}, files[-1], metadata=_METADATA)
    return files


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes parameters and persistent buffers of `model` as safetensors, tied ones once; same state, same bytes."""
    state = _tensor_state(model)
    names = [group[0] for group in _tied(state)]
    save_file({name: _storable(state[name]) for name in sorted(names)}, path, metadata=_METADATA)


def safetensors_bytes(model: nn.Module) -> int:
    """Size in bytes of the model.safetensors that `save` writes for this model."""
    with tempfile.TemporaryDirectory(prefix="modelpress-size-") as folder:
        path = Path(folder, WEIGHTS_FILE)
        save_weights(model, path)
        return path.stat().st_size


def load_masks(path: Path) -> Masks:
    """Reads masks.safetensors: {module: {parameter: mask}}."""
    masks: Masks = {}
    for name, mask in sorted(_read(path).items()):
        module, _, parameter = name.rpartition(".")
        masks.setdefault(module, {})[parameter] = mask
    return masks


def load_into(dense_model: nn.Module, folder: Path) -> nn.Module:
    """Replays shrink.json on `dense_model`, in place, and loads model.safetensors into it.

    Everything is tried on a copy first, so that after an error `dense_model` is as it was. It keeps its device, its
    mode (train or eval) and which parameters are trainable.

    Returns:
        `dense_model`.

    Raises:
        ArtifactError: the files are damaged, or do not fit this model; the message names what differs.
    """
    edits = read_edits(folder / SHRINK_FILE)
    weights = _read(folder / WEIGHTS_FILE)
    trial = copy.deepcopy(dense_model)
    _replay(trial, edits)
    _check(trial, weights)
    try:
        _fill(trial, weights)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ArtifactError(f"the weights do not fit the model given as into= ({first_line(error)})") from error
    del trial
    _replay(dense_model, edits)
    _fill(dense_model, weights)
    return dense_model


def read_edits(path: Path) -> list[Edit]:
    """The edits in shrink.json.

    Raises:
        ArtifactError: it is not there, or not what `save` writes.
    """
    try:
        if path.stat().st_size > MAX_SHRINK_BYTES:
            raise ArtifactError(f"{path.name} is larger than {MAX_SHRINK_BYTES} bytes; it is not one of ours")
        return read(json_of(path.read_text()))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path.name} is missing from the artifact; fetch the whole folder again") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path.name} is damaged ({error}); fetch the artifact again") from error


def _replay(model: nn.Module, edits: Sequence[Edit]) -> None:
    if not edits:
        return
    try:
        replay(model, edits)
    except Exception as error:
        raise ArtifactError(
            f"{SHRINK_FILE} does not fit the model given as into= ({error}); give the dense model that was compressed, "
            "built with the same arguments"
        ) from error


def _check(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    state = _tensor_state(model)
    groups = {name: group for group in _tied(state) for name in group}
    problems = [
        f"{name} is {_shape(weights[name])} in the artifact and {_shape(state[name])} in the model"
        for name in sorted(state.keys() & weights.keys())
        if weights[name].shape != state[name].shape
    ]
    problems += [
        f"{name} is of {weights[name].dtype} in the artifact and of {state[name].dtype} in the model"
        for name in sorted(state.keys() & weights.keys())
        if not _of_a_kind(weights[name].dtype, state[name].dtype)
    ]
    problems += [
        f"{name} is not in the artifact" for name in sorted(state) if not any(n in weights for n in groups[name])
    ]
    problems += [f"{name} is not in the model" for name in sorted(weights.keys() - state.keys())]
    for group in _tied(state):
        given = [name for name in group if name in weights]
        if len(given) > 1 and any(not torch.equal(weights[given[0]], weights[name]) for name in given[1:]):
            problems.append(f"{' and '.join(given)} are tied in the model and differ in the artifact")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ArtifactError(
            f"the weights do not fit the model given as into=: {'; '.join(problems[:3])}{more}; give the dense model "
            "that was compressed, built with the same arguments"
        )


def _of_a_kind(given: torch.dtype, held: torch.dtype) -> bool:
    """Whether a stage may have made the one of the other: floating types of 16 bits and more may change."""
    if given == held:
        return True
    return all(each.is_floating_point and each.itemsize > 1 for each in (given, held))


def _fill(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    state = _tensor_state(model)
    with torch.no_grad():
        for name, tensor in weights.items():
            target = state[name]
            if target.dtype == tensor.dtype:
                target.copy_(tensor)
                continue
            # A stage may have changed the type of a tensor (bfloat16, for one): the artifact's holds.
            owner, _, leaf = name.rpartition(".")
            module = model.get_submodule(owner)
            moved = tensor.to(target.device)
            if leaf in module._parameters:
                getattr(module, leaf).data = moved  # keeps the parameter's identity, so ties stay
            else:
                module._buffers[leaf] = moved


def _tensor_state(model: nn.Module) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise InvalidModelError(
                f"the model's state has an entry {name!r} that is a {type(value).__name__}, not a tensor; keep it in a "
                "buffer, or out of state_dict()"
            )
    return dict(state)


def _tied(state: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Names grouped by the very memory they show, each group sorted; groups in the order of their first names."""
    groups: dict[Any, list[str]] = {}
    for name in sorted(state):
        tensor = state[name]
        key: Any = name
        if tensor.numel() and tensor.layout == torch.strided:
            key = (tensor.device, tensor.dtype, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        groups.setdefault(key, []).append(name)
    return list(groups.values())


def _storable(tensor: torch.Tensor) -> torch.Tensor:
    # A view may share its memory with a differently shaped one, which the format refuses: every tensor gets its own.
    tensor = tensor.detach().to("cpu").contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        loaded: dict[str, torch.Tensor] = load_file(path)
        return loaded
    except FileNotFoundError as error:
        raise ArtifactError(f"{path.name} is missing from the artifact; fetch the whole folder again") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path.name} is damaged ({error}); fetch the artifact again") from error


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "a scalar"
