"""Conservative Q-learning for one of several actions: DQN plus the gap, CQL(H).

Kumar et al. 2020, arXiv:2006.04779, eq. 4: Q of actions that the data do not show is pushed down
until it stands out no more than the data allow. Read `Config`, then `conservative_gap`, then `loss`
inside `make`. With `support_threshold`, a model of the behavior is learned beside it, and actions
that it finds too rare are neither chosen nor bootstrapped from (Fujimoto et al. 2019,
arXiv:1910.01708). Forbidden actions are in no sum. Axes: B rows of a sample, A actions.

With `calibrated`, Cal-QL (Nakamoto et al. 2023, arXiv:2303.05479): in the sum no value counts for
less than the return to go of the state. Their paper has draws of the policy there; here the sum is
over all actions, each of which is one that the policy may choose.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from agents.dqn import bootstrap, decided, of_action, td_error
from rljax import distributions, losses, normalizers, optim, validation
from rljax.agent import Agent
from rljax.loops import offline
from rljax.nn import torsos
from rljax.nn.heads import ActionValueHead, LinearHead
from rljax.nn.mlp import Activation
from rljax.nn.policies import mask_of
from rljax.nn.torsos import Torso
from rljax.offline import rows, support
from rljax.offline.outlook import RETURN_TO_GO
from rljax.reductions import share_of_rows
from rljax.replay.base import Sample
from rljax.types import Discrete, EnvSpec, Metrics, Observation

_HEAD_GAIN = 0.01  # of the behavior model's last layer: its first choices are near uniform


@dataclasses.dataclass(frozen=True)
class Config:
    """Every hyper-parameter of discrete CQL; each field is a flag `--config.<field>`."""

    total_updates: int = 1_000_000
    batch_size: int = 256  # B: rows of one update; a multiple of the number of devices
    learning_rate: float = 1e-4  # of Adam
    adam_epsilon: float = 1e-8  # ε of Adam, added to √v̂ (Kingma & Ba 2015, algorithm 1)
    max_grad_norm: float = 10.0  # L2, over all parameters; longer gradients are scaled down
    discount: float = 0.99  # γ, in [0, 1]
    num_steps: int = 1  # n of n-step returns
    conservative_weight: float = 1.0  # α of eq. 4, of the gap beside the TD loss; 0 is DQN
    calibrated: bool = False  # Cal-QL: in the gap's sum values are at least the return to go
    double: bool = True  # the network chooses the action to bootstrap from, the target values it
    dueling: bool = False  # Q as V plus advantages of mean 0
    target_period: int = 1_000  # updates between two moves of the target network
    target_rate: float = 1.0  # τ: how far it moves towards the network; 1 copies it
    huber_threshold: float = 1.0  # TD errors beyond it count linearly
    support_threshold: float = 0.0  # actions below this × the behavior's likeliest are never chosen
    epsilon: float = 0.05  # share of random actions where the choice is not greedy
    reward_multiplier: float = 1.0  # rewards are learned from as multiplier × reward + bias
    reward_bias: float = 0.0
    normalize_observation: bool = False  # vectors, by the moments of the dataset
    observation_clip: float = 10.0  # in deviations, to ± this; with normalize_observation only
    torso: Torso = Torso.AUTO  # what looks at the observation
    hidden_sizes: tuple[int, ...] = (256, 256)  # of the MLP that looks at vectors
    activation: Activation = Activation.RELU  # behind its layers


class Params(NamedTuple):
    """What is learned."""

    q: Any
    behavior: Any  # None without support_threshold


class Policy(NamedTuple):
    """What acting needs."""

    params: Params
    epsilon: Float[Array, ""]  # share of random actions where the choice is not greedy
    observation: normalizers.Moments | None


class Schedules(NamedTuple):
    """Hyper-parameters that a population may vary: in the state, so that nothing recompiles."""

    learning_rate: Float[Array, ""]
    conservative_weight: Float[Array, ""]
    epsilon: Float[Array, ""]


class TrainState(NamedTuple):
    """Everything that a resume needs."""

    params: Params
    target: Any  # parameters of the target network
    opt_state: optax.OptState
    observation: normalizers.Moments | None  # of the dataset; the loop fills them in
    schedules: Schedules
    updates: Int[Array, ""]

    @property
    def policy(self) -> Policy:
        """Parameters, ε and frozen statistics."""
        return Policy(self.params, self.schedules.epsilon, self.observation)


def conservative_gap(
    q: Float[Array, "B A"],
    action: Int[Array, " B"],
    mask: Bool[Array, "B A"] | None,
    return_to_go: Float[Array, " B"] | None = None,
) -> Float[Array, " B"]:
    """The gap log Σ exp Q(s, ·) - Q(s, a) of eq. 4: the sum is over allowed actions.

    With returns to go, the sum is over max(Q(s, ·), return to go): values below it are pushed down
    no further (Cal-QL, §5).
    """
    possible = q if return_to_go is None else jnp.maximum(q, return_to_go[:, None])
    if mask is not None:
        possible = jnp.where(mask | ~jnp.any(mask, axis=-1, keepdims=True), possible, -jnp.inf)
    return jax.nn.logsumexp(possible, axis=-1) - of_action(q[..., None], action)[:, 0]


def validate(config: Config) -> None:
    """Raises ValueError, one sentence, for values that cannot work."""
    validation.positive(config, "total_updates", "batch_size", "num_steps", "learning_rate")
    validation.positive(config, "adam_epsilon", "max_grad_norm", "target_period", "target_rate")
    validation.positive(config, "huber_threshold", "observation_clip")
    validation.not_negative(config, "conservative_weight")
    validation.fraction(config, "discount", "target_rate", "support_threshold", "epsilon")
    validation.sizes(config, "hidden_sizes")
    offline.of(config).change.check()


def loop(config: Config) -> offline.Config:
    """How discrete CQL is driven: batches of the dataset."""
    return offline.of(config)


def make(config: Config, spec: EnvSpec) -> Agent:
    """Binds networks and optimizer; every function it returns is pure.

    Raises ValueError for actions that are not one choice of several, for a torso that cannot look
    at what the environment shows, and for the normalization of nothing but pixels.
    """
    if not isinstance(spec.action, Discrete):
        raise ValueError(
            f"cql_discrete chooses one of several actions, which {spec.name} does not take: "
            "use --agent=cql for a box of them, or --agent=bc for any."
        )
    size = spec.action.num_actions
    torso = torsos.make(config.torso, spec, config.hidden_sizes, config.activation)
    network = nn.Sequential([torso, ActionValueHead(size, 1, config.dueling)])
    imitator = nn.Sequential([torso.copy(), LinearHead(size, _HEAD_GAIN)])
    unknown = normalizers.init_observation(spec) if config.normalize_observation else None
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.scale_by_adam(eps=config.adam_epsilon),
    )

    def init(key: PRNGKeyArray) -> TrainState:
        key, behavior_key = jax.random.split(key)
        example = spec.example().features
        behavior = imitator.init(behavior_key, example) if config.support_threshold else None
        params = Params(network.init(key, example), behavior)
        schedules = [getattr(config, name) for name in Schedules._fields]
        return TrainState(
            params,
            jax.tree.map(jnp.copy, params.q),  # `update`'s state is donated: no two share a buffer
            optimizer.init(params),
            unknown,
            Schedules(*map(jnp.float32, schedules)),
            jnp.int32(0),
        )

    def initial_carry(batch: int) -> tuple[()]:
        del batch
        return ()

    def values_of(params: Any, observation: Observation) -> Float[Array, "*batch A"]:
        return jnp.asarray(network.apply(params, observation.features))[..., 0]

    def behavior_of(params: Any, observation: Observation) -> distributions.Categorical:
        logits = jnp.asarray(imitator.apply(params, observation.features))
        return distributions.categorical(logits, mask_of(observation))

    def choices(params: Params, observation: Observation) -> Bool[Array, "*batch A"] | None:
        """The actions that may be chosen: allowed, and common enough in the data."""
        mask = mask_of(observation)
        if not config.support_threshold:
            return mask
        behavior = behavior_of(jax.lax.stop_gradient(params.behavior), observation)
        return support.supported(behavior, config.support_threshold, mask)

    def act(
        policy: Policy, carry: tuple[()], observation: Observation, key: PRNGKeyArray, greedy: bool
    ) -> tuple[tuple[()], Array, dict[str, Array]]:
        observation = rows.normalized(observation, policy.observation, config.observation_clip)
        values, mask = values_of(policy.params.q, observation), choices(policy.params, observation)
        return carry, *decided(values, mask, policy.epsilon, key, greedy=greedy)

    def loss(params: Params, state: TrainState, batch: Sample) -> tuple[Array, Metrics]:
        """Over this device's rows; the mean over devices is that of all rows."""
        share = share_of_rows(batch.weight)
        ahead = values_of(state.target, batch.next_observation)
        chooser = ahead
        if config.double:
            chooser = values_of(jax.lax.stop_gradient(params.q), batch.next_observation)
        possible = choices(params, batch.next_observation)
        next_value = bootstrap(ahead[..., None], chooser, possible)[:, 0]
        values = values_of(params.q, batch.observation)
        q = of_action(values[..., None], batch.action)[:, 0]
        error = td_error(q, batch.reward, batch.discount, next_value)
        bound = batch.extras[RETURN_TO_GO] if config.calibrated else None
        mask = mask_of(batch.observation)
        terms = {
            "loss/q": losses.huber(error, config.huber_threshold),
            "loss/conservative": conservative_gap(values, batch.action, mask, bound),
            "value/mean": q,
            "value/error": jnp.abs(error),
        }
        if config.support_threshold:
            behavior = behavior_of(params.behavior, batch.observation)
            terms["loss/behavior"] = -behavior.log_prob(batch.action)
        means = {name: jnp.sum(share * term) for name, term in terms.items()}
        total = means["loss/q"] + state.schedules.conservative_weight * means["loss/conservative"]
        return total + means.get("loss/behavior", 0.0), means

    def update(state: TrainState, batch: Sample, key: PRNGKeyArray) -> tuple[TrainState, Metrics]:
        del key  # deterministic given the batch
        batch = rows.normalized_sample(batch, state.observation, config.observation_clip)
        (params, opt_state), metrics, grads = optim.gradient_step(
            lambda params: loss(params, state, batch),
            (state.params, state.opt_state),
            optimizer,
            state.schedules.learning_rate,
        )
        updates = state.updates + 1
        target = jax.lax.cond(
            updates % config.target_period == 0,
            lambda: optax.incremental_update(params.q, state.target, config.target_rate),
            lambda: state.target,
        )
        metrics["loss/grad_norm"] = optax.tree.norm(grads)
        state = TrainState(params, target, opt_state, state.observation, state.schedules, updates)
        return state, metrics

    stores = (RETURN_TO_GO,) if config.calibrated else ()
    return Agent(spec, init, initial_carry, act, update, stores)
