"""From what the environment shows, vectors, pixels or named parts of both, to one hidden vector."""

import enum
from collections.abc import Mapping

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float

from rljax.nn.conv import Grid, Impala, Nature
from rljax.nn.mlp import MLP, Activation, dense
from rljax.types import EnvSpec

_SMALLEST_FRAME = 36  # pixels a side that Nature's convolutions need


class Torso(enum.Enum):
    """Which network looks at the observation."""

    AUTO = "auto"  # mlp for vectors, nature for frames, grid where a side has fewer than 36 cells
    MLP = "mlp"
    NATURE = "nature"
    IMPALA = "impala"
    GRID = "grid"


class Parts(nn.Module):
    """For named parts: each has a network of its own, and a layer over their outputs joins them."""

    networks: Mapping[str, nn.Module]  # by part
    size: int = 256

    @nn.compact
    def __call__(self, features: dict[str, Array]) -> Float[Array, "*batch H"]:
        """Arrays `[..., O]` and `[..., H, W, C]` to `[..., H]`."""
        seen = [self.networks[name](features[name]) for name in sorted(self.networks)]
        return nn.relu(dense(self.size)(jnp.concatenate(seen, axis=-1)))


def has_pixels(spec: EnvSpec) -> bool:
    """Whether any part of the observation is a frame."""
    return "uint8" in {part.dtype for part in spec.parts}


def is_vector(spec: EnvSpec) -> bool:
    """Whether the observation is one vector of numbers, of whatever size these are."""
    return not (has_pixels(spec) or spec.named_parts)


def make(
    kind: Torso, spec: EnvSpec, hidden_sizes: tuple[int, ...], activation: Activation
) -> nn.Module:
    """The torso for a spec; `hidden_sizes` are of the MLP that looks at vectors.

    Raises:
        ValueError: the torso cannot look at what the environment shows.
    """
    if not has_pixels(spec) and kind not in (Torso.AUTO, Torso.MLP):
        raise ValueError(
            f"config.torso={kind.value} looks at pixels, and {spec.name} shows vectors: "
            "use auto or mlp."
        )
    if has_pixels(spec) and kind is Torso.MLP:
        raise ValueError(
            f"config.torso=mlp looks at vectors, and {spec.name} shows pixels: use auto, nature, "
            "impala or grid."
        )
    networks = {
        part.name: MLP(hidden_sizes, activation)
        if part.dtype != "uint8"
        else _eye(kind, spec, part.shape)
        for part in spec.parts
    }
    return Parts(networks) if spec.named_parts else networks["observation"]


def _eye(kind: Torso, spec: EnvSpec, frame: tuple[int, ...]) -> nn.Module:
    """The convolutions for frames of one shape."""
    small = min(frame[:2]) < _SMALLEST_FRAME
    if kind is Torso.NATURE and small:
        raise ValueError(
            f"config.torso=nature needs frames of {_SMALLEST_FRAME} x {_SMALLEST_FRAME} pixels or "
            f"more, and {spec.name} shows {frame}: use auto or grid."
        )
    if kind is Torso.AUTO:
        kind = Torso.GRID if small else Torso.NATURE
    return {Torso.NATURE: Nature, Torso.IMPALA: Impala, Torso.GRID: Grid}[kind]()
