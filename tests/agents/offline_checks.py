"""What holds for every agent that learns from a dataset."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rljax import normalizers, sharding
from rljax.types import Box, Discrete, EnvSpec, MultiDiscrete, Observation, Part
from serving import bundle
from tests.agents import updates as learned
from tests.agents.samples import B, learn, sample
from tests.agents.updates import differs, same

BOX = Box((-1.0, -2.0), (1.0, 4.0))
SPECS = {
    "box": EnvSpec("box", (3,), "float32", BOX),
    "discrete": EnvSpec("discrete", (3,), "float32", Discrete(4)),
    "masked": EnvSpec("masked", (3,), "float32", Discrete(4), has_mask=True),
    "several": EnvSpec("several", (3,), "float32", MultiDiscrete((2, 3))),
}
PARTS = EnvSpec(
    "parts",
    (),
    "float32",
    BOX,
    named_parts=(Part("camera", (5, 6, 1), "uint8"), Part("vector", (2,), "float32")),
)
SCALE = 0.25  # of rewards
REWARDS = {"reward_multiplier": 2.0, "reward_bias": -1.0}  # fields of the loop
MOMENTS = normalizers.Moments(
    jnp.float32(9.0), jnp.array([1.0, -2.0, 0.5]), jnp.array([4.0, 0.25, 1.0])
)


def batch_of(spec: EnvSpec, key: jax.Array):
    """A sample whose actions are allowed, as a dataset's are, of several kinds too."""
    if isinstance(spec.action, MultiDiscrete):
        batch = sample(SPECS["discrete"], key)
        return batch._replace(action=jnp.stack([batch.action % 2, batch.action % 3], axis=-1))
    batch = sample(spec, key)
    if not spec.has_mask:
        return batch
    taken = jax.nn.one_hot(batch.action, spec.action.num_actions, dtype=bool)
    observation = batch.observation
    return batch._replace(observation=observation._replace(mask=observation.mask | taken))


def devices_agree(agent, key, updates=3):
    """One device, two devices and pmap learn the same."""
    one = two = pmapped = agent.init(key)
    for i in range(updates):
        step = jax.random.fold_in(key, i)
        batch = batch_of(agent.spec, step)
        one, metrics, _ = learn(agent, one, batch, step)
        two, metrics_two, _ = learn(agent, two, batch, step, devices=2)
        pmapped, _, _ = learn(
            agent, pmapped, batch, step, devices=2, backend=sharding.Parallel.PMAP
        )
    same(one, two, rtol=5e-4, atol=5e-6)  # sums in another order
    same(two, pmapped, rtol=1e-6, atol=1e-7)
    same(metrics, metrics_two, rtol=1e-3, atol=1e-5)
    assert differs(one.params, agent.init(key).params)


def rows_without_weight_teach_nothing(agent, key):
    """The last row, of weight 0, may hold anything; with a weight it would count."""
    state, batch = agent.init(key), batch_of(agent.spec, key)
    assert batch.weight[-1] == 0
    noise = batch._replace(
        observation=batch.observation._replace(
            features=batch.observation.features.at[-1].set(77.0)
        ),
        reward=batch.reward.at[-1].set(99.0),
    )
    clean, metrics, _ = learn(agent, state, batch, key)
    noisy, metrics_noisy, _ = learn(agent, state, noise, key)
    same(clean, noisy, rtol=0)
    same(metrics, metrics_noisy, rtol=0)
    weighted, _, _ = learn(agent, state, noise._replace(weight=jnp.ones(B)), key)
    assert differs(clean.params, weighted.params)
    nothing, _, _ = learn(agent, state, batch._replace(weight=jnp.zeros(B)), key)
    same(nothing.params, state.params, rtol=0)


def observations_are_normalized(normalizing, plain, key):
    """Learning and acting by `MOMENTS`, which stay, are those of vectors normalized by hand."""
    mean, deviation = np.asarray(MOMENTS.mean), np.sqrt(np.asarray(MOMENTS.variance))

    def by_hand(observation):
        features = (np.asarray(observation.features) - mean) / deviation
        return observation._replace(features=jnp.asarray(features))

    state, batch = normalizing.init(key), batch_of(plain.spec, key)
    same(state.observation, normalizers.init((3,)), rtol=0)  # until the loop fills it in
    assert plain.init(key).observation is None
    state = state._replace(observation=MOMENTS)
    one, metrics, _ = learn(normalizing, state, batch, key)
    prepared = batch._replace(
        observation=by_hand(batch.observation), next_observation=by_hand(batch.next_observation)
    )
    two, metrics_two, _ = learn(plain, plain.init(key), prepared, key)
    same(one.observation, MOMENTS, rtol=0)
    same(metrics, metrics_two, rtol=1e-3, atol=1e-4)
    same(one.params, two.params, rtol=1e-3, atol=1e-4)
    acted = normalizing.act(one.policy, (), batch.observation, key, True)
    expected = plain.act(two.policy, (), prepared.observation, key, True)
    same(acted, expected, rtol=1e-2, atol=1e-3)


