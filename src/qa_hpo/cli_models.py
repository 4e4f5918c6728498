"""The commands that need no study, but a checkpoint or predictions: parsing and printing only."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from qa_hpo.arguments import DataArgument, JsonOption, ModelArgument, OwnTokensOption, TokensOption
from qa_hpo.errors import InputError
from qa_hpo.legible import legible

__all__ = ["commands"]

commands = typer.Typer()


@commands.command()
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


@commands.command()
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


@commands.command()
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

    if context.is_char_device() or context.is_block_device():
        raise InputError(f"{context}: is a device, not a file; - reads the terminal")
    try:
        text = sys.stdin.read() if str(context) == "-" else context.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"{context}: cannot be read: {why}") from None
    for what, given in ((context, text), ("--question", question)):
        if any("\ud800" <= char <= "\udfff" for char in given):
            raise InputError(f"{what}: is not UTF-8 text")
    if not text.strip() or not question.strip():
        raise InputError(f"{'--question' if text.strip() else context}: is empty")
    found = QuestionAnswerer.from_pretrained(model).answer(question, text)
    if as_json:
        found_at = {name: value for name, value in vars(found).items() if name != "text"}
        typer.echo(json.dumps({"question": question, "answer": found.text, **found_at}))
    else:
        typer.echo(
            legible(
                f"{found.text or 'no answer'}  (score {found.score:.2f}, answers from "
                f"{-found.threshold:.2f} on)"
            )
        )
