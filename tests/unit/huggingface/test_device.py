"""Training and scoring on a GPU, where there is one, and everything back in its place afterwards."""

from __future__ import annotations

import pytest
import torch
from tiny_models import bert, gpt2, rows, subject

from modelpress_runner.huggingface.device import move, on_accelerator
from modelpress_runner.training.run import training_session

ROWS = [{"text": "red cat", "label": "yes"}, {"text": "blue dog", "label": "no"}, {"text": "red dog", "label": "yes"}]


def test_the_state_of_an_optimizer_moves_along():
    """Moments lie beside their parameter, counts of steps on the CPU, where AdamW has them."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    move(model, [optimizer], torch.device("meta"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    for state in optimizer.state.values():
        assert {name: value.device.type for name, value in state.items()} == {
            "step": "cpu",
            "exp_avg": "meta",
            "exp_avg_sq": "meta",
        }


def test_without_a_gpu_nothing_moves(tmp_path, monkeypatch):
    """Nor does a model that is somewhere already."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = subject(gpt2(tmp_path), "causal-lm").model
    weight = model.lm_head.weight.data_ptr()
    with on_accelerator(model):
        assert model.lm_head.weight.data_ptr() == weight
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model.to("meta")
    with on_accelerator(model):
        assert model.lm_head.weight.device == torch.device("meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_and_holds_masks(tmp_path):
    """Two epochs with a mask: on the GPU inside, on the CPU outside, and the score is that of the CPU."""
    splits = (rows(name, *ROWS) for name in ("train", "validation"))
    made = subject(bert(tmp_path, "BertForSequenceClassification"), "text-classification", *splits)
    seen = set()
    mask = torch.ones(32, 16)
    mask[::2] = 0
    name = "bert.encoder.layer.0.intermediate.dense"
    with training_session(made.model, made.evaluator, {name: {"weight": mask}}) as session:
        made.evaluator.after_optimizer_step(lambda: seen.add(next(made.model.parameters()).device.type))
        for _ in range(2):
            session.train(max_epochs=1)
            made.evaluator.load_state_dict(made.evaluator.state_dict())
    assert seen == {"cuda"}
    assert {parameter.device.type for parameter in made.model.parameters()} == {"cpu"}
    assert not made.model.get_submodule(name).weight[::2].any()
    score = made.evaluator.evaluate(made.model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        assert made.evaluator.evaluate(made.model) == pytest.approx(score)
