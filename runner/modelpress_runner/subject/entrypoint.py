"""From `module:attribute` and arguments to a subject; everything that can be wrong with it is said in one sentence."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from modelpress.api.v1alpha1 import Model, Source, Store
from modelpress.store.manifest import hash_file
from modelpress_runner.edits.wrappers import unwrapped
from modelpress_runner.errors import InvalidModelError
from modelpress_runner.export import state as weights
from modelpress_runner.inputs.rows import Rows
from modelpress_runner.inputs.uri_resolver import UriResolver
from modelpress_runner.runtime import rng
from modelpress_runner.subject.compression_module import is_compression_module, module_name, subject_of
from modelpress_runner.subject.subject import Subject
from modelpress_runner.usercode.calling import describe, user_code

_PATH = "spec.model.entrypoint"


class ModelSource(Protocol):
    """What gives the dense model, whichever form `spec.model` has."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def path(self) -> str:
        """The field of the spec that it stands in."""

    @property
    def knows_train(self) -> bool:
        """Whether it is told when its weights will be replaced, or always gives the same."""

    def subject(self, model: Model, *, seed: int, train: bool) -> Subject:
        """The dense model with what trains and scores it; see Entrypoint.subject."""


@dataclass(frozen=True)
class Entrypoint:
    """What `spec.model.entrypoint` names, found and checked but not called yet."""

    name: str
    target: Any
    knows_train: bool  # it takes a keyword `train`, or can pretrain
    data: Mapping[str, Rows] | None = None  # what its keyword `data` gets
    path: str = _PATH

    def subject(self, model: Model, *, seed: int, train: bool) -> Subject:
        """Calls the entrypoint, seeded.

        Args:
            model: its arguments.
            seed: seeds all random number generators before the call.
            train: whether the model should be trained if it knows how; False: its weights will be replaced.

        Raises:
            InvalidModelError: it raised, or gave something else than a model and an evaluator.
        """
        made = self._made(model, seed, train)
        return made if isinstance(made, Subject) else as_subject(made, self.name)

    def module(self, model: Model, *, seed: int) -> nn.Module:
        """Calls the entrypoint as `subject` does, trained; the model alone, which it may return by itself.

        Raises:
            InvalidModelError: as `subject`.
        """
        made = self._made(model, seed, True)
        if isinstance(made, nn.Module):
            return unwrapped(made)
        return made.model if isinstance(made, Subject) else as_subject(made, self.name).model

    def _made(self, model: Model, seed: int, train: bool) -> Any:
        """What it gives; the subject of a CompressionModule."""
        rng.seed_all(seed)
        args = dict(model.args or {})
        if self.data is not None:
            args["data"] = dict(self.data)
        if is_compression_module(self.target):
            return self._module_subject(self.target, args, train)
        if self.knows_train:
            args["train"] = train
        with user_code(self.name, InvalidModelError, _PATH):
            made = self.target(**args)
        return self._module_subject(made, {}, train) if is_compression_module(made) else made

    def _module_subject(self, target: Any, args: dict[str, Any], train: bool) -> Subject:
        try:
            subject = subject_of(target, **args)
            pretrain = getattr(target, "pretrain", None)
            if train and pretrain is not None:
                with user_code(f"{module_name(target)}.pretrain", InvalidModelError):
                    pretrained = pretrain(subject.model)
                if isinstance(pretrained, nn.Module):
                    subject.model = pretrained
        except InvalidModelError as error:
            raise error if error.path else InvalidModelError(str(error), _PATH) from error
        return subject


def find(model: Model, code_path: str | None = None, data: Mapping[str, Rows] | None = None) -> Entrypoint:
    """Imports the module of the entrypoint and checks what it names, and that it takes the recipe's arguments.

    Args:
        model: names the entrypoint and its arguments.
        code_path: the code folder; a module of the same name from elsewhere is an error.
        data: the recipe's splits, for the keyword `data`; None: the recipe has none.

    Raises:
        InvalidModelError: no such module or attribute, an error in it, not callable, or arguments that do not fit.
    """
    assert model.entrypoint is not None
    module_name, _, attribute = model.entrypoint.partition(":")
    module = _import(module_name, code_path is not None)
    _check_origin(module_name, code_path)
    target: Any = module
    for part in attribute.split("."):
        if not hasattr(target, part):
            own = [name for name in vars(target) if not name.startswith("_")]
            raise InvalidModelError(f"{module_name} has no {part!r}{_hint(part, own)}", _PATH)
        target = getattr(target, part)
    if is_compression_module(target):
        function: Callable[..., Any] = target.model
        knows_train = hasattr(target, "pretrain")
    else:
        if isinstance(target, nn.Module) or not callable(target):
            raise InvalidModelError(
                f"{model.entrypoint} is a {type(target).__name__}; it must be a CompressionModule, or a function that "
                "returns (model, evaluator) or an mp.Subject",
                _PATH,
            )
        function, knows_train = target, _takes_train(target)
    _check_arguments(model, function, knows_train and function is target, data is not None)
    return Entrypoint(model.entrypoint, target, knows_train, data)


