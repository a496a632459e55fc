"""DeepspeedTorchEvaluator: what it is given, precision of its weights, checkpoints of DeepSpeed's, what is left."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.optim import lr_scheduler

import modelpress as mp
from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators.deepspeed import config as deepspeed_config
from modelpress_runner.training.run import training_session

ADAM = {"type": "AdamW", "params": {"lr": 0.05}}


def factory(params):
    return torch.optim.SGD(params, lr=0.5, momentum=0.9)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (5, "deepspeed is a int; give DeepSpeed's configuration"),
        ("no-such.json", r"no-such\.json cannot be read"),
        ({}, "has neither train_batch_size nor train_micro_batch_size_per_gpu"),
        ({"train_batch_size": 0}, r"deepspeed\.train_batch_size is 0; give an integer from 1"),
        ({"train_batch_size": "auto"}, r"deepspeed\.train_batch_size is 'auto', which only the Trainer"),
        (
            {"train_batch_size": 8, "zero_optimization": {"stage": 4}},
            r"zero_optimization\.stage is 4; give 0, 1, 2 or 3",
        ),
        ({"train_batch_size": 8, "optimizer": {}}, r"deepspeed\.optimizer needs a type"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(config, message):
    """The message names the field."""
    with pytest.raises(InvalidModelError, match=message):
        deepspeed_config.read(config)


def test_a_configuration_may_be_a_file(tmp_path, new_task):
    """A path of a JSON file; one that is no JSON is named."""
    task = new_task(1)
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(task.config))
    task.config = str(path)
    evaluator = task.evaluator()
    evaluator.bind(task.model)
    evaluator.train(max_steps=1)
    evaluator.unbind()
    path.write_text("{")
    with pytest.raises(InvalidModelError, match="is no JSON"):
        deepspeed_config.read(path)


@pytest.mark.parametrize(
    ("config", "world", "message"),
    [
        ({"train_batch_size": 8, "train_micro_batch_size_per_gpu": 8}, 2, "2 processes is not; leave out"),
        (
            {"train_batch_size": 9, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4},
            1,
            "train_batch_size is 9, but",
        ),
        ({"train_batch_size": 9, "gradient_accumulation_steps": 2}, 1, "does not divide by"),
    ],
)
def test_batch_sizes_that_do_not_go_together_are_refused(config, world, message):
    """Before DeepSpeed asserts it."""
    with pytest.raises(InvalidModelError, match=message):
        deepspeed_config.for_engine(deepspeed_config.read(config), world, own_optimizer=True)


def test_what_is_given_twice_or_missing_is_said(new_task):
    """Optimizer and scheduler come from one place each; a traced scheduler needs its traced optimizer."""
    task = new_task()
    sgd = mp.trace(torch.optim.SGD)(task.model.parameters(), lr=0.1)
    decay = mp.trace(lr_scheduler.ExponentialLR)(sgd, gamma=0.5)
    both = {**task.config, "optimizer": ADAM, "scheduler": {"type": "WarmupLR"}}
    wrong = [
        ({"deepspeed": both}, r"optimizer is given twice.*deepspeed\.optimizer"),
        ({"optimizer": None}, "no optimizer to train with; give one made by mp.trace"),
        ({"deepspeed": both, "optimizer": None, "lr_scheduler": lambda optimizer: None}, "scheduler is given twice"),
        ({"optimizer": factory, "lr_scheduler": decay}, r"give a function \(optimizer\) -> scheduler"),
        ({"optimizer": torch.optim.SGD(task.model.parameters())}, r"a SGD that was not traced.*mp\.trace\(SGD\)"),
        ({"optimizer": [sgd]}, "DeepSpeed takes one"),
        ({"optimizer": 3}, "optimizer is a int"),
        ({"training_step": None}, "training_func but no training_step"),
        ({"evaluating_func": 0.5}, "evaluating_func must be a function"),
        ({"resume_from_checkpoint_args": {"tag": "a"}}, "needs load_dir"),
        ({"resume_from_checkpoint_args": {"load_dir": "x", "strict": True}}, "has no 'strict'; it takes load_dir, tag"),
        ({"resume_from_checkpoint_args": {"load_dir": 5}}, "load_dir is a int; give a str"),
    ]
    for changes, message in wrong:
        with pytest.raises(InvalidModelError, match=message):
            task.evaluator(**changes)
    evaluator = task.evaluator(optimizer=lambda params: None)
    with pytest.raises(InvalidModelError, match="the optimizer function returned a NoneType"):
        evaluator.bind(task.model)
    assert not distributed.is_initialized()
    with pytest.raises(InvalidModelError, match="wrapped in DataParallel"):
        task.evaluator().bind(nn.DataParallel(task.model))


def rates_of(evaluator, model) -> list[float]:
    """The learning rates of eight steps in two epochs."""
    rates = []
    evaluator.bind(model)
    evaluator.before_optimizer_step(lambda: rates.append(next(evaluator.optimizers()).param_groups[0]["lr"]))
    evaluator.train(max_epochs=1)
    evaluator.train(max_epochs=1)
    evaluator.unbind()
    return rates


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize(
    ("schedule", "second"),
    [
        (lambda optimizer: lr_scheduler.ExponentialLR(optimizer, gamma=0.5), 0.25),
        (lambda params, optimizer: lr_scheduler.StepLR(optimizer, 1, 1 / len(params)), 0.125),
        (None, 0.25),
    ],
    ids=["one argument", "two arguments", "traced"],
)
def test_schedulers_are_stepped_by_the_users_loop(new_task, stage, schedule, second):
    """Traced, or made by functions of one or two arguments; here once per epoch."""
    task = new_task(stage)
    optimizer = mp.trace(torch.optim.SGD)(task.model.parameters(), lr=0.5) if schedule is None else factory
    schedule = schedule or mp.trace(lr_scheduler.ExponentialLR)(optimizer, gamma=0.5)
    rates = rates_of(task.evaluator(optimizer=optimizer, lr_scheduler=schedule), task.model)
    assert rates == [0.5] * 4 + [second] * 4


def test_the_configurations_own_optimizer_and_schedule(new_task):
    """DeepSpeed steps its schedule itself, with each step, over all calls."""
    task = new_task(1)
    warmup = {"warmup_min_lr": 0, "warmup_max_lr": 0.8, "warmup_num_steps": 8, "warmup_type": "linear"}
    config = {**task.config, "optimizer": ADAM, "scheduler": {"type": "WarmupLR", "params": warmup}}

    def training_func(engine, optimizer, training_step, scheduler, max_steps, max_epochs):
        assert scheduler is engine.lr_scheduler
        task.training_func(engine, optimizer, training_step, None, max_steps, max_epochs)

    evaluator = task.evaluator(optimizer=None, deepspeed=config, training_func=training_func)
    rates = rates_of(evaluator, task.model)
    assert rates == sorted(rates)
    assert rates[2] - rates[1] == pytest.approx(0.1)
    assert rates[7] - rates[6] == pytest.approx(0.1)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_low_precision_trains_full_precision_weights(new_task, stage):
    """In bfloat16 the optimizer keeps float32 weights: masked ones are zero there, too, and the model gets them."""
    task = new_task(stage, bf16={"enabled": True})
    mask = torch.ones(6, 4)
    mask[:, 0] = 0
    with torch.no_grad():
        task.model[0].weight.mul_(mask)
    evaluator = task.evaluator()
    with training_session(task.model, evaluator, {"0": {"weight": mask}}) as session:
        session.train(max_epochs=1)
        values = evaluator._bound.exact_values()
        with evaluator.whole_parameters():
            assert task.model[0].weight.dtype == torch.bfloat16
            rounded = task.model[0].weight.detach().clone()
    weight = task.model[0].weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, values[0])
    assert torch.equal(weight.to(torch.bfloat16), rounded)
    assert not torch.equal(weight, rounded.float())
    assert not bool(weight[mask == 0].any())


@pytest.mark.parametrize("stage", [1, 3])
def test_state_in_low_precision_keeps_what_the_model_cannot(new_task, stage):
    """A resumed run goes on from the float32 weights, although the checkpoint's model has bfloat16 ones."""
    kept = {}
    for resumed in (False, True):
        task = new_task(stage, bf16={"enabled": True})
        evaluator = task.evaluator()
        with training_session(task.model, evaluator, {}) as session:
            if resumed:
                evaluator.load_state_dict(kept["trainer"])
                with evaluator.whole_parameters(modify=True), torch.no_grad():
                    for parameter, value in zip(task.model.parameters(), kept["model"], strict=True):
                        parameter.data.copy_(value)
                evaluator.load_state_dict(kept["trainer"])
            else:
                torch.manual_seed(1)
                session.train(max_epochs=1)
                with evaluator.whole_parameters():
                    kept["model"] = [parameter.detach().clone() for parameter in task.model.parameters()]
                kept["trainer"] = evaluator.state_dict()
            torch.manual_seed(2)
            session.train(max_epochs=1)
        kept[resumed] = [parameter.detach().clone() for parameter in task.model.parameters()]
    assert all(torch.equal(one, two) for one, two in zip(kept[False], kept[True], strict=True))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_accumulated_gradients_make_one_step(new_task, stage):
    """Hooks fire once per step, not per batch; what was left of an unfinished step is forgotten between calls."""
    task = new_task(stage, train_batch_size=16, gradient_accumulation_steps=2)
    gradients = []

    def training_func(engine, optimizer, training_step, scheduler, steps, epochs):
        for index in torch.arange(24).split(8):  # a step and a half
            engine.backward(training_step((task.x[index], task.y[index]), engine))
            engine.step()

    evaluator = task.evaluator(training_func=training_func, optimizer=lambda params: torch.optim.SGD(params, lr=0.0))
    evaluator.bind(task.model)
    evaluator.before_optimizer_step(lambda: gradients.append(evaluator.gradient(task.model[0].weight).clone()))
    evaluator.train(max_epochs=1)
    evaluator.train(max_epochs=1)
    evaluator.unbind()
    loss = task.training_step((task.x[:16], task.y[:16]), task.model)
    [expected] = torch.autograd.grad(loss, [task.model[0].weight])
    assert len(gradients) == 2
    assert torch.allclose(gradients[0], expected, atol=1e-6)
    assert torch.allclose(gradients[1], expected, atol=1e-6)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_checkpoint_of_deepspeeds_is_where_it_starts(new_task, tmp_path, stage):
    """Weights come before anything is compressed; momentum as long as the shapes are the checkpoint's."""
    task = new_task(stage)
    evaluator = task.evaluator(optimizer=factory)
    evaluator.bind(task.model)
    evaluator.train(max_epochs=1)
    evaluator.engine.save_checkpoint(str(tmp_path), tag="first")
    momentum = evaluator.state_dict()["optimizer"]["state"][0]["momentum_buffer"]
    evaluator.unbind()
    trained = {name: value.clone() for name, value in task.model.state_dict().items()}

    fresh = new_task(stage)
    later = fresh.evaluator(optimizer=factory, resume_from_checkpoint_args={"load_dir": str(tmp_path), "tag": "first"})
    later.resolve(fresh.model)
    assert all(torch.equal(value, trained[name]) for name, value in fresh.model.state_dict().items())
    with torch.no_grad():
        fresh.model[0].weight.mul_(0.5)
    later.bind(fresh.model)
    assert torch.equal(later.state_dict()["optimizer"]["state"][0]["momentum_buffer"], momentum)
    later.unbind()
    assert torch.equal(fresh.model[0].weight, trained["0.weight"] * 0.5)
    smaller = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Dropout(0), nn.Linear(3, 2))
    later.bind(smaller)
    later.train(max_steps=1)
    later.unbind()
    missing = fresh.evaluator(resume_from_checkpoint_args={"load_dir": str(tmp_path / "elsewhere")})
    with pytest.raises(InvalidModelError, match=r"no checkpoint of DeepSpeed in .*elsewhere"):
        missing.resolve(fresh.model)
    assert not distributed.is_initialized()


