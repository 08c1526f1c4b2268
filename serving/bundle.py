"""What is shipped: a policy, where it came from, and what it must answer to golden inputs.

Read `Bundle`, then `policy_function`, the one function that is exported, served and checked. No
TensorFlow here. Axes: B batch, n actions or categories, A components of a box.

    signature         inputs                                              action
    serving_default   observation [B, ...], action_mask [B, n] if any     the most likely one
    sample            the same, and seed int32 [B]                        drawn

A row's draw depends on that row and its seed alone, not on the rest of its batch. Outputs are
`action` and every extra of `Agent.act`, each `[B, ...]`.
"""

import dataclasses
import enum
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rljax.agent import Agent
from rljax.config import UsageError
from rljax.types import Box, Discrete, EnvSpec, MultiDiscrete, Observation

EXTRA = pathlib.Path("assets.extra", "rljax")  # within a version directory: what is ours
WARMUP = pathlib.Path("assets.extra", "tf_serving_warmup_requests")
LARGE = 1e3  # magnitude of the extreme golden observations
PolicyFunction = Callable[[Any, dict[str, Array]], dict[str, Array]]


class Signature(enum.Enum):
    """The ways of asking a policy; values are the names on the wire."""

    SERVING_DEFAULT = "serving_default"
    SAMPLE = "sample"

    @property
    def blob(self) -> str:
        """Name of the file of its StableHLO."""
        return f"{self.value}.jaxexport"


class TensorSpec(NamedTuple):
    """Type and shape of an input or output; the first axis, of any size, is written -1."""

    dtype: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where a policy came from."""

    workdir: str
    step: int  # training steps behind it
    code_version: str | None  # git commit, or None outside a checkout
    agent: str
    env: str
    config_hash: str


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A policy with everything needed to export, check and rebuild it; made by `make`."""

    agent: Agent
    policy: Any  # pytree of NumPy arrays
    config: Any  # the agent's frozen dataclass
    provenance: Provenance
    golden: dict[str, np.ndarray]  # "<signature>/input/<name>", ".../output/<name>": [N, ...]

    @property
    def agent_name(self) -> str:
        """Name in the registry, by which the agent can be made again."""
        return self.provenance.agent

    @property
    def spec(self) -> EnvSpec:
        """What the policy sees and does."""
        return self.agent.spec


def make(
    agent: Agent,
    policy: Any,
    config: Any,
    provenance: Provenance,
    *,
    golden_observations: Observation | None = None,
    num_golden: int = 16,
) -> Bundle:
    """Brings the policy to the host and computes its golden outputs, on the CPU.

    Args:
        agent: feed-forward agent the policy belongs to.
        policy: `state.policy` of a trained state.
        config: the agent's frozen dataclass.
        provenance: where the policy came from.
        golden_observations: real observations `[N, ...]` to check with; by default `num_golden`
            seeded random ones. Zeros and large values are always added.
        num_golden: number of random golden observations.

    Raises:
        UsageError: the agent is recurrent, a leaf cannot be stored, or golden outputs hold NaN.
    """
    if jax.tree.leaves(agent.initial_carry(1)):
        raise UsageError("only feed-forward policies can be exported; this agent carries a state")
    policy = jax.tree_util.tree_map_with_path(_host_leaf, policy)
    if golden_observations is None:
        golden_observations = _random_observations(agent.spec, num_golden)
    observations = _with_extremes(agent.spec, golden_observations)
    golden = {}
    # Accelerators multiply matrices with fewer bits; the export is checked on the CPU.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        for signature in Signature:
            inputs = _golden_inputs(agent.spec, signature, observations)
            outputs = jax.jit(policy_function(agent, signature))(policy, inputs)
            golden |= {f"{signature.value}/input/{name}": x for name, x in inputs.items()}
            golden |= {f"{signature.value}/output/{k}": np.asarray(x) for k, x in outputs.items()}
    bad = [name for name, x in golden.items() if np.issubdtype(x.dtype, np.floating)
           and np.isnan(x).any()]  # fmt: skip
    if bad:
        raise UsageError(f"the policy's outputs are NaN on golden inputs: {', '.join(bad)}")
    return Bundle(agent, policy, config, provenance, golden)


