import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rljax import reductions, sharding
from rljax.agent import AXIS


def on_devices(function, count=1):
    """`function` of shards of its arguments' first axis; its result, per device, `[count, ...]`."""
    return jax.shard_map(
        lambda *shards: jax.tree.map(lambda x: x[None], function(*shards)),
        mesh=sharding.mesh(count),
        in_specs=PartitionSpec(AXIS),
        out_specs=PartitionSpec(AXIS),
        check_vma=False,
    )


X = jnp.array([1.0, 2.0, 6.0, 100.0])
WEIGHT = jnp.array([1.0, 1.0, 1.0, 0.0])


@pytest.mark.parametrize("devices", [1, 2])
def test_mean_over_devices_counts_weighted_rows_wherever_they_lie(devices):
    # two devices: [1, 2] and [6, (100)]. (1+2+6)/3 = 3; a mean of the devices' means would be 3.75
    mean = on_devices(reductions.mean_over_devices, devices)(X, WEIGHT)
    np.testing.assert_allclose(mean, np.full(devices, 3.0))


def test_mean_over_devices_is_0_where_nothing_has_weight():
    assert on_devices(reductions.mean_over_devices)(X, jnp.zeros(4)) == 0


def test_mean_over_devices_takes_rows_of_time_and_environments():
    mean = on_devices(reductions.mean_over_devices)(X.reshape(2, 2), WEIGHT.reshape(2, 2))
    np.testing.assert_allclose(mean, [3.0])


@pytest.mark.parametrize("devices", [1, 2])
def test_shares_of_rows_add_up_to_a_mean_over_all_devices(devices):
    # 3 rows of weight 1, two of them on the first of two devices
    weight = jnp.array([[1.0, 1.0], [1.0, 0.0]])
    x = jnp.array([[3.0, 6.0], [9.0, 100.0]])
    shares = on_devices(reductions.share_of_rows, devices)(weight)
    sums = np.asarray(shares.reshape(x.shape) * x).reshape(devices, -1).sum(axis=1)
    assert sums.mean() == pytest.approx(6)  # (3 + 6 + 9) / 3


def test_without_a_row_of_weight_shares_are_0():
    shares = on_devices(reductions.share_of_rows)(jnp.zeros((2, 2)))
    np.testing.assert_array_equal(shares, np.zeros((1, 2, 2)))


@pytest.mark.parametrize("devices", [1, 2])
def test_standardize_by_hand(devices):
    # mean 3, population variance (4+1+9)/3 = 14/3 (the sample variance would be 7)
    z = on_devices(reductions.standardize, devices)(X, WEIGHT).reshape(-1)
    np.testing.assert_allclose(z[:3], np.array([-2, -1, 3]) / np.sqrt(14 / 3), rtol=1e-6)


def test_standardize_gives_mean_0_and_deviation_1(key):
    x = 5 + 3 * jax.random.normal(key, (1000,))
    z = on_devices(reductions.standardize)(x, jnp.ones(1000))[0]
    np.testing.assert_allclose([z.mean(), z.std()], [0.0, 1.0], atol=1e-5)


def test_standardize_of_equal_or_weightless_advantages_is_finite_and_0():
    standardize = on_devices(reductions.standardize)
    np.testing.assert_array_equal(standardize(jnp.full(4, 2.0), WEIGHT)[0, :3], 0)
    np.testing.assert_array_equal(standardize(jnp.zeros(4), jnp.zeros(4))[0], 0)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1.0, 2.0, 6.0, 0.0], 1.0),  # perfect
        ([4.0, 5.0, 9.0, 0.0], 1.0),  # off by a constant: the variance does not see it
        ([7.0, 7.0, 7.0, 0.0], 0.0),  # constant
        ([-1.0, -2.0, -6.0, 0.0], -3.0),  # G - V = 2G: 1 - 4
        ([1.0, 2.0, 3.0, 0.0], 0.571429),  # G - V = [0, 0, 3], variance 2: 1 - 2/(14/3) = 4/7
    ],
)
def test_explained_variance_by_hand(value, expected, devices):
    explained = on_devices(reductions.explained_variance, devices)(jnp.array(value), X, WEIGHT)
    np.testing.assert_allclose(explained, np.full(devices, expected), atol=1e-6)


def test_explained_variance_of_a_constant_target_is_finite():
    assert np.isfinite(on_devices(reductions.explained_variance)(X, jnp.ones(4), WEIGHT)).all()
