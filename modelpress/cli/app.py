"""The commands. Each imports what it needs when it runs, so that help and completion come at once."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from modelpress._version import __version__

from .cluster.commands import register
from .exits import Exit
from .exits import report as report_error

app = typer.Typer(
    name="modelpress",
    help="Compress PyTorch models, measured before and after: one YAML file in, a smaller model out.",
    epilog="Example: modelpress run examples/digits/job.yaml",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Tool(StrEnum):
    """Whose configurations `convert` reads."""

    NNI = "nni"
    AUPTIMIZER = "auptimizer"
    NEURAL_COMPRESSOR = "neural-compressor"


class Analysis(StrEnum):
    """What `analyze` looks at."""

    LAYERS = "layers"
    DEPENDENCY = "dependency"
    SENSITIVITY = "sensitivity"


class Aim(StrEnum):
    """What `init` writes a sweep for."""

    CPU = "cpu"
    GPU = "gpu"
    SIZE = "size"


class Output(StrEnum):
    """How `run` prints its result."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def entry(application: typer.Typer | None = None) -> None:
    """Run a command line and exit: never with a traceback, always with a code of exits.Exit."""
    try:
        (application or app)()
    except SystemExit:
        raise
    except BrokenPipeError:
        # Whoever read our output has gone (`modelpress run | head`); nothing is left to tell anybody.
        sys.stderr.close()
        sys.exit(Exit.FAILED)
    except BaseException as error:
        sys.exit(report_error(error))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"modelpress {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Compress PyTorch models, measured before and after: one YAML file in, a smaller model out."""


@app.command(epilog="Example: modelpress run sweep.yaml --parallel 2 --store s3://models/out")
def run(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="YAML with CompressionJobs or CompressionSweeps; - for standard input."),
    ],
    store: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Folder or URI for results, instead of spec.store. [./modelpress-runs]"),
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=1000, help="Trials at a time, instead of spec.parallelism.")
    ] = None,
    progress: Annotated[bool, typer.Option("--progress/--no-progress", help="Show progress while it runs.")] = True,
    output: Annotated[Output, typer.Option("--output", "-o", help="How to print the result.")] = Output.TABLE,
) -> None:
    """Run a file on this machine, no cluster needed. The same command goes on after an interruption.

    Exit codes: 0 done, 1 failed, 2 usage or invalid, 3 the result misses a constraint, 130 after Ctrl-C.
    """
    from .run import run_file

    sys.exit(run_file(file, store=store, parallel=parallel, progress=progress, output=output.value))


@app.command(epilog="Example: modelpress validate job.yaml sweep.yaml --cluster")
def validate(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="YAML files; - for standard input.")],
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Also report what no pod on a cluster can honour.")
    ] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Also run each recipe once, with trainings of one epoch or 8 steps.")
    ] = False,
) -> None:
    """Check files and list every problem with its line, its field and what to do.

    Exit codes: 0 all valid, 1 a recipe does not run, 2 something is invalid.
    """
    from .validate import validate_files

    sys.exit(validate_files(files, cluster=cluster, smoke=smoke))


@app.command(epilog="Example: modelpress preflight sweep.yaml")
def preflight(
    file: Annotated[str, typer.Argument(metavar="FILE", help="YAML with a CompressionJob or CompressionSweep.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Also ask the nodes of the cluster that kubectl talks to.")
    ] = False,
) -> None:
    """Say what time, memory and size a trial will take, and from what that follows: it is run here in short.

    Exit codes: 0 done, 1 the recipe does not run, 2 usage, invalid, or it cannot fit what the file sets, or no node.
    """
    from .preflight import preflight as tell

    sys.exit(tell(file, as_json=as_json, cluster=cluster))


