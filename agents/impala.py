"""IMPALA, the learner's side: actor-critic with V-trace (Espeholt et al. 2018, arXiv:1802.01561).

Read `Config`, then `loss` and `update` inside `make`: V-trace by the policy and the values of the
moment (`rljax.returns.vtrace`), one pass over each rollout. A rollout may be of an older policy;
V-trace weighs every step by the ratio of the two. So this is the agent for actors that run ahead of
the learner; in step with it the ratios are 1, and targets are λ-returns. Axes: T time, B
environments.

Departs from the paper: losses are means over the valid rows, not sums, so that rates and bounds do
not depend on the size of a rollout. For a published set that sums over N rows, divide its
max_grad_norm and the ε of its RMSProp by N. A truncated row bootstraps from its true final
observation, and the row that autoreset puts behind an ending has no weight (`rljax.types`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int, PRNGKeyArray

from rljax import losses, minibatches, normalizers, optim, policy_gradient, returns, validation
from rljax.agent import Agent
from rljax.loops import on_policy
from rljax.nn import actor_critic, policies
from rljax.nn.mlp import Activation
from rljax.nn.policies import BoxPolicy
from rljax.nn.torsos import Torso
from rljax.optim import Optimizer
from rljax.policy_gradient import Schedules, TrainState
from rljax.reductions import explained_variance, share_of_rows
from rljax.types import EnvSpec, Metrics, Trajectory


@dataclasses.dataclass(frozen=True)
class Config:
    """Every hyper-parameter of IMPALA; each field is a flag `--config.<field>`."""

    total_steps: int = 1_000_000  # rows collected in all, over all environments
    num_envs: int = 32  # B: stepped side by side; a multiple of the number of devices
    rollout_length: int = 20  # T: rows per environment between updates
    num_minibatches: int = 1  # a rollout is split into so many, by environments; one step each
    optimizer: Optimizer = Optimizer.RMSPROP  # the paper's, or adam
    learning_rate: float = 6e-4  # α, when training starts
    anneal_learning_rate: bool = True  # linearly, to 0 at total_steps
    optimizer_epsilon: float = 1e-5  # ε, added to the root of the mean square of gradients
    rmsprop_decay: float = 0.99  # share of that mean which a step keeps; optimizer=rmsprop only
    max_grad_norm: float = 0.5  # L2, over all parameters; longer gradients are scaled down
    discount: float = 0.99  # γ, in [0, 1]
    trace_lambda: float = 1.0  # λ of V-trace, in [0, 1]: 0 looks one step ahead
    rho_bound: float = 1.0  # ρ̄ of eq. 1: at inf the critic learns V of the learner's own policy
    c_bound: float = 1.0  # c̄ of eq. 1, at most ρ̄: lower cuts traces sooner, with less variance
    policy_rho_bound: float = 1.0  # ρ̄ of the policy's gradient (§4.2)
    entropy_cost: float = 0.01  # weight of the entropy, which is in nats
    value_cost: float = 0.5  # weight of ½(V - v)²
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
    counts = ("num_envs", "rollout_length", "num_minibatches")
    steps = ("learning_rate", "optimizer_epsilon", "max_grad_norm", "policy_head_scale")
    bounds = ("rho_bound", "c_bound", "policy_rho_bound")
    validation.positive(config, *counts, *steps, *bounds, "observation_clip")
    validation.fraction(config, "discount", "trace_lambda", "rmsprop_decay")
    validation.not_negative(config, "entropy_cost", "value_cost")
    validation.sizes(config, "hidden_sizes")
    if config.c_bound > config.rho_bound:
        raise ValueError(
            f"config.c_bound={config.c_bound} must not be above config.rho_bound="
            f"{config.rho_bound}: V-trace would not converge for sure (theorem 1)."
        )
    if config.num_envs % config.num_minibatches:
        raise ValueError(
            f"config.num_minibatches={config.num_minibatches} does not divide the "
            f"{config.num_envs} environments: minibatches are whole rollouts of some of them."
        )
    validation.rollouts(config)


def loop(config: Config) -> on_policy.Config:
    """How IMPALA is driven: rollouts of fixed length, each learned from once."""
    return on_policy.Config(
        config.total_steps,
        config.num_envs,
        config.rollout_length,
        # Minibatches take whole environments: as hard to split over devices as single rows of time.
        num_minibatches=config.num_minibatches * config.rollout_length,
    )


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
    constants = returns.VTraceConstants(
        config.discount,
        config.trace_lambda,
        config.rho_bound,
        config.c_bound,
        config.policy_rho_bound,
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
        """§4.2 over this device's rows; the mean over devices is the mean over all rows."""
        rows = batch.transitions
        chosen_by, value = player.look(params, rows.observation)
        log_prob = chosen_by.log_prob(rows.action)
        log_ratio = log_prob - rows.extras["log_prob"]
        learned = returns.vtrace(
            log_ratio,
            rows.reward,
            rows.discount,
            rows.valid,
            value,
            networks.critic(params, batch.last_observation.features),
            constants,
        )
        terms = {
            "loss/policy": losses.policy_gradient(log_prob, learned.advantage),
            "loss/value": losses.squared_error(value, learned.target),
            "policy/entropy": chosen_by.entropy(),
            "policy/approx_kl": jnp.expm1(log_ratio) - log_ratio,  # Schulman's k3 estimator
            "policy/rho_mean": jnp.minimum(jnp.exp(log_ratio), config.policy_rho_bound),
            "value/mean": value,
        }
        weight = rows.valid.astype(jnp.float32)
        share = share_of_rows(weight)
        metrics = {name: jnp.sum(share * term) for name, term in terms.items()}
        total = (
            metrics["loss/policy"]
            + config.value_cost * metrics["loss/value"]
            - entropy_cost * metrics["policy/entropy"]
        )
        value = jax.lax.stop_gradient(value)
        metrics["value/explained_variance"] = explained_variance(value, learned.target, weight)
        return total, metrics

    def update(
        state: TrainState, batch: Trajectory, key: PRNGKeyArray
    ) -> tuple[TrainState, Metrics]:
        learning_rate, entropy_cost = state.schedules
        if config.anneal_learning_rate:
            learning_rate *= jnp.maximum(1.0 - state.updates / total_updates, 0.0)
        rows = batch.transitions
        seen = rows._replace(observation=player.normalized(state.policy, rows.observation))
        last = player.normalized(state.policy, batch.last_observation)

        def step(learner: tuple[Any, Any], envs: Int[Array, " N"]) -> tuple[Any, Metrics]:
            minibatch = Trajectory(
                jax.tree.map(lambda x: x[:, envs], seen), jax.tree.map(lambda x: x[envs], last), ()
            )
            return policy_gradient.gradient_step(
                lambda params: loss(params, minibatch, entropy_cost),
                learner,
                optimizer,
                learning_rate,
            )

        learner, metrics = jax.lax.scan(
            step,
            (state.params, state.opt_state),
            minibatches.shuffled((1, rows.valid.shape[1]), config.num_minibatches, key),
        )
        metrics = jax.tree.map(jnp.mean, metrics)
        metrics["policy/learning_rate"] = learning_rate
        return policy_gradient.next_state(state, learner, rows), metrics

    return Agent(spec, init, initial_carry, player.act, update, stores=("log_prob",))
