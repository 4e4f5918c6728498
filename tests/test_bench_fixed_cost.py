"""A trial's fixed cost, on the demo's model and a few questions."""

from pathlib import Path

from bench import fixed_cost, report
from bench.training_data import TrainingMaterial

from qa_hpo.demo import BASE, write_demo
from qa_hpo.search import objective


def test_a_run(tmp_path: Path) -> None:
    write_demo(tmp_path / "demo")
    corpora = [str(tmp_path / "demo" / f"{name}-v2.json") for name in ("train", "validation")]
    material = TrainingMaterial("a few", str(BASE), *corpora, 16, 16, 128, 32, 1e-4)
    kept = objective._EpochTeller._keep
    finding = fixed_cost.run(2, material=material)
    parts = finding.fields["parts"]
    assert list(parts) == list(fixed_cost.PARTS)
    assert all(seconds > 0 for seconds in parts.values())
    # The sum of rounded parts.
    assert abs(sum(parts.values()) - finding.fields["seconds"]) < 0.001 * len(parts)
    assert objective._EpochTeller._keep is kept
    report.write_finding(tmp_path, "fixed_cost", finding)
