"""What a look at a study's corpora refuses before anything is trained."""

import json
from pathlib import Path
from typing import Any

import pytest

from qa_hpo.errors import CorpusError
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.preflight import preflight
from tiny import squad, study_file


def changed(corpus: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The corpus with its questions' ids, questions and contexts as the functions make them."""
    for article in corpus["data"]:
        for paragraph in article["paragraphs"]:
            paragraph["context"] = changes.get("context", str)(paragraph["context"])
            for entry in paragraph["qas"]:
                for name in ("id", "question"):
                    entry[name] = changes.get(name, str)(entry[name])
    return corpus


def look(tiny: Path, inputs: Inputs, folder: Path, test: Any, **sections: Any) -> Any:
    path = folder / "test.json"
    path.write_text(json.dumps(test))
    data = {"test": str(path), **sections.pop("data", {})}
    return preflight(study_file(tiny, folder / "artifacts", data=data, **sections), inputs)


def test_the_validation_corpus_is_no_test_corpus(tiny: Path, inputs: Inputs) -> None:
    path = str(tiny / "validation.json")
    with pytest.raises(CorpusError) as caught:
        preflight(study_file(tiny, tiny / "artifacts", data={"test": path}), inputs)
    assert str(caught.value) == (
        f"data.test: {path}: 60 of its 60 questions are in data.validation ({path}) too, such as "
        "'q2-0'; give a corpus of other articles, which has no part in the search (of a hub id it "
        'is the split "validation")'
    )


def test_neither_another_id_nor_other_spaces_make_another_question(
    tiny: Path, inputs: Inputs, tmp_path: Path
) -> None:
    same = changed(squad(60, seed=2), id="new {}".format, question=" {}".format)
    other = squad(40, seed=9)
    other["data"] += same["data"][:3]
    with pytest.raises(
        CorpusError, match=r"3 of its 43 questions are in data\.validation .* 'new q2-0'"
    ):
        look(tiny, inputs, tmp_path, other)


def test_other_questions_about_the_contexts_of_validation(
    tiny: Path, inputs: Inputs, tmp_path: Path
) -> None:
    test = squad(40, seed=9)
    test["data"] += changed(squad(60, seed=2), question="so, {}".format)["data"][:2]
    with pytest.raises(
        CorpusError,
        match=r"2 of its 42 questions have contexts that are in data\.validation .* 'q2-0'; give",
    ):
        look(tiny, inputs, tmp_path, test)


@pytest.mark.parametrize(
    ("seed", "place"), [(1, r"data\.train \(.*train\.json\)"), (3, r"starts\.v1\.train \(.*noise")]
)
def test_questions_that_are_trained_on(
    tiny: Path, inputs: Inputs, tmp_path: Path, seed: int, place: str
) -> None:
    noise = squad(32, seed=3, lie=0.9)  # what noise.json is
    test = noise if seed == 3 else squad(240, seed=1)
    recipe = {"from": "base", "train": str(tiny / "noise.json"), "doc_stride": 8}
    number = len(test["data"])
    with pytest.raises(CorpusError, match=rf"{number} of its {number} questions are in {place}"):
        look(
            tiny,
            inputs,
            tmp_path,
            test,
            starts={"v1": recipe},
            search={"start": {"choices": ["base", "v1"]}},
        )


def test_other_articles_are_a_test_corpus(tiny: Path, inputs: Inputs, tmp_path: Path) -> None:
    # The same ids and titles, and other questions about contexts of the training corpus.
    test = changed(squad(40, seed=9), id=lambda name: name.replace("q9", "q2"))
    test["data"] += changed(squad(240, seed=1), question="so, {}".format)["data"][:2]
    found = look(tiny, inputs, tmp_path, test)
    assert len(found.test) == 42
