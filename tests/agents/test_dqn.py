"""DQN as a whole: targets, exploration, weights, devices, and every flag."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import dqn
from rljax import sharding
from rljax.nn.mlp import Activation
from rljax.nn.torsos import Torso
from rljax.types import Box, Discrete, EnvSpec, MultiDiscrete, Observation
from serving import bundle
from tests.agents.offline_checks import rows_without_weight_teach_nothing
from tests.agents.samples import B, learn, sample
from tests.agents.updates import differs, same

SPECS = {
    "vector": EnvSpec("vector", (3,), "float32", Discrete(4)),
    "masked": EnvSpec("masked", (3,), "float32", Discrete(4), has_mask=True),
    "pixels": EnvSpec("pixels", (5, 6, 1), "uint8", Discrete(3)),
}
CONFIG = dqn.Config(
    total_steps=1_000,
    num_envs=2,
    rollout_length=5,
    num_updates=2,
    learning_starts=45,
    batch_size=B,
    learning_rate=1e-2,
    target_period=2,
    exploration_fraction=0.5,
    final_epsilon=0.1,
    hidden_sizes=(8,),
)
C51 = dataclasses.replace(CONFIG, num_atoms=11, value_min=-3.0, value_max=3.0)


def q_values(agent, params, observation) -> np.ndarray:
    policy = dqn.Policy(params, jnp.float32(0))
    return np.asarray(
        agent.act(policy, (), observation, jax.random.key(0), True)[2]["action_values"]
    )


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("spec", [SPECS["vector"], SPECS["masked"]], ids=["vector", "masked"])
def test_loss_and_priorities_match_numpy(spec, double, key):
    agent = dqn.make(dataclasses.replace(CONFIG, double=double), spec)
    online, target = agent.init(key), agent.init(jax.random.fold_in(key, 1))
    batch = sample(spec, key)
    batch = batch._replace(weight=jnp.arange(B) / 4)  # of importance; row 0 is to be ignored
    _, metrics, priority = learn(agent, online._replace(target=target.params), batch, key)

    q = q_values(agent, online.params, batch.observation)
    chooser = q_values(agent, (online if double else target).params, batch.next_observation)
    if spec.has_mask:
        chooser = np.where(batch.next_observation.mask, chooser, -np.inf)
    ahead = q_values(agent, target.params, batch.next_observation)
    rows = np.arange(B)
    goal = batch.reward + batch.discount * ahead[rows, chooser.argmax(1)]
    error = np.asarray(goal - q[rows, batch.action])
    huber = np.where(np.abs(error) < 1, error**2 / 2, np.abs(error) - 0.5)
    assert (np.abs(error) > 1).any()
    assert metrics["loss/q"] == pytest.approx((np.arange(B) / 4 * huber)[1:].sum() / 7, rel=1e-4)
    np.testing.assert_allclose(priority, np.abs(error), rtol=1e-4, atol=1e-5)


def test_c51_learns_the_distribution_that_it_projects(key):
    spec = SPECS["vector"]
    agent = dqn.make(dataclasses.replace(C51, target_period=10_000), spec)
    state, batch = agent.init(key), sample(spec, key)
    batch = batch._replace(discount=jnp.zeros(B), reward=jnp.linspace(-2, 2, B))
    losses = []
    for _ in range(300):
        state, metrics, priority = learn(agent, state, batch, key)
        losses.append(metrics["loss/q"])
    assert losses[-1] < 0.02 < 1 < losses[0]
    q = q_values(agent, state.params, batch.observation)[np.arange(B), batch.action]
    np.testing.assert_allclose(q[:-1], batch.reward[:-1], atol=0.1)  # the last has no weight
    assert priority[:-1].max() < 0.1


@pytest.mark.parametrize("config", [CONFIG, C51], ids=["expected", "c51"])
def test_two_devices_and_pmap_give_what_one_device_gives(config, key):
    agent = dqn.make(config, SPECS["masked"])
    one = two = pmapped = agent.init(key)
    for i in range(3):
        batch = sample(SPECS["masked"], jax.random.fold_in(key, i))
        one, metrics, priority = learn(agent, one, batch, key)
        two, metrics_two, priority_two = learn(agent, two, batch, key, devices=2)
        pmapped, _, _ = learn(agent, pmapped, batch, key, devices=2, backend=sharding.Parallel.PMAP)
    same(one, two, rtol=2e-4, atol=2e-6)  # sums in another order
    same(two, pmapped, rtol=1e-6, atol=1e-7)
    same(metrics, metrics_two, rtol=1e-3, atol=1e-5)
    assert priority.shape == (B,)
    np.testing.assert_allclose(priority, priority_two, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("config", [CONFIG, C51], ids=["expected", "c51"])
def test_a_row_without_weight_has_no_effect(config, key):
    rows_without_weight_teach_nothing(dqn.make(config, SPECS["vector"]), key)


def test_the_target_moves_every_so_many_updates_and_learns_nothing_itself(key):
    agent = dqn.make(dataclasses.replace(CONFIG, target_rate=0.25), SPECS["vector"])
    state, batch = agent.init(key), sample(SPECS["vector"], key)
    first, _, _ = learn(agent, state, batch, key)
    same(first.target, state.target, rtol=0)
    second, _, _ = learn(agent, first, batch, key)
    expected = jax.tree.map(lambda new, old: 0.25 * new + 0.75 * old, second.params, first.target)
    same(second.target, expected, rtol=1e-5, atol=1e-7)
    assert differs(second.target, first.target)


def test_epsilon_falls_with_the_rows_and_stays(key):
    agent = dqn.make(CONFIG, SPECS["vector"])
    state, batch = agent.init(key), sample(SPECS["vector"], key)
    assert state.policy.epsilon == 1  # all actions random until learning starts
    # 45 rows are there after 5 rollouts of 10; ε falls by 0.9 over 500 rows, 10 for 2 updates
    seen = []
    for _ in range(6):
        state, metrics, _ = learn(agent, state, batch, key)
        seen.append(float(state.policy.epsilon))
        assert metrics["policy/epsilon"] == seen[-1]
    assert dqn.loop(CONFIG).first_learning == 4
    expected = 1 - 0.9 * np.array([45, 50, 55, 60, 65, 70]) / 500
    np.testing.assert_allclose(seen, expected, rtol=1e-5)
    late, _, _ = learn(agent, state._replace(updates=jnp.int32(100_000)), batch, key)
    assert late.policy.epsilon == pytest.approx(0.1)


def test_the_rate_falls_to_0_at_the_last_update(key):
    agent = dqn.make(dataclasses.replace(CONFIG, anneal_learning_rate=True), SPECS["vector"])
    state, batch = agent.init(key), sample(SPECS["vector"], key)
    drive = dqn.loop(CONFIG)
    total = (CONFIG.total_steps // drive.rows - 4) * CONFIG.num_updates
    for done in (0, total // 4, total - 1, total):
        before = state._replace(updates=jnp.int32(done))
        after, metrics, _ = learn(agent, before, batch, key)
        left = 1 - done / total
        assert metrics["policy/learning_rate"] == pytest.approx(
            CONFIG.learning_rate * left, rel=1e-4
        )
        assert differs(after.params, before.params) == (done < total)


def test_choices_obey_mask_and_propensity(key):
    agent = dqn.make(CONFIG, SPECS["masked"])
    policy = agent.init(key).policy._replace(epsilon=jnp.float32(0.4))
    features = jnp.broadcast_to(jax.random.normal(key, (1, 3)), (4_000, 3))
    mask = jnp.broadcast_to(jnp.array([[True, False, True, True]]), (4_000, 4))
    _, action, extras = agent.act(policy, (), Observation(features, mask), key, False)
    probabilities = np.asarray(extras["probabilities"][0])
    np.testing.assert_allclose(
        np.sort(probabilities), [0, 0.4 / 3, 0.4 / 3, 0.6 + 0.4 / 3], rtol=1e-5
    )
    np.testing.assert_allclose(extras["probabilities"].sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.exp(extras["log_prob"]), probabilities[action], rtol=1e-5)
    shares = np.bincount(action, minlength=4) / 4_000
    np.testing.assert_allclose(shares, probabilities, atol=0.04)  # five deviations
    assert shares[1] == 0


def test_greedy_ignores_epsilon_and_obeys_the_mask(key):
    agent = dqn.make(CONFIG, SPECS["masked"])
    features = jax.random.normal(key, (100, 3))
    mask = jax.random.bernoulli(key, 0.5, (100, 4)).at[:, 1].set(True)
    _, action, extras = agent.act(
        agent.init(key).policy, (), Observation(features, mask), key, True
    )
    values = np.where(mask, extras["action_values"], -np.inf)
    np.testing.assert_array_equal(action, values.argmax(1))
    np.testing.assert_allclose(extras["value"], values.max(1))
    np.testing.assert_allclose(extras["log_prob"], 0, atol=1e-6)


@pytest.mark.parametrize("config", [CONFIG, dataclasses.replace(C51, dueling=True)])
def test_pixels_are_seen(config, key):
    agent = dqn.make(config, SPECS["pixels"])
    state, batch = agent.init(key), sample(SPECS["pixels"], key)
    after, metrics, _ = learn(agent, state, batch, key)
    assert np.isfinite(metrics["loss/q"])
    assert differs(after.params, state.params)


@pytest.mark.parametrize(
    ("action", "words"),
    [(Box((-1.0,), (1.0,)), "--agent=sac"), (MultiDiscrete((2, 2)), "--agent=ppo")],
)
def test_other_actions_are_refused_in_a_sentence(action, words):
    with pytest.raises(ValueError, match=words):
        dqn.make(CONFIG, EnvSpec("Pendulum-v1", (3,), "float32", action))


LOOP = ("total_steps", "num_envs", "rollout_length", "num_updates", "learning_starts")
REPLAY = {
    "replay_capacity": "capacity",
    "batch_size": "batch_size",
    "discount": "discount",
    "num_steps": "num_steps",
    "prioritized": "prioritized",
    "priority_exponent": "priority_exponent",
    "importance_exponent": "importance_exponent",
}
CHANGES = {
    "total_steps": 2_000,
    "learning_rate": 1e-3,
    "anneal_learning_rate": True,
    "adam_epsilon": 1e-2,
    "max_grad_norm": 1e-3,
    "double": False,
    "dueling": True,
    "target_period": 1,
    "target_rate": 0.5,
    "exploration_fraction": 0.4,
    "final_epsilon": 0.2,
    "huber_threshold": 0.1,
    "num_atoms": 11,
    "value_min": -1.0,
    "value_max": 1.0,
    "torso": Torso.MLP,
    "hidden_sizes": (9,),
    "activation": Activation.TANH,
}


def test_every_field_of_the_config_is_covered():
    fields = {field.name for field in dataclasses.fields(dqn.Config)}
    assert fields == {*LOOP, *REPLAY, *CHANGES}


def test_the_loop_gets_its_fields():
    config = dataclasses.replace(CONFIG, prioritized=True, num_steps=3)
    drive = dqn.loop(config)
    for name in LOOP:
        assert getattr(drive, name) == getattr(config, name)
    for name, theirs in REPLAY.items():
        assert getattr(drive.replay, theirs) == getattr(config, name)


@functools.cache
def trained(config):
    """The state after three updates; the third is the first after a move of the target."""
    key = jax.random.key(0)
    agent = dqn.make(config, SPECS["vector"])
    state = agent.init(key)
    state = state._replace(target=agent.init(jax.random.fold_in(key, 1)).params)
    for i in range(3):
        state, _, _ = learn(agent, state, sample(SPECS["vector"], jax.random.fold_in(key, i)), key)
    return state.params, state.epsilon


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "torso"])
def test_every_field_changes_the_outcome(name):
    base = C51 if name.startswith("value_") else CONFIG
    base = dataclasses.replace(base, max_grad_norm=0.1)  # so that small errors are clipped too
    changed = trained(dataclasses.replace(base, **{name: CHANGES[name]}))
    if name in ("dueling", "num_atoms", "hidden_sizes"):
        assert jax.tree.map(jnp.shape, trained(base)) != jax.tree.map(jnp.shape, changed)
    else:
        assert differs(trained(base), changed)


def test_the_torso_is_asked_for():
    with pytest.raises(ValueError, match=r"config\.torso=mlp"):
        dqn.make(dataclasses.replace(CONFIG, torso=Torso.MLP), SPECS["pixels"])


@pytest.mark.parametrize("name", ["vector", "masked", "pixels"])
def test_a_bundle_answers_as_the_agent_does(name, key):
    spec = SPECS[name]
    agent = dqn.make(CONFIG, spec)
    provenance = bundle.Provenance("runs/dqn", 1, None, "dqn", spec.name, "")
    made = bundle.make(agent, agent.init(key).policy, CONFIG, provenance)
    outputs = {n.split("/")[2] for n in made.golden if n.startswith("sample/output")}
    assert outputs == {"action", "log_prob", "entropy", "value", "action_values", "probabilities"}
