"""Several workers on one device: the smallest search that can be timed."""

from bench import report, workers


def test_a_run(tmp_path):
    finding = workers.run(1, trials=2, workers=(1, 2))
    one, two = finding.fields["rows"]
    assert (one["workers"], two["workers"]) == (1, 2)
    assert (one["ratio"], one["min"], one["max"]) == (1.0, 1.0, 1.0)
    assert one["trials_per_hour"] > 0
    assert abs(two["ratio"] - two["trials_per_hour"] / one["trials_per_hour"]) < 0.02
    report.write_finding(tmp_path, "workers_per_device", finding)
