"""How a student's outputs are compared with a teacher's.

Every loss is a mean over rows: samples, tokens or pixels, whatever stands before (or, of images, around) the dimension
of classes. Rows that are padding are left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def output_loss(
    kind: str,
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    temperature: float = 1.0,
    reduction: str = "batchMean",
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss of one pair of outputs.

    KL: T^2 * sum_c p_c (log p_c - log q_c), with p and q the softmax of teacher / T and student / T (Hinton, Vinyals,
    Dean 2015, arXiv:1503.02531; its factor T^2 keeps gradients in measure). CE: T^2 * -sum_c p_c log q_c, which is KL
    and the teacher's entropy. MSE: the mean square of the difference. cosine: 1 - cos of the angle.

    Args:
        kind: KL, CE, MSE or cosine.
        student: (rows..., classes); of four dimensions (batch, classes, height, width).
        teacher: of the same shape.
        temperature: of KL and CE.
        reduction: of KL and CE: batchMean: the sum over classes; mean: their mean. Then the mean over rows.
        rows: True where a row counts, of the shape before the classes; None: all do.

    Returns:
        a scalar in float32, or better where the outputs are; 0 where no row counts.
    """
    student, teacher = _classes_last(student), _classes_last(teacher).to(student.device)
    exact = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    student, teacher = student.to(exact), teacher.to(exact)
    if kind in ("KL", "CE"):
        log_q = F.log_softmax(student / temperature, -1)
        log_p = F.log_softmax(teacher / temperature, -1)
        # Where a class is masked by -inf, p is 0 and 0 * inf would be NaN.
        terms = log_p.exp() * ((log_p if kind == "KL" else 0.0) - log_q).masked_fill(log_p == -torch.inf, 0.0)
        each = terms.sum(-1) if reduction == "batchMean" else terms.mean(-1)
        each = each * temperature**2
    elif kind == "MSE":
        each = (student - teacher).square().mean(-1)
    else:
        each = 1 - F.cosine_similarity(student, teacher, dim=-1)
    return mean_over(each, rows)


def mean_over(each: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """The mean of `each` where `rows` is True; 0 where it is nowhere so."""
    if rows is None:
        return each.mean()
    rows = rows.to(each.device)
    return each.masked_fill(~rows, 0.0).sum() / rows.sum().clamp(min=1)


def _classes_last(value: torch.Tensor) -> torch.Tensor:
    return value.movedim(1, -1) if value.ndim == 4 else value
