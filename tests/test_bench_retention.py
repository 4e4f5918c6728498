"""The benchmark of retention methods measures what it says, and its page says what was measured."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is not installed

from bench import retention
from bench.progressive import Progressive, inference_ratio
from bench.retention import Kept

from qa_hpo.demo import write_demo
from qa_hpo.finetune.models import load_model, quiet

LIMIT = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    quiet()
    folder = tmp_path_factory.mktemp("retention")
    write_demo(folder / "demo")
    return folder


def test_a_seed_gives_the_same_scores_and_a_method_others(folder):
    jobs = [({"method": "none"}, 1), ({"method": "none"}, 1), ({"method": "freeze"}, 1)]
    first, again, frozen = (retention._measure(folder, LIMIT, job) for job in jobs)
    assert first == again
    assert first != frozen
    for kept in (first, frozen):
        assert 0 <= kept.new_f1 <= 100
        # What is left and what was lost make what the start had: the same start, the same sum.
        assert kept.old_f1 + kept.drop == pytest.approx(first.old_f1 + first.drop)


def test_a_second_column_leaves_the_first_as_it_is(folder):
    kept = retention._measure(folder, LIMIT, ({"method": retention.PROGRESSIVE}, 1))
    assert 0 <= kept.new_f1 <= 100
    (start,) = (folder / "cache" / "starts").glob("v1-*/")
    model = load_model(str(start)).eval()
    inputs = {"input_ids": torch.arange(1, 9)[None], "attention_mask": torch.ones(1, 8)}
    with torch.no_grad():
        before = model(**inputs).start_logits
        Progressive().prepare(model, 1)
        after = model.eval()(**inputs).start_logits
    assert not torch.allclose(before, after)
    weights = load_file(start / "model.safetensors")
    own = dict(model.named_parameters())
    assert all(torch.equal(own[name], weights[name]) for name in weights if name in own)
    trained = [name for name, weight in own.items() if weight.requires_grad]
    assert trained
    assert all(name.startswith("column.") for name in trained)
    assert inference_ratio(str(start), inputs, times=2) > 0


def test_the_page_names_the_methods_that_keep_half():
    def row(method, new, drop):
        return {
            "method": method,
            "new_f1": new,
            "old_f1": 80 - drop,
            "drop": drop,
            "drop_no_null": 1.0,
            "step_time_ratio": 1.0,
            "memory_ratio": 1.0,
        }

    rows = [
        row("none", 80.0, 10.0),
        row("keeps", 79.1, 5.0),
        row("learns too little", 78.9, 1.0),
        row("keeps too little", 81.0, 5.1),
        row(retention.PROGRESSIVE, 80.0, 0.0),
    ]
    kept = [[Kept(80.0, 70.0, drop, 1.0) for drop in (1.0, 3.0)]] * len(rows)
    page = retention._body(rows, kept, 2, (3, "a model", 1.5))
    assert "at most 1 point below: `keeps`." in " ".join(page.split())
    assert "Without a method 10.0 points are forgotten, of which 9.0 are abstention alone." in page
    assert "± 1.41" in page
    assert "1.50x the time" in page
