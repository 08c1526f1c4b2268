"""Keys of a part of the rows draw what the key of all rows draws for them."""

import jax
import numpy as np
import pytest

from rljax import row_keys

ALL, FIRST, COUNT = 12, 8, 4
DRAWS = {
    "uniform": lambda key, n: jax.random.uniform(key, (n,)),
    "normal": lambda key, n: jax.random.normal(key, (n, 3)),
    "bits16": lambda key, n: jax.random.bits(key, (n, 2), "uint16"),
    "gumbel": lambda key, n: jax.random.gumbel(key, (n, 2, 5)),
    "categorical": lambda key, n: jax.random.categorical(key, np.zeros((n, 7), np.float32)),
    "bernoulli": lambda key, n: jax.random.bernoulli(key, 0.3, (n,)),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
def test_a_part_draws_its_rows_of_the_whole(draw, key):
    whole = draw(key, ALL)
    part = jax.jit(lambda key: draw(row_keys.starting_at(FIRST, key), COUNT))(key)
    np.testing.assert_array_equal(part, whole[FIRST : FIRST + COUNT])
    assert not np.array_equal(draw(key, COUNT), part)  # the plain key would draw others


def test_derived_keys_are_of_the_same_rows(key):
    part = row_keys.starting_at(FIRST, key)
    one, two = jax.random.split(key)
    mine_one, mine_two = jax.random.split(part)
    for whole, mine in (
        (one, mine_one),
        (two, mine_two),
        (jax.random.fold_in(key, 3), jax.random.fold_in(part, 3)),
    ):
        expected = jax.random.normal(whole, (ALL, 2))[FIRST : FIRST + COUNT]
        np.testing.assert_array_equal(jax.random.normal(mine, (COUNT, 2)), expected)


def test_the_rows_of_a_part_get_the_plain_keys_that_splitting_gives_them(key):
    expected = jax.random.key_data(row_keys.split(key, ALL))
    np.testing.assert_array_equal(expected, jax.random.key_data(jax.random.split(key, ALL)))
    mine = row_keys.split(row_keys.starting_at(FIRST, key), COUNT)
    assert jax.random.key_impl(mine) == jax.random.key_impl(key)
    np.testing.assert_array_equal(jax.random.key_data(mine), expected[FIRST : FIRST + COUNT])


def test_the_first_rows_need_no_other_key_and_scalars_are_no_rows(key):
    assert row_keys.starting_at(0, key) is key
    part = row_keys.starting_at(FIRST, key)
    np.testing.assert_array_equal(jax.random.uniform(part, ()), jax.random.uniform(key, ()))


def test_a_generator_that_numbers_nothing_gets_a_key_of_its_own():
    key = jax.random.key(0, impl="rbg")
    part = row_keys.starting_at(FIRST, key)
    np.testing.assert_array_equal(
        jax.random.key_data(part), jax.random.key_data(jax.random.fold_in(key, FIRST))
    )
