"""What the rows that cannot be read were part of, and what rows without ids still tell."""

import pytest

from rljax.offline import event_log
from rljax.offline.schema import OnFault, Rules, Unfinished
from rljax.types import Box, Discrete

DROP = Rules(on_fault=OnFault.DROP)


def lengths(read):
    return [len(episode.reward) for episode in read.dataset.episodes()]


def without(rows, *names):
    return [{k: v for k, v in row.items() if k not in names} for row in rows]


@pytest.fixture
def with_a_damaged_line(write_jsonl):
    """A log whose line of that number, from 1, is no JSON object."""

    def write(rows, line):
        path = write_jsonl(rows)
        lines = path.read_text().splitlines()
        lines[line - 1] = '{"broken'
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


def three(rows_of):
    return rows_of("a", 3) + rows_of("b", 3, start=10.0) + rows_of("c", 3, start=20.0)


@pytest.mark.parametrize(
    ("line", "kept"),
    [(5, 2), (4, 1), (6, 1), (1, 2), (9, 2)],
    ids=["middle", "first of b", "last of b", "first of all", "last of all"],
)
@pytest.mark.parametrize("without_ids", [False, True])
def test_a_line_that_cannot_be_read_takes_its_episode_along(
    with_a_damaged_line, rows_of, line, kept, without_ids
):
    # At the border nobody knows whose line it was: both neighbors go.
    lost = ("step", "episode_id") if without_ids else ("step",)
    read = event_log.read_jsonl(
        with_a_damaged_line(without(three(rows_of), *lost), line), rules=DROP
    )
    assert lengths(read) == [3] * kept
    assert read.counts["fault/no JSON object"] == 1


def test_a_row_without_its_id_takes_its_neighbors_along(write_jsonl, rows_of):
    rows = without(three(rows_of), "step")
    rows[4]["episode_id"] = None
    read = event_log.read_jsonl(write_jsonl(rows), rules=DROP)
    assert lengths(read) == [3, 3]
    assert read.counts["fault/beside a lost row"] == 2


def test_a_sorted_log_tells_lost_starts_by_its_steps(with_a_damaged_line, write_jsonl, rows_of):
    rows = three(rows_of)
    damaged = with_a_damaged_line(rows, 4)
    rules = Rules(on_fault=OnFault.DROP, sort=True)
    assert lengths(event_log.read_jsonl(damaged, rules=rules)) == [3, 3]
    with pytest.raises(ValueError, match=r"line 4: step 1 comes where step 0 of its episode is"):
        event_log.read_jsonl(write_jsonl(rows[:3] + rows[4:]))
    later = [row | {"step": row["step"] + 4} for row in rows]  # they may start anywhere, alike
    assert lengths(event_log.read_jsonl(write_jsonl(later))) == [3, 3, 3]


def test_steps_are_looked_at_without_ids(write_jsonl, rows_of):
    rows = without(rows_of("a", 4) + rows_of("b", 4), "episode_id")
    assert lengths(event_log.read_jsonl(write_jsonl(rows))) == [4, 4]
    counted = [row | {"step": number} for number, row in enumerate(rows)]  # through the whole log
    assert lengths(event_log.read_jsonl(write_jsonl(counted))) == [4, 4]
    swapped = [rows[0], rows[2], rows[1], *rows[3:]]
    for wrong in (swapped, rows[:1] + rows, rows[:1] + rows[2:]):
        path = write_jsonl(wrong)
        with pytest.raises(ValueError, match=r"line 2: step \d comes where step 1 of its episode"):
            event_log.read_jsonl(path)
        assert lengths(event_log.read_jsonl(path, rules=DROP)) == [4]


@pytest.mark.parametrize("column", ["step", "next_state"])
def test_steps_without_anything_that_joins_them_are_no_bandit(write_jsonl, rows_of, column):
    rows = without(rows_of("a", 3), "episode_id", "terminated", "truncated", "step")
    assert lengths(event_log.read_jsonl(write_jsonl(rows))) == [1, 1, 1]
    for number, row in enumerate(rows):
        row[column] = number if column == "step" else [9.0, 9.0]
    with pytest.raises(ValueError, match="no id of episodes and no column that ends them"):
        event_log.read_jsonl(write_jsonl(rows))


@pytest.mark.parametrize("sort", [False, True])
def test_a_time_that_cannot_be_read_makes_no_boundary(write_jsonl, rows_of, sort):
    rows = without(rows_of("u", 8) + rows_of("v", 4), "step", "terminated", "truncated")
    for number, row in enumerate(rows):
        row["time"] = 1.7e9 + 60 * number
    rows[3]["time"] = None
    rules = Rules(OnFault.DROP, sort, session_gap=1800.0, unfinished=Unfinished.TERMINATED)
    read = event_log.read_jsonl(write_jsonl(rows), rules=rules)
    assert lengths(read) == [4]
    assert read.counts["rows_dropped"] == 8


@pytest.mark.parametrize("gap", [0.0, -1.0, float("nan"), float("inf")])
def test_a_gap_is_a_positive_number(gap):
    with pytest.raises(ValueError, match="it must be a positive number of seconds"):
        Rules(session_gap=gap)


def test_a_row_that_is_dropped_decides_nothing(write_jsonl, rows_of):
    rows = rows_of("a", 2) + rows_of("b", 2)
    rows[1]["action"] = float("nan")
    read = event_log.read_jsonl(write_jsonl(rows), rules=DROP)
    assert read.dataset.spec.action.num_actions == 2  # still choices
    rows = rows_of("a", 2) + rows_of("b", 2)
    rows[0]["state"] = [1.0]
    assert lengths(event_log.read_jsonl(write_jsonl(rows), rules=DROP)) == [2]


@pytest.mark.parametrize(
    "fault",
    [
        (1, {"reward": "x"}),  # of the row itself, or of another of its episode
        (1, {"propensity": -1.0}),
        (0, {"state": ["x", 0.0]}),
        (0, {"step": 7}),
        (2, {"terminated": False}),
    ],
)
def test_whatever_its_row_was_dropped_for_an_action_makes_the_space_no_wider(
    write_jsonl, rows_of, fault
):
    place, wrong = fault
    reals = Box((0.0,), (0.5,))
    for usual, wild, space in (([0, 1, 0], 9, Discrete(2)), ([0.0, 0.5, 0.0], 900.0, reals)):
        rows = rows_of("bad", 3) + rows_of("good", 3)
        for row in rows:
            row["action"] = usual[row["step"]]
        rows[1]["action"] = wild
        assert event_log.read_jsonl(write_jsonl(rows)).dataset.spec.action != space
        rows[place].update(wrong)
        read = event_log.read_jsonl(write_jsonl(rows), rules=DROP)
        assert (lengths(read), read.dataset.spec.action) == ([3], space)


def test_an_id_is_no_choice(write_jsonl, rows_of):
    rows = rows_of("a", 2) + rows_of("b", 2)
    rows[2]["action"] = 10**9
    path = write_jsonl(rows)
    with pytest.raises(ValueError, match="line 3: the action 1000000000 numbers no choice"):
        event_log.read_jsonl(path)
    read = event_log.read_jsonl(path, rules=DROP)
    assert (lengths(read), read.dataset.spec.action.num_actions) == ([2], 2)


def test_where_nothing_is_left_it_is_said_why(write_jsonl, rows_of):
    rows = rows_of("a", 2)
    rows[0]["reward"] = None
    with pytest.raises(ValueError, match=r"learned from; rows 2, fault/reward 1, .*rows_dropped 2"):
        event_log.read_jsonl(write_jsonl(rows), rules=DROP)
