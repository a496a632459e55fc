"""Property tests of both kinds: whatever is lost, repeated, late or killed, the invariants hold and all ends."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from reconcile_objects import HashStrategy, make_job, make_sweep
from reconcile_profiles import PROFILE, WALKS
from simulator import SILENT, TOLD, Cluster, Key

JOB: Key = ("CompressionJob", "digits")
SWEEP: Key = ("CompressionSweep", "search")
ENDS = ("done", "done", *TOLD, *SILENT)
CALM_ENDS = (*["done"] * 18, *ENDS)  # with them a sweep gets as far as its later trials
# Odd microseconds, as clocks have them; most waits are shorter than what the core waits for, some far longer.
WAITS = (*(0.400_321, 1.0, 3.000_017, 6.0, 6.0, 11.5, 11.5) * 3, 45.0, 700.0, 90_000.0)
RARELY = st.sampled_from((False, False, False, True))

# Every step is drawn by weight from one number. Rules drawn by hypothesis itself would all be equally frequent, and
# some left out for a whole run: a cluster in which nobody operates, or nothing ends, gets nowhere.
Step = tuple[Any, ...]
COMMON: dict[str, int] = {
    "operate": 14,
    "end": 8,
    "start": 6,
    "wait": 6,
    "sweep_up": 4,
    "deliver": 4,
    "suspend": 3,
    "lag": 3,
    "crash": 2,
    "refused": 2,
    "settle": 2,
    "commit": 2,
    "preempt": 1,
    "delete_by_hand": 1,
}
JOB_STEPS = {**COMMON, "suspend_quickly": 2, "stop": 1, "stranger": 1, "stranger_leaves": 2}
JOB_STEPS |= {"stall": 1, "wake": 1}
SWEEP_STEPS = {
    **COMMON,
    "operate": 30,
    "end": 24,
    "start": 12,
    "raise_max_trials": 1,
    "delete_trial": 1,
    "suspend_trial": 2,
}


def choose(weights: dict[str, int], seed: int) -> Step:
    """A step and its arguments, from one number."""
    draw = random.Random(seed)
    name = draw.choices(list(weights), list(weights.values()))[0]
    index, rarely = draw.randrange(1000), draw.random() < 0.3
    arguments: dict[str, Step] = {
        "operate": (draw.randint(1, 3),),
        "end": (index, draw.choice(ENDS if weights is JOB_STEPS else CALM_ENDS)),
        "wait": (draw.choice(WAITS),),
        "deliver": (draw.randrange(5), draw.randrange(5)),
        "suspend": (rarely,),
        "lag": (rarely,),
        "crash": (index, draw.randrange(5)),
        "refused": (index, draw.randint(1, 4)),
        "commit": (index,),
        "preempt": (index,),
        "delete_by_hand": (index,),
        "stranger": (draw.randint(1, 2),),
        "raise_max_trials": (draw.randint(1, 2),),
        "delete_trial": (index,),
        "suspend_trial": (index, rarely),
    }
    return name, *arguments.get(name, ())


def steps(weights: dict[str, int]) -> st.SearchStrategy[Step]:
    """Steps for hypothesis, which leaves out those that a failure does not need."""
    return st.integers(0, 2**64 - 1).map(partial(choose, weights))


class Machine(RuleBasedStateMachine):
    """The faults that both kinds know. Rules act on whatever is there, so that most steps do something."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster()

    def pick(self, names: list[str], index: int) -> str | None:
        """One of the names, by a drawn number."""
        return sorted(names)[index % len(names)] if names else None

    def runners(self, *states: str) -> list[str]:
        """Our child Jobs in these states."""
        return [
            name
            for name, job in self.cluster.jobs.items()
            if job.seen.state in states and job.seen.owner_uid != "somebody"
        ]

    def operate(self, rounds: int) -> None:
        """The operator works on all it sees."""
        for _ in range(rounds):
            for key in sorted(self.cluster.objects):
                self.cluster.reconcile(key)

    def crash(self, index: int, keep: int) -> None:
        """The operator dies in the middle of a plan, starts anew and lists everything."""
        keys = sorted(self.cluster.objects)
        self.cluster.reconcile(keys[index % len(keys)], keep)
        self.cluster.deliver()

    def refused(self, index: int, keep: int) -> None:
        """The API server refuses an action; the rest of the plan is dropped and the watches lag on."""
        keys = sorted(self.cluster.objects)
        self.cluster.reconcile(keys[index % len(keys)], keep)

    def settle(self) -> None:
        """The operator works undisturbed for a moment, and then has nothing to do."""
        for key in sorted(self.cluster.objects):
            self.cluster.settle(key)

    def deliver(self, objects: int, jobs: int) -> None:
        """Some news arrive, of one watch more than of the other."""
        self.cluster.deliver(objects, jobs)

    def lag(self, lagging: bool) -> None:
        """The watches begin to lag, or, more often, catch up."""
        self.cluster.lagging = lagging
        if not self.cluster.lagging:
            self.cluster.deliver()

    def start(self) -> None:
        """All pending runners start."""
        for name in self.runners("pending"):
            self.cluster.start(name)

    def end(self, index: int, how: str) -> None:
        """A runner ends."""
        if name := self.pick(self.runners("pending", "running"), index):
            if self.cluster.jobs[name].seen.state == "pending":
                self.cluster.start(name)
            self.cluster.end(name, how)

    def commit(self, index: int) -> None:
        """A runner writes its manifest and runs on."""
        if name := self.pick(self.runners("running"), index):
            self.cluster.commit(name)

    def preempt(self, index: int) -> None:
        """A queue takes a Job's runner away and starts it again later, in the same Job."""
        if name := self.pick(self.runners("running"), index):
            self.cluster.update_job(name, state="pending", started_at=None)

    def sweep_up(self) -> None:
        """The Jobs that are being deleted are gone."""
        for name in self.runners("pending", "running", "succeeded", "failed"):
            if self.cluster.jobs[name].seen.deleting:
                self.cluster.vanish(name)

    def delete_by_hand(self, index: int) -> None:
        """Somebody deletes a child Job."""
        if name := self.pick(self.runners("pending", "running", "succeeded", "failed"), index):
            self.cluster.vanish(name)

    def wait(self, seconds: float) -> None:
        """Time passes, or the clock jumps."""
        self.cluster.advance(seconds)

    @invariant()
    def holds(self) -> None:
        """The invariants of every instant."""
        self.cluster.check()


