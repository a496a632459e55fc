"""AMC, whose policy is learned, beside a budget: on the digits CNN, at the same MACs.

AMC (He et al. 2018, arXiv 1802.03494) is made anew here as in the paper: actor and critic (DDPG) go through the
groups of channels that are cut together and say of each how much goes: .8 at most, and enough for the rest to meet the
budget. The reward is the pruned network's accuracy without training, on a third of the training images. Noise is
truncated and normal, .5 at first and by .97 less with each episode after the first fourth. The best that was seen
counts. Beside it: `prune.budget` (solved once, no score is taken), and the same share for all groups. All rank channels
by l1, and are trained alike for three epochs behind it, at a rate that falls to zero.

Reported for each seed and budget: accuracy on held-back images behind pruning and behind training, MACs, seconds of the
processor and scores taken; and the mean difference of budget and AMC behind training.

Usage: python benchmarks/amc.py [--seeds 0 1 2] [--ratios .48 .26] [--episodes 200]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import prune_digits as common
import torch
import torch.nn.functional as F
from torch import nn

import modelpress as mp
from modelpress.api.v1alpha1 import Prune
from modelpress_runner.methods.context import StageContext
from modelpress_runner.methods.prune.covering import apply_masks
from modelpress_runner.stages.prune import PruneStage

HERE = Path(__file__).resolve().parent
digits = common.digits
MOST, BATCH, MEMORY, GAMMA, SIZE = 0.8, 32, 2000, 1.0, 64
# Convolutions whose output channels are cut together; the network is narrow enough to see that by eye.
GROUPS = (("stem", "block1.conv2"), ("block1.conv1",), ("down", "block2.conv2"), ("block2.conv1",))


def macs_of(widths: list[float]) -> float:
    """MACs of the network, by the widths of GROUPS."""
    a, b, c, d = widths
    return 64 * 9 * (a + 2 * a * b) + 16 * 9 * (a * c + 2 * c * d) + 10 * c


class Pruned:
    """The dense network, pruned by shares of GROUPS and put back."""

    def __init__(self, state: dict[str, torch.Tensor], seed: int) -> None:
        self.model: Any = common.fresh(state).model
        self.whole = [float(self.model.get_submodule(names[0]).out_channels) for names in GROUPS]
        self._state = copy.deepcopy(self.model.state_dict())
        block = {"algorithm": "l1", "configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}
        self._stage = PruneStage(Prune.model_validate(block), 0, "prune")
        self._context = StageContext(self.model, None, common.DATA[2][:1], seed)
        self.scored = 0

    def ratio(self, shares: list[float]) -> float:
        """Of the MACs, what is left."""
        left = [whole - int(whole * share + 1e-6) for whole, share in zip(self.whole, shares, strict=True)]
        return macs_of(left) / macs_of(self.whole)

    def score(self, shares: list[float], images: torch.Tensor, labels: torch.Tensor) -> float:
        """The accuracy of the pruned network."""
        self.model.load_state_dict(self._state)
        by_name = {name: share for names, share in zip(GROUPS, shares, strict=True) for name in names}
        outcome = self._stage.outcome(self._context, 1, {}, shares=by_name)
        apply_masks(self.model, outcome.masks)
        self.scored += 1
        return float(digits.accuracy(self.model, images, labels))


class Agent:
    """DDPG: actor and critic with targets that follow."""

    def __init__(self, features: int, seed: int) -> None:
        torch.manual_seed(seed)

        def net(inputs: int) -> nn.Module:
            return nn.Sequential(
                nn.Linear(inputs, SIZE), nn.ReLU(), nn.Linear(SIZE, SIZE), nn.ReLU(), nn.Linear(SIZE, 1)
            )

        self.actor, self.critic = net(features), net(features + 1)
        self.targets = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self._steps = torch.optim.Adam(self.actor.parameters(), 1e-3), torch.optim.Adam(self.critic.parameters(), 1e-2)
        self._memory: list[tuple[torch.Tensor, float, float, torch.Tensor | None]] = []
        self._mean: float | None = None

    @torch.no_grad()
    def act(self, state: torch.Tensor, noise: float) -> float:
        """A share; `noise` is a standard deviation."""
        action = torch.sigmoid(self.actor(state))
        return float(nn.init.trunc_normal_(torch.empty(1), float(action), noise, 0.0, 1.0) if noise else action)

    def learn(self, episode: list[tuple[torch.Tensor, float]], reward: float) -> None:
        """From one episode, whose every action gets its reward less the moving mean."""
        self._mean = reward if self._mean is None else 0.95 * self._mean + 0.05 * reward
        for number, (state, action) in enumerate(episode):
            after = episode[number + 1][0] if number + 1 < len(episode) else None
            self._memory.append((state, action, reward - self._mean, after))
        self._memory = self._memory[-MEMORY:]
        if len(self._memory) < BATCH:
            return
        for _ in episode:
            some = [self._memory[int(n)] for n in torch.randint(len(self._memory), (BATCH,))]
            states, actions = torch.stack([each[0] for each in some]), torch.tensor([[each[1]] for each in some])
            with torch.no_grad():
                after = torch.stack([each[0] if each[3] is None else each[3] for each in some])
                best = torch.sigmoid(self.targets[0](after))
                rest = self.targets[1](torch.cat([after, best], dim=1))
                ends = torch.tensor([[float(each[3] is None)] for each in some])
                wanted = torch.tensor([[each[2]] for each in some]) + GAMMA * (1 - ends) * rest
            for step in self._steps:
                step.zero_grad()
            F.mse_loss(self.critic(torch.cat([states, actions], dim=1)), wanted).backward()
            self._steps[1].step()
            for step in self._steps:
                step.zero_grad()
            (-self.critic(torch.cat([states, torch.sigmoid(self.actor(states))], dim=1)).mean()).backward()
            self._steps[0].step()
            for target, net in zip(self.targets, (self.actor, self.critic), strict=True):
                for slow, fast in zip(target.parameters(), net.parameters(), strict=True):
                    slow.data.lerp_(fast.data, 0.01)


def amc(pruned: Pruned, ratio: float, episodes: int, seed: int) -> list[float]:
    """The shares of the best episode."""
    third = len(common.DATA[0]) // 3
    images, labels = common.DATA[0][:third], common.DATA[1][:third]
    agent, best, found = Agent(6, seed), -1.0, [0.0] * len(GROUPS)
    for number in range(episodes):
        noise = 0.5 * 0.97 ** max(0, number - episodes // 4)
        shares: list[float] = []
        episode = []
        for group in range(len(GROUPS)):
            rest = len(GROUPS) - group

            def left(share: float, shares: list[float] = shares, rest: int = rest) -> float:
                return pruned.ratio([*shares, share, *[MOST] * (rest - 1)])

            now = pruned.ratio([*shares, *[0.0] * rest])
            last = shares[-1] if shares else 0.0
            width = pruned.whole[group] / max(pruned.whole)
            state = torch.tensor([group / len(GROUPS), width, now, now - left(MOST), ratio, last])
            action = min(MOST, agent.act(state, noise))
            if left(action) > ratio:  # the rest could not make up for it
                low, high = action, MOST
                for _ in range(12):
                    middle = (low + high) / 2
                    low, high = (middle, high) if left(middle) > ratio else (low, middle)
                action = high
            shares.append(action)
            episode.append((state, action))
        reward = pruned.score(shares, images, labels)
        agent.learn(episode, reward)
        if reward > best:
            best, found = reward, shares
    return found


def even(pruned: Pruned, ratio: float) -> list[float]:
    """The least share for all that meets the budget."""
    low, high = 0.0, MOST
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if pruned.ratio([middle] * len(GROUPS)) > ratio else (low, middle)
    return [high] * len(GROUPS)


def cut(state: dict[str, torch.Tensor], seed: int, stage: dict[str, Any]) -> Any:
    """The cut network."""
    return common.ours(state, seed, [stage])


def by_shares(shares: list[float]) -> dict[str, Any]:
    """A stage that takes shares of GROUPS."""
    entries = [
        {"op_names": list(names), "sparsity": min(MOST, share)}
        for names, share in zip(GROUPS, shares, strict=True)
        if share > 0.01
    ]
    return {"prune": {"algorithm": "l1", "config_list": entries}}


def main() -> None:
    """Runs all and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.48, 0.26])
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "amc.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        torch.manual_seed(seed)
        subject: mp.Subject = digits.create()
        state = subject.model.state_dict()
        dense = digits.accuracy(subject.model, common.DATA[2], common.DATA[3])
        for ratio in options.ratios:
            for name in ("even", "budget", "amc"):
                pruned, clock = Pruned(state, seed), time.process_time()
                if name == "budget":
                    made = cut(state, seed, common.budgeted("l1", ratio))
                else:
                    found = even(pruned, ratio) if name == "even" else amc(pruned, ratio, options.episodes, seed)
                    made = cut(state, seed, by_shares(found))
                seconds = time.process_time() - clock
                before = digits.accuracy(made, common.DATA[2], common.DATA[3])
                row = {"seed": seed, "ratio": ratio, "name": name, "dense": dense, "pruned": before}
                row |= {"macs": common.macs(made), "cpuSeconds": seconds, "scored": pruned.scored}
                row["trained"] = common.train(made, common.EPOCHS, seed, falling=True)
                rows.append(row)
                print(json.dumps(row), flush=True)
        differences = {
            ratio: [
                next(r["trained"] for r in rows if (r["seed"], r["ratio"], r["name"]) == (s, ratio, "budget"))
                - next(r["trained"] for r in rows if (r["seed"], r["ratio"], r["name"]) == (s, ratio, "amc"))
                for s in options.seeds[: options.seeds.index(seed) + 1]
            ]
            for ratio in options.ratios
        }
        report = {
            "episodes": options.episodes,
            "budgetLessAmc": {
                f"{ratio:g}": {"mean": statistics.mean(found), "standardError": common.error(found)}
                for ratio, found in differences.items()
            },
            "rows": rows,
            "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "threads": 1},
        }
        options.output.write_text(json.dumps(report, indent=2) + "\n")
        print(json.dumps(report["budgetLessAmc"]), flush=True)


if __name__ == "__main__":
    main()
