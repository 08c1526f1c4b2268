import pytest

from rljax.metrics.throughput import Throughput


def clock(*seconds):
    return iter(seconds).__next__


def test_the_first_update_is_timed_apart():
    throughput = Throughput(clock=clock(100.0, 112.0, 114.0))
    assert throughput.update(1000) == {"time/first_update_seconds": 12.0}
    # (3000 - 1000) / (114 - 112): neither the first update's steps nor its 12 s count
    assert throughput.update(3000) == {"time/steps_per_second": 1000.0}


def test_the_window_forgets_and_the_total_does_not():
    throughput = Throughput(window=1, clock=clock(0.0, 1.0, 2.0, 6.0))
    throughput.update(0)
    assert throughput.update(100) == {"time/steps_per_second": 100.0}
    assert throughput.update(200) == {"time/steps_per_second": 25.0}  # (200 - 100) / (6 - 2)
    assert throughput.total == pytest.approx(40.0)  # (200 - 0) / (6 - 1)


def test_a_resumed_run_counts_only_its_own_steps():
    throughput = Throughput(clock=clock(0.0, 1.0, 2.0))
    throughput.update(10**12)
    assert throughput.update(10**12 + 50) == {"time/steps_per_second": 50.0}


def test_a_clock_that_stood_still_gives_no_speed():
    throughput = Throughput(clock=clock(0.0, 1.0, 1.0))
    throughput.update(1)
    assert throughput.update(2) == {"time/steps_per_second": 0.0}


def test_there_is_no_total_before_the_second_update():
    throughput = Throughput(clock=clock(0.0, 1.0))
    assert throughput.total == 0.0
    throughput.update(10)
    assert throughput.total == 0.0
