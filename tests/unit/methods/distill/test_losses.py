"""Losses between a student's and a teacher's outputs: numbers worked out by hand, gradients, rows that count."""

from __future__ import annotations

import math

import pytest
import torch

from modelpress_runner.methods.distill.losses import output_loss
from modelpress_runner.methods.distill.outputs import compared, feature, rows_of
from modelpress_runner.training.calls import Call

# The teacher's softmax is (3/4, 1/4), the student's (1/2, 1/2).
TEACHER, STUDENT = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)


@pytest.mark.parametrize(
    ("kind", "temperature", "reduction", "expected"),
    [
        ("KL", 1.0, "batchMean", 0.75 * math.log(1.5) + 0.25 * math.log(0.5)),  # .130812
        ("KL", 1.0, "mean", 0.065406),
        # At temperature 2 the teacher has (sqrt 3, 1) / (1 + sqrt 3): 4 (log 2 - .656806)
        ("KL", 2.0, "batchMean", 0.145365),
        ("CE", 1.0, "batchMean", math.log(2)),
        ("CE", 2.0, "batchMean", 4 * math.log(2)),
        ("MSE", 1.0, "batchMean", math.log(3) ** 2 / 2),
        ("MSE", 7.0, "batchMean", math.log(3) ** 2 / 2),
    ],
)
def test_losses_by_hand(kind: str, temperature: float, reduction: str, expected: float) -> None:
    """Two rows have the mean of one."""
    for rows in (1, 2):
        student, teacher = STUDENT.expand(rows, 2), TEACHER.expand(rows, 2)
        loss = output_loss(kind, student, teacher, temperature=temperature, reduction=reduction)
        assert loss.item() == pytest.approx(expected, abs=2e-6)


def test_cosine_by_hand() -> None:
    """45 degrees."""
    loss = output_loss("cosine", torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]]))
    assert loss.item() == pytest.approx(1 - math.sqrt(0.5))


@pytest.mark.parametrize("kind", ["KL", "CE", "MSE", "cosine"])
@pytest.mark.parametrize("reduction", ["batchMean", "mean"])
def test_gradients_are_those_of_finite_differences(kind: str, reduction: str) -> None:
    """In float64, with a row left out."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    rows = torch.tensor([[True, True, False], [True, False, True]])
    assert torch.autograd.gradcheck(
        lambda value: output_loss(kind, value, teacher, temperature=3.0, reduction=reduction, rows=rows), (student,)
    )


def test_kl_and_ce_have_one_gradient() -> None:
    """They differ by the teacher's entropy, which does not depend on the student."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(5, 4, generator=generator)
    gradients = []
    for kind in ("KL", "CE"):
        student = torch.ones(5, 4, requires_grad=True)
        output_loss(kind, student, teacher, temperature=2.0).backward()
        gradients.append(student.grad)
    torch.testing.assert_close(*gradients)


def test_rows_that_do_not_count() -> None:
    """Padding changes nothing, whatever stands there; where no row counts the loss is 0 and has a gradient."""
    student = torch.zeros(1, 3, 2, requires_grad=True)
    teacher = torch.cat([TEACHER, TEACHER, torch.tensor([[1e9, -1e9]])])[None]
    rows = torch.tensor([[True, True, False]])
    assert output_loss("KL", student, teacher, rows=rows).item() == pytest.approx(0.130812, abs=2e-6)
    nothing = output_loss("KL", student, teacher, rows=torch.zeros(1, 3, dtype=torch.bool))
    nothing.backward()
    assert nothing.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


def test_classes_of_an_image_are_its_second_dimension() -> None:
    """(batch, classes, height, width), each pixel a row."""
    teacher = TEACHER[:, :, None, None].expand(1, 2, 3, 3)
    assert output_loss("KL", torch.zeros(1, 2, 3, 3), teacher).item() == pytest.approx(0.130812, abs=2e-6)


def test_a_masked_class_is_no_nan() -> None:
    """A class at -inf on both sides has no part in the loss."""
    student = torch.tensor([[0.0, 0.0, -torch.inf]], requires_grad=True)
    loss = output_loss("KL", student, torch.cat([TEACHER, torch.tensor([[-torch.inf]])], 1))
    loss.backward()
    assert loss.item() == pytest.approx(0.130812, abs=2e-6)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_half_precision_is_compared_in_full() -> None:
    """bfloat16 keeps 8 bits; the sum is made in float32."""
    loss = output_loss("KL", STUDENT.bfloat16(), TEACHER.bfloat16())
    assert loss.dtype == torch.float32


def test_what_of_the_outputs_is_compared() -> None:
    """All that is called logits, else the first tensor of numbers; of tuples the first."""
    a, b, ids, loss = torch.ones(2, 3), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.long), torch.tensor(1.0)
    assert list(compared(a)) == ["output"]
    assert list(compared({"loss": loss, "start_logits": a, "end_logits": b, "states": b})) == [
        "start_logits",
        "end_logits",
    ]
    assert list(compared({"loss": loss, "last_hidden_state": a, "pooler_output": b})) == ["last_hidden_state"]
    assert compared((loss, ids, a))["output"] is a
    assert compared((loss, {"logits": b})) == {"logits": b}
    assert compared("nothing") == {}
    assert feature((None, ids, a)) is a
    assert feature({"x": [b]}) is b


def test_which_tokens_count() -> None:
    """Those with a label; in a language model those before one with a label; else those that are no padding."""
    labels = torch.tensor([[5, -100, 7, -100]])
    mask = torch.tensor([[1, 1, 1, 0]])
    shape = torch.Size([1, 4, 9])

    def rows(next_token: bool = False, **kwargs: torch.Tensor) -> list[bool] | None:
        found = rows_of(Call((), kwargs, None), shape, next_token)
        return None if found is None else found[0].tolist()

    assert rows(labels=labels, attention_mask=mask) == [True, False, True, False]
    assert rows(True, labels=labels) == [False, True, False, False]
    assert rows(attention_mask=mask) == [True, True, True, False]
    assert rows(labels=torch.tensor([1])) is None
    assert rows_of(Call((), {"attention_mask": mask}, None), torch.Size([1, 2]), False) is None
