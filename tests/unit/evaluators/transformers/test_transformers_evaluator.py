"""TransformersEvaluator: a Trainer that is called in chunks, scores any model and leaves nothing behind."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

import modelpress as mp
from modelpress_runner.errors import InvalidModelError, UserCodeError
from modelpress_runner.process.stopping import Stopped


def trained(evaluator, model, chunks, total, seed=1):
    """The state dict of a copy of `model` after these calls of train, and the learning rates of all steps."""
    model = copy.deepcopy(model)
    rates = []
    evaluator.on_training_begin(*total)
    torch.manual_seed(seed)
    evaluator.bind(model)
    evaluator.after_optimizer_step(lambda: rates.append(next(evaluator.optimizers()).param_groups[0]["lr"]))
    for chunk in chunks:
        evaluator.train(*chunk)
    evaluator.unbind()
    return model.state_dict(), rates


def same(one, other) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_epochs_in_chunks_give_what_the_trainer_gives_in_one_call(task):
    """Three calls of one epoch end in the very weights of Trainer.train() over three, dropout and decay included."""
    task.model.drop.p = 0.2
    evaluator = task.evaluator()
    chunked, rates = trained(evaluator, task.model, [(None, 1)] * 3, (None, 3))
    assert rates == pytest.approx([0.05 * (15 - step) / 15 for step in range(15)])
    model = copy.deepcopy(task.model)
    trainer = task.trainer(model, arguments={"num_train_epochs": 3, "disable_tqdm": True})
    torch.manual_seed(1)
    trainer.train()
    assert same(chunked, model.state_dict())


def test_a_chunk_within_an_epoch_goes_on_with_the_batches_that_are_left(task):
    """Steps 2 + 2 + 3 of an epoch of 5 see the samples and rates of 7 steps at a time, each sample once per epoch."""
    seen = []

    def collate(samples):
        seen.append([float(sample["x"][0]) for sample in samples])
        return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}

    evaluator = task.evaluator(data_collator=collate, arguments={"gradient_accumulation_steps": 1})
    chunked, rates = trained(evaluator, task.model, [(2, None), (2, None), (3, None)], (7, None))
    at_once, same_rates = trained(evaluator, task.model, [(7, None)], (7, None))
    assert rates == same_rates
    assert same(chunked, at_once)


def test_a_chunk_with_accumulated_gradients_ends_with_a_step(task):
    """Micro batches of 4, five to a step and the epoch's last ones to a step of their own, whatever the chunks."""
    arguments = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}
    evaluator = task.evaluator(arguments=arguments)
    chunked, rates = trained(evaluator, task.model, [(3, None), (3, None)], (6, None))
    at_once, _ = trained(evaluator, task.model, [(6, None)], (6, None))
    assert len(rates) == 6
    assert same(chunked, at_once)


def test_a_resumed_chunk_equals_an_undisturbed_one(task):
    """Optimizer, schedule, counters and place in the data go through weights_only; dropout follows the generators."""
    task.model.drop.p = 0.2
    whole, _ = trained(task.evaluator(), task.model, [(9, None)], (9, None))
    assert same(trained(task.evaluator(), task.model, [(3, None)] * 3, (9, None))[0], whole)

    first, model = task.evaluator(), copy.deepcopy(task.model)
    first.on_training_begin(9, None)
    torch.manual_seed(1)
    first.bind(model)
    first.train(3)
    first.train(3)
    buffer, generator = io.BytesIO(), torch.get_rng_state()
    torch.save({"trainer": first.state_dict(), "model": model.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)

    second, model = task.evaluator(), copy.deepcopy(task.model)
    model.load_state_dict(saved["model"])
    second.on_training_begin(9, None)
    torch.manual_seed(1)
    second.bind(model)
    second.load_state_dict(saved["trainer"])
    torch.set_rng_state(generator)
    assert second.trainer.state.global_step == 6
    second.train(3)
    assert second.trainer.state.global_step == 9
    assert second.trainer.state.epoch == pytest.approx(9 / 5)
    second.unbind()
    assert same(model.state_dict(), whole)


def test_hooks_see_real_steps_only_and_two_evaluators_do_not_meet(task):
    """With 10 micro batches and 5 to a step there are 2 steps; another evaluator bound beside it sees its own alone."""
    arguments = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 5}
    one, other = task.evaluator(arguments=arguments), task.evaluator()
    calls = []
    one.bind(copy.deepcopy(task.model))
    other.bind(copy.deepcopy(task.model))
    for name, evaluator in (("one", one), ("other", other)):
        evaluator.before_optimizer_step(lambda name=name: calls.append(f"{name} before"))
        evaluator.after_optimizer_step(lambda name=name: calls.append(f"{name} after"))
    one.train(None, 1)
    assert calls == ["one before", "one after"] * 2
    other.train(3)
    assert calls[4:] == ["other before", "other after"] * 3
    kept = next(one.optimizers())
    one.unbind()
    other.unbind()
    kept.step()
    assert len(calls) == 10


