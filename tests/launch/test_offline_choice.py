"""What the comparison of agents by a log makes of estimates that tell no interval."""

import math

from launch.benchmarks import offline, offline_choice, offline_report


def test_an_estimate_without_an_interval_may_be_off_by_anything():
    estimate = {"name": offline.ESTIMATOR, "value": 1.0, "low": None, "high": None}
    report = {"estimates": [estimate], "verdict": {"trust": "high", "reasons": []}}
    result = offline.by_log([report, report])
    assert result.log == (-math.inf, math.inf)
    sure = offline_choice.Result((0.0, 0.0), (-0.1, 0.1))
    lead = offline_choice.difference({"bc": sure, "iql": result}, "iql", "bc")
    assert (lead.value, lead.low, lead.high) == (1.0, -math.inf, math.inf)


def test_results_without_a_row_are_told(tmp_path, capsys):
    (tmp_path / "x.json").write_text('{"rows": []}')
    assert offline_report.main([str(tmp_path / "x.json")]) == 2
    assert "it holds no row" in capsys.readouterr().err
