"""A memory that looks back: one block of causal attention over the last steps of the episode.

A drop-in for the recurrent memories of `rljax.nn.recurrent`, whose contract it keeps. Its carry is
the window: what the block saw at the last W - 1 steps, and how many of them there were. Acting
costs O(W), learning from T rows O(T (T + W)). The window that a rollout begins with is a constant
of the training pass, but the keys and values are made from it anew, so that a block learns to read
what it saw before the rollout began; a recurrent memory cannot.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Bool, Float, Int

from rljax.nn.mlp import dense


class Window(NamedTuple):
    """The last W - 1 inputs of the episode, the newest last; zeros where there were none yet."""

    inputs: Array  # float32 [B, W - 1, H]
    count: Array  # int32 [B]: how many there were


class Attention(nn.Module):
    """A pre-norm transformer block (Xiong et al. 2020, arXiv:2002.04745) over `window` steps.

    The current step is one of them. Positions are told by a learned bias per head and age (Raffel
    et al. 2020, arXiv:1910.10683, §2.1, without buckets). `heads` must divide `size`.
    """

    size: int
    window: int  # at least 2
    heads: int

    def initial_carry(self, batch: int) -> Window:
        """Nothing seen."""
        return Window(jnp.zeros((batch, self.window - 1, self.size)), jnp.zeros(batch, jnp.int32))

    @nn.compact
    def __call__(
        self, carry: Window, x: Float[Array, "T B F"], valid: Bool[Array, "T B"]
    ) -> tuple[Window, Float[Array, "T B H"]]:
        """What every row makes of itself and of the rows that it may see."""
        if x.shape[-1] != self.size:
            x = dense(self.size, gain=1.0)(x)
        x = x.transpose(1, 0, 2)
        seen = jnp.concatenate([carry.inputs, x], axis=1)  # S = W - 1 + T
        visible, kept = visibility(carry.count, valid.T, self.window)

        split = (*seen.shape[:2], self.heads, self.size // self.heads)
        normed = nn.LayerNorm()(seen)
        query = dense(self.size, gain=1.0)(normed[:, self.window - 1 :])
        query = query.reshape(-1, x.shape[1], *split[2:])
        key = dense(self.size, gain=1.0)(normed).reshape(split)
        value = dense(self.size, gain=1.0)(normed).reshape(split)
        bias = self.param("age_bias", nn.initializers.zeros, (self.heads, self.window))
        logits = jnp.einsum("btnd,bsnd->bnts", query, key) / math.sqrt(split[-1])
        logits = logits + bias[:, _age(x.shape[1], self.window).clip(0, self.window - 1)][None]
        weights = nn.softmax(jnp.where(visible[:, None], logits, -1e9))
        read = jnp.einsum("bnts,bsnd->btnd", weights, value).reshape(x.shape)
        x = x + dense(self.size, gain=1.0)(read)
        hidden = nn.relu(dense(2 * self.size)(nn.LayerNorm()(x)))
        x = x + dense(self.size, gain=1.0)(hidden)

        last = 1 - self.window
        window = Window(
            jnp.where(kept[:, last:, None], seen[:, last:], 0.0), jnp.sum(kept[:, last:], 1)
        )
        return window, x.transpose(1, 0, 2)


def visibility(
    count: Int[Array, " B"], valid: Bool[Array, "B T"], window: int
) -> tuple[Bool[Array, "B T S"], Bool[Array, "B S"]]:
    """Which of the S = W - 1 + T steps each row sees, and which are left to the row after the last.

    A row sees itself and what came before it in its own episode, W steps in all. `count` of the
    first W - 1 steps, which came before the rows, were of the first row's episode.
    """
    length = valid.shape[1]
    ends = jnp.cumsum(~valid, axis=1)  # an invalid row belongs to the episode that it ends
    episode = ends - ~valid
    old = jnp.arange(window - 1)[None] >= window - 1 - count[:, None]
    of_seen = jnp.concatenate([jnp.where(old, 0, -1), episode], axis=1)
    age = _age(length, window)
    near = (age >= 0) & (age < window)
    visible = near[None] & (of_seen[:, None] == episode[:, :, None])
    return visible, of_seen == ends[:, -1:]


def _age(length: int, window: int) -> Int[Array, "T S"]:
    """How many steps before each row each of the S steps was; negative for later ones."""
    rows, seen = jnp.arange(length), jnp.arange(window - 1 + length)
    return rows[:, None] + window - 1 - seen[None]
