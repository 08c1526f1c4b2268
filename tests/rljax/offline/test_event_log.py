import json
import math

import numpy as np
import pytest

from rljax.offline import dataset, event_log
from rljax.offline.schema import Columns, OnFault, Rules, Unfinished
from rljax.types import Box, Discrete, EnvSpec, MultiDiscrete

DROP = Rules(on_fault=OnFault.DROP)


def test_episodes_by_hand(write_jsonl, rows_of):
    path = write_jsonl([*rows_of("a", 2), *rows_of("b", 3, terminated=False, start=10.0)])
    made, counts, policies = event_log.read_jsonl(path)
    first, second = made.episodes()
    # terminated: both steps, and the last state again behind them
    np.testing.assert_array_equal(first.observation.features[:, 0], [0.0, 1.0, 1.0])
    np.testing.assert_array_equal(first.reward, np.float32([0.5, 1.5]))
    np.testing.assert_array_equal(first.action, [0, 1])
    assert first.terminated
    # truncated with nothing behind: the third step is given up, its state is what the second led to
    np.testing.assert_array_equal(second.observation.features[:, 0], [10.0, 11.0, 12.0])
    np.testing.assert_array_equal(second.reward, np.float32([10.5, 11.5]))
    assert not second.terminated
    np.testing.assert_array_equal(made.rows.discount, [1, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(made.rows.valid, [1, 1, 0, 1, 1, 0])
    np.testing.assert_array_equal(made.rows.reward, np.float32([0.5, 1.5, 0, 10.5, 11.5, 0]))
    np.testing.assert_allclose(first.extras["log_prob"], [math.log(0.25)] * 2, rtol=1e-6)
    assert made.rows.extras["log_prob"][2] == 0
    assert counts == {"rows": 5, "last_steps_given_up": 1}
    assert made.spec == EnvSpec("log", (2,), "float32", Discrete(2))
    assert policies == {}


def test_the_rows_are_those_that_make_would_join(write_jsonl, rows_of):
    path = write_jsonl([*rows_of("a", 2), *rows_of("b", 4, terminated=False, start=10.0)])
    made = event_log.read_jsonl(path).dataset
    again = dataset.make(made.spec, made.episodes(), made.source)
    for ours, theirs in [(made.rows, again.rows)]:
        for name in ("action", "reward", "discount", "valid"):
            x, y = getattr(ours, name), getattr(theirs, name)
            np.testing.assert_array_equal(x, y)
            assert x.dtype == y.dtype
        np.testing.assert_array_equal(ours.observation.features, theirs.observation.features)
        np.testing.assert_array_equal(ours.extras["log_prob"], theirs.extras["log_prob"])
    np.testing.assert_array_equal(made.starts, again.starts)


def test_next_states_keep_the_last_step_of_a_truncated_episode(write_jsonl, rows_of):
    rows = rows_of("a", 2, terminated=False)
    for row in rows:
        row["next_state"] = [row["state"][0] + 1, -1.0]
    made, counts, _ = event_log.read_jsonl(write_jsonl(rows))
    np.testing.assert_array_equal(made.rows.observation.features[:, 0], [0, 1, 2])
    assert made.num_steps == 2
    np.testing.assert_array_equal(made.rows.discount, [1, 1, 1])
    assert counts == {"rows": 2}


def test_a_final_row_is_an_observation_and_no_step(write_jsonl, rows_of):
    rows = [row | {"final": False} for row in rows_of("a", 2, terminated=False)]
    rows.append(
        {"episode_id": "a", "step": 2, "state": [7.0, 7.0], "final": True}
        | dict.fromkeys(("terminated", "truncated"), False)
    )
    made, counts, _ = event_log.read_jsonl(write_jsonl(rows))
    np.testing.assert_array_equal(made.rows.observation.features[:, 0], [0, 1, 7])
    np.testing.assert_array_equal(made.rows.action, [0, 1, 0])
    assert made.num_steps == 2
    assert not made.episode(0).terminated
    assert counts == {"rows": 3}


def test_shuffled_rows_give_the_same_dataset(write_jsonl, rows_of):
    rows = [row for n in (2, 10, 1) for row in rows_of(str(n), n + 1, start=100.0 * n)]
    order = np.random.default_rng(0).permutation(len(rows))
    assert order.tolist() != sorted(order)
    sort = Rules(sort=True)
    straight = event_log.read_jsonl(write_jsonl(rows, "a.jsonl"), rules=sort).dataset
    shuffled = event_log.read_jsonl(
        write_jsonl([rows[i] for i in order], "b.jsonl"), rules=sort
    ).dataset
    np.testing.assert_array_equal(
        straight.rows.observation.features, shuffled.rows.observation.features
    )
    np.testing.assert_array_equal(straight.rows.reward, shuffled.rows.reward)
    np.testing.assert_array_equal(straight.starts, [0, 3, 7, 19])  # ids as numbers: 1, 2, 10
    with pytest.raises(ValueError, match="put rows in order"):
        event_log.read_jsonl(tmp := write_jsonl([rows[i] for i in order], "b.jsonl"))
    assert tmp.exists()


def test_rows_of_episodes_may_be_interleaved(write_jsonl, rows_of):
    a, b = rows_of("a", 2), rows_of("b", 2, start=10.0)
    made = event_log.read_jsonl(write_jsonl([a[0], b[0], b[1], a[1]])).dataset
    np.testing.assert_array_equal(made.rows.observation.features[:, 0], [0, 1, 1, 10, 11, 11])


def sessions(times, gap, write_jsonl, **more):
    rows = [
        {"user": "u", "time": time, "state": [float(i)], "action": 0, "reward": 1.0} | more
        for i, time in enumerate(times)
    ]
    return event_log.read_jsonl(
        write_jsonl(rows),
        Columns(episode_id="user"),
        Rules(session_gap=gap, unfinished=Unfinished.TERMINATED, sort=True),
    ).dataset


def test_a_longer_pause_than_the_gap_starts_a_session(write_jsonl):
    made = sessions([0.0, 30.0, 60.0, 90.5, 100.0], 30.0, write_jsonl)
    # a pause of exactly 30 s is none; 30.5 s is one
    assert [len(episode.reward) for episode in made.episodes()] == [3, 2]


def test_equal_times_keep_the_order_of_the_file(write_jsonl):
    made = sessions([5.0, 1.0, 5.0, 1.0], 30.0, write_jsonl)
    np.testing.assert_array_equal(made.rows.observation.features[:4, 0], [1, 3, 0, 2])


def test_times_may_be_iso_8601(write_jsonl):
    times = ["2021-02-04T16:31:29.2460000Z", "2021-02-04T16:31:59.2460000Z", "2021-02-04T16:32:30"]
    made = sessions(times, 30.0, write_jsonl)
    assert [len(episode.reward) for episode in made.episodes()] == [2, 1]


def test_what_is_to_be_sorted_or_cut_by_must_be_there(write_jsonl):
    path = write_jsonl([{"user": "u", "state": [1.0], "action": 0, "reward": 1.0, "done": True}])
    names = Columns(episode_id="user")
    with pytest.raises(ValueError, match=r"log\.jsonl: session_gap needs a column of times"):
        event_log.read_jsonl(path, names, Rules(session_gap=30.0))
    with pytest.raises(ValueError, match=r"log\.jsonl has no column of steps or times"):
        event_log.read_jsonl(path, names, Rules(sort=True))


def test_times_out_of_order_are_refused(write_jsonl):
    rows = [
        {"user": "u", "time": time, "state": [1.0], "action": 0, "reward": 1.0, "done": time == 3}
        for time in (1, 3, 2)
    ]
    path, names = write_jsonl(rows), Columns(episode_id="user")
    with pytest.raises(ValueError, match=r"line 3: its time 2\.0 is before that of the row above"):
        event_log.read_jsonl(path, names)
    assert event_log.read_jsonl(path, names, Rules(sort=True)).dataset.num_steps == 3


def test_without_ids_and_ends_every_row_is_an_episode(write_jsonl):
    rows = [{"state": [i], "action": i, "reward": i} for i in range(3)]
    made = event_log.read_jsonl(write_jsonl(rows)).dataset
    assert made.num_episodes == made.num_steps == 3
    np.testing.assert_array_equal(made.rows.observation.features[:, 0], [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(made.rows.discount, [0, 1] * 3)


def test_without_ids_ends_cut_the_stream(write_jsonl):
    rows = [
        {"state": [i], "action": 0, "reward": 0, "done": i in (1, 4), "truncated": i == 4}
        for i in range(5)
    ]
    made, counts, _ = event_log.read_jsonl(write_jsonl(rows))
    first, second = made.episodes()
    assert (len(first.reward), first.terminated) == (2, True)
    assert (len(second.reward), second.terminated) == (2, False)  # of three, the last given up
    assert counts == {"rows": 5, "last_steps_given_up": 1}


def test_a_truncated_episode_of_one_row_leaves_nothing(write_jsonl, rows_of):
    path = write_jsonl([*rows_of("a", 1, terminated=False), *rows_of("b", 1)])
    made, counts, _ = event_log.read_jsonl(path)
    assert made.num_episodes == 1
    assert counts == {"rows": 2, "last_steps_given_up": 1, "episodes_without_step": 1}


def test_a_next_state_without_its_mask_is_not_bootstrapped_from(write_jsonl, rows_of):
    rows = rows_of("a", 2, terminated=False, action_mask=[True, True])
    for row in rows:
        row["next_state"] = [row["state"][0] + 1, -1.0]
    made, counts, _ = event_log.read_jsonl(write_jsonl(rows))
    assert made.num_steps == 1
    assert counts["last_steps_given_up"] == 1
    for row in rows:
        row["next_action_mask"] = [False, True]
    made = event_log.read_jsonl(write_jsonl(rows)).dataset
    assert made.num_steps == 2
    np.testing.assert_array_equal(made.rows.observation.mask[2], [False, True])


def test_a_log_may_have_names_of_its_own(write_jsonl):
    rows = [
        {"s": "x", "n": i, "age": 3.0 + i, "price": 2.0, "a": i, "r": 1, "end": i == 1, "w": 9}
        for i in range(2)
    ]
    names = Columns(
        episode_id="s",
        step="n",
        state=("price", "age"),
        action="a",
        reward="r",
        terminated="end",
        extras=("w",),
    )
    made = event_log.read_jsonl(write_jsonl(rows), names).dataset
    np.testing.assert_array_equal(made.rows.observation.features, [[2, 3], [2, 4], [2, 4]])
    np.testing.assert_array_equal(made.rows.extras["w"], [9, 9, 0])


def test_states_may_be_objects_of_numbers(write_jsonl):
    rows = [
        {"state": {"10": 3.0, "9": 2.0}, "action": 0, "reward": 0},
        {"state": {"9": 4.0, "10": 5.0}, "action": 0, "reward": 0},
    ]
    made = event_log.read_jsonl(write_jsonl(rows)).dataset
    np.testing.assert_array_equal(made.rows.observation.features[::2], [[2, 3], [4, 5]])
    rows[1]["state"] = {"9": 4.0, "11": 5.0}
    with pytest.raises(ValueError, match=r"line 2: .* not an object with 9, 10"):
        event_log.read_jsonl(write_jsonl(rows))


def test_real_actions_are_a_box_as_wide_as_the_data(write_jsonl, rows_of):
    rows = rows_of("a", 3)
    for row, action in zip(rows, ([0.5, -1.0], [2, 0.0], [1.0, 0.25]), strict=True):
        row["action"], row["propensity"] = action, 3.5  # a density may be above 1
    made = event_log.read_jsonl(write_jsonl(rows)).dataset
    assert made.spec.action == Box((0.5, -1.0), (2.0, 0.25))
    np.testing.assert_allclose(made.rows.extras["log_prob"][:3], math.log(3.5), rtol=1e-6)
    spec = EnvSpec("task", (2,), "float32", Box((-1.0, -1.0), (1.0, 1.0)))
    with pytest.raises(ValueError, match=r"line 2: .*outside the bounds of its box"):
        event_log.read_jsonl(write_jsonl(rows), spec=spec)


def test_lists_of_whole_numbers_need_a_spec(write_jsonl, rows_of):
    rows = rows_of("a", 2)
    for row in rows:
        row["action"] = [1, 2]
    with pytest.raises(ValueError, match="give a spec that says which"):
        event_log.read_jsonl(write_jsonl(rows))
    spec = EnvSpec("task", (2,), "float32", MultiDiscrete((2, 3)))
    made = event_log.read_jsonl(write_jsonl(rows), spec=spec).dataset
    np.testing.assert_array_equal(made.rows.action, [[1, 2], [1, 2], [0, 0]])
    rows[1]["action"] = [1, 3]
    with pytest.raises(ValueError, match="not from 0 to 1, 2"):
        event_log.read_jsonl(write_jsonl(rows), spec=spec)
    rows[1]["action"] = [1, 1.5]
    with pytest.raises(ValueError, match="is not whole"):
        event_log.read_jsonl(write_jsonl(rows), spec=spec)


def test_steps_are_counted_by_who_decided(write_jsonl, rows_of):
    rows = rows_of("a", 2, policy_version="v1") + rows_of("b", 3, policy_version="v2")
    assert event_log.read_jsonl(write_jsonl(rows)).policies == {"v1": 2, "v2": 3}


def test_an_exact_log_prob_goes_before_the_propensity(write_jsonl, rows_of):
    rows = rows_of("a", 2, log_prob=-0.125)
    made = event_log.read_jsonl(write_jsonl(rows)).dataset
    np.testing.assert_array_equal(made.rows.extras["log_prob"], [-0.125, -0.125, 0])
    with pytest.raises(ValueError, match=r"log_prob is 0\.5, above that of certainty"):
        event_log.read_jsonl(write_jsonl(rows_of("a", 2, log_prob=0.5)))


def test_numbers_are_what_the_file_says(write_jsonl, rows_of):
    rows = rows_of("a", 200)
    made = event_log.read_jsonl(write_jsonl(rows)).dataset
    np.testing.assert_array_equal(
        made.rows.reward[:-1], np.float32([row["reward"] for row in rows])
    )
    assert json.loads(json.dumps(made.returns().tolist())) == [sum(row["reward"] for row in rows)]
