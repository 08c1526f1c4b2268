"""PPO for policies that remember: GRU, LSTM, or causal attention over a window of past steps.

What differs from agents/ppo.py: the networks (`rljax.nn.memory`) go through a rollout in order,
from the carry that acting began it with, and minibatches are whole sequences, some of the
environments each. The losses, the statistics and the schedules are PPO's own. Read `Config`, then
`update` inside `make`. Axes: T time, B environments, N rows of a minibatch.

Replaying a rollout repeats acting to the bit of a reordered sum: the first ratio is 1, episodes'
ends included, since both follow `rljax.rollout.decide`. Carries are those that acting had: they are
not recomputed as parameters change within an update, and gradients end where the rollout begins.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import PRNGKeyArray

from agents import ppo
from agents.ppo import RewardScale
from rljax import epochs, minibatches, normalizers, returns, validation
from rljax.agent import AXIS, Agent
from rljax.distributions import Distribution
from rljax.loops import on_policy
from rljax.nn import memory, policies, torsos
from rljax.nn.memory import Memory
from rljax.policy_gradient import gradient_step
from rljax.reductions import explained_variance, mean_over_devices, standardize
from rljax.types import EnvSpec, Metrics, Observation, Trajectory


@dataclasses.dataclass(frozen=True)
class Config(ppo.Config):
    """PPO's hyper-parameters, and those of the memory; each field is a flag `--config.<field>`."""

    num_minibatches: int = 4  # per epoch, of whole sequences; must divide num_envs
    shared_torso: bool | None = (
        None  # and memory, by actor and critic; None: where there are pixels
    )
    memory: Memory = Memory.GRU  # what the policy remembers with
    memory_size: int = 64  # units of each of its layers
    memory_layers: int = 1  # one upon another, each with a carry of its own
    attention_window: int = 32  # steps that each layer sees, this one included; attention only
    attention_heads: int = 4  # must divide memory_size; attention only


def validate(config: Config) -> None:
    """Raises ValueError, one sentence, for values that cannot work."""
    ppo.validate(config)
    validation.positive(config, "memory_size", "memory_layers", "attention_heads")
    if config.num_envs % config.num_minibatches:
        raise ValueError(
            f"config.num_minibatches={config.num_minibatches} does not divide "
            f"config.num_envs={config.num_envs}: minibatches are whole sequences of environments."
        )
    if config.attention_window < 2:
        raise ValueError(
            f"config.attention_window must be at least 2, not {config.attention_window}."
        )
    if config.memory is Memory.ATTENTION and config.memory_size % config.attention_heads:
        raise ValueError(
            f"config.attention_heads={config.attention_heads} does not divide "
            f"config.memory_size={config.memory_size}."
        )


def loop(config: Config) -> on_policy.Config:
    """How it is driven: as PPO, but only environments can be split over minibatches and devices."""
    return dataclasses.replace(
        ppo.loop(config), num_minibatches=config.num_minibatches * config.rollout_length
    )


