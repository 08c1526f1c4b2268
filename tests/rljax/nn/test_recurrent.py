"""GRU and LSTM against plain loops and Flax's cells; where their carry and their gradient end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rljax.nn import recurrent
from rljax.nn.memory import Memory, stack

T, B, F, H = 7, 3, 4, 5
MEMORIES = [recurrent.Gru(H), recurrent.Lstm(H)]
NAMES = ["gru", "lstm"]


def made(memory, key):
    """Rows `x`, a carry that is not the initial one, and parameters whose biases are not 0."""
    keys = jax.random.split(key, 4)
    x = jax.random.normal(keys[0], (T, B, F))
    carry = memory.initial_carry(B)
    params = jax.jit(memory.init)(keys[1], carry, x, jnp.ones((T, B), bool))
    params = jax.tree.map(lambda p, n: p + 0.3 * n, params, noise(keys[2], params))
    return params, noise(keys[3], carry), x


def noise(key, tree):
    """Normal draws in the shapes of `tree`."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_one_gru_unit_by_hand():
    # x_r = 0 and W_r = 0: r = ½; x_z = ln 3: z = 3/4; x_n = 1, W_n = 2, b = 1, h = -1:
    # n = tanh(1 + ½ (-2 + 1)) = tanh ½;  h' = ¼ tanh ½ - 3/4
    x = jnp.array([[0.0, np.log(3.0), 1.0]])
    kernel, bias = jnp.array([[0.0, 0.0, 2.0]]), jnp.ones(1)
    hidden = recurrent.gru_cell(-jnp.ones((1, 1)), x, kernel, bias)
    np.testing.assert_allclose(hidden, [[np.tanh(0.5) / 4 - 0.75]], rtol=1e-6)


def test_one_lstm_unit_by_hand():
    # i = ¾, f = ½, o = ¼, g = tanh(1 + 2·(-1)) = -tanh 1, c = 2:  c' = 1 - ¾ tanh 1,
    # h' = ¼ tanh c'
    x = jnp.array([[np.log(3.0), 0.0, 1.0, -np.log(3.0)]])
    carry = recurrent.LstmCarry(-jnp.ones((1, 1)), 2 * jnp.ones((1, 1)))
    hidden, cell = recurrent.lstm_cell(carry, x, jnp.array([[0.0, 0.0, 2.0, 0.0]]))
    np.testing.assert_allclose(cell, [[1 - 0.75 * np.tanh(1.0)]], rtol=1e-6)
    np.testing.assert_allclose(hidden, np.tanh(cell) / 4, rtol=1e-6)


