"""Heads of nn.MultiheadAttention and of the layers that are made of it; linear layers with a weight the other way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import modelpress as mp
from modelpress_runner.dependency.analyse import find_dependencies
from modelpress_runner.edits.attention import cut_heads

X = torch.randn((2, 5, 8), generator=torch.Generator().manual_seed(0))
STAGES = [{"prune": {"config_list": [{"op_types": ["MultiheadAttention"], "sparsity": 0.5}]}}]


class Net(nn.Module):
    def __init__(self, first: bool = True, weights: bool = True) -> None:
        super().__init__()
        self.attention, self.weights = nn.MultiheadAttention(8, 4, batch_first=first), weights
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.attention(x, x, x, need_weights=self.weights)[0])


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("weights", [False, True])
def test_heads_go(first: bool, weights: bool, tmp_path: Path) -> None:
    """Two of four; weights that the caller drops hold nothing; the artifact replays into a dense model."""
    torch.manual_seed(0)
    result = mp.compress(Net(first, weights), STAGES, None, X)
    attention: Any = result.model.attention
    assert (attention.num_heads, attention.head_dim, attention.embed_dim) == (2, 2, 8)
    assert tuple(attention.in_proj_weight.shape) == (12, 8)
    assert tuple(attention.out_proj.weight.shape) == (8, 4)
    result.save(str(tmp_path / "artifact"))
    again: Any = mp.load(str(tmp_path / "artifact"), into=Net(first, weights))
    torch.testing.assert_close(again.eval()(X), result.model.eval()(X), rtol=0, atol=0)


def test_weights_that_are_used_hold_the_heads() -> None:
    """Their mean over heads would change."""

    class Used(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out, weights = self.attention(x, x, x)
            return self.head(out) * weights.sum()

    found = find_dependencies(Used(), X)
    assert "attention" not in {name for group in found.groups for name in group.producers}
    assert any("mean in 'attention'" in reason for reason in found.frozen.values())


def test_heads_of_encoder_and_decoder_layers() -> None:
    """Attention of a decoder to an encoder has its keys from elsewhere; padding in eval mode takes no fused path."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 4, 12, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1)
            self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 4, 12, batch_first=True), 1)

        def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
            return self.decoder(x, self.encoder(x, src_key_padding_mask=padding))

    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    model: Any = mp.compress(Both(), STAGES, None, (X, padding)).model.eval()
    layers = (
        model.encoder.layers[0].self_attn,
        model.decoder.layers[0].self_attn,
        model.decoder.layers[0].multihead_attn,
    )
    assert [layer.num_heads for layer in layers] == [2, 2, 2]
    with torch.no_grad():
        fast = model(X, padding)
    torch.testing.assert_close(fast, model(X, padding))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("average", [None, False, True])
def test_the_module_that_heads_can_leave_computes_the_same(
    first: bool, batched: bool, zero: bool, average: bool | None
) -> None:
    """As torch's, with all heads, for every option; masks of booleans and of numbers, for each head or for all."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(8, 4, batch_first=first, add_zero_attn=zero).eval()
    ours = nn.MultiheadAttention(8, 4, batch_first=first, add_zero_attn=zero).eval()
    ours.load_state_dict(theirs.state_dict())
    cut_heads(ours)
    query, key = torch.randn(3, 3, 8), torch.randn(3, 3, 8)
    padding = torch.tensor([[False, False, True]] * 3)
    masks = [None, torch.tensor([[False, True, False]] * 3), torch.randn(3, 3), torch.randn(12, 3, 3)]
    if not batched:
        query, key, padding, masks = query[0], key[0], padding[0], [*masks[:3], torch.randn(4, 3, 3)]
    for mask in masks:
        for pad in (None, padding if mask is None or mask.dtype == torch.bool else padding * -1e9):
            given: dict[str, Any] = {"key_padding_mask": pad, "attn_mask": mask, "need_weights": average is not None}
            given["average_attn_weights"] = bool(average)
            want, got = theirs(query, key, key, **given), ours(query, key, key, **given)
            torch.testing.assert_close(got[0], want[0])
            assert (got[1] is None) == (want[1] is None)
            if want[1] is not None:
                torch.testing.assert_close(got[1], want[1])


def test_what_attention_cannot_lose_is_told() -> None:
    """Keys of another width, and a forward of the user's own."""

    class Own(nn.MultiheadAttention):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    for module, reason in (
        (nn.MultiheadAttention(8, 4, kdim=6, vdim=6), "takes keys and values of other widths"),
        (nn.MultiheadAttention(8, 4, add_bias_kv=True), "adds a bias to the sequence"),
        (Own(8, 4), "has a forward of its own"),
    ):
        key = torch.zeros(5, 2, module.kdim)
        found = find_dependencies(module, (torch.zeros(5, 2, 8), key, key))
        assert any(reason in told for told in found.frozen.values())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_what_a_recurrent_layer_takes_goes(kind: type[nn.RNNBase]) -> None:
    """Its hidden units stay: nobody asks for them."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rnn = nn.Linear(8, 6), kind(6, 5, 2, bidirectional=True, batch_first=True)
            self.head = nn.Linear(10, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(torch.relu(self.first(x)))[0])

    stages = [{"prune": {"config_list": [{"op_names": ["first"], "sparsity": 0.5}]}}]
    model: Any = mp.compress(Recurrent(), stages, None, X).model
    assert (model.first.out_features, model.rnn.input_size, model.rnn.weight_ih_l0_reverse.shape[1]) == (3, 3, 3)


def test_linear_layers_of_gpt_2() -> None:
    """transformers' Conv1D has its weight the other way; heads of its fused attention go, and so do hidden units."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=11, n_embd=12, n_layer=1, n_head=3, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    stages = [{"prune": {"config_list": [{"op_types": ["Conv1D"], "sparsity": 0.34}]}}]
    ids = torch.arange(6).view(1, 6)
    model: Any = mp.compress(transformers.GPT2Model(config), stages, None, {"input_ids": ids, "use_cache": False}).model
    block = model.h[0]
    assert tuple(block.attn.c_attn.weight.shape) == (12, 24)
    assert (block.attn.split_size, block.attn.c_attn.nf, block.attn.c_proj.nx) == (8, 24, 8)
    assert (block.mlp.c_fc.nf, block.mlp.c_proj.nx) == (32, 32)
