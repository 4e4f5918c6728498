"""The Fisher information of a start: by hand, by transformers' own loss, and kept."""

import math
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from old_data import old_data, write_start

from qa_hpo.errors import CheckpointError, OutOfMemoryError
from qa_hpo.finetune.batching import WindowCollator
from qa_hpo.finetune.evaluation import span_loss
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.models import load_model
from qa_hpo.finetune.retention import fisher
from qa_hpo.finetune.retention.fisher import diagonal_fisher, squared_gradients
from qa_hpo.squad.windows import Windows


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_start(tmp_path_factory.mktemp("start") / "checkpoint")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many windows each computation was of."""
    seen: list[int] = []
    own = fisher.squared_gradients

    def counting(model: Any, collator: Any, indices: Any, check: Any) -> Any:
        seen.append(len(indices))
        return own(model, collator, indices, check)

    monkeypatch.setattr(fisher, "squared_gradients", counting)
    return seen


class TwoWeights(torch.nn.Module):
    """A token's start logit is ``a`` times its number, its end logit ``b`` times its number."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(a))
        self.b = torch.nn.Parameter(torch.tensor(b))
        self.unused = torch.nn.Parameter(torch.ones(3))
        self.frozen = torch.nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        assert len(input_ids) == 1
        assert not self.training
        ids = input_ids.float() * self.frozen
        return SimpleNamespace(start_logits=self.a * ids, end_logits=self.b * ids)


def two_windows() -> WindowCollator:
    """Two windows of the tokens 0 and 1; an answer is from 1 to 0, the other from 0 to 0."""
    none = np.full(4, -1, np.int32)
    windows = Windows(
        input_ids=np.array([0, 1, 0, 1], np.int32),
        token_type_ids=None,
        char_start=none,
        char_end=none,
        offsets=np.array([0, 2, 4]),
        question_index=np.array([0, 1], np.int32),
        cls_index=np.zeros(2, np.int16),
        start_positions=np.array([1, 0], np.int16),
        end_positions=np.array([0, 0], np.int16),
        questions=2,
    )
    return WindowCollator(windows, 0, left=False, multiple=8)


def test_two_weights_by_hand() -> None:
    # Token 1 is the start with probability 1 / (1 + exp(-ln 3)) = 3/4, and the end with 1/2. The
    # loss is the mean of both, so its gradient is (probability - 1 if token 1 is right) / 2:
    #   a: (3/4 - 1) / 2 = -1/8 and (3/4 - 0) / 2 = 3/8; their squares' mean is (1 + 9) / 128
    #   b: (1/2 - 0) / 2 = 1/4 twice; 1/16
    model = TwoWeights(math.log(3), 0.0)
    found = squared_gradients(model, two_windows(), [0, 1])
    assert set(found) == {"a", "b", "unused"}
    assert found["a"].item() == pytest.approx(10 / 128, rel=1e-6)
    assert found["b"].item() == pytest.approx(1 / 16, rel=1e-6)
    assert found["unused"].tolist() == [0.0, 0.0, 0.0]
    assert not found["a"].requires_grad
    assert model.a.grad is None
    assert squared_gradients(model, two_windows(), [1])["a"].item() == pytest.approx(9 / 64)


def test_it_is_not_the_square_of_the_batches_gradient() -> None:
    model = TwoWeights(math.log(3), 0.0)
    found = squared_gradients(model, two_windows(), [0, 1])
    batch = two_windows()([0, 1])
    ids = batch["input_ids"].float()
    labels = (batch["start_positions"], batch["end_positions"])
    losses = span_loss(model.a * ids, model.b * ids, batch["attention_mask"], *labels)
    losses.mean().backward()
    # ((-1/8 + 3/8) / 2) ** 2 is less than half of it for a; b's windows agree.
    assert model.a.grad.item() ** 2 == pytest.approx(1 / 64, rel=1e-6)
    assert found["a"].item() / model.a.grad.item() ** 2 == pytest.approx(5.0, rel=1e-5)
    assert found["b"].item() == pytest.approx(model.b.grad.item() ** 2, rel=1e-6)


def test_a_transformer_by_its_own_loss(
    tiny: Path, inputs: Inputs, start: Path, tmp_path: Path
) -> None:
    old = old_data(tiny, inputs, start, tmp_path, questions=6)
    found = diagonal_fisher(old)
    model = load_model(str(start), attention="eager").eval()
    windows = old.windows
    expected = {name: torch.zeros_like(w) for name, w in model.named_parameters()}
    for window in range(len(windows)):
        tokens = slice(int(windows.offsets[window]), int(windows.offsets[window + 1]))
        model.zero_grad()
        model(
            input_ids=torch.from_numpy(windows.input_ids[tokens].astype(np.int64))[None],
            token_type_ids=torch.from_numpy(windows.token_type_ids[tokens].astype(np.int64))[None],
            start_positions=torch.tensor([int(windows.start_positions[window])]),
            end_positions=torch.tensor([int(windows.end_positions[window])]),
        ).loss.backward()
        for name, weight in model.named_parameters():
            expected[name] += weight.grad**2 / len(windows)
    assert set(found) == set(expected)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-3, atol=1e-9)
        assert found[name].dtype is torch.float32
    assert found["qa_outputs.weight"].min() > 0


