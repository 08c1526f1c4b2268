import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.envs import wrappers
from rljax.envs.base import JaxEnv, TimeStep
from rljax.types import Discrete, EnvSpec, Observation


def counter(end: int) -> JaxEnv:
    """Counts its steps from a random hundred; terminates at `end` of them; reward 1 and action."""

    def reset(key):
        start = 100 * jax.random.randint(key, (), 1, 1000)
        return (start, jnp.int32(0)), Observation(jnp.float32(start)[None])

    def step(state, action, key):
        del key
        start, steps = state
        steps = steps + 1
        return (start, steps), TimeStep(
            Observation(jnp.float32(start + steps)[None]),
            1.0 + action,
            steps >= end,
            jnp.bool_(False),
        )

    return JaxEnv(EnvSpec("counter", (1,), "float32", Discrete(2)), reset, step)


def run(env: JaxEnv, num_steps: int, key: jax.Array, action: int = 0) -> TimeStep:
    """Steps `[num_steps]`, compiled as collectors do."""
    state, _ = env.reset(key)

    def step(state, key):
        return env.step(state, jnp.int32(action), key)

    keys = jax.random.split(jax.random.fold_in(key, 1), num_steps)
    return jax.jit(lambda: jax.lax.scan(step, state, keys)[1])()


def test_time_limit_truncates_on_its_last_step(key):
    env = wrappers.time_limit(counter(end=99), 3)
    steps = run(env, 3, key)
    assert steps.truncated.tolist() == [False, False, True]
    assert not steps.terminated.any()
    assert env.spec.max_episode_steps == 3


@pytest.mark.parametrize(("end", "limit"), [(3, 3), (3, 4)])
def test_a_terminal_step_is_never_called_truncated(key, end, limit):
    steps = run(wrappers.time_limit(counter(end), limit), 3, key)
    assert steps.terminated.tolist() == [False, False, True]
    assert not steps.truncated.any()


@pytest.mark.parametrize("limit", [0, -1])
def test_time_limit_must_be_positive(limit):
    with pytest.raises(ValueError, match="at least 1"):
        wrappers.time_limit(counter(3), limit)


def test_autoreset_follows_the_legend_of_types(key):
    env = wrappers.autoreset(wrappers.time_limit(counter(end=99), 3))
    steps = run(env, 8, key, action=1)
    # rows:         1  2  3=end  reset  1  2  3=end  reset
    assert steps.truncated.tolist() == [False, False, True, False] * 2
    assert steps.reward.tolist() == [2, 2, 2, 0] * 2
    assert not steps.terminated.any()
    values = np.asarray(steps.observation.features)[:, 0]
    # the ending row shows the true final observation, the row after it the next episode's first
    assert (values % 100).tolist() == [1, 2, 3, 0] * 2
    first, second, third = values[0] - 1, values[3], values[7]
    assert len({first, second, third}) == 3  # every episode starts afresh


def test_autoreset_takes_the_fresh_start_from_the_key_of_that_step(key):
    env = wrappers.autoreset(wrappers.time_limit(counter(end=99), 1))
    state, _ = env.reset(key)
    state, _ = env.step(state, jnp.int32(0), key)
    keys = jax.random.split(jax.random.key(7), 2)
    starts = [env.step(state, jnp.int32(0), k)[1].observation.features for k in keys]
    assert starts[0] != starts[1]
    np.testing.assert_array_equal(starts[0], counter(99).reset(keys[0])[1].features)


def test_autoreset_restarts_environments_one_by_one_under_vmap():
    env = wrappers.autoreset(counter(end=2))
    states, _ = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 2))
    behind = jax.tree.map(lambda x: x.at[1].add(-1), states.env[1])  # the second one starts late
    states = states._replace(env=(states.env[0], behind))
    endings = []
    for i in range(5):
        keys = jax.random.split(jax.random.key(i), 2)
        states, steps = jax.vmap(env.step)(states, jnp.zeros(2, jnp.int32), keys)
        endings.append(steps.terminated.tolist())
    assert endings == [
        [False, False],
        [True, False],
        [False, True],
        [False, False],
        [True, False],
    ]


def flashes(end: int = 99) -> JaxEnv:
    """Shows frames `[2, 2, 2]`: number of the step in the first channel, 100 more in the second."""

    def shown(steps):
        values = jnp.stack([steps, steps + 100]).astype(jnp.uint8)
        return Observation(jnp.broadcast_to(values, (2, 2, 2)))

    def reset(key):
        start = jax.random.randint(key, (), 1, 50)
        return start, shown(start)

    def step(state, action, key):
        del action, key
        return state + 1, TimeStep(
            shown(state + 1), jnp.float32(1), (state + 1) % end == 0, jnp.bool_(False)
        )

    return JaxEnv(EnvSpec("flashes", (2, 2, 2), "uint8", Discrete(2)), reset, step)


def test_a_stack_shows_the_last_frames_with_their_channels_side_by_side(key):
    env = wrappers.frame_stack(flashes(), 3)
    assert env.spec.observation_shape == (2, 2, 6)
    _, first = env.reset(key)
    start = int(first.features[0, 0, 0])
    assert first.features.shape == (2, 2, 6)
    assert first.features[1, 0].tolist() == [start, start + 100] * 3
    shown = np.asarray(run(env, 4, key).observation.features)[:, 1, 1]
    assert shown.dtype == np.uint8
    assert (shown[:, ::2] - start).tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    np.testing.assert_array_equal(shown[:, 1::2], shown[:, ::2] + 100)


def test_a_new_episode_shows_nothing_of_the_last_one(key):
    env = wrappers.autoreset(wrappers.time_limit(wrappers.frame_stack(flashes(), 2), 2))
    steps = run(env, 4, key)
    assert steps.truncated.tolist() == [False, True, False, False]
    shown = np.asarray(steps.observation.features)[:, 0, 0, ::2].astype(int)
    assert (shown[:, 1] - shown[:, 0]).tolist() == [1, 1, 0, 1]  # row 2 is a first frame, twice
    assert shown[2, 0] not in shown[:2]


def test_a_stack_of_one_changes_nothing(key):
    state, _ = wrappers.frame_stack(flashes(), 1).reset(key)
    assert all(np.size(leaf) for leaf in jax.tree.leaves(state))  # checkpoints store nothing empty
    one, none = (run(env, 3, key) for env in (wrappers.frame_stack(flashes(), 1), flashes()))
    np.testing.assert_array_equal(one.observation.features, none.observation.features)


def test_vectors_are_not_stacked():
    with pytest.raises(ValueError, match="counter shows no frames to stack"):
        wrappers.frame_stack(counter(3), 2)