class Reducing(Trainer):
    """Takes the model's loss as a mean of its own, with the signature that most tutorials show."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs["logits"], labels)
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize(
    ("cls", "arguments", "changes"),
    [
        (Trainer, {}, {}),
        (Trainer, {"gradient_accumulation_steps": 5}, {}),
        (Trainer, {"label_smoothing_factor": 0.1, "gradient_accumulation_steps": 5}, {}),
        (Reducing, {}, {}),
        (
            Trainer,
            {"gradient_accumulation_steps": 5},
            {
                "compute_loss_func": lambda outputs, labels, num_items_in_batch: (
                    F.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch
                )
            },
        ),
    ],
)
def test_a_loss_patch_works_on_the_mean_over_the_batch(task, cls, arguments, changes):
    """Each of five micro batches' losses is patched as a mean: with loss * 0 + sum(w) a step's gradient is 1 each."""
    evaluator = task.evaluator(cls=cls, arguments={**arguments, "max_grad_norm": 0.0}, **changes)
    batches, losses, gradients = [], [], []

    def patch(loss, batch):
        batches.append(batch)
        losses.append(loss.item())
        return loss * 0 + task.model.fc1.weight.sum()

    evaluator.bind(task.model)
    evaluator.patch_loss(patch)
    evaluator.before_optimizer_step(lambda: gradients.append(task.model.fc1.weight.grad.clone()))
    evaluator.train(1)
    assert len(batches) == arguments.get("gradient_accumulation_steps", 1)
    assert all(batch["labels"].shape == (8,) for batch in batches)
    assert all(0.5 < loss < 0.9 for loss in losses)  # not a fifth of ln 2, as the Trainer holds it
    assert torch.allclose(gradients[0], torch.ones(6, 4))
    evaluator.evaluate()
    assert len(batches) == arguments.get("gradient_accumulation_steps", 1)
    evaluator.unbind()
    evaluator.bind(task.model)
    evaluator.train(1)
    assert len(batches) == arguments.get("gradient_accumulation_steps", 1)


@pytest.mark.parametrize("where", ["loss", "before", "after"])
def test_stopped_passes_through_the_trainer_and_unbinding_works(task, where):
    """Stopped leaves Trainer.train() from anywhere; afterwards the evaluator trains another model as if fresh."""
    arguments = {"gradient_accumulation_steps": 2}
    expected, _ = trained(task.evaluator(arguments=arguments), task.model, [(None, 1)], (None, 1))
    evaluator, model = task.evaluator(arguments=arguments), copy.deepcopy(task.model)
    evaluator.bind(model)

    def stop(*_):
        raise Stopped

    {"loss": evaluator.patch_loss, "before": evaluator.before_optimizer_step, "after": evaluator.after_optimizer_step}[
        where
    ](stop)
    with pytest.raises(Stopped):
        evaluator.train(None, 1)
    evaluator.unbind()
    again, _ = trained(evaluator, task.model, [(None, 1)], (None, 1))
    assert same(again, expected)


def test_unbinding_leaves_no_trace(task):
    """No hook, patched method, attribute or configuration stays on the model, the Trainer or the file system."""
    model = task.model
    evaluator = task.evaluator(arguments={"bf16": True, "output_dir": str(task.folder / "own"), "report_to": "none"})
    (task.folder / "own").rmdir()
    del model.config.use_cache
    config = copy.deepcopy(vars(model.config))
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    evaluator.record_parameter_names(model)
    evaluator.evaluate(model)
    evaluator.bind(model)
    evaluator.train(None, 1)
    trainer = evaluator.trainer
    assert "forward" in vars(model)  # mixed precision
    evaluator.unbind()
    evaluator.evaluate(model)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(not vars(parameter) and not parameter._backward_hooks for parameter in model.parameters())
    assert vars(model.config) == config
    assert not {"compute_loss", "_run_epoch", "_prepare_for_training", "_init_training_state"} & set(vars(trainer))
    assert not list(task.folder.iterdir())
    with pytest.raises(RuntimeError, match="not bound"):
        evaluator.train(1)
    evaluator.bind(model)
    with pytest.raises(RuntimeError, match="already bound"):
        evaluator.bind(model)


def test_checkpoints_are_written_only_where_they_were_asked_for(task):
    """save_strategy epoch leaves the Trainer's checkpoints in output_dir, as the user wanted."""
    evaluator = task.evaluator(arguments={"save_strategy": "epoch"})
    trained(evaluator, task.model, [(None, 1)] * 2, (None, 2))
    assert sorted(path.name for path in (task.folder / "trainer").iterdir()) == ["checkpoint-10", "checkpoint-5"]


