"""Property tests of both kinds: whatever is lost, repeated, late or killed, the invariants hold and all ends."""

from __future__ import annotations

from conftest import PROFILE
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from reconcile_objects import HashStrategy, make_job, make_sweep
from simulator import SILENT, TOLD, Cluster, Key

JOB: Key = ("CompressionJob", "digits")
SWEEP: Key = ("CompressionSweep", "search")
PICK = st.integers(min_value=0, max_value=999)
KEEP = st.one_of(st.none(), st.integers(min_value=0, max_value=4))
ENDS = st.sampled_from((*TOLD, *SILENT))


class Machine(RuleBasedStateMachine):
    """The faults that both kinds know."""

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

    @rule(index=PICK, keep=KEEP)
    def reconcile(self, index: int, keep: int | None) -> None:
        """The operator works on one object; what follows the first `keep` actions is lost."""
        keys = sorted(self.cluster.objects)
        self.cluster.reconcile(keys[index % len(keys)], keep)

    @rule(index=PICK)
    def settle(self, index: int) -> None:
        """The operator works undisturbed for a moment, and then has nothing to do."""
        keys = sorted(self.cluster.objects)
        self.cluster.settle(keys[index % len(keys)])

    @rule(objects=st.integers(0, 3), jobs=st.integers(0, 3))
    def deliver(self, objects: int, jobs: int) -> None:
        """Some news arrive."""
        self.cluster.deliver(objects, jobs)

    @rule(lagging=st.booleans())
    def lag(self, lagging: bool) -> None:
        """The watches begin to lag, or catch up."""
        self.cluster.lagging = lagging
        if not lagging:
            self.cluster.deliver()

    @rule()
    def restart(self) -> None:
        """The operator starts anew and lists everything."""
        self.cluster.deliver()

    @rule(index=PICK)
    def start(self, index: int) -> None:
        """A runner starts."""
        if name := self.pick(self.runners("pending"), index):
            self.cluster.start(name)

    @rule(index=PICK)
    def commit(self, index: int) -> None:
        """A runner writes its manifest and runs on."""
        if name := self.pick(self.runners("running"), index):
            self.cluster.commit(name)

    @rule(index=PICK, how=ENDS)
    def end(self, index: int, how: str) -> None:
        """A runner ends."""
        if name := self.pick(self.runners("running"), index):
            self.cluster.end(name, how)

    @rule(index=PICK)
    def preempt(self, index: int) -> None:
        """A queue takes a Job's runner away and starts it again later, in the same Job."""
        if name := self.pick(self.runners("running"), index):
            self.cluster.update_job(name, state="pending", started_at=None)

    @rule(index=PICK)
    def collected(self, index: int) -> None:
        """A Job that is being deleted is gone."""
        if name := self.pick(
            [
                name
                for name in self.runners("pending", "running", "succeeded", "failed")
                if self.cluster.jobs[name].seen.deleting
            ],
            index,
        ):
            self.cluster.vanish(name)

    @rule(index=PICK)
    def delete_by_hand(self, index: int) -> None:
        """Somebody deletes a child Job."""
        if name := self.pick(self.runners("pending", "running", "succeeded", "failed"), index):
            self.cluster.vanish(name)

    @rule(seconds=st.sampled_from((0.4, 1.0, 3.0, 6.0, 11.0, 45.0, 700.0, 90_000.0)))
    def wait(self, seconds: float) -> None:
        """Time passes, or the clock jumps."""
        self.cluster.advance(seconds)

    @invariant()
    def holds(self) -> None:
        """The invariants of every instant."""
        self.cluster.check()


class JobMachine(Machine):
    """A standalone job."""

    @initialize(
        backoff=st.integers(0, 2),
        disruptions=st.integers(0, 5),
        deadline=st.sampled_from((None, 20, 1000)),
        ttl=st.sampled_from((None, 0, 30)),
    )
    def begin(self, backoff: int, disruptions: int, deadline: int | None, ttl: int | None) -> None:
        """A user applies a job."""
        fields = {"activeDeadlineSeconds": deadline, "ttlSecondsAfterFinished": ttl}
        given = {name: value for name, value in fields.items() if value is not None}
        self.cluster.put(make_job(backoffLimit=backoff, maxDisruptions=disruptions, **given))

    @rule(suspend=st.booleans())
    def suspend(self, suspend: bool) -> None:
        """A user suspends or resumes the job."""
        if self.cluster.objects[JOB].spec.suspend != suspend:
            self.cluster.change_spec(JOB, suspend=suspend)

    @rule(index=PICK)
    def stop(self, index: int) -> None:
        """A sweep stops the job, not too often."""
        if index < 200:
            self.cluster.stop(JOB)

    @rule(number=st.integers(1, 3))
    def stranger(self, number: int) -> None:
        """Somebody takes a name that the job will want."""
        name = f"digits-{number}"
        if name not in self.cluster.jobs and self.cluster.objects[JOB].status.started < number:
            self.cluster.add_stranger(name)

    @rule()
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

    @initialize(
        parallelism=st.integers(1, 3),
        most=st.integers(1, 6),
        failed=st.integers(0, 6),
        budget=st.sampled_from((None, 60, 100_000)),
        exhausted=st.sampled_from((None, None, 0, 3)),
        refused=st.frozensets(st.integers(0, 5), max_size=2),
    )
    def begin(
        self,
        parallelism: int,
        most: int,
        failed: int,
        budget: int | None,
        exhausted: int | None,
        refused: frozenset[int],
    ) -> None:
        """A user applies a sweep."""
        limits = {"budget": {"wallClockSeconds": budget}} if budget else {}
        sweep = make_sweep(
            parallelism=parallelism,
            maxTrials=most,
            maxFailedTrials=failed,
            template={"backoffLimit": 1, "maxDisruptions": 3},
            **limits,
        )
        self.cluster.strategy = HashStrategy(sweep, adaptive=self.adaptive, exhausted_at=exhausted, refused=refused)
        self.cluster.put(sweep)

    @rule(suspend=st.booleans())
    def suspend(self, suspend: bool) -> None:
        """A user suspends or resumes the sweep."""
        if self.cluster.objects[SWEEP].spec.suspend != suspend:
            self.cluster.change_spec(SWEEP, suspend=suspend)

    @rule(more=st.integers(1, 2))
    def raise_max_trials(self, more: int) -> None:
        """A user wants more trials."""
        most = self.cluster.objects[SWEEP].spec.max_trials
        if most < 8:
            self.cluster.change_spec(SWEEP, max_trials=most + more)

    @rule(index=PICK)
    def delete_trial(self, index: int) -> None:
        """Somebody deletes a trial."""
        trials = [name for kind, name in self.cluster.objects if kind == "CompressionJob"]
        if name := self.pick(trials, index):
            self.cluster.delete_object(("CompressionJob", name))

    @rule(index=PICK, suspend=st.booleans())
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
