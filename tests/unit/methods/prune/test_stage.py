"""The prune stage as a whole: rounds, coupled layers, the shrink, and what it refuses."""

from __future__ import annotations

import copy
import itertools
import re

import prune_zoo
import pytest
import torch
from torch import nn

from modelpress.api.v1alpha1 import Prune
from modelpress_runner.edits.replay import read, replay, write
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.methods.context import StageContext, Transform
from modelpress_runner.methods.prune.covering import apply_masks
from modelpress_runner.stages.prune import steps
from modelpress_runner.training.step import Training


def local(model: nn.Module) -> nn.Module:
    """The model as a notebook's would be: it cannot be pickled, so its analysis runs in this process."""
    model.keep_here = lambda: None
    return model


def run(model: nn.Module, dummy: object, **settings: object) -> StageContext:
    """The state after one prune stage of a local model; training moves every weight that is not masked."""
    context = StageContext(model, None, dummy, 0)
    lines: list[str] = []
    context.report = lines.append
    for step in steps(Prune.model_validate(settings), 0):
        if isinstance(step, Transform):
            step.apply(context)
        else:
            train(context)
    context.lines = lines  # type: ignore[attr-defined]
    return context


def train(context: StageContext) -> None:
    """One step of gradient descent on the dummy input; masked weights stay zero."""
    optimizer = torch.optim.SGD(context.model.parameters(), lr=0.01)
    context.model.train()
    context.model(context.dummy_input).square().mean().backward()
    optimizer.step()
    apply_masks(context.model, context.masks)


def residual(width: int = 32) -> tuple[nn.Module, torch.Tensor]:
    """A digits-like residual network and an input."""
    model = local(prune_zoo.trained_like(prune_zoo.Residual(width)))
    return model, torch.randn((2, 1, 8, 8), generator=torch.Generator().manual_seed(0))


def test_steps_of_a_stage() -> None:
    """Each round is a transform and its training; the shrink comes last; level alone has none."""
    settings = {
        "configList": [{"sparsity": 0.5}],
        "schedule": {"type": "agp", "rounds": 2, "train": {"epochs": 3}},
    }
    made = steps(Prune.model_validate(settings), 0)
    assert [step.label for step in made] == [
        "prune round 1 of 2",
        "train after prune round 1 of 2",
        "prune round 2 of 2",
        "train after prune round 2 of 2",
        "shrink",
    ]
    assert [step.epochs for step in made if isinstance(step, Training)] == [3, 3]
    one = Prune.model_validate({"configList": [{"sparsity": 0.5}], "speedup": False})
    assert [step.label for step in steps(one, 0)] == ["prune"]
    level = Prune.model_validate({"algorithm": "level", "configList": [{"sparsity": 0.5}]})
    assert [step.label for step in steps(level, 0)] == ["prune"]


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("algorithm", ["l1", "l2", "random"])
def test_a_residual_network_shrinks_at_every_sparsity(algorithm: str, sparsity: float) -> None:
    """All convolutions keep 32 - floor(32 s) channels; parameters are those of a network built that narrow."""
    model, dummy = residual()
    context = run(model, dummy, algorithm=algorithm, configList=[{"opTypes": ["Conv2d"], "sparsity": sparsity}])
    width = {0.3: 23, 0.5: 16, 0.7: 10, 0.9: 4}[sparsity]
    assert {m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)} == {width}
    narrow = prune_zoo.Residual(width)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in narrow.parameters())
    assert model(dummy).shape == (2, 10)
    assert context.masks == {}

    fresh = prune_zoo.Residual()
    replay(fresh, read(write(context.edits)))
    fresh.load_state_dict(model.state_dict())
    fresh.eval()
    model.eval()
    assert torch.equal(fresh(dummy), model(dummy))


