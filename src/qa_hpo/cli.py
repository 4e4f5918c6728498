"""The command line: parsing and printing only.

Commands import what they need when they run, so that ``--help`` and ``status`` start without
torch.
"""

import gc
import io
import json
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from qa_hpo import __version__
from qa_hpo.arguments import (
    ForceOption,
    JsonOption,
    LauncherOption,
    SlurmOption,
    StorageOption,
    StudyFileArgument,
    StudyNameOption,
    WorkersOption,
    WorkersPerDeviceOption,
)
from qa_hpo.cli_models import commands as models
from qa_hpo.cli_results import commands as results
from qa_hpo.config import DEFAULT_STORAGE, load_study_file, storage_url
from qa_hpo.errors import InputError, QaHpoError, WorkError
from qa_hpo.legible import legible

__all__ = ["app", "main"]

_DEBUG = "QA_HPO_DEBUG"
# Of all that is wrong with arguments; typer has no public name for it.
_ClickException: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="qa-hpo",
    help="Hyperparameter search and model selection for extractive question answering.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> NoReturn:
    """Run the command line; errors for people are one line each, and the exit code is theirs."""
    _print_anything()
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except QaHpoError as error:
        if _debugging():
            traceback.print_exc()
        _fail(error.exit_code, *error.lines)
    except _ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # what it says is the help
            error.show()
            sys.exit(error.exit_code)
        command = getattr(getattr(error, "ctx", None), "command_path", app.info.name)
        said = error.format_message().rstrip(".")
        _fail(error.exit_code, legible(f"{said}; see '{command} --help'"))
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except OSError as error:
        if _debugging():
            raise
        if error.filename is None:
            _fail(1, legible(f"{error} (--debug tells more)"))
        _fail(1, legible(f"{os.fsdecode(error.filename)}: {error.strerror}"))
    except BaseException as error:
        # A panic of a library in Rust is no Exception.
        expected = isinstance(error, Exception) or type(error).__module__ == "pyo3_runtime"
        if _debugging() or not expected:
            raise
        _fail(1, legible(f"{type(error).__name__}: {error} (--debug tells more)"))


def _fail(code: int, *lines: str) -> NoReturn:
    for line in lines:
        typer.echo(f"error: {line}", err=True)
    sys.exit(code)


def _print_anything() -> None:
    """Write what the output's encoding has no name for as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _tell(text: str) -> None:
    """Print one line that may hold names from anywhere."""
    typer.echo(legible(text))


def _debugging() -> bool:
    return os.environ.get(_DEBUG, "") not in {"", "0", "false"}


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qa-hpo {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    debug: Annotated[
        bool, typer.Option("--debug", envvar=_DEBUG, help="Show tracebacks and log more.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    if debug:
        # By way of the environment, which the workers that a command starts inherit.
        os.environ[_DEBUG] = "1"
    else:
        # The hub's client tells of every attempt; our one line says what came of them.
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
        force=True,
    )


@app.command()
def version(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Tell all that a bug report needs.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """Print the version; with --verbose also packages, devices, extras and settings.

    It holds no password and no user name, for a bug report.

    [bold]Example:[/] qa-hpo version --verbose
    """
    if not (verbose or as_json):
        _print_version(wanted=True)
    from qa_hpo.about import about, as_lines

    facts = about()
    typer.echo(json.dumps(facts, indent=2) if as_json else "\n".join(as_lines(facts)))


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write it.")],
) -> None:
    """Write generated corpora, a tiny base checkpoint and a study file to try everything with.

    [bold]Example:[/] qa-hpo demo storage/demo
    """
    from qa_hpo.demo import write_demo

    try:
        paths = list(write_demo(folder))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}") from None
    for path in paths:
        _tell(f"{path}")
    _tell(f"Next: qa-hpo run {folder / 'study.toml'}")


@app.command()
def init(
    path: Annotated[Path, typer.Argument(metavar="[STUDY]", help="The file to write.")] = Path(
        "study.toml"
    ),
    force: ForceOption = False,
) -> None:
    """Write a commented study file to start from.

    [bold]Example:[/] qa-hpo init study.toml
    """
    from importlib.resources import files

    from qa_hpo.paths import write_text

    text = files("qa_hpo").joinpath("study_template.toml").read_text(encoding="utf-8")
    try:
        if path.exists() and not force:
            raise InputError(f"{path}: exists; choose another name, or --force")
        write_text(path, text)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    _tell(f"{path}: set [data] and [starts], then: qa-hpo check {path}")


@app.command()
def check(
    study: StudyFileArgument,
    workers: WorkersOption = "auto",
    workers_per_device: WorkersPerDeviceOption = 1,
    timing: Annotated[
        bool, typer.Option(help="Train a few steps from each checkpoint, and estimate the time.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Look for mistakes, and tell what the study will cost: epochs, time, disk and memory.

    It looks at the study file, the data and the starts, and whether they go together. The time is
    an estimate, from some training steps with this host's hardware and a trial's settings; while
    all its GPUs are busy, nothing is timed.

    [bold]Example:[/] qa-hpo check studies/demo.toml

    [bold]Example:[/] qa-hpo check study.toml --workers 2 --no-timing --json
    """
    file = load_study_file(study)  # its mistakes are told before what takes seconds to import
    from qa_hpo.checking import forecast
    from qa_hpo.finetune.allocator import keep_freed_memory
    from qa_hpo.finetune.inputs import Inputs
    from qa_hpo.paths import CachePaths
    from qa_hpo.printing import print_preflight
    from qa_hpo.printing_forecast import print_forecast
    from qa_hpo.running import examine
    from qa_hpo.search.artifacts import open_store
    from qa_hpo.workers.local import places
    from qa_hpo.workers.options import launch_options

    options = launch_options("local", workers, workers_per_device, busy=True)
    inputs = Inputs(CachePaths())
    found = examine(file, inputs, probe=False)
    if not as_json:
        print_preflight(found.corpora, found.starts)
    where = places(options.count, options.per_device, busy=True)
    if where[0].device == "cpu":
        keep_freed_memory()  # as the workers, whose steps are to be foreseen
    costs = forecast(file, found, inputs, where, timed=timing, per_device=options.per_device)
    open_store(file.artifacts.folder).check()  # last of all, since it makes the folder
    if as_json:
        typer.echo(json.dumps(costs.as_dict(), indent=2))
    else:
        print_forecast(costs)
        _tell(f"{study}: good")


