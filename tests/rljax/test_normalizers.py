from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rljax import normalizers, sharding
from rljax.agent import AXIS


def moments_of(chunks, shape=()):
    """What is left after `chunks`, each of rows `[N, *shape]` with weight 1."""
    moments = normalizers.init(shape)
    for chunk in chunks:
        x = jnp.asarray(chunk, jnp.float32)
        moments = normalizers.update(moments, x, jnp.ones(x.shape[: x.ndim - len(shape)]))
    return moments


def test_moments_by_hand():
    # mean (1+2+6)/3 = 3; population variance (4+1+9)/3 = 14/3 (sample variance: 7)
    moments = moments_of([[1.0, 2.0, 6.0]])
    np.testing.assert_allclose(moments.count, 3.0, rtol=1e-4)
    np.testing.assert_allclose(moments.mean, 3.0, rtol=1e-4)
    np.testing.assert_allclose(moments.variance, 14 / 3, rtol=1e-4)


def test_merging_by_hand():
    # [1, 2, 6] then [4, 2]: mean 15/5 = 3; squares 4+1+9+1+1 = 16, over 5
    moments = moments_of([[1.0, 2.0, 6.0], [4.0, 2.0]])
    np.testing.assert_allclose(moments.mean, 3.0, rtol=1e-4)
    np.testing.assert_allclose(moments.variance, 3.2, rtol=1e-4)


def test_before_any_data_nothing_is_changed():
    moments = normalizers.init((2,))
    np.testing.assert_array_equal(moments.mean, [0.0, 0.0])
    np.testing.assert_array_equal(moments.variance, [1.0, 1.0])
    x = jnp.array([[0.5, -3.0]])
    np.testing.assert_allclose(normalizers.normalize(x, moments, 10.0), x, rtol=1e-6)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
@pytest.mark.parametrize("cuts", [[], [1, 2, 700], [500]])
def test_chunks_in_any_order_give_the_moments_of_all(order, cuts):
    x = np.random.default_rng(0).normal(size=(1000, 3)) * [1.0, 5.0, 0.1] + [0.0, -3.0, 2.0]
    chunks = np.split(x, cuts)
    chunks = [chunks[i] for i in order if i < len(chunks)]
    moments = moments_of(chunks, (3,))
    np.testing.assert_allclose(moments.count, 1000, rtol=1e-5)
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(moments.variance, x.var(0), rtol=1e-4)


def test_rows_of_time_and_environments_are_all_rows():
    x = np.random.default_rng(0).normal(size=(6, 5, 2)).astype(np.float32)
    moments = normalizers.update(normalizers.init((2,)), jnp.asarray(x), jnp.ones((6, 5)))
    np.testing.assert_allclose(moments.mean, x.mean((0, 1)), atol=1e-5)
    np.testing.assert_allclose(moments.variance, x.var((0, 1)), rtol=1e-4)


def test_rows_without_weight_do_not_count():
    x = jnp.array([[1.0, -1.0], [1e6, 1e6], [3.0, 5.0]])
    moments = normalizers.update(normalizers.init((2,)), x, jnp.array([1.0, 0.0, 1.0]))
    np.testing.assert_allclose(moments.count, 2.0, rtol=1e-4)
    np.testing.assert_allclose(moments.mean, [2.0, 2.0], rtol=1e-3)
    np.testing.assert_allclose(moments.variance, [1.0, 9.0], rtol=1e-3)


def test_an_update_without_any_weight_changes_nothing():
    before = moments_of([[1.0, 2.0, 6.0]])
    after = normalizers.update(before, jnp.full(3, 9e9), jnp.zeros(3))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, before, after)))


@pytest.mark.parametrize("rows", [50, 1000, 20_000])
def test_a_large_offset_does_not_drown_the_deviation(rows):
    # float32 near 10⁴ has steps of 10⁻³; the variance is to be right to 1 % all the same
    x = np.random.default_rng(0).normal(1e4, 1.0, size=(rows,)).astype(np.float32)
    for chunks in ([x], np.split(x, 10)):
        moments = moments_of(chunks)
        np.testing.assert_allclose(moments.mean, x.mean(dtype=float), atol=5e-3)
        np.testing.assert_allclose(moments.variance, x.var(dtype=float), rtol=0.01)


def test_the_first_rows_of_a_far_off_feature_are_normalized_as_well_as_later_ones():
    x = jnp.array([1e4 - 1, 1e4 + 1])
    np.testing.assert_allclose(
        normalizers.normalize(x, moments_of([x]), 10.0), [-1.0, 1.0], rtol=1e-3
    )


def test_two_devices_keep_the_moments_of_one():
    x = np.random.default_rng(0).normal(3.0, 2.0, size=(4, 6, 2)).astype(np.float32)
    weight = np.ones((4, 6), np.float32)
    weight[1:, 0] = 0  # unequal weights on the devices: 9 rows against 12
    before = moments_of([np.full((5, 2), [1.0, -1.0])], (2,))

    def on(count):
        return jax.shard_map(
            lambda x, w: jax.tree.map(lambda y: y[None], normalizers.update(before, x, w, AXIS)),
            mesh=sharding.mesh(count),
            in_specs=PartitionSpec(None, AXIS),
            out_specs=PartitionSpec(AXIS),
            check_vma=False,
        )(x, weight)

    one, two = on(1), on(2)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(b[0], b[1])  # both devices have the same
        np.testing.assert_allclose(b[0], a[0], rtol=1e-6)
    alone = normalizers.update(before, jnp.asarray(x), jnp.asarray(weight))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), alone, jax.tree.map(_first, one))


def _first(x):
    return x[0]


def test_normalize_by_hand():
    # mean 3, deviation √(14/3) = 2.160247; (6-3)/2.160247 = 1.388730
    moments = moments_of([[1.0, 2.0, 6.0]])
    x = jnp.array([3.0, 6.0, 30.0, -30.0])
    np.testing.assert_allclose(
        normalizers.normalize(x, moments, 5.0), [0.0, 1.388730, 5.0, -5.0], rtol=1e-4, atol=1e-4
    )


def test_normalize_of_a_constant_feature_is_finite():
    moments = moments_of([np.full(100, 7.0)])
    assert normalizers.normalize(jnp.array([7.0]), moments, 10.0) == 0
    assert normalizers.normalize(jnp.array([8.0]), moments, 10.0) == 10


def test_deviation_by_hand():
    np.testing.assert_allclose(
        normalizers.deviation(moments_of([[1.0, 2.0, 6.0]])), 2.160247, rtol=1e-4
    )
    assert normalizers.deviation(moments_of([np.zeros(10_000)])) > 0


def test_normalized_rows_have_mean_0_and_deviation_1():
    x = jnp.asarray(np.random.default_rng(0).normal(-4.0, 3.0, size=(2000, 2)), jnp.float32)
    z = normalizers.normalize(x, moments_of([x], (2,)), 100.0)
    np.testing.assert_allclose(z.mean(0), 0.0, atol=1e-4)
    np.testing.assert_allclose(z.std(0), 1.0, rtol=1e-4)


def test_update_keeps_its_structure_under_jit_and_scan():
    x = jnp.arange(12.0).reshape(3, 4)

    def step(moments, row):
        return normalizers.update(moments, row, jnp.ones(4)), None

    moments, _ = jax.jit(lambda m: jax.lax.scan(step, m, x))(normalizers.init())
    np.testing.assert_allclose(moments.mean, 5.5, rtol=1e-4)
    np.testing.assert_allclose(moments.variance, (144 - 1) / 12, rtol=1e-4)  # of 0..11
