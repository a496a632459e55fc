"""The interface of Auptimizer's training scripts, on top of mp.prepare_compression.

compress() begins a compression that goes along with whatever training the script does next: steps of any optimizer that
holds the model's parameters are its steps. apply_speedup() ends it: the model is shrunk in place, and an optimizer that
was handed over goes on with the parameters that are there then. In a job that runs the script (`model.script`) the
recipe is the job's, and the compression ends with the script, since what is measured then is what is kept.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from modelpress.api.errors import Problem, SpecError
from modelpress.api.load import read_text
from modelpress.convert.literals import Reader
from modelpress.convert.notes import Book, Field
from modelpress.convert.recipes import stages_of
from modelpress_runner.errors import InvalidModelError
from modelpress_runner.in_process import current
from modelpress_runner.in_process.prepare import Compression, prepare_compression
from modelpress_runner.in_process.reporting import report
from modelpress_runner.methods.prune.covering import apply_masks
from modelpress_runner.subject.subject import as_inputs

log = logging.getLogger("modelpress")
_PREFIX = "--config="  # as a job gives the file to a script
_OF_COMPRESSION = {"framework": "compression_framework", "type": "compression_type"}


class _Load:
    """`BasicConfig.load(path)` and `BasicConfig().load(path)`: both are in use."""

    def __get__(self, config: BasicConfig | None, owner: type[BasicConfig]) -> Callable[[str | Path], BasicConfig]:
        return functools.partial(_loaded, owner() if config is None else config)


class BasicConfig(dict[str, Any]):
    """The settings of an experiment, as a script reads them: what stands under `compression` is at the top."""

    load = _Load()


def _loaded(config: BasicConfig, path: str | Path) -> BasicConfig:
    file = Path(str(path).removeprefix(_PREFIX))
    beside = Path(sys.argv[0]).parent / file
    if not file.exists() and beside.exists():
        file = beside
    reader = Reader(read_text(file), str(file))
    data = reader.read()
    for line, sentence in reader.mended:
        log.warning("%s:%d: %s", file, line, sentence)
    if not isinstance(data, dict):
        raise InvalidModelError(f"{file} holds a {type(data).__name__}; it must be a mapping")
    block = data.pop("compression", None)
    config |= data
    for key, value in block.items() if isinstance(block, dict) else ():
        config[_OF_COMPRESSION.get(str(key), str(key))] = value
    return config


def create_compressor(
    model: nn.Module,
    config: Mapping[str, Any],
    optimizer: torch.optim.Optimizer | None = None,
    *,
    trainer: Callable[..., Any] | None = None,
    criterion: Callable[..., Any] | None = None,
    dummy_input: Any = None,
    evaluator: Callable[[nn.Module], Any] | None = None,
    **settings: Any,
) -> Compressor:
    """A compressor for a model, which stays as it is until compress().

    Args:
        config: compressor, config_list and the compressor's settings; in a job only the job's recipe counts.
        optimizer: goes on with the smaller model's parameters behind apply_speedup(). Others have to be made anew then.
        trainer: trainer(model, optimizer, criterion, epoch), for compressors that look at a training: compress() calls
            it once.
        dummy_input: an example input; else that of apply_speedup() or of the first call of the model.
        evaluator: a function model -> number: the score by which trials of a sweep are compared.
        settings: further ones of the compressor.

    Raises:
        SpecError: the configuration has no such meaning here; all that was found is listed.
    """
    stages = None if current.current() is not None else _stages({**config, **settings})
    return Compressor(model, stages, optimizer, trainer, criterion, dummy_input, evaluator)


def _stages(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    book = Book("config")
    stages, searched = stages_of(Field(dict(config), book))
    book.check()
    if searched:
        raise SpecError(
            [
                Problem(
                    "config.config_list",
                    "it holds ranges, of which one experiment has no values",
                    "run it as a sweep: modelpress convert EXPERIMENT.json -o sweep.yaml; modelpress run sweep.yaml",
                )
            ]
        )
    for note in book.notes:
        if note.kind in ("changed", "missing"):
            log.warning("config: %s", note)
    for stage in stages:
        if "sparsify" in stage.get("prune", {}):
            raise SpecError(
                [
                    Problem(
                        "config.compressor",
                        "its penalty belongs into the loss of the training, which is the script's",
                        "convert the experiment with --model MODULE:FUNCTION, and let modelpress train",
                    )
                ]
            )
    return stages


class Compressor:
    """Compresses a model in the course of a script. Made by create_compressor()."""

    def __init__(
        self,
        model: nn.Module,
        stages: list[dict[str, Any]] | None,
        optimizer: torch.optim.Optimizer | None,
        trainer: Callable[..., Any] | None,
        criterion: Callable[..., Any] | None,
        dummy_input: Any,
        evaluator: Callable[[nn.Module], Any] | None,
    ) -> None:
        self._model, self._stages, self._optimizer = model, stages, optimizer
        self._trainer, self._criterion = trainer, criterion
        self._dummy_input, self._evaluator = dummy_input, evaluator
        self._compression: Compression | None = None
        self._handles: list[Any] = []
        self._step = 0
        self._asked = False  # compress() was called

    @property
    def model(self) -> nn.Module:
        """The model: the very object that was given."""
        return self._model

    def compress(self) -> nn.Module:
        """Begins: the model is pruned in place as soon as an example input is known, which the first call of it is."""
        if self._asked:
            raise InvalidModelError("compress() was called twice; make a compressor for each compression")
        self._asked = True
        if self._dummy_input is not None or self._evaluator is not None:
            self._begin(self._dummy_input)
        else:
            self._handles.append(self._model.register_forward_pre_hook(self._first_call, with_kwargs=True))
        if self._trainer is not None:
            self._trainer(self._model, self._optimizer, self._criterion, 0)
        return self._model

    def apply_speedup(self, dummy_input: Any = None) -> nn.Module:
        """Shrinks the model in place, proven; in a job that comes at the end of the script.

        Raises:
            InvalidModelError: the compressor removes single weights, which leaves nothing to shrink.
            CompressionError: the shrink cannot be proven, or the compressor has not seen the training that it needs.
        """
        compression = self._begun(dummy_input)
        if not any(_shrinks(stage.to_dict()) for stage in compression.spec.stages):
            raise InvalidModelError(
                "apply_speedup() has nothing to do: the compressor leaves the model's shape alone; take one that "
                "removes channels, such as l1_filter"
            )
        if current.current() is None and not compression.callbacks.ended:
            self._end()
        return self._model

    def export_model(
        self,
        model_path: str | Path,
        mask_path: str | Path | None = None,
        speedup: bool = False,
        folder_name: str | Path | None = None,
        dummy_input: Any = None,
        **unused: Any,
    ) -> None:
        """Writes the weights, the masks that are left, and where the compression is over the artifact.

        In a job it writes nothing: the artifact is the job's.

        Args:
            model_path: of the state_dict. The artifact, which mp.load opens without the script, is a folder beside it
                without the suffix.
            mask_path: {"conv1": {"weight": mask}}, 1 = kept; empty behind a speed-up.
            speedup: shrink the model before, if that is still to be done; false leaves it in its masks.
            folder_name: a folder for all of them.
        """
        compression = self._begun(dummy_input)
        if current.current() is not None:
            log.info("export_model() writes nothing in a job, whose artifact has the model")
            return
        if speedup and not compression.callbacks.ended:
            self._end()
        folder = Path(folder_name or ".")
        folder.mkdir(parents=True, exist_ok=True)
        ended = compression.callbacks.ended
        masks = compression.result.masks if ended else compression.masks
        torch.save(self._model.state_dict(), folder / model_path)
        if mask_path is not None:
            torch.save(masks, folder / mask_path)
        if ended:
            result = compression.result
            if self._evaluator is not None:
                result.metrics["compressed"] |= compression.score()
            saved = result.save(_free(folder / Path(model_path).with_suffix("")))
            log.info("%s holds the compressed model; mp.load opens it", saved)

    @property
    def compression(self) -> Compression:
        """What goes along with the training; its `result` has the metrics, once it is over."""
        return self._begun(None)

    # The course of it ----------------------------------------------------------------------------------------------

    def _begun(self, dummy_input: Any) -> Compression:
        if not self._asked:
            raise InvalidModelError("compress() was not called; call it before")
        if self._compression is None:
            if dummy_input is None:
                raise InvalidModelError("no example input is known; give dummy_input, or call the model before")
            self._begin(dummy_input)
        assert self._compression is not None
        return self._compression

    def _first_call(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        inputs = as_inputs(module, args, kwargs)
        if inputs is not None and self._compression is None:
            self._begin(inputs)

    def _begin(self, dummy_input: Any) -> None:
        self._close()
        training = self._model.training
        self._compression = prepare_compression(
            self._model, self._stages, evaluator=self._evaluator, dummy_input=dummy_input
        )
        self._compression.at_end_of_script = self._end
        self._compression.on_train_begin()
        self._model.train(training)
        self._handles = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
            # Whatever else changes weights, what is pruned takes no part in a call.
            self._model.register_forward_pre_hook(self._masked),
        ]

    def _masked(self, module: nn.Module, args: Any) -> None:
        if self._compression is not None:
            apply_masks(self._model, self._compression.masks)

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._compression is not None and self._trains(optimizer):
            self._compression.on_step_begin(self._step)
            self._compression.on_before_optimizer_step()

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._compression is not None and self._trains(optimizer):
            self._compression.on_after_optimizer_step()
            self._compression.on_step_end()
            self._step += 1

    def _trains(self, optimizer: torch.optim.Optimizer) -> bool:
        own = {id(parameter) for parameter in self._model.parameters()}
        return any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"])

    def _end(self) -> None:
        assert self._compression is not None
        self._close()
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        self._compression.on_train_end()
        if self._optimizer is not None:
            _go_on(self._optimizer, names, dict(self._model.named_parameters()))

    def _close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _shrinks(stage: Mapping[str, Any]) -> bool:
    return bool(stage.get("prune", {}).get("shrink"))


def _go_on(optimizer: torch.optim.Optimizer, names: Mapping[int, str], now: Mapping[str, nn.Parameter]) -> None:
    """Lets an optimizer go on with the parameters that have the names of its own; what it kept of others is dropped."""
    for group in optimizer.param_groups:
        kept = []
        for parameter in group["params"]:
            new = now.get(names.get(id(parameter), ""), parameter)
            if new is not parameter:
                optimizer.state.pop(parameter, None)
            kept.append(new)
        group["params"] = kept


def _free(path: Path) -> Path:
    """A folder that is not there yet: a script that runs again does not lose its result."""
    number, free = 2, path
    while free.exists():
        free, number = path.with_name(f"{path.name}-{number}"), number + 1
    return free


# What is around a script --------------------------------------------------------------------------------------------

_results = 0
_savers: list[Callable[[], Any]] = []


def print_result(result: Any) -> None:
    """Tells a result: one number, or several in a list, of which the first is the score. In a run it is reported."""
    global _results
    numbers = [float(value) for value in (result if isinstance(result, list | tuple) else [result])]
    if not numbers:
        raise InvalidModelError("print_result() was given nothing; give a number")
    report(_results, default=numbers[0], **{f"result_{index}": value for index, value in enumerate(numbers) if index})
    _results += 1
    print("result:", ", ".join(f"{value:.6g}" for value in numbers))


def aup_save_model(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Has the function called with these arguments behind a main of aup_args, if the model is to be saved."""
    _savers.append(functools.partial(function, *args, **kwargs))


def aup_args(main: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a script's main, which is then called with the path of a configuration: its keys are the arguments.

    What main returns is its result. What was registered by aup_save_model is called where `save_model` is true, and in
    a job.
    """

    @functools.wraps(main)
    def called(path: str | Path, *args: Any, **kwargs: Any) -> Any:
        config = BasicConfig().load(path)
        arguments = config.get("resource_args")
        if isinstance(arguments, dict):
            config.setdefault("save_model", arguments.get("save_model", False))
        parameters = inspect.signature(main).parameters
        given = {name: value for name, value in config.items() if name in parameters} | kwargs
        missing = [name for name, each in parameters.items() if each.default is each.empty and name not in given]
        if missing:
            raise InvalidModelError(f"{path} does not hold {missing[0]}, which {main.__name__}() takes; add it")
        _savers.clear()
        result = main(*args, **given)
        if result is not None:
            print_result(result)
        if config.get("save_model") in (True, "true", "True") or current.current() is not None:
            for save in _savers:
                save()
        return result

    return called
