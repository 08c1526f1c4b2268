"""SAC as a whole: exploration, scales, weights, devices, and every flag; boxes and discrete."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import sac
from rljax import sharding
from rljax.nn.mlp import Activation
from rljax.nn.torsos import Torso
from rljax.types import Box, Discrete, EnvSpec, MultiDiscrete, Observation, Part
from serving import bundle
from tests.agents.offline_checks import rows_without_weight_teach_nothing
from tests.agents.samples import B, learn, sample
from tests.agents.updates import differs, same

BOX = Box((-1.0, -2.0), (1.0, 4.0))
SPECS = {
    "box": EnvSpec("box", (3,), "float32", BOX),
    "discrete": EnvSpec("discrete", (3,), "float32", Discrete(4)),
    "masked": EnvSpec("masked", (3,), "float32", Discrete(4), has_mask=True),
}
PIXELS = {
    "box": EnvSpec("pixels", (5, 6, 1), "uint8", BOX),
    "discrete": EnvSpec("pixels", (5, 6, 1), "uint8", Discrete(4)),
    "parts": EnvSpec(
        "parts",
        (),
        "float32",
        BOX,
        named_parts=(Part("camera", (5, 6, 1), "uint8"), Part("vector", (2,), "float32")),
    ),
}
CONFIG = sac.Config(batch_size=B, learning_rate=1e-2, hidden_sizes=(8,))
each_kind = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


@each_kind
def test_two_devices_and_pmap_give_what_one_device_gives(spec, key):
    agent = sac.make(CONFIG, spec)
    one = two = pmapped = agent.init(key)
    for i in range(3):
        step = jax.random.fold_in(key, i)
        batch = sample(spec, step)
        one, metrics, _ = learn(agent, one, batch, step)
        two, metrics_two, _ = learn(agent, two, batch, step, devices=2)
        pmapped, _, _ = learn(
            agent, pmapped, batch, step, devices=2, backend=sharding.Parallel.PMAP
        )
    same(one, two, rtol=2e-4, atol=2e-6)  # sums in another order
    same(two, pmapped, rtol=1e-6, atol=1e-7)
    same(metrics, metrics_two, rtol=1e-3, atol=1e-5)


@each_kind
def test_a_row_without_weight_has_no_effect(spec, key):
    rows_without_weight_teach_nothing(sac.make(CONFIG, spec), key)


@each_kind
def test_the_target_follows_at_its_rate(spec, key):
    agent = sac.make(dataclasses.replace(CONFIG, target_rate=0.25), spec)
    state, batch = agent.init(key), sample(spec, key)
    same(state.target, state.params.critic, rtol=0)
    after, _, _ = learn(agent, state, batch, key)
    expected = jax.tree.map(
        lambda new, old: 0.25 * new + 0.75 * old, after.params.critic, state.target
    )
    same(after.target, expected, rtol=1e-5, atol=1e-7)
    assert differs(after.target, state.target)


def test_learning_does_not_depend_on_the_units_of_the_actions(key):
    wide = dataclasses.replace(SPECS["box"], action=Box((0.0, -20.0), (100.0, 40.0)))
    batch = sample(SPECS["box"], key)
    size = jnp.array([[50.0, 10.0]])
    stretched = (batch.action - jnp.array([[-1.0, -2.0]])) * size + jnp.array([[0.0, -20.0]])
    one, two = sac.make(CONFIG, SPECS["box"]), sac.make(CONFIG, wide)
    after, metrics, _ = learn(one, one.init(key), batch, key)
    other, metrics_other, _ = learn(two, two.init(key), batch._replace(action=stretched), key)
    same(after, other, rtol=1e-3, atol=1e-5)
    same(metrics, metrics_other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("learn_temperature", [True, False])
@each_kind
def test_temperature_falls_while_the_policy_has_more_entropy_than_it_should(
    spec, learn_temperature, key
):
    agent = sac.make(dataclasses.replace(CONFIG, learn_temperature=learn_temperature), spec)
    state, batch = agent.init(key), sample(spec, key)
    after, metrics, _ = learn(agent, state, batch, key)
    # -2 for the box; half of what uniform choices have, which the first policy almost makes
    assert metrics["policy/entropy"] > 0.5
    # Adam's first step is the learning rate, down, in log α
    step = 1e-2 if learn_temperature else 0.0
    assert after.params.log_temperature == pytest.approx(-step, rel=1e-3)
    assert metrics["policy/temperature"] == 1


def test_targets_hold_the_entropy_of_what_comes_next(key):
    spec = SPECS["discrete"]
    config = dataclasses.replace(CONFIG, initial_temperature=100.0)
    agent, batch = sac.make(config, spec), sample(spec, key)
    _, metrics, _ = learn(agent, agent.init(key), batch, key)
    # almost uniform: V' is near α log 4, and Q near 0: ½(0.9 · 139)² for each of two critics
    expected = 6 / 7 * (0.9 * 100 * np.log(4)) ** 2  # of 7 rows, one terminated
    assert metrics["loss/critic"] == pytest.approx(expected, rel=0.05)


@each_kind
def test_actions_are_uniform_until_learning_starts(spec, key):
    agent = sac.make(CONFIG, spec)
    state = agent.init(key)
    # a policy that has an opinion, which must not show
    kernel = state.params.actor["params"]["layers_1"]["Dense_0"]["kernel"]
    state.params.actor["params"]["layers_1"]["Dense_0"]["kernel"] = 1_000 * kernel
    mask = jnp.broadcast_to(jnp.array([[True, False, True, True]]), (6_000, 4))
    features = jax.random.normal(key, (6_000, 3))
    observation = Observation(features, mask if spec.has_mask else None)
    _, action, extras = agent.act(state.policy, (), observation, key, False)
    if spec.name == "box":
        assert extras["log_prob"] == pytest.approx(-np.log(2 * 6), abs=1e-5)
        low, high = np.array(BOX.low), np.array(BOX.high)
        unit = (np.asarray(action) - low) / (high - low)
        deciles = [np.histogram(x, 10, (0, 1))[0] / 6_000 for x in unit.T]
        np.testing.assert_allclose(deciles, 0.1, atol=0.02)  # five deviations
        assert abs(np.corrcoef(unit.T)[0, 1]) < 0.07
    else:
        shares = np.bincount(action, minlength=4) / 6_000
        allowed = [1 / 3, 0, 1 / 3, 1 / 3] if spec.has_mask else [1 / 4] * 4
        np.testing.assert_allclose(shares, allowed, atol=0.03)
        np.testing.assert_allclose(extras["log_prob"], np.log(allowed[0]), rtol=1e-5)
    later = state._replace(updates=jnp.int32(1)).policy
    _, chosen, of_policy = agent.act(later, (), observation, key, False)
    assert of_policy["entropy"].mean() < extras["entropy"].mean() - 0.3
    assert differs(chosen, action)
    _, greedy, _ = agent.act(state.policy, (), observation, key, True)
    _, greedy_later, _ = agent.act(later, (), observation, key, True)
    np.testing.assert_array_equal(greedy, greedy_later)


def test_draws_lie_within_the_bounds_and_report_their_density(key):
    agent = sac.make(CONFIG, SPECS["box"])
    policy = agent.init(key).policy._replace(learning=jnp.bool_(True))
    features = jax.random.normal(key, (500, 3))
    _, action, extras = agent.act(policy, (), Observation(features), key, False)
    assert ((action >= jnp.array([BOX.low])) & (action <= jnp.array([BOX.high]))).all()
    # by the change of variables a = low + s (tanh u + 1): log N(u) - Σ log s (1 - tanh² u)
    s = np.array([1.0, 3.0])
    tanh = (np.asarray(action, float) - np.array(BOX.low)) / s - 1
    u, mean, scale = np.arctanh(tanh), np.asarray(extras["mean"]), np.asarray(extras["scale"])
    normal = -0.5 * ((u - mean) / scale) ** 2 - np.log(scale * np.sqrt(2 * np.pi))
    expected = (normal - np.log(s * (1 - tanh**2))).sum(-1)
    np.testing.assert_allclose(extras["log_prob"], expected, rtol=1e-3, atol=1e-3)


def test_masked_actions_are_never_taken_and_have_no_probability(key):
    agent = sac.make(CONFIG, SPECS["masked"])
    for learning in (False, True):
        policy = agent.init(key).policy._replace(learning=jnp.bool_(learning))
        mask = jnp.array([[False, True, False, True]] * 1_000)
        observation = Observation(jax.random.normal(key, (1_000, 3)), mask)
        for greedy in (False, True):
            _, action, extras = agent.act(policy, (), observation, key, greedy)
            assert set(np.unique(action)) <= {1, 3}
            assert (extras["probabilities"][:, [0, 2]] == 0).all()
            np.testing.assert_allclose(extras["probabilities"].sum(-1), 1, rtol=1e-5)


def test_a_forbidden_next_action_is_never_valued(key):
    spec = SPECS["masked"]
    agent = sac.make(CONFIG, spec)
    state = agent.init(key)
    batch = sample(spec, key)
    mask = jnp.broadcast_to(jnp.arange(4) < 2, (B, 4))
    batch = batch._replace(next_observation=batch.next_observation._replace(mask=mask))

    def with_bias(bias):
        target = jax.tree.map(jnp.copy, state.target)
        target["params"]["layers_1"]["Dense_0"]["bias"] += bias
        return learn(agent, state._replace(target=target), batch, key)[1]["loss/critic"]

    base = with_bias(jnp.zeros((1, 4)))
    assert with_bias(jnp.array([[0.0, 0.0, 1e6, -1e6]])) == base  # not even after rounding
    assert with_bias(jnp.array([[1.0, 0.0, 0.0, 0.0]])) != base


@pytest.mark.parametrize("spec", PIXELS.values(), ids=PIXELS)
def test_pixels_and_named_parts_are_seen(spec, key):
    agent = sac.make(CONFIG, spec)
    state, batch = agent.init(key), sample(spec, key)
    after, metrics, _ = learn(agent, state, batch, key)
    assert all(np.isfinite(number) for number in metrics.values())
    assert differs(after.params.actor, state.params.actor)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (Box((-1.0,), (float("inf"),)), "bounds"),
        (MultiDiscrete((2, 2)), "several at once"),
    ],
)
def test_other_actions_are_refused_in_a_sentence(action, words):
    with pytest.raises(ValueError, match=words):
        sac.make(CONFIG, EnvSpec("Odd-v1", (3,), "float32", action))


LOOP = ("total_steps", "num_envs", "rollout_length", "num_updates", "learning_starts")
REPLAY = {
    "replay_capacity": "capacity",
    "batch_size": "batch_size",
    "discount": "discount",
    "num_steps": "num_steps",
}
CHANGES = {
    "learning_rate": 1e-3,
    "adam_epsilon": 1e-2,
    "target_rate": 0.5,
    "initial_temperature": 0.5,
    "learn_temperature": False,
    "target_entropy": 100.0,
    "target_entropy_fraction": 1.0,
    "torso": Torso.MLP,
    "hidden_sizes": (9,),
    "activation": Activation.TANH,
}


def test_every_field_of_the_config_is_covered():
    fields = {field.name for field in dataclasses.fields(sac.Config)}
    assert fields == {*LOOP, *REPLAY, *CHANGES}


def test_the_loop_gets_its_fields():
    config = dataclasses.replace(CONFIG, num_steps=3)
    drive = sac.loop(config)
    for name in LOOP:
        assert getattr(drive, name) == getattr(config, name)
    for name, theirs in REPLAY.items():
        assert getattr(drive.replay, theirs) == getattr(config, name)


@functools.cache
def trained(config, kind):
    key = jax.random.key(0)
    agent = sac.make(config, SPECS[kind])
    state = agent.init(key)
    for i in range(2):
        state, _, _ = learn(agent, state, sample(SPECS[kind], jax.random.fold_in(key, i)), key)
    return state


@pytest.mark.parametrize("kind", ["box", "discrete"])
@pytest.mark.parametrize("name", [name for name in CHANGES if name != "torso"])
def test_every_field_changes_the_outcome(name, kind):
    changed = trained(dataclasses.replace(CONFIG, **{name: CHANGES[name]}), kind)
    of_the_other = {"target_entropy": "discrete", "target_entropy_fraction": "box"}
    assert differs(trained(CONFIG, kind), changed) == (of_the_other.get(name) != kind)


def test_the_torso_is_asked_for():
    with pytest.raises(ValueError, match=r"config\.torso=mlp"):
        sac.make(dataclasses.replace(CONFIG, torso=Torso.MLP), PIXELS["box"])


@each_kind
def test_a_bundle_answers_as_the_agent_does(spec, key):
    agent = sac.make(CONFIG, spec)
    provenance = bundle.Provenance("runs/sac", 1, None, "sac", spec.name, "")
    policy = agent.init(key).policy._replace(learning=jnp.bool_(True))
    made = bundle.make(agent, policy, CONFIG, provenance)
    outputs = {n.split("/")[2] for n in made.golden if n.startswith("sample/output")}
    of_kind = {"mean", "scale"} if spec.name == "box" else {"probabilities"}
    assert outputs == {"action", "log_prob", "entropy", "value"} | of_kind
