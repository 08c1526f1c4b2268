import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.envs import host_envpool
from rljax.types import Box, Discrete, MultiDiscrete

XLA_TASKS = [  # with limits that make episodes end within the 300 steps of the test
    ("CartPole-v1", {}),
    ("Pendulum-v1", {"max_episode_steps": 70}),
    ("HalfCheetah-v4", {"max_episode_steps": 90}),
    ("Snake-v1", {}),
]


def actions(env: host_envpool.EnvPoolEnv, num_steps: int) -> np.ndarray:
    """Random actions `[num_steps, B, ...]`; real ones beyond their bounds, too."""
    rng = np.random.default_rng(0)
    shape = (num_steps, env.num_envs, *env.spec.action.shape)
    if isinstance(env.spec.action, Box):
        return (2 * rng.standard_normal(shape)).astype(np.float32)
    return rng.integers(0, env.spec.action.num_actions, shape).astype(np.int32)


def rollout(env: host_envpool.EnvPoolEnv, num_steps: int) -> list:
    env.reset()
    return [env.step(action) for action in actions(env, num_steps)]


@pytest.mark.parametrize(("name", "options"), XLA_TASKS)
def test_xla_steps_equal_numpy_steps_bit_for_bit(name, options):
    stepped = rollout(host_envpool.make(name, 4, seed=3, options=options), 300)
    expected = jax.tree.map(lambda *rows: np.stack(rows), *stepped)

    env = host_envpool.make(name, 4, seed=3, options=options)
    env.reset()
    xla = env.xla()
    scanned = jax.jit(lambda handle, a: jax.lax.scan(xla.step, handle, a))
    _, steps = scanned(xla.handle, jnp.asarray(actions(env, 300)))
    ended = expected.terminated | expected.truncated
    assert ended[:-1].sum() >= 4  # restarts were seen
    for ours, theirs in zip(jax.tree.leaves(steps), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert not jax.config.jax_enable_x64


def test_xla_goes_on_where_numpy_stopped():
    straight = rollout(host_envpool.make("CartPole-v1", 2, seed=0), 6)
    env = host_envpool.make("CartPole-v1", 2, seed=0)
    planned = actions(env, 6)
    env.reset()
    for action in planned[:3]:
        env.step(action)
    handle, step = env.xla()
    for action in planned[3:]:
        handle, timestep = step(handle, jnp.asarray(action))
    np.testing.assert_array_equal(timestep.observation.features, straight[-1].observation.features)


def test_there_is_no_xla_step_beside_the_cpu(monkeypatch):
    env = host_envpool.make("CartPole-v1", 2, seed=0)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert env.xla() is None


@pytest.mark.parametrize("name", ["CartPole-v1", "LunarLander-v3", "HalfCheetah-v4"])
def test_a_seed_and_its_number_of_threads_decide_nothing_else(name):
    one, same, other = (
        rollout(host_envpool.make(name, 4, seed=seed, num_threads=threads), 40)
        for seed, threads in ((0, 1), (0, 2), (4, 1))
    )
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (one[-1].observation.features != other[-1].observation.features).any()


def test_environment_i_has_seed_plus_i():
    first = host_envpool.make("CartPole-v1", 3, seed=10).reset().features
    second = host_envpool.make("CartPole-v1", 3, seed=11).reset().features
    np.testing.assert_array_equal(first[1:], second[:-1])
    assert (first != second).all()


def test_arrays_are_the_callers_to_keep():
    env = host_envpool.make("CartPole-v1", 4, seed=0)
    kept = [(env.reset(),)]
    copies = [jax.tree.map(np.copy, kept[0])]
    for action in actions(env, 200):
        kept.append(env.step(action))
        copies.append(jax.tree.map(np.copy, kept[-1]))
    for ours, theirs in zip(jax.tree.leaves(kept), jax.tree.leaves(copies), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_reset_starts_all_anew_at_any_time():
    env = host_envpool.make("CartPole-v1", 4, seed=0)
    first = env.reset().features
    rollout(env, 9)
    again = env.reset().features
    assert np.abs(again).max() <= 0.05  # where CartPole starts
    assert (again != first).all()  # another episode, not the same once more
    assert not env.step(actions(env, 1)[0]).terminated.any()


def test_numbers_are_float32_and_actions_are_clipped_at_the_border():
    env, twin = (host_envpool.make("HalfCheetah-v4", 2, seed=0) for _ in range(2))
    assert env.reset().features.dtype == np.float32
    twin.reset()
    far = env.step(np.full((2, 6), 100, np.float32))
    at_bound = twin.step(np.ones((2, 6), np.float32))
    assert far.observation.features.dtype == far.reward.dtype == np.float32
    assert far.terminated.dtype == far.truncated.dtype == bool
    np.testing.assert_array_equal(far.observation.features, at_bound.observation.features)
    np.testing.assert_array_equal(far.reward, at_bound.reward)


@pytest.mark.parametrize(
    ("name", "width", "action", "has_mask", "limit"),
    [
        ("CartPole-v1", 4, Discrete(2), False, 500),
        ("LunarLanderContinuous-v3", 8, Box((-1.0, -1.0), (1.0, 1.0)), False, 1000),
        ("WalkerRun-v1", 24, Box((-1.0,) * 6, (1.0,) * 6), False, 1000),  # a dict: 1 + 14 + 9
        ("Catch-v0", 50, Discrete(3), False, None),  # a board of 10 rows and 5 columns
        ("FrozenLake-v1", 16, Discrete(4), False, 100),  # the number of a cell
        ("RubiksCube-v0", 55, MultiDiscrete((6, 1, 3)), False, 200),  # 6 · 9 stickers, step
        ("Cleaner-v0", 107, MultiDiscrete((4, 4, 4)), True, 100),  # 100 cells, 3 agents, step
        ("Minesweeper-v0", 102, Discrete(100), True, 90),  # a mask of cells: row and column in one
        ("Play2048-v1", 496, Discrete(4), True, None),  # the mask comes beside the observation
    ],
)
def test_specs(name, width, action, has_mask, limit):
    env = host_envpool.make(name, 2, seed=0)
    observation = env.reset()
    assert env.spec.observation_shape == (width,)
    assert observation.features.shape == (2, width)
    assert env.spec.action == action
    assert env.spec.has_mask == has_mask
    assert env.spec.max_episode_steps == limit
    if has_mask:
        assert observation.mask.shape == (2, *action.mask_shape)
        assert observation.mask.dtype == bool
        assert observation.mask.any(axis=1).all()


def test_masks_of_combinations_name_the_cell_that_is_played():
    env = host_envpool.make("Minesweeper-v0", 1, seed=0)
    mask = env.reset().mask[0]
    assert mask.all()
    after = env.step(np.array([37], np.int32)).observation.mask[0]
    assert not after[37]  # row 3, column 7 is open now
    assert after.sum() < 100


def test_a_masked_action_is_what_jumanji_punishes():
    env = host_envpool.make("Maze-v0", 8, seed=0)
    mask = env.reset().mask
    positions = env.step(mask.argmin(axis=1).astype(np.int32)).observation.features[:, :20]
    before = host_envpool.make("Maze-v0", 8, seed=0).reset().features[:, :20]
    blocked = ~mask.all(axis=1)
    assert blocked.any()
    np.testing.assert_array_equal(positions[blocked], before[blocked])  # a wall: nobody moved


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "HalfCheeta-v4"}, "no task 'HalfCheeta-v4'; near it: HalfCheetah-v4"),
        ({"name": "Go9x9-v1"}, "a game of 2 players"),
        ({"num_envs": 0}, "num_envs must be at least 1, not 0"),
        ({"num_envs": -3}, "num_envs must be at least 1, not -3"),
        ({"seed": -1}, "seed must lie between 0 and"),
        ({"seed": 2**31 - 1}, "seed must lie between 0 and"),  # the second one's would not fit
        ({"num_threads": -1}, "num_threads must be 0"),
        ({"options": {"max_steps": 6}}, "no option 'max_steps'; it has .*max_episode_steps"),
        ({"options": {"batch_size": 1}}, "no option 'batch_size'"),
        ({"options": {"max_episode_steps": 0}}, "whole number from 1, not 0"),
        ({"options": {"max_episode_steps": "6"}}, "whole number from 1, not '6'"),
        ({"options": {"reward_threshold": "x"}}, "wrong type"),
    ],
)
def test_wrong_arguments_get_one_sentence(arguments, sentence):
    arguments = {"name": "CartPole-v1", "num_envs": 2, "seed": 0} | arguments
    with pytest.raises(ValueError, match=sentence) as caught:
        host_envpool.make(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(3,), (2, 1), ()])
def test_actions_of_the_wrong_shape_are_refused(shape):
    env = host_envpool.make("CartPole-v1", 2, seed=0)
    env.reset()
    with pytest.raises(ValueError, match=r"actions must be \(2,\)"):
        env.step(np.zeros(shape, np.int32))


def test_closing_twice_is_harmless():
    env = host_envpool.make("CartPole-v1", 2, seed=0)
    env.close()
    env.close()
