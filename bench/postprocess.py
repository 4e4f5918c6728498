"""How much faster ours turns validation questions and logits into answers, scores and a threshold.

Both sides get the same questions, tokenizer and logits, and give the same answers and metrics: that
is checked before anything is timed. The model's own time is no part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from bench import notebook
from bench.data import Material, load_material, question_rows
from bench.logits import Logits, make_logits
from bench.report import Finding, machine, table
from bench.timing import Comparison, Stopwatch, alternate, part_medians
from qa_hpo.finetune.batching import longest_first
from qa_hpo.finetune.training import collator
from qa_hpo.squad import answer_tokens, scoring
from qa_hpo.squad.layout import Windows
from qa_hpo.squad.spans import MARGIN_DECIMALS, SpanAccumulator
from qa_hpo.squad.windows import build_windows

SEED = 20
BATCH = 64  # windows that the model would be given at once
PARTS = ("windows", "spans and null margins", "EM and F1", "metrics and threshold")
PACKAGES = ("qa_hpo", "numpy", "tokenizers", "transformers", "datasets", "pyarrow")


class DisagreementError(Exception):
    """The two sides do not give the same, so that their times cannot be compared."""


@dataclass(frozen=True)
class Outcome:
    """What a side gives: tokens and labels by window, texts and margins by question, metrics."""

    input_ids: list[list[int]]
    labels: list[tuple[int, int]]
    texts: list[str]
    margins: NDArray[np.float64]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Bout:
    """What both sides are given, made before anything is timed.

    Attributes:
        material: questions and tokenizer, as ours takes them.
        rows: the questions as dictionaries.
        dataset: the same as a Dataset.
        start: logits of the padded windows, (windows, max_length).
        end: likewise.
        batches: (start, end) of the batches that the model is given, padded to their longest.
    """

    material: Material
    rows: list[dict[str, Any]]
    dataset: Dataset
    start: Logits
    end: Logits
    batches: list[tuple[Logits, Logits]]


def prepare(material: Material) -> Bout:
    corpus, tokenizer = material.corpus, material.tokenizer
    rows = question_rows(corpus)
    windows = _windows(material)
    strings = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    start, end = make_logits(windows, strings, material.max_length, SEED)
    batches = []
    for indices in longest_first(windows.lengths, BATCH):
        width = int(windows.lengths[indices].max())
        batches.append((start[indices, :width], end[indices, :width]))
    return Bout(material, rows, Dataset.from_list(rows), start, end, batches)


def _windows(material: Material) -> Windows:
    return build_windows(
        material.corpus,
        material.tokenizer,
        max_length=material.max_length,
        doc_stride=material.doc_stride,
    )


# ---------------------------------------------------------------------------- the two sides


def run_ours(bout: Bout, watch: Stopwatch) -> Outcome:
    """As at the end of an epoch, and with nothing cached: a study's later epochs do less."""
    corpus = bout.material.corpus
    answer_tokens._word_tokens.cache_clear()
    with watch.part(PARTS[0]):
        windows = _windows(bout.material)
    with watch.part(PARTS[1]):
        layout = collator(windows, bout.material.tokenizer).layout
        spans = SpanAccumulator(windows.questions)
        indices = longest_first(windows.lengths, BATCH)
        for chosen, (start, end) in zip(indices, bout.batches, strict=True):
            batch = layout(chosen)
            spans.update(
                window_index=chosen,
                question_index=windows.question_index[chosen],
                cls_index=windows.cls_index[chosen] + batch.shift,
                start_logits=start,
                end_logits=end,
                char_start=np.where(batch.mask, windows.char_start[batch.source], -1),
                char_end=np.where(batch.mask, windows.char_end[batch.source], -1),
            )
        predictions = spans.finish()
        texts = predictions.texts(corpus)
    with watch.part(PARTS[2]):
        scores = scoring.score_texts(corpus, texts, predictions.null_margin)
    with watch.part(PARTS[3]):
        metrics = scoring.corpus_metrics(scores, corpus.groups())
    ids = np.split(windows.input_ids, windows.offsets[1:-1])
    labels = zip(windows.start_positions.tolist(), windows.end_positions.tolist(), strict=True)
    return Outcome(
        [row.tolist() for row in ids], [*labels], texts, predictions.null_margin, metrics
    )