JOB_BEGIN: dict[str, st.SearchStrategy[Any]] = {
    "backoff": st.integers(0, 2),
    "disruptions": st.integers(0, 5),
    "deadline": st.sampled_from((None, None, 20, 1000)),
    "ttl": st.sampled_from((None, 0, 30)),
    "stops": RARELY,
    "strangers": RARELY,
    "stalls": RARELY,
}
SWEEP_BEGIN: dict[str, st.SearchStrategy[Any]] = {
    "parallelism": st.integers(1, 3),
    "most": st.integers(1, 6),
    "failed": st.integers(0, 6),
    "budget": st.sampled_from((None, {"wallClockSeconds": 60}, {"wallClockSeconds": 100_000}, {"gpuSeconds": 100})),
    "exhausted": st.sampled_from((None, None, 0, 3)),
    "refused": st.frozensets(st.integers(0, 5), max_size=2),
    "prepares": st.booleans(),
}


class JobMachine(Machine):
    """A standalone job."""

    @initialize(**JOB_BEGIN)
    def begin(
        self,
        backoff: int,
        disruptions: int,
        deadline: int | None,
        ttl: int | None,
        stops: bool,
        strangers: bool,
        stalls: bool,
    ) -> None:
        """A user applies a job."""
        self.stops, self.strangers, self.stalls = stops, strangers, stalls
        fields = {"activeDeadlineSeconds": deadline, "ttlSecondsAfterFinished": ttl}
        given = {name: value for name, value in fields.items() if value is not None}
        self.cluster.put(make_job(backoffLimit=backoff, maxDisruptions=disruptions, **given))

    @rule(step=steps(JOB_STEPS))
    def step(self, step: Step) -> None:
        """Something happens."""
        getattr(self, step[0])(*step[1:])

    def suspend(self, suspend: bool) -> None:
        """A user suspends or, more often, resumes the job."""
        if self.cluster.objects[JOB].spec.suspend != suspend:
            self.cluster.change_spec(JOB, suspend=suspend)

    def suspend_quickly(self) -> None:
        """A user suspends the job, the operator sees it, the user thinks better of it."""
        self.cluster.change_spec(JOB, suspend=True)
        self.cluster.reconcile(JOB)
        self.cluster.change_spec(JOB, suspend=False)

    def stall(self) -> None:
        """The operator hangs behind its first action and is replaced, in some runs."""
        if self.stalls:
            self.cluster.stall(JOB)

    def wake(self) -> None:
        """The former operator goes on."""
        self.cluster.wake()

    def stop(self) -> None:
        """A sweep stops the job, in some runs."""
        if self.stops:
            self.cluster.stop(JOB)

    def stranger(self, ahead: int) -> None:
        """Somebody takes a name that the job will want, in some runs."""
        name = f"digits-{self.cluster.objects[JOB].status.started + ahead}"
        if name not in self.cluster.jobs and self.strangers:
            self.cluster.add_stranger(name)

    def stranger_leaves(self) -> None:
        """Somebody frees the name."""
        for name in [name for name, job in self.cluster.jobs.items() if job.seen.owner_uid == "somebody"]:
            self.cluster.vanish(name)

    def teardown(self) -> None:
        """Faults end; the job comes to its end."""
        if JOB not in self.cluster.objects:
            return
        self.stranger_leaves()
        self.suspend(False)
        self.cluster.converge()
        job = self.cluster.objects[JOB]
        if job.status.phase == "Succeeded":
            assert job.status.artifact is not None
            assert len(self.cluster.manifests) == 1


