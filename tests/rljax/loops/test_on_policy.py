"""The on-policy loop: budget, resume bit for bit, devices, metrics."""

import dataclasses

import jax
import numpy as np
import pytest

from agents import ppo
from rljax import checkpoint, rollout, sharding, sources
from rljax.loops import on_policy

AGENT = ppo.Config(
    total_steps=8 * 16 * 6,
    num_envs=8,
    rollout_length=16,
    num_minibatches=2,
    num_epochs=2,
    hidden_sizes=(8,),
    normalize_observation=True,
    reward_scale=ppo.RewardScale.REWARD,
)
LOOP = dataclasses.replace(ppo.loop(AGENT), seed=5, num_devices=1)


def parts(name="rljax:cartpole"):
    env = sources.open(sources.EnvSource(name, AGENT.num_envs, seed=5))
    return ppo.make(AGENT, env.spec), env


def train(loop=LOOP, name="rljax:cartpole"):
    """All updates of a run from its start: steps, metrics, final state on the host."""
    agent, env = parts(name)
    updates = on_policy.run(agent, env, on_policy.init(agent, env, loop), loop, 0)
    steps, states, metrics = zip(*updates, strict=True)
    return list(steps), metrics, jax.device_get(without_keys(states[-1]))


def without_keys(state):
    """In-graph environments keep typed keys, which NumPy does not know."""

    def data(x):
        return jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    return jax.tree.map(data, state)


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_it_spends_the_budget_and_no_more():
    loop = dataclasses.replace(LOOP, total_steps=8 * 16 * 2 + 127)  # 127: not one update more
    steps, metrics, state = train(loop)
    assert steps == [128, 256]
    assert state.train.updates == 2
    assert metrics[0].keys() >= {"loss/policy", "loss/value", "policy/entropy"}
    assert metrics[0].keys() >= {"time/collect_seconds", "time/learn_seconds"}


def test_a_killed_and_resumed_run_is_a_straight_one_bit_for_bit(tmp_path):
    _, _, straight = train()

    agent, env = parts()
    with checkpoint.Manager(tmp_path) as checkpoints:
        start = on_policy.init(agent, env, LOOP)
        for step, state, _ in on_policy.run(agent, env, start, LOOP, 0):
            checkpoints.save(step, state)
            if step == 3 * 128:
                break

    agent, env = parts()  # as a new process would
    with checkpoint.Manager(tmp_path) as checkpoints:
        step, state = checkpoints.restore_or(lambda: on_policy.init(agent, env, LOOP))
        assert step == 3 * 128
        *_, (step, state, _) = on_policy.run(agent, env, state, LOOP, step)
    assert step == AGENT.total_steps
    assert_equal(straight, jax.device_get(without_keys(state)))


def test_a_simulator_on_the_host_resumes_with_fresh_episodes(tmp_path):
    agent, env = parts("CartPole-v1")
    state = on_policy.init(agent, env, LOOP)
    assert state.rollout is None
    with checkpoint.Manager(tmp_path) as checkpoints:
        step, state, _ = next(on_policy.run(agent, env, state, LOOP, 0))
        checkpoints.save(step, state)
        checkpoints.wait()
        saved = jax.device_get(state.train)
        step, state = checkpoints.restore_or(lambda: on_policy.init(agent, env, LOOP))
    assert_equal(saved, jax.device_get(state.train))
    steps = [step for step, _, _ in on_policy.run(agent, env, state, LOOP, step)]
    assert steps == [256, 384, 512, 640, 768]


@pytest.mark.parametrize("backend", sharding.Parallel)
def test_two_devices_learn_what_one_learns(backend):
    one = train()[2].train
    two = train(dataclasses.replace(LOOP, num_devices=2, parallel=backend))[2].train
    # sums over rows in another order: equal but for rounding, which training magnifies
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert one.updates == two.updates == 6


def test_environments_that_do_not_split_over_the_devices_are_refused():
    agent, env = parts()
    state = on_policy.init(agent, env, LOOP)
    with pytest.raises(ValueError, match="--num_devices=3, but this process has 2"):
        on_policy.run(agent, env, state, dataclasses.replace(LOOP, num_devices=3), 0)
    odd = dataclasses.replace(LOOP, num_devices=2, num_envs=7)
    with pytest.raises(ValueError, match="num_envs=7 cannot be split over 2 devices"):
        on_policy.run(agent, env, state, odd, 0)
    single = dataclasses.replace(LOOP, num_devices=2, num_minibatches=8 * 16)
    with pytest.raises(ValueError, match="minibatches of 1 rows cannot be split over 2 devices"):
        on_policy.run(agent, env, state, single, 0)


def test_collectors_can_be_chosen():
    steps, _, _ = train(dataclasses.replace(LOOP, collector=rollout.Kind.HOST), "CartPole-v1")
    assert steps[-1] == AGENT.total_steps
