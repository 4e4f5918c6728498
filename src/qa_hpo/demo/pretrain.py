"""Train the demo's tokenizer and its tiny BERT, whose weights ship with the package.

Run ``python -m qa_hpo.demo.pretrain`` (``--out FOLDER`` to write elsewhere). It takes about 15
minutes of one CPU core and is seeded; the result is written to ``qa_hpo/demo/base``.

From random weights, a model of this size needs hundreds of thousands of questions before it matches
a question to the right sentence. The pretraining does that part. Its text is generated like the
corpora, but speaks of other entities with other names, of some of the relations only, and in the
plain half of the wordings. These losses are minimised together:

* masked words: some of the context's tokens are to be restored, from the last layer;
* span selection: the first segment is a question, or a statement whose value is a mask, and the
  span that fills it is to be found in the context, from the last layer;
* copies: which tokens of the context occur in the first segment, from the first layer;
* topic: which sentences are about the entity of the first segment, from the last layer but one.

Span selection alone finds the relation soon and the entity hardly ever; with copies and topic, it
finds both within 1,500 steps. The text grows from a few short sentences to whole paragraphs. All
questions have an answer, and the heads are thrown away. What ships is a base model that has yet to
learn the corpora's wordings, the other relations, and when to give no answer.
"""

import argparse
import itertools
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from qa_hpo.demo import BASE
from qa_hpo.demo.articles import Style, compose, question, statement
from qa_hpo.demo.names import KINDS
from qa_hpo.demo.world import World

__all__ = ["Phase", "main", "pretrain", "train_tokenizer"]

_SEED = 7
_POSITIONS = 256
_VOCABULARY = 2000
_IGNORE = -100


@dataclass(frozen=True)
class Phase:
    """A stretch of the pretraining.

    Attributes:
        steps: Optimiser steps.
        style: How the text is written.
        batch_size: Questions per step.
    """

    steps: int
    style: Style
    batch_size: int = 32


# Both entities have nearly the same facts: the relation alone does not find the span.
_SHORT = Style(
    plain=True, pronouns=0.0, joins=0.0, denials=0.0, colour=0.0, overlap=0.9, facts=(1, 2)
)
PHASES = (
    Phase(2600, _SHORT),
    Phase(3600, Style(plain=True, overlap=0.8, facts=(2, 4))),
)


@dataclass(frozen=True)
class Sample:
    """What the model reads and finds; places are in characters of the context.

    Attributes:
        first: The question, or the statement with a mask.
        context: The text.
        start: Where the span starts that is to be selected.
        end: Where it ends.
        topic: The sentences about the entity of the first segment.
    """

    first: str
    context: str
    start: int
    end: int
    topic: tuple[tuple[int, int], ...]


def samples(rng: random.Random, style: Style) -> Iterator[Sample]:
    """Generate samples without end.

    Args:
        rng: The source of chance.
        style: How the text is written.
    """
    for count in itertools.count():
        if count % 500 == 0:
            # Names are unique within a world, and there are only so many.
            world = World(rng, pretraining=True)
        kind = rng.choice(KINDS)
        entities = [world.entity(kind), world.entity(kind)]
        paragraph = compose(rng, world, entities, style)
        for fact in rng.sample(paragraph.facts, min(3, len(paragraph.facts))):
            if rng.random() < 0.6:
                first = question(rng, fact.entity, fact.relation, style)
            else:
                cloze = statement(rng, world, fact.entity, fact.relation, style)
                first = cloze.text[: cloze.start] + "[MASK]" + cloze.text[cloze.end :]
            topic = tuple((a, b) for a, b, entity in paragraph.topics if entity is fact.entity)
            end = fact.start + len(fact.text)
            yield Sample(first, paragraph.context, fact.start, end, topic)


