"""The commands that read a study: parsing and printing only."""

import json
from pathlib import Path
from typing import Annotated

import typer

from qa_hpo.arguments import ForceOption, JsonOption, StorageOption, StudyArgument
from qa_hpo.completing import one_of
from qa_hpo.legible import legible

__all__ = ["commands"]

commands = typer.Typer()


@commands.command()
def status(
    study: StudyArgument, storage: StorageOption = None, as_json: JsonOption = False
) -> None:
    """Tell how a study stands: what is spent, what runs, what leads.

    [bold]Example:[/] qa-hpo status studies/demo.toml
    """
    from qa_hpo.printing import print_status
    from qa_hpo.results.progress import snapshot
    from qa_hpo.running import open_study

    with open_study(study, storage) as joined:
        now = snapshot(joined)
        if as_json:
            typer.echo(json.dumps(now.as_dict(), indent=2))
        else:
            print_status(now)


@commands.command()
def leaderboard(
    study: StudyArgument, storage: StorageOption = None, as_json: JsonOption = False
) -> None:
    """List a study's trials, best first, with the baseline.

    [bold]Example:[/] qa-hpo leaderboard studies/demo.toml --json
    """
    from qa_hpo.printing_results import print_leaderboard
    from qa_hpo.results.certainty import compare_with_baseline
    from qa_hpo.results.leaderboard import leaderboard as read_leaderboard
    from qa_hpo.running import open_study

    with open_study(study, storage) as joined:
        board = read_leaderboard(joined)
        if as_json:
            typer.echo(board.to_json())
        else:
            print_leaderboard(board, joined.file, compare_with_baseline(joined, board))


@commands.command()
def compare(
    study: StudyArgument,
    first: Annotated[int, typer.Argument(metavar="A", help="A finished trial's number.")],
    second: Annotated[int, typer.Argument(metavar="B", help="Another one's.")],
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell whether one trial's checkpoint scores higher than another's, and how sure that is.

    The interval is of a paired bootstrap by article: what makes a question hard is the same for
    both trials. It does not allow for the winner's having been chosen for its score.

    [bold]Example:[/] qa-hpo compare studies/demo.toml 7 0
    """
    from qa_hpo.printing_results import print_comparison
    from qa_hpo.results.certainty import compare as compared
    from qa_hpo.results.leaderboard import leaderboard as read_leaderboard
    from qa_hpo.running import open_study

    with open_study(study, storage) as joined:
        board = read_leaderboard(joined)
        found = compared(joined, board, first, second)
        if as_json:
            typer.echo(json.dumps(found.as_dict(), indent=2))
        else:
            print_comparison(found, board.winner)


@commands.command()
def report(
    study: StudyArgument,
    out: Annotated[
        Path | None, typer.Option(help="The file to write; report.html or report.md if left out.")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="html|md",
            help="Else what the file's name says.",
            autocompletion=one_of("html", "md"),
        ),
    ] = None,
    storage: StorageOption = None,
    force: ForceOption = False,
) -> None:
    """Write one page that tells what a study found: for a browser without network, or Markdown.

    [bold]Example:[/] qa-hpo report studies/demo.toml --out storage/demo-report.html
    """
    from qa_hpo.results.report import check_place, study_report, write_report
    from qa_hpo.running import open_study

    out = out or Path(f"report.{form or 'html'}")
    form = check_place(out, form, force=force)
    with open_study(study, storage) as joined:
        write_report(study_report(joined), out, form=form, force=force)
    typer.echo(legible(f"{out}: one file, {out.stat().st_size / 1000:,.0f} kB"))


@commands.command()
def dashboard(
    study: StudyArgument,
    storage: StorageOption = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="The address to listen on; it has no login.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port; 0 for any that is free.")
    ] = 8080,
    writable: Annotated[
        bool, typer.Option("--writable", help="Let pages change and delete studies.")
    ] = False,
) -> None:
    """Show a study and its checkpoints in the browser, until Ctrl-C, with Optuna's dashboard.

    It shows all studies of the database. Without --writable it changes nothing.

    [bold]Example:[/] qa-hpo dashboard studies/demo.toml --port 8081
    """
    from qa_hpo.results.dashboard import serve
    from qa_hpo.running import open_study

    with open_study(study, storage) as joined:
        serve(joined, host, port, writable=writable, tell=typer.echo)


@commands.command()
def export(
    study: StudyArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    trial: Annotated[
        int | None, typer.Option(help="The trial to export; the winner if left out.")
    ] = None,
    prefer: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            help="Which trial instead of the winner: best_f1 (the winner), old_task_f1 (what knows "
            "most of the old task), or forgetting<=X (the best that forgets at most X points).",
            autocompletion=one_of("best_f1", "old_task_f1", "forgetting<="),
        ),
    ] = None,
    storage: StorageOption = None,
    force: ForceOption = False,
) -> None:
    """Write the winner's checkpoint, configuration, metrics and model card to a folder.

    [bold]Example:[/] qa-hpo export studies/demo.toml storage/demo-winner
    """
    from qa_hpo.results.export import write_export
    from qa_hpo.results.select import exported_trial
    from qa_hpo.running import open_study
    from qa_hpo.search.choosing import RULES

    with (
        open_study(study, storage) as joined,
        exported_trial(joined, trial, prefer=prefer, out=out, force=force) as exported,
    ):
        written = write_export(exported, out, force=force)
    threshold = exported.best.metrics["best_f1_thresh"]
    verb = "holds" if not written else "now holds"
    line = f"{out} {verb} {exported.origin}; it answers with the threshold {threshold:g}"
    if (rule := exported.facts.get("rule")) is not None:
        line += f"; chosen by {rule}"
        line += "" if prefer is not None else f" (--prefer {RULES} chooses otherwise)"
    typer.echo(legible(line))
