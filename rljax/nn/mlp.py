"""Multi-layer perceptron."""

import enum
import math

from flax import linen as nn
from jax import Array
from jaxtyping import Float

from rljax.nn import initializers


class Activation(enum.Enum):
    """Nonlinearity of hidden layers; the value is its name in `flax.linen`."""

    TANH = "tanh"
    RELU = "relu"
    ELU = "elu"
    SWISH = "swish"


def dense(size: int, gain: float = math.sqrt(2)) -> nn.Dense:
    """A layer with orthogonal weights times `gain` (Saxe et al. 2014) and zero bias."""
    return nn.Dense(size, kernel_init=initializers.orthogonal(gain))


class MLP(nn.Module):
    """Dense layers of `sizes`, each followed by `activation`; orthogonal init of gain √2.

    With `layer_norm` what each has activated is normalized (Ba et al. 2016, arXiv:1607.06450).
    """

    sizes: tuple[int, ...]
    activation: Activation = Activation.TANH
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*batch O"]) -> Float[Array, "*batch H"]:
        """From inputs to the last hidden layer, activated."""
        activation = getattr(nn, self.activation.value)
        for size in self.sizes:
            x = activation(dense(size)(x))
            if self.layer_norm:
                x = nn.LayerNorm()(x)
        return x
