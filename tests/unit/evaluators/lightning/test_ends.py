"""How training ends before its time: on request, on Ctrl-C, by SIGTERM, by the user's own code."""

from __future__ import annotations

import os
import signal
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning_task import Net, evaluator, net

from modelpress_runner.errors import UserCodeError
from modelpress_runner.process.stopping import StopFlag, Stopped
from modelpress_runner.runtime import rng
from modelpress_runner.training.run import training_session


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with rng.fork_rng(0):
        yield


class Interrupting(Net):
    """Does something in its third batch."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        self.what = what

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 2:
            self.what()
        return super().training_step(batch, batch_idx)


class Steps(pl.Callback):
    """Counts the batches that were trained to their end."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.count += 1


def test_sigterm_ends_a_run_that_saves_nothing_before_the_step():
    """Our handler stays in place under Lightning: the signal ends the run by Stopped, and all is as it was."""
    flag, counting = StopFlag(), Steps()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    model = net(Interrupting, what=lambda: os.kill(os.getpid(), signal.SIGTERM))
    ours = evaluator(callbacks=[counting])
    try:
        flag.install()
        mine = signal.getsignal(signal.SIGTERM)
        with pytest.raises(Stopped), training_session(model, ours, {}, flag) as session:
            session.train(max_epochs=1)
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGINT) is before[signal.SIGINT]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert counting.count == 2  # there is no checkpoint that the third step could be in
    assert not {"configure_optimizers", "training_step"} & vars(model).keys()
    model.what = lambda: None
    with training_session(model, ours, {}) as session:
        session.train(max_epochs=1)


def test_ctrl_c_is_not_swallowed():
    """Lightning makes an exit of it; here it is KeyboardInterrupt again, and SIGINT works afterwards."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    ours = evaluator()
    ours.bind(net(Interrupting, what=interrupt))
    with pytest.raises(KeyboardInterrupt):
        ours.train(max_epochs=1)
    assert signal.getsignal(signal.SIGINT) is handler
    ours.unbind()


def test_an_error_of_the_users_names_his_line():
    """One sentence with file and line, and no traceback of Lightning's."""

    def fail() -> None:
        raise ValueError("no such label")

    ours = evaluator()
    ours.bind(net(Interrupting, what=fail))
    message = r"training of Interrupting raised ValueError: no such label \(.*test_ends.py:\d+\)"
    with pytest.raises(UserCodeError, match=message):
        ours.train(max_epochs=1)
    ours.unbind()


def test_an_abandoned_chunk_leaves_the_state_of_the_last_one():
    """What is saved after a chunk that broke off is what was saved before it, but for optimizers and weights."""
    model = net(Interrupting, what=lambda: None)
    ours = evaluator()
    ours.bind(model)
    ours.train(max_steps=2)
    before = ours.state_dict()

    def stop(loss: torch.Tensor, batch: Any) -> torch.Tensor:
        raise Stopped

    ours.patch_loss(stop)
    with pytest.raises(Stopped):
        ours.train(max_steps=2)
    after = ours.state_dict()
    assert before["loops"] == after["loops"]
    assert before["within"] == after["within"] == 2
    ours.unbind()
