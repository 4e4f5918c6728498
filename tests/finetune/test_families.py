"""A whole trial with each model family, checked against transformers used plainly."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, LONGEST, Family, bert, roberta, without_token_types
from safetensors.torch import load_file
from transformers import (
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    FNetConfig,
    GPT2Config,
    LayoutLMv3Config,
    LxmertConfig,
    PreTrainedTokenizerFast,
)

from qa_hpo.config import RunConfig
from qa_hpo.errors import CheckpointError, WindowError
from qa_hpo.finetune import batching
from qa_hpo.finetune.evaluation import Forward, forward_pass
from qa_hpo.finetune.families import position_limit
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.models import load_model, load_tokenizer, quiet
from qa_hpo.finetune.predictor import QuestionAnswerer
from qa_hpo.finetune.preflight import preflight
from qa_hpo.finetune.records import FineTuned
from qa_hpo.finetune.run import fine_tune
from qa_hpo.finetune.training import collator
from qa_hpo.paths import CachePaths, RunPaths
from qa_hpo.results.export import Exported, write_export
from qa_hpo.squad.windows import Windows
from tiny import run_config, squad, study_file

MAX_LENGTH, STRIDE = 40, 8  # of the windows in tests/tiny.py
QUESTION = "who built the tower ?"
CONTEXT = "the tower was built by adela in 1702 . people like to see the stones in summer"


@dataclass
class Trial:
    """A family's trial, and what it was made of."""

    family: Family
    config: RunConfig
    inputs: Inputs
    tuned: FineTuned
    weights: dict[str, torch.Tensor]
    out: Path

    @property
    def checkpoint(self) -> str:
        return str(self.tuned.checkpoint)

    def windows(self, split: str) -> tuple[Windows, Any]:
        """The windows of a split, with their corpus."""
        data, start = self.config.data, str(self.config.starts["base"])
        is_train = split == "train"
        corpus = (
            self.inputs.train_corpus(data.train, None)
            if is_train
            else self.inputs.validation_corpus(data)
        )
        windows = self.inputs.windows(corpus, start, max_length=MAX_LENGTH, doc_stride=STRIDE)
        return windows, corpus


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def trial(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    quiet()
    family: Family = request.param
    folder = tmp_path_factory.mktemp(family.model_type)
    family.write(folder / "base")
    for name, corpus in {"train": squad(24, seed=1), "validation": squad(12, seed=2)}.items():
        (folder / f"{name}.json").write_text(json.dumps(corpus))
    config = run_config(folder, parameters={"epochs": 1, "batch_size": 8})
    inputs = Inputs(CachePaths(folder / "cache"))
    state: dict[str, torch.Tensor] = {}

    def remember(_: object) -> None:
        (resume,) = RunPaths(folder / "run").resume_states()
        state.update(load_file(resume / "model.safetensors"))

    tuned = fine_tune(config, folder / "run", inputs=inputs, on_epoch=remember)
    assert tuned.best is not None
    assert tuned.checkpoint is not None
    export = Exported(config, tuned.checkpoint, tuned.records, tuned.best, "a test", {})
    assert write_export(export, folder / "out")
    return Trial(family, config, inputs, tuned, state, folder / "out")


def rows(windows: Windows) -> Iterator[tuple[int, slice]]:
    for number in range(len(windows)):
        yield number, slice(windows.offsets[number], windows.offsets[number + 1])


def plain_encoding(tokenizer: Any, question: str, context: str) -> tuple[Any, list[int]]:
    """A question with its context, uncut, as the family lays them out; where the context stands."""
    on_right = tokenizer.padding_side == "right"
    pair = (question, context) if on_right else (context, question)
    encoded = tokenizer(*pair, return_tensors="pt", return_offsets_mapping=True, verbose=False)
    owner = 1 if on_right else 0
    return encoded, [i for i, of in enumerate(encoded.sequence_ids(0)) if of == owner]


def test_labels_decode_to_the_gold_answers(trial: Trial) -> None:
    windows, corpus = trial.windows("train")
    tokenizer = AutoTokenizer.from_pretrained(trial.out)
    answered = set()
    count = dict.fromkeys(range(len(corpus)), 0)
    for number, place in rows(windows):
        question = int(windows.question_index[number])
        encoded, context = plain_encoding(
            tokenizer, corpus.questions[question], corpus.context_of(question)
        )
        whole, offsets = (encoded[name][0].tolist() for name in ("input_ids", "offset_mapping"))
        # A window has room for so many tokens of context, and shares 8 with the next.
        room = MAX_LENGTH - (len(whole) - len(context))
        skipped = count[question] * (room - STRIDE)
        count[question] += 1
        first_token = context[0]
        kept = whole[:first_token] + [whole[i] for i in context[skipped : skipped + room]]
        kept += whole[context[-1] + 1 :]
        assert windows.input_ids[place].tolist() == kept
        first, last = int(windows.start_positions[number]), int(windows.end_positions[number])
        if kept[first] == tokenizer.cls_token_id:
            assert first == last
            continue
        text = corpus.context_of(question)
        found = text[offsets[first + skipped][0] : offsets[last + skipped][1]]
        answer, begin = corpus.answers[question][0]
        assert found.strip() == answer
        assert offsets[last + skipped][1] == begin + len(answer)
        answered.add(question)
    assert answered == {i for i, golds in enumerate(corpus.answers) if golds}
    assert max(count.values()) > 1


def test_the_export_holds_the_best_epochs_weights(trial: Trial) -> None:
    exported = load_file(trial.out / "model.safetensors")
    assert exported.keys() == trial.weights.keys()
    assert all(torch.equal(exported[name], trial.weights[name]) for name in exported)
    start = load_file(Path(str(trial.config.starts["base"])) / "model.safetensors")
    moved = [
        name
        for name, weight in exported.items()
        if (old := start.get(name.partition(".")[2])) is not None and not torch.equal(weight, old)
    ]
    assert len(moved) > len(start) / 2
    model, loading = AutoModelForQuestionAnswering.from_pretrained(
        trial.out, output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert model.config.model_type == trial.family.model_type


def one_window(windows: Windows, number: int) -> Windows:
    return dataclasses.replace(
        windows.take(np.array([number])), question_index=np.zeros(1, np.int32), questions=1
    )


def passed(model: Any, tokenizer: Any, windows: Windows, batch_size: int) -> Forward:
    return forward_pass(
        model,
        collator(windows, tokenizer),
        n_best=64,
        max_answer_length=30,
        batch_size=batch_size,
    )


def test_the_loss_of_a_window_is_the_plain_models(trial: Trial) -> None:
    windows, corpus = trial.windows("validation")
    ours, ours_tokenizer = load_model(str(trial.out)), load_tokenizer(str(trial.out))
    model = AutoModelForQuestionAnswering.from_pretrained(trial.out).eval()
    tokenizer = AutoTokenizer.from_pretrained(trial.out)
    single = np.flatnonzero(np.bincount(windows.question_index)[windows.question_index] == 1)
    assert len(single) >= 2
    for number in single:
        question = int(windows.question_index[number])
        encoded, _ = plain_encoding(
            tokenizer, corpus.questions[question], corpus.context_of(question)
        )
        encoded.pop("offset_mapping")
        assert set(encoded) == set(tokenizer.model_input_names)
        with torch.no_grad():
            outputs = model(
                **encoded,
                start_positions=torch.tensor([int(windows.start_positions[number])]),
                end_positions=torch.tensor([int(windows.end_positions[number])]),
            )
        loss = passed(ours, ours_tokenizer, one_window(windows, number), 1).loss
        assert loss == pytest.approx(outputs.loss.item(), abs=1e-5)


def test_padding_changes_no_answer(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    windows, _ = trial.windows("validation")
    model, tokenizer = load_model(trial.checkpoint), load_tokenizer(trial.checkpoint)
    alone = passed(model, tokenizer, windows, 1)
    monkeypatch.setattr(batching, "_ALIKE", 0.0)  # windows of any length in one batch
    together = passed(model, tokenizer, windows, len(windows))
    assert windows.lengths.min() < 0.8 * windows.lengths.max()
    assert together.loss == pytest.approx(alone.loss, abs=1e-5)
    assert trial.tuned.records[0].val_loss == pytest.approx(alone.loss, abs=1e-5)
    mine, theirs = alone.predictions, together.predictions
    np.testing.assert_allclose(mine.null_margin, theirs.null_margin, atol=1e-3)
    assert mine.char_start.tolist() == theirs.char_start.tolist()
    assert mine.char_end.tolist() == theirs.char_end.tolist()


def test_the_predictors_answer_is_the_plain_models_best_span(trial: Trial) -> None:
    answerer = QuestionAnswerer.from_pretrained(str(trial.out))
    answerer.max_length = LONGEST
    answerer.threshold = float("inf")
    found = answerer.answer(QUESTION, CONTEXT)
    model = AutoModelForQuestionAnswering.from_pretrained(trial.out).eval()
    tokenizer = AutoTokenizer.from_pretrained(trial.out)
    encoded, context = plain_encoding(tokenizer, QUESTION, CONTEXT)
    offsets = encoded.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        outputs = model(**encoded)
    start, end = outputs.start_logits[0].tolist(), outputs.end_logits[0].tolist()
    cls = encoded["input_ids"][0].tolist().index(tokenizer.cls_token_id)
    score, first, last = max(
        (start[s] + end[e], s, e) for s in context for e in context if s <= e < s + 30
    )
    text = CONTEXT[offsets[first][0] : offsets[last][1]]
    assert found.score == pytest.approx(score - (start[cls] + end[cls]), abs=1e-3)
    assert found.text == text.strip()
    assert CONTEXT[found.start : found.end] == found.text


def test_windows_as_long_as_the_model_can_take(trial: Trial) -> None:
    """Every position that the model has can be used, and no more are promised."""
    model, tokenizer = load_model(trial.checkpoint), load_tokenizer(trial.checkpoint)
    limit = position_limit(model.config)
    unlimited = {"DeBERTa-v3", "ModernBERT", "XLNet"}
    assert limit == (None if trial.family.name in unlimited else LONGEST)
    ids = torch.full((1, LONGEST + 1), tokenizer.convert_tokens_to_ids("a"))
    ids[0, [0, 5, 6, -1]] = tokenizer.sep_token_id
    with torch.no_grad():
        assert model(input_ids=ids[:, :LONGEST]).start_logits.shape == (1, LONGEST)
        if limit is None:
            assert model(input_ids=ids).start_logits.shape == (1, LONGEST + 1)
        else:
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=ids)


def test_the_cards_code_gives_the_predictors_answer(trial: Trial) -> None:
    card = (trial.out / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card.partition("transformers alone")[2], re.DOTALL)
    code, _, _ = code.partition("\n\nprint(")
    names: dict[str, Any] = {}
    exec(code.replace("path/to/this/folder", str(trial.out)), names)
    names["threshold"] = float("inf")
    answerer = QuestionAnswerer.from_pretrained(str(trial.out))
    answerer.max_length, answerer.threshold = LONGEST, float("inf")
    assert names["answer"](QUESTION, CONTEXT) == answerer.answer(QUESTION, CONTEXT).text


# ---------------------------------------------------------------------------- what a family needs


def written(family: Family, folder: Path, tokenizer: Any) -> str:
    family.write(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def named(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


@pytest.mark.parametrize("name", ["DistilBERT", "RoBERTa", "ModernBERT"])
def test_token_types_that_a_model_cannot_take_are_left_out(name: str, tmp_path: Path) -> None:
    """A tokenizer of no class of its own gives types 0 and 1, as converted ones often do."""
    generic = PreTrainedTokenizerFast(
        tokenizer_object=bert().backend_tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **bert().special_tokens_map,
    )
    checkpoint = written(named(name), tmp_path, generic)
    assert "token_type_ids" in AutoTokenizer.from_pretrained(checkpoint)("a", "b")
    assert load_tokenizer(checkpoint).model_input_names == ["input_ids", "attention_mask"]


@pytest.mark.parametrize(
    ("name", "types"), [("ALBERT", [0, 0, 0, 1, 1]), ("XLNet", [0, 0, 1, 1, 2])]
)
def test_token_types_that_transformers_keeps_back(
    name: str, types: list[int], tmp_path: Path
) -> None:
    family = named(name)
    checkpoint = written(family, tmp_path / "start", family.tokenizer())
    assert "token_type_ids" not in AutoTokenizer.from_pretrained(checkpoint)("1700", "1701")
    tokenizer = load_tokenizer(checkpoint)
    assert tokenizer("1700", "1701")["token_type_ids"] == types
    tokenizer.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again("1700", "1701")["token_type_ids"] == types


def test_a_tokenizer_that_says_what_its_model_takes_is_believed(tmp_path: Path) -> None:
    checkpoint = written(named("BERT"), tmp_path, without_token_types())
    assert load_tokenizer(checkpoint).model_input_names == ["input_ids", "attention_mask"]


def test_a_longformer_reads_a_context_with_a_separator_of_its_own(tmp_path: Path) -> None:
    checkpoint = written(named("Longformer"), tmp_path, roberta())
    plain = AutoModelForQuestionAnswering.from_pretrained(checkpoint).eval()
    ours = load_model(checkpoint).eval()
    odd = roberta()(QUESTION, "the tower</s> was old", return_tensors="pt")
    with pytest.raises(AssertionError, match="exactly three separator tokens"):
        plain(**odd)
    assert torch.isfinite(ours(**odd).start_logits).all()
    ours.load_state_dict(plain.state_dict())
    usual = roberta()(QUESTION, CONTEXT, return_tensors="pt")
    torch.testing.assert_close(ours(**usual).start_logits, plain(**usual).start_logits)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (FNetConfig(), "a fnet model takes no attention mask, so that a window's answer would"),
        (LxmertConfig(), "a lxmert model gives answers that are no spans of a text"),
        (LayoutLMv3Config(), "a layoutlmv3 model reads pages, with the place of each word"),
    ],
)
def test_families_that_cannot_do_it(config: Any, line: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    bert().save_pretrained(tmp_path)
    for load in (load_model, load_tokenizer):
        with pytest.raises(CheckpointError) as caught:
            load(str(tmp_path))
        assert str(caught.value).startswith(f"{tmp_path}: {line}")
        assert "\n" not in str(caught.value)


def test_a_decoder_has_no_token_for_no_answer(tmp_path: Path) -> None:
    GPT2Config().save_pretrained(tmp_path)
    PreTrainedTokenizerFast(
        tokenizer_object=roberta().backend_tokenizer, eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(tmp_path)
    with pytest.raises(WindowError, match="has no CLS token, whose logits stand for 'no answer'"):
        load_tokenizer(str(tmp_path))


def test_attention_that_a_family_lacks(tmp_path: Path) -> None:
    checkpoint = written(named("DeBERTa-v3"), tmp_path, named("DeBERTa-v3").tokenizer())
    assert load_model(checkpoint, attention="eager").config._attn_implementation == "eager"
    with pytest.raises(CheckpointError) as caught:
        load_model(checkpoint, attention="sdpa")
    assert str(caught.value) == (
        f"{checkpoint}: training.attention: a deberta-v2 model has no 'sdpa' in transformers; "
        "valid: auto, eager"
    )


def test_a_study_is_told_before_anything_is_built(
    tiny: Path, inputs: Inputs, tmp_path: Path
) -> None:
    checkpoint = written(named("DeBERTa-v3"), tmp_path / "start", named("DeBERTa-v3").tokenizer())
    file = study_file(tiny, tmp_path, starts={"base": checkpoint}, training={"attention": "sdpa"})
    with pytest.raises(CheckpointError) as caught:
        preflight(file, inputs)
    assert str(caught.value).startswith(f"starts.base: {checkpoint}: training.attention: a deberta")


def test_the_table_names_the_families_that_are_tested() -> None:
    page = Path(__file__).parents[2] / "docs" / "model-families.md"
    rows = [line.split("|")[1:-1] for line in page.read_text().splitlines() if line[:1] == "|"]
    cells = [[cell.strip() for cell in row] for row in rows[2:]]
    told = {row[0]: (row[1], row[3]) for row in cells}
    tested = {}
    for family in FAMILIES:
        name = MODEL_FOR_QUESTION_ANSWERING_MAPPING[type(family.config())].__name__
        tested[family.name] = (f"`{name}`", family.tokenizer().padding_side)
    assert told == tested
