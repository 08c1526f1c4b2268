import json
import math

import pytest

from rljax.config import UsageError
from rljax.metrics import jsonl


def write(path, steps, resume_step=0):
    writer = jsonl.JsonlWriter(path, resume_step)
    for step in steps:
        writer.write(step, {"loss/policy": step / 10})
    writer.close()


def steps(path):
    return [line["step"] for line in jsonl.read(path)]


def test_each_write_is_one_line_of_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [5, 10])
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert [(x["step"], x["loss/policy"]) for x in lines] == [(5, 0.5), (10, 1.0)]
    assert 0 <= lines[0]["time"] <= lines[1]["time"] < 60


def test_a_line_is_in_the_file_as_soon_as_it_is_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = jsonl.JsonlWriter(path)
    writer.write(1, {})
    assert steps(path) == [1]  # what a kill now would leave
    writer.close()


def test_resuming_drops_the_steps_that_are_taken_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [10, 20, 30, 40])
    write(path, [30, 40, 50], resume_step=20)  # the last checkpoint was at 20
    assert steps(path) == [10, 20, 30, 40, 50]


def test_resuming_before_the_first_checkpoint_starts_the_file_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [10, 20])
    write(path, [10])
    assert steps(path) == [10]


def test_a_half_written_last_line_is_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "time": 1.0}\n{"step": 20, "ti')
    write(path, [20], resume_step=15)
    assert steps(path) == [10, 20]


def test_time_goes_on_from_the_line_that_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "time": 100.0}\n{"step": 20, "time": 900.0}\n')
    write(path, [20], resume_step=10)
    assert 100 <= jsonl.read(path)[-1]["time"] < 160


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_becomes_null(tmp_path, value):
    path = tmp_path / "metrics.jsonl"
    writer = jsonl.JsonlWriter(path)
    writer.write(1, {"loss/value": value})
    writer.close()
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["loss/value"] is None


def test_counts_past_32_and_53_bits_stay_exact(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [2**53 + 1])
    assert steps(path) == [2**53 + 1]


@pytest.mark.parametrize("text", ["no json", "[1, 2]", '{"step": 1}'])
def test_a_damaged_line_is_named(tmp_path, text):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "time": 0.1}}\n{text}\n{{"step": 2, "time": 0.2}}\n')
    with pytest.raises(UsageError, match=r"metrics\.jsonl, line 2 must be JSON"):
        jsonl.read(path)


def test_no_file_has_no_lines(tmp_path):
    assert jsonl.read(tmp_path / "metrics.jsonl") == []
