"""The callbacks that a training loop of the user's own calls, and the order in which it must."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelpress_runner.errors import InvalidModelError
from modelpress_runner.in_process.loop import Loop
from modelpress_runner.runtime import rng
from modelpress_runner.usercode.calling import is_library_file

_OURS = str(Path(__file__).resolve().parents[1])


class Callbacks:
    """Callbacks of a training loop. A call out of order is an InvalidModelError that says which one is missing.

    on_train_begin()
        on_epoch_begin(epoch)
            on_step_begin(batch)
                on_after_compute_loss(inputs, student_output, student_loss)
                on_before_optimizer_step()
                on_after_optimizer_step()
            on_step_end()
            on_before_eval()
            on_after_eval()
        on_epoch_end()
    on_train_end()

    Needed are on_train_begin, on_train_end, on_step_begin for each batch, and the pair around optimizer.step(), which
    may be left out in batches that only accumulate gradients. on_step_end stands for an on_after_optimizer_step that is
    left out. The others may be left out, but on_epoch_end needs its on_epoch_begin and on_after_eval its
    on_before_eval. One batch has at most one pair; several optimizers may step within it.
    """

    def __init__(self, loop: Loop, train_ended: Callable[[], None]) -> None:
        self._loop, self._train_ended = loop, train_ended
        self._phase = "new"  # then "training", "failed", "ended" or "closed"
        self._epoch: int | None = None  # the open one
        self._next_epoch = 0
        self._batch: Any = None
        self._in_step = self._stepping = self._stepped = False
        self._untouched = False  # nothing has come since on_train_begin
        self._evaluation: contextlib.ExitStack | None = None

    @property
    def ended(self) -> bool:
        """Whether on_train_end was called and went well."""
        return self._phase == "ended"

    def on_train_begin(self) -> None:
        """Before the first batch: checks the recipe against the model, and prunes what is to be pruned at step 0.

        Called twice in a row it is one call.
        """
        if self._untouched:
            return
        if self._phase != "new":
            raise self._wrong("on_train_begin", "was called before; one object goes through one training")
        with self._failing():
            self._loop.stop()
            self._loop.begin()
        self._phase, self._untouched = "training", True

    def on_epoch_begin(self, epoch: int) -> None:
        """Before an epoch; `epoch` counts from 0 and rises."""
        self._between_steps("on_epoch_begin")
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise self._wrong("on_epoch_begin", f"was given the epoch {epoch!r}; give a number, 0 or more")
        if self._epoch is not None:
            raise self._wrong("on_epoch_begin", f"came before on_epoch_end() of epoch {self._epoch}")
        if epoch < self._next_epoch:
            raise self._wrong("on_epoch_begin", f"was given epoch {epoch} after epoch {self._next_epoch - 1}")
        self._end_step()
        self._loop.stop()
        self._epoch = epoch

    def on_step_begin(self, batch: Any) -> None:
        """Before a batch. `batch` is its number within the epoch, or the batch itself; a number is named in errors."""
        self._between_steps("on_step_begin")
        self._end_step()
        self._loop.stop()
        self._in_step, self._batch = True, batch

    def on_after_compute_loss(
        self, inputs: Any, student_output: Any, student_loss: torch.Tensor, teacher_output: Any = None
    ) -> torch.Tensor:
        """After the loss was computed; the loop goes on with the loss that this returns.

        Args:
            inputs: what the model was called with.
            student_output: what it gave.
            student_loss: the loss as a tensor of one element.
            teacher_output: the teacher's output for the same inputs, for a stage that compares with one.

        Raises:
            InvalidModelError: the loss is no such tensor, or there is a teacher's output and no stage that uses it.
        """
        self._inside_step("on_after_compute_loss")
        if not isinstance(student_loss, torch.Tensor) or student_loss.numel() != 1:
            given = type(student_loss).__name__
            if isinstance(student_loss, torch.Tensor):
                given = f"tensor of shape {tuple(student_loss.shape)}"
            raise self._wrong("on_after_compute_loss", f"was given a {given} as student_loss; it must hold one number")
        self._loop.stop()
        try:
            return self._loop.loss(inputs, student_output, student_loss, teacher_output)
        except InvalidModelError as error:
            raise self._wrong("on_after_compute_loss", str(error)) from None

    def on_before_optimizer_step(self) -> None:
        """After backward(), before optimizer.step(): gradients are there."""
        self._inside_step("on_before_optimizer_step")
        if self._stepped:
            raise self._wrong(
                "on_before_optimizer_step", "was called twice in one batch; call on_step_begin() before each batch"
            )
        self._loop.stop()
        with self._failing():
            self._loop.before_step()
        self._stepping = True

    def on_after_optimizer_step(self) -> None:
        """After optimizer.step(): sets pruned weights to zero again, and prunes more if a schedule says so."""
        self._training("on_after_optimizer_step")
        if not self._stepping:
            raise self._wrong(
                "on_after_optimizer_step", "came without on_before_optimizer_step(); call that before optimizer.step()"
            )
        self._stepping, self._stepped = False, True
        with self._failing():
            self._loop.stepped()

    def on_step_end(self) -> None:
        """After a batch; ends the optimizer's step where on_after_optimizer_step() was left out."""
        if self._stepping:
            self.on_after_optimizer_step()
        self._inside_step("on_step_end")
        self._end_step()

    def on_epoch_end(self) -> None:
        """After an epoch: checks that pruned weights are zero."""
        self._between_steps("on_epoch_end")
        if self._epoch is None:
            raise self._wrong("on_epoch_end", "came without on_epoch_begin(epoch)")
        self._end_step()
        epoch, self._epoch = self._epoch, None
        self._next_epoch = epoch + 1
        with self._failing():
            self._loop.check(f"epoch {epoch}")
        self._loop.epochs += 1
        if not self._loop.total:  # else the loop goes through Compression.epochs, which says so
            self._loop.emit(f"epoch {epoch + 1}, {self._loop.steps} steps")
        self._loop.stop()

    def on_before_eval(self) -> None:
        """Before the model is evaluated: checks that pruned weights are zero.

        What happens until on_after_eval() has no effect on the training: random numbers and the modes of all modules
        are then as they were.
        """
        self._between_steps("on_before_eval")
        with self._failing():
            self._loop.check("a part of the loop")
        self._loop.stop()
        evaluation = contextlib.ExitStack()
        evaluation.enter_context(rng.fork_rng())
        evaluation.enter_context(_modes_restored(self._loop.model))
        self._evaluation = evaluation

    def on_after_eval(self) -> None:
        """After the evaluation."""
        if self._evaluation is None:
            raise self._wrong("on_after_eval", "came without on_before_eval()")
        self._evaluation.close()
        self._evaluation = None

    def on_train_end(self) -> None:
        """After the last batch: shrinks the model where a stage wants that, and measures it.

        Raises:
            CompressionError: a schedule has not reached its target, nothing was trained, pruned weights have come back,
                or the shrink cannot be proven.
        """
        self._between_steps("on_train_end")
        self._end_step()
        with self._failing():
            self._loop.stop()
            self._train_ended()
        self._phase = "ended"

    def between_epochs(self) -> None:
        """Ends the batch that is open; raises where an epoch, an optimizer step or an evaluation is open, too."""
        self._between_steps("epochs")
        if self._epoch is not None:
            raise self._wrong("epochs", "went on before on_epoch_end()")
        self._end_step()

    def go_on_at(self, epoch: int) -> None:
        """Lets the next epoch be `epoch`."""
        self._next_epoch = epoch

    def optimizer_steps(self) -> None:
        """An optimizer that was handed over steps: raises where that is out of order."""
        if self._phase == "training" and not self._stepping:
            raise self._wrong(
                "optimizer.step",
                "was called outside on_before_optimizer_step() and on_after_optimizer_step(); put it between the two",
            )

    def close(self) -> None:
        """Ends what is open; nothing can be called any more. Does nothing after on_train_end."""
        if self._evaluation is not None:
            self._evaluation.close()
            self._evaluation = None
        if self._phase != "ended":
            self._phase = "closed"

    @property
    def forgotten(self) -> bool:
        """Whether the training began and nothing ended it."""
        return self._phase == "training"

    def unfinished(self) -> str:
        """Why there is no result yet, as a sentence with what to do."""
        if self._phase == "failed":
            return "the training failed, so there is no compressed model; see the error before this one"
        if self._phase == "new":
            return "the training has not begun; call callbacks.on_train_begin() before it and on_train_end() after it"
        return "on_train_end() was not called, so the model is not compressed; call it when the training is over"

    # Order -----------------------------------------------------------------------------------------------------------

    def _training(self, name: str) -> None:
        self._untouched = False
        if self._phase == "new":
            raise self._wrong(name, "came before on_train_begin()")
        if self._phase == "failed":
            raise self._wrong(name, "came after an error; the training cannot go on")
        if self._phase != "training":
            raise self._wrong(
                name, "came after on_train_end()" if self.ended else "came after the end of the with block"
            )

    def _between_steps(self, name: str) -> None:
        """Anywhere but around an optimizer step or within an evaluation."""
        self._training(name)
        if self._stepping:
            raise self._wrong(name, "came before on_after_optimizer_step(); call that right after optimizer.step()")
        if self._evaluation is not None:
            raise self._wrong(name, "came before on_after_eval()")

    def _inside_step(self, name: str) -> None:
        self._between_steps(name)
        if not self._in_step:
            raise self._wrong(name, "came without on_step_begin(batch); call that before each batch")

    def _end_step(self) -> None:
        self._in_step = self._stepped = False
        self._batch = None

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """What goes wrong inside ends the training for good."""
        try:
            yield
        except BaseException:
            self._phase = "failed"
            raise

    def _wrong(self, name: str, what: str) -> InvalidModelError:
        where = f" in epoch {self._epoch}" if self._epoch is not None else ""
        if isinstance(self._batch, int) and not isinstance(self._batch, bool):
            where += f", batch {self._batch}" if where else f" in batch {self._batch}"
        return InvalidModelError(f"{name}(){where} {what}{_caller()}")


def _caller() -> str:
    """The line of the user's code that made the call, in brackets."""
    for frame in reversed(traceback.extract_stack()):
        if not is_library_file(frame.filename) and not frame.filename.startswith((_OURS, "<")):
            return f" ({Path(frame.filename).name}:{frame.lineno})"
    return ""


@contextlib.contextmanager
def _modes_restored(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
