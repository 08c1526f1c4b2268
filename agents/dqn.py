"""Deep Q-networks (Mnih et al. 2015), double, dueling, with n steps, priorities, or C51.

Read `Config`, then the losses, then `update` inside `make`. Double: van Hasselt et al. 2016,
arXiv:1509.06461; dueling: Wang et al. 2016, arXiv:1511.06581; C51: Bellemare et al. 2017,
arXiv:1707.06887, in place of expected values where `num_atoms` is not 0. Steps and priorities are
the replay's business (`rljax.replay`). Axes: B rows of a sample, A actions, N atoms.

Departs from common practice: a forbidden action is neither chosen nor bootstrapped from; the two
streams of a dueling network are a layer each, on a torso that they share; with atoms, priorities
are the Kullback-Leibler divergence, as Rainbow's (Hessel et al. 2018, arXiv:1710.02298).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from rljax import exploration, losses, optim, validation
from rljax.agent import AXIS, PRIORITY, Agent
from rljax.loops import off_policy
from rljax.nn import torsos
from rljax.nn.heads import ActionValueHead
from rljax.nn.mlp import Activation
from rljax.nn.policies import decide, mask_of
from rljax.nn.torsos import Torso
from rljax.replay.base import Sample
from rljax.types import Discrete, EnvSpec, Metrics, Observation, Scalar


@dataclasses.dataclass(frozen=True)
class Config:
    """Every hyper-parameter of DQN; each field is a flag `--config.<field>`."""

    total_steps: int = 1_000_000  # rows collected in all, over all environments
    num_envs: int = 8  # stepped side by side
    rollout_length: int = 4  # rows per environment between updates
    num_updates: int = 8  # after every rollout: num_envs × rollout_length rows
    learning_starts: int = 10_000  # rows of random actions before the first update
    replay_capacity: int = 100_000  # rows kept, over all environments; the oldest make room
    batch_size: int = 32  # B: rows of one update; a multiple of the number of devices
    learning_rate: float = 1e-4  # α of Adam
    anneal_learning_rate: bool = False  # linearly, from the first update to 0 at total_steps
    adam_epsilon: float = 1e-8  # ε of Adam, added to √v̂ (Kingma & Ba 2015, algorithm 1)
    max_grad_norm: float = 10.0  # L2, over all parameters; longer gradients are scaled down
    discount: float = 0.99  # γ, in [0, 1]
    num_steps: int = 1  # n of n-step returns
    double: bool = True  # the network chooses the action to bootstrap from, the target values it
    dueling: bool = False  # Q as V plus advantages of mean 0
    target_period: int = 1_000  # updates between two moves of the target network
    target_rate: float = 1.0  # τ: how far it moves towards the network; 1 copies it
    exploration_fraction: float = 0.1  # of total_steps over which ε falls linearly from 1
    final_epsilon: float = 0.05  # ε from there on: the share of random actions
    huber_threshold: float = 1.0  # TD errors beyond it count linearly; without atoms only
    num_atoms: int = 0  # N of C51, which learns the distribution of returns; 0: expected values
    value_min: float = -10.0  # lowest return of C51's support
    value_max: float = 10.0  # highest
    prioritized: bool = False  # draw rows by |TD error| (Schaul et al. 2016, arXiv:1511.05952)
    priority_exponent: float = 0.6  # α of their eq. 1: 0 is uniform
    importance_exponent: float = 0.4  # β of their §3.4: 1 corrects the draws in full
    torso: Torso = Torso.AUTO  # what looks at the observation
    hidden_sizes: tuple[int, ...] = (256, 256)  # of the MLP that looks at vectors
    activation: Activation = Activation.RELU  # behind its layers


class Policy(NamedTuple):
    """What acting needs."""

    params: Any
    epsilon: Float[Array, ""]  # share of random actions where the choice is not greedy


class Schedules(NamedTuple):
    """Hyper-parameters that a population may vary: in the state, so that nothing recompiles."""

    learning_rate: Float[Array, ""]
    final_epsilon: Float[Array, ""]


class TrainState(NamedTuple):
    """Everything that a resume needs."""

    params: Any
    target: Any  # parameters of the target network
    opt_state: optax.OptState
    schedules: Schedules
    epsilon: Float[Array, ""]  # of the rows collected next; follows from `updates`
    updates: Int[Array, ""]

    @property
    def policy(self) -> Policy:
        """Parameters and ε."""
        return Policy(self.params, self.epsilon)


def of_action(outputs: Float[Array, "B A N"], action: Int[Array, " B"]) -> Float[Array, "B N"]:
    """What `outputs` say of each row's action."""
    # A one-hot sum, not a gather: its gradient is a product instead of a scatter, slow on CPU.
    chosen = jax.nn.one_hot(action, outputs.shape[1], dtype=outputs.dtype)
    return jnp.sum(chosen[..., None] * outputs, axis=1)


