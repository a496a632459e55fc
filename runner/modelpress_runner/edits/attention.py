"""nn.MultiheadAttention with fewer heads than its width divides into.

torch's module takes the width of a head to be embed_dim / num_heads, so it cannot lose one. A cut makes it this
subclass, which computes the same and reads the number of heads from its weight.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class PrunedMultiheadAttention(nn.MultiheadAttention):
    """The same computation with `num_heads` heads of `head_dim` each; in_proj_weight is (3 num_heads head_dim, E).

    It has none of torch's fused kernels for whole layers, which know no such shape.
    """

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As nn.MultiheadAttention.forward, shapes too.

        Raises:
            RuntimeError: is_causal without attn_mask.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        batched = query.dim() == 3
        if not batched:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), self.in_proj_weight.chunk(3), biases, strict=True)
        )
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        mask = self._mask(q, key_padding_mask, attn_mask)
        dropout = self.dropout if self.training else 0.0
        weights: torch.Tensor | None = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-1, -2)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, dropout, self.training)
            mixed = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not batched:
            return out[0], None if weights is None else weights[0]
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _mask(
        self, q: torch.Tensor, padding: torch.Tensor | None, attn_mask: torch.Tensor | None
    ) -> torch.Tensor | None:
        """What is added to scores (N, heads, L, S), in a shape that broadcasts to theirs."""
        mask = None
        if attn_mask is not None:
            mask = _added(attn_mask, q.dtype)
            if mask.dim() == 3 and mask.shape[0] > 1:
                mask = mask.unflatten(0, (q.shape[0], -1))
            if self.add_zero_attn:
                mask = F.pad(mask, (0, 1))
        if padding is not None:
            padding = _added(padding, q.dtype)[:, None, None]
            if self.add_zero_attn:
                padding = F.pad(padding, (0, 1))
            mask = padding if mask is None else mask + padding
        return mask


def cut_heads(module: nn.MultiheadAttention) -> None:
    """Lets the module have as many heads as its in_proj_weight has rows for."""
    weight = module.in_proj_weight
    assert weight is not None
    module.__class__ = PrunedMultiheadAttention
    module._qkv_same_embed_dim = False  # what torch's fused layers ask before they take its weights
    module.num_heads = weight.shape[0] // (3 * module.head_dim)


def keep_from_nested(model: nn.Module, module: nn.Module) -> None:
    """Encoders around the module no longer give it nested tensors, which only torch's fused layers take."""
    for encoder in model.modules():
        if isinstance(encoder, nn.TransformerEncoder) and any(inner is module for inner in encoder.modules()):
            encoder.use_nested_tensor = False


def _added(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask whose True is forbidden, as one that is added."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))
