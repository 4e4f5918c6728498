"""The command line: parsing and printing only.

Commands import what they need when they run, so that ``--help`` and ``status`` start without
torch.
"""

import gc
import json
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from qa_hpo import __version__
from qa_hpo.arguments import (
    DataArgument,
    ForceOption,
    JsonOption,
    LauncherOption,
    ModelArgument,
    OwnTokensOption,
    SlurmOption,
    StorageOption,
    StudyFileArgument,
    TokensOption,
    WorkersOption,
    WorkersPerDeviceOption,
)
from qa_hpo.cli_results import commands
from qa_hpo.config import DEFAULT_STORAGE, load_study_file, storage_url
from qa_hpo.errors import InputError, QaHpoError, WorkError

__all__ = ["app", "main"]

_DEBUG = "QA_HPO_DEBUG"

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
    try:
        app()
        sys.exit(0)
    except QaHpoError as error:
        if _debugging():
            traceback.print_exc()
        for line in str(error).splitlines():
            typer.echo(f"error: {line}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        if _debugging():
            raise
        message = " ".join(str(error).split())
        typer.echo(f"error: {type(error).__name__}: {message} (--debug tells more)", err=True)
        sys.exit(1)


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
def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write it.")],
) -> None:
    """Write generated corpora, a tiny base checkpoint and a study file to try everything with.

    [bold]Example:[/] qa-hpo demo storage/demo
    """
    from qa_hpo.demo import write_demo

    for path in write_demo(folder):
        typer.echo(f"{path}")
    typer.echo(f"Next: qa-hpo run {folder / 'study.toml'}")


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

    if path.exists() and not force:
        raise InputError(f"{path}: exists; choose another name, or --force")
    text = files("qa_hpo").joinpath("study_template.toml").read_text(encoding="utf-8")
    try:
        write_text(path, text)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    typer.echo(f"{path}: set [data] and [starts], then: qa-hpo check {path}")


@app.command()
def check(study: StudyFileArgument) -> None:
    """Look for mistakes: the study file, the data, the starts, and whether they go together.

    [bold]Example:[/] qa-hpo check studies/demo.toml
    """
    from qa_hpo.running import look

    look(load_study_file(study))
    typer.echo(f"{study}: good")


@app.command()
def prepare(study: StudyFileArgument) -> None:
    """Do once what every worker needs: load the data, cut the windows, build the starts.

    [bold]Example:[/] qa-hpo prepare studies/demo.toml
    """
    from qa_hpo.finetune.inputs import Inputs
    from qa_hpo.finetune.preflight import prepare as prepare_starts
    from qa_hpo.paths import CachePaths

    file = load_study_file(study)
    for name, checkpoint in prepare_starts(file, Inputs(CachePaths()), typer.echo):
        typer.echo(f"start {name}: {checkpoint}")


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
    joined = create_or_continue(file, storage_url(file.study, storage))
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
    study: Annotated[str, typer.Option(metavar="NAME", help="The study's name.")],
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
    from qa_hpo.workers.worker import work

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
    from qa_hpo.running import train_once

    train_once(config, out, force=force)


app.add_typer(commands)


@app.command()
def evaluate(
    model: ModelArgument,
    data: DataArgument,
    tokens: OwnTokensOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a checkpoint on questions, with the official metrics.

    [bold]Example:[/] qa-hpo evaluate storage/demo-winner storage/demo/validation-v2.json
    """
    from qa_hpo.finetune.predictor import QuestionAnswerer
    from qa_hpo.printing import print_metrics
    from qa_hpo.squad.corpus import load_corpus

    corpus = load_corpus(data, "validation")
    answerer = QuestionAnswerer.from_pretrained(model)
    if tokens is not None:
        answerer.evaluation = answerer.evaluation.model_copy(update={"tokens": tokens})
    metrics = answerer.evaluate(corpus)
    if as_json:
        typer.echo(json.dumps({"model": model, "data": data, **metrics}, indent=2))
    else:
        print_metrics(metrics)


@app.command()
def score(
    data: DataArgument,
    predictions: Annotated[
        Path, typer.Argument(metavar="PREDICTIONS", help="JSON: question ids to answers.")
    ],
    null_scores: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON: question ids to null scores.")
    ] = None,
    tokens: TokensOption = "words",
    as_json: JsonOption = False,
) -> None:
    """Score a predictions file in the official format.

    [bold]Example:[/] qa-hpo score dev-v2.0.json predictions.json --null-scores null_odds.json
    """
    from qa_hpo.printing import print_metrics
    from qa_hpo.squad.corpus import load_corpus
    from qa_hpo.squad.predictions import score_predictions_file

    corpus = load_corpus(data, "validation")
    metrics = score_predictions_file(corpus, predictions, null_scores, tokens)
    if as_json:
        typer.echo(json.dumps(metrics, indent=2))
    else:
        print_metrics(metrics)


@app.command()
def answer(
    model: ModelArgument,
    context: Annotated[
        Path, typer.Option(metavar="FILE", help="A text file with the context; - reads it here.")
    ],
    question: Annotated[str, typer.Option(metavar="TEXT", help="The question.")],
    as_json: JsonOption = False,
) -> None:
    """Answer a question from a context, or say that the context has no answer.

    [bold]Example:[/] qa-hpo answer storage/demo-winner --context text.txt --question "Who ...?"
    """
    from qa_hpo.finetune.predictor import QuestionAnswerer

    try:
        text = sys.stdin.read() if str(context) == "-" else context.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"{context}: cannot be read: {why}") from None
    if not text.strip() or not question.strip():
        raise InputError(f"{'--question' if text.strip() else context}: is empty")
    found = QuestionAnswerer.from_pretrained(model).answer(question, text)
    if as_json:
        found_at = {name: value for name, value in vars(found).items() if name != "text"}
        typer.echo(json.dumps({"question": question, "answer": found.text, **found_at}))
    else:
        typer.echo(
            f"{found.text or 'no answer'}  (score {found.score:.2f}, answers from "
            f"{-found.threshold:.2f} on)"
        )
