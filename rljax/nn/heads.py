"""From features to numbers: values, logits, and the parameters of a Gaussian."""

from flax import linen as nn
from jax import Array
from jaxtyping import Float

from rljax.nn.mlp import dense


class ValueHead(nn.Module):
    """One number per row, from an orthogonal layer of gain 1."""

    @nn.compact
    def __call__(self, features: Float[Array, "*batch H"]) -> Float[Array, "*batch"]:
        """Features to values."""
        return dense(1, gain=1.0)(features).squeeze(-1)


class LinearHead(nn.Module):
    """`size` numbers per row: logits or means."""

    size: int
    gain: float

    @nn.compact
    def __call__(self, features: Float[Array, "*batch H"]) -> Float[Array, "*batch size"]:
        """Features to outputs."""
        return dense(self.size, gain=self.gain)(features)


class GaussianHead(nn.Module):
    """Means from a layer; log deviations that are free parameters, independent of the state."""

    size: int
    gain: float
    initial_log_scale: float

    @nn.compact
    def __call__(
        self, features: Float[Array, "*batch H"]
    ) -> tuple[Float[Array, "*batch size"], Float[Array, " size"]]:
        """Features to means and log deviations."""
        mean = dense(self.size, gain=self.gain)(features)
        init = nn.initializers.constant(self.initial_log_scale)
        return mean, self.param("log_scale", init, (self.size,))