def test_replay_on_the_dense_model_is_bit_equal() -> None:
    """The shrink only leaves out: the dense weights, cut, are the shrunk model's weights."""
    model, dummy = residual(8)
    dense = copy.deepcopy(model.state_dict())
    context = run(model, dummy, configList=[{"opTypes": ["Conv2d"], "sparsity": 0.5}])
    fresh = prune_zoo.Residual(8)
    fresh.load_state_dict(dense)
    replay(fresh, context.edits)
    assert all(torch.equal(tensor, fresh.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_coupled_layers_are_scored_by_their_mean() -> None:
    """Stem scores (4, 1, 3) and conv2 scores (1, 2, 9) have the means 2.5, 1.5, 6: the second channel goes."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(1, 3, bias=False)
            self.conv2 = nn.Linear(3, 3, bias=False)
            self.head = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.head(torch.relu(x + self.conv2(x)))

    model = Small()
    with torch.no_grad():
        model.stem.weight.copy_(torch.tensor([[4.0], [1], [3]]))
        model.conv2.weight.copy_(torch.diag(torch.tensor([1.0, 2, 9])))
    context = run(model, torch.ones(1, 1), algorithm="l1", configList=[{"sparsity": 0.34}])
    assert {(cut.module, cut.axis): cut.kept for cut in context.edits} == {
        ("stem", "out"): (0, 2),
        ("conv2", "out"): (0, 2),
        ("conv2", "in"): (0, 2),
        ("head", "in"): (0, 2),
    }
    told = r"Left as it was: 'head' cannot lose channels: they reach the model's output from \w+ in 'head' \(.*py:\d+\)"
    assert any(re.fullmatch(told, note) for note in context.notes)


def test_masks_between_rounds_cover_what_the_shrink_takes() -> None:
    """Norms and the next layer's inputs are masked too, so that training between rounds cannot bring them back."""
    model, dummy = residual(8)
    prune = Prune.model_validate({"configList": [{"opNames": ["conv1"], "sparsity": 0.5}]})
    context = StageContext(model, None, dummy, 0)
    first = steps(prune, 0)[0]
    assert isinstance(first, Transform)
    first.apply(context)
    assert {name: sorted(tensors) for name, tensors in context.masks.items()} == {
        "conv1": ["bias", "weight"],
        "norm1": ["bias", "weight"],
        "conv2": ["weight"],
    }
    gone = context.masks["conv1"]["bias"] == 0
    assert int(gone.sum()) == 4
    assert torch.equal(context.masks["norm1"]["weight"] == 0, gone)
    assert torch.equal(context.masks["conv2"]["weight"].sum(dim=(0, 2, 3)) == 0, gone)
    assert bool((model.norm1.bias[gone] == 0).all())


def test_rounds_with_training_end_in_a_proven_shrink() -> None:
    """AGP over three rounds with training in between, shrunk at the end; the reports tell the shares."""
    model, dummy = residual(8)
    context = run(
        model,
        dummy,
        configList=[{"opTypes": ["Conv2d"], "sparsity": 0.75}],
        schedule={"type": "agp", "rounds": 3, "train": {"epochs": 1}},
    )
    assert model.conv1.out_channels == 2
    assert context.lines[:3] == [  # type: ignore[attr-defined]
        "removed 12 of 24 (0.5000): stem 4/8, conv1 4/8, conv2 4/8",
        "removed 15 of 24 (0.6250): stem 5/8, conv1 5/8, conv2 5/8",
        "removed 18 of 24 (0.7500): stem 6/8, conv1 6/8, conv2 6/8",
    ]


def test_a_restart_in_the_middle_goes_on_the_same() -> None:
    """The last round and the shrink, run by a new process from the state behind the first round, end alike."""
    settings = {
        "algorithm": "random",
        "configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}],
        "schedule": {"type": "linear", "rounds": 2},
    }
    model, dummy = residual(8)
    context = StageContext(model, None, dummy, 0)
    first, second, shrink = steps(Prune.model_validate(settings), 0)
    first.apply(context)
    later = StageContext(copy.deepcopy(model), None, dummy, 0, masks=copy.deepcopy(context.masks))
    for step in (second, shrink):
        step.apply(context)
    for step in steps(Prune.model_validate(settings), 0)[1:]:
        step.apply(later)
    assert later.edits == context.edits
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), later.model.parameters(), strict=True))


def test_a_second_stage_cuts_what_the_first_left() -> None:
    """Cuts of two stages, replayed in order, give the twice shrunk model."""
    model, dummy = residual(8)
    dense = prune_zoo.Residual(8)
    context = run(model, dummy, configList=[{"opTypes": ["Conv2d"], "sparsity": 0.25}])
    for step in steps(Prune.model_validate({"configList": [{"opNames": ["conv1"], "sparsity": 0.5}]}), 1):
        step.apply(context)
    assert (model.stem.out_channels, model.conv1.out_channels) == (6, 3)
    replay(dense, context.edits)
    dense.load_state_dict(model.state_dict())
    assert torch.equal(dense.eval()(dummy), model.eval()(dummy))


