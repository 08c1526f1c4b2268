"""Convolutional torsos for pixels: uint8 `[..., height, width, channels]` to a vector.

Convolutions trained inside a `lax.scan` are 20 to 30 times slower on CPU (jax-ml/jax#12868): scan
over minibatches with `unroll=unroll(...)`.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float, UInt8

from rljax.nn.mlp import dense

_SQRT2 = math.sqrt(2)
GRID_VALUES = 11  # of MiniGrid's object types; larger ones are read as the last


def unroll(steps: int) -> int:
    """How far to unroll a scan whose body trains convolutions: wholly on CPU, elsewhere not."""
    return steps if jax.default_backend() == "cpu" else 1


def _conv(channels: int, size: int, stride: int = 1, padding: str = "VALID") -> nn.Conv:
    return nn.Conv(
        channels,
        (size, size),
        (stride, stride),
        padding,
        kernel_init=nn.initializers.orthogonal(_SQRT2),
    )


def _flat(x: Float[Array, "*batch H W C"]) -> Float[Array, "*batch F"]:
    return x.reshape(*x.shape[:-3], -1)


class Nature(nn.Module):
    """Three convolutions and a layer of 512 (Mnih et al. 2015, "Methods: model architecture")."""

    size: int = 512

    @nn.compact
    def __call__(self, pixels: UInt8[Array, "*batch H W C"]) -> Float[Array, "*batch F"]:
        """Pixels to features."""
        x = pixels.astype(jnp.float32) / 255
        for channels, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
            x = nn.relu(_conv(channels, size, stride)(x))
        return nn.relu(dense(self.size)(_flat(x)))


class Impala(nn.Module):
    """Residual blocks of 16, 32, 32 channels, a layer of 256 (Espeholt et al. 2018, figure 3)."""

    channels: tuple[int, ...] = (16, 32, 32)
    size: int = 256

    @nn.compact
    def __call__(self, pixels: UInt8[Array, "*batch H W C"]) -> Float[Array, "*batch F"]:
        """Pixels to features."""
        x = pixels.astype(jnp.float32) / 255
        for channels in self.channels:
            x = _conv(channels, 3, padding="SAME")(x)
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
            for _ in range(2):
                y = _conv(channels, 3, padding="SAME")(nn.relu(x))
                x = x + _conv(channels, 3, padding="SAME")(nn.relu(y))
        return nn.relu(dense(self.size)(nn.relu(_flat(x))))


class Grid(nn.Module):
    """For boards of a few cells whose values name things, such as MiniGrid's: one-hot, two
    3x3 convolutions of stride 1, a layer.
    """  # noqa: D205

    size: int = 128

    @nn.compact
    def __call__(self, cells: UInt8[Array, "*batch H W C"]) -> Float[Array, "*batch F"]:
        """Cells to features."""
        named = jax.nn.one_hot(jnp.minimum(cells, GRID_VALUES - 1), GRID_VALUES)
        x = named.reshape(*cells.shape[:-1], -1)
        for channels in (32, 64):
            x = nn.relu(_conv(channels, 3, padding="SAME")(x))
        return nn.relu(dense(self.size)(_flat(x)))
