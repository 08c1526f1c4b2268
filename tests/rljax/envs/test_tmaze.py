import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.envs import tmaze

LEFT, AHEAD, RIGHT = 0, 1, 2


def start(side: int, length: int = 3):
    env = tmaze.make(length)
    state, _ = env.reset(jax.random.key(0))
    step = jax.jit(env.step)
    state = state._replace(env=state.env._replace(side=jnp.int32(side)))
    return state, lambda state, action: step(state, jnp.int32(action), jax.random.key(0))


@pytest.mark.parametrize("side", [LEFT, RIGHT])
@pytest.mark.parametrize("turn", [LEFT, RIGHT])
def test_a_walk_to_the_end(side, turn):
    state, step = start(side)
    shown, rewards = [], []
    for action in (AHEAD, AHEAD, AHEAD, turn):
        state, timestep = step(state, action)
        shown.append(timestep.observation.features.tolist())
        rewards.append(float(timestep.reward))
        assert bool(timestep.terminated) == (len(rewards) == 4)
        assert not timestep.truncated
    # two cells of corridor, the junction, and after the turn the junction still
    assert shown == [[0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1]]
    assert rewards == [0, 0, 0, 1 if turn == side else -1]


def test_the_hint_is_shown_at_the_start_alone_and_both_sides_come_up():
    env = tmaze.make()
    states, observations = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 200))
    hints = np.asarray(observations.features)
    assert (hints[:, 2:] == 0).all()
    np.testing.assert_array_equal(hints[:, :2].argmax(1) * 2, states.env.side)
    assert (hints[:, :2].sum(1) == 1).all()
    assert 70 < hints[:, 0].sum() < 130  # 100 ± 4 deviations of √(200 / 4) = 7


def test_walls_cost_a_tenth_and_hold():
    state, step = start(LEFT)
    for action in (LEFT, RIGHT):
        state, timestep = step(state, action)
        np.testing.assert_allclose(timestep.reward, -0.1)
        assert int(state.env.cell) == 0
        assert timestep.observation.features.tolist() == [1, 0, 0, 0]
    for _ in range(3):
        state, _ = step(state, AHEAD)
    state, timestep = step(state, AHEAD)
    np.testing.assert_allclose(timestep.reward, -0.1)
    assert int(state.env.cell) == 3
    assert not timestep.terminated


def test_standing_about_is_cut_off():
    state, step = start(LEFT)
    for i in range(20):  # 5 · (3 + 1)
        state, timestep = step(state, LEFT)
        assert bool(timestep.truncated) == (i == 19)
    assert not timestep.terminated
    assert tmaze.make(3, max_episode_steps=7).spec.max_episode_steps == 7


def test_a_maze_needs_a_cell():
    with pytest.raises(ValueError, match="length must be at least 1, not 0"):
        tmaze.make(0)
