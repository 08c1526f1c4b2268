"""Recurrent PPO's update: replay equals acting, endings, minibatches, devices, every flag."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import ppo, ppo_recurrent
from rljax import normalizers, rollout
from rljax.envs import cartpole_positions, wrappers
from rljax.loops import on_policy
from rljax.nn.memory import Memory
from rljax.types import Box, Discrete, EnvSpec, Observation, Part, Trajectory, Transition
from tests.agents import on_policy_checks as checks
from tests.agents.test_ppo import CHANGES as PPO_CHANGES
from tests.agents.updates import learn, same

T, B = 6, 8
SPECS = {
    "discrete": EnvSpec("discrete", (3,), "float32", Discrete(4)),
    "masked": EnvSpec("masked", (3,), "float32", Discrete(4), has_mask=True),
    "box": EnvSpec("box", (3,), "float32", Box((-1.0, -2.0), (1.0, 2.0))),
    "named": EnvSpec(
        "named",
        (),
        "float32",
        Discrete(4),
        named_parts=(Part("image", (5, 5, 2), "uint8"), Part("vector", (3,), "float32")),
    ),
}
CONFIG = ppo_recurrent.Config(
    total_steps=T * B * 10,
    num_envs=B,
    rollout_length=T,
    num_epochs=2,
    num_minibatches=4,
    hidden_sizes=(8,),
    policy_head_scale=1.0,
    memory_size=8,
    attention_window=4,
    attention_heads=2,
)
MEMORIES = [pytest.param(memory, id=memory.value) for memory in Memory]
ENDED = jnp.zeros((T, B), bool).at[2, 1].set(True).at[3, 2].set(True).at[4, 2].set(False)
ENDED = ENDED.at[T - 1, 3].set(True).at[T - 2, 4].set(True)


def made(memory=Memory.GRU, spec="discrete", **changes):
    return ppo_recurrent.make(dataclasses.replace(CONFIG, memory=memory, **changes), SPECS[spec])


def features(spec, key):
    """Rows `[T + 1, B]` of every part."""
    drawn = {
        part.name: 2 + 3 * jax.random.normal(key, (T + 1, B, *part.shape))
        if part.dtype == "float32"
        else jax.random.randint(key, (T + 1, B, *part.shape), 0, 11).astype(jnp.uint8)
        for part in spec.parts
    }
    return drawn if spec.named_parts else drawn["observation"]


@functools.cache
def actor(agent):
    return jax.jit(functools.partial(rollout.decide, agent), static_argnums=5)


def rollout_of(agent, state, key, *, ended=ENDED, first_ended=None) -> Trajectory:
    """A made-up rollout, acted row by row as collectors do, from a carry that is not the initial.

    `ended[t, b]`: row t ended an episode (odd environments truncate, even ones terminate).
    `first_ended`: the row before the first did.
    """
    keys = jax.random.split(key, T + 4)
    seen = features(agent.spec, keys[-1])
    mask = None
    if agent.spec.has_mask:
        mask = jax.random.bernoulli(keys[-2], 0.5, (T + 1, B, 4)).at[..., 0].set(True)
    observations = Observation(seen, mask)
    warm = jax.tree.map(lambda x: x[0], Observation(features(agent.spec, keys[-3]), mask))
    behind = jnp.zeros(B, bool) if first_ended is None else first_ended
    fresh = agent.initial_carry(B)
    carry, _, _ = actor(agent)(state.policy, fresh, warm, jnp.zeros(B, bool), keys[-4], False)
    initial, rows = carry, []
    for t in range(T):
        observation = jax.tree.map(lambda x, t=t: x[t], observations)
        carry, action, extras = actor(agent)(
            state.policy, carry, observation, behind, keys[t], False
        )
        reward = jnp.where(behind, 0.0, jax.random.normal(keys[t], (B,)))
        discount = jnp.where(ended[t] & (jnp.arange(B) % 2 == 0), 0.0, 1.0)
        stored = {"log_prob": extras["log_prob"]}
        rows.append(Transition(observation, action, reward, discount, ~behind, stored))
        behind = ended[t]
    last = jax.tree.map(lambda x: x[T], observations)
    return Trajectory(jax.tree.map(lambda *x: jnp.stack(x), *rows), last, initial)


@pytest.mark.parametrize(
    ("memory", "spec"),
    [
        (Memory.GRU, "named"),
        (Memory.LSTM, "masked"),
        (Memory.ATTENTION, "box"),
    ],
)
def test_the_first_ratio_is_1_across_endings_from_any_carry(memory, spec, key):
    # and of one choice without a mask, by each memory, below
    normalize = spec != "masked"
    agent = made(memory, spec, num_epochs=1, num_minibatches=1, normalize_observation=normalize)
    state = agent.init(key)
    if normalize:
        moments = normalizers.Moments(jnp.float32(100.0), jnp.full(3, 2.0), jnp.full(3, 9.0))
        state = state._replace(observation=moments)
    batch = rollout_of(agent, state, key, first_ended=jnp.arange(B) == 5)
    assert not batch.transitions.valid.all(axis=0).all()
    _, metrics = learn(agent, state, batch, key)
    assert metrics["policy/approx_kl"] == pytest.approx(0, abs=1e-9)
    assert metrics["policy/clip_fraction"] == 0
    other = jax.tree.map(jnp.zeros_like, batch.initial_carry)
    _, metrics = learn(agent, state, batch._replace(initial_carry=other), key)
    assert metrics["policy/approx_kl"] > 1e-6  # so that the carry does matter


@pytest.mark.parametrize("memory", MEMORIES)
def test_values_and_advantages_match_acting_and_a_plain_loop(memory, key):
    agent = made(memory, num_epochs=1, num_minibatches=1, normalize_advantage=False)
    state = agent.init(key)
    batch = rollout_of(agent, state, key, first_ended=jnp.arange(B) == 5)
    _, metrics = learn(agent, state, batch, key)
    assert metrics["policy/approx_kl"] == pytest.approx(0, abs=1e-9)
    assert metrics["policy/clip_fraction"] == 0

    rows = jax.tree.map(np.asarray, batch.transitions)
    carry, value = batch.initial_carry, []
    behind = ~rows.valid
    for t in range(T + 1):  # V as it is served: by acting on
        seen = batch.last_observation if t == T else Observation(rows.observation.features[t])
        ended = behind[t] if t < T else np.zeros(B, bool)
        carry, _, extras = actor(agent)(state.policy, carry, seen, ended, key, True)
        value.append(np.asarray(extras["value"], float))
    advantage = np.zeros((T, B))
    for b in range(B):
        trace = 0.0
        for t in reversed(range(T)):
            # row t + 1 of a truncated row is its true final observation, seen with its own past
            delta = rows.reward[t, b] + 0.99 * rows.discount[t, b] * value[t + 1][b] - value[t][b]
            cut = t + 1 < T and not rows.valid[t + 1, b]
            trace = delta + (0 if cut else 0.99 * 0.95 * rows.discount[t, b] * trace)
            advantage[t, b] = trace
    weight = rows.valid / rows.valid.sum()
    # at ratio 1 the surrogate is -A, and G - V is A
    assert metrics["loss/policy"] == pytest.approx(-(weight * advantage).sum(), abs=1e-5)
    assert metrics["loss/value"] == pytest.approx((weight * advantage**2).sum() / 2, rel=1e-4)
    mean = (weight * np.array(value[:T])).sum()
    assert metrics["value/mean"] == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_terminated_episodes_final_row_teaches_nothing(memory, key):
    agent = made(memory)
    batch = rollout_of(agent, agent.init(key), key)
    # nor does the next episode see it: the carry was begun anew
    learned = checks.a_terminated_episodes_final_row_teaches_nothing(agent, key, batch)
    checks.a_truncated_episodes_final_row_is_its_future(agent, key, batch, learned)


@pytest.mark.parametrize(
    ("memory", "spec", "scale"),
    [
        (Memory.GRU, "box", ppo.RewardScale.REWARD),
        (Memory.LSTM, "discrete", ppo.RewardScale.VALUE),
        (Memory.ATTENTION, "masked", ppo.RewardScale.NONE),
    ],
)
def test_two_devices_and_pmap_give_what_one_device_gives(memory, spec, scale, key):
    agent = made(memory, spec, normalize_observation=True, reward_scale=scale)
    tolerances = {"to_one": (5e-4, 1e-5), "to_pmap": (1e-5, 1e-6)}
    checks.devices_agree(agent, rollout_of, key, count=2, **tolerances)


CHANGES = PPO_CHANGES | {
    "num_minibatches": 2,
    "shared_torso": True,
    "memory": Memory.LSTM,
    "memory_size": 12,
    "memory_layers": 2,
    "attention_window": 3,
    "attention_heads": 4,
}


def test_every_field_of_the_config_is_covered_below():
    fields = {f.name for f in dataclasses.fields(ppo_recurrent.Config)}
    covered = set(CHANGES) | {"torso"}  # by the frames above
    assert fields - covered == {"num_envs", "rollout_length"}  # the collector's business


@pytest.mark.parametrize("name", sorted(set(CHANGES) - {"torso"}))
def test_every_field_changes_the_outcome(name):
    base = dataclasses.replace(
        CONFIG,
        total_steps=T * B * 2,  # so that what is annealed is half as large in the second update
        learning_rate=1e-2,
        clip_ratio=0.05,
        memory=Memory.ATTENTION if name.startswith("attention") else Memory.GRU,
        normalize_observation=name == "observation_clip",
        reward_scale=ppo.RewardScale.REWARD if name == "reward_clip" else ppo.RewardScale.NONE,
    )
    make, spec = ppo_recurrent.make, SPECS["box"]
    checks.a_field_matters(make, base, name, CHANGES[name], spec, rollout_of)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_minibatches": 3}, "num_minibatches=3 does not divide config.num_envs=8"),
        ({"memory_size": 0}, "memory_size must be positive, not 0"),
        ({"memory_layers": 0}, "memory_layers must be positive, not 0"),
        ({"attention_window": 1}, "attention_window must be at least 2, not 1"),
        (
            {"memory": Memory.ATTENTION, "attention_heads": 3},
            "attention_heads=3 does not divide config.memory_size=8",
        ),
        ({"discount": 1.5}, "discount must lie in"),
    ],
)
def test_what_cannot_work_is_told(changes, words):
    with pytest.raises(ValueError, match=words):
        ppo_recurrent.validate(dataclasses.replace(CONFIG, **changes))


def test_a_minibatch_of_one_environment_does_not_split_over_two_devices():
    env = wrappers.autoreset(cartpole_positions.make())
    loop = ppo_recurrent.loop(dataclasses.replace(CONFIG, num_minibatches=8))
    with pytest.raises(ValueError, match="cannot be split"):
        on_policy.check(env, dataclasses.replace(loop, num_devices=2))
    on_policy.check(env, dataclasses.replace(loop, num_devices=1))
    assert loop.rows == T * B


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_collected_batch_begins_with_the_carry_that_the_last_one_left(memory, key):
    env = wrappers.autoreset(cartpole_positions.make(max_episode_steps=4))
    once = {"num_epochs": 1, "num_minibatches": 1, "normalize_advantage": False}
    agent = ppo_recurrent.make(dataclasses.replace(CONFIG, memory=memory, **once), env.spec)
    state = agent.init(key)
    collector = rollout.make(agent, env, B, T, rollout.Kind.AUTO)
    first, batch, _ = collector.collect(state.policy, collector.init(key), key)
    assert not any(leaf.any() for leaf in jax.tree.leaves(batch.initial_carry))
    _, batch, episodes = collector.collect(state.policy, first, jax.random.fold_in(key, 1))
    same(batch.initial_carry, first.carry, rtol=0)
    assert any(leaf.any() for leaf in jax.tree.leaves(batch.initial_carry))
    assert episodes.count > 0
    _, metrics = learn(agent, state, batch, key)
    assert metrics["loss/policy"] != 0
    assert metrics["policy/approx_kl"] == pytest.approx(0, abs=1e-9)
