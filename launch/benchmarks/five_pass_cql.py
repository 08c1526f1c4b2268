"""CQL as public JAX code writes it: every loss differentiated by a pass of its own.

What JaxCQL and JAX-CORL do: five scalars (policy, two critics, temperature, multiplier), the
gradient of each by differentiating all that leads to them, and each kind of draw valued by a call
of its own for each critic. It leaves to XLA to find what the passes have in common. For ratios of
speed, and as a second opinion: networks, state and draws are those of `agents.cql`, so an update
must give the same numbers.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import PRNGKeyArray

from agents import cql
from rljax import device_rows, optim
from rljax.agent import Agent
from rljax.nn import box_policies
from rljax.replay.base import Sample
from rljax.types import EnvSpec, Metrics


def make(config: cql.Config, spec: EnvSpec) -> Agent:
    """The agent whose updates take five passes: for log Σ exp by densities, a multiplier learned.

    Of the other options it knows none, and all rows weigh the same.
    """
    wanted = config.gap_target
    normalized = config.normalize_observation or config.normalize_reward
    if not config.importance_sampling or wanted is None or normalized:
        raise ValueError("the five passes are for densities, a gap_target and a plain dataset.")
    networks = cql.networks_of(config, spec)
    optimizer = optax.scale_by_adam(eps=config.adam_epsilon)

    def losses(params: cql.Params, state: cql.TrainState, batch: Sample, key: Array) -> list[Array]:
        seen, ahead = batch.observation, batch.next_observation
        unit = box_policies.to_unit(batch.action, networks.box)
        (size, dims), count = unit.shape, config.num_draws
        normal_key, uniform_key = jax.random.split(key)
        noise = device_rows.normal(normal_key, (size, 2 * count + 2, dims))
        anywhere = device_rows.uniform(uniform_key, (size, count, dims))

        policy, next_policy = networks.look(params.actor, seen), networks.look(params.actor, ahead)
        new, new_log_prob = cql.drawn(policy, noise[:, :1])
        here, here_log_prob = cql.drawn(policy, noise[:, 1 : count + 1])
        there, there_log_prob = cql.drawn(next_policy, noise[:, count + 1 : -1])
        next_action, _ = cql.drawn(next_policy, noise[:, -1:])

        def q(critics: Any, number: int, observation: Any, actions: Array) -> Array:
            critic = jax.tree.map(lambda x: x[number], critics)
            values: Any = networks.critic.apply(critic, observation.features, actions)
            return values

        next_q = jnp.minimum(*(q(state.target, number, ahead, next_action) for number in (0, 1)))
        target = jax.lax.stop_gradient(batch.reward + batch.discount * next_q[:, 0])
        multiplier = cql.multiplier(params.log_multiplier)
        gaps, critic_losses = [], []
        for number in (0, 1):
            of_data = q(params.critic, number, seen, unit[:, None])[:, 0]
            entries = [
                q(params.critic, number, seen, anywhere) + dims * math.log(2),
                q(params.critic, number, seen, here) - here_log_prob,
                q(params.critic, number, seen, there) - there_log_prob,
            ]
            highest = jax.nn.logsumexp(jnp.concatenate(entries, axis=1), axis=1)
            gap = config.conservative_weight * (highest - of_data - wanted)
            gaps.append(jnp.mean(gap))
            error = jnp.mean(jnp.square(of_data - target))
            critic_losses.append(error + jax.lax.stop_gradient(multiplier) * gaps[-1])

        temperature = jnp.exp(params.log_temperature)
        new_q = jnp.minimum(*(q(params.critic, number, seen, new) for number in (0, 1)))
        policy_loss = jnp.mean(temperature * new_log_prob - new_q)
        excess = jax.lax.stop_gradient(new_log_prob) - dims
        temperature_loss = -params.log_temperature * jnp.mean(excess)
        multiplier_loss = -0.5 * multiplier * jax.lax.stop_gradient(sum(gaps))
        return [policy_loss, *critic_losses, temperature_loss, multiplier_loss]

    def update(
        state: cql.TrainState, batch: Sample, key: PRNGKeyArray
    ) -> tuple[cql.TrainState, Metrics]:
        def one(params: cql.Params, number: int) -> Array:
            return losses(params, state, batch, key)[number]

        found = [jax.value_and_grad(one)(state.params, number) for number in range(5)]
        by_policy, by_first, by_second, by_temperature, by_multiplier = (each[1] for each in found)
        critic = jax.tree.map(jnp.add, by_first.critic, by_second.critic)
        grads = cql.Params(
            by_policy.actor, critic, by_temperature.log_temperature, by_multiplier.log_multiplier
        )
        steps: Any
        steps, opt_state = optimizer.update(grads, state.opt_state)
        slow, fast = map(jnp.float32, (config.actor_learning_rate, config.critic_learning_rate))
        params = optim.descended(state.params, steps, cql.Params(slow, fast, slow, fast))
        target = optax.incremental_update(params.critic, state.target, config.target_rate)
        state = state._replace(
            params=params, target=target, opt_state=opt_state, updates=state.updates + 1
        )
        return state, {"loss/actor": found[0][0], "loss/critic": found[1][0] + found[2][0]}

    return cql.make(config, spec)._replace(update=update)
