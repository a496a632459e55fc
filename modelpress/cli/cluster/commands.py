"""The commands on a cluster, for `modelpress` and for `kubectl modelpress`."""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from modelpress.control_characters import escape_control_characters

Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", metavar="NS", help="Namespace; default: the context's.")
]
Context = Annotated[
    str | None, typer.Option(metavar="NAME", help="Context of the kubeconfig; default: its current one.")
]
Kubeconfig = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Kubeconfig; default: KUBECONFIG, ~/.kube/config, or this pod's account."),
]
Object = Annotated[str, typer.Argument(metavar="NAME", help="Name of a job or sweep; cjob/NAME or csweep/NAME.")]


class Output(StrEnum):
    """How a result is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


Form = Annotated[Output, typer.Option("--output", "-o", help="How to print it.")]


def submit(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="YAML with CompressionJobs or CompressionSweeps; - for standard input."),
    ],
    namespace: Namespace = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end and show progress.")] = False,
    output: Form = Output.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Create the objects of a file on a cluster. Submitting the same file again changes nothing.

    Exit codes: 0 done, 1 failed, 2 usage or invalid; with --wait also 3 the result misses a constraint.
    """
    from .connection import connect
    from .submit import submit

    cluster = connect(namespace=namespace, context=context, kubeconfig=kubeconfig)
    sys.exit(submit(cluster, file, namespace=namespace, wait=wait, output=output.value))


def status(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Name of a job or sweep; cjob/NAME or csweep/NAME.")
    ] = None,
    namespace: Namespace = None,
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A", help="List all namespaces.")] = False,
    output: Form = Output.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """List jobs and sweeps of a cluster, or show one with its trials, attempts and numbers."""
    from .connection import connect
    from .show import status

    cluster = connect(namespace=namespace, context=context, kubeconfig=kubeconfig)
    sys.exit(status(cluster, name, everywhere=everywhere, output=output.value))


def logs(
    name: Object,
    namespace: Namespace = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    trial: Annotated[int | None, typer.Option(metavar="N", min=0, help="Of a sweep: this trial.")] = None,
    tail: Annotated[int | None, typer.Option(metavar="LINES", min=0, help="Only so many lines from the end.")] = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print the log of the newest attempt's runner."""
    from .connection import connect
    from .logs import logs

    terminal = sys.stdout.isatty()
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def write(piece: bytes) -> None:
        if terminal:
            piece = escape_control_characters(re.sub("\r\n?", "\n", decode(piece))).encode()
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()

    cluster = connect(namespace=namespace, context=context, kubeconfig=kubeconfig)
    sys.exit(logs(cluster, name, follow=follow, trial=trial, tail=tail, write=write))


def best(
    name: Object,
    namespace: Namespace = None,
    download: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Fetch the model into this new folder, with your own credentials."),
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="The S3 server as it is reached from here.")
    ] = None,
    output: Form = Output.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print the best trial of a sweep, or a job's result, and how to load the model."""
    from .best import best
    from .connection import connect

    cluster = connect(namespace=namespace, context=context, kubeconfig=kubeconfig)
    sys.exit(best(cluster, name, download=download, endpoint=endpoint, output=output.value))


def suspend(name: Object, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Stop a job or sweep after a checkpoint, until it is resumed."""
    from .connection import connect
    from .suspending import set_suspended

    sys.exit(set_suspended(connect(namespace=namespace, context=context, kubeconfig=kubeconfig), name, True))


def resume(name: Object, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Let a suspended job or sweep go on from its checkpoint."""
    from .connection import connect
    from .suspending import set_suspended

    sys.exit(set_suspended(connect(namespace=namespace, context=context, kubeconfig=kubeconfig), name, False))


EXAMPLES: dict[Callable[..., None], str] = {
    submit: "submit sweep.yaml -n team-a --wait",
    status: "status digits-sweep",
    logs: "logs digits-sweep --trial 3 -f",
    best: "best digits-sweep --download ./model",
    suspend: "suspend digits-sweep",
    resume: "resume digits-sweep",
}


def register(app: typer.Typer, program: str) -> None:
    """Add the commands to an application that is called `program`."""
    for command, example in EXAMPLES.items():
        app.command(epilog=f"Example: {program} {example}")(command)


plugin = typer.Typer(
    name="kubectl modelpress",
    help="Jobs and sweeps of modelpress on a cluster.",
    epilog="Example: kubectl modelpress status",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
register(plugin, "kubectl modelpress")