@pytest.mark.parametrize("stage", [1, 3])
def test_nothing_of_deepspeed_is_left_on_the_model(new_task, stage):
    """Plain tensors of their own, no attributes, no special containers, no process group."""
    task = new_task(stage)
    plain = {name: set(vars(module)) for name, module in task.model.named_modules()}
    evaluator = task.evaluator()
    evaluator.bind(task.model)
    assert distributed.is_initialized()
    evaluator.train(max_steps=2)
    evaluator.unbind()
    assert not distributed.is_initialized()
    assert {name: set(vars(module)) for name, module in task.model.named_modules()} == plain
    for module in task.model.modules():
        assert type(module._parameters) is dict
    for parameter in task.model.parameters():
        assert type(parameter) is nn.Parameter
        assert vars(parameter) == {}
        assert parameter.untyped_storage().nbytes() == parameter.numel() * 4
    assert evaluator.evaluate(task.model)["default"] >= 0


def test_prune_and_finetune_end_to_end(new_task):
    """A shrunk model is trained by an engine of its own, and the masks of another stage hold."""
    task = new_task(2)
    stages = [
        {"prune": {"algorithm": "l1", "config_list": [{"op_names": ["0"], "sparsity": 0.5}], "speedup": True}},
        {"finetune": {"epochs": 2}},
        {"prune": {"algorithm": "level", "config_list": [{"op_names": ["3"], "sparsity": 0.5}], "speedup": False}},
        {"finetune": {"max_steps": 6}},
    ]
    result = mp.compress(task.model, stages, task.evaluator(), seed=0)
    assert result.model[0].weight.shape == (3, 4)
    assert int((result.model[3].weight == 0).sum()) == 3


def test_torchs_functions_are_torchs_again(new_task):
    """The third stage has its own linear layer: while one engine is there, and not after the last one, or a failure."""
    linear = F.linear
    one, two = new_task(3), new_task(3)
    evaluators = [one.evaluator(), two.evaluator()]
    for evaluator, task in zip(evaluators, (one, two), strict=True):
        evaluator.bind(task.model)
    assert F.linear is not linear
    evaluators[0].unbind()
    assert F.linear is not linear
    evaluators[1].unbind()
    assert F.linear is linear
    with pytest.raises(InvalidModelError, match="returned a NoneType"):
        new_task(3).evaluator(optimizer=lambda params: None).bind(one.model)
    assert F.linear is linear
