"""What the adapters of other people's in-graph environments share.

An adapter gives a `JaxEnv` without autoreset: the other library's own is never used, because it
replaces the true final observation by the next episode's first one.
"""

import difflib
import importlib
import math
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rljax.types import Box, Observation


def library(module: str, extra: str) -> ModuleType:
    """The module of another library. Raises ImportError, naming the extra, where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{extra}: environments need a package more ({error}): pip install 'rljax[{extra}]'."
        ) from error


def check_name(prefix: str, name: str, known: Iterable[str]) -> None:
    """Raises ValueError, naming the nearest, where a library has no task of this name."""
    known = sorted(known)
    if name not in known:
        lower = {task.lower(): task for task in known}
        near = [task for task in lower if name.lower() in task][:5]
        near = near or difflib.get_close_matches(name.lower(), lower)
        close = ", ".join(lower[task] for task in near) or "none"
        raise ValueError(f"{prefix} has no environment {name!r}; near it: {close}.")


def box(low: Any, high: Any, shape: tuple[int, ...]) -> Box:
    """Bounds, as numbers or arrays, of a vector of actions."""
    sides = (np.broadcast_to(np.asarray(side, float), shape).reshape(-1) for side in (low, high))
    lows, highs = (tuple(map(float, side)) for side in sides)
    return Box(lows, highs)


def vector(features: Any) -> Observation:
    """Any array as a flat one, float32."""
    return Observation(jnp.asarray(features, jnp.float32).reshape(-1))


def vector_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """That of `vector` of an array of this shape."""
    return (math.prod(shape),)


def alike(new: Any, old: Any) -> Any:
    """A state after a step, in the types of the one before: loops in the graph want them equal."""

    def cast(x: Any, like: Any) -> Array:
        typed_key = jnp.issubdtype(jnp.asarray(like).dtype, jax.dtypes.prng_key)
        return x if typed_key else jnp.asarray(x, jnp.asarray(like).dtype)

    return jax.tree.map(cast, new, old)
