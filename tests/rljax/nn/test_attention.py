"""Attention: who sees whom, against a loop over rows and steps; the window's limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.nn.attention import Attention, Window, visibility
from rljax.nn.memory import Memory, stack

B, F, H, W = 2, 3, 6, 4


def made(key, length=9, heads=2):
    """A block with an age bias that is not 0, its parameters and rows."""
    block = Attention(H, W, heads)
    x = jax.random.normal(key, (length, B, F))
    params = jax.jit(block.init)(key, block.initial_carry(B), x, jnp.ones((length, B), bool))
    params["params"]["age_bias"] = jax.random.normal(key, (heads, W))
    return block, params, x


def test_visibility_by_hand():
    # W = 3, so two old steps; one of them (the newer) was of this episode. Row 1 ends the episode.
    valid = jnp.array([[True, False, True, True, True]])
    visible, kept = visibility(jnp.array([1]), valid, 3)
    expected = [  # old: -2 -1, rows: 0 1 2 3 4
        [0, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0],  # begins an episode
        [0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1, 1, 1],
    ]
    np.testing.assert_array_equal(visible[0], np.array(expected, bool))
    np.testing.assert_array_equal(kept[0], np.array([0, 0, 0, 0, 1, 1, 1], bool))


def test_a_window_of_old_steps_is_used_up_row_by_row():
    visible, _ = visibility(jnp.array([2]), jnp.ones((1, 3), bool), 3)
    expected = [[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    np.testing.assert_array_equal(visible[0], np.array(expected, bool))


def test_a_row_is_what_a_loop_over_steps_gives(key):
    block, params, x = made(key)
    y = jax.jit(block.apply)(params, block.initial_carry(B), x, jnp.ones(x.shape[:2], bool))[1]
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params["params"])

    def layer(i, x):
        return x @ p[f"Dense_{i}"]["kernel"] + p[f"Dense_{i}"]["bias"]

    def norm(i, x):
        scaled = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
        return scaled * p[f"LayerNorm_{i}"]["scale"] + p[f"LayerNorm_{i}"]["bias"]

    for b in range(B):
        embedded = [layer(0, np.asarray(row, np.float64)) for row in x[:, b]]
        for t, row in enumerate(embedded):
            query = layer(1, norm(0, row)).reshape(2, -1)
            seen = [(age, norm(0, embedded[t - age])) for age in range(W) if age <= t]
            read = np.zeros((2, H // 2))
            for head in range(2):
                weights = [
                    np.exp(
                        query[head] @ layer(2, step).reshape(2, -1)[head] / np.sqrt(H / 2)
                        + p["age_bias"][head, age]
                    )
                    for age, step in seen
                ]
                for weight, (_, step) in zip(weights, seen, strict=True):
                    read[head] += weight / sum(weights) * layer(3, step).reshape(2, -1)[head]
            row = row + layer(4, read.reshape(-1))
            row = row + layer(6, np.maximum(layer(5, norm(1, row)), 0))
            np.testing.assert_allclose(y[t, b], row, atol=1e-4)


def reach(memory, key, length):
    """`[T, T]`: whether row t depends on row s."""
    x = jax.random.normal(key, (length, 1, F))
    valid = jnp.ones((length, 1), bool)
    carry = memory.initial_carry(1)
    params = jax.jit(memory.init)(key, carry, x, valid)
    rows = jax.jacobian(lambda x: memory.apply(params, carry, x, valid)[1][:, 0].sum(-1))
    return np.abs(jax.jit(rows)(x)[:, :, 0]).sum(-1) > 0


@pytest.mark.parametrize(("layers", "steps"), [(1, W), (2, 2 * W - 1)])
def test_a_row_sees_no_further_than_the_window_of_each_layer(layers, steps, key):
    length = 10
    age = np.arange(length)[:, None] - np.arange(length)
    memory = stack(Memory.ATTENTION, layers, H, W, 2)
    np.testing.assert_array_equal(reach(memory, key, length), (age >= 0) & (age < steps))


def test_old_steps_beyond_the_count_are_not_looked_at(key):
    block, params, x = made(key, length=1)
    inputs = jax.random.normal(key, (B, W - 1, H))
    valid = jnp.ones((1, B), bool)
    apply = jax.jit(block.apply)
    for count in range(W):
        unseen = jnp.arange(W - 1)[None, :, None] < W - 1 - count
        noise = jnp.where(unseen, 9.0, inputs)
        carries = [Window(i, jnp.full(B, count)) for i in (inputs, noise)]
        a, b = (apply(params, carry, x, valid)[1] for carry in carries)
        np.testing.assert_array_equal(a, b)
    other = Window(inputs.at[:, 0].add(1.0), jnp.full(B, W - 1))  # with all seen, the oldest counts
    assert not np.array_equal(apply(params, other, x, valid)[1], a)


def test_the_old_window_teaches_keys_and_values(key):
    block, params, x = made(key, length=1)
    params["params"]["Dense_1"]["bias"] = jnp.ones(H)  # or a row of zeros asks for nothing
    carry = Window(jax.random.normal(key, (B, W - 1, H)), jnp.full(B, W - 1))

    @jax.jit
    @jax.grad
    def gradient(params):  # of rows that are 0, so that only old steps can teach
        return block.apply(params, carry, 0 * x, jnp.ones((1, B), bool))[1].sum()

    for i in (2, 3):
        assert jnp.abs(gradient(params)["params"][f"Dense_{i}"]["kernel"]).max() > 0


def test_the_window_fills_up_and_is_emptied_by_an_end(key):
    block, params, x = made(key)
    carry, counts = block.initial_carry(B), []
    apply = jax.jit(block.apply)
    for t in range(7):
        carry, _ = apply(params, carry, x[t : t + 1], jnp.array([[True, t != 4]]))
        counts.append(carry.count.tolist())
    assert counts == [[1, 1], [2, 2], [3, 3], [3, 3], [3, 0], [3, 1], [3, 2]]
    assert carry.count.dtype == jnp.int32


def test_inputs_of_the_blocks_own_size_are_not_projected(key):
    block = Attention(H, W, 1)
    x = jnp.ones((1, B, H))
    carry, _ = block.init_with_output(key, block.initial_carry(B), x, jnp.ones((1, B), bool))[0]
    np.testing.assert_array_equal(carry.inputs[:, -1], x[0])


def test_impossible_sizes_are_told():
    with pytest.raises(ValueError, match="window of attention needs 2 steps or more, not 1"):
        stack(Memory.ATTENTION, 1, 8, 1, 1)
    with pytest.raises(ValueError, match="3 heads of attention cannot share 8 units"):
        stack(Memory.ATTENTION, 1, 8, 4, 3)