def test_masks_of_single_weights_are_cut_along() -> None:
    """Level masks of the head shrink with its inputs and still hold; l1 shrinks the convolutions."""
    model, dummy = residual(8)
    context = run(
        model,
        dummy,
        configList=[
            {"opTypes": ["Conv2d"], "sparsity": 0.5},
            {"opNames": ["head"], "algorithm": "level", "sparsity": 0.25},
        ],
    )
    mask = context.masks["head"]["weight"]
    assert set(context.masks) == {"head"}
    assert mask.shape == model.head.weight.shape == (10, 64)
    assert torch.equal(model.head.weight == 0, mask == 0)
    # A quarter of the dense head's 1280 weights; those in the removed half went with it.
    assert 0 < int((mask == 0).sum()) < 320


def test_an_excluded_member_keeps_its_group_dense() -> None:
    """The stem is excluded: conv2, which is added to it, stays as wide, with a note; conv1 shrinks."""
    model, dummy = residual(8)
    context = run(
        model,
        dummy,
        configList=[{"opTypes": ["Conv2d"], "sparsity": 0.5}, {"opNames": ["stem"], "exclude": True}],
    )
    assert (model.stem.out_channels, model.conv2.out_channels, model.conv1.out_channels) == (8, 8, 4)
    assert any(
        note == "Left as it was: 'conv2' can lose channels only together with 'stem', which is excluded"
        for note in context.notes
    )


def test_an_excluded_norm_keeps_its_group_dense() -> None:
    """Exclusion holds for what follows, too."""
    model, dummy = residual(8)
    run(
        model,
        dummy,
        configList=[{"opTypes": ["Conv2d"], "sparsity": 0.5}, {"opNames": ["norm1"], "exclude": True}],
    )
    assert (model.stem.out_channels, model.conv1.out_channels) == (4, 8)


@pytest.mark.parametrize(
    ("entries", "message", "path"),
    [
        (
            [{"opNames": ["stem"], "sparsity": 0.5}],
            "'stem' can lose channels only together with 'conv2'; select that too, or set shrink: false",
            "configList[0].opNames",
        ),
        (
            [{"opTypes": ["Conv2d"], "sparsity": 0.5}, {"opNames": ["head"], "sparsity": 0.2}],
            "'head' cannot lose channels: they reach the model's output",
            "configList[1].opNames",
        ),
        (
            [{"opTypes": ["Linear"], "sparsity": 0.5}],
            "no selected module can lose channels: 'head' cannot lose channels: they reach the model's output",
            "configList",
        ),
        (
            [{"opTypes": ["Conv2d"], "sparsity": 0.5}, {"opNames": ["conv2"], "algorithm": "l2"}],
            "'stem' (l1, local) and 'conv2' (l2, local) lose the same channels; give them one algorithm and one scope",
            "configList[1]",
        ),
    ],
)
def test_selections_that_cannot_shrink_are_refused(entries: list[dict[str, object]], message: str, path: str) -> None:
    """Named layers must be able to lose channels, and something must."""
    model, dummy = residual(8)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InvalidSpecError) as raised:
        run(model, dummy, configList=entries)
    assert raised.value.path == f"spec.stages[0].prune.{path}"
    assert message in str(raised.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_smaller_sparsity_holds_for_a_group() -> None:
    """Stem asks for 0.5, conv2 for 0.25: both lose a quarter, and a note says so."""
    model, dummy = residual(8)
    context = run(
        model,
        dummy,
        configList=[{"opTypes": ["Conv2d"], "sparsity": 0.5}, {"opNames": ["conv2"], "sparsity": 0.25}],
    )
    assert (model.stem.out_channels, model.conv2.out_channels, model.conv1.out_channels) == (6, 6, 4)
    assert context.notes == [
        "'stem' (0.5), 'conv2' (0.25) lose the same channels; the smallest of their sparsities holds for all of them"
    ]


def test_depthwise_convolutions_follow_without_being_named() -> None:
    """Only the pointwise convolution is selected; norm, depthwise convolution and PReLU go along."""
    model = local(prune_zoo.trained_like(prune_zoo.Depthwise()))
    dummy = torch.randn(prune_zoo.IMAGE, generator=torch.Generator().manual_seed(0))
    run(model, dummy, configList=[{"opNames": ["expand"], "sparsity": 0.5}])
    assert (model.expand.out_channels, model.norm.num_features, model.act.num_parameters) == (6, 6, 6)
    assert (model.depthwise.groups, model.depthwise.in_channels, model.depthwise.out_channels) == (6, 6, 6)
    assert model(dummy).shape == (2, 5, 8, 8)


def test_group_norm_rounds_down_to_whole_groups() -> None:
    """0.6 of 12 channels in 4 groups of 3 are 2 whole groups."""
    model = local(prune_zoo.trained_like(prune_zoo.GroupNormed()))
    run(model, torch.ones(prune_zoo.IMAGE), configList=[{"opNames": ["conv1"], "sparsity": 0.6}])
    assert (model.conv1.out_channels, model.norm.num_groups, model.norm.num_channels) == (6, 2, 6)


def test_one_ranking_over_global_layers() -> None:
    """A layer of noise loses more than one whose channels all matter; the sum is half of all."""
    model = local(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0] * 2 + [10.0] * 6).view(8, 1).expand(8, 4))
        model[2].weight.copy_(torch.tensor([1.0] * 6 + [10.0] * 2).view(8, 1).expand(8, 8))
    run(model, torch.ones(2, 4), scope="global", configList=[{"opTypes": ["Linear"], "sparsity": 0.5}])
    assert (model[0].out_features, model[2].out_features) == (6, 2)