def test_any_model_is_scored_program_and_dense_alike(task):
    """A model that takes no labels has the same score; its loss is left out where the Trainer cannot compute it."""

    class Plain(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x)["logits"]

    evaluator = task.evaluator()
    evaluator.record_parameter_names(task.model)
    dense = evaluator.evaluate(task.model)
    program = evaluator.evaluate(Plain(task.model))
    assert set(dense) == {"default", "other", "loss"}
    assert program == {"default": dense["default"], "other": 3.0}
    smoothed = task.evaluator(arguments={"label_smoothing_factor": 0.1})
    smoothed.record_parameter_names(task.model)
    assert smoothed.evaluate(task.model) == pytest.approx(smoothed.evaluate(Plain(task.model)))


def test_evaluation_leaves_modes_flags_and_random_numbers_as_they_were(task):
    """Also while another model is bound."""
    evaluator = task.evaluator()
    other = copy.deepcopy(task.model)
    task.model.train()
    task.model.fc1.eval()
    evaluator.bind(task.model)
    evaluator.train(2)
    generator = torch.get_rng_state()
    bound, free = evaluator.evaluate(), evaluator.evaluate(other)
    assert bound["loss"] != free["loss"]
    assert torch.equal(torch.get_rng_state(), generator)
    assert task.model.training
    assert not task.model.fc1.training
    evaluator.train(2)
    assert evaluator.trainer.state.global_step == 4


@pytest.mark.parametrize(
    ("returned", "metric", "score"),
    [
        ({"default": 0.5}, None, 0.5),
        ({"eval_default": 0.5}, None, 0.5),
        ({"accuracy": 0.25}, "accuracy", 0.25),
        ({"accuracy": 0.25}, "eval_accuracy", 0.25),
    ],
)
def test_the_score_is_found_with_and_without_the_trainers_prefix(task, returned, metric, score):
    """`default`, or the metric that was named."""
    evaluator = task.evaluator(compute_metrics=lambda prediction: returned, options={"metric": metric})
    assert evaluator.evaluate(task.model)["default"] == score


def test_a_missing_score_lists_what_there_is(task):
    """The message names the metrics, and how to name one."""
    evaluator = task.evaluator(compute_metrics=lambda prediction: {"accuracy": 0.5, "f1": 0.25})
    with pytest.raises(InvalidModelError, match=r"gave 'loss', 'accuracy', 'f1' but no 'default'.*metric='\.\.\.'"):
        evaluator.evaluate(task.model)


def test_own_optimizers_and_schedules_are_made_again(task):
    """A traced optimizer and scheduler, or a class with its arguments, and their state goes on from chunk to chunk."""
    sgd = mp.trace(torch.optim.SGD)(task.model.parameters(), lr=0.5, momentum=0.9)
    halving = mp.trace(torch.optim.lr_scheduler.StepLR)(sgd, step_size=5, gamma=0.5)
    evaluator = task.evaluator(optimizers=(sgd, halving))
    _, rates = trained(evaluator, task.model, [(None, 1)] * 3, (None, 3))
    assert rates == [0.5] * 5 + [0.25] * 5 + [0.125] * 5
    by_class = task.evaluator(optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.5, "momentum": 0.9}))
    by_class.bind(copy.deepcopy(task.model))
    assert type(next(by_class.optimizers())) is torch.optim.SGD