def _empty_tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    """Make a lower-casing WordPiece tokenizer with a vocabulary and no special tokens."""
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    # Accents are dropped for the vocabulary only: offsets still count the original characters.
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def train_tokenizer(seed: int = _SEED) -> PreTrainedTokenizerFast:
    """Train a lower-casing WordPiece tokenizer on generated text."""
    rng = random.Random(f"tokenizer {seed}")
    stream = samples(rng, Style())
    texts = [f"{s.first} {s.context}" for s, _ in zip(stream, range(20_000), strict=False)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    printable = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    # Every character may also continue a word, so that an unknown token is rare.
    pieces = [f"##{c}" for c in printable if c.isalnum()] + [f"##{n:02d}" for n in range(100)]
    learner = _empty_tokenizer({})
    # Given as special tokens, the pieces get fixed numbers, by which the trainer breaks its ties.
    trainer = trainers.WordPieceTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=special + pieces,
        initial_alphabet=printable,
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learned = sorted(set(learner.get_vocab()) - set(special))
    vocabulary = {piece: i for i, piece in enumerate(special + learned)}
    tokenizer = _empty_tokenizer(vocabulary)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(t, vocabulary[t]) for t in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        model_max_length=_POSITIONS,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _batches(
    rng: random.Random, phase: Phase, tokenizer: PreTrainedTokenizerFast
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the batches of a phase, each of samples of like length."""
    stream = samples(rng, phase.style)
    pooled = 8
    for _ in range(math.ceil(phase.steps / pooled)):
        pool = [next(stream) for _ in range(pooled * phase.batch_size)]
        pool.sort(key=lambda s: len(s.first) + len(s.context))
        order = list(range(pooled))
        rng.shuffle(order)
        for i in order:
            chunk = pool[i * phase.batch_size : (i + 1) * phase.batch_size]
            yield _encode(rng, chunk, tokenizer)


def _encode(
    rng: random.Random, chunk: list[Sample], tokenizer: PreTrainedTokenizerFast
) -> dict[str, torch.Tensor]:
    """Tokenise samples, mark their spans and mask a tenth of their contexts."""
    encoded = tokenizer(
        [s.first for s in chunk],
        [s.context for s in chunk],
        truncation="only_second",
        padding=True,
        max_length=_POSITIONS,
        return_offsets_mapping=True,
        return_tensors="pt",
    )
    places = encoded.pop("offset_mapping")
    starts = [encoded.char_to_token(i, s.start, 1) or 0 for i, s in enumerate(chunk)]
    ends = [encoded.char_to_token(i, s.end - 1, 1) or 0 for i, s in enumerate(chunk)]
    ids, segment = encoded["input_ids"], encoded["token_type_ids"]
    # (samples, tokens): words of the context outside the answer may be masked.
    column = torch.arange(ids.shape[1])
    start, end = torch.tensor(starts), torch.tensor(ends)
    inside = (column >= start[:, None]) & (column <= end[:, None])
    draw = torch.rand(ids.shape, generator=torch.Generator().manual_seed(rng.getrandbits(32)))
    context = (segment == 1) & (ids != tokenizer.sep_token_id)
    question_ids = ids.masked_fill(segment == 1, -1)
    topic = torch.zeros_like(context)
    for i, sample in enumerate(chunk):
        for first, last in sample.topic:
            topic[i] |= (places[i, :, 0] >= first) & (places[i, :, 1] <= last)
    masked = (draw < 0.1) & context & ~inside
    return {
        "input_ids": ids.masked_fill(masked, tokenizer.mask_token_id),
        "token_type_ids": segment,
        "attention_mask": encoded["attention_mask"],
        "labels": ids.masked_fill(~masked, _IGNORE),
        "start": start,
        "end": end,
        "context": context,
        "copied": (ids[:, :, None] == question_ids[:, None, :]).any(-1).float(),
        "topic": topic.float(),
    }


class Heads(torch.nn.Module):
    """What is trained on top of the model and thrown away.

    Args:
        width: The model's hidden size.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.span = torch.nn.Linear(width, 2)
        self.copied = torch.nn.Linear(width, 1)
        self.topic = torch.nn.Linear(width, 1)


def _losses(
    model: BertForMaskedLM, heads: Heads, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the loss of a batch, and its parts with the share of spans found."""
    layers = model.bert(
        input_ids=batch["input_ids"],
        token_type_ids=batch["token_type_ids"],
        attention_mask=batch["attention_mask"],
        output_hidden_states=True,
    ).hidden_states
    chosen = batch["labels"] != _IGNORE
    # Only the masked positions go through the vocabulary: (masked, words).
    entropy = torch.nn.functional.cross_entropy
    words = entropy(model.cls(layers[-1][chosen]), batch["labels"][chosen])
    logits = heads.span(layers[-1]).masked_fill(batch["attention_mask"][..., None] == 0, -1e4)
    first, last = logits.unbind(-1)
    span = (entropy(first, batch["start"]) + entropy(last, batch["end"])) / 2
    found = (first.argmax(-1) == batch["start"]) & (last.argmax(-1) == batch["end"])
    context = batch["context"]
    binary = torch.nn.functional.binary_cross_entropy_with_logits
    copied = binary(heads.copied(layers[1])[..., 0][context], batch["copied"][context])
    topic = binary(heads.topic(layers[-2])[..., 0][context], batch["topic"][context])
    parts = {"words": words, "copied": copied, "topic": topic, "span": span}
    shown = {name: part.item() for name, part in parts.items()}
    return span + topic + copied + 0.1 * words, shown | {"found": found.float().mean().item()}


def _model(tokenizer: PreTrainedTokenizerFast) -> BertForMaskedLM:
    """Make the tiny BERT with random weights; without dropout, for it can hardly overfit here."""
    return BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=192,
            max_position_embeddings=_POSITIONS,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.08,
        )
    )


def pretrain(
    phases: tuple[Phase, ...] = PHASES, *, seed: int = _SEED, learning_rate: float = 1e-3
) -> tuple[BertForMaskedLM, PreTrainedTokenizerFast]:
    """Train the tokenizer and the model, with one line of progress every 100 steps.

    Args:
        phases: What is trained on.
        seed: Decides text, initialisation and masks.
        learning_rate: The peak; after a warmup of 300 steps it falls to zero as a cosine.

    Returns:
        The model with its masked-word head, and the tokenizer. The span head is gone.
    """
    torch.manual_seed(seed)
    rng = random.Random(f"pretraining {seed}")
    tokenizer = train_tokenizer(seed)
    model = _model(tokenizer)
    heads = Heads(model.config.hidden_size)
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98))
    total = sum(phase.steps for phase in phases)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / 300, 0.5 + 0.5 * math.cos(math.pi * min(step / total, 1))),
    )
    began, step = time.monotonic(), 0
    for phase in phases:
        for batch in _batches(rng, phase, tokenizer):
            loss, parts = _losses(model, heads, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            step += 1
            if step % 100 == 0:
                shown = ", ".join(f"{name} {value:.3f}" for name, value in parts.items())
                print(
                    f"step {step} of {total}: {shown}, {time.monotonic() - began:.0f} s", flush=True
                )
    return model, tokenizer


def main() -> None:
    """Pretrain and write the checkpoint."""
    parser = argparse.ArgumentParser(description="Pretrain the demo's base checkpoint.")
    parser.add_argument("--out", type=Path, default=BASE, help="folder (default: the package's)")
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    model, tokenizer = pretrain()
    # The wide initialisation helps a small model to start; a fresh head wants the usual one.
    model.config.initializer_range = 0.02
    model.bert.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"Wrote {out}.")


if __name__ == "__main__":
    main()
