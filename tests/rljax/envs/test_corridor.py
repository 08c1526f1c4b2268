import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.envs import corridor


def step(state, move: int, code: int):
    return corridor.make().step(state, jnp.array([move, code]), jax.random.key(0))


def start(codes: list[int]):
    state, observation = corridor.make().reset(jax.random.key(0))
    return state._replace(env=state.env._replace(codes=jnp.array(codes))), observation


def test_the_shown_codes_lead_to_the_best_return(key):
    env = corridor.make()
    state, observation = env.reset(key)
    total, steps, timestep = 0.0, 0, None
    while timestep is None or not timestep.terminated:
        code = int(observation.features[6:].argmax())
        state, timestep = env.step(state, jnp.array([2, code]), key)
        observation = timestep.observation
        total, steps = total + float(timestep.reward), steps + 1
    assert steps == 5
    np.testing.assert_allclose(total, 0.5, atol=1e-6)  # 1 - 0.1 · 5


def test_a_wrong_code_keeps_the_door_shut():
    state, _ = start([1] * 6)
    state, timestep = step(state, move=2, code=0)
    assert int(state.env.cell) == 0
    np.testing.assert_allclose(timestep.reward, -0.1)
    assert not timestep.terminated


def test_left_needs_no_code_and_stops_at_the_wall():
    state, _ = start([1] * 6)
    state, _ = step(state, move=2, code=1)
    assert int(state.env.cell) == 1
    for _ in range(2):
        state, _ = step(state, move=0, code=0)
        assert int(state.env.cell) == 0


def test_the_observation_is_cell_and_code():
    state, _ = start([1, 2, 0, 0, 0, 0])
    _, timestep = step(state, move=2, code=1)
    assert timestep.observation.features.tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 1]


def test_wandering_is_truncated_after_50_steps():
    state, _ = start([1] * 6)
    for _ in range(50):
        state, timestep = step(state, move=1, code=0)
    assert timestep.truncated
    assert not timestep.terminated


def test_a_corridor_needs_two_cells():
    with pytest.raises(ValueError, match="at least 2"):
        corridor.make(length=1)
