"""Coupling, cuts, replay and proof, on models of every supported structure."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import prune_zoo
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from modelpress_runner.dependency.analyse import find_dependencies
from modelpress_runner.dependency.groups import ChannelDependencies
from modelpress_runner.dependency.prove import prove
from modelpress_runner.dependency.unit_lists import Reasons
from modelpress_runner.edits.axes import axis_of
from modelpress_runner.edits.cuts import Cut
from modelpress_runner.edits.replay import read, replay, write
from modelpress_runner.errors import CompressionError
from modelpress_runner.methods.prune.covering import apply_masks, removed_units


def removable(dependencies: ChannelDependencies) -> list[tuple[int, ...]]:
    """The units of each dependency group."""
    return [tuple(group.units) for group in dependencies.groups]


def cut(model: nn.Module, dependencies: ChannelDependencies, units: set[int]) -> list[Cut]:
    """Masks `units` in `model`, in place, and gives the cuts that remove them."""
    removed = torch.zeros(dependencies.unit_count, dtype=torch.bool)
    removed[list(units)] = True
    cuts = []
    for axis, kept in dependencies.kept(removed):
        view = axis_of(model, axis.module, axis.axis)
        with torch.no_grad():
            for name in view.parameters:
                parameter = getattr(view.owner, name)
                parameter[~view.keep_mask(name, parameter, kept)] = 0.0
        cuts.append(Cut(axis.module, axis.axis, tuple(torch.nonzero(kept).flatten().tolist())))
    return cuts


def check(model: nn.Module, dummy: torch.Tensor, units: set[int], dependencies: ChannelDependencies) -> nn.Module:
    """Masks, cuts, proves, and compares with a replay on a fresh dense model; returns the small model."""
    dense = copy.deepcopy(model)
    cuts = cut(model, dependencies, units)
    small = copy.deepcopy(model)
    replay(small, cuts)
    proof = prove(model, cuts, dummy)
    assert proof.draws == 3
    assert proof.precision == "float64"
    assert proof.parameters[1] < proof.parameters[0]
    assert proof.macs[1] < proof.macs[0]
    again = dense  # the weights of the dense model: the cut entries are the only ones that masking changed
    replay(again, read(write(cuts)))
    for (name, one), (other_name, other) in zip(small.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other_name
        assert torch.equal(one, other), name
    return small


@pytest.mark.parametrize("name", prune_zoo.SHRINKABLE)
@pytest.mark.parametrize("share", ["one", "most"])
def test_every_structure_shrinks_and_is_proven(name: str, share: str) -> None:
    """Removing the first unit, or all but the last, of every dependency group leaves the masked model's outputs."""
    build, shape = prune_zoo.SHRINKABLE[name]
    model = prune_zoo.trained_like(build())
    dummy = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    dependencies = find_dependencies(copy.deepcopy(model), dummy)
    units = {unit for group in removable(dependencies) for unit in (group[:1] if share == "one" else group[:-1])}
    check(model, dummy, units, dependencies)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_random_networks_with_random_kept_sets_hold_the_proof(data: st.DataObject) -> None:
    """Any set of units that leaves one of each group can be removed from any small convolutional network."""
    layers: list[nn.Module] = []
    channels = 3
    for _ in range(data.draw(st.integers(1, 3))):
        kind = data.draw(st.sampled_from(["plain", "grouped", "depthwise"]))
        width = data.draw(st.sampled_from([4, 6, 8]))
        if kind == "grouped" and channels % 2 == 0:
            layers.append(nn.Conv2d(channels, width, 3, padding=1, groups=2))
        elif kind == "depthwise" and channels > 3:
            width = channels
            layers.append(nn.Conv2d(channels, width, 3, padding=1, groups=channels))
        else:
            layers.append(nn.Conv2d(channels, width, 3, padding=1))
        norm = data.draw(st.sampled_from(["none", "batch", "group"]))
        layers += {"none": [], "batch": [nn.BatchNorm2d(width)], "group": [nn.GroupNorm(2, width)]}[norm]
        layers.append(data.draw(st.sampled_from([nn.ReLU(), nn.Sigmoid(), nn.GELU()])))
        channels = width
    model = prune_zoo.trained_like(
        nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 16, 3)), data.draw(st.integers(0, 99))
    )
    dummy = torch.randn((2, 3, 4, 4), generator=torch.Generator().manual_seed(1))
    dependencies = find_dependencies(copy.deepcopy(model), dummy)
    units: set[int] = set()
    for group in removable(dependencies):
        units |= set(data.draw(st.lists(st.sampled_from(group), unique=True, max_size=len(group) - 1)))
    if units:
        check(model, dummy, units, dependencies)