class SweepMachine(Machine):
    """A sweep and its trials."""

    adaptive = False

    @initialize(**SWEEP_BEGIN)
    def begin(
        self,
        parallelism: int,
        most: int,
        failed: int,
        budget: dict[str, int] | None,
        exhausted: int | None,
        refused: frozenset[int],
        prepares: bool,
    ) -> None:
        """A user applies a sweep; one that searches below /model needs no prepare Job."""
        limits = {"budget": budget} if budget else {}
        space = [{"name": "width", "paths": ["/model/args/width"], "int": {"min": 1, "max": 9}}]
        given = {} if prepares else {"searchSpace": space}
        sweep = make_sweep(
            **given,
            parallelism=parallelism,
            maxTrials=most,
            maxFailedTrials=failed,
            template={"backoffLimit": 1, "maxDisruptions": 3, "runner": {"gpus": 2}},
            **limits,
        )
        self.cluster.strategy = HashStrategy(sweep, adaptive=self.adaptive, exhausted_at=exhausted, refused=refused)
        self.cluster.put(sweep)

    @rule(step=steps(SWEEP_STEPS))
    def step(self, step: Step) -> None:
        """Something happens."""
        getattr(self, step[0])(*step[1:])

    def suspend(self, suspend: bool) -> None:
        """A user suspends or, more often, resumes the sweep."""
        if self.cluster.objects[SWEEP].spec.suspend != suspend:
            self.cluster.change_spec(SWEEP, suspend=suspend)

    def raise_max_trials(self, more: int) -> None:
        """A user wants more trials."""
        most = self.cluster.objects[SWEEP].spec.max_trials
        if most < 12:
            self.cluster.change_spec(SWEEP, max_trials=most + more)

    def delete_trial(self, index: int) -> None:
        """Somebody deletes a trial."""
        trials = [name for kind, name in self.cluster.objects if kind == "CompressionJob"]
        if name := self.pick(trials, index):
            self.cluster.delete_object(("CompressionJob", name))

    def suspend_trial(self, index: int, suspend: bool) -> None:
        """A user suspends or resumes one trial."""
        trials = [name for kind, name in self.cluster.objects if kind == "CompressionJob"]
        if name := self.pick(trials, index):
            self.cluster.change_spec(("CompressionJob", name), suspend=suspend)

    @invariant()
    def sweep_holds(self) -> None:
        """No more trials than wanted, at once and in all; every trial is what its number says."""
        sweep = self.cluster.objects.get(SWEEP)
        if sweep is None:
            return
        trials = [obj for (kind, _), obj in self.cluster.objects.items() if kind == "CompressionJob"]
        live = [trial for trial in trials if trial.status.phase not in ("Succeeded", "Failed", "Stopped")]
        assert len(live) <= sweep.spec.parallelism
        assert len(self.cluster.births) <= sweep.spec.max_trials
        assert sweep.status.created >= len(self.cluster.births)

    def teardown(self) -> None:
        """Faults end; the sweep comes to its end, and its histories to the same parameters."""
        if SWEEP not in self.cluster.objects:
            return
        self.suspend(False)
        for key in [key for key in self.cluster.objects if key != SWEEP]:
            if self.cluster.objects[key].spec.suspend:
                self.cluster.change_spec(key, suspend=False)
        self.cluster.converge()
        self.cluster.replay()
        status = self.cluster.objects[SWEEP].status
        counts = status.trials
        trials = [obj for (kind, _), obj in self.cluster.objects.items() if kind == "CompressionJob"]
        succeeded = sum(trial.status.phase == "Succeeded" for trial in trials)
        assert counts.succeeded >= succeeded
        assert counts.pending == counts.running == counts.suspended == status.active == 0
        if not self.adaptive:
            self.same_as_undisturbed()

    def same_as_undisturbed(self) -> None:
        """Parameters depend on seed and number alone: an undisturbed run has the same."""
        sweep = self.cluster.objects[SWEEP]
        calm = Cluster(strategy=self.cluster.strategy)
        calm.put(make_sweep(maxTrials=sweep.spec.max_trials, maxFailedTrials=10))
        calm.converge()
        for name, birth in self.cluster.births.items():
            assert birth.split("|")[0] == calm.births[name].split("|")[0]


