import itertools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rljax import minibatches, sharding
from rljax.agent import AXIS


@pytest.mark.parametrize(
    ("num_envs", "minibatch", "expected"),
    [
        (8, 64, 8),  # gcd(8, 64, 8)
        (64, 256, 8),  # never more than 8 of their own accord
        (4, 128, 4),
        (6, 64, 2),
        (8, 1, 1),  # minibatches of one row
        (5, 5, 1),  # 8 shares nothing with 5
    ],
)
def test_groups_on_one_device(num_envs, minibatch, expected):
    assert minibatches.groups(num_envs, minibatch, 1) == expected


def test_groups_do_not_depend_on_the_devices_where_sizes_allow():
    assert {minibatches.groups(64, 256, devices) for devices in (1, 2, 4, 8)} == {8}


@pytest.mark.parametrize(("devices", "expected"), [(2, 2), (3, 3), (6, 6)])
def test_groups_follow_the_devices_where_they_must(devices, expected):
    assert minibatches.groups(6, 12, devices) == expected


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 8, 16])
def test_groups_divide_evenly_or_raise(devices):
    outcomes = set()
    for num_envs, minibatch in itertools.product(range(1, 17), repeat=2):
        possible = num_envs % devices == minibatch % devices == 0
        outcomes.add(possible)
        if possible:
            groups = minibatches.groups(num_envs, minibatch, devices)
            assert groups % devices == num_envs % groups == minibatch % groups == 0
        else:
            with pytest.raises(ValueError, match=f"make both multiples of {devices}"):
                minibatches.groups(num_envs, minibatch, devices)
    assert outcomes == ({True} if devices == 1 else {True, False})


def shuffled(devices, shape, num_minibatches, key):
    """Rows of the whole rollout `(T, B)` in each minibatch, `[devices, M, N / devices]`."""
    length, envs = shape
    share = envs // devices
    function = jax.shard_map(
        lambda key: minibatches.shuffled((length, share), num_minibatches, key)[None],
        mesh=sharding.mesh(devices),
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(AXIS),
        check_vma=False,
    )
    local = np.asarray(function(key))
    first = share * np.arange(devices)[:, None, None]
    return local // share * envs + local % share + first  # row t·B_local + b as t·B + b


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(
    ("shape", "num_minibatches"), [((6, 8), 3), ((5, 2), 1), ((4, 4), 8), ((3, 6), 3)]
)
def test_every_row_comes_once(devices, shape, num_minibatches, key):
    rows = shuffled(devices, shape, num_minibatches, key)
    assert rows.shape[1] == num_minibatches
    assert sorted(rows.ravel()) == list(range(shape[0] * shape[1]))


def test_two_devices_draw_the_minibatches_of_one(key):
    one, two = shuffled(1, (6, 8), 3, key), shuffled(2, (6, 8), 3, key)
    for minibatch in range(3):
        assert sorted(one[:, minibatch].ravel()) == sorted(two[:, minibatch].ravel())


def test_minibatches_are_drawn_anew_with_every_key(key):
    draws = [shuffled(1, (6, 8), 3, jax.random.fold_in(key, i)) for i in range(2)]
    assert (draws[0] != draws[1]).any()


def test_minibatches_mix_times_of_every_group_and_groups_are_shuffled_apart(key):
    rows = shuffled(1, (64, 8), 4, key)[0]  # 8 groups of one environment each; minibatches of 128
    time, env = rows // 8, rows % 8
    assert (np.apply_along_axis(np.bincount, 1, env) == 16).all()  # 128 / 8 of each
    orders = [time[env == i].tolist() for i in range(8)]
    assert len({tuple(order) for order in orders}) == 8
    # a mean of 16 draws without replacement out of 0..63 has deviation 4.0 about 31.5
    means = [time[m][env[m] == i].mean() for m in range(4) for i in range(8)]
    np.testing.assert_allclose(means, 31.5, atol=16)


def test_first_places_are_uniform(key):
    function = jax.shard_map(
        jax.vmap(lambda key: minibatches.shuffled((4, 1), 1, key)[0, 0]),
        mesh=sharding.mesh(1),
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    counts = np.bincount(function(jax.random.split(key, 4000)), minlength=4)
    # binomial with p = 1/4: 1000 ± 5 deviations of √(4000·¼·¾) = 27
    np.testing.assert_allclose(counts, 1000, atol=137)


@pytest.mark.parametrize("size", [1, 2, 100, 4096, 2**20])
def test_a_permutation_has_every_number_once(size, key):
    order = np.asarray(minibatches._permutation(key, size))
    np.testing.assert_array_equal(np.sort(order), np.arange(size))
    if size >= 100:
        assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 4 / np.sqrt(size)


def test_all_permutations_are_as_likely(key):
    keys = jax.random.split(key, 24_000)
    orders = np.asarray(jax.vmap(lambda key: minibatches._permutation(key, 4))(keys))
    counts = np.unique(orders @ np.array([64, 16, 4, 1]), return_counts=True)[1]
    assert len(counts) == 24
    assert np.sum((counts - 1000) ** 2 / 1000) < 49.7  # χ² of 23 degrees: more in 1 of 1,000
