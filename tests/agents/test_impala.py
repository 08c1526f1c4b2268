"""IMPALA's update: its numbers, where V-trace holds, where nothing is learned, every flag."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import a2c, impala
from rljax import minibatches, sharding
from rljax.envs import catch, wrappers
from rljax.loops import on_policy
from rljax.optim import Optimizer
from rljax.types import Trajectory
from tests.agents import on_policy_checks as checks
from tests.agents.rollouts import PIXELS, SPECS, B, T, rollout_of
from tests.agents.test_ppo import CHANGES as PPO_CHANGES
from tests.agents.updates import differs, learn, same

CONFIG = impala.Config(
    total_steps=T * B * 10,
    num_envs=B,
    rollout_length=T,
    hidden_sizes=(8,),
    policy_head_scale=1.0,
)


def of_another_policy(batch, key, scale=0.7):
    """The rollout as if a policy had acted whose log-probabilities were elsewhere."""
    rows = batch.transitions
    log_prob = rows.extras["log_prob"] + scale * jax.random.normal(key, (T, B))
    return batch._replace(transitions=rows._replace(extras={"log_prob": log_prob}))


def acted_by_another(agent, state, key):
    return of_another_policy(rollout_of(agent, state, key), key)


def by_hand(config, rows, ratio, value):
    """V-trace's targets and advantages `[T, B]` by the recursions of the paper, row by row."""
    target, advantage = value[:-1].copy(), np.zeros((T, B))
    for b in range(B):
        ahead = 0.0  # v - V of the row after
        for t in reversed(range(T)):
            if not rows.valid[t, b]:
                ahead = 0.0
                continue
            if t + 1 < T and not rows.valid[t + 1, b]:
                ahead = 0.0  # an ending: what follows is of another episode
            decay = config.discount * rows.discount[t, b]
            error = rows.reward[t, b] + decay * value[t + 1, b] - value[t, b]
            rho, c = min(config.rho_bound, ratio[t, b]), min(config.c_bound, ratio[t, b])
            q = error + decay * config.trace_lambda * ahead
            advantage[t, b] = min(config.policy_rho_bound, ratio[t, b]) * q
            ahead = rho * error + decay * config.trace_lambda * c * ahead
            target[t, b] = value[t, b] + ahead
    return target, advantage


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"trace_lambda": 0.9, "rho_bound": 2.0, "c_bound": 1.5, "policy_rho_bound": 0.5},
        {"rho_bound": np.inf, "c_bound": np.inf, "policy_rho_bound": np.inf},
    ],
    ids=["defaults", "bounds", "unbounded"],
)
def test_metrics_match_numpy_on_one_batch_of_another_policy(changes, key):
    config = dataclasses.replace(CONFIG, entropy_cost=0.1, value_cost=0.25, **changes)
    agent = impala.make(config, SPECS["discrete"])
    state = agent.init(key)
    batch = of_another_policy(rollout_of(agent, state, key), jax.random.key(1))
    _, metrics = learn(agent, state, batch, key)

    rows = jax.tree.map(np.asarray, batch.transitions)
    _, _, extras = agent.act(state.policy, (), rows.observation, key, True)
    _, _, last = agent.act(state.policy, (), batch.last_observation, key, True)
    chosen = np.take_along_axis(
        np.asarray(extras["probabilities"], float), rows.action[..., None], axis=-1
    )[..., 0]
    ratio = chosen / np.exp(rows.extras["log_prob"].astype(float))
    assert ratio.min() < 0.6
    assert ratio.max() > 2  # on both sides of every bound above
    value = np.concatenate([extras["value"], last["value"][None]]).astype(float)
    target, advantage = by_hand(config, rows, ratio, value)
    weight = rows.valid / rows.valid.sum()

    def mean(x):
        return pytest.approx(float((weight * x).sum()), rel=2e-4, abs=1e-6)

    assert metrics["loss/policy"] == mean(-advantage * np.log(chosen))
    assert metrics["loss/value"] == mean((target - value[:-1]) ** 2 / 2)
    assert metrics["policy/entropy"] == mean(extras["entropy"])
    assert metrics["policy/approx_kl"] == mean(ratio - 1 - np.log(ratio))
    assert metrics["policy/rho_mean"] == mean(np.minimum(ratio, config.policy_rho_bound))
    assert metrics["value/mean"] == mean(value[:-1])


