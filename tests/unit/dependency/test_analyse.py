"""What labels that ride along a forward pass say of models whose dependencies are known."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import prune_zoo
import pytest
import torch
from random_nets import Attention, Halves, Scaled, random_net, removal
from torch import nn
from torch.nn import functional as F

from modelpress_runner.dependency.analyse import find_dependencies
from modelpress_runner.dependency.groups import ChannelDependencies
from modelpress_runner.dependency.prove import prove_structure
from modelpress_runner.errors import CompressionError

IMAGE = torch.zeros(2, 3, 4, 4)


def groups(dependencies: ChannelDependencies) -> dict[str, int]:
    """The producers of each dependency group, with the number of its units."""
    return {" ".join(group.producers): len(group.units) for group in dependencies.groups}


def units(dependencies: ChannelDependencies, module: str, axis: str = "out") -> list[int]:
    """The units of an axis, numbered anew in order of appearance."""
    (found,) = [each for each in dependencies.axes if (each.module, each.axis) == (module, axis)]
    order = list(dict.fromkeys(found.units))
    return [order.index(unit) for unit in found.units]


def reason(dependencies: ChannelDependencies, module: str) -> str | None:
    """Why the first output channel of a module stays; None: it need not."""
    axis = dependencies.output(module)
    assert axis is not None
    return dependencies.frozen.get(axis.units[0])


class Net(nn.Module):
    """A convolution to `channels`, a function, a convolution of what it gives, and one to the outputs."""

    def __init__(self, channels: int, function: Callable[[torch.Tensor], torch.Tensor], after: int) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, channels, 1), nn.Conv2d(after, 6, 1), nn.Conv2d(6, 2, 1)
        self.function = function if isinstance(function, nn.Module) else None
        self._call = [function]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.relu(self.b(self._call[0](self.a(x)))))


class Unscaled(nn.Module):
    """A BatchNorm without a weight gives something else than zero for a masked channel."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4, affine=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        return x * x.sum(1, keepdim=True)


def _by_view(x: torch.Tensor) -> torch.Tensor:
    return x.view(x.shape[0], 2, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)


@pytest.mark.parametrize(
    ("channels", "function", "after", "expected"),
    [
        (4, torch.relu, 4, [0, 1, 2, 3]),
        (4, lambda x: x.repeat_interleave(2, 1), 8, [0, 1, 2, 3]),
        (4, lambda x: x.repeat(1, 2, 1, 1), 8, [0, 1, 2, 3]),
        (4, lambda x: x.flip(1), 4, [0, 1, 2, 3]),
        (4, Scaled(4, parameter=False), 4, [0, 1, 2, 3]),  # a buffer goes along
        (4, lambda x: x + x.flip(1), 4, [0, 1, 1, 0]),
        (4, lambda x: torch.cat([x, torch.relu(x)], 1), 8, [0, 1, 2, 3]),
        (8, lambda x: F.glu(x, 1), 4, [0, 1, 2, 3, 0, 1, 2, 3]),
        (8, Halves("chunk", torch.mul), 4, [0, 1, 2, 3, 0, 1, 2, 3]),
        (8, Halves("slice", torch.mul), 4, [0, 1, 2, 3, 0, 1, 2, 3]),
        (8, Halves("view", torch.mul), 4, [0, 1, 2, 3, 0, 1, 2, 3]),
        (8, lambda x: F.pixel_shuffle(x, 2), 2, [0, 0, 0, 0, 1, 1, 1, 1]),
        (2, lambda x: F.pixel_unshuffle(x, 2), 8, [0, 1]),
        (8, lambda x: F.channel_shuffle(x, 2), 8, [0, 1, 2, 3, 0, 1, 2, 3]),
        (8, _by_view, 8, [0, 1, 2, 3, 0, 1, 2, 3]),
        (8, nn.GroupNorm(4, 8), 8, [0, 0, 1, 1, 2, 2, 3, 3]),
        (4, nn.PReLU(4), 4, [0, 1, 2, 3]),
        (4, lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)), 4, [0, 1, 2, 3]),
        (4, lambda x: F.interpolate(F.pad(x, (1, 1)), scale_factor=2, mode="bilinear"), 4, [0, 1, 2, 3]),
        (4, lambda x: torch.stack([x, x.flip(3)]).sum(0), 4, [0, 1, 2, 3]),
        (4, lambda x: x * x.sum(1, keepdim=True), 4, [0, 1, 2, 3]),  # what is masked adds nothing
        (4, lambda x: x * torch.cat([x, x.flip(1)], 1).sum(1, keepdim=True), 4, [0, 1, 2, 3]),
        (4, lambda x: x.cumsum(1), 4, [0, 1, 2, 3]),
        (4, lambda x: F.normalize(x, dim=1), 4, [0, 1, 2, 3]),
        (4, lambda x: torch.einsum("bchw->bhwc", x).permute(0, 3, 1, 2), 4, [0, 1, 2, 3]),
    ],
)
def test_channels_that_go_together(
    channels: int, function: Callable[[torch.Tensor], torch.Tensor], after: int, expected: list[int]
) -> None:
    """By hand: which channels of the first convolution share a unit, and each unit may go, as the proof confirms."""
    model = Net(channels, function, after)
    found = find_dependencies(model, IMAGE)
    assert units(found, "a") == expected
    assert reason(found, "a") is None
    assert groups(found) == {"a": len(set(expected)), "b": 6}
    check_removal(model, found, seed=0)


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda x: x - x.mean(1, keepdim=True), "mean"),
        (lambda x: torch.softmax(x, 1), "softmax"),
        (lambda x: torch.cos(x).cumsum(1), "cumsum"),
        (lambda x: x.roll(5, 1), "roll"),
        (lambda x: x[:, [0, 1, 2, 3]], "index"),
        (lambda x: x * torch.arange(1.0, 5.0).view(1, 4, 1, 1), "mul"),
        (lambda x: torch.cos(x) * torch.cos(x).sum(1, keepdim=True), "sum"),  # cos(0) is 1
        (Unscaled(), "sum"),
        (lambda x: torch.fft.fft(x, dim=1).real, "fft_r2c"),
        (lambda x: F.normalize(torch.cos(x), dim=1), "linalg_vector_norm"),
        (lambda x: F.normalize(x, p=3.0, dim=1), "linalg_vector_norm"),
        (lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (4,)).permute(0, 3, 1, 2), "native_layer_norm"),
    ],
)
def test_what_stays_is_told_with_the_operation_and_the_line(
    function: Callable[[torch.Tensor], torch.Tensor], operation: str
) -> None:
    """Other layers go on to lose channels."""
    found = find_dependencies(Net(4, function, 4), IMAGE)
    told = reason(found, "a")
    assert told is not None
    assert operation in told
    assert re.search(r"\(test_analyse\.py:\d+\)", told) or "takes its statistics" in told
    assert groups(found) == {"b": 6}