@app.command(epilog="Example: modelpress init digits:create --code examples/digits -o sweep.yaml")
def init(
    model: Annotated[
        str, typer.Argument(metavar="MODULE:NAME|FOLDER", help="An entrypoint, or a folder of save_pretrained.")
    ],
    code: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the module.")] = Path(),
    train: Annotated[str | None, typer.Option(metavar="FILE", help="Data to train on.")] = None,
    validation: Annotated[str | None, typer.Option(metavar="FILE", help="Data to score on.")] = None,
    task: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a pretrained model. [what its config.json says]")
    ] = None,
    target: Annotated[Aim, typer.Option(help="What is to become less: latency on it, or the file.")] = Aim.CPU,
    minutes: Annotated[int, typer.Option(min=1, max=525_600, help="For the whole sweep.")] = 60,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="Write here. [standard output]")
    ] = None,
) -> None:
    """Look at a model and write a commented sweep that suits it.

    Exit codes: 0 done, 1 the model cannot be looked at, 2 usage.
    """
    from .init import Wanted
    from .init import init as write

    sys.exit(write(Wanted(model, code, train, validation, task, target.value, minutes), output))


@app.command(epilog="Example: modelpress crd | kubectl apply -f -")
def crd(
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Write one file for each into this folder.")
    ] = None,
) -> None:
    """Print the CustomResourceDefinitions, or write them into a folder."""
    from .crd import print_crds

    sys.exit(print_crds(output))


@app.command(epilog="Example: modelpress convert experiment.json --model digits:create -o job.yaml")
def convert(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="JSON, YAML or Python; Python is read, never run.")
    ],
    tool: Annotated[Tool | None, typer.Option("--from", help="Whose it is. [what it looks like]")] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODULE:NAME|SCRIPT.py", help="The recipe's model. [what the file says]"),
    ] = None,
    algorithm: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a config list that names none, as NNI calls it. [l1]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="Write the YAML here, and print the notes.")
    ] = None,
) -> None:
    """Turn a configuration of NNI, Auptimizer or Neural Compressor into YAML, and say what changes meaning.

    Several files of Neural Compressor become one recipe. Exit codes: 0 converted, 2 something cannot be converted.
    """
    from .convert import convert as convert_files

    named = tool.value if tool is not None else None
    sys.exit(convert_files(files, tool=named, model=model, algorithm=algorithm, output=output))


@app.command("warm-start", epilog="Example: modelpress warm-start modelpress-runs/default/digits-sweep-4cedaea9")
def warm_start(
    sweep: Annotated[
        str, typer.Argument(metavar="SWEEP", help="Folder or URI of a sweep's results, the one that holds trials/.")
    ],
    endpoint: Annotated[str | None, typer.Option(metavar="URL", help="Of an S3-compatible server.")] = None,
    region: Annotated[str | None, typer.Option(metavar="NAME", help="Of an S3 bucket.")] = None,
) -> None:
    """Print what an earlier sweep's trials found, for `spec.algorithm` of the next one.

    Exit codes: 0 done, 1 the store failed, 2 usage.
    """
    from .warm_start import warm_start as tell

    sys.exit(tell(sweep, endpoint=endpoint, region=region))


@app.command(epilog="Example: modelpress report modelpress-runs/default/digits-sweep-4cedaea9")
def report(
    sweep: Annotated[
        str, typer.Argument(metavar="SWEEP", help="Folder or URI of a sweep's results, the one that holds trials/.")
    ],
    objective: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC[:GOAL]", help="What to plot: first upwards, second to the right. Repeat it."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write here, and nothing into the folder.")
    ] = None,
    endpoint: Annotated[str | None, typer.Option(metavar="URL", help="Of an S3-compatible server.")] = None,
    region: Annotated[str | None, typer.Option(metavar="NAME", help="Of an S3 bucket.")] = None,
) -> None:
    """Write a sweep's report.html again from its trials, also while it runs.

    Exit codes: 0 done, 1 the store failed, 2 usage.
    """
    from .report import write_report

    sys.exit(write_report(sweep, objectives=objective or (), output=output, endpoint=endpoint, region=region))


