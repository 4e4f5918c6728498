"""A study file's evaluation.tokens, from the epoch records to the exported configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from cli_helpers import run_cli
from qa_hpo.config import load_run_config
from qa_hpo.errors import StorageError
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.old_task import start_scores
from qa_hpo.finetune.predictor import QuestionAnswerer
from qa_hpo.finetune.records import FineTuned
from qa_hpo.finetune.run import fine_tune
from qa_hpo.finetune.training import collator
from qa_hpo.paths import CachePaths
from qa_hpo.results.export import Exported, write_export
from qa_hpo.results.held_out import _measured
from qa_hpo.search.agreement import check_unchanged
from qa_hpo.sections import Run, Runtime
from qa_hpo.squad.answered import Answered
from qa_hpo.squad.corpus import load_corpus
from tiny import run_config, study_file

PLACES = ["北京大学", "上海港口", "西安城墙", "南京长江桥"]
WORDS = sorted({c for place in PLACES for c in place} | set("他在哪里读书去了后来，。？"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Chinese checkpoint and corpora; all questions have answers."""
    folder = tmp_path_factory.mktemp("chinese")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(vocabulary)})
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(vocab_size=len(vocabulary), intermediate_size=32, **sizes)
        BertModel(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    for name, count in (("train", 24), ("validation", 12)):
        data = []
        for i in range(count):
            place, other = PLACES[i % 4], PLACES[(i + 1 + i // 4) % 4]
            context = f"他在{place}读书，后来去了{other}。"
            answer = {"text": place, "answer_start": 2}
            qa = {"id": f"{name}{i}", "question": "他在哪里读书？", "answers": [answer]}
            data.append({"title": f"t{i}", "paragraphs": [{"context": context, "qas": [qa]}]})
        (folder / f"{name}.json").write_text(json.dumps({"data": data}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trials(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[FineTuned, Path]]:
    """The same run, scored both ways, with its export."""
    found = {}
    inputs = Inputs(CachePaths(folder / "cache"))
    for tokens in ("words", "characters"):
        config = run_config(
            folder,
            parameters={"epochs": 2, "learning_rate": 1e-3},
            evaluation={"tokens": tokens, "old_task": str(folder / "validation.json")},
        )
        tuned = fine_tune(config, tmp_path_factory.mktemp(tokens) / "run", inputs=inputs)
        assert tuned.best is not None
        assert tuned.checkpoint is not None
        out = tmp_path_factory.mktemp(tokens) / "out"
        write_export(Exported(config, tuned.checkpoint, tuned.records, tuned.best, "t", {}), out)
        found[tokens] = tuned, out
    return found


def by_hand(text: str, gold: str) -> float:
    """F1 by characters of two texts of Chinese characters alone, punctuation aside."""
    text = "".join(c for c in text if c not in "，。")
    runs = {text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1)}
    longest = max((len(run) for run in runs if run in gold), default=0)
    return 2 * longest / (len(text) + len(gold))


def test_epochs_are_scored_by_characters(
    trials: dict[str, tuple[FineTuned, Path]], folder: Path
) -> None:
    words, characters = (trials[tokens][0] for tokens in ("words", "characters"))
    for mine, theirs in zip(characters.records, words.records, strict=True):
        assert mine.val_loss == theirs.val_loss
        assert mine.metrics["f1"] >= theirs.metrics["f1"]
        assert mine.metrics["best_f1"] > theirs.metrics["best_f1"]
        assert mine.metrics["old_task_f1_no_null"] == mine.metrics["HasAns_f1_no_null"]
    best = characters.best
    assert best is not None
    assert best.metrics["HasAns_f1_no_null"] == best.metrics["best_f1"]  # none is unanswerable
    corpus = load_corpus(str(folder / "validation.json"), "validation")
    answers = QuestionAnswerer.from_pretrained(str(trials["characters"][1])).predict(corpus)
    texts = answers.predictions.texts(corpus)
    scores = [by_hand(text, golds[0][0]) for text, golds in zip(texts, corpus.answers, strict=True)]
    assert best.metrics["best_f1"] == pytest.approx(100 * sum(scores) / len(scores))
    (kept,) = characters.checkpoint.parents[1].glob("answers/*.npz")  # what compare looks at
    assert Answered.from_bytes(kept.read_bytes()).scores.span_f1 == pytest.approx(scores)


def test_an_export_scores_alike(trials: dict[str, tuple[FineTuned, Path]], folder: Path) -> None:
    data = str(folder / "validation.json")
    corpus = load_corpus(data, "validation")
    for tokens, (tuned, out) in trials.items():
        config = load_run_config(out / "qa_hpo.toml")
        assert config.evaluation.tokens == tokens
        assert tuned.best is not None
        expected = tuned.best.metrics["best_f1"]
        threshold = tuned.best.metrics["best_f1_thresh"]
        assert QuestionAnswerer.from_pretrained(str(out)).evaluate(corpus)[
            "exported_f1"
        ] == pytest.approx(expected)
        assert _measured(corpus, config, out, threshold)["f1"] == pytest.approx(expected)
        said = "Answers were scored by characters" in (out / "README.md").read_text()
        assert said == (tokens == "characters")


def test_on_the_command_line(
    trials: dict[str, tuple[FineTuned, Path]], folder: Path, tmp_path: Path
) -> None:
    data = str(folder / "validation.json")

    def told(*arguments: str) -> dict[str, float]:
        done = run_cli(*arguments, "--json")
        assert done.code == 0, done.err
        return done.json()

    own = told("evaluate", str(trials["words"][1]), data)
    other = told("evaluate", str(trials["words"][1]), data, "--tokens", "characters")
    assert own["best_f1"] == pytest.approx(trials["words"][0].best.metrics["best_f1"])
    assert other["best_f1"] > own["best_f1"]
    corpus = load_corpus(data, "validation")
    predictions = tmp_path / "predictions.json"
    texts = {
        name: f"在{golds[0][0]}" for name, golds in zip(corpus.ids, corpus.answers, strict=True)
    }
    predictions.write_text(json.dumps(texts), encoding="utf-8")
    assert told("score", data, str(predictions))["f1"] == 0
    lengths = [len(golds[0][0]) for golds in corpus.answers]
    expected = sum(2 * n / (2 * n + 1) for n in lengths) / len(lengths)
    by_characters = told("score", data, str(predictions), "--tokens", "characters")
    assert by_characters["f1"] == pytest.approx(100 * expected)
    refused = run_cli("score", data, predictions, "--tokens", "letters")
    assert refused.code == 2
    assert all(word in refused.err for word in ("letters", "words", "characters"))


def test_a_study_keeps_to_its_tokens(folder: Path, tmp_path: Path) -> None:
    before = study_file(folder, tmp_path)
    after = study_file(folder, tmp_path, evaluation={"tokens": "characters"})
    run = after.run_config(after.training.parameters("base"), Run(name="r"), Runtime())
    assert run.evaluation.tokens == "characters"
    check_unchanged(after, after, "s")
    with pytest.raises(StorageError) as caught:
        check_unchanged(before, after, "s")
    assert 'evaluation.tokens: "words" in the study, "characters" in the file' in str(caught.value)


def test_a_starts_scores_are_by_the_trials_tokens(
    trials: dict[str, tuple[FineTuned, Path]], folder: Path, tmp_path: Path
) -> None:
    """So that what is forgotten is no difference between two ways to score; each is kept."""
    inputs = Inputs(CachePaths(folder / "cache"))
    tuned, out = trials["characters"]
    found = {}
    for tokens in ("words", "characters"):
        config = run_config(
            folder, evaluation={"tokens": tokens, "old_task": str(folder / "validation.json")}
        )
        questions = inputs.old_task(config, str(out))
        assert questions is not None
        found[tokens] = start_scores(
            str(out),
            questions,
            collator(questions.windows, inputs.tokenizer(str(out))),
            max_length=40,
            evaluation=config.evaluation,
            runtime=config.runtime,
            cache=tmp_path,
        )["f1"]
    assert tuned.best is not None
    assert found["characters"] == pytest.approx(tuned.best.metrics["best_f1"])
    assert found["words"] < found["characters"]
