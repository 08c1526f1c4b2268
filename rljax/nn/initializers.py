"""Initial weights."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


def orthogonal(gain: float = 1.0) -> Callable[..., Array]:
    """Weights whose rows or columns, the fewer of them, are orthogonal and of length `gain`.

    Uniform among all such (Saxe et al. 2014, arXiv:1312.6120); the last axis is the outputs. The
    same numbers as JAX's initializer, but for rounding, without its call of LAPACK: in jaxlib 0.10
    that call waits within a thread of XLA's pool for others of the pool, so that a program with
    several of them may wait forever on a machine with few cores.
    """

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        inputs, outputs = math.prod(shape[:-1]), shape[-1]
        drawn = jax.random.normal(key, (max(inputs, outputs), min(inputs, outputs)), dtype)
        weights = orthonormal_rows(drawn.T)
        return gain * (weights if inputs < outputs else weights.T).reshape(shape)

    return init


@jax.jit  # so that a size compiles once where nothing around it is compiled
def orthonormal_rows(matrix: Float[Array, "M N"]) -> Float[Array, "M N"]:
    """Rows after Gram and Schmidt: Qᵀ of matrixᵀ = QR with a positive diagonal of R; M ≤ N."""

    def body(number: Array, done: Array) -> Array:
        row = matrix[number]
        for _ in range(2):  # once leaves what rounding brought: twice is enough
            row -= (done @ row) @ done
        return done.at[number].set(row / jnp.linalg.norm(row))

    return jax.lax.fori_loop(0, len(matrix), body, jnp.zeros_like(matrix))
