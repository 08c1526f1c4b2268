"""SAC's losses by hand, at their limits, and where no gradient may flow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import sac
from rljax import distributions, sharding
from rljax.types import Box, Discrete, EnvSpec
from tests.agents.samples import sample

Q = jnp.array([[1.0, 5.0], [2.0, 3.0]])  # [E=2, B=2]
LOG_PROB = jnp.array([-1.0, 0.5])


def test_soft_value_takes_the_lesser_critic_and_adds_entropy_by_hand():
    # min(1, 2) + 0.2 · 1;  min(5, 3) - 0.2 · 0.5
    np.testing.assert_allclose(sac.soft_value(Q, LOG_PROB, 0.2), [1.2, 2.9], rtol=1e-6)


def test_expected_soft_value_by_hand():
    q = jnp.array([[[1.0, 5.0, 9.0]], [[2.0, 3.0, 9.0]]])  # [E=2, B=1, A=3]
    mask = jnp.array([[True, True, False]])
    chosen_by = distributions.categorical(jnp.log(jnp.array([[0.25, 0.75, 5.0]])), mask)
    # ¼·1 + ¾·3 + 0.2 · H, H = ¼ log 4 + ¾ log 4/3; the forbidden 9 counts for nothing
    entropy = 0.25 * np.log(4) + 0.75 * np.log(4 / 3)
    got = sac.expected_soft_value(q, chosen_by, 0.2)
    np.testing.assert_allclose(got, [2.5 + 0.2 * entropy], rtol=1e-6)


def test_expected_soft_value_is_the_mean_of_the_drawn_ones(key):
    q = jax.random.normal(key, (2, 1, 4))
    chosen_by = distributions.categorical(jnp.array([[0.5, -1.0, 0.2, 1.0]]))
    many = distributions.Categorical(jnp.broadcast_to(chosen_by.log_probs, (50_000, 4)))
    action = many.sample(key)
    drawn = sac.soft_value(q[:, 0, action], many.log_prob(action), 0.7)
    error = drawn.std() / np.sqrt(50_000)
    assert sac.expected_soft_value(q, chosen_by, 0.7)[0] == pytest.approx(
        float(drawn.mean()), abs=5 * float(error)
    )


def test_critic_loss_by_hand_at_an_end_and_beyond():
    reward, discount = jnp.array([1.0, 1.0]), jnp.array([0.0, 0.5])  # terminated; γ = ½
    loss = sac.critic_loss(Q, reward, discount, jnp.array([100.0, 4.0]))
    # targets 1 and 3: ½(0² + 1²);  ½(2² + 0²)
    np.testing.assert_allclose(loss, [0.5, 2.0], rtol=1e-6)


def test_the_gradient_of_the_critic_loss_reaches_q_only():
    x = jnp.array([1.0, 0.5])
    gradients = jax.grad(lambda *x: sac.critic_loss(*x).sum(), argnums=(0, 1, 2, 3))(Q, x, x, x)
    # Q - (x + x²): both critics are pulled to the same target
    np.testing.assert_allclose(gradients[0], Q - (x + x**2)[None], rtol=1e-6)
    for stopped in gradients[1:]:
        assert not stopped.any()


def test_the_actors_gradient_follows_the_lesser_critic():
    slope = jax.grad(lambda q: sac.actor_loss(sac.soft_value(q, LOG_PROB, 0.2)).sum())(Q)
    np.testing.assert_array_equal(slope, [[-1, 0], [0, -1]])


@pytest.mark.parametrize(("entropy", "sign"), [(-3.0, -1.0), (-1.0, 1.0)])
def test_temperature_rises_while_entropy_is_below_its_target(entropy, sign):
    loss = jax.grad(lambda x: sac.temperature_loss(x, jnp.array([entropy]), -2.0).sum())
    assert loss(jnp.float32(0.3)) == sign  # H - H̄, whatever α: a descent step raises log α if < 0


def test_temperature_sends_no_gradient_into_the_entropy():
    def loss(entropy):
        return sac.temperature_loss(jnp.float32(0.3), entropy, -2.0).sum()

    assert not jax.grad(loss)(LOG_PROB).any()


BOX = EnvSpec("box", (3,), "float32", Box((-1.0, -2.0), (1.0, 2.0)))
MASKED = EnvSpec("masked", (3,), "float32", Discrete(4), has_mask=True)
CONFIG = sac.Config(hidden_sizes=(8,))


def networks_of(spec):
    make = sac.box if isinstance(spec.action, Box) else sac.discrete
    return make(CONFIG, spec, spec.action)


@pytest.mark.parametrize("spec", [BOX, MASKED], ids=["box", "discrete"])
@pytest.mark.parametrize(
    ("loss", "part"),
    [("loss/critic", "critic"), ("loss/actor", "actor"), ("loss/temperature", "log_temperature")],
)
def test_each_loss_teaches_its_own_part_and_nothing_else(spec, loss, part, key):
    networks = networks_of(spec)
    batch = sample(spec, key)

    def gradients(params, target):
        def total(params, target):
            return sac.terms(networks, params, target, batch, key)[loss].sum()

        return jax.grad(total, argnums=(0, 1))(params, target)

    params = sac.Params(*networks.init(key), jnp.float32(-1.0))
    on_one = jax.shard_map(
        gradients, mesh=sharding.mesh(1), in_specs=jax.P(), out_specs=jax.P(), check_vma=False
    )
    gradient, into_target = on_one(params, params.critic)
    reached = {
        name: any(leaf.any() for leaf in jax.tree.leaves(part))
        for name, part in gradient._asdict().items()
    }
    assert reached == {name: name == part for name in sac.Params._fields}
    assert not any(leaf.any() for leaf in jax.tree.leaves(into_target))


def test_target_entropies():
    assert networks_of(BOX).target_entropy(BOX.example((2,))) == -2
    set_by_hand = dataclasses.replace(CONFIG, target_entropy=-0.5)
    assert sac.box(set_by_hand, BOX, BOX.action).target_entropy(BOX.example()) == -0.5
    mask = jnp.array([[True, True, False, True], [False, True, False, False]])
    observation = MASKED.example((2,))._replace(mask=mask)
    wanted = networks_of(MASKED).target_entropy(observation)
    np.testing.assert_allclose(wanted, [0.5 * np.log(3), 0.0], rtol=1e-6)


def test_a_critic_sees_actions_scaled_to_their_bounds(key):
    networks = networks_of(BOX)
    _, critic = networks.init(key)
    wide = EnvSpec("wide", (3,), "float32", Box((-10.0, 0.0), (10.0, 1.0)))
    observation = BOX.example((2,))
    q = networks.q(critic, observation, jnp.array([[0.5, -2.0], [-1.0, 1.0]]))
    same = networks_of(wide).q(critic, observation, jnp.array([[5.0, 0.0], [-10.0, 0.75]]))
    np.testing.assert_allclose(q, same, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 2_000_000}, "rows that are kept"),
        ({"learning_starts": 1_000_000}, "nothing is learned"),
        ({"target_rate": 1.5}, "target_rate"),
        ({"initial_temperature": 0.0}, "initial_temperature"),
        ({"target_entropy_fraction": 1.1}, "target_entropy_fraction"),
        ({"discount": -0.1}, "discount"),
        ({"num_updates": 0}, "num_updates"),
        ({"hidden_sizes": (0,)}, "hidden_sizes"),
    ],
)
def test_configs_that_cannot_work_are_refused_in_a_sentence(changes, words):
    with pytest.raises(ValueError, match=words):
        sac.validate(dataclasses.replace(sac.Config(), **changes))
