"""From what the environment shows, vectors, pixels or named parts of both, to one hidden vector."""

import enum
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float

from rljax.nn.conv import Grid, Impala, Nature
from rljax.nn.mlp import MLP, Activation
from rljax.types import EnvSpec

_SMALLEST_FRAME = 36  # pixels a side that Nature's convolutions need


class Torso(enum.Enum):
    """Which network looks at the observation."""

    AUTO = (
        "auto"  # mlp for vectors, nature for frames, grid for boards of less than 36 cells a side
    )
    MLP = "mlp"
    NATURE = "nature"
    IMPALA = "impala"
    GRID = "grid"


class Features(nn.Module):
    """`pixels` looks at entries of rank 3, `mlp` at the rest; parts are joined by name, in order.

    A lone vector goes through `mlp` alone, a lone frame through `pixels` alone.
    """

    pixels: nn.Module | None
    mlp: MLP

    @nn.compact
    def __call__(self, features: Any) -> Float[Array, "*batch H"]:
        """An array `[..., O]` or `[..., H, W, C]`, or a dict of such, to `[..., H]`."""
        if not isinstance(features, dict):
            return self._one(features)
        joined = [self._one(features[name]) for name in sorted(features)]
        return jnp.concatenate(joined, axis=-1)

    def _one(self, x: Array) -> Array:
        if x.dtype == jnp.uint8:
            assert self.pixels is not None  # `make` saw to it
            return self.pixels(x)
        return self.mlp(x)


def has_pixels(spec: EnvSpec) -> bool:
    """Whether any part of the observation is a frame."""
    return "uint8" in {part.dtype for part in spec.parts}


def make(
    kind: Torso, spec: EnvSpec, hidden_sizes: tuple[int, ...], activation: Activation
) -> nn.Module:
    """The torso for a spec; `hidden_sizes` are of the MLP that looks at vectors.

    Raises:
        ValueError: the torso cannot look at what the environment shows.
    """
    mlp = MLP(hidden_sizes, activation)
    frames = [part.shape for part in spec.parts if part.dtype == "uint8"]
    if not frames:
        if kind not in (Torso.AUTO, Torso.MLP):
            raise ValueError(
                f"config.torso={kind.value} looks at pixels, and {spec.name} shows vectors: "
                "use auto or mlp."
            )
        return Features(None, mlp)
    small = min(min(shape[:2]) for shape in frames) < _SMALLEST_FRAME
    if kind is Torso.MLP:
        raise ValueError(
            f"config.torso=mlp looks at vectors, and {spec.name} shows pixels: use auto, nature, "
            "impala or grid."
        )
    if kind is Torso.NATURE and small:
        raise ValueError(
            f"config.torso=nature needs frames of {_SMALLEST_FRAME} x {_SMALLEST_FRAME} pixels or "
            f"more, and {spec.name} shows {frames[0]}: use auto or grid."
        )
    if kind is Torso.AUTO:
        kind = Torso.GRID if small else Torso.NATURE
    pixels = {Torso.NATURE: Nature, Torso.IMPALA: Impala, Torso.GRID: Grid}[kind]()
    return Features(pixels, mlp)