def make(config: Config, spec: EnvSpec) -> Agent:
    """Binds networks and optimizer; every function it returns is pure.

    Raises ValueError for a squashed policy over a box without bounds, for a torso that cannot look
    at what the environment shows, and for the normalization of nothing but pixels.
    """
    policies.check(config.box_policy, spec)
    pixels = torsos.has_pixels(spec)
    networks = memory.make(
        spec,
        torsos.make(config.torso, spec, config.hidden_sizes, config.activation),
        memory.stack(
            config.memory,
            config.memory_layers,
            config.memory_size,
            config.attention_window,
            config.attention_heads,
        ),
        shared=pixels if config.shared_torso is None else config.shared_torso,
        head_gain=config.policy_head_scale,
        initial_log_scale=config.initial_log_std,
    )
    unknown = normalizers.init_observation(spec) if config.normalize_observation else None
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.scale_by_adam(eps=config.adam_epsilon),
    )
    total_updates = config.total_steps // (config.num_envs * config.rollout_length)

    def init(key: PRNGKeyArray) -> ppo.TrainState:
        params = networks.init(key)
        return ppo.initial_state(config, params, optimizer.init(params), unknown)

    def normalized(policy: ppo.Policy, features: Any) -> Any:
        return normalizers.normalize_observation(
            features, policy.observation, config.observation_clip
        )

    def distribution(outputs: Any, mask: Any) -> Distribution:
        mask = None if mask is None else jnp.asarray(mask)
        return policies.distribution(spec.action, config.box_policy, outputs, mask)

    def act(
        policy: ppo.Policy, carry: Any, observation: Observation, key: PRNGKeyArray, greedy: bool
    ) -> tuple[Any, Array, dict[str, Array]]:
        features = normalized(policy, observation.features)
        row = jax.tree.map(lambda x: x[None], Observation(features, observation.mask))
        valid = jnp.ones((1, len(jax.tree.leaves(features)[0])), bool)  # `decide` resets the carry
        carry, outputs, value = networks.apply(policy.params, carry, row.features, valid)
        chosen_by = jax.tree.map(lambda x: x[0], distribution(outputs, row.mask))
        action, extras = policies.decide(chosen_by, key, greedy=greedy)
        return carry, action, {**extras, "value": value[0]}

    def update(
        state: ppo.TrainState, batch: Trajectory, key: PRNGKeyArray
    ) -> tuple[ppo.TrainState, Metrics]:
        schedules = ppo.annealed(config, state.schedules, state.updates / total_updates)
        rows, valid = batch.transitions, batch.transitions.valid
        num_envs = valid.shape[1]
        weight = valid.astype(jnp.float32)
        # Statistics of before this rollout: those that its log-probabilities came from.
        features = normalized(state.policy, rows.observation.features)
        last_features = normalized(state.policy, batch.last_observation.features)
        reward, rewards, running_sum = ppo.scale_reward(config, state, rows.reward, valid)
        lambda_returns = state.rewards if config.reward_scale is RewardScale.VALUE else None
        deviation = 1.0 if lambda_returns is None else normalizers.deviation(lambda_returns)

        def estimate(params: Any) -> tuple[Array, Array, Array]:
            """Values, advantages and targets `[T, B]`; the values in the critic's scale."""
            carry, _, value = networks.apply(params, batch.initial_carry, features, valid)
            last = jax.tree.map(lambda x: x[None], last_features)
            _, _, last_value = networks.apply(params, carry, last, jnp.ones_like(valid[:1]))
            advantage = returns.gae(
                reward,
                rows.discount,
                valid,
                value * deviation,
                last_value[0] * deviation,
                config.discount,
                config.gae_lambda,
            )
            return value, advantage, value + advantage / deviation

        data = ppo.Batch(
            Observation(features, rows.observation.mask),
            rows.action,
            rows.extras["log_prob"],
            *estimate(state.params),
            weight,
        )

        def step(learner: tuple[Any, Any], sequences: tuple[Any, ppo.Batch]) -> Any:
            """One minibatch: the carries `[n, ...]` and the rows `[T, n]` of some environments."""
            carry, some = sequences
            minibatch = _rows(some)
            if config.normalize_advantage:
                advantage = standardize(minibatch.advantage, minibatch.weight)
                minibatch = minibatch._replace(advantage=advantage)

            def loss(params: Any) -> tuple[Array, Metrics]:
                seen = some.observation
                _, outputs, value = networks.apply(params, carry, seen.features, some.weight > 0)
                chosen_by, value = _rows((distribution(outputs, seen.mask), value))
                return ppo.objective(config, schedules, chosen_by, value, minibatch)

            return gradient_step(loss, learner, optimizer, schedules.learning_rate)

        def epoch(learner: tuple[Any, Any], key: PRNGKeyArray) -> tuple[tuple[Any, Any], Metrics]:
            sequences = data
            if config.recompute_advantage:
                _, advantage, target = estimate(learner[0])
                sequences = data._replace(advantage=advantage, target=target)

            def of(envs: Array) -> tuple[Any, ppo.Batch]:
                carry = jax.tree.map(lambda x: x[envs], batch.initial_carry)
                return carry, jax.tree.map(lambda x: x[:, envs], sequences)

            learner, metrics = jax.lax.scan(
                lambda learner, envs: step(learner, of(envs)),
                learner,
                minibatches.shuffled((1, num_envs), config.num_minibatches, key),
            )
            return learner, jax.tree.map(jnp.mean, metrics)

        learner = state.params, state.opt_state
        keys = jax.random.split(key, config.num_epochs)
        (params, opt_state), metrics = epochs.run(epoch, learner, keys, config.target_kl)
        observation = state.observation
        if observation is not None:
            seen = rows.observation.features
            observation = normalizers.update_observation(observation, seen, weight, AXIS)
        if lambda_returns is not None:
            rewards = normalizers.update(lambda_returns, data.target * deviation, weight, AXIS)
        metrics["value/explained_variance"] = explained_variance(data.value, data.target, weight)
        metrics["value/mean"] = mean_over_devices(data.value * deviation, weight)
        metrics["policy/learning_rate"] = schedules.learning_rate
        updates = state.updates + 1
        state = ppo.TrainState(
            params, opt_state, observation, rewards, running_sum, state.schedules, updates
        )
        return state, metrics

    return Agent(spec, init, networks.initial_carry, act, update, stores=("log_prob",))


def _rows(sequences: Any) -> Any:
    """Every array `[T, n, ...]` as `[T · n, ...]`."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), sequences)