def rewards_are_scaled(scaling, plain, key):
    """Learning by `SCALE`, which stays, is that of rewards scaled by hand."""
    state, batch = scaling.init(key), batch_of(plain.spec, key)
    assert (state.reward_scale, plain.init(key).reward_scale) == (1, None)  # the loop fills it in
    state = state._replace(reward_scale=jnp.float32(SCALE))
    one, metrics, _ = learn(scaling, state, batch, key)
    prepared = batch._replace(reward=SCALE * batch.reward)
    two, metrics_two, _ = learn(plain, plain.init(key), prepared, key)
    assert one.reward_scale == np.float32(SCALE)
    same(metrics, metrics_two, rtol=1e-5, atol=1e-6)
    same(one.params, two.params, rtol=1e-5, atol=1e-6)
    unscaled, _, _ = learn(plain, plain.init(key), batch, key)
    assert differs(unscaled.params, two.params)


def changed_by(make, base, changes, spec, updates=2):
    """`updates.changed_by`, of all that is learned."""
    outcomes = learned.changed_by(make, base, changes, spec, batch_of, _with_statistics, updates)
    return [
        state._replace(schedules=(), **dict.fromkeys(_statistics(state), ())) for state in outcomes
    ]


def _statistics(state):
    """What the loop fills in, of what there is a field for."""
    found = {"observation": MOMENTS, "reward_scale": jnp.float32(SCALE)}
    return {name: value for name, value in found.items() if name in state._fields}


def _with_statistics(state):
    found = _statistics(state).items()
    asked = {name: value for name, value in found if getattr(state, name) is not None}
    return state._replace(**asked)


def units_do_not_matter(make, config, key):
    """Learning is the same from actions of another box, stretched likewise."""
    spec = SPECS["box"]
    wide = dataclasses.replace(spec, action=Box((0.0, -20.0), (100.0, 40.0)))
    batch = sample(spec, key)
    stretched = (batch.action - jnp.array([[-1.0, -2.0]])) * jnp.array([[50.0, 10.0]])
    stretched += jnp.array([[0.0, -20.0]])
    one, two = make(config, spec), make(config, wide)
    after, metrics, _ = learn(one, one.init(key), batch, key)
    other, metrics_other, _ = learn(two, two.init(key), batch._replace(action=stretched), key)
    same(after, other, rtol=1e-3, atol=1e-5)
    same(metrics, metrics_other, rtol=1e-3, atol=1e-5)


def nothing_comes_after_a_termination(agent, key, rtol=0.0):
    """What is seen after the first row, which terminated, teaches nothing; else it does."""
    state, batch = agent.init(key), batch_of(agent.spec, key)

    def with_next(row):
        features = batch.next_observation.features.at[row].set(50.0)
        return learn(agent, state, batch._replace(next_observation=Observation(features)), key)[0]

    plain, _, _ = learn(agent, state, batch, key)
    assert batch.discount[0] == 0
    same(plain.params, with_next(0).params, rtol=rtol)
    assert differs(plain.params.critic, with_next(1).params.critic)


def policy_and_targets_wait(agent, period, target_rate, key):
    """Critics learn at every update; policy and targets at every `period`-th, both."""
    state = agent.init(key)
    for i in range(1, 2 * period + 1):
        step = jax.random.fold_in(key, i)
        after, metrics, _ = learn(agent, state, batch_of(agent.spec, step), step)
        assert differs(after.params.critic, state.params.critic)
        due = i % period == 0
        assert differs(after.params.actor, state.params.actor) == due
        assert differs(after.opt_state.actor, state.opt_state.actor) == due
        expected = state.target
        if due:  # towards what has just been learned
            expected = jax.tree.map(
                lambda new, old: target_rate * new + (1 - target_rate) * old, after.params, expected
            )
        same(after.target, expected, rtol=1e-5, atol=1e-7)
        assert (metrics["loss/actor"] == state.measured["loss/actor"]) == (not due)
        state = after


def parts_are_seen(agent, key):
    """Frames and a vector fit; traced alone, because convolutions take long to compile."""
    batch = batch_of(agent.spec, key)
    axes = jax.P(), jax.P(sharding.AXIS), jax.P()
    update = jax.shard_map(
        agent.update, mesh=sharding.mesh(2), in_specs=axes, out_specs=jax.P(), check_vma=False
    )

    def all_of_it(key):
        state = agent.init(key)
        after, metrics = update(state, batch, key)
        acted = agent.act(after.policy, (), batch.observation, key, False)
        return state, after, metrics, acted

    state, after, metrics, (_, action, _) = jax.eval_shape(all_of_it, key)
    assert after == state  # in shapes and types
    assert all(number.shape == () for number in metrics.values())
    assert action.shape == batch.action.shape


def a_bundle_answers(name, agent, config, key, outputs):
    """The policy goes into a bundle whose golden outputs are these, none of them NaN."""
    provenance = bundle.Provenance(f"runs/{name}", 1, None, name, agent.spec.name, "")
    made = bundle.make(agent, agent.init(key).policy, config, provenance)
    found = {n.split("/")[2] for n in made.golden if n.startswith("sample/output")}
    assert found == outputs


def observation_of(spec: EnvSpec, rows: int, key: jax.Array, mask=None) -> Observation:
    """Random vectors, with the same mask for all of them."""
    features = jax.random.normal(key, (rows, *spec.observation_shape))
    if not spec.has_mask:
        return Observation(features)
    return Observation(features, jnp.broadcast_to(jnp.array([mask]), (rows, len(mask))))
