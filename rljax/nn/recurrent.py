"""Memories that are recurrent: GRU and LSTM over `[T, B, F]`, begun anew behind episodes' ends.

Every memory, those of `rljax.nn.attention` too, is a module with

    initial_carry(batch) -> carry                      zeros, every leaf `[B, ...]`
    memory(carry, x [T, B, F], valid [T, B]) -> carry, y [T, B, H]

and follows `rljax.rollout.decide`: a row that is not valid stands behind an episode's end and still
sees the old episode, so that V of a truncated row can be read there; the carry that it leaves is
the initial one. Replaying a rollout from `Trajectory.initial_carry` therefore repeats acting, which
is the same call with T = 1. No gradient crosses an episode's end.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Bool, Float

from rljax.nn import initializers


class GruCarry(NamedTuple):
    """`[B, H]`."""

    hidden: Array


class LstmCarry(NamedTuple):
    """`[B, H]` each."""

    hidden: Array
    cell: Array


def gru_cell(
    hidden: Float[Array, "B H"],
    x: Float[Array, "B H3"],
    kernel: Float[Array, "H H3"],
    bias: Float[Array, " H"],
) -> Float[Array, "B H"]:
    """One step of a gated recurrent unit (Cho et al. 2014, arXiv:1406.1078, eqs. 5-8).

        r, z = σ(x_r + h W_r), σ(x_z + h W_z)     n = tanh(x_n + r ∘ (h W_n + b))
        h' = (1 - z) ∘ n + z ∘ h

    `x` holds x_r, x_z and x_n, products with the input and their biases included; `kernel` holds
    W_r, W_z and W_n. As in cuDNN, the reset gate is applied behind the product.
    """
    reset_x, update_x, new_x = jnp.split(x, 3, axis=-1)
    reset_h, update_h, new_h = jnp.split(hidden @ kernel, 3, axis=-1)
    reset, update = nn.sigmoid(reset_x + reset_h), nn.sigmoid(update_x + update_h)
    new = jnp.tanh(new_x + reset * (new_h + bias[None]))
    return (1 - update) * new + update * hidden


def lstm_cell(carry: LstmCarry, x: Float[Array, "B H4"], kernel: Float[Array, "H H4"]) -> LstmCarry:
    """One step of a long short-term memory (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

        i, f, o = σ(x_i + h W_i), σ(x_f + h W_f), σ(x_o + h W_o)     g = tanh(x_g + h W_g)
        c' = f ∘ c + i ∘ g     h' = o ∘ tanh c'

    `x` holds x_i, x_f, x_g and x_o, biases included; `kernel` the W in the same order.
    """
    i, f, g, o = jnp.split(x + carry.hidden @ kernel, 4, axis=-1)
    cell = nn.sigmoid(f) * carry.cell + nn.sigmoid(i) * jnp.tanh(g)
    return LstmCarry(nn.sigmoid(o) * jnp.tanh(cell), cell)


class Gru(nn.Module):
    """A layer of `size` gated recurrent units; they start out remembering (z: bias 1)."""

    size: int

    def initial_carry(self, batch: int) -> GruCarry:
        """Zeros."""
        return GruCarry(jnp.zeros((batch, self.size)))

    @nn.compact
    def __call__(
        self, carry: GruCarry, x: Float[Array, "T B F"], valid: Bool[Array, "T B"]
    ) -> tuple[GruCarry, Float[Array, "T B H"]]:
        """The hidden vectors of every row; all products with inputs are one, before the scan."""
        x = nn.Dense(3 * self.size, kernel_init=_by_gate(3), bias_init=_remembering(self.size))(x)
        kernel = self.param("recurrent", _by_gate(3), (self.size, 3 * self.size))
        bias = self.param("new_bias", nn.initializers.zeros, (self.size,))
        return _scan(lambda c, x: GruCarry(gru_cell(c.hidden, x, kernel, bias)), carry, x, valid)


class Lstm(nn.Module):
    """A layer of `size` long short-term memory units; they start out remembering (f: bias 1)."""

    size: int

    def initial_carry(self, batch: int) -> LstmCarry:
        """Zeros."""
        return LstmCarry(jnp.zeros((batch, self.size)), jnp.zeros((batch, self.size)))

    @nn.compact
    def __call__(
        self, carry: LstmCarry, x: Float[Array, "T B F"], valid: Bool[Array, "T B"]
    ) -> tuple[LstmCarry, Float[Array, "T B H"]]:
        """The hidden vectors of every row; all products with inputs are one, before the scan."""
        x = nn.Dense(4 * self.size, kernel_init=_by_gate(4), bias_init=_remembering(self.size))(x)
        kernel = self.param("recurrent", _by_gate(4), (self.size, 4 * self.size))
        return _scan(lambda c, x: lstm_cell(c, x, kernel), carry, x, valid)


def _by_gate(gates: int) -> Callable[..., Array]:
    """Orthogonal weights of gain 1 for each gate apart, side by side."""

    def init(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
        each = (shape[0], shape[1] // gates)
        orthogonal = initializers.orthogonal()
        return jnp.concatenate(
            [orthogonal(key, each, dtype) for key in jax.random.split(key, gates)], axis=1
        )

    return init


def _remembering(size: int) -> Callable[..., Array]:
    """Biases of 0, and of 1 for the second gate: the one that keeps what was there.

    With 0 a unit would forget half in every step (Jozefowicz et al. 2015, ICML, §2.2).
    """

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        del key
        return jnp.zeros(shape, dtype).at[size : 2 * size].set(1)

    return init


def _scan(cell: Callable[[Any, Array], Any], carry: Any, x: Array, valid: Array) -> Any:
    def row(carry: Any, inputs: tuple[Array, Array]) -> tuple[Any, Array]:
        x, valid = inputs
        new = cell(carry, x)
        return jax.tree.map(lambda leaf: jnp.where(valid[:, None], leaf, 0.0), new), new.hidden

    if len(x) == 1:  # acting: no loop, which not every format of an export can express
        carry, y = row(carry, (x[0], valid[0]))
        return carry, y[None]
    return jax.lax.scan(row, carry, (x, valid))
