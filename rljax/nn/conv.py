"""Convolutional torsos for pixels: uint8 `[..., height, width, channels]` to a vector.

On CPU, XLA brings the convolutions of a gradient to the form that its fast kernels take in a
program's outermost computation only: trained inside a `lax.scan` they are 20 to 30 times slower
(jax-ml/jax#12868). So `convolve` writes its gradients in that form itself.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float, UInt8

from rljax.nn import initializers
from rljax.nn.mlp import dense

_SQRT2 = math.sqrt(2)
GRID_VALUES = 11  # of MiniGrid's object types; larger ones are read as the last


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
    x: Float[Array, "B H W C"], kernel: Float[Array, "h w C F"], stride: int, padding: str
) -> Float[Array, "B I J F"]:
    """`kernel` over `x`, `padding` "SAME" or "VALID"; has gradients of reverse mode only."""
    return _convolve(x, kernel, stride=stride, pads=_pads(x, kernel, stride, padding))


def _convolve(
    x: Array, kernel: Array, *, pads: Sequence[tuple[int, int]], stride: int = 1, **dilation: int
) -> Array:
    x_dilation, kernel_dilation = dilation.get("x_dilation", 1), dilation.get("kernel_dilation", 1)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads,
        (x_dilation, x_dilation),
        (kernel_dilation, kernel_dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),  # what the fast kernels take
    )


def _pads(x: Array, kernel: Array, stride: int, padding: str) -> Sequence[tuple[int, int]]:
    return jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (stride, stride), padding)


def _forward(x: Array, kernel: Array, stride: int, padding: str) -> tuple[Array, Any]:
    return convolve(x, kernel, stride, padding), (x, kernel)


def _backward(stride: int, padding: str, saved: tuple[Array, Array], g: Array) -> Any:
    """Gradients of y[i] = Σ_a k[a] x[i·stride + a - before], which holds along each axis.

    dx[j] = Σ_a k[a] g[(j + before - a)/stride]: g, dilated, under the reversed kernel.
    dk[a] = Σ_i g[i] x[i·stride + a - before]: x under g, dilated, summed over the batch.
    """
    x, kernel = saved
    dx_pads, dk_pads = [], []
    for axis, (before, _) in enumerate(_pads(x, kernel, stride, padding)):
        size, length = kernel.shape[axis], x.shape[axis + 1]
        spread = (g.shape[axis + 1] - 1) * stride + 1  # of g, dilated
        dx_pads.append((size - 1 - before, length + before - spread))
        dk_pads.append((before, size - 1 + spread - length - before))
    reverse = jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)
    dx = _convolve(g, reverse, pads=dx_pads, x_dilation=stride)
    images, filters = x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3)
    dk = _convolve(images, filters, pads=dk_pads, kernel_dilation=stride)
    return dx, dk.transpose(1, 2, 0, 3)


convolve.defvjp(_forward, _backward)


class Conv(nn.Module):
    """A convolution with orthogonal kernel of gain √2 and zero bias; parameters as `nn.Conv`'s."""

    channels: int
    size: int
    stride: int = 1
    padding: str = "VALID"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch H W C"]) -> Float[Array, "*batch I J F"]:
        """Images to feature maps."""
        shape = (self.size, self.size, x.shape[-1], self.channels)
        kernel = self.param("kernel", initializers.orthogonal(_SQRT2), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        images = x.reshape(-1, *x.shape[-3:])
        if jax.default_backend() == "cpu":
            y = jnp.asarray(convolve(images, kernel, self.stride, self.padding))
        else:  # their libraries know best how to differentiate
            pads = _pads(images, kernel, self.stride, self.padding)
            y = _convolve(images, kernel, stride=self.stride, pads=pads)
        return (y + bias[None, None, None]).reshape(*x.shape[:-3], *y.shape[1:])


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
            x = nn.relu(Conv(channels, size, stride)(x))
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
            x = Conv(channels, 3, padding="SAME")(x)
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
            for _ in range(2):
                y = Conv(channels, 3, padding="SAME")(nn.relu(x))
                x = x + Conv(channels, 3, padding="SAME")(nn.relu(y))
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
            x = nn.relu(Conv(channels, 3, padding="SAME")(x))
        return nn.relu(dense(self.size)(_flat(x)))