@pytest.mark.parametrize("memory", MEMORIES, ids=NAMES)
def test_rows_are_what_a_plain_loop_gives(memory, key):
    params, carry, x = made(memory, key)
    valid = np.ones((T, B), bool)
    valid[2, 0] = valid[4, 1] = valid[0, 2] = valid[6, 2] = False
    after, y = jax.jit(memory.apply)(params, carry, x, jnp.asarray(valid))

    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params["params"])
    weights, biases, kernel = p["Dense_0"]["kernel"], p["Dense_0"]["bias"], p["recurrent"]
    for b in range(B):
        state = [np.asarray(leaf[b], np.float64) for leaf in carry]
        for t in range(T):
            gates = np.asarray(x[t, b], np.float64) @ weights + biases
            gates = np.split(gates, len(gates) // H)
            fed = np.split(state[0] @ kernel, len(gates))
            if len(gates) == 3:
                r, z = sigmoid(gates[0] + fed[0]), sigmoid(gates[1] + fed[1])
                n = np.tanh(gates[2] + r * (fed[2] + p["new_bias"]))
                state = [(1 - z) * n + z * state[0]]
            else:
                i, f, g, o = (a + b for a, b in zip(gates, fed, strict=True))
                cell = sigmoid(f) * state[1] + sigmoid(i) * np.tanh(g)
                state = [sigmoid(o) * np.tanh(cell), cell]
            np.testing.assert_allclose(y[t, b], state[0], atol=1e-5)
            if not valid[t, b]:  # this row still saw the old episode; the next sees nothing of it
                state = [np.zeros(H) for _ in state]
        for leaf, expected in zip(after, state, strict=True):
            np.testing.assert_allclose(leaf[b], expected, atol=1e-5)
    assert not np.any(after.hidden[2])  # the last row was not valid


def test_gru_is_flaxs(key):
    memory = recurrent.Gru(H)
    params, carry, x = made(memory, key)
    ours = params["params"]
    theirs = {}
    for i, gate in enumerate("rzn"):
        units = slice(i * H, (i + 1) * H)
        dense = ours["Dense_0"]
        theirs[f"i{gate}"] = {"kernel": dense["kernel"][:, units], "bias": dense["bias"][units]}
        theirs[f"h{gate}"] = {"kernel": ours["recurrent"][:, units]}
    theirs["hn"]["bias"] = ours["new_bias"]
    expected, _ = nn.GRUCell(H).apply({"params": theirs}, carry.hidden, x[0])
    after, _ = memory.apply(params, carry, x[:1], jnp.ones((1, B), bool))
    np.testing.assert_allclose(after.hidden, expected, atol=1e-6)


def test_lstm_is_flaxs(key):
    memory = recurrent.Lstm(H)
    params, carry, x = made(memory, key)
    ours = params["params"]
    theirs = {}
    for i, gate in enumerate("ifgo"):
        units = slice(i * H, (i + 1) * H)
        dense = ours["Dense_0"]
        theirs[f"i{gate}"] = {"kernel": dense["kernel"][:, units]}
        theirs[f"h{gate}"] = {"kernel": ours["recurrent"][:, units], "bias": dense["bias"][units]}
    (cell, hidden), _ = nn.OptimizedLSTMCell(H).apply(
        {"params": theirs}, (carry.cell, carry.hidden), x[0]
    )
    after, _ = memory.apply(params, carry, x[:1], jnp.ones((1, B), bool))
    np.testing.assert_allclose(after.hidden, hidden, atol=1e-6)
    np.testing.assert_allclose(after.cell, cell, atol=1e-6)


@pytest.mark.parametrize("memory", MEMORIES, ids=NAMES)
def test_gates_start_orthogonal_each_and_the_units_remembering(memory, key):
    carry = memory.initial_carry(B)
    params = memory.init(key, carry, jnp.zeros((1, B, F)), jnp.ones((1, B), bool))["params"]
    for gate in np.split(np.asarray(params["recurrent"]), len(params["Dense_0"]["bias"]) // H, 1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(H), atol=1e-5)
    bias = np.zeros(params["Dense_0"]["bias"].shape)
    bias[H : 2 * H] = 1  # of z, of f
    np.testing.assert_array_equal(params["Dense_0"]["bias"], bias)


ALL = [stack(kind, layers, H + 1, 4, 2) for kind in Memory for layers in (1, 2)]
ALL_NAMES = [f"{kind.value}_{layers}" for kind in Memory for layers in (1, 2)]


@pytest.mark.parametrize("memory", ALL, ids=ALL_NAMES)
def test_acting_row_by_row_is_the_training_pass(memory, key):
    keys = jax.random.split(key, 3)
    x = jax.random.normal(keys[0], (2 * T, B, F))
    ended = jax.random.bernoulli(keys[1], 0.25, (2 * T, B)).at[T].set(jnp.array([1, 0, 0]) == 1)
    rows = (memory.initial_carry(B), x[:1], jnp.ones((1, B), bool))
    params = jax.jit(memory.init)(keys[2], *rows)

    @jax.jit
    def act(carry, x, ended):  # as `rljax.rollout.decide` does it
        carry, y = memory.apply(params, carry, x[None], jnp.ones((1, B), bool))
        carry = jax.tree.map(
            lambda new, initial: jnp.where(ended.reshape(-1, *[1] * (new.ndim - 1)), initial, new),
            carry,
            memory.initial_carry(B),
        )
        return carry, y[0]

    carry, rows, carries = memory.initial_carry(B), [], []
    for t in range(2 * T):
        carry, y = act(carry, x[t], ended[t])
        rows.append(y)
        carries.append(carry)
    for start in (0, T):  # from nothing, and from the carry in the middle
        before = carries[start - 1] if start else memory.initial_carry(B)
        after, y = jax.jit(memory.apply)(params, before, x[start:], ~ended[start:])
        np.testing.assert_allclose(y, jnp.stack(rows[start:]), atol=2e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), after, carries[-1])
    assert ended[:T].any()
    assert not ended[:T].all()


@pytest.mark.parametrize("memory", ALL, ids=ALL_NAMES)
def test_no_gradient_crosses_the_end_of_an_episode(memory, key):
    x = jax.random.normal(key, (T, 1, F))
    valid = jnp.ones((T, 1), bool).at[3].set(False)
    carry = memory.initial_carry(1)
    params = jax.jit(memory.init)(key, carry, x, valid)

    def rows(x):
        return memory.apply(params, carry, x, valid)[1][:, 0].sum(-1)

    jacobian = jnp.abs(jax.jit(jax.jacobian(rows))(x)[:, :, 0]).sum(-1)  # [T, T]: of y_t in x_s
    assert not np.triu(jacobian, k=1).any()  # nor from the future
    assert not jacobian[4:, :4].any()  # behind the end, nothing of what was before
    reached = jacobian[np.tril_indices(4)]  # the row behind the end is still the old episode's
    assert (reached > 0).all()
    assert (jacobian[4:, 4:][np.tril_indices(3)] > 0).all()


@pytest.mark.parametrize("memory", ALL, ids=ALL_NAMES)
def test_a_carry_is_zeros_row_by_row_and_keeps_its_types(memory, key):
    x = jax.random.normal(key, (2, 5, F))
    carry = memory.initial_carry(5)
    for leaf in jax.tree.leaves(carry):
        assert leaf.shape[0] == 5
        assert not leaf.any()
    (after, y), _ = jax.eval_shape(memory.init_with_output, key, carry, x, jnp.ones((2, 5), bool))
    assert after == jax.eval_shape(lambda: carry)
    assert y.shape == (2, 5, H + 1)