def test_one_rmsprop_step_down_the_sum_of_the_three_losses(key):
    """What the step implies is the gradient of the losses with NumPy's V-trace as constants."""
    config = dataclasses.replace(
        CONFIG,
        entropy_cost=0.1,
        value_cost=0.25,
        learning_rate=1e-3,
        max_grad_norm=1e6,
        optimizer_epsilon=0.5,
        anneal_learning_rate=False,
    )
    agent = impala.make(config, SPECS["discrete"])
    state = agent.init(key)
    batch = of_another_policy(rollout_of(agent, state, key), jax.random.key(1))
    after, metrics = learn(agent, state, batch, key)
    gradients = jax.tree.leaves(implied_gradient(config, state, after))
    norm = np.sqrt(sum((x.astype(float) ** 2).sum() for x in gradients))
    assert norm == pytest.approx(metrics["policy/grad_norm"], rel=1e-3)

    reference = reference_gradient(agent, config, state, batch)
    same(implied_gradient(config, state, after), reference, rtol=5e-3, atol=2e-4)


def implied_gradient(config, before, after):
    """g from the first step of RMSProp: the mean square is (1 - d) g², the step g / (√ms + ε)."""

    def invert(p, q):
        step = (np.asarray(p, float) - np.asarray(q, float)) / config.learning_rate
        root = np.sqrt(1 - config.rmsprop_decay)
        return step * config.optimizer_epsilon / (1 - np.abs(step) * root)

    return jax.tree.map(invert, before.params, after.params)


def reference_gradient(agent, config, state, batch):
    """Of -A log π + value_cost ½(V - v)² - entropy_cost H, with A and v as NumPy's constants."""
    rows = batch.transitions
    every = jax.tree.map(np.asarray, rows)
    _, _, extras = agent.act(state.policy, (), rows.observation, jax.random.key(0), True)
    _, _, last = agent.act(state.policy, (), batch.last_observation, jax.random.key(0), True)

    def chosen(probabilities):
        return jnp.take_along_axis(probabilities, rows.action[..., None], axis=-1)[..., 0]

    ratio = np.asarray(chosen(extras["probabilities"])) / np.exp(every.extras["log_prob"])
    value = np.concatenate([extras["value"], last["value"][None]])
    target, advantage = by_hand(config, every, ratio, value)

    def loss(params):
        policy = state.policy._replace(params=params)
        _, _, extras = agent.act(policy, (), rows.observation, jax.random.key(0), True)
        each = (
            -advantage * jnp.log(chosen(extras["probabilities"]))
            + config.value_cost * 0.5 * (extras["value"] - target) ** 2
            - config.entropy_cost * extras["entropy"]
        )
        return jnp.sum(jnp.where(rows.valid, each, 0.0)) / jnp.sum(rows.valid)

    return jax.grad(loss)(state.params)


@pytest.mark.parametrize("name", SPECS)
def test_in_step_with_its_actors_it_is_a2c_with_gae(name, key):
    shared = {
        "total_steps": CONFIG.total_steps,
        "num_envs": B,
        "rollout_length": T,
        "hidden_sizes": (8,),
        "policy_head_scale": 1.0,
    }
    spec = SPECS[name]
    ours = impala.make(impala.Config(**shared, trace_lambda=0.9), spec)
    others = a2c.make(a2c.Config(**shared, gae_lambda=0.9, learning_rate=6e-4), spec)
    state = ours.init(key)
    batch = rollout_of(ours, state, key)
    one, metrics = learn(ours, state, batch, key)
    two, _ = learn(others, state, batch, key)
    same(one.params, two.params, rtol=1e-4, atol=1e-6)
    assert metrics["policy/rho_mean"] == pytest.approx(1, abs=1e-6)
    assert metrics["policy/approx_kl"] == pytest.approx(0, abs=1e-9)
    old = of_another_policy(batch, jax.random.key(1))
    one, _ = learn(ours, state, old, key)
    two, _ = learn(others, state, old, key)
    assert differs(one.params, two.params)  # only V-trace knows of the other policy


def test_an_action_that_its_policy_would_never_take_teaches_nothing(key):
    agent = impala.make(dataclasses.replace(CONFIG, entropy_cost=0.0), SPECS["discrete"])
    state = agent.init(key)
    batch = rollout_of(agent, state, key)
    rows = batch.transitions
    never = rows._replace(extras={"log_prob": jnp.full((T, B), 50.0)})  # π/μ = e^-50
    after, metrics = learn(agent, state, batch._replace(transitions=never), key)
    assert metrics["policy/grad_norm"] == pytest.approx(0, abs=1e-12)
    same(after.params, state.params, rtol=0, atol=1e-9)


def test_rare_actions_count_no_more_than_their_bound(key):
    agent = impala.make(CONFIG, SPECS["discrete"])
    state = agent.init(key)
    batch = rollout_of(agent, state, key)

    def after(log_mu):
        rows = batch.transitions._replace(extras={"log_prob": jnp.full((T, B), log_mu)})
        return learn(agent, state, batch._replace(transitions=rows), key)[0].params

    same(after(-30.0), after(-60.0), rtol=0)  # every bound is 1, every ratio beyond it


