"""A cluster of one real node on this machine, for end-to-end tests. Linux, as root.

    tools/cluster/e2e.sh up                 makes the images and starts the cluster; it stays until `down`
    tools/cluster/e2e.sh exec COMMAND...    runs a command in the cluster's network, with KUBECONFIG, kubectl and helm
    tools/cluster/e2e.sh run [PYTEST...]    up, the tests of tests/e2e, down
    tools/cluster/e2e.sh down               ends it and removes what it left, also after a crash
    tools/cluster/e2e.sh clean              down, and removes the images and caches, too

It has an API server, scheduler, controllers, kubelet, containerd, kube-proxy, DNS and an S3 server, all real, in
network, mount and process namespaces of its own: nothing of it reaches the network, and everything ends with its first
process.
The images are kept in ${MODELPRESS_CACHE:-$HOME/.cache/modelpress}/e2e from one run to the next.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))
import control_plane  # noqa: E402
import node  # noqa: E402
import packages  # noqa: E402
from images import TARGETS, ImageError, Images, say  # noqa: E402

CACHE = Path(os.environ.get("MODELPRESS_CACHE", Path.home() / ".cache" / "modelpress")) / "e2e"
RUN = CACHE / "run"  # the running cluster's files
LOCKS = Path("/run/lock")  # of the machine: two clusters would share their cgroups, whatever their caches are
LOGS = CACHE / "logs"  # the last one's logs
START_SECONDS = 180
ALIASES = {"example": "registry.example.com/modelpress/example:0.1.0"}  # as examples/ call it
NODE_BINARIES = ("kube-scheduler", "kubelet", "kube-proxy")
TOOLS = ("pause", "helm", "kubeconform", "coredns")
MINUTES = float(os.environ.get("MODELPRESS_E2E_MINUTES", "60"))  # for all of a run; a cold one needs 25 on two cores
WORKERS = os.environ.get("MODELPRESS_E2E_WORKERS", "3")  # tests at a time: most of them wait for a pod
_ERROR = re.compile(r"^E\d{4} |level=(error|fatal)|Traceback|Error")
_started: list[subprocess.Popen[bytes]] = []
_reserved: list[IO[str]] = []


class TimeLimit(Exception):  # noqa: N818
    """A run takes too long; the message says how long it was allowed to."""


class ClusterError(Exception):
    """The cluster could not be started, or there is none; the message says why."""


# Start ---------------------------------------------------------------------------------------------------------------


def up(*, base: str | None = None, targets: Sequence[str] = TARGETS, owned: bool = False) -> dict[str, Any]:
    """Starts a cluster with the images of `targets`; what there is to know about it, also in RUN/cluster.json.

    An `owned` cluster ends with the process that calls this; until then no other one starts on this machine.

    Raises:
        ClusterError: it does not start, or another one is up that `up` started and only `down` may end.
    """
    started = time.monotonic()
    if owned:
        _reserve()
    with _locked():
        packages.check(CACHE)
        packages.install()
        if owned and _pid() is not None:
            raise ClusterError("a cluster is up that somebody may be using; end it with: tools/cluster/e2e.sh down")
        _down()
        with _building():
            images = Images(CACHE, base=base)
            images.clean()
            names = {target: images.build(target) for target in targets}
        _built(HERE / "build.sh", *control_plane.BINARIES, *NODE_BINARIES)
        tools, s3 = Path(_built(HERE / "tools.sh", *TOOLS)), _built(ROOT / "tools" / "s3" / "build.sh")
        # The tests cannot fetch anything from within the cluster's network.
        prometheus, monitoring = _built(HERE / "prometheus.sh"), _built(HERE / "monitoring.sh")
        names["pause"] = images.pause()
        say(f"images are there after {time.monotonic() - started:.0f} s")
        settings = {
            "containerdRoot": str(images.containerd_root),
            "pause": names["pause"],
            "s3": s3,
            "coredns": str(tools / "coredns"),
        }
        try:
            _start(settings, owned=owned)
            state = _wait_for_state()
            socket = Path(state["containerd"])
            loaded = {target: images.load(name, socket, alias=ALIASES.get(target)) for target, name in names.items()}
        except BaseException:
            _down()
            raise
        state["images"] = {target: image.name for target, image in loaded.items()}
        state["imageBytes"] = {target: image.size for target, image in loaded.items()}
        state |= {"tools": str(tools), "prometheus": prometheus, "monitoring": monitoring}
        (RUN / "cluster.json").touch(mode=0o600)
        (RUN / "cluster.json").write_text(json.dumps(state, indent=2))
    say(f"the cluster is up after {time.monotonic() - started:.0f} s")
    return state


def _start(settings: dict[str, str], *, owned: bool) -> None:
    RUN.mkdir(parents=True)
    (RUN / "settings.json").write_text(json.dumps(settings))
    namespaces = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command = [*namespaces, sys.executable, str(HERE / "node.py"), str(RUN), *(["--until-eof"] if owned else [])]
    # The shell notes its pid before it becomes the cluster: there is never one that `down` cannot find.
    wrapper = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(RUN / "pid"), *command]
    with open(RUN / "node.log", "ab") as log:
        process = subprocess.Popen(
            wrapper,
            stdin=subprocess.PIPE if owned else subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    _started.append(process)  # an owned cluster's standard input is open as long as this process lives


def _wait_for_state() -> dict[str, Any]:
    deadline = time.monotonic() + START_SECONDS
    path = RUN / "state.json"
    while not path.exists():
        if _pid() is None and time.monotonic() > deadline - START_SECONDS + 5:
            raise ClusterError(f"the cluster ended while it started:\n{(RUN / 'node.log').read_text()[-2000:]}")
        if time.monotonic() > deadline:
            raise ClusterError(f"the cluster is not up after {START_SECONDS} s; its logs are in {LOGS}")
        time.sleep(0.2)
    state: dict[str, Any] = json.loads(path.read_text())
    if "error" in state:
        raise ClusterError(f"the cluster did not start: {state['error']}")
    return state


@contextlib.contextmanager
def _building() -> Iterator[None]:
    """Builds binaries meanwhile: a compiler and a package installer hardly get into each other's way."""
    scripts = [
        [HERE / "build.sh", *control_plane.BINARIES, *NODE_BINARIES],
        [HERE / "tools.sh", *TOOLS],
        [ROOT / "tools" / "s3" / "build.sh"],
    ]
    text = " && ".join(shlex.join(map(str, script)) for script in scripts)
    process = subprocess.Popen(["sh", "-c", f"exec >/dev/null; {text}"], start_new_session=True)
    try:
        yield
        process.wait()  # what it could not build says so when it is asked for again
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _built(script: Path, *arguments: str) -> str:
    done = subprocess.run([script, *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ClusterError(f"{script.relative_to(ROOT)} {' '.join(arguments)} failed; its messages are above")
    return done.stdout.strip().splitlines()[-1]


# Stop ----------------------------------------------------------------------------------------------------------------


def down() -> None:
    """Ends the cluster, if there is one, and removes what any earlier one left, but not its images.

    A process that owned a cluster ends that one only, not one that was started since.
    """
    with _locked():
        if not _started or _pid() in (None, *(process.pid for process in _started)):
            _down()


def _down() -> None:
    if (pid := _pid()) is not None:
        for first in _children(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(first, signal.SIGTERM)
        if not _ends(pid, 20):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # and the kernel ends the first process, and so all the others
            if not _ends(pid, 20):
                raise ClusterError(f"process {pid} does not end")
    for hierarchy in node.cgroup_hierarchies():
        _remove_cgroup(hierarchy / node.CGROUP)
    if RUN.exists():
        shutil.rmtree(LOGS, ignore_errors=True)
        LOGS.mkdir(parents=True)
        for log in (*RUN.glob("*.log"), *RUN.glob("plane/*.log")):
            shutil.move(log, LOGS / log.name)
        shutil.rmtree(RUN)


def _pid() -> int | None:
    """The running cluster's outermost process."""
    with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
        pid = int((RUN / "pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if str(RUN).encode() in command:
            return pid
    return None


def _children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _ends(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # ours, where `up` calls this
        if _pid() != pid:
            return True
        time.sleep(0.1)
    return False


def _remove_cgroup(path: Path) -> None:
    """Removes a tree of cgroups; its processes have been killed and may take a moment to be gone."""
    if not path.is_dir():
        return
    for folder in sorted((one for one in path.rglob("*") if one.is_dir()), key=lambda one: -len(one.parts)):
        _rmdir(folder)
    _rmdir(path)


def _rmdir(path: Path) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def clean() -> None:
    """Ends the cluster and removes everything that was ever kept, but the binaries."""
    with _locked():
        _down()
        shutil.rmtree(CACHE)


# Use -----------------------------------------------------------------------------------------------------------------


def cluster() -> dict[str, Any]:
    """The running cluster.

    Raises:
        ClusterError: there is none.
    """
    path = RUN / "cluster.json"
    if _pid() is None or not path.exists():
        raise ClusterError("no cluster is up; start one with: tools/cluster/e2e.sh up")
    state: dict[str, Any] = json.loads(path.read_text())
    return state


def run_in(command: Sequence[str], *, seconds: float | None = None) -> int:
    """Runs a command in the cluster's network; its exit code."""
    state = cluster()
    pid = _pid()
    first = _children(pid) if pid else []
    if not first:
        raise ClusterError("the cluster is going down")
    environment = os.environ | {
        "KUBECONFIG": state["kubeconfig"],
        "PATH": os.pathsep.join([state["bin"], state["tools"], os.environ["PATH"]]),
        "MODELPRESS_E2E": str(RUN / "cluster.json"),
        "NO_PROXY": "*",
    }
    enter = ["nsenter", "--target", str(first[0]), "--net", "--", *command]
    return subprocess.run(enter, env=environment, timeout=seconds).returncode


def run(arguments: Sequence[str], *, base: str | None, keep: bool) -> int:
    """Up, tests, down; pytest's exit code. Without arguments all of tests/e2e, those that can share first."""
    try:
        up(base=base, owned=not keep)
    except TimeLimit as error:
        raise ClusterError(f"{error}, and the cluster is not up yet; see the log of what was built") from None
    started = time.monotonic()
    try:
        everything = [str(ROOT / "tests" / "e2e"), "--durations=15"]
        if arguments:
            named = any(Path(argument.partition("::")[0]).exists() for argument in arguments)
            return _pytest(*arguments, *([] if named else everything))
        shared = _tests(*everything, "-m", "not alone", workers=WORKERS)
        say(f"tests that share the cluster took {time.monotonic() - started:.0f} s")
        code = _tests(*everything, "-m", "alone") or shared
        say(f"all tests took {time.monotonic() - started:.0f} s")
        return code
    except TimeLimit as error:
        say(f"{error}: this is what there was")
        story()
        return 1
    finally:
        signal.alarm(0)
        if not keep:
            down()


def _pytest(*arguments: str) -> int:
    return run_in([sys.executable, "-m", "pytest", "-o", f"cache_dir={RUN / 'pytest'}", *arguments])


def _tests(*arguments: str, workers: str = "0") -> int:
    """Runs tests, and once more, alone, what fails: a defect fails twice. Both outcomes stay in the log."""
    code = _pytest(*arguments, "-n", workers, "--dist", "worksteal")
    if code == 1:
        story()
        say("once more, alone: the tests that failed")
        code = _pytest(*arguments, "--last-failed", "--last-failed-no-failures", "none")
    return code


def story() -> None:
    """What goes on in the cluster, on standard error; for whoever reads a log of CI."""
    script = """
        kubectl get nodes,cjob,csweep,jobs,pods --all-namespaces -o wide
        kubectl get events --all-namespaces --sort-by=.lastTimestamp | tail -n 40
        kubectl logs -n modelpress-system -l app.kubernetes.io/component=operator --tail=20 --prefix
    """
    try:
        run_in(["sh", "-c", f"exec >&2; {script}"], seconds=60)
    except (ClusterError, subprocess.TimeoutExpired) as error:
        say(f"the cluster does not say more: {error}")
    for log in (RUN / "kubelet.log", RUN / "containerd.log", RUN / "node.log"):
        if log.exists():
            lines = [line for line in log.read_text(errors="replace").splitlines() if _ERROR.search(line)]
            print(f"-- {log.name}", *lines[-10:], sep="\n", file=sys.stderr)


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    with _lock("modelpress-e2e.lock", "another of these to finish"):
        yield


def _reserve() -> None:
    """Keeps the machine for the cluster that this process owns, as long as it lives."""
    if not _reserved:
        _reserved.append(_lock("modelpress-e2e-owned.lock", "another run of this to end"))


def _lock(name: str, whom: str) -> IO[str]:
    """A file that this process alone has locked, for as long as it is open."""
    CACHE.mkdir(parents=True, exist_ok=True)
    lock = open((LOCKS if LOCKS.is_dir() else CACHE.parent) / name, "w")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"waiting for {whom}")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _too_long(*_: object) -> None:
    raise TimeLimit(f"not done after {MINUTES:g} minutes (MODELPRESS_E2E_MINUTES)")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; its exit code."""
    parser = argparse.ArgumentParser(prog="e2e.sh", description="A cluster of one real node for end-to-end tests.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("up", "start it"), ("run", "start it, run tests/e2e, end it")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--base", help="a public image to build on, instead of one that debootstrap makes")
        if name == "run":
            command.add_argument("--keep", action="store_true", help="leave the cluster up")
            command.add_argument("pytest", nargs="*", help="arguments for pytest, after --; without a path: tests/e2e")
    commands.add_parser("down", help="end it and remove what it left")
    commands.add_parser("clean", help="end it and remove images and caches")
    commands.add_parser("exec", help="run a command in its network").add_argument("argv", nargs=argparse.REMAINDER)
    options = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    try:
        if options.command == "up":
            up(base=options.base)
            print(f"tools/cluster/e2e.sh exec {shlex.join(['kubectl', 'get', 'pods', '--all-namespaces'])}")
        elif options.command == "run":
            signal.signal(signal.SIGALRM, _too_long)
            signal.alarm(max(1, round(MINUTES * 60)))
            return run(options.pytest, base=options.base, keep=options.keep)
        elif options.command == "exec":
            if not options.argv:
                parser.error("exec needs a command")
            return run_in(options.argv)
        elif options.command == "down":
            down()
        else:
            clean()
    except (ClusterError, ImageError, packages.MissingError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
