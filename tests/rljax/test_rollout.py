"""The three collectors: the same rows, the same autoreset, the same totals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import ppo
from rljax import rollout, sources
from rljax.agent import Agent
from rljax.envs import cartpole, wrappers
from rljax.envs.base import JaxEnv, TimeStep
from rljax.types import Discrete, EnvSpec, Observation

CONFIG = ppo.Config(num_envs=4, rollout_length=50, hidden_sizes=(8,))


def pool(name="CartPole-v1", num_envs=4, **options):
    return sources.open(sources.EnvSource(name, num_envs, seed=3, options=tuple(options.items())))


def counting_env(episode_length: int, *, terminates: bool) -> JaxEnv:
    """Observes 0, 1, 2 … since the reset; rewards step t with t + 1; ends after a fixed length."""
    spec = EnvSpec("counting", (1,), "float32", Discrete(2))

    def observe(count):
        return Observation(jnp.float32(count)[None])

    def reset(key):
        return jnp.int32(0), observe(0)

    def step(count, action, key):
        count += 1
        end = count >= episode_length
        return count, TimeStep(
            observe(count), jnp.float32(count), end & terminates, end & (not terminates)
        )

    return wrappers.autoreset(JaxEnv(spec, reset, step))


def remembering_agent(spec) -> Agent:
    """Its carry counts the rows since the episode's start; "memory" is the carry it acted on."""

    def act(policy, carry, observation, key, greedy):
        action = jnp.zeros(carry.shape, jnp.int32)
        return carry + 1, action, {"memory": carry, "unused": carry * jnp.nan}

    return Agent(spec, lambda key: (), lambda n: jnp.zeros(n), act, None, stores=("memory",))


def test_host_and_xla_give_the_same_trajectory_bit_for_bit(key):
    agent = ppo.make(CONFIG, pool().spec)
    policy = agent.init(key).policy
    outcomes = []
    for kind in (rollout.Kind.HOST, rollout.Kind.ENVPOOL_XLA):
        collector = rollout.make(agent, pool(), 4, 50, kind)
        state, rows = collector.init(key), []
        for i in range(3):
            state, trajectory, episodes = collector.collect(
                policy, state, jax.random.fold_in(key, i)
            )
            rows.append((trajectory, episodes))
        outcomes.append(jax.tree.map(np.asarray, rows))
    assert sum(episodes.count for _, episodes in outcomes[0]) > 5  # or nothing was compared
    host, xla = jax.tree.leaves(outcomes[0]), jax.tree.leaves(outcomes[1])
    for a, b in zip(host, xla, strict=True):
        assert a.dtype == b.dtype
        # the policy is compiled apart from the scan: its last bits may differ, the rows not
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("terminates", [True, False])
def test_rows_around_an_ending(terminates, key):
    env = counting_env(3, terminates=terminates)
    collector = rollout.in_graph(remembering_agent(env.spec), env, num_envs=1, length=9)
    _, trajectory, episodes = collector.collect((), collector.init(key), key)
    rows = jax.tree.map(lambda x: np.asarray(x)[:, 0].squeeze(), trajectory.transitions)
    # three steps, then the row whose action is ignored and which holds the true final observation
    assert rows.observation.features.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert rows.reward.tolist() == [1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert rows.valid.tolist() == [True, True, True, False, True, True, True, False, True]
    ends = 0.0 if terminates else 1.0
    assert rows.discount.tolist() == [1, 1, ends, 1, 1, 1, ends, 1, 1]
    assert rows.extras["memory"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert trajectory.last_observation.features.tolist() == [[1.0]]
    # 1 + 2 + 3 twice, in three steps each
    assert (int(episodes.count), float(episodes.return_sum), int(episodes.length_sum)) == (2, 12, 6)


def test_episodes_and_carries_go_on_from_one_rollout_to_the_next(key):
    env = counting_env(5, terminates=True)
    collector = rollout.in_graph(remembering_agent(env.spec), env, num_envs=2, length=4)
    state, first, none = collector.collect((), collector.init(key), key)
    _, second, one = collector.collect((), state, key)
    assert int(none.count) == 0
    assert first.initial_carry.tolist() == [0, 0]
    assert second.initial_carry.tolist() == [4, 4]
    # rows 4 | 5 | 0, 1: the episode of 1+2+3+4+5 ends in the second rollout, on its first row
    assert second.transitions.valid[:, 0].tolist() == [True, False, True, True]
    assert (int(one.count), float(one.return_sum), int(one.length_sum)) == (2, 30, 10)


def test_only_the_extras_that_the_agent_stores_are_kept(key):
    env = counting_env(5, terminates=True)
    collector = rollout.in_graph(remembering_agent(env.spec), env, num_envs=2, length=4)
    _, trajectory, _ = collector.collect((), collector.init(key), key)
    assert set(trajectory.transitions.extras) == {"memory"}


@pytest.mark.parametrize("name", ["CartPole-v1", "gymnasium:CartPole-v1", "Pendulum-v1"])
def test_every_host_source_truncates_with_discount_1(name, key):
    env = pool(name, max_episode_steps=6)
    agent = ppo.make(CONFIG, env.spec)
    collector = rollout.make(agent, env, 4, 20, rollout.Kind.HOST)
    _, trajectory, episodes = collector.collect(agent.init(key).policy, collector.init(key), key)
    valid = trajectory.transitions.valid
    # no episode of so few steps falls: 6 rows, one behind them, from the start again
    expected = np.tile((np.arange(20) % 7 != 6)[:, None], (1, 4))
    np.testing.assert_array_equal(valid, expected)
    assert (trajectory.transitions.discount == 1).all()
    assert int(episodes.count) == 12  # on rows 5, 12 and 19 of each
    assert int(episodes.length_sum) == 72


def test_the_same_key_gives_the_same_rollout_and_another_key_another(key):
    env = wrappers.autoreset(cartpole.make())
    agent = ppo.make(CONFIG, env.spec)
    collector = rollout.in_graph(agent, env, 4, 30)
    policy, state = agent.init(key).policy, collector.init(key)
    actions = [
        np.asarray(collector.collect(policy, state, jax.random.key(seed))[1].transitions.action)
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(actions[0], actions[1])
    assert (actions[0] != actions[2]).any()


def test_kinds_that_do_not_fit_are_refused():
    env = wrappers.autoreset(cartpole.make())
    agent = ppo.make(CONFIG, env.spec)
    with pytest.raises(ValueError, match="use --collector=in_graph"):
        rollout.make(agent, env, 4, 5, rollout.Kind.HOST)
    with pytest.raises(ValueError, match="use --collector=host or envpool_xla"):
        rollout.make(agent, pool(), 4, 5, rollout.Kind.IN_GRAPH)
    with pytest.raises(ValueError, match="has no XLA step: use --collector=host"):
        rollout.make(agent, pool("gymnasium:CartPole-v1"), 4, 5, rollout.Kind.ENVPOOL_XLA)
