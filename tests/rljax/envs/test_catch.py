import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.envs import catch


def play(key: jax.Array, steer: int) -> list:
    """Moves towards the ball (1), away from it (-1), or not at all (0)."""
    env = catch.make()
    state, _ = env.reset(key)
    timesteps = []
    for _ in range(9):
        action = 1 + steer * jnp.sign(state.ball_column - state.paddle_column)
        state, timestep = env.step(state, action, key)
        timesteps.append(timestep)
    return timesteps


@pytest.mark.parametrize("seed", range(5))
def test_following_the_ball_always_catches_it(seed):
    timesteps = play(jax.random.key(seed), steer=1)
    assert [float(t.reward) for t in timesteps] == [0] * 8 + [1]
    assert [bool(t.terminated) for t in timesteps] == [False] * 8 + [True]
    assert not any(t.truncated for t in timesteps)


def test_standing_still_loses_unless_the_ball_falls_in_the_middle():
    for seed in range(10):
        column = int(catch.make().reset(jax.random.key(seed))[0].ball_column)
        reward = float(play(jax.random.key(seed), steer=0)[-1].reward)
        assert reward == (1 if column == 2 else -1)


def test_the_board_shows_ball_and_paddle(key):
    env = catch.make()
    state, _ = env.reset(key)
    state = state._replace(ball_column=jnp.int32(4))
    _, timestep = env.step(state, jnp.int32(0), key)
    board = np.asarray(timestep.observation.features).reshape(10, 5)
    assert np.argwhere(board).tolist() == [[1, 4], [9, 1]]  # one row down; one column to the left


def test_the_paddle_stops_at_the_wall(key):
    env = catch.make()
    state, _ = env.reset(key)
    for _ in range(4):
        state, _ = env.step(state, jnp.int32(2), key)
    assert int(state.paddle_column) == 4


def test_the_ball_falls_from_every_column_equally():
    states, _ = jax.vmap(catch.make().reset)(jax.random.split(jax.random.key(0), 1000))
    counts = np.bincount(states.ball_column, minlength=5)
    assert counts.min() > 150  # 200 expected, standard deviation 12.6
