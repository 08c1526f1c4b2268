import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from rljax import distributions
from rljax.distributions import Joint, Normal, TanhNormal, categorical

LOGITS = jnp.log(jnp.array([1.0, 2.0, 5.0]))  # probabilities 1/8, 2/8, 5/8
NOT_LAST = jnp.array([True, True, False])  # then 1/3, 2/3, 0


def test_categorical_log_prob_by_hand():
    distribution = categorical(jnp.stack([LOGITS + 7.0, LOGITS]))  # any constant cancels
    log_prob = distribution.log_prob(jnp.array([2, 0]))
    np.testing.assert_allclose(log_prob, [math.log(5 / 8), math.log(1 / 8)], rtol=1e-6)


def test_categorical_entropy_by_hand():
    # -(1/8 log 1/8 + 2/8 log 2/8 + 5/8 log 5/8) = 0.259930 + 0.346574 + 0.293752
    np.testing.assert_allclose(categorical(LOGITS).entropy(), 0.900256, rtol=1e-5)


def test_categorical_entropy_at_its_limits():
    np.testing.assert_allclose(categorical(jnp.zeros(4)).entropy(), math.log(4), rtol=1e-6)
    np.testing.assert_allclose(categorical(jnp.array([200.0, 0, 0])).entropy(), 0.0, atol=1e-6)


def test_categorical_mode_and_probabilities():
    distribution = categorical(LOGITS)
    assert distribution.mode() == 2
    assert distribution.mode().dtype == jnp.int32
    probabilities = distribution.parameters()["probabilities"]
    np.testing.assert_allclose(probabilities, [0.125, 0.25, 0.625], rtol=1e-6)


def test_categorical_samples_by_its_probabilities(key):
    draws = categorical(jnp.broadcast_to(LOGITS, (10_000, 3))).sample(key)
    assert draws.dtype == jnp.int32
    frequencies = np.bincount(draws, minlength=3) / 10_000
    # 5 deviations of a frequency: 5·√(p(1-p)/10⁴) ≤ 0.025
    np.testing.assert_allclose(frequencies, [0.125, 0.25, 0.625], atol=0.025)


@pytest.mark.parametrize("logit", [0.0, 1e4, -1e4])
def test_masked_probabilities_sum_to_1_whatever_the_masked_logit(logit):
    distribution = categorical(LOGITS.at[2].set(logit), NOT_LAST)
    probabilities = distribution.parameters()["probabilities"]
    np.testing.assert_allclose(probabilities, [1 / 3, 2 / 3, 0.0], rtol=1e-6)
    assert probabilities[2] == 0
    allowed = jax.vmap(distribution.log_prob)(jnp.array([0, 1]))
    np.testing.assert_allclose(jnp.exp(allowed).sum(), 1.0, rtol=1e-6)
    assert jnp.exp(distribution.log_prob(jnp.int32(2))) == 0


def test_masked_entropy_by_hand():
    # -(1/3 log 1/3 + 2/3 log 2/3) = 0.366204 + 0.270310
    np.testing.assert_allclose(categorical(LOGITS, NOT_LAST).entropy(), 0.636514, rtol=1e-5)


@pytest.mark.parametrize("what", ["log_prob", "entropy"])
def test_masked_logits_get_no_gradient_and_the_others_a_finite_one(what):
    def number(logits):
        distribution = categorical(logits, NOT_LAST)
        return distribution.log_prob(jnp.int32(0)) if what == "log_prob" else distribution.entropy()

    gradient = jax.grad(number)(LOGITS)
    expected = {
        "log_prob": [1 - 1 / 3, -2 / 3, 0.0],  # onehot - p
        # -p (log p + H): -(1/3)(-1.098612 + 0.636514) = 0.154033, and its opposite
        "entropy": [0.154033, -0.154033, 0.0],
    }[what]
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    assert gradient[2] == 0


def test_masked_actions_are_never_sampled_nor_the_mode(key):
    logits = jnp.array([0.0, 50.0, 0.0, 50.0])  # the masked ones by far the likeliest
    mask = jnp.array([True, False, True, False])
    shape = (10_000, 4)
    distribution = categorical(jnp.broadcast_to(logits, shape), jnp.broadcast_to(mask, shape))
    assert set(np.asarray(distribution.sample(key)).tolist()) == {0, 2}
    assert (distribution.mode() == 0).all()