def test_a_function_makes_the_trainer_for_each_model(task):
    """What it returns must be a Trainer for the model that it is given."""
    evaluator = mp.TransformersEvaluator(lambda model: task.trainer(model))
    smaller = copy.deepcopy(task.model)
    smaller.fc1, smaller.fc2 = nn.Linear(4, 3), nn.Linear(3, 2)
    for model in (task.model, smaller):
        evaluator.bind(model)
        evaluator.train(1)
        evaluator.unbind()
    assert "default" in evaluator.evaluate(smaller)
    with pytest.raises(InvalidModelError, match="for another model"):
        mp.TransformersEvaluator(lambda model: task.trainer()).bind(smaller)
    with pytest.raises(InvalidModelError, match="returned a NoneType"):
        mp.TransformersEvaluator(lambda model: None).bind(smaller)


def test_a_trainer_serves_a_later_model_with_other_parameters(task):
    """What came out of one compression can go into the next with the same evaluator and its traced optimizer."""
    evaluator = task.evaluator(optimizers=(mp.trace(torch.optim.SGD)(task.model.parameters(), lr=0.1), None))
    evaluator.record_parameter_names(task.model)
    later = copy.deepcopy(task.model)
    later.fc1, later.fc2 = nn.Linear(4, 3), nn.Linear(3, 2)
    evaluator.record_parameter_names(later)
    evaluator.bind(later)
    assert next(evaluator.optimizers()).param_groups[0]["params"][0] is later.fc1.weight


def test_early_stopping_ends_the_whole_stage(task):
    """Once a callback has ended the training, later chunks train no more; so does a resumed one."""
    stopping = EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=10.0)
    arguments = {"eval_strategy": "epoch", "metric_for_best_model": "loss", "load_best_model_at_end": False}
    evaluator = task.evaluator(arguments=arguments, callbacks=[stopping])
    evaluator.on_training_begin(None, 6)
    evaluator.bind(task.model)
    for _ in range(4):
        evaluator.train(None, 1)
    assert evaluator.trainer.state.global_step == 10
    state = evaluator.state_dict()
    evaluator.unbind()
    evaluator.bind(task.model)
    evaluator.load_state_dict(state)
    evaluator.train(None, 1)
    assert evaluator.trainer.state.global_step == 10


