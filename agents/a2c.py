"""Advantage actor-critic (Mnih et al. 2016, arXiv:1602.01783): one gradient step per rollout.

Read `Config`, then `loss` and `update` inside `make`: n-step returns to the end of the rollout
(gae_lambda=1, the paper's), or generalized advantage estimates. Collected in step with the learner
it is A2C; by actors that run ahead of it, in the actor–learner loop, it is A3C in the paper's
sense: nothing corrects for their older policy (`agents.impala` does), and `policy/approx_kl` says
how far it lags. Axes: T time, B environments.

Departs from the paper: losses are means over the valid rows, not sums; a truncated row bootstraps
from its true final observation, and the row that autoreset puts behind an ending has no weight
(`rljax.types`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PRNGKeyArray

from rljax import losses, normalizers, optim, policy_gradient, returns, validation
from rljax.agent import Agent
from rljax.loops import on_policy
from rljax.nn import actor_critic, policies
from rljax.nn.mlp import Activation
from rljax.nn.policies import BoxPolicy
from rljax.nn.torsos import Torso
from rljax.optim import Optimizer
from rljax.policy_gradient import Schedules, TrainState
from rljax.reductions import explained_variance, share_of_rows, standardize
from rljax.types import EnvSpec, Metrics, Trajectory


@dataclasses.dataclass(frozen=True)
class Config:
    """Every hyper-parameter of A2C; each field is a flag `--config.<field>`."""

    total_steps: int = 1_000_000  # rows collected in all, over all environments
    num_envs: int = 8  # B: stepped side by side; a multiple of the number of devices
    rollout_length: int = 5  # T: rows per environment between updates
    optimizer: Optimizer = Optimizer.RMSPROP  # the paper's, or adam
    learning_rate: float = 7e-4  # α, when training starts
    anneal_learning_rate: bool = True  # linearly, to 0 at total_steps
    optimizer_epsilon: float = 1e-5  # ε, added to the root of the mean square of gradients
    rmsprop_decay: float = 0.99  # share of that mean which a step keeps; optimizer=rmsprop only
    max_grad_norm: float = 0.5  # L2, over all parameters; longer gradients are scaled down
    discount: float = 0.99  # γ, in [0, 1]
    gae_lambda: float = 1.0  # λ of GAE, in [0, 1]: 1 is the paper's n-step return, 0 is TD(0)
    normalize_advantage: bool = False  # per rollout: mean 0, deviation 1
    entropy_cost: float = 0.01  # weight of the entropy, which is in nats
    value_cost: float = 0.5  # weight of ½(V - G)²
    normalize_observation: bool = False  # vectors, by running moments; pixels are always over 255
    observation_clip: float = 10.0  # in deviations, to ± this; with normalize_observation only
    torso: Torso = Torso.AUTO  # auto: mlp for vectors, nature for frames, grid for small boards
    shared_torso: bool | None = None  # by actor and critic; None: where there are pixels
    hidden_sizes: tuple[int, ...] = (64, 64)  # of the mlp that looks at vectors
    activation: Activation = Activation.TANH  # behind every layer of that mlp
    box_policy: BoxPolicy = BoxPolicy.NORMAL  # for boxes: clipped to the bounds, or squashed
    initial_log_std: float = 0.0  # boxes only: ln σ, a free parameter per action dimension
    policy_head_scale: float = 0.01  # gain of the policy's last layer; small: near uniform at first


def validate(config: Config) -> None:
    """Raises ValueError, one sentence, for values that cannot work."""
    counts = ("num_envs", "rollout_length")
    steps = ("learning_rate", "optimizer_epsilon", "max_grad_norm", "policy_head_scale")
    validation.positive(config, *counts, *steps, "observation_clip")
    validation.fraction(config, "discount", "gae_lambda", "rmsprop_decay")
    validation.not_negative(config, "entropy_cost", "value_cost")
    validation.sizes(config, "hidden_sizes")
    validation.rollouts(config)


def loop(config: Config) -> on_policy.Config:
    """How A2C is driven: rollouts of fixed length, each learned from once."""
    return on_policy.Config(config.total_steps, config.num_envs, config.rollout_length)


def make(config: Config, spec: EnvSpec) -> Agent:
    """Binds networks and optimizer; every function it returns is pure.

    Raises ValueError for a squashed policy over a box without bounds, for a torso that cannot look
    at what the environment shows, and for the normalization of nothing but pixels.
    """
    policies.check(config.box_policy, spec)
    networks = actor_critic.make(
        spec,
        config.torso,
        config.hidden_sizes,
        config.activation,
        shared=config.shared_torso,
        head_gain=config.policy_head_scale,
        initial_log_scale=config.initial_log_std,
    )
    optimizer = optim.make(
        config.optimizer,
        epsilon=config.optimizer_epsilon,
        rmsprop_decay=config.rmsprop_decay,
        max_grad_norm=config.max_grad_norm,
    )
    player = policy_gradient.player(spec, networks, config.box_policy, config.observation_clip)
    unknown = normalizers.init_observation(spec) if config.normalize_observation else None
    total_updates = config.total_steps // (config.num_envs * config.rollout_length)

    def init(key: PRNGKeyArray) -> TrainState:
        params = networks.init(key)
        schedules = Schedules(jnp.float32(config.learning_rate), jnp.float32(config.entropy_cost))
        return TrainState(params, optimizer.init(params), unknown, schedules, jnp.int32(0))

    def initial_carry(batch: int) -> tuple[()]:
        del batch
        return ()

    def loss(params: Any, batch: Trajectory, entropy_cost: Array) -> tuple[Array, Metrics]:
        """The paper's §4, last update, over this device's rows; their mean over devices counts."""
        rows = batch.transitions
        weight = rows.valid.astype(jnp.float32)
        chosen_by, value = player.look(params, rows.observation)
        log_prob = chosen_by.log_prob(rows.action)
        log_ratio = log_prob - rows.extras["log_prob"]
        critic = jax.lax.stop_gradient(value)
        advantage = returns.gae(
            rows.reward,
            rows.discount,
            rows.valid,
            critic,
            jax.lax.stop_gradient(networks.critic(params, batch.last_observation.features)),
            config.discount,
            config.gae_lambda,
        )
        target = critic + advantage
        if config.normalize_advantage:
            flat = standardize(advantage.reshape(-1), weight.reshape(-1))
            advantage = flat.reshape(advantage.shape)
        terms = {
            "loss/policy": losses.policy_gradient(log_prob, advantage),
            "loss/value": losses.squared_error(value, target),
            "policy/entropy": chosen_by.entropy(),
            "policy/approx_kl": jnp.expm1(log_ratio) - log_ratio,  # 0 unless actors run ahead
            "value/mean": value,
        }
        share = share_of_rows(weight)
        metrics = {name: jnp.sum(share * term) for name, term in terms.items()}
        total = (
            metrics["loss/policy"]
            + config.value_cost * metrics["loss/value"]
            - entropy_cost * metrics["policy/entropy"]
        )
        metrics["value/explained_variance"] = explained_variance(critic, target, weight)
        return total, metrics

    def update(
        state: TrainState, batch: Trajectory, key: PRNGKeyArray
    ) -> tuple[TrainState, Metrics]:
        del key  # deterministic given the rollout
        learning_rate, entropy_cost = state.schedules
        if config.anneal_learning_rate:
            learning_rate *= jnp.maximum(1.0 - state.updates / total_updates, 0.0)
        rows = batch.transitions
        seen = Trajectory(
            rows._replace(observation=player.normalized(state.policy, rows.observation)),
            player.normalized(state.policy, batch.last_observation),
            (),
        )
        learner, metrics = policy_gradient.gradient_step(
            lambda params: loss(params, seen, entropy_cost),
            (state.params, state.opt_state),
            optimizer,
            learning_rate,
        )
        metrics["policy/learning_rate"] = learning_rate
        return policy_gradient.next_state(state, learner, rows), metrics

    return Agent(spec, init, initial_carry, player.act, update, stores=("log_prob",))
