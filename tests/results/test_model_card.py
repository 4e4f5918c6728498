"""What a model card says can be done, and what it says of the score is what the study knows."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from qa_hpo.config import Runtime
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.predictor import QuestionAnswerer
from qa_hpo.finetune.preflight import fingerprints
from qa_hpo.paths import CachePaths
from qa_hpo.results.export import write_export
from qa_hpo.results.held_out import TESTED
from qa_hpo.results.publishing import judge
from qa_hpo.results.select import exported_trial
from qa_hpo.search.asking import Asked, ask
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.objective import Objective
from qa_hpo.search.storage import open_storage
from qa_hpo.search.study import create_study
from qa_hpo.search.trials import REPEAT_OF
from qa_hpo.squad.corpus import load_corpus
from tiny import squad, study_file

SEARCH = {"learning_rate": {"choices": [1e-2, 1e-4]}, "epochs": {"value": 4}}


@pytest.fixture(scope="module")
def study(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> JoinedStudy:
    """A finished study: a baseline that learns nothing, one that does, and the latter again."""
    folder = tmp_path_factory.mktemp("study")
    test = folder / "test.json"
    test.write_text(json.dumps(squad(40, seed=9)))
    file = study_file(
        tiny,
        folder / "artifacts",
        data={"test": str(test)},
        search=SEARCH,
        budget={"trials": 3},
        evaluation={"seeds": 2, "finalists": 1},
        pruning={"across": "none", "patience": 9},
        baseline=[{"learning_rate": 1e-4}],
    )
    inputs = Inputs(CachePaths(folder / "cache"))
    storage = open_storage(f"sqlite:///{folder}/study.db", create=True)
    joined = create_study(file, storage, fingerprints=fingerprints(file, inputs))
    objective = Objective(joined, inputs, Runtime(cpu_threads=1), judge=judge)
    for _ in range(3):
        asked = ask(joined)
        assert isinstance(asked, Asked)
        objective.run(asked)
    return joined


@pytest.fixture(scope="module")
def out(study: JoinedStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "winner, it's ünusual"
    with exported_trial(study, None) as exported:
        write_export(exported, out)
    return out


def card(out: Path) -> str:
    return (out / "README.md").read_text()


def blocks(out: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card(out), flags=re.DOTALL)


def with_folder(block: str, out: Path) -> str:
    assert '"path/to/this/folder"' in block
    return block.replace('"path/to/this/folder"', repr(str(out)))


def test_the_study_has_finals(study: JoinedStudy) -> None:
    trials = study.optuna_study.get_trials()
    assert [trial.params["learning_rate"] for trial in trials] == [1e-4, 1e-2, 1e-2]
    assert trials[2].user_attrs[REPEAT_OF] == 1
    assert min(trial.value for trial in trials[1:]) > trials[0].value + 10


def test_its_code_answers_as_ours_does(
    out: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, plain = blocks(out)
    exec(with_folder(ours, out), {})
    names: dict[str, Any] = {}
    exec(with_folder(plain, out), names)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    assert printed[0] == printed[1]

    answerer = QuestionAnswerer.from_pretrained(str(out))
    corpus = load_corpus(tiny / "validation.json", "validation")
    answers = []
    for i, question in enumerate(corpus.questions):
        context = corpus.context_of(i)
        if len(answerer.tokenizer(question, context)["input_ids"]) > answerer.max_length:
            continue  # more than one window
        answers.append(answerer.answer(question, context).text)
        assert names["answer"](question, context) == answers[-1]
    assert len(answers) > 20
    assert None in answers
    assert len(set(answers)) > 5


def test_its_numbers_are_those_of_the_metrics(out: Path) -> None:
    metrics = json.loads((out / "metrics.json").read_text())
    text = " ".join(card(out).split())
    low, high = metrics["best_f1_interval"]
    assert low < metrics["best_f1"] <= high
    assert f"the 95% interval of its F1 is {low:.2f} to {high:.2f}" in text
    assert metrics["seeds"] == 2
    assert f"Over 2 seeds of the same configuration, best F1 is {metrics['seeds_f1']:.2f}" in text
    baseline = metrics["baseline"]
    assert baseline["second"]["number"] == 0
    assert baseline["difference"] == pytest.approx(
        metrics["best_f1"] - baseline["second"]["best_f1"], abs=1e-9
    )
    assert f"Its F1 is {baseline['difference']:+.2f} beside that of the study's baseline" in text
    assert f"with probability {metrics['probability_best']:.2f}" in text
    test = metrics["test"]
    assert (test["total"], test["trials"]) == (40, 1)
    assert f"it has F1 **{test['f1']:.2f}**" in text


def test_its_metadata_are_those_that_the_hub_reads(out: Path) -> None:
    metrics = json.loads((out / "metrics.json").read_text())
    data = ModelCard.load(out / "README.md").data
    found = {
        (result.dataset_split, result.metric_type): result.metric_value
        for result in data.eval_results
    }
    assert found == {
        ("validation", "f1"): round(metrics["best_f1"], 4),
        ("validation", "exact_match"): round(metrics["best_exact"], 4),
        ("test", "f1"): round(metrics["test"]["f1"], 4),
        ("test", "exact_match"): round(metrics["test"]["exact"], 4),
    }
    assert yaml.safe_load(card(out).split("---")[1])["model-index"]


def test_the_test_corpus_is_measured_once_for_each_trial(
    study: JoinedStudy, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = json.loads((out / "metrics.json").read_text())["test"]
    answerer = QuestionAnswerer.from_pretrained(str(out))
    metrics = answerer.evaluate(load_corpus(study.file.data.test or "", "validation"))
    assert exported["f1"] == pytest.approx(metrics["exported_f1"], abs=1e-9)
    assert exported["exact"] == pytest.approx(metrics["exported_exact"], abs=1e-9)
    winner = json.loads((out / "metrics.json").read_text())["trial"]
    assert list(study.optuna_study.user_attrs[TESTED]) == [str(winner)]

    def again(*_: Any) -> Any:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr("qa_hpo.results.held_out._measured", again)
        with exported_trial(study, None) as once_more:
            assert once_more.facts["test"] == exported
    with exported_trial(study, 0) as other:
        assert other.facts["test"]["trials"] == 2
