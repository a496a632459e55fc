"""Honest models of many kinds, small and random: what they export to is what a program may call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

Made = tuple[nn.Module, Any]


class Call(nn.Module):
    """A module around a function of a tensor (batch, ...)."""

    def __init__(self, function: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x, *self.layers)


class Pick(nn.Module):
    """One named output of a transformers model."""

    def __init__(self, model: nn.Module, output: str, fixed: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.model, self.output, self.fixed = model, output, fixed or {}

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return getattr(self.model(**inputs, **self.fixed), self.output)


def _activations(x: torch.Tensor) -> torch.Tensor:
    for each in (F.relu, F.gelu, F.silu, F.mish, F.elu, F.selu, F.celu, F.softplus, F.softsign, F.hardswish, F.hardtanh,
                 F.hardsigmoid, F.leaky_relu, F.logsigmoid, F.tanhshrink, F.softshrink, F.relu6, torch.sigmoid,
                 torch.tanh, F.hardshrink, F.rrelu):  # fmt: skip
        x = x + each(x)
    return F.glu(x, -1) + F.softmax(x[..., ::2], -1) + F.log_softmax(x[..., 1::2], -1) + F.softmin(x[..., ::2], -1)


def _inplace(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y.add_(1).mul_(2).clamp_(-3, 3).relu_()
    y[:, 0] = 0
    y[:, 1] += x[:, 0]
    y = y.masked_fill(y > 1, 0.5)
    return y.sub_(0.5).div_(2)


def _pooling(x: torch.Tensor) -> Any:
    return [
        *(F.max_pool2d(x, 2), F.avg_pool2d(x, 2), F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 2)),
        *(F.lp_pool2d(x, 2, 2), F.max_pool1d(x.flatten(2), 2), F.avg_pool1d(x.flatten(2), 2)),
        *(F.adaptive_avg_pool1d(x.flatten(2), 2), F.max_pool3d(x.unsqueeze(1), 2), F.avg_pool3d(x.unsqueeze(1), 2)),
    ]


def _resizing(x: torch.Tensor) -> Any:
    grid = F.affine_grid(torch.eye(2, 3, dtype=x.dtype).expand(x.shape[0], 2, 3), [x.shape[0], 4, 8, 8])
    return [
        *(F.interpolate(x, scale_factor=2), F.interpolate(x, size=(5, 5), mode="bilinear")),
        *(F.interpolate(x, scale_factor=2, mode="bicubic"), F.interpolate(x, size=4, mode="area")),
        *(F.pixel_shuffle(x, 2), F.pixel_unshuffle(x, 2), F.channel_shuffle(x, 2), F.grid_sample(x, grid)),
        *(F.pad(x, (1, 1, 1, 1), mode="reflect"), F.pad(x, (1, 1, 1, 1), mode="replicate"), F.pad(x, (1, 1))),
        *(F.pad(x, (1, 1, 1, 1), mode="circular"), F.unfold(x, 2), F.fold(F.unfold(x, 2), (8, 8), 2)),
    ]


def _shapes(x: torch.Tensor) -> Any:
    a, b = x.chunk(2, 1)
    parts = x.split([1, 3], 1)
    y = torch.cat([a, b], 1).permute(0, 2, 3, 1).contiguous().view(x.shape[0], -1)
    return [
        *(y, torch.stack([a, b], 1), torch.roll(x, 1, 2), torch.flip(x, [1]), x.transpose(1, 2), x.mT, x.unbind(1)[0]),
        *(torch.einsum("bchw,bdhw->bcd", x, x), torch.where(x > 0, x, -x), x.gather(1, x.argmax(1, keepdim=True))),
        *(x.topk(2, 1)[0], x.sort(1)[0], x.cumsum(1), x.norm(dim=1), x.var(1), x.std(1), x.amax((2, 3)), x.prod(1)),
        *(torch.triu(x), torch.tril(x), x.repeat(1, 2, 1, 1), x.expand(-1, -1, -1, -1), F.normalize(x), parts[1]),
        *(x.flatten(1), x.unflatten(1, (2, 2)), x.squeeze(), x[:, [0, 2]], x[:, None], x.index_select(1, _index(2))),
        *(torch.logsumexp(x, 1), torch.clamp(x, min=0), torch.bmm(x[:, 0], x[:, 1]), x @ x.mT, x.movedim(1, -1)),
        *(F.one_hot(x.argmax(1), 4), torch.linspace(0, 1, 4) + x.mean((2, 3)), torch.arange(x.shape[0]) + 1),
        *(
            torch.fft.rfft(x).abs(),
            torch.fft.fft2(x).real,
            F.cosine_similarity(x, x + 1, 1),
            torch.cdist(x[:, 0], x[:, 1]),
        ),
        *(
            torch.zeros_like(x),
            x.new_zeros(x.shape[0], 2),
            torch.full((x.shape[0], 1), 2.0),
            torch.meshgrid(x[0, 0, 0], x[0, 0, 0], indexing="ij")[0],
        ),
        *(
            x.unfold(2, 2, 1),
            x.repeat_interleave(2, 1),
            torch.outer(x[0, 0, 0], x[0, 0, 0]),
            x.scatter(1, x.argmax(1, keepdim=True), 1.0),
        ),
        *(torch.bucketize(x, torch.tensor([0.0, 1.0])), x.masked_fill(x > 0, 0), torch.isnan(x), torch.nan_to_num(x)),
        *(
            torch.sin(x),
            torch.cos(x),
            torch.exp(-x.abs()),
            torch.log1p(x.abs()),
            torch.rsqrt(x.abs() + 1),
            torch.erf(x),
        ),
        *(
            x.half().float(),
            x.double(),
            x.to(torch.bfloat16),
            x.long(),
            x % 2,
            x // 2,
            torch.pow(x, 2),
            x.sign(),
            x.round(),
        ),
    ]


def _index(count: int) -> torch.Tensor:
    return torch.arange(count)


def _random(x: torch.Tensor) -> torch.Tensor:
    keep = torch.rand(x.shape[0], 1, 1, 1) > 0.5
    noise = x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.5)
    return F.dropout(x * keep, 0.5) + torch.randn_like(x) + noise + F.dropout2d(x, 0.2) + F.alpha_dropout(x, 0.1)


def _complex(x: torch.Tensor) -> torch.Tensor:
    turned = torch.view_as_complex(x.reshape(x.shape[0], -1, 2)) * torch.polar(torch.ones(1), torch.ones(1))
    return torch.view_as_real(turned).flatten(1)


def _attention(x: torch.Tensor) -> torch.Tensor:
    mask = torch.ones(8, 8, dtype=torch.bool).tril()
    return F.scaled_dot_product_attention(x, x, x, attn_mask=mask) + F.scaled_dot_product_attention(
        x, x, x, is_causal=True, dropout_p=0.1
    )


def _control(x: torch.Tensor) -> Any:
    with torch.no_grad():
        scale = x.abs().amax(dim=-1, keepdim=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = x @ x.transpose(-1, -2)
    chosen = torch.cond(x.sum() > 0, lambda y: y.sin(), lambda y: y.cos(), (x,))
    _, pair = torch.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * 2), (torch.tensor(0), x))
    return scale, low.float(), chosen, pair


def _outputs(x: torch.Tensor) -> Any:
    values, _ = x.max(dim=-1)
    first, _, last = x.split([2, 2, 4], dim=-1)
    _, places = x.topk(2)
    rows = x.flatten(1)
    return {"values": [values, first], "last": (last, places), "size": rows.new_full((x.shape[0], 2), x.shape[0])}


def plain() -> Iterator[tuple[str, Made]]:
    """Models of torch alone."""
    image = torch.randn(2, 4, 8, 8)
    rows = torch.randn(2, 6, 8)
    yield "activations", (Call(_activations), rows)
    yield "in place", (Call(_inplace), rows)
    yield "pooling", (Call(_pooling), image)
    yield "resizing", (Call(_resizing), image)
    yield "shapes", (Call(_shapes), image)
    yield "random", (Call(_random), image)
    yield "control flow", (Call(_control), rows)
    yield "outputs", (Call(_outputs), rows)
    yield "complex", (Call(_complex), image)
    yield "attention", (Call(_attention), image)
    convs = (nn.Conv2d(4, 8, 3, padding="same"), nn.Conv2d(8, 8, 3, groups=8), nn.ConvTranspose2d(8, 4, 2, stride=2))
    yield (
        "convolutions",
        (nn.Sequential(*convs, nn.Conv2d(4, 4, 3, dilation=2, padding_mode="circular", padding=2)), image),
    )
    yield "conv1d", (nn.Sequential(nn.Conv1d(6, 8, 3), nn.ConvTranspose1d(8, 6, 3), nn.PReLU()), rows)
    yield (
        "conv3d",
        (nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2), nn.ConvTranspose3d(2, 1, 2)), image.unsqueeze(1)),
    )
    norms = (nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True, track_running_stats=True))
    yield "norms", (nn.Sequential(*norms, nn.LayerNorm(8), nn.RMSNorm(8), nn.LocalResponseNorm(2)), image)
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        yield kind.__name__, (Call(lambda x, rnn: rnn(x)[0], kind(8, 8, 2, batch_first=True, bidirectional=True)), rows)
    yield "cells", (Call(lambda x, a, b: a(x[:, 0])[0] + b(x[:, 0]), nn.LSTMCell(8, 8), nn.GRUCell(8, 8)), rows)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    yield "MultiheadAttention", (Call(lambda x, layer: layer(x, x, x)[0], attention), rows)
    yield "TransformerEncoder", (nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), rows)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 1)
    yield "TransformerDecoder", (Call(lambda x, layer: layer(x, x), decoder), rows)
    ids = torch.randint(0, 9, (2, 6))
    yield "embeddings", (Call(lambda x, a, b: (a(x), b(x)), nn.Embedding(9, 8), nn.EmbeddingBag(9, 8)), ids)
    yield "bilinear", (Call(lambda x, layer: layer(x, x), nn.Bilinear(8, 8, 3)), rows)
    yield "weight norm", (nn.utils.parametrizations.weight_norm(nn.Linear(8, 3)), rows)
    yield "spectral norm", (nn.utils.parametrizations.spectral_norm(nn.Linear(8, 3)), rows)


def pretrained() -> Iterator[tuple[str, Made]]:
    """Architectures of transformers, with small random configurations."""
    import transformers as t

    ids = torch.randint(3, 40, (2, 8))
    mask = torch.ones_like(ids)
    image = torch.randn(2, 3, 16, 16)
    small = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    text = {"input_ids": ids, "attention_mask": mask}
    seen = {"image_size": 16, "patch_size": 8, "num_channels": 3}
    for name in ("Bert", "Roberta", "DistilBert", "Electra", "Albert"):
        config = getattr(t, f"{name}Config")
        given = (
            {"vocab_size": 50, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
            if name == "DistilBert"
            else small
        )
        model = getattr(t, f"{name}Model")(config(**given))
        yield name, (Pick(model, "last_hidden_state"), text)
    gpt2 = t.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    yield "GPT2", (Pick(t.GPT2LMHeadModel(gpt2), "logits", {"use_cache": False}), text)
    for name in ("Llama", "Mistral", "Qwen2", "Gemma"):
        config = getattr(t, f"{name}Config")(**small, num_key_value_heads=1, head_dim=8, pad_token_id=0)
        yield name, (Pick(getattr(t, f"{name}ForCausalLM")(config), "logits", {"use_cache": False}), text)
    t5 = t.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    yield (
        "T5",
        (Pick(t.T5ForConditionalGeneration(t5), "logits", {"use_cache": False}), {**text, "decoder_input_ids": ids}),
    )
    vit = {key: value for key, value in small.items() if key != "vocab_size"} | seen
    yield "ViT", (Pick(t.ViTForImageClassification(t.ViTConfig(**vit)), "logits"), {"pixel_values": image})
    clip = t.CLIPConfig(text_config=small | {"eos_token_id": 2}, vision_config=vit, projection_dim=8)
    yield "CLIP", (Pick(t.CLIPModel(clip), "image_embeds"), {**text, "pixel_values": image})
    resnet = t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    yield (
        "ResNet",
        (Pick(t.ResNetForImageClassification(resnet), "logits"), {"pixel_values": torch.randn(2, 3, 32, 32)}),
    )
    convnext = t.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, drop_path_rate=0.1)
    yield (
        "ConvNext",
        (Pick(t.ConvNextForImageClassification(convnext), "logits"), {"pixel_values": torch.randn(2, 3, 32, 32)}),
    )
