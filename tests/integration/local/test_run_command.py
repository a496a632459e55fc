"""`modelpress run` as a process with real child processes: ends, signals, crashes, outputs and exit codes."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import select
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

MODELPRESS = (sys.executable, "-m", "modelpress.cli")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
PATIENCE = 60.0


class Workplace:
    """A folder to run in, with the fake runner in place of the real one, and a ledger of what it did."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        package = folder / "fake" / "modelpress_runner"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        shutil.copy(Path(__file__).with_name("fake_runner.py"), package / "main.py")
        self.environment = {**os.environ, "PYTHONPATH": str(folder / "fake"), "COLUMNS": "120"}
        self.environment.pop("OMP_NUM_THREADS", None)
        for name in ("ledger", "gate"):
            os.mkfifo(folder / name)
        # Held open for reading and writing, so that nobody waits for us and no end of file comes in between.
        self._ledger = os.open(folder / "ledger", os.O_RDWR)
        self._rest = b""
        self.said: list[dict[str, Any]] = []

    def close(self) -> None:
        """Let go of the ledger."""
        os.close(self._ledger)

    def sweep(self, name: str = "many", trials: int = 4, args: dict[str, Any] | None = None, **spec: Any) -> str:
        """Write a sweep's file; its name."""
        template = self._recipe(args)
        template.update(spec.pop("recipe", {}))
        where = "/stages/0/prune/configList/0/sparsity"
        document = {
            "apiVersion": "modelpress.dev/v1alpha1",
            "kind": "CompressionSweep",
            "metadata": {"name": name},
            "spec": {
                "template": {"spec": template},
                "searchSpace": [{"name": "sparsity", "paths": [where], "float": {"min": 0.1, "max": 0.8}}],
                "objectives": [{"metric": "default"}, {"metric": "macs"}],
                "algorithm": {"name": "random", "seed": 3},
                "parallelism": 2,
                "maxTrials": trials,
                **spec,
            },
        }
        return self.write(f"{name}.yaml", document)

    def job(self, name: str = "one", args: dict[str, Any] | None = None, **spec: Any) -> str:
        """Write a job's file; its name."""
        document = {
            "apiVersion": "modelpress.dev/v1alpha1",
            "kind": "CompressionJob",
            "metadata": {"name": name},
            "spec": {**self._recipe(args), **spec},
        }
        return self.write(f"{name}.yaml", document)

    def write(self, name: str, *documents: dict[str, Any]) -> str:
        """Write a file of these documents; its name."""
        (self.folder / name).write_text(yaml.safe_dump_all(documents))
        return name

    def _recipe(self, args: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "model": {"entrypoint": "digits:create", "args": {"ledger": str(self.folder / "ledger"), **(args or {})}},
            "stages": [{"prune": {"configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}}],
        }

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start `modelpress ...` here."""
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            (*MODELPRESS, *words), cwd=self.folder, env=self.environment, text=True, **{**streams, **options}
        )

    def run(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run `modelpress ...` to its end, and read the ledger behind it."""
        done = subprocess.run(
            (*MODELPRESS, *words),
            cwd=self.folder,
            env=self.environment,
            text=True,
            input=stdin,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        self.read_ledger()
        return done

    def next_line(self) -> dict[str, Any]:
        """Wait for the next line of the ledger."""
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._ledger], [], [], PATIENCE)
            assert ready, "no run said anything"
            self._rest += os.read(self._ledger, 65536)
        line, _, self._rest = self._rest.partition(b"\n")
        self.said.append(json.loads(line))
        return self.said[-1]

    def read_ledger(self) -> list[dict[str, Any]]:
        """Everything in the ledger by now; all of it so far."""
        while b"\n" in self._rest or select.select([self._ledger], [], [], 0)[0]:
            self.next_line()
        return self.said

    def trials(self, event: str = "start") -> Counter[str]:
        """How often each trial or job started, or ended with exit code 0."""
        return Counter(
            line["name"]
            for line in self.read_ledger()
            if line["event"] == event and line["purpose"] == "trial" and line.get("exit", 0) == 0
        )

    def result(self, *words: str) -> dict[str, Any]:
        """What `modelpress run ... -o json` prints."""
        done = self.run("run", *words, "-o", "json", "--no-progress")
        assert done.stdout, done.stderr
        return dict(json.loads(done.stdout))


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Workplace]:
    """A fresh folder to run in."""
    workplace = Workplace(tmp_path)
    yield workplace
    workplace.close()


def sparsities(result: dict[str, Any]) -> dict[str, float]:
    """What each trial was given."""
    return {
        trial["metadata"]["name"]: trial["spec"]["stages"][0]["prune"]["configList"][0]["sparsity"]
        for trial in result["trials"]
    }


# Results and exit codes ----------------------------------------------------------------------------------------------


def test_a_job_shows_before_and_after_and_how_to_load_it(here: Workplace) -> None:
    """Exit code 0, the numbers, and a line to copy."""
    done = here.run("run", here.job())
    assert done.returncode == 0, done.stderr
    assert not CONTROL.search(done.stdout)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["macs", "1k", "500", "-50.0%"] in rows
    assert ["default", "1", "0.95", "-5.0%"] in rows
    uri = re.search(r"The model is in (\S+)", done.stdout)[1]
    assert f"import modelpress as mp; model = mp.load('{uri}')" in done.stdout
    assert (Path(uri) / "manifest.json").exists()
    assert uri.startswith(str(here.folder / "modelpress-runs/default/one-"))


def test_a_sweep_says_a_line_for_each_trial_and_sums_up(here: Workplace) -> None:
    """Plain lines while it runs, then a table with the best marked and where its copy is."""
    done = here.run("run", here.sweep(trials=3))
    assert done.returncode == 0, done.stderr
    assert not CONTROL.search(done.stdout)
    finished = re.findall(r"^\d\d:\d\d:\d\d trial (\d) Succeeded \((\d)/3\)  sparsity=", done.stdout, re.MULTILINE)
    assert sorted(number for number, _ in finished) == ["0", "1", "2"]
    assert [count for _, count in finished] == ["1", "2", "3"]
    best = re.search(r"The model \(trial (\d)\) is in (\S+)/best\n", done.stdout)
    assert len(re.findall(rf"^ +{best[1]} .*best front", done.stdout, re.MULTILINE)) == 1
    assert (Path(best[2]) / "best/manifest.json").exists()
    threads = {line["threads"] for line in here.said if line["purpose"] == "trial"}
    assert threads == {str(max(1, len(os.sched_getaffinity(0)) // 2))}


def test_a_failed_job_shows_reason_and_log(here: Workplace) -> None:
    """Exit code 1, the reason, the last lines of the runner's log and where it is."""
    file = here.job(args={"exits": {"trial": [1]}, "loud": "ValueError: the user's own words"}, backoffLimit=0)
    done = here.run("run", file)
    assert done.returncode == 1
    assert "CompressionJob one failed. BackoffLimitExceeded: " in done.stdout
    assert "  ValueError: the user's own words\n" in done.stdout
    log = Path(re.search(r"The last lines of (\S+) ", done.stdout)[1])
    assert "the user's own words" in log.read_text()
    assert "Traceback" not in done.stdout + done.stderr


def test_retries_come_from_the_core(here: Workplace) -> None:
    """An attempt that failed is followed by the next one, up to backoffLimit."""
    result = here.result(here.job(args={"exits": {"trial": [1, 1]}}, backoffLimit=2))
    assert result["exitCode"] == 0
    (job,) = result["objects"]
    assert (job["status"]["started"], job["status"]["failures"]) == (3, 2)


def test_a_run_without_result_is_collected_and_counted(here: Workplace) -> None:
    """Exit code 0 without a manifest is no success."""
    result = here.result(here.job(args={"silent": True}, backoffLimit=0))
    assert result["exitCode"] == 1
    assert "collect" in {line["purpose"] for line in here.said}


def test_exit_code_2_of_the_runner_is_ours(here: Workplace) -> None:
    """What the runner calls invalid is invalid for us, and never tried again."""
    done = here.run("run", here.job(args={"exits": {"trial": [2]}}))
    assert done.returncode == 2
    assert "InvalidModel: told to exit 2" in done.stdout
    assert here.trials() == {"one": 1}


def test_a_missed_constraint_is_exit_code_3(here: Workplace) -> None:
    """The model is there, and the numbers; only the code says that a bound was missed."""
    done = here.run("run", here.job(constraints=[{"metric": "default", "min": 0.99}]))
    assert done.returncode == 3
    assert "ConstraintsMet=False: default is below its min." in done.stdout
    assert "mp.load(" in done.stdout


def test_a_sweep_whose_trials_all_miss_is_exit_code_3(here: Workplace) -> None:
    """No feasible trial is a result, not a failure."""
    done = here.run("run", here.sweep(trials=2, constraints=[{"metric": "default", "min": 0.999}]))
    assert done.returncode == 3, done.stdout
    assert "misses a constraint" in done.stdout


def test_several_documents_run_in_order_with_the_worst_exit_code(here: Workplace) -> None:
    """A failure does not keep the next document from running."""
    first = yaml.safe_load((here.folder / here.job("bad", args={"exits": {"trial": [1]}}, backoffLimit=0)).read_text())
    second = yaml.safe_load((here.folder / here.job("good")).read_text())
    done = here.run("run", here.write("both.yaml", first, second), "-o", "yaml")
    assert done.returncode == 1
    result = yaml.safe_load(done.stdout)
    assert [obj["status"]["phase"] for obj in result["objects"]] == ["Failed", "Succeeded"]
    assert list(here.trials()) == ["bad", "good"]


def test_standard_input_is_a_file_like_any_other(here: Workplace) -> None:
    """`-` reads YAML; code.path is relative to the working folder; the runner gets it absolute."""
    text = (here.folder / here.job(code={"path": "."})).read_text()
    done = here.run("run", "-", stdin=text)
    assert done.returncode == 0, done.stderr
    assert {line["code"] for line in here.said} == {str(here.folder)}
    broken = here.run("run", "-", stdin=text.replace("sparsity", "sparsty"))
    assert broken.returncode == 2
    assert re.match(
        r"<stdin>:\d+: spec\.stages\[0\].*did you mean sparsity\?", broken.stderr.removeprefix("modelpress: ")
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("none.yaml",), "none.yaml: there is no such file"),
        (("one.yaml", "--parallel", "0"), "--parallel"),
        (("one.yaml", "--store", "memory://x"), "--store: memory:// ends with the process"),
        (("one.yaml", "--store", "one.yaml"), "one.yaml is a file"),
        (("one.yaml", "-o", "xml"), "xml"),
        (("one.yaml", "--nonsense"), "--nonsense"),
        ((), "FILE"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_starts_nothing(here: Workplace, words: tuple[str, ...], said: str) -> None:
    """One sentence, no traceback, no state folder."""
    here.job()
    done = here.run("run", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert here.trials() == {}
    assert not (here.folder / "modelpress-runs").exists()


def test_semantic_problems_are_told_before_anything_starts(here: Workplace) -> None:
    """Every problem of every document, each with its line; nothing has run."""
    good = yaml.safe_load((here.folder / here.job("good")).read_text())
    bad = yaml.safe_load((here.folder / here.job("bad", code={"path": "nowhere"}, suspend=True)).read_text())
    done = here.run("run", here.write("both.yaml", good, bad))
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert [re.sub(r":\d+:", ":N:", line).split("; ")[0] for line in lines] == [
        "both.yaml:N: spec.suspend: is true, so a local run would do nothing",
        f"both.yaml:N: spec.code.path: there is no folder {here.folder}/nowhere",
    ]
    assert here.trials() == {}


def test_an_unwritable_store_is_a_sentence(here: Workplace) -> None:
    """A folder where nothing may be created names itself and --store."""
    done = here.run("run", here.job(), "--store", "/proc/modelpress-runs")
    assert done.returncode == 1
    assert re.search(r"cannot keep state in /proc/modelpress-runs/\S+: .*--store\n", done.stderr)
    assert "Traceback" not in done.stderr


# Again, and at the same time -----------------------------------------------------------------------------------------


def test_a_second_run_shows_the_same_result_and_starts_nothing(here: Workplace) -> None:
    """The same command again is an answer, not a repetition; more trials are added to those there."""
    first = here.result(here.sweep(trials=2))
    again = here.result(here.sweep(trials=2))
    assert again == first
    assert set(here.trials().values()) == {1}
    more = here.result(here.sweep(trials=3))
    assert len(more["trials"]) == 3
    assert sparsities(first).items() <= sparsities(more).items()
    assert set(here.trials().values()) == {1}


def test_two_runs_at_once_are_refused(here: Workplace) -> None:
    """The second one names the first and exits 2; the first is not disturbed."""
    file = here.sweep(trials=2, args={"gate": str(here.folder / "gate")})
    first = here.start("run", file)
    while here.next_line()["purpose"] != "trial":
        pass
    second = here.run("run", file)
    assert second.returncode == 2
    assert f"process {first.pid} is already running this" in second.stderr
    gate = os.open(here.folder / "gate", os.O_RDWR)
    os.close(gate)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=PATIENCE)


# Signals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_cleanly_and_the_same_command_goes_on(
    here: Workplace, number: signal.Signals, code: int
) -> None:
    """Children end with 143, the exit code is the signal's, no attempt counts as failed, nothing is lost."""
    file = here.sweep(trials=3, args={"gate": str(here.folder / "gate")})
    process = here.start("run", file)
    waiting = 0
    while waiting < 2:
        line = here.next_line()
        waiting += line["event"] == "start" and line["purpose"] == "trial"
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, err
    assert "stopping: 2 running processes may write a checkpoint first" in out
    assert f"Go on with: modelpress run {file}" in err
    here.read_ledger()
    assert [line["exit"] for line in here.said if line["event"] == "end" and line["purpose"] == "trial"] == [143, 143]
    # From now on the gate stands open.
    gate = os.open(here.folder / "gate", os.O_RDWR)
    (here.folder / "gate").unlink()
    (here.folder / "gate").write_text("open")
    os.close(gate)
    result = here.result(file)
    assert result["exitCode"] == 0
    assert here.trials("end") == {f"many-{number:05d}": 1 for number in range(3)}
    for trial in result["trials"]:
        assert (trial["status"]["failures"], trial["status"]["disruptions"]) == (0, 0)


def read_until(terminal: int, words: str) -> str:
    """What a terminal shows until `words` come."""
    seen = ""
    while words not in seen:
        ready, _, _ = select.select([terminal], [], [], PATIENCE)
        assert ready, seen
        try:
            seen += os.read(terminal, 65536).decode(errors="replace")
        except OSError:  # the other end is closed
            raise AssertionError(seen) from None
    return seen


def test_ctrl_c_in_a_terminal(here: Workplace) -> None:
    """The display shows the running trial; Ctrl-C stops, and the terminal's cursor comes back."""
    file = here.sweep(trials=3, args={"gate": str(here.folder / "gate")})
    ours, theirs = pty.openpty()
    here.environment["TERM"] = "xterm"
    process = here.start(
        "run", file, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=None
    )
    os.close(theirs)
    shown = read_until(ours, "2/2")
    assert "0/3 trials" in shown
    assert "sparsity=" in shown
    os.kill(process.pid, signal.SIGINT)
    shown = read_until(ours, "Go on with: modelpress run")
    assert "press Ctrl-C again" in shown
    assert "\x1b[?25h" in shown
    assert process.wait(PATIENCE) == 130
    os.close(ours)


def test_a_second_ctrl_c_kills_at_once(here: Workplace) -> None:
    """Processes that do not end are not waited for."""
    file = here.job(args={"gate": str(here.folder / "gate")})
    process = here.start("run", file)
    started = here.next_line()
    os.kill(started["pid"], signal.SIGSTOP)  # from now on SIGTERM waits
    process.send_signal(signal.SIGINT)
    for line in process.stdout:
        if "stopping" in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert not Path(f"/proc/{started['pid']}").exists()


# Crashes -------------------------------------------------------------------------------------------------------------


def test_whenever_the_shell_is_killed_the_next_run_ends_as_if_nothing_had_happened(here: Workplace) -> None:
    """SIGKILL at random moments, several times over: same trials, same parameters, no finished trial runs twice."""
    file = here.sweep("whole", trials=6)
    undisturbed = here.result(file)
    dice = random.Random(11)
    file = here.sweep("broken", trials=6)
    state = here.folder / "modelpress-runs"
    for _ in range(5):
        process = here.start("run", file, "--no-progress", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(dice.randint(1, 4)):
            if process.poll() is None:
                here.next_line()
        process.kill()
        process.wait(PATIENCE)
    assert state.exists()
    result = here.result(file)
    assert result["exitCode"] == 0
    names = {trial["metadata"]["name"] for trial in result["trials"]}
    assert names == {f"broken-{number:05d}" for number in range(6)}
    assert list(sparsities(result).values()) == list(sparsities(undisturbed).values())
    assert all(trial["status"]["failures"] == 0 for trial in result["trials"])
    manifests = (here.folder / "modelpress-runs/default").glob("broken-*/trials/*/manifest.json")
    first = {path.parent.name: json.loads(path.read_text())["by"] for path in manifests}
    for trial in result["trials"]:
        # Whoever wrote the manifest was the last attempt: a finished trial is never started again.
        number = trial["metadata"]["name"].removeprefix("broken-")
        assert trial["status"]["started"] == first[number], trial["status"]


def test_the_shells_death_ends_its_children(here: Workplace) -> None:
    """No process is left behind by SIGKILL."""
    process = here.start("run", here.job(args={"gate": str(here.folder / "gate")}), "--no-progress")
    started = here.next_line()
    process.kill()
    process.communicate(timeout=PATIENCE)
    ended = here.next_line()
    assert (ended["event"], ended["pid"], ended["exit"]) == ("end", started["pid"], 143)