def test_a_row_behind_an_ending_has_no_weight(key):
    agent = impala.make(dataclasses.replace(CONFIG, num_minibatches=2), SPECS["discrete"])
    batch = rollout_of(agent, agent.init(key), key)
    learned = checks.a_terminated_episodes_final_row_teaches_nothing(agent, key, batch)
    checks.a_truncated_episodes_final_row_is_its_future(agent, key, batch, learned)


def test_minibatches_are_whole_rollouts_and_a_step_each(key):
    config = dataclasses.replace(CONFIG, num_minibatches=B, anneal_learning_rate=False)
    agent = impala.make(config, SPECS["discrete"])
    state = agent.init(key)
    batch = rollout_of(agent, state, key)
    after, _ = learn(agent, state, batch, key)
    order = jax.shard_map(
        lambda key: minibatches.shuffled((1, B), B, key),
        mesh=sharding.mesh(1),
        in_specs=jax.P(),
        out_specs=jax.P(),
        check_vma=False,
    )(key)
    assert sorted(np.ravel(order)) == list(range(B))
    config = dataclasses.replace(config, num_envs=1, num_minibatches=1)
    alone, step = impala.make(config, SPECS["discrete"]), state
    for b in np.ravel(order):  # by hand: one environment after another
        rows = jax.tree.map(lambda x, b=b: x[:, b : b + 1], batch.transitions)
        last = jax.tree.map(lambda x, b=b: x[b : b + 1], batch.last_observation)
        step, _ = learn(alone, step, Trajectory(rows, last, ()), key)
    same(after.params, step.params, rtol=1e-4, atol=1e-6)


def test_two_devices_and_pmap_give_what_one_device_gives(key):
    config = dataclasses.replace(CONFIG, normalize_observation=True, num_minibatches=2)
    checks.devices_agree(impala.make(config, SPECS["box"]), acted_by_another, key)


def test_statistics_are_those_of_before_the_rollout_and_move_behind_it(key):
    config = dataclasses.replace(CONFIG, normalize_observation=True)
    agent = impala.make(config, SPECS["discrete"])
    checks.statistics_move_behind_the_rollout(agent, rollout_of, key)


CHANGES = {name: PPO_CHANGES[name] for name in set(PPO_CHANGES) & set(CONFIG.__dict__)} | {
    "total_steps": T * B * 20,
    "num_minibatches": 2,
    "optimizer": Optimizer.ADAM,
    "optimizer_epsilon": 1e-2,
    "rmsprop_decay": 0.9,
    "trace_lambda": 0.5,
    "rho_bound": 1.5,
    "c_bound": 0.5,
    "policy_rho_bound": 2.0,
}


def test_every_field_of_the_config_is_covered_below():
    fields = {f.name for f in dataclasses.fields(impala.Config)}
    assert fields - set(CHANGES) == {"num_envs", "rollout_length"}  # the collector's business


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_every_field_changes_the_outcome(name):
    base = dataclasses.replace(CONFIG, normalize_observation=name == "observation_clip")
    spec = PIXELS if name == "torso" else SPECS["box"]
    checks.a_field_matters(impala.make, base, name, CHANGES[name], spec, acted_by_another)


def test_the_rate_falls_linearly_to_0_and_stays_if_told(key):
    config = dataclasses.replace(CONFIG, total_steps=4 * T * B, learning_rate=1.0)
    checks.the_rate_falls(impala.make, config, SPECS["discrete"], rollout_of, key)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"c_bound": 2.0}, "c_bound=2.0 must not be above config.rho_bound=1.0"),
        ({"rho_bound": 0.0, "c_bound": 0.0}, "rho_bound must be positive, not 0.0"),
        ({"policy_rho_bound": -1.0}, "policy_rho_bound must be positive, not -1.0"),
        ({"num_minibatches": 3}, "num_minibatches=3 does not divide the 8 environments"),
        ({"trace_lambda": 1.5}, "trace_lambda must lie in"),
        ({"rmsprop_decay": 1.5}, "rmsprop_decay must lie in"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"entropy_cost": -1.0}, "entropy_cost must not be negative"),
        ({"hidden_sizes": (0,)}, "hidden_sizes must all be positive"),
        ({"total_steps": 10}, "less than one rollout of 48 rows"),
    ],
)
def test_what_cannot_work_is_told(changes, words):
    with pytest.raises(ValueError, match=words):
        impala.validate(dataclasses.replace(CONFIG, **changes))


def test_bounds_may_be_infinite():
    impala.validate(dataclasses.replace(CONFIG, rho_bound=np.inf, c_bound=np.inf))


def test_a_minibatch_of_one_environment_does_not_split_over_two_devices():
    env = wrappers.autoreset(catch.make())
    loop = impala.loop(dataclasses.replace(CONFIG, num_minibatches=8))
    with pytest.raises(ValueError, match="cannot be split"):
        on_policy.check(env, dataclasses.replace(loop, num_devices=2))
    on_policy.check(env, dataclasses.replace(loop, num_devices=1))
    assert loop.rows == T * B