def as_subject(made: Any, name: str) -> Subject:
    """The subject in what an entrypoint returned.

    Raises:
        InvalidModelError: it is neither a Subject nor (model, evaluator).
    """
    if isinstance(made, Subject):
        return made
    if isinstance(made, tuple | list) and len(made) == 2:
        try:
            return Subject(made[0], made[1])
        except InvalidModelError as error:
            raise InvalidModelError(f"{name} returned a pair, but {error}", _PATH) from error
    if isinstance(made, tuple | list):
        given = f"a {type(made).__name__} of {len(made)}"
    else:
        given = "nothing (None)" if made is None else f"a {type(made).__name__}"
    raise InvalidModelError(f"{name} returned {given}; it must return (model, evaluator) or an mp.Subject", _PATH)


def load_weights(subject: Subject, source: Source, base: str | None, store: Store | None = None) -> None:
    """Loads the weights that the recipe names into the subject's model, strictly.

    A path without a scheme is relative to `base`, or to the working directory where there is none; an s3:// URI is of
    the server at the endpoint of `store`.

    Raises:
        InvalidSpecError: there is no such file.
        InvalidModelError: damaged, of another sha256, or not of this model.
    """
    path = "spec.model.weights"
    with tempfile.TemporaryDirectory() as folder:
        local = UriResolver(base, Path(folder), store).file(source.uri, "weights", f"{path}.uri")
        if source.sha256 is not None:
            found, _ = hash_file(local)
            if found != source.sha256:
                raise InvalidModelError(
                    f"{source.uri} has sha256 {found}, not {source.sha256}; correct the digest or the file",
                    f"{path}.sha256",
                )
        try:
            weights.load_strict(subject.model, weights.read(local), source.uri)
        except InvalidModelError as error:
            raise InvalidModelError(str(error), f"{path}.uri") from error


def _import(name: str, has_code: bool) -> Any:
    parent: Any = None
    parts = name.split(".")
    for index, part in enumerate(parts):
        whole = ".".join(parts[: index + 1])
        try:
            found = importlib.util.find_spec(whole)
        except ImportError:
            found = None
        except Exception as error:  # the parent package raised while it was imported
            raise InvalidModelError(f"importing {name} raised {describe(error)}", _PATH) from error
        if found is None:
            search = getattr(parent, "__path__", None)
            near = [info.name for info in pkgutil.iter_modules(search)]
            if index:
                where = f"in the package {'.'.join(parts[:index])}"
            elif has_code:
                where = "in the folder of spec.code, or elsewhere on the Python path; correct its name, or the folder"
            else:
                where = "on the Python path; set spec.code.path to the folder it is in"
            raise InvalidModelError(f"there is no module {part!r} {where}{_hint(part, near)}", _PATH)
        try:
            parent = importlib.import_module(whole)
        except InvalidModelError:
            raise
        except (Exception, SystemExit) as error:
            raise InvalidModelError(f"importing {whole} raised {describe(error)}", _PATH) from error
    return parent


def _check_origin(name: str, code_path: str | None) -> None:
    """A module that was loaded before the code folder came into play hides the user's of the same name."""
    top = name.partition(".")[0]
    if code_path is None or not ((Path(code_path) / f"{top}.py").exists() or (Path(code_path) / top).is_dir()):
        return
    origin = getattr(sys.modules[top], "__file__", None)
    if origin is not None and not Path(origin).resolve().is_relative_to(Path(code_path).resolve()):
        raise InvalidModelError(f"the name {top!r} is taken by {origin}; rename your module", _PATH)


def _takes_train(function: Callable[..., Any]) -> bool:
    try:
        parameter = inspect.signature(function).parameters.get("train")
    except (TypeError, ValueError):
        return False
    return parameter is not None and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)


def _check_arguments(model: Model, function: Callable[..., Any], knows_train: bool, has_data: bool) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    given = set(model.args or {}) | ({"train"} if knows_train else set())
    if has_data and "data" in given:
        raise InvalidModelError("the keyword data is given twice; remove it here, or spec.data", "spec.model.args.data")
    keywords = {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    unknown = sorted(given - keywords.keys())
    if unknown and not takes_any:
        raise InvalidModelError(
            f"{model.entrypoint} takes no argument {unknown[0]!r}{_hint(unknown[0], keywords)}",
            f"spec.model.args.{unknown[0]}",
        )
    if has_data and "data" not in keywords and not takes_any:
        message = f"{model.entrypoint} takes no keyword data, so nothing would read it; let it take one, or remove it"
        raise InvalidModelError(message, "spec.data")
    given |= {"data"} if has_data else set()
    missing = [
        name for name, parameter in keywords.items() if parameter.default is parameter.empty and name not in given
    ]
    if missing == ["data"]:
        raise InvalidModelError(f"{model.entrypoint} needs data; add spec.data, or data to args", "spec.data")
    if missing:
        raise InvalidModelError(
            f"{model.entrypoint} needs the argument {missing[0]!r}; give it under args", "spec.model.args"
        )


def _hint(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""
