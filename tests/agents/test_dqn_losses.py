"""DQN's losses by hand, C51's against slow loops, and where no gradient may flow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import dqn
from rljax.nn.heads import ActionValueHead

OUTPUTS = jnp.array([[[1.0], [2.0], [4.0]], [[0.5], [3.0], [-1.0]]])  # [B=2, A=3, N=1]
VALUES = jnp.array([[3.0, 1.0, 2.0], [0.0, 1.0, 2.0]])  # the other network's, for double
MASK = jnp.array([[False, True, True], [True, False, True]])


def test_double_and_single_bootstrap_differ_by_hand():
    single = dqn.bootstrap(OUTPUTS, OUTPUTS[..., 0], None)[:, 0]
    np.testing.assert_allclose(single, [4.0, 3.0])  # its own greatest values
    double = dqn.bootstrap(OUTPUTS, VALUES, None)[:, 0]
    np.testing.assert_allclose(double, [1.0, -1.0])  # of actions 0 and 2, the other's greatest


def test_a_forbidden_action_is_never_bootstrapped_from():
    single = dqn.bootstrap(OUTPUTS, OUTPUTS[..., 0], MASK)[:, 0]
    np.testing.assert_allclose(single, [4.0, 0.5])  # the 3 of row 1 is forbidden
    double = dqn.bootstrap(OUTPUTS, VALUES, MASK)[:, 0]
    np.testing.assert_allclose(double, [4.0, -1.0])  # row 0: action 2 for the forbidden 0
    nothing = dqn.bootstrap(OUTPUTS, VALUES, jnp.zeros((2, 3), bool))  # behind a terminal row
    assert np.isfinite(nothing).all()


def test_no_gradient_enters_the_bootstrap():
    def total(outputs, values):
        return dqn.bootstrap(outputs, values, None).sum()

    for gradient in jax.grad(total, argnums=(0, 1))(OUTPUTS, VALUES):
        assert not gradient.any()


def test_td_error_of_an_end_a_limit_and_three_steps_by_hand():
    q = jnp.full(3, 2.0)
    reward = jnp.array([1.0, 1.0, 1.75])  # the last: 1 + ½ + ¼ over three steps of γ = ½
    discount = jnp.array([0.0, 0.5, 0.125])  # terminated; truncated, so γ; γ³
    next_value = jnp.array([100.0, 8.0, 8.0])
    error = dqn.td_error(q, reward, discount, next_value)
    # 1 + 0 - 2;  1 + 4 - 2;  1.75 + 1 - 2
    np.testing.assert_allclose(error, [-1.0, 3.0, 0.75], rtol=1e-6)


def test_the_gradient_of_the_td_error_reaches_q_only():
    x = jnp.ones(2)
    gradients = jax.grad(lambda *x: dqn.td_error(*x).sum(), argnums=(0, 1, 2, 3))(x, x, x, x)
    np.testing.assert_array_equal(gradients[0], [-1.0, -1.0])
    for stopped in gradients[1:]:
        assert not stopped.any()


def test_of_action_picks_and_its_gradient_stays_with_the_action():
    action = jnp.array([2, 0])
    np.testing.assert_array_equal(dqn.of_action(OUTPUTS, action)[:, 0], [4.0, 0.5])
    slope = jax.grad(lambda x: dqn.of_action(x, action).sum())(OUTPUTS)[..., 0]
    np.testing.assert_array_equal(slope, [[0, 0, 1], [1, 0, 0]])


@pytest.mark.parametrize("num_outputs", [1, 5])
def test_dueling_advantages_have_mean_0(num_outputs, key):
    head = ActionValueHead(3, num_outputs, dueling=True)
    features = jax.random.normal(key, (4, 8))
    params = head.init(key, features)
    outputs = head.apply(params, features)
    assert outputs.shape == (4, 3, num_outputs)
    layers = params["params"]
    value = features @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"][None]
    np.testing.assert_allclose(outputs.mean(1), value, atol=1e-5)  # what remains is V
    # a constant more for every action's advantage moves nothing: V and A are told apart
    layers["Dense_0"]["bias"] += 7.0
    np.testing.assert_allclose(head.apply(params, features), outputs, atol=1e-5)
    plain = ActionValueHead(3, num_outputs)
    assert np.abs(plain.apply(plain.init(key, features), features).mean(1)).max() > 0.1


ATOMS = jnp.array([-1.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("reward", "discount", "expected"),
    [
        # atoms go to -½, 0, ½: half of the outer ones' mass falls back on 0
        (0.0, 0.5, [0.1, 0.65, 0.25]),
        # all atoms go to 0.25: three quarters to 0 and one to 1
        (0.25, 0.0, [0.0, 0.75, 0.25]),
        # atoms go to 0, 1, 2: the last is kept within the support
        (1.0, 1.0, [0.0, 0.2, 0.8]),
        # all below the support
        (-9.0, 1.0, [1.0, 0.0, 0.0]),
    ],
)
def test_projection_by_hand(reward, discount, expected):
    probabilities = jnp.array([[0.2, 0.3, 0.5]])
    got = dqn.project(jnp.array([reward]), jnp.array([discount]), probabilities, ATOMS)
    np.testing.assert_allclose(got[0], expected, atol=1e-6)


def test_projection_agrees_with_the_papers_loop(key):
    keys = jax.random.split(key, 3)
    config = dataclasses.replace(dqn.Config(), num_atoms=51, value_min=-2.0, value_max=3.0)
    atoms = np.asarray(dqn.support(config), float)
    assert atoms[0] == -2
    assert atoms[-1] == 3
    reward = np.asarray(2 * jax.random.normal(keys[0], (16,)))
    discount = np.asarray(jax.random.uniform(keys[1], (16,))).copy()
    discount[:4] = 0
    probabilities = np.asarray(jax.nn.softmax(3 * jax.random.normal(keys[2], (16, 51))))
    expected = np.zeros((16, 51))
    for b in range(16):
        for j in range(51):  # algorithm 1, line by line
            place = (np.clip(reward[b] + discount[b] * atoms[j], -2, 3) + 2) / (5 / 50)
            lower, upper = int(np.floor(place)), int(np.ceil(place))
            if lower == upper:
                expected[b, lower] += probabilities[b, j]
            else:
                expected[b, lower] += probabilities[b, j] * (upper - place)
                expected[b, upper] += probabilities[b, j] * (place - lower)
    got = dqn.project(*map(jnp.asarray, (reward, discount, probabilities)), dqn.support(config))
    np.testing.assert_allclose(got, expected, atol=2e-5)
    np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-5)
    inside = np.abs(reward) + 3 * discount < 2  # where nothing is clipped, the mean is kept
    assert inside.any()
    mean = reward + discount * (probabilities @ atoms)
    np.testing.assert_allclose((got @ atoms)[inside], mean[inside], atol=1e-4)


def test_divergence_by_hand_and_0_where_it_is_right():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]))
    target = jnp.array([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(dqn.divergence(logits, target), [0.0, np.log(2)], atol=1e-6)


def test_the_gradient_of_the_divergence_is_that_of_the_cross_entropy():
    logits, target = jnp.array([[0.3, -0.2, 0.1]]), jnp.array([[0.0, 0.4, 0.6]])
    slope = jax.grad(lambda x: dqn.divergence(x, target).sum())(logits)
    np.testing.assert_allclose(slope, jax.nn.softmax(logits) - target, atol=1e-6)
    assert not jax.grad(lambda x: dqn.divergence(logits, x).sum())(target).any()


def test_losses_refuse_a_column():  # [B] - [B, 1] would broadcast to [B, B] in silence
    x = jnp.ones(2)
    with pytest.raises(TypeError):
        dqn.td_error(x, x, x, x[:, None])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_atoms": 1}, "at least 2"),
        ({"num_atoms": 51, "value_min": 1.0, "value_max": 1.0}, "less than"),
        ({"batch_size": 300_000}, "rows that are kept"),
        ({"learning_starts": 1_000_000}, "nothing is learned"),
        ({"final_epsilon": 1.5}, "final_epsilon"),
        ({"exploration_fraction": 0.0}, "positive"),
        ({"target_rate": 2.0}, "target_rate"),
        ({"huber_threshold": 0.0}, "huber_threshold"),
        ({"num_steps": 0}, "num_steps"),
        ({"target_period": 0}, "target_period"),
        ({"total_steps": 8}, "one rollout"),
        ({"importance_exponent": 1.1}, "importance_exponent"),
        ({"priority_exponent": -0.1}, "priority_exponent"),
        ({"num_updates": 0}, "num_updates"),
    ],
)
def test_configs_that_cannot_work_are_refused_in_a_sentence(changes, words):
    with pytest.raises(ValueError, match=words):
        dqn.validate(dataclasses.replace(dqn.Config(), **changes))
