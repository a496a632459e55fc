"""The proof: every wrong cut is refuted, every right one passes, whatever the weights, inputs and precision are."""

from __future__ import annotations

import copy
import gc
import random

import pytest
import torch
from torch import nn

from modelpress_runner.dependency import exact
from modelpress_runner.dependency.leaving import without_culprits
from modelpress_runner.dependency.prove import prove, prove_structure
from modelpress_runner.edits.cuts import Cut
from modelpress_runner.errors import CompressionError
from modelpress_runner.testing.cuts import HANGING, NETS, right_cut, wrong_cut

CUT = [Cut("0", "out", (0, 2)), Cut("2", "in", (0, 2))]


def masked(*layers: nn.Module) -> nn.Sequential:
    """The layers, of which CUT is masked: channels 1 and 3 of four."""
    model = nn.Sequential(*layers)
    with torch.no_grad():
        model[0].weight[[1, 3]], model[0].bias[[1, 3]] = 0.0, 0.0
        model[2].weight[:, [1, 3]] = 0.0
    return model


@pytest.mark.parametrize("name", [name for name, net in NETS.items() if any(group.axes for group in net.groups)])
def test_right_cuts_pass(name: str) -> None:
    """Three draws agree to rounding, in float64, on dummy inputs that are zeros."""
    rng, net = random.Random(name), NETS[name]
    torch.manual_seed(0)
    for _ in range(2):
        proof = prove_structure(net.build(), right_cut(net, rng), net.inputs())
        assert (proof.draws, proof.precision) == (3, "float64")
        assert proof.difference < 1e-12


@pytest.mark.parametrize("name", [*NETS, *HANGING])
def test_wrong_cuts_are_refuted(name: str) -> None:
    """A wrong channel, a missed consumer, mixed heads, a scale that hangs on the width, a norm's statistics."""
    rng, net = random.Random(name), {**NETS, **HANGING}[name]
    torch.manual_seed(0)
    for _ in range(2):
        kind, cut = wrong_cut(net, rng)
        with pytest.raises(CompressionError, match=r"does not run|differs from|changed the model's outputs"):
            prove_structure(net.build(), cut, net.inputs())
        assert kind


@pytest.mark.parametrize("channels", [(0, 2), (1, 2)], ids=["proven", "refuted"])
def test_a_proof_keeps_no_tensor_until_a_garbage_collection(channels: tuple[int, int]) -> None:
    """Whatever comes of it: the weights that it draws are several times the model."""

    def tensors() -> int:
        return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())

    model = masked(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    cuts = [CUT[0], Cut("2", "in", channels)]
    gc.collect()
    gc.disable()
    try:
        before = tensors()
        try:
            prove(model, cuts, torch.ones(1, 3, 4, 4))
        except CompressionError:
            assert channels == (1, 2)
        assert tensors() == before
    finally:
        gc.enable()


def test_fresh_attention_and_equal_tokens_are_no_excuse() -> None:
    """Mixed heads agree to 1e-9 where all weights are tiny and all tokens equal; other weights tell."""
    net = NETS["heads"]
    model = net.build()
    (_, group), (_, cut) = net.wrong[0], wrong_cut(net, _Always(0))
    assert group.units == 4
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e-5)
        small = copy.deepcopy(model)
    assert small is not model
    with pytest.raises(CompressionError, match="differs from the masked model's"):
        prove_structure(model, cut, net.inputs())


class _Always(random.Random):
    """Takes the first of everything."""

    def choice(self, seq):  # type: ignore[no-untyped-def]
        return seq[0]


