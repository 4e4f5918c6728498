import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForQuestionAnswering

from qa_hpo.errors import CheckpointError, WindowError
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.predictor import QuestionAnswerer
from qa_hpo.finetune.records import FineTuned
from qa_hpo.finetune.run import fine_tune
from qa_hpo.results.export import Exported, write_export
from tiny import run_config

# A run long enough for answers that are right.
SECTIONS: dict[str, Any] = {"parameters": {"learning_rate": 1e-2, "epochs": 4}}


@pytest.fixture(scope="module")
def tuned(tiny: Path, inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> FineTuned:
    folder = tmp_path_factory.mktemp("run")
    return fine_tune(run_config(tiny, **SECTIONS), folder, inputs=inputs)


@pytest.fixture(scope="module")
def exported(tuned: FineTuned, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "the export, it's ünusual"
    assert tuned.checkpoint is not None
    assert tuned.best is not None
    config = run_config(tiny, **SECTIONS)
    write_export(Exported(config, tuned.checkpoint, tuned.records, tuned.best, "a run", {}), out)
    return out


def test_it_measures_what_the_run_measured(
    exported: Path, tuned: FineTuned, tiny: Path, inputs: Inputs
) -> None:
    corpus = inputs.validation_corpus(run_config(tiny).data)
    best = tuned.best
    assert best is not None
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            answerer = QuestionAnswerer.from_pretrained(str(exported))
            torch.set_num_threads(count)
            metrics = answerer.evaluate(corpus)
            for name, value in best.metrics.items():
                assert metrics[name] == pytest.approx(value, abs=1e-6), name
            assert metrics["val_loss"] == pytest.approx(best.val_loss, abs=1e-5)
            assert metrics["threshold"] == best.metrics["best_f1_thresh"] == answerer.threshold
            # On the validation set itself the exported threshold is the best one.
            assert metrics["exported_f1"] == pytest.approx(best.metrics["best_f1"], abs=1e-6)
            assert metrics["exported_exact"] <= best.metrics["best_exact"] + 1e-6
    finally:
        torch.set_num_threads(threads)


def test_it_is_used_as_it_was_measured(exported: Path, tiny: Path) -> None:
    answerer = QuestionAnswerer.from_pretrained(str(exported))
    config = run_config(tiny, **SECTIONS)
    assert answerer.max_length == config.data.max_length == 40
    assert answerer.evaluation == config.evaluation
    assert torch.get_num_threads() == config.runtime.cpu_threads == 1


def test_answers_apply_the_threshold(exported: Path, tiny: Path) -> None:
    answerer = QuestionAnswerer.from_pretrained(str(exported))
    corpus = json.loads((tiny / "validation.json").read_text())
    asked = [
        (paragraph["qas"][0]["question"], paragraph["context"])
        for article in corpus["data"]
        for paragraph in article["paragraphs"]
    ]
    texts = []
    for question, context in asked:
        answer = answerer.answer(question, context)
        assert answer.threshold == answerer.threshold
        given = -answer.score <= answerer.threshold
        assert answer.text == (context[answer.start : answer.end] if given else None)
        texts.append(answer.text)
        score = answer.score
        for threshold, said in (
            (-score - 0.01, None),
            (-score, context[answer.start : answer.end]),
        ):
            answerer.threshold = threshold
            assert answerer.answer(question, context).text == said
        answerer.threshold = answer.threshold
    assert texts.count(None) not in {0, len(texts)}


def test_one_question_at_a_time_gives_the_answers_of_the_whole(
    exported: Path, tiny: Path, inputs: Inputs
) -> None:
    answerer = QuestionAnswerer.from_pretrained(str(exported))
    corpus = inputs.validation_corpus(run_config(tiny).data)
    predictions = answerer.predict(corpus).predictions
    for number in range(len(corpus)):
        answer = answerer.answer(corpus.questions[number], corpus.context_of(number))
        assert (answer.start, answer.end) == (
            predictions.char_start[number], predictions.char_end[number]
        )  # fmt: skip
        assert -answer.score == pytest.approx(predictions.null_margin[number], abs=2e-4)


@pytest.mark.parametrize("context", ["", "   ", "\n"])
def test_a_context_that_says_nothing_has_no_answer(exported: Path, context: str) -> None:
    answerer = QuestionAnswerer.from_pretrained(str(exported))
    answerer.threshold = 1e9
    assert answerer.answer("who built the tower ?", context).text is None


def test_a_question_that_leaves_no_room(exported: Path) -> None:
    answerer = QuestionAnswerer.from_pretrained(str(exported))
    with pytest.raises(WindowError, match="question 'question' has"):
        answerer.answer("who " * 50, "adela built it .")


def test_transformers_loads_it(exported: Path) -> None:
    model, loading = AutoModelForQuestionAnswering.from_pretrained(
        exported, output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    ours = QuestionAnswerer.from_pretrained(str(exported)).model
    assert all(
        torch.equal(mine, theirs)
        for mine, theirs in zip(
            ours.state_dict().values(), model.state_dict().values(), strict=True
        )
    )


def test_a_checkpoint_that_is_no_export(exported: Path, tmp_path: Path) -> None:
    plain = shutil.copytree(exported, tmp_path / "plain")
    for name in ("qa_hpo.toml", "metrics.json", "README.md"):
        (plain / name).unlink()
    answerer = QuestionAnswerer.from_pretrained(str(plain))
    assert answerer.threshold == 0.0
    assert answerer.max_length == 64  # its tokenizer's limit, and its positions
    assert answerer.evaluation.doc_stride == 21
    assert answerer.answer("who built the mill ?", "the mill was built by ida ." * 30) is not None
    # A tokenizer that knows no limit: the model's positions are one.
    file = plain / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": 10**30}))
    assert QuestionAnswerer.from_pretrained(str(plain)).max_length == 64


def test_a_checkpoint_without_a_trained_head_is_refused(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match="has no trained question-answering head"):
        QuestionAnswerer.from_pretrained(str(tiny / "base"))


@pytest.mark.parametrize("metrics", [None, "{}", "no JSON", '{"threshold": null}'])
def test_an_export_that_lost_its_threshold(
    exported: Path, tmp_path: Path, metrics: str | None
) -> None:
    spoilt = shutil.copytree(exported, tmp_path / "spoilt")
    (spoilt / "metrics.json").unlink()
    if metrics is not None:
        (spoilt / "metrics.json").write_text(metrics)
    with pytest.raises(CheckpointError, match=r"metrics\.json: holds no threshold"):
        QuestionAnswerer.from_pretrained(str(spoilt))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_export_of_a_gpu_is_used_without_one(exported: Path, tiny: Path, tmp_path: Path) -> None:
    trained = shutil.copytree(exported, tmp_path / "trained")
    file = trained / "qa_hpo.toml"
    text = file.read_text().replace('precision = "auto"', 'precision = "fp16"')
    file.write_text(text.replace('attention = "auto"', 'attention = "flash_attention_2"'))
    assert "fp16" in file.read_text()
    assert "flash_attention_2" in file.read_text()
    answerer = QuestionAnswerer.from_pretrained(str(trained))
    assert answerer.answer("who built the mill ?", "the mill was built by ida .").end > 0