@pytest.mark.parametrize(("shift", "stay"), [(1, [3]), (3, [1, 2, 3]), (-1, [0]), (-2, [0, 1])])
def test_what_a_roll_moves_to_the_other_end_stays(shift: int, stay: list[int]) -> None:
    """The others go, and what is moved is the same then."""
    model = Net(4, lambda x: x.roll(shift, 1), 4)
    found = find_dependencies(model, IMAGE)
    axis = found.output("a")
    assert axis is not None
    assert [channel for channel, unit in enumerate(axis.units) if unit in found.frozen] == stay
    check_removal(model, found, seed=0)


@pytest.mark.parametrize(
    ("groups_", "transposed", "expected"),
    [
        (1, False, {"a": 16, "b": 32}),
        (2, False, {"a": 8, "b": 16}),
        (8, False, {"a": 8}),
        (16, False, {"a": 16}),
        (1, True, {"a": 16, "b": 32}),
        (2, True, {"a": 8, "b": 16}),
        (8, True, {"a": 8}),
        (16, True, {"a": 16}),
    ],
)
def test_grouped_convolutions(groups_: int, transposed: bool, expected: dict[str, int]) -> None:
    """Few large groups lose the same places; of many small ones whole groups go, inputs with outputs."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    model = nn.Sequential()
    for name, layer in {
        "a": nn.Conv2d(3, 16, 1),
        "b": kind(16, 32, 3, groups=groups_, padding=1),
        "c": nn.Conv2d(32, 2, 1),
    }.items():
        model.add_module(name, layer)
    found = find_dependencies(model, IMAGE)
    assert groups(found) == expected
    check_removal(model, found, seed=0)


@pytest.mark.parametrize("kind", ["fused", "kernel", "biased", "einsum", "plain"])
def test_attention_loses_heads(kind: str) -> None:
    """Four heads of width 3, in all ways to write it; a table of biases has a column for each."""
    model = nn.Sequential(
        nn.Conv2d(3, 5, 1), Attention(5, 4, 3, kind), nn.Conv2d(5, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)
    )
    found = find_dependencies(model, IMAGE)
    heads = [head for head in range(4) for _ in range(3)]
    if kind == "fused":
        assert units(found, "1.qkv") == heads * 3
    else:
        assert units(found, "1.q") == units(found, "1.k") == units(found, "1.v") == heads
    assert units(found, "1.out", "in") == heads
    if kind == "biased":
        assert units(found, "1.bias") == [0, 1, 2, 3]
    assert sorted(groups(found).values()) == [4, 5, 5, 6]  # heads; the convolutions before, behind, and the one after
    check_removal(model, found, seed=1)


class GroupedQueries(nn.Module):
    """Six heads of queries, three of keys and values."""

    def __init__(self, kernel: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(8, 24), nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(24, 2)
        self.kernel = kernel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).unflatten(2, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.kernel:
            return self.o(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        return self.o((torch.softmax(q @ k.transpose(2, 3), -1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("kernel", [False, True])
def test_grouped_queries_go_with_their_keys(kernel: bool) -> None:
    """One head of keys and values, and the two of queries that it serves."""
    model = GroupedQueries(kernel)
    found = find_dependencies(model, torch.zeros(2, 5, 8))
    assert units(found, "q") == [head for head in range(3) for _ in range(8)]
    assert units(found, "k") == units(found, "v") == [head for head in range(3) for _ in range(4)]
    assert groups(found) == {"q k v": 3}
    check_removal(model, found, 0, torch.zeros(2, 5, 8))


def test_a_shape_taken_from_another_tensor_ties_the_two() -> None:
    """What is laid out as something else must go on to be as large."""

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, second = self.a(x), self.b(x)
            return self.c(torch.cat([first.view_as(second), second], -1))

    found = find_dependencies(Beside(), torch.zeros(2, 5, 3))
    assert groups(found) == {"a b": 4}
    check_removal(Beside(), found, 0, torch.zeros(2, 5, 3))


def test_layers_of_a_residual_stream_share_its_channels() -> None:
    """Stem and second convolution are added; norms follow; the head takes 16 pixels of each channel."""
    found = find_dependencies(prune_zoo.Residual(8), torch.zeros(2, 1, 8, 8))
    assert groups(found) == {"stem conv2": 8, "conv1": 8}
    assert units(found, "head", "in") == [channel for channel in range(8) for _ in range(16)]


def test_an_only_channel_stays() -> None:
    """Nothing would be left."""
    found = find_dependencies(Net(1, torch.relu, 1), IMAGE)
    assert "nothing would be left" in (reason(found, "a") or "")


def test_the_model_stays_as_it_is() -> None:
    """Mode, buffers, gradients, what needs them, and random numbers."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 2, 1)).train()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert groups(find_dependencies(model, IMAGE)) == {"0": 4}
    assert model.training
    assert not model[0].weight.requires_grad
    assert model[3].weight.grad is None
    assert torch.equal(state, torch.get_rng_state())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_forward_pass_that_fails_is_told_in_one_sentence() -> None:
    """With torch's own complaint; and a model that cannot be copied."""
    with pytest.raises(
        CompressionError, match=r"fails on the dummy input: RuntimeError: .*shapes.*; set shrink: false"
    ):
        find_dependencies(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3)), torch.ones(2, 7))

    class Uncopied(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("cannot pickle 'lock'")

    with pytest.raises(CompressionError, match=r"cannot be copied .*set shrink: false"):
        find_dependencies(Uncopied(2, 2), torch.ones(2, 2))


def followed(model: nn.Module) -> ChannelDependencies:
    """The dependencies of a model all of whose operations have a rule."""
    found = find_dependencies(model, IMAGE)
    assert not [told for told in found.frozen.values() if "cannot be followed" in told or "not known" in told]
    return found


def check_removal(model: nn.Module, found: ChannelDependencies, seed: int, dummy: torch.Tensor = IMAGE) -> bool:
    """Proves that a random part of every group's units may go; False: there is none."""
    edits = removal(found, seed)
    if not edits:
        return False
    prove_structure(model, edits, dummy, draws=1)
    return True


def test_a_size_read_from_what_has_no_channels_holds_them() -> None:
    """What a layer gives is laid out as the image was, whose channels nobody can remove."""

    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 3), nn.Conv2d(3, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = self.b(self.a(x.flatten(2).transpose(1, 2)))
            return self.c(tokens.transpose(1, 2).reshape(x.shape))

    found = find_dependencies(Same(), IMAGE)
    assert groups(found) == {"a": 4}
    assert "gives them the number of something else" in (reason(found, "b") or "")


@pytest.mark.parametrize("part", range(4))
def test_what_may_go_of_random_models_is_proven(part: int) -> None:
    """A refusal by the proof is an error of a rule, and so is a rule that raises. Up to thirty operations of fifty
    kinds."""
    proven = sum(
        check_removal(model, followed(model), seed)
        for seed in range(20 * part, 20 * part + 20)
        if (model := random_net(seed))
    )
    assert proven >= 18


@pytest.mark.long
def test_what_may_go_of_many_random_models_is_proven() -> None:
    """The same for 250 more."""
    for seed in range(10_000, 10_250):
        model = random_net(seed)
        check_removal(model, followed(model), seed)


def test_nothing_is_left_on_all_modules():
    """torch looks whether any hook is on all modules before it calls a compiled model; a failed pass leaves none."""

    class Fails(nn.Module):
        def forward(self, x):
            raise ValueError("no")

    find_dependencies(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3)), torch.zeros(1, 1, 6, 6))
    with pytest.raises(CompressionError):
        find_dependencies(nn.Sequential(nn.Linear(2, 2), Fails()), torch.zeros(1, 2))
    assert not nn.modules.module._has_any_global_hook()