def test_residual_layers_share_their_channels() -> None:
    """Stem and second convolution are added, so they form one group of 32; the first convolution is its own."""
    dependencies = find_dependencies(prune_zoo.Residual(), torch.zeros(2, 1, 8, 8))
    assert [(group.producers, group.followers, len(group.units)) for group in dependencies.groups] == [
        (("stem", "conv2"), ("norm", "norm2"), 32),
        (("conv1",), ("norm1",), 32),
    ]
    head = next(axis for axis in dependencies.axes if axis.module == "head" and axis.axis == "in")
    stem = dependencies.output("stem")
    assert stem is not None
    # Channel c of the 4 x 4 maps is features 16c to 16c + 15 of the flattened vector.
    assert tuple(head.units) == tuple(unit for unit in stem.units for _ in range(16))


def test_shapes_and_attributes_after_a_cut() -> None:
    """Whole groups of a grouped convolution take their inputs along; attributes say what the tensors say."""
    model = prune_zoo.ManyGroups()
    replay(
        model,
        [
            Cut("conv1", "out", tuple(range(4, 16))),
            Cut("grouped", "out", tuple(range(4, 16))),
            Cut("conv2", "in", tuple(range(4, 16))),
        ],
    )
    assert (model.grouped.groups, model.grouped.in_channels, model.grouped.out_channels) == (6, 12, 12)
    assert model.grouped.weight.shape == (12, 2, 3, 3)
    assert (model.conv1.out_channels, model.conv2.in_channels) == (12, 12)
    assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 4, 4, 4)


def test_group_norm_ties_whole_groups_even_if_they_are_few() -> None:
    """2 groups of 6 channels are 2 units: fewer channels in a group would change its mean and variance."""
    model = nn.Sequential(nn.Conv1d(3, 12, 1), nn.GroupNorm(2, 12), nn.Conv1d(12, 2, 1))
    dependencies = find_dependencies(model, torch.ones(1, 3, 5))
    output = dependencies.output("0")
    assert output is not None
    first, second = output.units[0], output.units[6]
    assert first != second
    assert tuple(output.units) == (first,) * 6 + (second,) * 6


def test_kept_values_by_hand() -> None:
    """Rows, columns and grouped columns are the ones that were asked for."""
    linear = nn.Linear(3, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
        linear.bias.copy_(torch.tensor([7.0, 8]))
    linear.weight.requires_grad_(False)
    model = nn.Sequential(linear)
    replay(model, [Cut("0", "in", (0, 2)), Cut("0", "out", (1,))])
    assert model[0].weight.tolist() == [[4.0, 6.0]]
    assert model[0].bias.tolist() == [8.0]
    assert (model[0].in_features, model[0].out_features) == (2, 1)
    assert not model[0].weight.requires_grad
    assert model[0].bias.requires_grad

    # Transposed, 2 groups of 2 inputs and 2 outputs: weight (4, 2, 1); output o = 2g + p is column p of group g's rows.
    up = nn.ConvTranspose1d(4, 4, 1, groups=2, bias=False)
    with torch.no_grad():
        up.weight.copy_(torch.arange(8.0).view(4, 2, 1))
    model = nn.Sequential(up)
    replay(model, [Cut("0", "out", (0, 3))])
    assert up.weight.flatten().tolist() == [0.0, 2.0, 5.0, 7.0]
    assert (up.out_channels, up.in_channels, up.groups) == (2, 4, 2)


def test_norms_keep_statistics_dtype_and_device() -> None:
    """A BatchNorm's running statistics are cut with its weights and stay float64 and buffers."""
    norm = nn.BatchNorm1d(4).double()
    norm.running_mean.copy_(torch.arange(4.0))
    model = nn.Sequential(norm)
    replay(model, [Cut("0", "out", (1, 3))])
    assert norm.running_mean.tolist() == [1.0, 3.0]
    assert norm.running_mean.dtype is torch.float64
    assert set(dict(model.named_buffers())) == {"0.running_mean", "0.running_var", "0.num_batches_tracked"}
    assert norm.num_features == 2


def test_layer_norm_and_embedding_can_be_replayed() -> None:
    """A recipe may cut them, although the planner never removes what a LayerNorm averages over."""
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4))
    replay(model, [Cut("0", "out", (0, 3)), Cut("1", "out", (0, 3))])
    assert model(torch.tensor([1])).shape == (1, 2)
    assert model[1].normalized_shape == (2,)
    assert model[0].embedding_dim == 2