class AdaptiveSweepMachine(SweepMachine):
    """A sweep whose parameters depend on all that came before."""

    adaptive = True


TestJob = JobMachine.TestCase
TestJob.settings = PROFILE
TestSweep = SweepMachine.TestCase
TestSweep.settings = PROFILE
TestAdaptiveSweep = AdaptiveSweepMachine.TestCase
TestAdaptiveSweep.settings = PROFILE


# Hypothesis varies what it has seen; walks are as many independent ones as there are seeds.
JOB_VALUES = {
    "backoff": (0, 1, 2),
    "disruptions": (0, 2, 5, 20),
    "deadline": (None, None, 20, 1000),
    "ttl": (None, 0, 30),
    "stops": (False, False, True),
    "strangers": (False, False, True),
    "stalls": (False, False, True),
}
SWEEP_VALUES = {
    "parallelism": (1, 2, 3),
    "most": (3, 6, 10),
    "failed": (0, 2, 6, 6),
    "budget": (None, None, {"wallClockSeconds": 2_000}, {"wallClockSeconds": 100_000, "gpuSeconds": 2_000}),
    "exhausted": (None, None, None, 3),
    "refused": (frozenset(), frozenset({0, 3}), frozenset({1})),
    "prepares": (False, False, True),
}


def walk(machine: JobMachine | SweepMachine, values: dict[str, Any], weights: dict[str, int], seed: int) -> None:
    """Some steps from one seed, then the end of all faults."""
    draw = random.Random(seed)
    machine.begin(**{name: draw.choice(options) for name, options in values.items()})
    for _ in range(80 if isinstance(machine, JobMachine) else 200):
        machine.step(choose(weights, draw.getrandbits(64)))
        machine.holds()
        if isinstance(machine, SweepMachine):
            machine.sweep_holds()
    machine.teardown()


@pytest.mark.parametrize("block", range(10))
def test_job_walks(block: int) -> None:
    """A job under independent faults."""
    for seed in range(block, WALKS, 10):
        walk(JobMachine(), JOB_VALUES, JOB_STEPS, seed)


@pytest.mark.parametrize("kind", [SweepMachine, AdaptiveSweepMachine])
def test_sweep_walks(kind: type[SweepMachine]) -> None:
    """A sweep under independent faults."""
    for seed in range(WALKS // 3):
        walk(kind(), SWEEP_VALUES, SWEEP_STEPS, seed)
