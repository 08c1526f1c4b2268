"""From features to numbers: values, logits, and the parameters of a Gaussian."""

import jax.numpy as jnp
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


class StateGaussianHead(nn.Module):
    """Means and log deviations from one layer, so that the noise may depend on the state."""

    size: int
    gain: float

    @nn.compact
    def __call__(
        self, features: Float[Array, "*batch H"]
    ) -> tuple[Float[Array, "*batch size"], Float[Array, "*batch size"]]:
        """Features to means and log deviations."""
        mean, log_scale = jnp.split(dense(2 * self.size, self.gain)(features), 2, axis=-1)
        return mean, log_scale


class ActionValueHead(nn.Module):
    """`num_outputs` numbers for each action: 1 for Q, or as many as a distribution has atoms.

    Dueling, they are V(s) + A(s, a) - mean A (Wang et al. 2016, arXiv:1511.06581, eq. 9), from a
    layer each.
    """

    num_actions: int
    num_outputs: int = 1
    dueling: bool = False

    @nn.compact
    def __call__(self, features: Float[Array, "*batch H"]) -> Float[Array, "*batch A N"]:
        """Features to outputs."""
        actions = dense(self.num_actions * self.num_outputs, gain=1.0)(features)
        actions = actions.reshape(*features.shape[:-1], self.num_actions, self.num_outputs)
        if not self.dueling:
            return actions
        state = dense(self.num_outputs, gain=1.0)(features)[..., None, :]
        return state + actions - jnp.mean(actions, axis=-2, keepdims=True)