def test_a_layer_norm_freezes_its_stream() -> None:
    """Channels that pass a LayerNorm stay; the hidden layer between two linear ones may lose all but one."""
    model = prune_zoo.trained_like(prune_zoo.FeedForward())
    tokens = torch.randint(20, (2, 6), generator=torch.Generator().manual_seed(0))
    dependencies = find_dependencies(copy.deepcopy(model), tokens)
    assert [(group.producers, len(group.units)) for group in dependencies.groups] == [(("up",), 32)]
    stream = dependencies.output("down")
    assert stream is not None
    (told,) = {dependencies.frozen[unit] for unit in stream.units}
    assert re.fullmatch(r"the LayerNorm 'norm' takes its statistics over them \(prune_zoo\.py:\d+\)", told)
    units = set(dependencies.groups[0].units[:-1])
    small = check(model, tokens, units, dependencies)
    assert small.up.out_features == 1


def test_a_masked_channel_that_still_speaks_is_no_proof() -> None:
    """Where channels are averaged, the shrunk model differs, and the proof says by how much."""
    model = prune_zoo.trained_like(prune_zoo.ChannelMean())
    dummy = torch.randn(prune_zoo.IMAGE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for tensor in (model.conv1.weight, model.conv1.bias, model.conv2.weight.transpose(0, 1)):
            tensor[0] = 0.0
    cuts = [Cut("conv1", "out", tuple(range(1, 8))), Cut("conv2", "in", tuple(range(1, 8)))]
    with pytest.raises(CompressionError, match=r"differs from the masked model's by .* something else in the model"):
        prove(model, cuts, dummy)


def test_a_dummy_input_of_zeros_proves_nothing_by_itself() -> None:
    """A wrong shrink that agrees on zeros is found on the second input."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    wrong = [Cut("0", "out", (0, 1, 2)), Cut("1", "in", (0, 1, 2))]
    with pytest.raises(CompressionError, match="differs from the masked model's"):
        prove(model, wrong, torch.zeros(2, 4))


def test_small_outputs_are_compared_relative_to_their_size() -> None:
    """A model whose outputs are around 1e-5 is held to rounding of that, not of 1."""
    model = prune_zoo.trained_like(nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False)))
    with torch.no_grad():
        model[1].weight.mul_(1e-5)
        model[1].weight[:, 3] *= 1e-2
    wrong = [Cut("0", "out", (0, 1, 2)), Cut("1", "in", (0, 1, 2))]
    with pytest.raises(CompressionError, match="differs from the masked model's"):
        prove(model, wrong, torch.ones(2, 4))


def test_a_shrink_that_changes_the_output_shape_or_nothing_is_refused() -> None:
    """Fewer outputs, and a model that is no smaller, are named as such."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    with pytest.raises(CompressionError, match=r"shapes \[\(2, 3\)\] became \[\(2, 2\)\]"):
        prove(model, [Cut("1", "out", (0, 1))], torch.ones(2, 4))
    with pytest.raises(CompressionError, match="removed nothing: 35 parameters before, 35 after"):
        prove(model, [], torch.ones(2, 4))


def test_a_proof_leaves_the_model_as_it_is() -> None:
    """Modes, weights, statistics and the random state survive."""
    model = prune_zoo.trained_like(prune_zoo.Residual(8)).train()
    dummy = torch.randn((2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    dependencies = find_dependencies(copy.deepcopy(model), dummy)
    cuts = cut(model, dependencies, {dependencies.groups[0].units[0]})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    prove(model, cuts, dummy)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert model.norm.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_weights_that_two_modules_share_stay() -> None:
    """Cutting one of two tied layers would untie them."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    dependencies = find_dependencies(model, torch.ones(2, 4))
    assert dependencies.groups == []
    assert any("is shared with another module" in reason for reason in dependencies.frozen.values())


def test_computed_weights_stay() -> None:
    """A weight-normed layer has no weight of its own that could be cut."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.utils.parametrizations.weight_norm(model[0])
    dependencies = find_dependencies(model, torch.ones(2, 4))
    assert dependencies.groups == []
    assert any("is computed by WeightNorm; end that before" in reason for reason in dependencies.frozen.values())


def test_channels_added_to_the_input_stay() -> None:
    """What is added to the model's input must keep its width, and so must a depthwise convolution of the input."""

    class AddsInput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.last = nn.Conv2d(3, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.relu(x + self.conv(x)))

    dependencies = find_dependencies(AddsInput(), torch.ones(2, 3, 5, 5))
    assert dependencies.groups == []
    first = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    dependencies = find_dependencies(first, torch.ones(2, 3, 5, 5))
    assert [group.producers for group in dependencies.groups] == [("1",)]


def test_an_input_changed_in_place_is_traced_without_it() -> None:
    """A model that writes into its input is still analysed."""
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 6), nn.Linear(6, 2))
    dependencies = find_dependencies(model, torch.ones(2, 4))
    assert [(group.producers, len(group.units)) for group in dependencies.groups] == [(("1",), 6)]


def test_coupling_survives_json() -> None:
    """What the child sends is what the parent reads."""
    dependencies = find_dependencies(prune_zoo.Concat(), torch.ones(prune_zoo.IMAGE))
    assert ChannelDependencies.from_dict(dependencies.to_dict()) == dependencies
    assert replace(dependencies, frozen=Reasons()) != dependencies


def test_removed_units_are_those_that_masks_cover_wholly() -> None:
    """One channel of the first layer is masked with all that goes with it, another one without."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    dependencies = find_dependencies(copy.deepcopy(model), torch.ones(1, 2))
    masks = {
        "0": {"weight": torch.tensor([[0.0, 0], [1, 1], [0, 0]]), "bias": torch.tensor([0.0, 1, 0])},
        "1": {"weight": torch.tensor([[0.0, 1, 1], [0, 1, 1]])},
    }
    apply_masks(model, masks)
    output = dependencies.output("0")
    assert output is not None
    assert removed_units(model, dependencies, masks)[output.vector].tolist() == [True, False, False]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_masking_leaves_no_negative_zero_and_no_nan(kind: torch.dtype) -> None:
    """Masked weights become exactly 0, whatever they were, and others keep their bits, wherever they lie."""
    given = torch.tensor([[float("nan"), -3.0, float("inf")], [float("nan"), -0.0, 3.0]], dtype=kind)
    mask = torch.tensor([[0.0, 0, 0], [1, 1, 0]], dtype=kind)
    for weight in (given.clone(), given.t().clone().t()):
        model = nn.Sequential(nn.Linear(3, 2, bias=False))
        model[0].weight = nn.Parameter(weight)
        apply_masks(model, {"0": {"weight": mask}})
        assert model[0].weight[0].tolist() == [0.0] * 3
        assert model[0].weight[1, 0].isnan()
        assert model[0].weight[1, 1:].tolist() == [0.0, 0.0]
        assert torch.signbit(model[0].weight[:, 1:]).tolist() == [[False, False], [True, False]]