def run_notebook(
    bout: Bout, watch: Stopwatch, *, as_dataset: bool = True, with_labels: bool = True
) -> Outcome:
    """As the notebook does it; or without a Dataset, which is quicker, from plain lists.

    The notebook makes the validation windows twice: with labels for the validation loss, and with
    characters for the answers.
    """
    material = bout.material
    make, make_labelled = (
        partial(
            function,
            tokenizer=material.tokenizer,
            max_length=material.max_length,
            doc_stride=material.doc_stride,
        )
        for function in (notebook.tokenise, notebook.label)
    )
    questions: notebook.Rows = bout.dataset if as_dataset else bout.rows
    labelled: notebook.Rows = []
    with watch.part(PARTS[0]):
        if as_dataset:
            if with_labels:
                labelled = notebook.dataset_windows(bout.dataset, make_labelled)
            windows: notebook.Rows = notebook.dataset_windows(bout.dataset, make)
        else:
            if with_labels:
                labelled = notebook.list_windows(bout.rows, make_labelled)
            windows = notebook.list_windows(bout.rows, make)
    with watch.part(PARTS[1]):
        cls = material.tokenizer.cls_token_id
        found = notebook.best_answers(questions, windows, bout.start, bout.end, cls)
    with watch.part(PARTS[2]):
        references = [{"id": row["id"], "answers": row["answers"]} for row in questions]
        exact, f1 = notebook.question_scores(references, found)
    with watch.part(PARTS[3]):
        metrics = notebook.official_metrics(references, found, exact, f1)
    ids = [
        [token for token, real in zip(w["input_ids"], w["attention_mask"], strict=True) if real]
        for w in windows
    ]
    labels = [(window["start_positions"], window["end_positions"]) for window in labelled]
    texts, margins = zip(*(found[name] for name in material.corpus.ids), strict=True)
    return Outcome(ids, labels, list(texts), np.array(margins), metrics)


# ---------------------------------------------------------------------------- the check


def check_same(baseline: Outcome, ours: Outcome) -> None:
    """See that both sides gave the same windows, labels, answers, margins and metrics.

    Our margins are rounded to 4 decimals, so that a tuned threshold may differ by that rounding.
    And the official sweep parts questions of one margin where ours takes them together, so that
    its best score may differ by so many questions as share the margin of a threshold.

    Raises:
        DisagreementError: if they did not.
    """
    if baseline.input_ids != ours.input_ids:
        raise DisagreementError("the windows differ")
    if baseline.labels != ours.labels:
        raise DisagreementError("the windows' labels differ")
    pairs = zip(baseline.texts, ours.texts, strict=True)
    different = [number for number, (a, b) in enumerate(pairs) if a != b]
    if different:
        raise DisagreementError(f"{len(different)} spans differ, first that of {different[0]}")
    rounding = 0.51 * 10.0**-MARGIN_DECIMALS  # half a unit, and float32's own noise
    if np.abs(baseline.margins - ours.margins).max() > rounding:
        raise DisagreementError("null margins differ by more than their rounding")
    if ((baseline.margins > 0) != (ours.margins > 0)).any():
        raise DisagreementError("a question is answered by one side only")
    for name, theirs in baseline.metrics.items():
        ties = 0
        if name.startswith("best_"):
            kind = name.removesuffix("_thresh")
            ties = max(_ties(ours, side.metrics[f"{kind}_thresh"]) for side in (baseline, ours))
        if name.endswith("_thresh"):
            # The official 0.0 may mean that answering nothing is best; ours is then another.
            tolerance = np.inf if ties or theirs == 0.0 else rounding
        else:
            tolerance = 100.0 * ties / len(ours.texts) + 1e-6
        if abs(theirs - ours.metrics[name]) > tolerance:
            raise DisagreementError(f"{name}: {theirs} against {ours.metrics[name]}")


def _ties(outcome: Outcome, threshold: float) -> int:
    """How many questions share the margin that a threshold is, but for one."""
    same = np.isclose(outcome.margins, round(threshold, MARGIN_DECIMALS), rtol=0, atol=1e-9)
    return max(int(same.sum()) - 1, 0)


# ---------------------------------------------------------------------------- the benchmark