def test_it_is_computed_once(
    tiny: Path, inputs: Inputs, start: Path, tmp_path: Path, computed: list[int]
) -> None:
    old = old_data(tiny, inputs, start, tmp_path)
    drawn = torch.get_rng_state()
    first = diagonal_fisher(old)
    again = diagonal_fisher(old)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert computed == [len(old.windows)]
    assert all(torch.equal(first[name], again[name]) for name in first)
    # What is read is the file.
    (file,) = tmp_path.glob("*.safetensors")
    file.rename(tmp_path / "elsewhere")
    diagonal_fisher(old)
    assert len(computed) == 2


def test_a_sample_and_its_seed(
    tiny: Path, inputs: Inputs, start: Path, tmp_path: Path, computed: list[int]
) -> None:
    old = old_data(tiny, inputs, start, tmp_path)
    found = [diagonal_fisher(old, sample=5, seed=seed) for seed in (0, 1)]
    assert computed == [5, 5]
    name = "qa_outputs.weight"
    assert not torch.equal(found[0][name], found[1][name])
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    again = diagonal_fisher(old, sample=5, seed=0)
    assert all(torch.equal(found[0][name], again[name]) for name in again)
    whole = diagonal_fisher(old, sample=len(old.windows))
    assert not torch.equal(whole[name], again[name])


def test_a_damaged_file_is_computed_again(
    tiny: Path, inputs: Inputs, start: Path, tmp_path: Path, computed: list[int]
) -> None:
    old = old_data(tiny, inputs, start, tmp_path)
    first = diagonal_fisher(old)
    (file,) = tmp_path.glob("*.safetensors")
    whole = file.read_bytes()
    for damaged in (whole[:-100], b"something else"):
        file.write_bytes(damaged)
        again = diagonal_fisher(old)
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert file.read_bytes() == whole
    assert len(computed) == 3
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".lock"}


def test_who_comes_at_once_waits_for_the_first(
    tiny: Path, inputs: Inputs, start: Path, tmp_path: Path, computed: list[int]
) -> None:
    old = old_data(tiny, inputs, start, tmp_path)
    found: list[dict[str, torch.Tensor]] = []
    threads = [
        threading.Thread(target=lambda: found.append(diagonal_fisher(old))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(computed) == 1
    assert len(found) == 3
    assert all(torch.equal(one[name], found[0][name]) for one in found for name in one)


class EndedError(Exception):
    """What a check raises."""


def test_a_check_ends_the_wait_and_the_work(
    tiny: Path, inputs: Inputs, start: Path, tmp_path: Path, computed: list[int]
) -> None:
    calls = 0
    last = 2

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == last:
            raise EndedError

    old = old_data(tiny, inputs, start, tmp_path, check=check)
    with pytest.raises(EndedError):
        diagonal_fisher(old)
    assert computed == [len(old.windows)]  # the lock, then the first window
    assert not list(tmp_path.glob("*.safetensors"))
    (lock,) = tmp_path.glob("*.lock")
    calls = 0
    with FileLock(lock), pytest.raises(EndedError):
        diagonal_fisher(old)
    assert len(computed) == 1
    calls, last = 0, -1
    diagonal_fisher(old)
    assert calls == 1 + len(old.windows)


def test_a_start_without_a_head_has_none(tiny: Path, inputs: Inputs, tmp_path: Path) -> None:
    old = old_data(tiny, inputs, tiny / "base", tmp_path)
    with pytest.raises(CheckpointError, match="has no trained question-answering head"):
        diagonal_fisher(old)


def test_no_memory_for_a_window(tiny: Path, inputs: Inputs, start: Path, tmp_path: Path) -> None:
    class Full(WindowCollator):
        def __call__(self, indices: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def padded(windows: Windows) -> WindowCollator:
        return Full(windows, 0, left=False)

    old = old_data(tiny, inputs, start, tmp_path, padded=padded)
    with pytest.raises(OutOfMemoryError, match="no memory is left for its gradients"):
        diagonal_fisher(old)


def test_a_start_that_is_no_numbers(tiny: Path, inputs: Inputs, tmp_path: Path) -> None:
    broken = write_start(tmp_path / "broken")
    model = load_model(str(broken))
    with torch.no_grad():
        model.get_parameter("qa_outputs.weight").fill_(torch.nan)
    model.save_pretrained(broken)
    old = old_data(tiny, inputs, broken, tmp_path / "cache")
    with pytest.raises(CheckpointError, match="gradients on the old task are not finite"):
        diagonal_fisher(old)
    assert not list((tmp_path / "cache").glob("*.safetensors"))
