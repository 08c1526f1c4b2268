"""IQL: eqs. 5 to 7 by hand, the order of an update, what it learns, and every flag."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from jax.flatten_util import ravel_pytree
from jaxtyping import TypeCheckError

from agents import iql
from rljax.nn.mlp import Activation
from rljax.nn.torsos import Torso
from rljax.types import Observation
from tests.agents import offline_checks as checks
from tests.agents.offline_checks import PARTS, SPECS
from tests.agents.samples import B, learn, sample
from tests.agents.updates import differs, same

make = functools.cache(iql.make)  # so that tests share compiled programs
CONFIG = iql.Config(
    total_updates=1_000,
    batch_size=B,
    actor_learning_rate=1e-2,
    critic_learning_rate=1e-2,
    value_learning_rate=1e-2,
    target_rate=0.1,
    hidden_sizes=(8,),
)
# An ε that is no trifle: Adam's first step then follows the gradient's size, not only its sign.
SLOW = dataclasses.replace(CONFIG, adam_epsilon=1.0, anneal_actor_learning_rate=False)
KINDS = ("box", "discrete", "masked")
each_kind = pytest.mark.parametrize("kind", KINDS)

V, Q = jnp.zeros(2), jnp.array([2.0, -1.0])  # so u = Q - V = [2, -1]


@pytest.mark.parametrize(
    ("expectile", "expected"),
    [
        (0.5, [2.0, 0.5]),  # half of u²
        (0.9, [3.6, 0.1]),  # 0.9 · 4, 0.1 · 1
    ],
)
def test_value_loss_matches_eq_5_by_hand(expectile, expected):
    np.testing.assert_allclose(iql.value_loss(V, Q, expectile), expected, rtol=1e-6)


def test_value_loss_is_least_at_the_expectile():
    v = jnp.linspace(-1, 2, 3001)
    losses = jax.vmap(lambda v: iql.value_loss(jnp.full(2, v), Q, 0.9).sum())(v)
    np.testing.assert_allclose(v[losses.argmin()], 1.7, atol=1e-3)  # τ(2 - v) = (1 - τ)(v + 1)


def test_value_loss_sends_no_gradient_into_q():
    assert not jax.grad(lambda q: iql.value_loss(V, q, 0.7).sum())(Q).any()
    slope = jax.grad(lambda v: iql.value_loss(v, Q, 0.7).sum())(V)
    np.testing.assert_allclose(slope, [-2.8, 0.6], rtol=1e-6)  # -2 · 0.7 · 2, 2 · 0.3 · 1


def test_value_loss_refuses_a_column_of_q():  # [B] - [B, 1] would broadcast to [B, B] in silence
    with pytest.raises(TypeCheckError):
        iql.value_loss(V, Q[:, None], 0.7)


def test_weights_by_hand_and_at_their_limit():
    advantage = jnp.array([0.0, 1.0, -2.0, 5.0, 1e30, -1e30])
    weight = iql.advantage_weight(advantage, 3.0, 100.0)
    np.testing.assert_allclose(
        weight, [1, np.exp(3), np.exp(-6), 100, 100, 0], rtol=1e-5
    )  # e¹⁵ and more are cut
    np.testing.assert_array_equal(iql.advantage_weight(advantage, 0.0, 100.0), 1)
    slope = jax.grad(lambda x: iql.advantage_weight(x, 3.0, 100.0).sum())(advantage)
    assert not slope.any()


def test_on_the_way_to_a_weight_nothing_overflows():  # infinity times 0 would be no number
    with jax.debug_infs(True):
        assert iql.advantage_weight(jnp.array([1e3]), 3.0, 100.0) == pytest.approx(100)


def test_weights_are_finite_in_few_bits_too():
    advantage = jnp.array([100.0, 3e4], jnp.bfloat16)
    np.testing.assert_allclose(iql.advantage_weight(advantage, 10.0, 100.0), 100, rtol=0.02)


def test_the_gradient_of_the_actor_loss_is_the_weighted_likelihoods():
    weight = jnp.array([2.0, 0.5])
    slopes = jax.grad(lambda *x: iql.actor_loss(*x).sum(), argnums=(0, 1))(V, weight)
    np.testing.assert_array_equal(slopes[0], [-2.0, -0.5])
    assert not slopes[1].any()


def test_squared_error_is_a_sum_over_dimensions_by_hand():
    assert iql.squared_error(jnp.array([[0.0, 1.0]]), jnp.array([[2.0, 4.0]])).tolist() == [13]


@pytest.mark.parametrize(
    ("updates", "expected"), [(0, 1), (250, 0.8535534), (500, 0.5), (1000, 0), (1500, 0)]
)
def test_cosine_falls_to_0_and_stays(updates, expected):
    assert iql.cosine(jnp.int32(updates), 1000) == pytest.approx(expected, abs=1e-6)


def mlp(params, x):
    """A network of one hidden layer, from its parameters alone."""
    first, last = params["params"]["layers_0"]["Dense_0"], params["params"]["layers_1"]["Dense_0"]
    hidden = jnp.maximum(x @ first["kernel"] + first["bias"][None], 0)
    return hidden @ last["kernel"] + last["bias"][None]


@functools.partial(jax.jit, static_argnames="kind")
def reference(kind, state, batch, new_value):
    """An update in separate passes, one network after another, with an Adam for each."""
    config, spec = SLOW, SPECS[kind]
    networks_of = iql.box if kind == "box" else iql.discrete
    networks, rows = (
        networks_of(config, spec, spec.action),
        slice(0, B - 1),
    )  # the last has no weight
    adam, params = optax.adam(1e-2, eps=1.0), state.params

    def step(loss, params):
        updates, _ = adam.update(jax.grad(loss)(params), adam.init(params))
        return optax.apply_updates(params, updates)

    def value_of(params, observation):
        return mlp(params, observation.features)[:, 0]

    target_q = networks.q(state.target, batch.observation, batch.action).min(0)

    def value_loss(params):
        u = target_q - value_of(params, batch.observation)
        return jnp.mean((jnp.abs(0.7 - (u < 0)) * u**2)[rows])

    value = step(value_loss, params.value)
    used = jax.tree.map(lambda new, old: jnp.where(new_value, new, old), value, params.value)
    weight = jnp.exp(3.0 * (target_q - value_of(used, batch.observation)))
    weight = jnp.minimum(weight, 100.0)

    def actor_loss(params):
        if kind == "box":
            free = {
                "params": {
                    "layers_0": params["params"]["torso"],
                    "layers_1": {"Dense_0": params["params"]["Dense_0"]},
                }
            }
            mean = jnp.tanh(mlp(free, batch.observation.features))
            log_std = params["params"]["log_std"][None]
            unit = (batch.action - jnp.array([[0.0, 1.0]])) / jnp.array([[1.0, 3.0]])
            normal = jax.scipy.stats.norm.logpdf((unit - mean) / jnp.exp(log_std)) - log_std
            log_prob = normal.sum(-1)
        else:
            logits = mlp(params, batch.observation.features)
            if kind == "masked":
                logits = jnp.where(batch.observation.mask, logits, -1e9)
            log_prob = jax.nn.log_softmax(logits)[np.arange(B), batch.action]
        return -jnp.mean((jnp.asarray(weight) * log_prob)[rows])

    goal = batch.reward + batch.discount * value_of(used, batch.next_observation)

    def critic_loss(params):
        q = networks.q(params, batch.observation, batch.action)
        return jnp.mean((0.5 * (q - goal[None]) ** 2).sum(0)[rows])

    critic = step(critic_loss, params.critic)
    target = jax.tree.map(lambda new, old: 0.1 * new + 0.9 * old, critic, state.target)
    return iql.Params(step(actor_loss, params.actor), critic, value, None), target


@each_kind
def test_critics_and_v_start_with_random_biases_and_the_policy_with_none(kind, key):
    state = make(CONFIG, SPECS[kind]).init(key)
    for params, random in ((state.params.actor, False), *((x, True) for x in state.params[1:3])):
        flat = traverse_util.flatten_dict(params)
        assert all(np.any(x != 0) == random for path, x in flat.items() if path[-1] == "bias")
    same(state.target, state.params.critic, rtol=0)


@each_kind
def test_an_update_goes_in_the_authors_order(kind, key):
    agent = make(SLOW, SPECS[kind])
    state, batch = agent.init(key), checks.batch_of(SPECS[kind], key)
    state = state._replace(target=agent.init(jax.random.fold_in(key, 1)).target)
    after, _, _ = learn(agent, state, batch, key)
    same((after.params, after.target), reference(kind, state, batch, True), rtol=1e-4, atol=1e-6)
    stale, _ = reference(kind, state, batch, False)
    for name in ("actor", "critic"):  # the old V would teach both something else
        moved = [ravel_pytree(getattr(x, name))[0] for x in (after.params, stale, state.params)]
        assert jnp.abs(moved[0] - moved[1]).max() > 1e-3 * jnp.abs(moved[0] - moved[2]).max()


def test_the_target_critics_alone_say_what_an_action_is_worth(key):
    agent = make(CONFIG, SPECS["box"])
    state, batch = agent.init(key), checks.batch_of(SPECS["box"], key)
    other = agent.init(jax.random.fold_in(key, 1)).params.critic
    one, _, _ = learn(agent, state, batch, key)
    two, _, _ = learn(agent, state._replace(params=state.params._replace(critic=other)), batch, key)
    same((one.params.actor, one.params.value), (two.params.actor, two.params.value), rtol=0)
    moved, _, _ = learn(agent, state._replace(target=other), batch, key)
    assert differs(one.params.actor, moved.params.actor)
    assert differs(one.params.value, moved.params.value)


def test_what_comes_after_a_termination_is_worth_nothing(key):
    checks.nothing_comes_after_a_termination(make(CONFIG, SPECS["box"]), key)


@pytest.mark.parametrize("kind", ["box", "discrete"])
def test_without_inverse_temperature_the_policy_is_cloned(kind, key):
    from agents import bc

    config = dataclasses.replace(CONFIG, inverse_temperature=0.0, anneal_actor_learning_rate=False)
    agent, batch = make(config, SPECS[kind]), checks.batch_of(SPECS[kind], key)
    state = agent.init(key)
    cloner = bc.make(bc.Config(batch_size=B, learning_rate=1e-2, hidden_sizes=(8,)), SPECS[kind])
    cloned = cloner.init(key)._replace(params=state.params.actor)
    after, _, _ = learn(agent, state, batch, key)
    expected, _, _ = learn(cloner, cloned, batch, key)
    same(after.params.actor, expected.params, rtol=1e-4, atol=1e-6)


def test_it_finds_the_best_action_of_the_data_and_no_other(key):
    spec = SPECS["discrete"]
    rates = {name: 3e-2 for name in ("actor_learning_rate", "critic_learning_rate")}
    config = dataclasses.replace(
        CONFIG, **rates, expectile=0.9, inverse_temperature=10.0, anneal_actor_learning_rate=False
    )
    agent, batch = make(config, spec), sample(spec, key)
    state = agent.init(key)
    nothing = Observation(jnp.zeros((B, 3)))
    batch = batch._replace(  # a bandit: of actions 0, 1 and 2, 1 is the best; nobody took 3
        observation=nothing,
        action=jnp.array([0, 0, 0, 0, 1, 2, 2, 2]),
        reward=jnp.array([0.0, 0, 0, 0, 1, 0.5, 0.5, 0.5]),
        discount=jnp.zeros(B),
        weight=jnp.ones(B),
    )
    for _ in range(300):
        state, metrics, _ = learn(agent, state, batch, key)
    _, action, extras = agent.act(state.policy, (), nothing, key, True)
    assert (action == 1).all()
    assert extras["probabilities"][0, 3] < 0.02
    # the 0.9-expectile v > ½ of 4 × 0, 3 × ½ and 1: 0.9 (1 - v) = 0.1 (4v + 3(v - ½))
    assert metrics["value/mean"] == pytest.approx(1.05 / 1.6, abs=0.03)


@each_kind
def test_two_devices_and_pmap_give_what_one_device_gives(kind, key):
    checks.devices_agree(make(CONFIG, SPECS[kind]), key)


@pytest.mark.parametrize("kind", ["box", "masked"])
def test_a_row_without_weight_has_no_effect(kind, key):
    checks.rows_without_weight_teach_nothing(make(CONFIG, SPECS[kind]), key)


def test_learning_does_not_depend_on_the_units_of_the_actions(key):
    checks.units_do_not_matter(make, CONFIG, key)


def test_observations_are_normalized_by_the_moments_in_the_state(key):
    normalizing = dataclasses.replace(CONFIG, normalize_observation=True)
    agents = (make(config, SPECS["box"]) for config in (normalizing, CONFIG))
    checks.observations_are_normalized(*agents, key)


def test_rewards_are_scaled_by_the_number_in_the_state(key):
    scaling = dataclasses.replace(CONFIG, normalize_reward=True)
    agents = (make(config, SPECS["box"]) for config in (scaling, CONFIG))
    checks.rewards_are_scaled(*agents, key)


def test_the_policys_rate_falls_to_0_at_the_last_update(key):
    agent = make(CONFIG, SPECS["box"])
    state, batch = agent.init(key), checks.batch_of(SPECS["box"], key)
    for done, left in ((0, 1.0), (500, 0.5), (1000, 0.0)):
        before = state._replace(updates=jnp.int32(done))
        after, metrics, _ = learn(agent, before, batch, key)
        assert metrics["policy/learning_rate"] == pytest.approx(1e-2 * left, abs=1e-9)
        assert differs(after.params.actor, before.params.actor) == (left > 0)
        assert differs(after.params.critic, before.params.critic)


def test_greedy_actions_lie_within_the_box_and_deviations_within_their_range(key):
    spec = SPECS["box"]
    agent = make(CONFIG, spec)
    params = agent.init(key).params
    for log_std, expected in ((-9.0, np.exp(-5.0)), (9.0, np.exp(2.0))):
        actor = jax.tree.map(lambda x: 50 * x, params.actor)
        actor["params"]["log_std"] = jnp.full(2, log_std)
        policy = agent.init(key).policy._replace(actor=actor)
        observation = checks.observation_of(spec, 200, key)
        _, action, extras = agent.act(policy, (), observation, key, True)
        low, high = np.array(spec.action.low)[None], np.array(spec.action.high)[None]
        assert ((action >= low) & (action <= high)).all()
        np.testing.assert_allclose(extras["scale"][0], expected * np.array([1.0, 3.0]), rtol=1e-5)


def test_masked_actions_are_never_taken(key):
    agent = make(CONFIG, SPECS["masked"])
    observation = checks.observation_of(SPECS["masked"], 500, key, [False, True, False, True])
    for greedy in (False, True):
        _, action, extras = agent.act(agent.init(key).policy, (), observation, key, greedy)
        assert set(np.unique(action)) <= {1, 3}
        assert (extras["probabilities"][:, [0, 2]] == 0).all()


@pytest.mark.parametrize("kind", ["discrete", "masked"])
def test_what_the_behavior_does_too_rarely_is_never_chosen(kind, key):
    agent = make(dataclasses.replace(CONFIG, support_threshold=0.5), SPECS[kind])
    state, batch = agent.init(key), checks.batch_of(SPECS[kind], key)
    after, metrics, _ = learn(agent, state, batch, key)
    unlike = batch._replace(reward=batch.reward + 9)
    same(learn(agent, state, unlike, key)[0].params.behavior, after.params.behavior, rtol=0)
    plain = make(CONFIG, SPECS[kind])
    learned = after.params._replace(behavior=None)
    same(learned, learn(plain, plain.init(key), batch, key)[0].params, rtol=1e-5, atol=1e-6)
    allowed = np.asarray(batch.observation.mask[:-1]).sum(1) if kind == "masked" else 4
    assert metrics["loss/behavior"] == pytest.approx(np.log(allowed).mean(), abs=0.05)
    layer = state.params.behavior["params"]["layers_1"]["Dense_0"]
    layer["kernel"] *= 0
    layer["bias"] = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
    observation = checks.observation_of(SPECS[kind], 300, key, [True, False, True, True])
    for greedy in (False, True):
        _, action, extras = agent.act(state.policy, (), observation, key, greedy)
        possible = {0, 2} if kind == "masked" else {0, 1, 2}
        assert set(np.unique(action)) <= possible
        assert (extras["probabilities"][:, 3] == 0).all()
        np.testing.assert_allclose(extras["probabilities"].sum(-1), 1, rtol=1e-5)


def test_pixels_and_named_parts_are_seen(key):
    checks.parts_are_seen(make(CONFIG, PARTS), key)


LOOP = ("total_updates", "batch_size", "discount", "num_steps", "normalize_reward", *checks.REWARDS)
CHANGES = {
    "total_updates": 5,
    "expectile": 0.9,
    "inverse_temperature": 1.0,
    "max_weight": 0.5,
    "actor_learning_rate": 1e-3,
    "anneal_actor_learning_rate": False,
    "critic_learning_rate": 1e-3,
    "value_learning_rate": 1e-3,
    "adam_epsilon": 1e-2,
    "target_rate": 0.5,
    "deterministic": True,
    "initial_log_std": -1.0,
    "normalize_observation": True,
    "normalize_reward": True,
    "hidden_sizes": (9,),
    "activation": Activation.TANH,
}


def test_every_field_of_the_config_is_covered():
    fields = {field.name for field in dataclasses.fields(iql.Config)}
    assert fields == {*LOOP, *CHANGES, "observation_clip", "support_threshold", "torso"}


def test_the_loop_gets_its_fields():
    changes = {"total_updates": 7, "discount": 0.9, "num_steps": 3, "normalize_reward": True}
    found = iql.loop(dataclasses.replace(CONFIG, **changes, **checks.REWARDS))
    assert [getattr(found, name) for name in LOOP] == [7, B, 0.9, 3, True, *checks.REWARDS.values()]


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_the_outcome(name):
    assert differs(*checks.changed_by(iql.make, CONFIG, {name: CHANGES[name]}, SPECS["box"]))


def test_normalized_observations_are_clipped():
    base = dataclasses.replace(CONFIG, normalize_observation=True)
    assert differs(*checks.changed_by(iql.make, base, {"observation_clip": 0.5}, SPECS["box"]))


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({}, "several", "--agent=bc"),
        ({"deterministic": True}, "discrete", r"config\.deterministic"),
        ({"support_threshold": 0.1}, "box", r"config\.support_threshold"),
        ({"torso": Torso.NATURE}, "box", r"config\.torso=nature"),
    ],
)
def test_what_does_not_fit_the_environment_is_refused_in_a_sentence(changes, kind, words):
    with pytest.raises(ValueError, match=words):
        make(dataclasses.replace(CONFIG, **changes), SPECS[kind])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"total_updates": 0}, "total_updates"),
        ({"expectile": 1.0}, r"\(0, 1\)"),
        ({"inverse_temperature": -1.0}, "inverse_temperature"),
        ({"max_weight": 0.0}, "max_weight"),
        ({"support_threshold": -0.1}, "support_threshold"),
        ({"discount": 1.1}, "discount"),
        ({"target_rate": 0.0}, "target_rate"),
        ({"hidden_sizes": (0,)}, "hidden_sizes"),
    ],
)
def test_configs_that_cannot_work_are_refused_in_a_sentence(changes, words):
    with pytest.raises(ValueError, match=words):
        iql.validate(dataclasses.replace(iql.Config(), **changes))


@each_kind
def test_a_bundle_answers_as_the_agent_does(kind, key):
    of_kind = {"mean", "scale"} if kind == "box" else {"probabilities"}
    outputs = {"action", "log_prob", "entropy", "value"} | of_kind
    checks.a_bundle_answers("iql", make(CONFIG, SPECS[kind]), CONFIG, key, outputs)
