"""What is shipped: a policy, where it came from, and what it must answer to golden inputs.

Read `Bundle`, then `policy_function`, the one function that is exported, served and checked. No
TensorFlow here. Axes: B batch, n actions or categories, A components of a box.

    signature         inputs                                              action
    serving_default   observation [B, ...], action_mask [B, n] if any     the most likely one
    sample            the same, and seed int32 [B]                        drawn

Where an observation has named parts, each is an input by its own name in place of `observation`;
frames are uint8, as the environment shows them. A row's draw depends on that row and its seed
alone, not on the rest of its batch. Outputs are `action` and every extra of `Agent.act`, each
`[B, ...]`.
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
from rljax.types import Box, Discrete, EnvSpec, MultiDiscrete, Observation, Part

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
        raise UsageError(
            "only feed-forward policies can be exported; this agent carries a state from one step "
            "to the next: train one without a memory, such as ppo."
        )
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

    def act(policy: Any, inputs: dict[str, Array], key: Array, *, greedy: bool) -> dict[str, Array]:
        observation = _observation(agent.spec, inputs)
        batch = inputs[agent.spec.parts[0].name].shape[0]
        _, action, extras = agent.act(policy, agent.initial_carry(batch), observation, key, greedy)
        if isinstance(action_spec, Box):
            low, high = jnp.asarray(action_spec.low), jnp.asarray(action_spec.high)
            action = jnp.clip(action, low[None], high[None])
        return {"action": action.astype(action_spec.dtype), **extras}

    def act_greedily(policy: Any, inputs: dict[str, Array]) -> dict[str, Array]:
        return act(policy, inputs, jax.random.key(0), greedy=True)  # the key goes unused

    def draw(policy: Any, inputs: dict[str, Array]) -> dict[str, Array]:
        def draw_row(row: dict[str, Array]) -> dict[str, Array]:
            row_of_one = jax.tree.map(lambda x: x[None], row)
            # Named, because a vmapped "rbg" generator would make rows depend on each other.
            key = jax.random.key(row["seed"], impl="threefry2x32")
            outputs = act(policy, row_of_one, key, greedy=False)
            return jax.tree.map(lambda x: x[0], outputs)

        return jax.vmap(draw_row)(inputs)

    return act_greedily if signature is Signature.SERVING_DEFAULT else draw


def input_specs(spec: EnvSpec, signature: Signature) -> dict[str, TensorSpec]:
    """Names, types and shapes of a signature's inputs, sorted by name.

    Raises:
        UsageError: the spec asks for a mask over a box, or has a part named as another input is.
    """
    specs = {name: TensorSpec(dtype, (-1, *shape)) for name, shape, dtype in spec.parts}
    for name in ("action_mask", "seed"):
        if name in specs:
            raise UsageError(f"{spec.name} has a part {name!r}, which is an input of its own")
    if spec.has_mask:
        specs["action_mask"] = TensorSpec("bool", (-1, sum(_choices(spec))))
    if signature is Signature.SAMPLE:
        specs["seed"] = TensorSpec("int32", (-1,))
    return dict(sorted(specs.items()))


def _observation(spec: EnvSpec, inputs: dict[str, Array]) -> Observation:
    features = {part.name: inputs[part.name] for part in spec.parts}
    whole = features if spec.named_parts else features["observation"]
    return Observation(whole, inputs.get("action_mask"))


def _parts(spec: EnvSpec, observations: Observation) -> dict[str, np.ndarray]:
    """The arrays of observations, by part."""
    features = observations.features
    if not spec.named_parts:
        features = {"observation": features}
    names = [part.name for part in spec.parts]
    if not isinstance(features, dict) or set(features) != set(names):
        raise UsageError(f"golden observations should be dicts of {', '.join(names)}")
    return {name: np.asarray(features[name]) for name in names}


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

    def draw(part: Part) -> np.ndarray:
        shape, dtype = (count, *part.shape), np.dtype(part.dtype)
        if np.issubdtype(dtype, np.floating):
            return rng.standard_normal(shape).astype(dtype)
        top = 2 if dtype == np.bool_ else min(255, np.iinfo(dtype).max) + 1
        return rng.integers(0, top, shape).astype(dtype)

    drawn = {part.name: draw(part) for part in spec.parts}
    return Observation(drawn if spec.named_parts else drawn["observation"])


def _with_extremes(spec: EnvSpec, observations: Observation) -> Observation:
    given, extremes = _parts(spec, observations), [_extremes(part.dtype) for part in spec.parts]
    count = max(map(len, extremes))
    features = {}
    for (name, shape, dtype), kinds in zip(spec.parts, extremes, strict=True):
        rows = given[name]
        if (rows.dtype, rows.shape[1:]) != (np.dtype(dtype), shape):
            raise UsageError(
                f"golden observations are {rows.dtype} {list(rows.shape)}; {spec.name} has "
                f"{dtype} [N, {', '.join(map(str, shape))}]"
            )
        extreme = [np.full(shape, kinds[i % len(kinds)], dtype) for i in range(count)]
        features[name] = np.concatenate([rows, np.stack(extreme)])
    whole = features if spec.named_parts else features["observation"]
    if not spec.has_mask:
        return Observation(whole)
    masks = _random_masks(spec, len(features[spec.parts[0].name]))
    if observations.mask is not None:
        masks[: len(observations.mask)] = observations.mask
    return Observation(whole, masks)


def _extremes(dtype: str) -> list[float]:
    if np.issubdtype(np.dtype(dtype), np.floating):
        return [0.0, LARGE, -LARGE]
    return [0, 1 if dtype == "bool" else np.iinfo(dtype).max]


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
    available = _parts(spec, observations)
    count = len(available[spec.parts[0].name])
    seeds = np.random.default_rng(2).integers(0, np.iinfo(np.int32).max, count, endpoint=True)
    available |= {"seed": seeds.astype(np.int32)}
    if observations.mask is not None:
        available["action_mask"] = np.asarray(observations.mask)
    return {name: available[name] for name in input_specs(spec, signature)}
