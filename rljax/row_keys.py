"""Keys for a part of the rows: they draw what the key of all rows draws for these.

Policies draw for a whole batch at once, `jax.random.f(key, (rows, ...))`. A process that acts for a
part of the environments must draw what one process for all of them would have: otherwise a run
would depend on the number of processes. JAX's Threefry numbers the values of a draw in row-major
order and hashes each number by itself, so a part of the rows is a range of the numbers:

    key = row_keys.starting_at(8, key)
    jax.random.normal(key, (4, 3))       # rows 8, 9, 10, 11 of jax.random.normal(original, (n, 3))

The first axis of every draw must be that of the rows. Keys split or folded from such a key are such
keys too. The values are JAX's own: `jax_threefry_partitionable`, its default, is taken for granted.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.random import define_prng_impl, threefry2x32_p


def starting_at(first_row: int, key: Array) -> Array:
    """`key` for the rows from `first_row` on; `key` itself where that is 0.

    A key of another generator than Threefry, which numbers nothing, is folded with `first_row`.
    """
    if first_row == 0:
        return key
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return jax.random.fold_in(key, first_row)
    data = jax.random.key_data(key)
    first = jnp.full((*data.shape[:-1], 1), first_row, jnp.uint32)
    return jax.random.wrap_key_data(jnp.concatenate([data, first], axis=-1), impl=_ROWS)


def split(key: Array, num_rows: int) -> Array:
    """One plain key for each row: those that splitting the key of all rows gives to these."""
    if not _is_of_rows(key):
        return jax.random.split(key, num_rows)
    data = jax.random.key_data(key)
    numbers = data[2] + jnp.arange(num_rows, dtype=jnp.uint32)
    return jax.random.wrap_key_data(
        jnp.stack(_hash(data, jnp.zeros_like(numbers), numbers), axis=-1), impl="threefry2x32"
    )


def _is_of_rows(key: Array) -> bool:
    return jax.random.key_impl(key) == _ROWS


def _hash(key: Array, high: Array, low: Array) -> tuple[Array, Array]:
    """Threefry-2x32 (Salmon et al. 2011) of 64-bit numbers given as halves, uint32 `[...]`."""
    first, second = threefry2x32_p.bind(key[0], key[1], high, low)
    return first, second


def _numbers(shape: tuple[int, ...], first_row: Array) -> tuple[Array, Array]:
    """Halves of the numbers of a draw `[rows, ...]` that starts at `first_row`."""
    size = 1
    for length in shape:
        size *= length
    row = size // max(shape[0], 1) if shape else 1
    start = first_row * jnp.uint32(row) if shape else jnp.uint32(0)  # a scalar is no row's
    low = start + jnp.arange(size, dtype=jnp.uint32).reshape(shape)
    # Draws of 2³² values and more are beyond any batch of rows.
    return jnp.zeros_like(low), low


def _seed(seed: Array) -> Array:
    key = jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))
    return jnp.concatenate([key, jnp.zeros(1, jnp.uint32)])


def _with_rows(plain: Array, key: Array) -> Array:
    """Plain keys' data `[..., 2]`, with the first row of `key`."""
    return jnp.concatenate([plain, jnp.broadcast_to(key[2:], (*plain.shape[:-1], 1))], axis=-1)


def _plain(key: Array) -> Array:
    return jax.random.wrap_key_data(key[:2], impl="threefry2x32")


def _split(key: Array, shape: tuple[int, ...]) -> Array:
    return _with_rows(jax.random.key_data(jax.random.split(_plain(key), shape)), key)


def _fold_in(key: Array, data: int | Array) -> Array:
    return _with_rows(jax.random.key_data(jax.random.fold_in(_plain(key), data)), key)


def _random_bits(key: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    high, low = _hash(key, *_numbers(tuple(shape), key[2]))
    if bit_width == 64:
        return high.astype(jnp.uint64) << jnp.uint64(32) | low.astype(jnp.uint64)
    return (high ^ low).astype(f"uint{bit_width}")


_ROWS = define_prng_impl(
    key_shape=(3,),  # Threefry's two words, and the first row
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="threefry2x32_rows",
    tag="row",
)