def test_callbacks_see_counters_that_go_on(task):
    """state.epoch and state.global_step never fall back between chunks."""
    seen = []

    class Noting(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append((state.global_step, round(state.epoch, 2)))

    trained(task.evaluator(callbacks=[Noting()]), task.model, [(None, 1)] * 2, (None, 2))
    assert seen == [(step, round(step / 5, 2)) for step in range(1, 11)]


def test_early_stopping_within_a_chunk_of_steps(task):
    """A callback that ends the training ends it for good; the end of a chunk does not."""

    class AtSeven(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop |= state.global_step == 7

    evaluator = task.evaluator(callbacks=[AtSeven()])
    evaluator.on_training_begin(12, None)
    evaluator.bind(task.model)
    steps = []
    for _ in range(4):
        evaluator.train(3)
        steps.append(evaluator.trainer.state.global_step)
    assert steps == [3, 6, 7, 7]


def in_places(task, places):
    sgd = mp.trace(torch.optim.SGD)(task.model.parameters(), lr=0.5)
    step = mp.trace(torch.optim.lr_scheduler.StepLR)(sgd, step_size=1)
    return task.trainer(cls=mp.trace(Trainer), optimizers=places(sgd, step))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda task: task.trainer(), r"was not traced.*mp\.trace\(Trainer\)"),
        (lambda task: 5, "trainer is a int"),
        (lambda task: Trainer, "trainer is a type"),
        (lambda task: task.trainer(cls=mp.trace(Trainer), arguments={"push_to_hub": False, "fsdp": ""}), None),
        (
            lambda task: task.trainer(
                cls=mp.trace(Trainer),
                arguments={"load_best_model_at_end": True, "save_strategy": "epoch", "eval_strategy": "epoch"},
            ),
            "load_best_model_at_end, which cannot work.*resumable=False",
        ),
        (lambda task: in_places(task, lambda sgd, step: (step, None)), "have a StepLR in the other's place"),
        (lambda task: in_places(task, lambda sgd, step: (step, sgd)), "have a StepLR in the other's place"),
        (lambda task: in_places(task, lambda sgd, step: (None, sgd)), r"have a \w*SGD in the other's place"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_made(task, make, message):
    """Untraced Trainers, things that are none, and options that would work against the compression."""
    if message is None:
        mp.TransformersEvaluator(make(task))
        return
    with pytest.raises(InvalidModelError, match=message):
        mp.TransformersEvaluator(make(task))


def test_untraced_parts_and_missing_data_are_named(task):
    """An untraced scheduler, a model without data to train on or to score with."""
    sgd = mp.trace(torch.optim.SGD)(task.model.parameters(), lr=0.5)
    untraced = torch.optim.lr_scheduler.StepLR(sgd, step_size=1)
    with pytest.raises(InvalidModelError, match=r"StepLR that was not traced"):
        task.evaluator(optimizers=(sgd, untraced)).bind(task.model)
    with pytest.raises(InvalidModelError, match=r"SGD that was not traced"):
        task.evaluator(optimizers=(torch.optim.SGD(task.model.parameters()), None)).bind(task.model)
    only = task.evaluator(train_dataset=None)
    assert not only.can_train
    assert only.can_evaluate
    only.bind(task.model)
    assert list(only.optimizers()) == []
    with pytest.raises(InvalidModelError, match="give it a train_dataset"):
        only.train(1)
    assert "default" in only.evaluate()
    blind = task.evaluator(eval_dataset=None)
    assert not blind.can_evaluate
    with pytest.raises(InvalidModelError, match="give it an eval_dataset"):
        blind.evaluate(task.model)


def test_data_without_length_trains_by_steps(task):
    """Epochs of an iterable dataset cannot be counted; steps go on over its ends, each chunk where the last ended."""

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([task.data[index] for index in range(40)])

    # a Trainer without a length wants max_steps itself
    evaluator = task.evaluator(train_dataset=Stream(), arguments={"max_steps": 5})
    chunked, _ = trained(evaluator, task.model, [(3, None), (4, None)], (7, None))
    at_once, _ = trained(evaluator, task.model, [(7, None)], (7, None))
    assert same(chunked, at_once)
    evaluator.on_training_begin(None, 1)
    with pytest.raises(InvalidModelError, match="give maxSteps instead of epochs"):
        evaluator.bind(task.model)


def test_an_exception_in_the_users_code_names_its_line(task):
    """In training and in scoring."""

    def broken(samples):
        raise KeyError("column")

    evaluator = task.evaluator(data_collator=broken)
    evaluator.bind(task.model)
    with pytest.raises(UserCodeError, match=r"Trainer\.train raised KeyError: 'column' \(.*test_transformers"):
        evaluator.train(1)
    with pytest.raises(UserCodeError, match=r"Trainer\.evaluate raised KeyError"):
        evaluator.evaluate()


def test_prune_and_finetune_end_to_end(task):
    """A recipe over a Trainer shrinks the model and keeps its masks; its score is found in every form."""
    stages = [
        {"prune": {"algorithm": "l1", "config_list": [{"op_names": ["fc1"], "sparsity": 0.5}], "speedup": True}},
        {"finetune": {"epochs": 2}},
        {"prune": {"algorithm": "level", "config_list": [{"op_names": ["fc2"], "sparsity": 0.5}], "speedup": False}},
        {"finetune": {"max_steps": 12}},
    ]
    evaluator = task.evaluator()
    result = mp.compress(task.model, stages, evaluator, {"x": task.data.x[:2]}, seed=0, target={"format": "pt2"})
    assert result.model.fc1.weight.shape == (3, 4)
    assert int((result.model.fc2.weight == 0).sum()) == 3
    assert result.metrics["compressed"]["default"] > result.metrics["baseline"]["default"]
