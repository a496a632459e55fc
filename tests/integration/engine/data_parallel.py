"""One rank of the processes in test_data_parallel.py: python data_parallel.py RANK WORLD FILE; prints JSON."""

from __future__ import annotations

import json
import sys

import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import modelpress as mp
from modelpress.api.v1alpha1 import Stage
from modelpress_runner.engine.run import run_stages
from modelpress_runner.evaluators.hooks import ForwardHook
from modelpress_runner.passes.frozen import scoring_passes
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.subject.compression_module import CompressionModule, subject_of
from modelpress_runner.subject.subject import Subject


class Net(nn.Module):
    """Two layers, with an attribute that only the model itself has."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.head = nn.Linear(8, 2)
        self.title = "net"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.body(x)))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """32 points, two classes."""
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] + x[:, 1] > 0).long()


def network() -> Net:
    """The same weights each time, on every rank."""
    torch.manual_seed(1)
    return Net()


def evaluator(seen: list[object], **changes: object) -> mp.TorchEvaluator:
    """Trains on this rank's share of each batch of eight."""
    x, y = data()

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        seen.append((type(model).__name__, model.title))
        steps = 0
        for _ in range(max_epochs or 1000):
            for index in torch.randperm(32).split(8):
                if steps == max_steps:
                    return
                mine = index[ranks.rank() :: ranks.world_size()]
                optimizer.zero_grad()
                training_step((x[mine], y[mine]), model).backward()
                optimizer.step()
                steps += 1

    given = {
        "training_func": training_func,
        "optimizers": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        "training_step": lambda batch, model: F.cross_entropy(model(batch[0]), batch[1]),
        "dummy_input": x[:2],
        "evaluating_func": lambda model: seen.append(type(model).__name__) or float((model(x).argmax(1) == y).sum()),
    }
    return mp.TorchEvaluator(**(given | changes))


RECIPE = [
    {
        "prune": {
            "algorithm": "taylor", "sparsity": 0.5, "configList": [{"opNames": ["body"]}], "scores": {"steps": 5},
            "schedule": {"type": "linear", "rounds": 2, "train": {"epochs": 1}},
        }
    },
    {"finetune": {"maxSteps": 6}},
]  # fmt: skip


def recipe() -> dict[str, object]:
    """Scores, rounds, a shrink and training after it, of a model that comes wrapped where that is possible."""
    seen: list[object] = []
    model = network()
    subject = Subject(DistributedDataParallel(model) if ranks.is_distributed() else model, evaluator(seen))
    assert subject.model is model
    outcome = run_stages(subject, [Stage.model_validate(stage) for stage in RECIPE], seed=3)
    return {
        "kept": [list(cut.kept) for cut in outcome.edits],
        "weights": {name: value.tolist() for name, value in outcome.model.state_dict().items()},
        "trained": sorted({str(each) for each in seen}),
        "score": outcome.stages[-1]["score"],
    }


def alone() -> dict[str, object]:
    """After unbinding one rank can train the model by itself: nothing waits for the other."""
    model, seen = network(), []
    given = evaluator(seen)
    given.bind(model)
    inside = ForwardHook(lambda buffer, module, args, output: buffer.append(tuple(output.shape)))
    given.register_forward_hook("body", inside)
    given.train(max_steps=2)
    given.unbind()
    model.zero_grad()
    if ranks.is_rank_zero():
        for _ in range(2):
            F.cross_entropy(model(data()[0]), data()[1]).backward()
    ranks.barrier()
    return {"hooked": inside.buffer, "gradient": model.body.weight.grad is not None}


def frozen() -> dict[str, object]:
    """Gradients of a frozen model are the mean of the ranks', and no bit changes."""
    model, seen, gradients = network(), [], []
    before = model.body.weight.detach().clone()
    scoring_passes(model, evaluator(seen), 3, before_step=lambda: gradients.append(model.head.bias.grad.tolist()))
    return {"gradients": gradients, "same": torch.equal(model.body.weight, before)}


def options() -> dict[str, object]:
    """What `parallel` does."""
    seen: list[object] = []
    for parallel in (False, {"find_unused_parameters": True}):
        given = evaluator(seen, parallel=parallel)
        given.bind(network())
        given.train(max_steps=1)
        given.unbind()
    return {"seen": seen}


def module() -> dict[str, object]:
    """A CompressionModule's trainer gets the wrapped model too."""
    x, y = data()
    kinds: list[str] = []

    class Own(CompressionModule):
        @classmethod
        def model(cls):
            return network()

        @classmethod
        def evaluator(cls):
            return lambda model: 0.0

        @classmethod
        def optimizer_factory(cls):
            return lambda params: torch.optim.SGD(params, lr=0.1)

        @classmethod
        def criterion(cls):
            return nn.CrossEntropyLoss()

        @classmethod
        def post_compress_finetuning_trainer(cls, algorithm_name):
            def trainer(model, optimizer, criterion, current_epoch):
                kinds.append(type(model).__name__)
                mine = slice(ranks.rank(), None, ranks.world_size())
                criterion(model(x[mine]), y[mine]).backward()
                optimizer.step()

            return trainer

    subject = subject_of(Own)
    subject.evaluator.bind(subject.model)
    subject.evaluator.train(max_epochs=1)
    subject.evaluator.unbind()
    return {"kinds": kinds, "weights": subject.model.head.weight.tolist()}


def main() -> None:
    """All parts in turn."""
    rank, world, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    if world > 1:
        distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    out = {part.__name__: part() for part in (recipe, alone, frozen, options, module)}
    if world > 1:
        distributed.destroy_process_group()
    print(json.dumps(out))


if __name__ == "__main__":
    main()