def test_a_mask_that_forbids_all_gives_the_uniform_distribution():
    distribution = categorical(LOGITS, jnp.zeros(3, bool))
    np.testing.assert_allclose(distribution.parameters()["probabilities"], 1 / 3, rtol=1e-6)
    slope = jax.grad(lambda logits: categorical(logits, jnp.zeros(3, bool)).entropy())(LOGITS)
    assert np.isfinite(slope).all()


def test_a_mask_that_allows_all_changes_nothing():
    with_mask = categorical(LOGITS, jnp.ones(3, bool)).log_probs
    np.testing.assert_array_equal(with_mask, categorical(LOGITS).log_probs)


def test_categorical_refuses_a_mask_of_another_width():
    with pytest.raises(TypeError):
        categorical(LOGITS, jnp.ones(1, bool))


def joint(batch=()):
    """Components of 2 and 3 choices: probabilities 1/4, 3/4 and 1/8, 2/8, 5/8."""
    parts = (jnp.log(jnp.array([1.0, 3.0])), LOGITS)
    return Joint(tuple(categorical(jnp.broadcast_to(x, (*batch, x.size))) for x in parts))


def test_joint_adds_log_probs_and_entropies():
    log_prob = joint((2,)).log_prob(jnp.array([[0, 2], [1, 0]]))
    # log(1/4 · 5/8), log(3/4 · 1/8)
    np.testing.assert_allclose(log_prob, np.log([5 / 32, 3 / 32]), rtol=1e-6)
    # -(1/4 log 1/4 + 3/4 log 3/4) = 0.562335, and 0.900256 as above
    np.testing.assert_allclose(joint().entropy(), 1.462591, rtol=1e-5)


def test_joint_probabilities_over_all_actions_sum_to_1():
    actions = jnp.array([[i, j] for i in range(2) for j in range(3)])
    np.testing.assert_allclose(jnp.exp(joint((6,)).log_prob(actions)).sum(), 1.0, rtol=1e-6)


def test_joint_mode_and_parameters():
    assert joint().mode().tolist() == [1, 2]
    probabilities = joint().parameters()["probabilities"]
    np.testing.assert_allclose(probabilities, [1 / 4, 3 / 4, 1 / 8, 2 / 8, 5 / 8], rtol=1e-6)


def test_joint_samples_its_components_independently(key):
    same = categorical(jnp.zeros((10_000, 2)))
    draws = np.asarray(Joint((same, same)).sample(key))
    assert draws.shape == (10_000, 2)
    assert draws.dtype == np.int32
    cells = np.bincount(2 * draws[:, 0] + draws[:, 1], minlength=4) / 10_000
    np.testing.assert_allclose(cells, 0.25, atol=0.022)  # 5·√(¼·¾/10⁴); one key for both: 0, ½


def normal(mean, scale):
    return Normal(jnp.asarray(mean, jnp.float32), jnp.log(jnp.asarray(scale, jnp.float32)))


def test_normal_log_prob_by_hand():
    # z = [(1-0)/1, (5-1)/2] = [1, 2]: -½·1 - 0 - 0.918939 - ½·4 - log 2 - 0.918939
    distribution = normal([0.0, 1.0], [1.0, 2.0])
    np.testing.assert_allclose(distribution.log_prob(jnp.array([1.0, 5.0])), -5.031024, rtol=1e-6)


def test_normal_agrees_with_scipy(key):
    mean, scale, action = jax.random.normal(key, (3, 20, 4))
    distribution = normal(mean, jnp.exp(scale))
    oracle = stats.norm(np.asarray(mean), np.exp(np.asarray(scale)))
    expected = oracle.logpdf(np.asarray(action)).sum(-1)
    np.testing.assert_allclose(distribution.log_prob(action), expected, rtol=1e-4)
    np.testing.assert_allclose(distribution.entropy(), oracle.entropy().sum(-1), rtol=1e-4)


def test_normal_entropy_by_hand():
    # ½ log(2πe) = 1.418939 per dimension, plus log 2 for the second
    np.testing.assert_allclose(normal([0.0, 9.0], [1.0, 2.0]).entropy(), 3.531024, rtol=1e-6)