def test_real_weights_count_too() -> None:
    """A channel that is cut but not masked is seen by the real weights alone."""
    model = masked(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    assert prove(model, CUT, torch.zeros(2, 3)).parameters == (26, 14)
    with torch.no_grad():
        model[0].weight[1, 0] = model[2].weight[0, 1] = 1e-3
    assert prove_structure(model, CUT, torch.zeros(2, 3)).draws == 3
    with pytest.raises(CompressionError, match="differs from the masked model's"):
        prove(model, CUT, torch.zeros(2, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_proven_in_float64(dtype: torch.dtype) -> None:
    """What the code rounds on its way (a cast to float32, a mask in half precision) is not rounded in the proof."""

    class Casts(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self[1](self[0](x)).to(torch.float32).half().to(self[2].weight.dtype)
            return self[2](x).log_softmax(-1, dtype=torch.float32)

    model = Casts(*masked(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))).to(dtype)
    proof = prove(model, CUT, torch.ones(2, 3, dtype=dtype))
    assert proof.precision == "float64"
    assert proof.difference < 1e-12
    assert model[0].weight.dtype is dtype


def test_complex_outputs_are_compared_with_both_parts() -> None:
    """The right cut passes; one whose difference is in the imaginary part alone does not."""

    class Spectrum(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self[1](self[0](x))
            return torch.complex(x.sum(-1, keepdim=True).expand(len(x), 2), self[2](h))

    model = Spectrum(*masked(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    assert prove(model, CUT, torch.zeros(2, 3)).difference < 1e-12
    wrong = [CUT[0], Cut("2", "in", (0, 1))]
    with pytest.raises(CompressionError, match="differs from the masked model's"):
        prove_structure(model, wrong, torch.zeros(2, 3))


def test_ties_and_random_numbers_refute_no_right_cut() -> None:
    """The dummy input makes all scores equal, and noise is drawn for as many channels as there are."""

    class Noisy(nn.Sequential):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            h = nn.functional.dropout(self[1](self[0](x)), 0.5, training=True)
            h = self[2](h + 0.1 * torch.randn_like(h))
            return h, h.argmax(-1), torch.topk(h, 2).indices

    model = masked(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 6))
    with torch.no_grad():
        model[2].weight[1:] = model[2].weight[:1]
        model[2].bias.fill_(0.5)
    model[2].bias.requires_grad_(False)
    proof = prove(Noisy(*model), CUT, torch.ones(2, 3))
    assert proof.draws == 3


def test_a_saturated_draw_is_drawn_anew_at_another_scale() -> None:
    """exp(exp(x)) is infinite for usual draws: the softer ones tell, and tell a wrong cut as well."""

    class Steep(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * 8).exp().exp()

    model = nn.Sequential(nn.Linear(3, 4), Steep(), nn.Linear(4, 2))
    assert prove_structure(model, CUT, torch.zeros(2, 3)).draws >= 1
    wrong = [CUT[0], Cut("2", "in", (0, 1))]
    with pytest.raises(CompressionError, match="differs from the masked model's"):
        prove_structure(model, wrong, torch.zeros(2, 3))


def test_nothing_that_could_be_compared_is_no_proof() -> None:
    """A model that gives NaN for all weights is neither proven nor refuted."""

    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float("nan")

    model = nn.Sequential(nn.Linear(3, 4), Broken(), nn.Linear(4, 2))
    with pytest.raises(CompressionError, match="gives NaN on the dummy input"):
        prove(model, CUT, torch.zeros(2, 3))
    with pytest.raises(CompressionError, match=r"neither proven nor refuted: .* none told \(the outputs were NaN\)"):
        prove_structure(model, CUT, torch.zeros(2, 3))


def test_recurrent_layers_and_fused_encoders_run_with_other_weights() -> None:
    """Kernels that are called whole get weights of one precision, and their products are counted."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.lstm, self.gru = nn.Embedding(9, 8), nn.LSTM(8, 8, batch_first=True), nn.GRU(8, 8)
            self.encoder = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, words: torch.Tensor) -> torch.Tensor:
            x = self.gru(self.lstm(self.embed(words))[0])[0]
            return self.head(self.encoder(x, src_key_padding_mask=words == 0))

    cuts = [Cut("encoder.linear1", "out", tuple(range(6))), Cut("encoder.linear2", "in", tuple(range(6)))]
    proof = prove_structure(Words(), cuts, torch.ones(2, 5, dtype=torch.long))
    assert (proof.draws, proof.precision) == (3, "float64")
    assert proof.macs[0] - proof.macs[1] == 2 * 5 * 2 * 8 * 6  # two linear layers, 6 of 12 features


def test_weights_are_made_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than the bound is kept of the weights in float64, and none of them is a copy of the model."""
    monkeypatch.setattr(exact, "CACHE_BYTES", 1000)
    most = 0
    forget = exact.Weights.get

    def watched(self: exact.Weights, tensor: torch.Tensor) -> torch.Tensor:
        nonlocal most
        value = forget(self, tensor)
        most = max(most, self._bytes)
        return value

    monkeypatch.setattr(exact.Weights, "get", watched)
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(20)))
    cuts = [Cut("0", "out", (0, 1)), Cut("1", "in", (0, 1))]
    assert prove_structure(model, cuts, torch.zeros(1, 8)).draws == 3
    assert 0 < most <= 1000


class _Doubling(nn.Linear):
    """Writes into its weight whenever it is called, behind the back of autograd."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.weight.data.mul_(2)
        return super().forward(x)


def test_a_model_that_writes_into_its_weights_does_so_in_each_form_by_itself() -> None:
    """Both forms begin with the same weights, whatever the other one has made of them meanwhile."""
    torch.manual_seed(0)
    proof = prove(masked(nn.Linear(3, 4), nn.ReLU(), _Doubling(4, 2)), CUT, torch.randn(5, 3))
    assert (proof.draws, proof.precision) == (3, "float64")


def test_a_cut_that_parts_shared_weights_is_refused() -> None:
    """A layer and a module whose code nobody knows are one weight; a cut of the layer would make two of it."""

    class Again(nn.Module):
        def __init__(self, weight: nn.Parameter) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight

    first = nn.Linear(4, 4)
    model = nn.Sequential(Again(first.weight), first, nn.Linear(4, 2))
    with pytest.raises(CompressionError, match=r"parts '0\.weight' and '1\.weight', which are one weight"):
        prove_structure(model, [Cut("1", "out", (0, 1)), Cut("2", "in", (0, 1))], torch.zeros(1, 4))


def test_culprits_are_found_by_halves() -> None:
    """Items 3 and 11 of 16 fail alone, 5 and 6 only together; what is given back was proven as a whole."""
    asked: list[list[int]] = []

    def proof(part: list[int]) -> None:
        asked.append(part)
        if {3, 11} & set(part) or {5, 6} <= set(part):
            raise CompressionError("no")

    good, bad = without_culprits(list(range(16)), proof)
    assert good == [0, 1, 2, 4, 5, 7, 8, 9, 10, 12, 13, 14, 15]
    assert bad == {3: "no", 6: "no", 11: "no"}
    assert good in asked
    assert len(asked) <= 25
    good, bad = without_culprits(list(range(16)), proof, seconds=0)
    assert good == []
    assert all(bad[item].startswith("no time was left to prove it") for item in range(16))
