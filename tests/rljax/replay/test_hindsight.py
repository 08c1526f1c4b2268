"""Returns to go, written when episodes end, beside a reference that goes row by row."""

import math

import jax
import numpy as np
import pytest

from rljax.offline.outlook import RETURN_TO_GO
from rljax.replay import device, hindsight
from tests.rljax.replay import rows as made

GAMMA = 0.9


def unknown(rows):
    return rows._replace(
        extras={RETURN_TO_GO: np.full(rows.reward.shape, hindsight.UNKNOWN, np.float32)}
    )


def told(rows, newest, lookback, chunk):
    """What is known of each row `[newest, B]` once as many have come, `chunk` at a time."""
    found = np.full(rows.valid[:newest].shape, -math.inf)
    for time, env in np.argwhere(rows.valid[:newest]):
        total, at = 0.0, time
        while at < newest and rows.valid[at, env]:
            total += GAMMA ** (at - time) * float(rows.reward[at, env])
            at += 1
        arrived = (at // chunk + 1) * chunk  # rows that had come when the ending did
        if at < newest and time >= arrived - chunk - lookback:
            found[time, env] = total
    return found


def filled(rows, length, chunk, lookback):
    """The replay after each chunk of rows."""
    num_envs = rows.reward.shape[1]
    buffer = hindsight.completing(
        device.make(length * num_envs, num_envs, 4, GAMMA), GAMMA, lookback
    )
    add, state = jax.jit(buffer.add), buffer.init(made.row_of(rows))
    for start in range(0, len(rows.reward), chunk):
        state = add(state, made.part(rows, start, start + chunk))
        yield start + chunk, state


@pytest.mark.parametrize(
    ("length", "chunk", "lookback"),
    [
        (64, 4, 60),  # all there is, from a replay that is never full
        (16, 4, 60),  # comes round
        (16, 4, 3),  # episodes that are longer than what is looked back on
        (16, 1, 60),
    ],
)
def test_rows_learn_what_their_episode_brought_when_it_has_ended(length, chunk, lookback):
    rows = unknown(made.episodes(60, 3, seed=2))
    some_known = some_unknown = 0
    for newest, state in filled(rows, length, chunk, lookback):
        expected = told(rows, newest, lookback, chunk)
        kept = range(max(0, newest - length), newest)
        places = [time % length for time in kept]
        found = np.asarray(state.rows.extras[RETURN_TO_GO])[places]
        np.testing.assert_allclose(found, expected[kept.start :], rtol=1e-4, atol=1e-4)
        some_known += np.isfinite(found).sum()
        some_unknown += np.isinf(found[rows.valid[kept.start : newest]]).sum()
    assert some_known > 100
    assert some_unknown > 100  # of running episodes, or of too long ones


def test_nothing_is_told_of_an_episode_that_was_cut_off():
    rows = unknown(made.make(np.ones((6, 1)), np.ones((6, 1)), np.ones((6, 1), bool)))
    ending = made.make(np.ones((3, 1)), [[1.0], [0.0], [1.0]], [[True], [True], [False]])
    buffer = hindsight.completing(device.make(12, 1, 4, GAMMA), GAMMA, 60)
    state = buffer.cut(buffer.add(buffer.init(made.row_of(rows)), rows))
    state = buffer.add(state, unknown(ending))
    found = np.asarray(state.rows.extras[RETURN_TO_GO])[:9, 0]
    np.testing.assert_allclose(found, [-math.inf] * 6 + [1 + GAMMA, 1, -math.inf], rtol=1e-6)


def test_behind_a_time_limit_comes_the_least_there_is():
    rows = made.make(
        -np.ones((6, 1)),
        [[1.0], [1.0], [1.0], [1.0], [0.0], [1.0]],
        [[True], [True], [False], [True], [True], [False]],
    )
    buffer = hindsight.completing(device.make(12, 1, 4, GAMMA), GAMMA, 60, least=-10.0)
    state = buffer.add(buffer.init(made.row_of(unknown(rows))), unknown(rows))
    found = np.asarray(state.rows.extras[RETURN_TO_GO])[:6, 0]
    # -1 for ever is worth -10; the second episode terminates after two steps
    expected = [-10, -10, -math.inf, -1 - GAMMA, -1, -math.inf]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
