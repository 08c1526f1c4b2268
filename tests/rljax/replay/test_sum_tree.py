"""The tree of sums against running sums in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.replay import sum_tree


def tree_of(values):
    values = jnp.asarray(values, jnp.float32)
    return sum_tree.write(sum_tree.init(len(values)), jnp.arange(len(values)), values)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 256, 257, 5000])
def test_it_finds_the_leaf_that_the_running_sum_passes(size):
    rng = np.random.default_rng(size)
    values = rng.integers(0, 8, size).astype(np.float32)  # whole numbers: sums are exact
    values[-1] = 1.0
    tree = tree_of(values)
    assert sum_tree.total(tree) == values.sum()
    mass = np.arange(0, int(values.sum())).astype(np.float32)  # the first of each share as well
    found = jax.jit(sum_tree.find)(tree, jnp.asarray(mass))
    np.testing.assert_array_equal(found, np.searchsorted(np.cumsum(values), mass, side="right"))


def test_every_level_is_the_sum_of_the_one_below_after_any_writes():
    rng, write = np.random.default_rng(0), jax.jit(sum_tree.write)
    tree, values = sum_tree.init(600), np.zeros(600, np.float32)
    for _ in range(20):
        index = rng.choice(600, 50, replace=False)
        values[index] = rng.integers(0, 100, 50)
        tree = write(tree, jnp.asarray(index), jnp.asarray(values[index]))
    np.testing.assert_array_equal(tree[0][:600], values)
    assert [len(level) for level in tree] == [608, 48, 16]  # whole families of 16
    for level, above in itertools.pairwise(tree):
        sums = np.asarray(level).reshape(-1, 16).sum(axis=1)
        np.testing.assert_array_equal(above[: len(sums)], sums)
        assert not above[len(sums) :].any()


def test_of_duplicates_the_largest_is_kept_even_below_what_was_there():
    tree = tree_of([5.0, 6.0, 7.0])
    tree = sum_tree.write_largest(tree, jnp.array([1, 0, 1, 1]), jnp.array([2.0, 1.0, 3.0, 0.5]))
    np.testing.assert_array_equal(tree[0][:3], [1.0, 3.0, 7.0])
    assert sum_tree.total(tree) == 11.0


def test_a_leaf_of_0_is_never_found_however_sums_are_rounded():
    rng = np.random.default_rng(4)
    values = rng.random(4000).astype(np.float32) * 10.0 ** rng.integers(-6, 6, 4000)
    values[rng.random(4000) < 0.5] = 0.0
    tree = tree_of(values)
    total = float(sum_tree.total(tree))
    mass = np.float32(np.concatenate([np.linspace(0, total, 20_001)[:-1], np.cumsum(values)]))
    mass = np.concatenate([mass, [np.nextafter(np.float32(total), np.float32(0))]])
    found = sum_tree.find(tree, jnp.asarray(np.minimum(mass, np.nextafter(np.float32(total), 0))))
    assert (np.asarray(tree[0])[np.asarray(found)] > 0).all()