def bootstrap(
    next_outputs: Float[Array, "B A N"],
    next_values: Float[Array, "B A"],
    mask: Bool[Array, "B A"] | None,
) -> Float[Array, "B N"]:
    """The target network's outputs for the best allowed action by `next_values`; no gradient.

    These are the target network's own values, or, for double Q-learning, the other network's.
    """
    best = exploration.greedy(next_values, mask)
    return jax.lax.stop_gradient(of_action(next_outputs, best))


def td_error(
    q: Float[Array, " B"],
    reward: Float[Array, " B"],
    discount: Float[Array, " B"],
    next_value: Float[Array, " B"],
) -> Float[Array, " B"]:
    """R + discount · V' - Q, over the steps that `discount` covers; the gradient reaches Q only."""
    return jax.lax.stop_gradient(reward + discount * next_value) - q


def support(config: Config) -> Float[Array, " N"]:
    """The returns that C51's atoms stand for, evenly from `value_min` to `value_max`."""
    return jnp.linspace(config.value_min, config.value_max, config.num_atoms)


def project(
    reward: Float[Array, " B"],
    discount: Float[Array, " B"],
    next_probabilities: Float[Array, "B N"],
    atoms: Float[Array, " N"],
) -> Float[Array, "B N"]:
    """C51's algorithm 1: the distribution of R + discount · Z', on the same atoms.

    Each atom of Z' moves, is kept within the support, and gives its probability to the two atoms
    that it falls between, each in proportion to its nearness.
    """
    step = atoms[1] - atoms[0]
    moved = reward[:, None] + discount[:, None] * atoms[None]
    moved = jnp.clip(moved, atoms[0], atoms[-1])
    distance = jnp.abs(moved[:, None, :] - atoms[None, :, None]) / step  # [B, to, from]
    nearness = jnp.clip(1 - distance, 0.0, 1.0)
    return jnp.sum(nearness * next_probabilities[:, None, :], axis=-1)


def divergence(logits: Float[Array, "B N"], target: Float[Array, "B N"]) -> Float[Array, " B"]:
    """KL(target ‖ softmax(logits)): C51's cross-entropy, less what no gradient changes."""
    target = jax.lax.stop_gradient(target)
    log_target = jnp.log(jnp.maximum(target, 1e-30))  # 0 · log 0 is 0
    return jnp.sum(target * (log_target - jax.nn.log_softmax(logits)), axis=-1)


def decided(
    values: Float[Array, "*batch A"],
    mask: Bool[Array, "*batch A"] | None,
    epsilon: Scalar,
    key: PRNGKeyArray,
    *,
    greedy: bool,
) -> tuple[Array, dict[str, Array]]:
    """The best action, or one drawn ε-greedily, and all that can be said of the decision."""
    chosen_by = exploration.epsilon_greedy(values, 0.0 if greedy else epsilon, mask)
    action, extras = decide(chosen_by, key, greedy=greedy)
    best = exploration.greedy(values, mask)
    value = jnp.take_along_axis(values, best[..., None], axis=-1)[..., 0]
    return action, {**extras, "value": value, "action_values": values}


def validate(config: Config) -> None:
    """Raises ValueError, one sentence, for values that cannot work."""
    validation.replay(config)
    validation.positive(config, "learning_rate", "adam_epsilon", "max_grad_norm", "target_period")
    validation.positive(config, "target_rate", "exploration_fraction", "huber_threshold")
    validation.not_negative(config, "num_atoms", "priority_exponent")
    validation.fraction(config, "target_rate", "exploration_fraction", "final_epsilon")
    validation.fraction(config, "importance_exponent")
    validation.sizes(config, "hidden_sizes")
    if config.num_atoms == 1:
        raise ValueError("config.num_atoms must be 0, for expected values, or at least 2, not 1.")
    if config.num_atoms and not config.value_min < config.value_max:
        raise ValueError(
            f"config.value_min={config.value_min} must be less than "
            f"config.value_max={config.value_max}."
        )


def loop(config: Config) -> off_policy.Config:
    """How DQN is driven: a rollout, then some updates from replay."""
    replay = off_policy.Replay(
        config.replay_capacity,
        config.batch_size,
        config.discount,
        config.num_steps,
        config.prioritized,
        config.priority_exponent,
        config.importance_exponent,
    )
    return off_policy.Config(
        config.total_steps,
        config.num_envs,
        config.rollout_length,
        config.num_updates,
        config.learning_starts,
        replay,
    )


