"""The packaged checkpoint is small, complete and has no question-answering head."""

import json

import pytest
from safetensors import safe_open

from qa_hpo.demo import BASE


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(BASE)


def test_at_most_4_mb():
    assert {p.name for p in BASE.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(p.stat().st_size for p in BASE.iterdir()) <= 4_000_000


def test_no_head_and_no_trace_of_the_machine_that_made_it():
    with safe_open(BASE / "model.safetensors", framework="pt") as weights:
        assert not [key for key in weights.keys() if "qa_outputs" in key]  # noqa: SIM118
    for name in ("config.json", "tokenizer_config.json"):
        assert "name_or_path" not in json.loads((BASE / name).read_text(encoding="utf-8"))


def test_loads_as_model_and_with_a_fresh_head():
    import torch
    from transformers import AutoModel, AutoModelForQuestionAnswering

    model = AutoModel.from_pretrained(BASE)
    assert 3 <= model.config.num_hidden_layers <= 4
    assert model.config.max_position_embeddings >= 256
    heads = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        answering = AutoModelForQuestionAnswering.from_pretrained(BASE, dtype=torch.float32)
        assert next(answering.parameters()).dtype == torch.float32
        heads.append(answering.qa_outputs.weight)
        body = answering.bert.encoder.layer[0].output.dense.weight
        assert torch.equal(body, model.encoder.layer[0].output.dense.weight)
    assert not torch.equal(*heads)


def test_tokenizer(tokenizer):
    assert tokenizer.is_fast
    assert tokenizer.model_max_length >= 256
    assert tokenizer.padding_side == "right"
    tokens = [
        tokenizer.cls_token, tokenizer.sep_token, tokenizer.pad_token,
        tokenizer.mask_token, tokenizer.unk_token,
    ]  # fmt: skip
    assert tokens == ["[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"]
    pair = tokenizer("Who?", "Vera did.")
    assert pair["token_type_ids"][0] == 0
    assert pair["token_type_ids"][-1] == 1
    assert pair["input_ids"][0] == tokenizer.cls_token_id


def test_offsets_point_into_the_original_text(tokenizer, corpora):
    for article in corpora["validation-v2"]["data"]:
        for paragraph in article["paragraphs"]:
            context = paragraph["context"]
            encoded = tokenizer(context)
            assert tokenizer.unk_token_id not in encoded["input_ids"]
            for qa in paragraph["qas"]:
                for answer in qa["answers"]:
                    start = answer["answer_start"]
                    end = start + len(answer["text"])
                    first, last = encoded.char_to_token(start), encoded.char_to_token(end - 1)
                    assert encoded.token_to_chars(first).start == start
                    assert encoded.token_to_chars(last).end == end


def test_contexts_fit_the_study(tokenizer, corpora):
    lengths = sorted(
        len(tokenizer(p["context"], add_special_tokens=False)["input_ids"])
        for a in corpora["train-v2"]["data"]
        for p in a["paragraphs"]
    )
    assert 65 <= lengths[len(lengths) // 2] <= 115
    assert lengths[-1] <= 200
    # Some, with their question, do not fit a window of 128 tokens.
    assert sum(n > 115 for n in lengths) > 10


def test_a_fresh_head_learns_within_seconds(tokenizer, corpora):
    """The checkpoint already matches a question to its sentence; random weights do not."""
    import torch
    from transformers import AutoModelForQuestionAnswering

    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_pretrained(BASE, dtype=torch.float32)
    questions = [
        (qa["question"], p["context"], qa["answers"][0])
        for a in corpora["train-v1"]["data"]
        for p in a["paragraphs"]
        for qa in p["qas"]
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    found = []
    for step in range(8):
        chosen = questions[16 * step : 16 * step + 16]
        encoded = tokenizer(
            [q for q, _, _ in chosen],
            [c for _, c, _ in chosen],
            padding=True,
            return_tensors="pt",
        )
        start = [encoded.char_to_token(i, a["answer_start"], 1) for i, (*_, a) in enumerate(chosen)]
        output = model(
            **encoded, start_positions=torch.tensor(start), end_positions=torch.tensor(start)
        )
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append((output.start_logits.argmax(-1) == torch.tensor(start)).float().mean().item())
    assert sum(found[-4:]) / 4 > 0.3