def test_layers_that_cannot_be_proven_stay_with_a_note_or_are_an_error_by_name() -> None:
    """A convolution whose width stands in the code: by type it is left alone; by name it is refused."""
    model = local(prune_zoo.trained_like(prune_zoo.FixedWidth()))
    dummy = torch.randn(prune_zoo.IMAGE, generator=torch.Generator().manual_seed(0))
    before = model.conv1.weight.clone()
    context = run(model, dummy, configList=[{"opNamesRe": ["conv1|fine"], "sparsity": 0.5}])
    assert torch.equal(before[:, model.fine.weight.shape[0] :], before[:, 3:])
    assert model.conv1.out_channels == 8
    (note,) = [note for note in context.notes if "conv1" in note]
    assert note.startswith("Left as it was: 'conv1' cannot lose channels: the shrunk model does not run")
    with pytest.raises(InvalidSpecError, match="'conv1' cannot lose channels: the shrunk") as raised:
        run(model, dummy, configList=[{"opNames": ["conv1"], "sparsity": 0.5}])
    assert raised.value.path == "spec.stages[0].prune.configList[0].opNames"


def test_what_the_analysis_keeps_is_an_error_where_nothing_else_is_selected() -> None:
    """A convolution whose channels are averaged, with the operation and the line that does it."""
    model = local(prune_zoo.trained_like(prune_zoo.ChannelMean()))
    for entry in ({"sparsity": 0.5}, {"opNames": ["conv1"], "sparsity": 0.5}):
        with pytest.raises(
            InvalidSpecError, match=r"'conv1' cannot lose channels: mean \(prune_zoo.py:\d+\) runs over"
        ):
            run(model, torch.ones(prune_zoo.IMAGE), configList=[entry])


@pytest.mark.parametrize(
    ("build", "dummy", "fault", "cut"),
    [
        (prune_zoo.GroupedQueryAttention, torch.ones(2, 5, 32), "'q', 'k', 'v'", ("up", 32)),
        (prune_zoo.FixedWidth, torch.ones(prune_zoo.IMAGE), "'conv1'", ("fine", 3)),
    ],
)
def test_widths_that_stand_in_the_code_are_left(
    build: type[nn.Module], dummy: torch.Tensor, fault: str, cut: tuple[str, int]
) -> None:
    """Attention heads and fixed reshapes cannot be narrowed; they stay as they were, and the rest shrinks."""
    model = local(prune_zoo.trained_like(build()))
    dense = copy.deepcopy(model)
    context = run(model, dummy, configList=[{"sparsity": 0.5}])
    expected = f"Left as it was: {fault} cannot lose channels: the shrunk model does not run: RuntimeError: shape"
    assert any(note.startswith(expected) for note in context.notes)
    names = fault.replace("'", "").split(", ")
    for name in names:
        assert torch.equal(model.get_submodule(name).bias, dense.get_submodule(name).bias)
    module = model.get_submodule(cut[0])
    assert module.weight.shape[0] == cut[1]
    for name in names:
        with pytest.raises(InvalidSpecError, match="cannot lose channels"):
            run(copy.deepcopy(dense), dummy, configList=[{"sparsity": 0.5}, {"opNames": [name]}])