def test_normal_samples_have_its_mean_and_scale(key):
    shape = (20_000, 2)
    distribution = normal(jnp.broadcast_to(jnp.array([1.0, -2.0]), shape), jnp.full(shape, 0.5))
    draws = distribution.sample(key)
    np.testing.assert_allclose(draws.mean(0), [1.0, -2.0], atol=0.018)  # 5·0.5/√20000
    np.testing.assert_allclose(draws.std(0), 0.5, atol=0.013)  # 5·0.5/√(2·20000)
    assert abs(np.corrcoef(draws.T)[0, 1]) < 0.036  # 5/√20000
    assert (distribution.mode() == distribution.mean).all()
    np.testing.assert_allclose(distribution.parameters()["scale"], 0.5, rtol=1e-6)


LOW, HIGH = -2.0, 6.0


def tanh_normal(mean, scale, low=LOW, high=HIGH):
    base = normal(mean, scale)
    return TanhNormal(base, jnp.full(base.mean.shape, low), jnp.full(base.mean.shape, high))


def test_tanh_normal_log_prob_by_hand():
    # action 2 is the middle of -2..6: u = 0, slope 1 · (6+2)/2 = 4
    # log N(0; 0, 1) - log 4 = -0.918939 - 1.386294
    distribution = tanh_normal([0.0], [1.0])
    np.testing.assert_allclose(distribution.log_prob(jnp.array([2.0])), -2.305233, rtol=1e-6)
    # action 4: squashed ½, u = artanh ½ = 0.549306, slope 4·(1 - ¼) = 3
    # -½·0.301737 - 0.918939 - 1.098612 = -2.168420
    np.testing.assert_allclose(distribution.log_prob(jnp.array([4.0])), -2.168420, rtol=1e-5)


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (0.7, 0.3), (-1.5, 0.8)])
def test_tanh_normal_density_integrates_to_1(mean, scale):
    x = np.linspace(LOW, HIGH, 20_001)[1:-1]
    rows = jnp.asarray(x, jnp.float32)[:, None]
    shape = rows.shape
    distribution = tanh_normal(jnp.full(shape, mean), jnp.full(shape, scale))
    density = np.exp(np.asarray(distribution.log_prob(rows), float))
    np.testing.assert_allclose(integrate.trapezoid(density, x), 1.0, rtol=1e-3)


def test_tanh_normal_adds_over_its_dimensions():
    both = tanh_normal([0.0, 0.5], [1.0, 0.7])
    action = jnp.array([1.0, 3.0])
    first = tanh_normal([0.0], [1.0]).log_prob(action[:1])
    second = tanh_normal([0.5], [0.7]).log_prob(action[1:])
    np.testing.assert_allclose(both.log_prob(action), first + second, rtol=1e-6)


def test_tanh_normal_samples_lie_inside_and_their_log_probs_are_finite(key):
    shape = (10_000, 1)
    for mean, scale in [(0.0, 1.0), (20.0, 1.0), (-20.0, 1.0), (0.0, 50.0)]:
        distribution = tanh_normal(jnp.full(shape, mean), jnp.full(shape, scale))
        draws = distribution.sample(key)
        assert ((draws > LOW) & (draws < HIGH)).all()
        assert np.isfinite(distribution.log_prob(draws)).all()
        slope = jax.grad(
            lambda m, d=distribution, x=draws: (
                d._replace(base=d.base._replace(mean=m)).log_prob(x).sum()
            )
        )(distribution.base.mean)
        assert np.isfinite(slope).all()


def test_tanh_normal_from_noise_is_a_draw_with_its_log_prob_and_a_gradient_at_the_edge(key):
    normal = Normal(jnp.array([[0.3, -0.5], [1.0, 9.0]]), jnp.full((2, 2), -1.0))
    wide = TanhNormal(normal, jnp.full((2, 2), -2.0), jnp.full((2, 2), 1.0))
    noise = jax.random.normal(key, (2, 2))
    action, log_prob = wide.from_noise(noise)
    u = normal.mean + jnp.exp(-1.0) * noise
    np.testing.assert_allclose(action, -2 + 1.5 * (jnp.tanh(u) + 1), atol=1e-5)
    np.testing.assert_allclose(log_prob[:1], wide.log_prob(action)[:1], rtol=1e-4)

    def of_mean(mean):
        return TanhNormal(Normal(mean, normal.log_scale), wide.low, wide.high)

    slope = jax.grad(lambda mean: of_mean(mean).from_noise(noise)[1].sum())(normal.mean)
    # d(-log(1 - tanh²u))/du = 2 tanh u, which is 2 where arctanh has no gradient left
    np.testing.assert_allclose(slope, 2 * jnp.tanh(u), rtol=1e-4)