def run(pairs: int) -> Finding:
    """Check that the sides agree, time them in turn, and put the figures down."""
    material = load_material()
    print(f"postprocess_vs_notebook on {material.name}")
    bout = prepare(material)
    ours = run_ours(bout, Stopwatch())
    for as_dataset in (True, False):
        check_same(run_notebook(bout, Stopwatch(), as_dataset=as_dataset), ours)
    print(f"The sides agree. {pairs} pairs of timed runs ...")
    timed = partial(run_ours, bout)
    main = alternate(partial(run_notebook, bout), timed, pairs)
    lists = alternate(partial(run_notebook, bout, as_dataset=False), timed, pairs)
    once = alternate(partial(run_notebook, bout, with_labels=False), timed, pairs)
    return Finding(main.summary(), _body(material, len(bout.start), ours, main, lists, once))


def _body(
    material: Material,
    windows: int,
    outcome: Outcome,
    main: Comparison,
    lists: Comparison,
    once: Comparison,
) -> str:
    medians = part_medians(main.baseline), part_medians(main.ours), part_medians(lists.baseline)
    return f"""## postprocess_vs_notebook

How many times faster than the notebook's procedure ours takes validation questions and logits to
answers, scores and a tuned threshold. The model's own time is no part of it.

- Data: {material.name}; {windows:,} windows of at most {material.max_length} tokens, doc_stride \
{material.doc_stride}
{machine(PACKAGES)}
- Measured: {len(main.ours)} runs of each side, in turn, in one process that may use all cores,
  as the libraries do by themselves (tokenizers' threads, on both sides); wall-clock time; a pair's
  ratio is that of two neighbouring runs. Other work may run on the machine: look at the ratios
  rather than the seconds.

{_ratio_table(main, lists, once)}

Where the time goes (median seconds, and share of the side's total):

{_part_table(*medians)}

The notebook's side is written here in plain Python: each question tokenised with its context,
padded to max_length, its windows kept in a Dataset (in memory, and made anew in each run), once
with labels for the validation loss and once with characters for the answers, as the notebook
evaluates and then predicts ("no loss": without the former); a loop
over the 20 x 20 best starts and ends of each window, answers of up to 30 tokens; the official
scores and threshold sweep, question by question. In place of the notebook's constant, it scores
null margins, from the lowest null score of a question's windows. "On lists" are the same loops over
plain lists instead of the Dataset, which is not what the notebook does, but quicker.

Ours starts with empty caches; a study's later epochs find windows and normalised gold answers made.
It labels the same windows for the validation loss, and it also cross-fits the threshold.

Logits are random with a few peaks (seed {SEED}), the same on both sides. A trained model's best
starts and ends lie closer together, which makes the notebook's loops a little slower and leaves
ours as it is. Before the timed runs, both sides gave the same windows and labels, the same
{len(outcome.texts):,} answers, the same margins to {MARGIN_DECIMALS} decimals and the same \
official metrics. These are of made-up
logits and say nothing about a model: exact {outcome.metrics["exact"]:.2f}, F1 \
{outcome.metrics["f1"]:.2f}, best F1 {outcome.metrics["best_f1"]:.2f}."""


def _ratio_table(main: Comparison, lists: Comparison, once: Comparison) -> str:
    head = ("ours is faster than", "median", "min", "max", "pairs", "in CPU time (median)")
    rows = []
    for name, comparison in (
        ("the notebook", main),
        ("the notebook on lists", lists),
        ("the notebook, no loss", once),
    ):
        fields = comparison.summary()
        ratios = [f"{fields[key]:.1f}x" for key in ("median", "min", "max")]
        rows.append((name, *ratios, str(fields["pairs"]), f"{comparison.cpu_ratio:.1f}x"))
    return table(head, rows)


def _part_table(baseline: dict[str, float], ours: dict[str, float], lists: dict[str, float]) -> str:
    sides = (baseline, lists, ours)
    totals = [sum(side.values()) for side in sides]
    head = ("part", "notebook", "share", "on lists", "share", "ours", "share", "ratio")
    rows = []
    for part in PARTS:
        cells = [
            text
            for side, total in zip(sides, totals, strict=True)
            for text in (f"{side[part]:.3f}", f"{side[part] / total:.0%}")
        ]
        rows.append((part, *cells, f"{baseline[part] / ours[part]:.1f}x"))
    cells = [text for total in totals for text in (f"{total:.3f}", "100%")]
    rows.append(("all", *cells, f"{totals[0] / totals[2]:.1f}x"))
    return table(head, rows)
