"""A tiny checkpoint of each model family, with a fast tokenizer of the family's own kind.

The tokenizers are the families' own classes around a vocabulary that is made here. Those of
WordPiece and Unigram are put together, since training gives another one every time; byte-level BPE
is trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AlbertTokenizer,
    AutoConfig,
    AutoModel,
    BertTokenizer,
    DebertaV2Tokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
    XLNetTokenizer,
)

from tiny import WORDS

LONGEST = 64  # tokens that each model can take


def _letters() -> list[str]:
    return sorted({letter for word in WORDS for letter in word})


def bert() -> PreTrainedTokenizerFast:
    """WordPiece: [CLS] question [SEP] context [SEP], token types 0 and 1."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = dict.fromkeys([*specials, *WORDS, *_letters(), *(f"##{c}" for c in _letters())])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return BertTokenizer(vocab=vocabulary, model_max_length=LONGEST)


def without_token_types() -> PreTrainedTokenizerFast:
    """The same for a model that takes no token types, as its configuration says on the hub."""
    tokenizer = bert()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=LONGEST,
        **tokenizer.special_tokens_map,
    )


@cache
def _bpe(specials: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(vocabulary, merges) of trained byte-level BPE; the special tokens come first."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(WORDS)], trainer)
    model = json.loads(backend.to_str())["model"]
    return model["vocab"], [(first, second) for first, second in model["merges"]]


def roberta() -> PreTrainedTokenizerFast:
    """Byte-level BPE: <s> question </s></s> context </s>."""
    vocabulary, merges = _bpe(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
    return RobertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=LONGEST)


def modernbert() -> PreTrainedTokenizerFast:
    """Byte-level BPE without a class of its own: [CLS] question [SEP] context [SEP]."""
    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocabulary, merges = _bpe(specials)
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=LONGEST,
    )


def _unigram(*specials: str) -> list[tuple[str, float]]:
    """A vocabulary of the words, dearer letters, and the mark of a word's beginning."""
    pieces = [(f"▁{word}", -4.0) for word in WORDS] + [("▁", -5.0)]
    letters = [(letter, -7.0) for letter in _letters()]
    return [(special, 0.0) for special in specials] + pieces + letters


def xlm_roberta() -> PreTrainedTokenizerFast:
    """Unigram: <s> question </s></s> context </s>."""
    vocabulary = _unigram("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    return XLMRobertaTokenizer(vocab=vocabulary, model_max_length=LONGEST)


def albert() -> PreTrainedTokenizerFast:
    """Unigram, lower case: [CLS] question [SEP] context [SEP], token types 0 and 1."""
    vocabulary = _unigram("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
    return AlbertTokenizer(vocab=vocabulary, model_max_length=LONGEST)


def deberta_v2() -> PreTrainedTokenizerFast:
    """Unigram: [CLS] question [SEP] context [SEP], token types that the model does not look at."""
    vocabulary = _unigram("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")
    return DebertaV2Tokenizer(vocab=vocabulary, model_max_length=LONGEST)


def xlnet() -> PreTrainedTokenizerFast:
    """Unigram, padding on the left: context <sep> question <sep> <cls>, three token types."""
    vocabulary = _unigram("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>")
    return XLNetTokenizer(vocab=vocabulary, model_max_length=LONGEST)


@dataclass(frozen=True)
class Family:
    """A model family as it is tested.

    Attributes:
        name: As people call it.
        model_type: As transformers calls it.
        tokenizer: Makes its tokenizer.
        options: Of its configuration, beyond `SMALL`; None takes one out.
    """

    name: str
    model_type: str
    tokenizer: Callable[[], PreTrainedTokenizerFast]
    options: dict[str, Any] = field(default_factory=dict)

    def config(self) -> Any:
        """Return the configuration of a tiny model."""
        tokenizer = self.tokenizer()
        ids = {
            f"{name}_token_id": getattr(tokenizer, f"{name}_token_id")
            for name in ("pad", "cls", "sep", "bos", "eos")
        }
        sizes = {k: v for k, v in (SMALL | self.options).items() if v is not None}
        return AutoConfig.for_model(self.model_type, vocab_size=len(tokenizer), **ids, **sizes)

    def write(self, folder: Path) -> Path:
        """Write a checkpoint with random weights, the same each time, without a QA head."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            AutoModel.from_config(self.config()).save_pretrained(folder)
        self.tokenizer().save_pretrained(folder)
        return folder


SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": LONGEST,
    # Large enough for logits to differ by more than the noise of float32.
    "initializer_range": 0.2,
}
# Their first position is that after the padding's id.
SHIFTED: dict[str, Any] = {"max_position_embeddings": LONGEST + 2, "type_vocab_size": 1}
FAMILIES = [
    Family("BERT", "bert", bert),
    Family(
        "DistilBERT",
        "distilbert",
        without_token_types,
        {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    ),
    Family("RoBERTa", "roberta", roberta, SHIFTED),
    Family("XLM-R", "xlm-roberta", xlm_roberta, SHIFTED),
    Family("ELECTRA", "electra", bert, {"embedding_size": 16}),
    Family("ALBERT", "albert", albert, {"embedding_size": 16}),
    Family(
        "DeBERTa-v3",
        "deberta-v2",
        deberta_v2,
        {
            "type_vocab_size": 0,
            "relative_attention": True,
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
        },
    ),
    Family(
        "ModernBERT",
        "modernbert",
        modernbert,
        {"local_attention": 16, "global_attn_every_n_layers": 2},
    ),
    Family("Longformer", "longformer", roberta, SHIFTED | {"attention_window": [8, 8]}),
    Family(
        "XLNet",
        "xlnet",
        xlnet,
        {"max_position_embeddings": None, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64},
    ),
]
