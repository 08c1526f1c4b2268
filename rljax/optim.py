"""Optimizers by name, without a learning rate.

The rate lives in the train state, where a population can vary it: agents subtract it times what the
optimizer gives.
"""

import enum

import optax


class Optimizer(enum.Enum):
    """What gradients are divided by."""

    ADAM = "adam"  # Kingma & Ba 2015, arXiv:1412.6980: with momentum 0.9, and 0.999 for the size
    RMSPROP = "rmsprop"  # Tieleman & Hinton 2012: no momentum


def make(
    kind: Optimizer, *, epsilon: float, rmsprop_decay: float, max_grad_norm: float
) -> optax.GradientTransformation:
    """Scales gradients down to an L2 norm, over all parameters, then divides by their usual size.

    `epsilon` is added to the root of the mean square, in both; `rmsprop_decay` is the share of that
    mean which a step keeps. What comes out is uphill, for a learning rate of 1.
    """
    if kind is Optimizer.ADAM:
        scale = optax.scale_by_adam(eps=epsilon)
    else:
        scale = optax.scale_by_rms(rmsprop_decay, epsilon, eps_in_sqrt=False)
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), scale)