def test_recurrent_layers_stay_and_the_rest_shrinks() -> None:
    """Embedding and LSTM keep their widths; the linear layer behind them loses half."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 8)
            self.lstm = nn.LSTM(8, 16, batch_first=True)
            self.hidden = nn.Linear(16, 12)
            self.head = nn.Linear(12, 3)

        def forward(self, words: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.hidden(self.lstm(self.embed(words))[0][:, -1])))

    model = Words()
    run(model, torch.zeros(2, 4, dtype=torch.long), configList=[{"sparsity": 0.5}])
    assert (model.lstm.hidden_size, model.hidden.out_features, model.head.in_features) == (16, 6, 6)


@pytest.mark.parametrize("speedup", [True, False])
def test_less_than_one_channel_leaves_the_layer_with_a_note(speedup: bool) -> None:
    """A tenth of 8 channels is less than one; the model as it was is a result like any other."""
    model, dummy = residual(8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    context = run(model, dummy, configList=[{"opTypes": ["Conv2d"], "sparsity": 0.1}], speedup=speedup)
    assert any("where a sparsity of 0.1 is less than one of 8" in note for note in context.notes)
    assert context.edits == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_shrink_needs_a_dummy_input() -> None:
    """Without one the message offers both ways out."""
    model, _ = residual(8)
    with pytest.raises(InvalidSpecError, match=r"spec.stages\[0\].prune.shrink: shrinking needs a dummy_input"):
        run(model, None, configList=[{"sparsity": 0.5}])
    run(model, None, configList=[{"sparsity": 0.5}], speedup=False)


def test_more_rounds_than_the_stage_has_are_refused() -> None:
    """Such an entry would never reach its target."""
    entry = {"sparsity": 0.5, "schedule": {"type": "agp", "rounds": 3}}
    with pytest.raises(InvalidSpecError) as raised:
        steps(Prune.model_validate({"configList": [entry], "schedule": {"type": "agp", "rounds": 2}}), 4)
    assert raised.value.path == "spec.stages[4].prune.configList[0].schedule.rounds"


def test_entries_with_their_own_schedule_hold_their_target() -> None:
    """Three linear rounds of the stage; one entry is there at once, another after two rounds."""
    model = nn.Sequential(*(nn.Linear(2, 12) for _ in range(3)))
    context = StageContext(model, None, None, 0)
    counts = []
    for step in steps(
        Prune.model_validate(
            {
                "speedup": False,
                "sparsity": 0.5,
                "configList": [
                    {},
                    {"opNames": ["1"], "schedule": {"type": "one_shot"}},
                    {"opNames": ["2"], "schedule": {"type": "linear", "rounds": 2}},
                ],
                "schedule": {"type": "linear", "rounds": 3},
            }
        ),
        0,
    ):
        assert isinstance(step, Transform)
        step.apply(context)
        counts.append([int((context.masks[name]["bias"] == 0).sum()) for name in ("0", "1", "2")])
    assert counts == [[2, 6, 3], [4, 6, 6], [6, 6, 6]]


def test_the_shrunk_model_exports_and_trains() -> None:
    """torch.export takes it, and an optimizer made for it moves every weight."""
    model, dummy = residual(8)
    run(model, dummy, configList=[{"opTypes": ["Conv2d"], "sparsity": 0.5}])
    del model.keep_here
    model.eval()
    program = torch.export.export(model, (dummy,))
    torch.testing.assert_close(program.module()(dummy), model(dummy))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    model(dummy).square().mean().backward()
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    weights = [name.endswith("weight") for name, _ in model.named_parameters()]
    assert all(itertools.compress(moved, weights))


def test_one_analysis_serves_the_whole_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rounds and the shrink ask once, and nothing needs a note."""
    from modelpress_runner.stages import prune as stage

    asked: list[nn.Module] = []
    find = stage.find_dependencies
    monkeypatch.setattr(stage, "find_dependencies", lambda *given: asked.append(given[0]) or find(*given))
    model = prune_zoo.trained_like(prune_zoo.Residual(8))
    context = run(
        model,
        torch.ones(2, 1, 8, 8),
        configList=[{"opTypes": ["Conv2d"], "sparsity": 0.5}],
        schedule={"type": "agp", "rounds": 3},
        shrinkTimeoutSeconds=120,
    )
    assert asked == [model]
    assert context.notes == []
    assert model.conv1.out_channels == 4