@app.command()
def prepare(
    study: StudyFileArgument,
    download_only: Annotated[
        bool,
        typer.Option(
            "--download-only", help="Fetch what comes from the hub, and build no start with it."
        ),
    ] = False,
) -> None:
    """Do once what every worker needs: load the data, cut the windows, build the starts.

    After it, workers ask the hub for nothing: they may run where there is no network, with the
    same HF_HOME. A host with network and no GPU can leave the building to them.

    [bold]Example:[/] qa-hpo prepare studies/demo.toml

    [bold]Example:[/] qa-hpo prepare study.toml --download-only
    """
    from qa_hpo.running import prepare_for_workers

    prepare_for_workers(load_study_file(study), build=not download_only)


@app.command()
def run(
    study: StudyFileArgument,
    workers: WorkersOption = "auto",
    workers_per_device: WorkersPerDeviceOption = 1,
    launcher: LauncherOption = "local",
    slurm: SlurmOption = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Budget of trials, in place of the study file's.")
    ] = None,
    storage: StorageOption = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only tell what it would do: nothing is written or started."
        ),
    ] = False,
) -> None:
    """Create a study or continue it, until its budget is spent; then show the leaderboard.

    Workers never share a GPU unless --workers-per-device says so, whoever started them. One that
    dies is started again. Ctrl-C hands the running trials back; the same command goes on.

    [bold]Example:[/] qa-hpo run studies/demo.toml --workers 2

    [bold]Example:[/] qa-hpo run study.toml --launcher slurm --workers 8 --slurm partition=gpu
    """
    from qa_hpo.printing import print_line
    from qa_hpo.printing_results import print_leaderboard
    from qa_hpo.results.certainty import compare_with_baseline
    from qa_hpo.results.leaderboard import leaderboard as read_leaderboard
    from qa_hpo.running import create_or_continue, run_workers
    from qa_hpo.workers.options import launch_options

    options = launch_options(launcher, workers, workers_per_device, slurm or ())
    file = load_study_file(study).with_trials(trials)
    url = storage_url(file.study, storage)
    if dry_run:
        from qa_hpo.rehearsal import rehearse

        return rehearse(file, url, options)
    joined = create_or_continue(file, url)
    try:
        complete = run_workers(joined, options)
        board = read_leaderboard(joined)
        print_line("")
        print_leaderboard(board, joined.file, compare_with_baseline(joined, board))
        if not complete or board.winner is None:
            raise WorkError(f"study {file.study.name!r} did not come to its end; see above")
        print_line(f"Take the winner home: qa-hpo export {study} OUT")
    finally:
        joined.storage.close()


@app.command()
def worker(
    study: StudyNameOption,
    storage: StorageOption = None,
    label: Annotated[str | None, typer.Option(help="What to call this worker.")] = None,
    cpu_threads: Annotated[
        int | None, typer.Option(min=1, help="Threads to compute with on a CPU.")
    ] = None,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="Wait for a study not there yet.")
    ] = 0.0,
) -> None:
    """Work on a study that exists, from any host that reaches its storage and its data.

    [bold]Example:[/] qa-hpo worker --storage sqlite:///storage/qa_hpo.db --study demo
    """
    from qa_hpo.finetune.allocator import keep_freed_memory
    from qa_hpo.finetune.hardware import best_device
    from qa_hpo.workers.worker import work

    if best_device() == "cpu":
        keep_freed_memory()
    # After every trial its memory is collected. What has been imported is no garbage, and looking
    # through it again and again would take longer than all else that surrounds a small trial.
    gc.freeze()
    logging.getLogger("qa_hpo").setLevel(logging.INFO)
    url = storage or os.environ.get("QA_HPO_STORAGE") or DEFAULT_STORAGE
    work(study, url, label=label, cpu_threads=cpu_threads, debug=_debugging(), wait_s=wait)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="One run's configuration.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    force: ForceOption = False,
) -> None:
    """Train one configuration without a study, as an export describes it (qa_hpo.toml).

    [bold]Example:[/] qa-hpo train storage/demo-winner/qa_hpo.toml storage/again
    """
    from qa_hpo.finetune.allocator import keep_freed_memory
    from qa_hpo.finetune.hardware import best_device
    from qa_hpo.running import train_once

    if best_device() == "cpu":
        keep_freed_memory()
    train_once(config, out, force=force)


app.add_typer(models)
app.add_typer(results)