def make(config: Config, spec: EnvSpec) -> Agent:
    """Binds network and optimizer; every function it returns is pure.

    Raises ValueError for actions that are not one choice of several, or a torso that cannot look.
    """
    if not isinstance(spec.action, Discrete):
        raise ValueError(
            f"dqn chooses one of several actions, which {spec.name} does not take: "
            "use --agent=sac for a box of them, or --agent=ppo for any."
        )
    head = ActionValueHead(spec.action.num_actions, max(config.num_atoms, 1), config.dueling)
    torso = torsos.make(config.torso, spec, config.hidden_sizes, config.activation)
    network = nn.Sequential([torso, head])
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.scale_by_adam(eps=config.adam_epsilon),
    )
    drive = loop(config)
    total_updates = (drive.last_step // drive.rows - drive.first_learning) * drive.num_updates

    def init(key: PRNGKeyArray) -> TrainState:
        params = network.init(key, spec.example().features)
        return TrainState(
            params,
            jax.tree.map(jnp.copy, params),  # `update`'s state is donated: no two share a buffer
            optimizer.init(params),
            Schedules(jnp.float32(config.learning_rate), jnp.float32(config.final_epsilon)),
            jnp.float32(1.0),
            jnp.int32(0),
        )

    def initial_carry(batch: int) -> tuple[()]:
        del batch
        return ()

    def outputs_of(params: Any, features: Any) -> Float[Array, "*batch A N"]:
        return jnp.asarray(network.apply(params, features))

    def values_of(outputs: Float[Array, "*batch A N"]) -> Float[Array, "*batch A"]:
        if not config.num_atoms:
            return outputs[..., 0]
        return jax.nn.softmax(outputs) @ support(config)

    def act(
        policy: Policy, carry: tuple[()], observation: Observation, key: PRNGKeyArray, greedy: bool
    ) -> tuple[tuple[()], Array, dict[str, Array]]:
        mask = mask_of(observation)
        values = values_of(outputs_of(policy.params, observation.features))
        return carry, *decided(values, mask, policy.epsilon, key, greedy=greedy)

    def loss(params: Any, target: Any, batch: Sample) -> tuple[Array, tuple[Metrics, Array]]:
        """Weighted by importance over this device's rows; the mean over devices is that of all."""
        counted = (batch.weight > 0).astype(jnp.float32)
        share = 1 / jnp.maximum(jax.lax.pmean(jnp.sum(counted), AXIS), 1.0)
        next_observation = batch.next_observation
        next_outputs = outputs_of(target, next_observation.features)
        chooser = next_outputs
        if config.double:
            chooser = outputs_of(jax.lax.stop_gradient(params), next_observation.features)
        next_chosen = bootstrap(next_outputs, values_of(chooser), mask_of(next_observation))
        outputs = of_action(outputs_of(params, batch.observation.features), batch.action)
        if config.num_atoms:
            atoms = support(config)
            goal = project(batch.reward, batch.discount, jax.nn.softmax(next_chosen), atoms)
            error = divergence(outputs, goal)
            q, terms = jax.nn.softmax(outputs) @ atoms, error
        else:
            q = outputs[:, 0]
            error = td_error(q, batch.reward, batch.discount, next_chosen[:, 0])
            terms = losses.huber(error, config.huber_threshold)
        metrics = {
            "loss/q": jnp.sum(share * batch.weight * terms),
            "value/mean": jnp.sum(share * counted * q),
            "value/error": jnp.sum(share * counted * jnp.abs(error)),
        }
        return metrics["loss/q"], (metrics, jnp.abs(error))

    def update(state: TrainState, batch: Sample, key: PRNGKeyArray) -> tuple[TrainState, Metrics]:
        del key  # deterministic given the batch
        grads, (metrics, priority) = jax.grad(loss, has_aux=True)(state.params, state.target, batch)
        grads, metrics = jax.lax.pmean((grads, metrics), AXIS)
        steps, opt_state = optimizer.update(grads, state.opt_state)
        rate = state.schedules.learning_rate
        if config.anneal_learning_rate:
            rate *= jnp.maximum(1 - state.updates / total_updates, 0.0)
        params = optim.descended(state.params, steps, rate)
        updates = state.updates + 1
        target = jax.lax.cond(
            updates % config.target_period == 0,
            lambda: optax.incremental_update(params, state.target, config.target_rate),
            lambda: state.target,
        )
        epsilon = exploration.linear(
            _rows_collected(config, updates),
            1.0,
            state.schedules.final_epsilon,
            config.exploration_fraction * config.total_steps,
        )
        metrics |= {
            "loss/grad_norm": optax.tree.norm(grads),
            "policy/epsilon": epsilon,
            "policy/learning_rate": rate,
            PRIORITY: jax.lax.all_gather(priority, AXIS, tiled=True),
        }
        return TrainState(params, target, opt_state, state.schedules, epsilon, updates), metrics

    return Agent(spec, init, initial_carry, act, update)


def _rows_collected(config: Config, updates: Array) -> Float[Array, ""]:
    """Rows behind the policy after so many updates, 1 or more: what came before each rollout's."""
    drive = loop(config)
    return (drive.first_learning + updates / config.num_updates) * drive.rows
