"""A layer that lost inputs, fitted to what it gave before: a mean's correction, or ridge regression.

Of a layer y = W x + b with removed inputs R and kept ones S the sum over R is missing. It is predicted from what is
left: by its mean alone (bias; as in FLAP, An et al. 2023, arXiv 2312.11983), or linearly by the kept inputs, in least
squares over the calibration data (He et al. 2017, arXiv 1707.06168; Kwon et al. 2022, arXiv 2204.09656):

    W'_S = W_S + W_R C_RS (C_SS + r I)^-1,   r = strength * mean of the diagonal of C_SS,
    b'   = b + W_R m_R - (W'_S - W_S) m_S

with the mean m and the covariance C of the dense model's inputs. The ridge pulls towards the weights as they are, not
towards zero: as it grows this becomes the bias correction. A layer without bias has second moments about zero in place
of C, and no b'. Targets and inputs are the dense model's, so layers do not wait for each other and one pass serves
every strength.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from modelpress_runner.methods.reconstruct.inputs import weight_matrix
from modelpress_runner.methods.reconstruct.statistics import InputMoments


@dataclass(frozen=True)
class Loss:
    """What a layer has lost by masks.

    Attributes:
        missing: W before minus W now, (outputs, inputs); zero in outputs that are removed themselves.
        kept: bool (inputs,), those that are still multiplied with something.
        whole: whether each input went for all outputs, or for none: then kept ones can be refitted.
    """

    missing: torch.Tensor
    kept: torch.Tensor
    whole: bool

    @classmethod
    def of(cls, before: torch.Tensor, now: torch.Tensor, mask: torch.Tensor, removed: torch.Tensor) -> Loss | None:
        """Of a weight; None: it has lost nothing but what belonged to outputs that are `removed`, bool (outputs,)."""
        gone = weight_matrix(mask) == 0
        alive = ~removed
        difference = (weight_matrix(before) - weight_matrix(now)) * alive[:, None]
        if not difference.any():
            return None
        kept = ~gone[alive].all(dim=0)
        return cls(difference, kept, whole=not bool(gone[alive][:, kept].any()))


def corrected_bias(module: nn.Module, loss: Loss, moments: InputMoments) -> dict[str, torch.Tensor]:
    """New values of the layer's parameters by name: its bias with what is missing on average; {} without a bias."""
    bias = module.bias
    if bias is None:
        return {}
    assert isinstance(bias, torch.Tensor)
    mean = moments.compute()
    return {"bias": _like(bias, _wide(bias, mean) + _wide(loss.missing, mean) @ mean)}


def refitted(module: nn.Module, loss: Loss, moments: InputMoments, strength: float) -> dict[str, torch.Tensor]:
    """New values of the layer's parameters by name: weight and, if it has one, bias.

    Args:
        strength: of the ridge, relative to the mean variance of the kept inputs; above 0.
    """
    weight, bias = module.weight, module.bias
    assert isinstance(weight, torch.Tensor)
    mean, covariance = moments.compute(), moments.covariance(centred=bias is not None)
    missing, kept = _wide(loss.missing, mean), loss.kept.to(mean.device)
    inner = covariance[kept][:, kept]
    ridge = strength * float(inner.diagonal().mean()) if inner.numel() else 0.0
    if ridge <= 0:  # kept inputs that never vary predict nothing
        return corrected_bias(module, loss, moments)
    inner.diagonal().add_(ridge)
    right = (missing @ covariance[:, kept]).T
    change = torch.cholesky_solve(right, torch.linalg.cholesky(inner)).T  # (outputs, kept)
    matrix = _wide(weight_matrix(weight), mean).clone()
    matrix[:, kept] += change
    values = {"weight": _like(weight, matrix.reshape(weight.shape))}
    if isinstance(bias, torch.Tensor):
        values["bias"] = _like(bias, _wide(bias, mean) + missing @ mean - change @ mean[kept])
    return values


def _wide(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """In float64, where the moments are."""
    return tensor.detach().to(like.device).to(torch.float64)


def _like(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return value.to(parameter.dtype).to(parameter.device)
