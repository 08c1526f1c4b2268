import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import device_rows, sharding
from rljax.agent import AXIS


def side_by_side(function, devices):
    """What each device gets from `function`, one after the other."""
    return jax.shard_map(
        function,
        mesh=sharding.mesh(devices),
        in_specs=(),
        out_specs=jax.P(AXIS),
        check_vma=False,
    )()


def test_each_device_takes_its_own_rows_in_order():
    rows = jnp.arange(12).reshape(6, 2)
    taken = side_by_side(lambda: device_rows.mine(rows), 2)
    np.testing.assert_array_equal(taken, rows)
    first = side_by_side(lambda: device_rows.mine(rows)[:1], 2)
    np.testing.assert_array_equal(first, rows[jnp.array([0, 3])])  # 3 rows a device, not 1


@pytest.mark.parametrize("draw", [device_rows.normal, device_rows.uniform])
def test_draws_are_the_same_on_any_number_of_devices(key, draw):
    one = side_by_side(lambda: draw(key, (8, 3)), 1)
    two = side_by_side(lambda: draw(key, (4, 3)), 2)
    np.testing.assert_array_equal(one, two)
    assert len(np.unique(one)) == 24


def test_draws_have_the_moments_they_are_named_for(key):
    normal = side_by_side(lambda: device_rows.normal(key, (20_000,)), 1)
    uniform = side_by_side(lambda: device_rows.uniform(key, (20_000,)), 1)
    np.testing.assert_allclose([normal.mean(), normal.std()], [0, 1], atol=0.03)
    # variance of a uniform draw over a width of 2 is 4 / 12
    np.testing.assert_allclose([uniform.mean(), uniform.var()], [0, 1 / 3], atol=0.03)
    assert -1 <= uniform.min() < -0.99
    assert 0.99 < uniform.max() < 1