def test_tanh_normal_log_prob_is_finite_on_the_bounds_themselves():
    assert np.isfinite(tanh_normal([0.0], [1.0]).log_prob(jnp.array([LOW])))
    assert np.isfinite(tanh_normal([0.0], [1.0]).log_prob(jnp.array([HIGH])))


@pytest.mark.parametrize(
    ("mean", "scale"), [(0.0, 0.01), (0.0, 1.0), (1.0, 0.5), (-2.0, 1.0), (0.5, 2.0), (4.0, 1.0)]
)
def test_tanh_normal_entropy_agrees_with_numerical_integration(mean, scale):
    def weighted(u):
        return stats.norm.pdf(u, mean, scale) * 2 * (math.log(2) - u - np.logaddexp(0, -2 * u))

    limits = (mean - 12 * scale, mean + 12 * scale)
    log_slope, _ = integrate.quad(weighted, *limits, limit=200)
    expected = stats.norm.entropy(mean, scale) + log_slope + math.log((HIGH - LOW) / 2)
    np.testing.assert_allclose(tanh_normal([mean], [scale]).entropy(), expected, atol=2e-3)


def test_tanh_normal_entropy_agrees_with_monte_carlo(key):
    shape = (20_000, 2)
    mean = jnp.broadcast_to(jnp.array([0.3, -1.0]), shape)
    distribution = tanh_normal(mean, jnp.full(shape, 0.8))
    surprise = -distribution.log_prob(distribution.sample(key))
    tolerance = 5 * float(surprise.std()) / math.sqrt(20_000)
    assert tolerance < 0.05
    np.testing.assert_allclose(surprise.mean(), distribution.entropy()[0], atol=tolerance)


def test_tanh_normal_entropy_falls_as_the_mean_saturates():
    slope = jax.grad(lambda m: tanh_normal(m[None], [0.5]).entropy())(jnp.float32(1.5))
    # E[d log(1 - tanh²u)/dm] = -2 E[tanh u], about -2·0.88 here
    np.testing.assert_allclose(slope, -1.76, atol=0.06)


def test_tanh_normal_mode_is_the_squashed_mean():
    np.testing.assert_allclose(tanh_normal([0.0], [1.0]).mode(), [2.0])
    # tanh(0.549306) = ½: -2 + 4·1.5
    np.testing.assert_allclose(tanh_normal([0.549306], [1.0]).mode(), [4.0], rtol=1e-5)


def test_tanh_normal_parameters_are_those_before_squashing():
    parameters = tanh_normal([0.5], [2.0]).parameters()
    np.testing.assert_allclose(parameters["mean"], [0.5])
    np.testing.assert_allclose(parameters["scale"], [2.0], rtol=1e-6)


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 1.0), (-2.0, 6.0), (-1e3, 1e3)])
def test_tanh_normal_stretches_to_its_bounds(bounds):
    low, high = bounds
    distribution = tanh_normal([-30.0, 30.0], [1e-3, 1e-3], low, high)
    np.testing.assert_allclose(distribution.mode(), bounds, rtol=1e-6, atol=1e-6 * (high - low))


def test_distributions_pass_through_jit_and_vmap(key):
    def log_prob(logits, key):
        distribution = distributions.categorical(logits)
        action = distribution.sample(key)
        return distribution.log_prob(action), distribution

    keys = jax.random.split(key, 5)
    logits = jax.random.normal(key, (5, 3))
    numbers, distribution = jax.jit(jax.vmap(log_prob))(logits, keys)
    assert isinstance(distribution, distributions.Categorical)
    assert numbers.shape == (5,)
    np.testing.assert_allclose(distribution.log_probs, jax.nn.log_softmax(logits), rtol=1e-5)
