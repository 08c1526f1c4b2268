"""Initial weights."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax import Array
from jaxtyping import Float, PRNGKeyArray


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


def random_biases(params: Any, key: PRNGKeyArray) -> Any:
    """`params` with every layer's bias uniform in ±1/√inputs, as PyTorch's layers have it.

    Where all biases are 0, all that a ReLU network can bend at first goes through the origin, which
    suits inputs of few dimensions badly. Layers side by side, as an ensemble's, have leading axes
    in kernel and bias both.
    """
    flat: Any = traverse_util.flatten_dict(params)
    layers = [path[:-1] for path in flat if path[-1] == "bias" and (*path[:-1], "kernel") in flat]
    for number, layer in enumerate(layers):
        bias = flat[*layer, "bias"]
        bound = math.sqrt(bias.size / flat[*layer, "kernel"].size)
        own = jax.random.fold_in(key, number)
        flat[*layer, "bias"] = jax.random.uniform(own, bias.shape, bias.dtype, -bound, bound)
    return traverse_util.unflatten_dict(flat)


@jax.jit  # so that a size compiles once where nothing around it is compiled
def orthonormal_rows(matrix: Float[Array, "M N"]) -> Float[Array, "M N"]:
    """Rows after Gram and Schmidt: Qᵀ of matrixᵀ = QR with a positive diagonal of R; M ≤ N."""

    def body(number: Array, done: Array) -> Array:
        row = matrix[number]
        for _ in range(2):  # once leaves what rounding brought: twice is enough
            row -= (done @ row) @ done
        return done.at[number].set(row / jnp.linalg.norm(row))

    return jax.lax.fori_loop(0, len(matrix), body, jnp.zeros_like(matrix))
