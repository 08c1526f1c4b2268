"""Running statistics that live in the train state: exact, weighted, merged across devices.

Of an observation only the vector is normalized: all of it, or, where it has named parts, its part
"vector". Frames stay uint8 until the torso, which divides them by 255.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from rljax.types import EnvSpec, Scalar

_VECTOR = "vector"


class Moments(NamedTuple):
    """Count, mean and (population) variance of all that was seen, over the leading axes."""

    count: Float[Array, ""]
    mean: Float[Array, "*shape"]
    variance: Float[Array, "*shape"]


def init(shape: tuple[int, ...] = ()) -> Moments:
    """Mean 0 and variance 1, of no weight: the first data replace them."""
    return Moments(jnp.float32(0.0), jnp.zeros(shape), jnp.ones(shape))


def update(
    moments: Moments,
    x: Float[Array, "*batch_and_shape"],
    weight: Float[Array, "*batch"],
    axis_name: str | None = None,
) -> Moments:
    """Merges the rows `x` `[..., *shape]` of weight 0 or 1 `[...]` (Chan et al. 1983, eq. 2.1).

    With `axis_name` the rows of all devices on that axis are merged; every device gets the same.
    """

    def total(y: Array) -> Array:
        return jax.lax.psum(y, axis_name) if axis_name else y

    axes = tuple(range(weight.ndim))
    w = weight.reshape(weight.shape + (1,) * (x.ndim - weight.ndim))
    w = jnp.broadcast_to(w, x.shape)
    count = total(jnp.sum(weight))
    mean = total(jnp.sum(w * x, axes)) / jnp.maximum(count, 1.0)
    squares = total(jnp.sum(w * (x - jnp.broadcast_to(mean, x.shape)) ** 2, axes))

    both = jnp.maximum(moments.count + count, 1.0)
    step = mean - moments.mean
    squares = squares + moments.variance * moments.count + step**2 * moments.count * count / both
    merged = Moments(both, moments.mean + step * count / both, squares / both)
    return jax.tree.map(lambda new, old: jnp.where(count > 0, new, old), merged, moments)


def normalize(
    x: Float[Array, "*batch_and_shape"], moments: Moments, clip: Scalar
) -> Float[Array, "*batch_and_shape"]:
    """(x - mean) / deviation, clipped to ±`clip`."""
    mean, scale = moments.mean, jax.lax.rsqrt(moments.variance + 1e-8)
    mean, scale = jnp.broadcast_to(mean, x.shape), jnp.broadcast_to(scale, x.shape)
    return jnp.clip((x - mean) * scale, -clip, clip)


def deviation(moments: Moments) -> Float[Array, "*shape"]:
    """Standard deviation, never quite 0."""
    return jnp.sqrt(moments.variance + 1e-8)


def init_observation(spec: EnvSpec) -> Moments:
    """Moments of the vector of an observation.

    Raises:
        ValueError: there is none; the environment shows frames alone.
    """
    vectors = [part for part in spec.parts if part.dtype != "uint8"]
    if not vectors:
        raise ValueError(
            f"config.normalize_observation is of vectors, and {spec.name} shows pixels alone: "
            "they are divided by 255, so leave it off."
        )
    return init(vectors[0].shape)


def normalize_observation(features: Any, moments: Moments | None, clip: Scalar) -> Any:
    """Features for the networks: float32 vectors, normalized unless `moments` is None; frames."""

    def prepared(x: Any) -> Array:
        if x.dtype == jnp.uint8:
            return jnp.asarray(x)
        x = jnp.asarray(x, jnp.float32)
        return x if moments is None else normalize(x, moments, clip)

    return jax.tree.map(prepared, features)


def update_observation(
    moments: Moments, features: Any, weight: Float[Array, "*batch"], axis_name: str | None = None
) -> Moments:
    """`update` by the vector of the features `[..., *]`."""
    vector = features[_VECTOR] if isinstance(features, dict) else features
    return update(moments, jnp.asarray(vector, jnp.float32), weight, axis_name)
