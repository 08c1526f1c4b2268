import io

from rich.console import Console

from rljax.metrics.progress import RETURN, Progress, ProgressWriter


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def show(progress, writes, total_steps=1000, first_step=0, terminal=False):
    """What is printed when `writes`, of (seconds, step, metrics), reach a progress writer."""
    output, clock = io.StringIO(), Clock()
    console = Console(file=output, force_terminal=terminal, width=100, highlight=False)
    writer = ProgressWriter(progress, total_steps, first_step, console, clock)
    for clock.now, step, metrics in writes:
        writer.write(step, metrics)
    writer.close()
    return output.getvalue()


def test_plain_lines_tell_steps_return_speed_and_time_left():
    lines = show(Progress.PLAIN, [(2.0, 100, {}), (8.0, 400, {RETURN: 21.25})]).splitlines()
    assert lines == [
        "100 / 1,000 steps",
        # (400 - 100) / (8 - 2) = 50 steps/s; (1000 - 400) / 50 = 12 s
        "400 / 1,000 steps  return 21.2  50 steps/s  0:00:12 left",
        "400 / 1,000 steps  return 21.2  50 steps/s  in 0:00:08",
    ]


def test_plain_lines_are_seconds_apart():
    writes = [(second / 10, second, {}) for second in range(1, 101)]  # 100 updates in 10 s
    # at 0.1 s and 5.1 s, and the one that stays
    assert len(show(Progress.PLAIN, writes).splitlines()) == 3


def test_the_last_line_is_printed_even_if_the_one_before_is_fresh():
    lines = show(Progress.PLAIN, [(1.0, 10, {}), (1.1, 1000, {})]).splitlines()
    assert lines[-1].startswith("1,000 / 1,000 steps")


def test_a_return_that_is_nan_leaves_the_one_before():
    writes = [(1.0, 10, {RETURN: 7.0}), (9.0, 20, {RETURN: float("nan")})]
    assert "return 7.0" in show(Progress.PLAIN, writes).splitlines()[1]


def test_without_a_total_it_only_counts():
    line = show(Progress.PLAIN, [(1.0, 10, {}), (9.0, 90, {})], total_steps=None).splitlines()[1]
    assert line == "90 steps  10 steps/s"


def test_the_bar_moves_and_leaves_one_line():
    text = show(Progress.BAR, [(1.0, 10, {}), (9.0, 90, {})], terminal=True)
    assert "━" in text
    assert "compiling" in text
    assert text.endswith("90 / 1,000 steps  10 steps/s  in 0:00:09\n")


def test_auto_shows_a_bar_on_a_terminal_only():
    writes = [(1.0, 10, {})]
    assert "━" in show(Progress.AUTO, writes, terminal=True)
    assert "━" not in show(Progress.AUTO, writes)


def test_a_run_that_ends_before_its_first_update_says_where_it_stands():
    assert show(Progress.PLAIN, [], first_step=500) == "500 / 1,000 steps  in 0:00:00\n"
