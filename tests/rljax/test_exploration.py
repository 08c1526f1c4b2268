import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import exploration

VALUES = jnp.array([[1.0, 3.0, 2.0], [5.0, -1.0, 5.0]])
MASK = jnp.array([[True, False, True], [False, True, False]])


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 1.0), (25, 0.775), (100, 0.1), (1e9, 0.1)],  # 1 - 25/100 · 0.9, and no lower than the end
)
def test_linear_falls_to_its_end_and_stays(step, expected):
    got = exploration.linear(jnp.float32(step), 1.0, 0.1, 100.0)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_greedy_takes_the_first_of_equals_and_never_what_is_forbidden():
    np.testing.assert_array_equal(exploration.greedy(VALUES), [1, 0])
    np.testing.assert_array_equal(exploration.greedy(VALUES, MASK), [2, 1])
    assert exploration.greedy(VALUES).dtype == jnp.int32
    low = jnp.array([[-1e35, 3.0]])  # below any finite stand-in for "forbidden"
    assert exploration.greedy(low, jnp.array([[True, False]])) == 0


def test_propensities_by_hand():
    chosen_by = exploration.epsilon_greedy(VALUES, 0.3)
    probabilities = chosen_by.parameters()["probabilities"]
    # ε/k = 0.1 for every action, and 1 - ε more for the greatest; the first of two equal ones
    np.testing.assert_allclose(probabilities, [[0.1, 0.8, 0.1], [0.8, 0.1, 0.1]], rtol=1e-5)
    np.testing.assert_allclose(chosen_by.log_prob(jnp.array([1, 1])), np.log([0.8, 0.1]), rtol=1e-5)


def test_masked_propensities_by_hand():
    chosen_by = exploration.epsilon_greedy(VALUES, 0.3, MASK)
    probabilities = chosen_by.parameters()["probabilities"]
    # two allowed: ε/2 each, and 1 - ε for the greatest allowed; one allowed: that one
    np.testing.assert_allclose(probabilities, [[0.15, 0.0, 0.85], [0.0, 1.0, 0.0]], rtol=1e-5)
    assert (probabilities[~MASK] == 0).all()


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("mask", [None, MASK])
def test_propensities_sum_to_1_and_entropies_are_finite(epsilon, mask):
    chosen_by = exploration.epsilon_greedy(VALUES, jnp.float32(epsilon), mask)
    total = chosen_by.parameters()["probabilities"].sum(-1)
    np.testing.assert_allclose(total, 1.0, rtol=1e-6)
    entropy = chosen_by.entropy()
    assert np.isfinite(entropy).all()
    if epsilon == 0:
        np.testing.assert_allclose(entropy, 0.0, atol=1e-6)


def test_epsilon_1_is_uniform_over_what_is_allowed():
    probabilities = exploration.epsilon_greedy(VALUES, 1.0, MASK).parameters()["probabilities"]
    np.testing.assert_allclose(probabilities, [[0.5, 0, 0.5], [0, 1, 0]], rtol=1e-6)


def test_a_mask_that_forbids_all_is_taken_to_allow_all():
    nothing = jnp.zeros((2, 3), bool)
    probabilities = exploration.epsilon_greedy(VALUES, 1.0, nothing).parameters()["probabilities"]
    np.testing.assert_allclose(probabilities, np.full((2, 3), 1 / 3), rtol=1e-6)


def test_draws_come_as_often_as_their_propensity_says(key):
    values = jnp.broadcast_to(VALUES[:1], (20_000, 3))
    mask = jnp.broadcast_to(MASK[:1], (20_000, 3))
    draws = exploration.epsilon_greedy(values, 0.3, mask).sample(key)
    shares = np.bincount(draws, minlength=3) / 20_000
    # five standard deviations of 20,000 draws: 5 √(0.15 · 0.85 / 20,000) = 0.0126
    np.testing.assert_allclose(shares, [0.15, 0, 0.85], atol=0.0126)
    assert shares[1] == 0


def test_epsilon_may_be_traced():
    def entropy(epsilon):
        return exploration.epsilon_greedy(VALUES, epsilon).entropy()

    entropies = jax.jit(jax.vmap(entropy))(jnp.array([0.0, 0.1, 1.0]))
    assert (np.diff(entropies, axis=0) > 0).all()
