"""Steps and times together: sessions cut by gaps, streams cut by ends, and what final rows hold."""

import numpy as np
import pytest

from rljax.offline import event_log
from rljax.offline.schema import Columns, OnFault, Rules, Unfinished


def row(step, time, *, user="u", done=False, **more):
    """A decision whose state and reward tell its step."""
    told = {"episode_id": user, "step": step, "time": time, "state": [float(step)], "action": 0}
    return told | {"reward": 1.0 + step, "done": done} | more


def read(write_jsonl, rows, columns=None, **rules):
    cut = Rules(unfinished=Unfinished.TERMINATED, **rules)
    return event_log.read_jsonl(write_jsonl(rows), columns or Columns(), cut)


def test_a_session_drops_once_what_was_delivered_twice(write_jsonl):
    rows = [row(0, 10), row(1, 11), row(1, 11), row(2, 12)]
    with pytest.raises(ValueError, match="line 3: its episode has step 1 twice"):
        read(write_jsonl, rows, session_gap=30.0)
    made, counts, _ = read(write_jsonl, rows, session_gap=30.0, on_fault=OnFault.DROP, sort=True)
    np.testing.assert_array_equal(made.returns(), [6])
    assert counts == {"rows": 4, "fault/duplicate": 1, "rows_dropped": 1}
    rows[2]["reward"] = 9.0  # two decisions of one step: which was it?
    with pytest.raises(ValueError, match="line 3: its episode has step 1 twice"):
        read(write_jsonl, rows, session_gap=30.0)


def test_sessions_of_one_id_may_start_alike_or_count_on(write_jsonl):
    alike = [row(0, 10), row(1, 11), row(0, 100), row(1, 101)]
    np.testing.assert_array_equal(
        read(write_jsonl, alike, session_gap=30.0).dataset.returns(), [3, 3]
    )
    on = [row(0, 10), row(1, 11), row(2, 100), row(3, 101)]
    np.testing.assert_array_equal(read(write_jsonl, on, session_gap=30.0).dataset.returns(), [3, 7])


def test_a_session_that_lacks_a_step_is_a_fault(write_jsonl):
    rows = [row(0, 10), row(1, 11), row(3, 12)]
    with pytest.raises(ValueError, match="line 3: step 3 comes where step 2 of its episode is due"):
        read(write_jsonl, rows, session_gap=30.0)
    unread = read(write_jsonl, rows, Columns(step=None), session_gap=30.0)
    assert unread.dataset.num_steps == 3


def test_rows_of_one_id_and_time_are_sorted_by_their_steps(write_jsonl):
    rows = [row(2, 10), row(0, 10), row(1, 10), row(3, 11)]
    made = read(write_jsonl, rows, session_gap=30.0, sort=True).dataset
    np.testing.assert_array_equal(made.rows.observation.features[:4, 0], [0, 1, 2, 3])
    with pytest.raises(ValueError, match="line 2: step 0 comes where step 3"):
        read(write_jsonl, rows, session_gap=30.0)


def test_a_stream_whose_times_run_back_within_an_episode_is_refused(write_jsonl):
    def stream(*times, **more):
        steps = enumerate(times)
        rows = [row(i, time, done=i == len(times) - 1, **more) for i, time in steps]
        return [{name: x for name, x in each.items() if name != "episode_id"} for each in rows]

    with pytest.raises(ValueError, match=r"line 2: its time 1\.0 is before that of the row above"):
        read(write_jsonl, stream(3, 1, 2), Columns(step=None))
    # another episode may have begun before the last one ended: nothing is told of whose it is
    made = read(write_jsonl, stream(3, 4) + stream(1, 2)).dataset
    assert made.num_episodes == 2


def test_steps_without_ids_order_nothing(write_jsonl):
    rows = [{"step": 0, "state": [0.0], "action": 0, "reward": 1.0, "done": True}]
    with pytest.raises(ValueError, match=r"no column of times, or of ids beside its steps, to be"):
        read(write_jsonl, rows, sort=True)


@pytest.mark.parametrize("gap", [0.1, 0.3, 1.1])
def test_a_pause_of_exactly_the_gap_cuts_nothing_in_fractions_of_a_second(write_jsonl, gap):
    start = 1_700_000_000.0
    rows = [row(i, round(start + i * gap, 3)) for i in range(20)]
    assert read(write_jsonl, rows, session_gap=gap).dataset.num_episodes == 1
    rows += [row(20, round(start + 20 * gap + 0.001, 3))]
    assert read(write_jsonl, rows, session_gap=gap).dataset.num_episodes == 2


def test_a_final_row_with_a_reward_is_a_fault(write_jsonl, rows_of):
    rows = rows_of("a", 2)
    rows[1] |= {"terminated": False, "final": True, "reward": 100.0}
    rows[0]["final"] = False
    path = write_jsonl(rows)
    with pytest.raises(ValueError, match=r"line 2: its reward is 100, but it is final"):
        event_log.read_jsonl(path)
    for nothing in (0.0, None):
        rows[1]["reward"] = nothing
        made = event_log.read_jsonl(write_jsonl(rows)).dataset
        np.testing.assert_array_equal(made.rows.reward, np.float32([0.5, 0.0]))