def policy_function(agent: Agent, signature: Signature) -> PolicyFunction:
    """The pure function `f(policy, inputs) -> outputs` of a signature, of any batch size.

    A box action is clipped to the spec's bounds, as it is at the border of an environment;
    `log_prob` stays that of the action as drawn.
    """
    action_spec = agent.spec.action

    def act(policy: Any, observation: Observation, key: Array, *, greedy: bool) -> dict[str, Array]:
        batch = observation.features.shape[0]
        _, action, extras = agent.act(policy, agent.initial_carry(batch), observation, key, greedy)
        if isinstance(action_spec, Box):
            low, high = jnp.asarray(action_spec.low), jnp.asarray(action_spec.high)
            action = jnp.clip(action, low[None], high[None])
        return {"action": action.astype(action_spec.dtype), **extras}

    def act_greedily(policy: Any, inputs: dict[str, Array]) -> dict[str, Array]:
        observation = Observation(inputs["observation"], inputs.get("action_mask"))
        return act(policy, observation, jax.random.key(0), greedy=True)  # the key goes unused

    def draw(policy: Any, inputs: dict[str, Array]) -> dict[str, Array]:
        def draw_row(row: dict[str, Array]) -> dict[str, Array]:
            row_of_one = jax.tree.map(lambda x: x[None], row)
            observation = Observation(row_of_one["observation"], row_of_one.get("action_mask"))
            # Named, because a vmapped "rbg" generator would make rows depend on each other.
            key = jax.random.key(row["seed"], impl="threefry2x32")
            outputs = act(policy, observation, key, greedy=False)
            return jax.tree.map(lambda x: x[0], outputs)

        return jax.vmap(draw_row)(inputs)

    return act_greedily if signature is Signature.SERVING_DEFAULT else draw


def input_specs(spec: EnvSpec, signature: Signature) -> dict[str, TensorSpec]:
    """Names, types and shapes of a signature's inputs, sorted by name.

    Raises:
        UsageError: the spec asks for a mask over a box.
    """
    specs = {}
    if spec.has_mask:
        specs["action_mask"] = TensorSpec("bool", (-1, sum(_choices(spec))))
    specs["observation"] = TensorSpec(spec.observation_dtype, (-1, *spec.observation_shape))
    if signature is Signature.SAMPLE:
        specs["seed"] = TensorSpec("int32", (-1,))
    return specs


def _host_leaf(path: Any, leaf: Any) -> np.ndarray:
    if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
        raise UsageError(f"policy{jax.tree_util.keystr(path)} is a random key, not a parameter")
    leaf = np.asarray(jnp.asarray(leaf))
    if leaf.dtype.kind not in "biufc":  # bfloat16 and its kin read back from .npz as raw bytes
        name = f"policy{jax.tree_util.keystr(path)}"
        raise UsageError(f"{name} is {leaf.dtype}, which .npz cannot hold: cast it to float32")
    return leaf


def _random_observations(spec: EnvSpec, count: int) -> Observation:
    rng = np.random.default_rng(0)
    shape = (count, *spec.observation_shape)
    dtype = np.dtype(spec.observation_dtype)
    if np.issubdtype(dtype, np.floating):
        return Observation(rng.standard_normal(shape).astype(dtype))
    top = 2 if dtype == np.bool_ else min(255, np.iinfo(dtype).max) + 1
    return Observation(rng.integers(0, top, shape).astype(dtype))


def _with_extremes(spec: EnvSpec, observations: Observation) -> Observation:
    features = np.asarray(observations.features)
    expected = TensorSpec(spec.observation_dtype, spec.observation_shape)
    if (features.dtype, features.shape[1:]) != (np.dtype(expected.dtype), expected.shape):
        raise UsageError(
            f"golden observations are {features.dtype} {list(features.shape)}; {spec.name} has "
            f"{expected.dtype} [N, {', '.join(map(str, expected.shape))}]"
        )
    kinds = [0.0, LARGE, -LARGE]
    if not np.issubdtype(features.dtype, np.floating):
        kinds = [0, 1 if features.dtype == np.bool_ else np.iinfo(features.dtype).max]
    extremes = np.stack([np.full(spec.observation_shape, x, features.dtype) for x in kinds])
    features = np.concatenate([features, extremes])
    if not spec.has_mask:
        return Observation(features)
    masks = _random_masks(spec, len(features))
    if observations.mask is not None:
        masks[: len(observations.mask)] = observations.mask
    return Observation(features, masks)


def _choices(spec: EnvSpec) -> tuple[int, ...]:
    """Number of choices of each component of a masked action."""
    match spec.action:
        case Discrete(num_actions):
            return (num_actions,)
        case MultiDiscrete(nvec):
            return nvec
        case Box():
            raise UsageError(f"{spec.name} masks a box of actions; only discrete ones have masks")


def _random_masks(spec: EnvSpec, count: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    parts = []
    for size in _choices(spec):
        part = rng.random((count, size)) < 0.5
        part[np.arange(count), rng.integers(0, size, count)] = True  # never nothing to choose from
        parts.append(part)
    return np.concatenate(parts, axis=1)


def _golden_inputs(
    spec: EnvSpec, signature: Signature, observations: Observation
) -> dict[str, np.ndarray]:
    count = len(observations.features)
    seeds = np.random.default_rng(2).integers(0, np.iinfo(np.int32).max, count, endpoint=True)
    available = {
        "action_mask": observations.mask,
        "observation": observations.features,
        "seed": seeds.astype(np.int32),
    }
    return {name: np.asarray(available[name]) for name in input_specs(spec, signature)}
