"""What holds for every agent that learns from rollouts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from rljax import normalizers, sharding
from rljax.types import Box, Observation
from tests.agents import updates
from tests.agents.updates import differs, learn, same


def devices_agree(agent, rollout_of, key, count=3, to_one=(2e-4, 2e-6), to_pmap=(1e-6, 1e-7)):
    """One device, two devices and pmap learn the same, to rounding: `(rtol, atol)`."""
    one = two = pmapped = agent.init(key)
    for i in range(count):
        step = jax.random.fold_in(key, i)
        batch = rollout_of(agent, one, step)
        one, metrics = learn(agent, one, batch, step)
        two, metrics_two = learn(agent, two, batch, step, devices=2)
        pmapped, _ = learn(agent, pmapped, batch, step, devices=2, backend=sharding.Parallel.PMAP)
    same(one, two, rtol=to_one[0], atol=to_one[1])  # sums in another order
    same(metrics, metrics_two, rtol=10 * to_one[0], atol=2e-5)
    same(two, pmapped, rtol=to_pmap[0], atol=to_pmap[1])


def a_terminated_episodes_final_row_teaches_nothing(agent, key, batch):
    """Row 4 of environment 2, behind a termination, may hold anything: what is learned is the same.

    Returns what that is, the parameters.
    """
    state, rows = agent.init(key), batch.transitions
    assert not rows.valid[4, 2]
    assert rows.discount[3, 2] == 0  # terminated: not even its V may matter
    noise = rows._replace(
        observation=Observation(rows.observation.features.at[4, 2].set(77.0)),
        action=rows.action.at[4, 2].set((rows.action[4, 2] + 1) % 4),
        extras={"log_prob": rows.extras["log_prob"].at[4, 2].add(3.0)},
    )
    clean, _ = learn(agent, state, batch, key)
    noisy, _ = learn(agent, state, batch._replace(transitions=noise), key)
    same(clean, noisy, rtol=0)
    return clean.params


def a_truncated_episodes_final_row_is_its_future(agent, key, batch, params):
    """Row 3 of environment 1, behind a truncation, is valued: without it `params` are learned."""
    rows = batch.transitions
    assert not rows.valid[3, 1]
    assert rows.discount[2, 1] == 1
    final = rows._replace(observation=Observation(rows.observation.features.at[3, 1].set(77.0)))
    other, _ = learn(agent, agent.init(key), batch._replace(transitions=final), key)
    assert differs(params, other.params)


def statistics_move_behind_the_rollout(agent, rollout_of, key):
    """A policy's observations are normalized by those of before, so its first ratio is 1."""
    moments = normalizers.Moments(jnp.float32(100.0), jnp.full(3, 2.0), jnp.full(3, 9.0))
    state = agent.init(key)._replace(observation=moments)
    batch = rollout_of(agent, state, key)
    after, metrics = learn(agent, state, batch, key)
    np.testing.assert_allclose(metrics["policy/approx_kl"], 0, atol=1e-9)
    assert float(after.observation.count) == 100 + int(batch.transitions.valid.sum())


def the_rate_falls(make, config, spec, rollout_of, key):
    """From 1, linearly to 0 and no further where `config` ends after 4 updates; or not at all."""
    for anneal, expected in ((True, [1, 0.75, 0.5, 0.25, 0]), (False, [1] * 5)):
        agent = make(dataclasses.replace(config, anneal_learning_rate=anneal), spec)
        state, rates = agent.init(key), []
        batch = rollout_of(agent, state, key)
        for _ in expected:
            state, metrics = learn(agent, state, batch, key)
            rates.append(metrics["policy/learning_rate"])
        np.testing.assert_allclose(rates, expected)


def a_field_matters(make, base, name, value, spec, rollout_of):
    """Two updates leave other parameters, the second of which is the first with annealed rates."""
    batch_of = _batches(make, base, spec, rollout_of)
    states = updates.changed_by(make, base, {name: value}, spec, batch_of, _as_it_is)
    before, after = (state.params for state in states)
    assert before != after if name in updates.SIZES else differs(before, after)


@functools.cache
def _batches(make, config, spec, rollout_of):
    """Rollouts of the config's first policy, within the box: the same, whoever learns from them."""

    @functools.cache
    def first():
        agent = make(config, spec)
        return agent, agent.init(jax.random.key(0))

    def batch_of(_, key):
        batch = rollout_of(*first(), key)
        rows = batch.transitions
        if isinstance(spec.action, Box):
            rows = rows._replace(action=jnp.clip(rows.action, -0.9, 0.9))
        return batch._replace(transitions=rows)

    return batch_of


def _as_it_is(state):
    return state