@app.command(epilog="Example: modelpress benchmark out/default/job-1a2b3c4d --instances 2 --cores-per-instance 4")
def benchmark(
    model: Annotated[
        str,
        typer.Argument(metavar="ARTEFACT|FILE", help="Folder or URI of an artifact, or its model.onnx or model.xml."),
    ],
    runtime: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="onnxruntime or openvino. [the first that is there]")
    ] = None,
    warmup: Annotated[int, typer.Option(min=0, max=10_000, help="Untimed calls before the timed.")] = 5,
    iterations: Annotated[int, typer.Option(min=1, max=1_000_000, help="Timed calls of each instance.")] = 50,
    batch_size: Annotated[int, typer.Option(min=1, max=65_536, help="Rows in each call.")] = 1,
    instances: Annotated[int, typer.Option(min=1, max=1024, help="Processes that run side by side.")] = 1,
    cores_per_instance: Annotated[
        int, typer.Option(min=1, max=1024, help="Cores of each instance, its own, and as many threads.")
    ] = 1,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An .npz file with an array for each input, instead of random numbers."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of all rows of --data by its array 'labels': top1, top5, ..., f1, perplexity, retrieval.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of the random inputs.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    progress: Annotated[bool, typer.Option("--progress/--no-progress", help="Say how far it is.")] = True,
    endpoint: Annotated[str | None, typer.Option(metavar="URL", help="Of an S3-compatible server.")] = None,
    region: Annotated[str | None, typer.Option(metavar="NAME", help="Of an S3 bucket.")] = None,
) -> None:
    """Time the file of a runtime: latency and throughput of instances that are pinned to cores of their own.

    Exit codes: 0 done, 1 the store or an instance failed, 2 usage.
    """
    from .benchmark import Asked, run_benchmark

    asked = Asked(warmup, iterations, batch_size, instances, cores_per_instance, data, seed, metric)
    sys.exit(
        run_benchmark(
            model, asked, runtime=runtime, endpoint=endpoint, region=region, as_json=as_json, progress=progress
        )
    )


@app.command(
    epilog="Example: modelpress analyze sensitivity job.yaml --sparsity 0.25 --sparsity 0.5 --bounds space.yaml"
)
def analyze(
    what: Annotated[
        Analysis,
        typer.Argument(
            help="layers: parameters and MACs of each. dependency: which lose channels together, and what cannot, and "
            "why. sensitivity: the score where one is pruned alone, by the file's first prune stage."
        ),
    ],
    file: Annotated[str, typer.Argument(metavar="FILE", help="YAML with a CompressionJob or CompressionSweep.")],
    sparsity: Annotated[
        list[float] | None,
        typer.Option(metavar="SHARE", min=0.001, max=0.999, help="Of sensitivity; repeat it. [0.1, 0.2, ... 0.9]"),
    ] = None,
    table: Annotated[Path | None, typer.Option("--csv", metavar="OUT", help="Write the rows as CSV, too.")] = None,
    bounds: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Of sensitivity: write a prune stage and a search space as YAML."),
    ] = None,
    budget: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Of sensitivity: write a prune stage with a budget of MACs as YAML."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="OUT", help="Of sensitivity: write the curves as SVG.")] = None,
    tolerance: Annotated[
        float,
        typer.Option(min=0, max=1, help="Of --bounds and --budget: what a layer alone may lose of the dense score."),
    ] = 0.02,
) -> None:
    """Look at a recipe's model before anything is compressed.

    Exit codes: 0 done, 1 failed, 2 usage or invalid.
    """
    from .analyze import analyze as run_analysis

    if what is not Analysis.SENSITIVITY and (sparsity or bounds or budget or plot):
        raise typer.BadParameter("--sparsity and --bounds are of sensitivity, and so are --budget and --plot")
    code = run_analysis(
        what.value,
        file,
        sparsities=sparsity,
        table=table,
        bounds=bounds,
        budget=budget,
        plot=plot,
        tolerance=tolerance,
    )
    sys.exit(code)


register(app, "modelpress")
