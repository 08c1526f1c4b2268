"""Learn from a dataset: many updates in one compiled call, each from rows drawn at random.

The rows lie on the device, every call scans `updates_per_call` updates over them, and Python only
comes back to report. A dataset that is larger than the device's memory is streamed: while a
call runs, the host reads the rows that the next one draws (from disk, if the dataset stays there:
`rljax.offline.mapped`); the draws, and so all that is learned, are the same.

Draws come from the seed and the number of the update, so that number is the cursor: a run that was
killed goes on, bit for bit, as if it had not been.
"""

import concurrent.futures
import dataclasses
import functools
import math
import operator
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Int

from rljax import device_rows, normalizers, sharding
from rljax.agent import Agent
from rljax.loops.on_policy import keys
from rljax.offline import dataset as datasets
from rljax.offline import outlook
from rljax.offline.dataset import Dataset
from rljax.offline.rewards import Change
from rljax.replay import memory, ring
from rljax.replay.base import Sample
from rljax.types import Box, Metrics, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """How many updates, of what; steps are updates."""

    total_updates: int
    batch_size: int  # rows of an update, drawn with replacement
    discount: float  # γ
    num_steps: int = 1  # n of n-step returns
    reward_multiplier: float = 1.0  # rewards are learned from as multiplier × reward + bias
    reward_bias: float = 0.0
    normalize_reward: bool = False  # its agent scales rewards, by what `init` finds
    top_fraction: float = 1.0  # learn from this share of the episodes only, of the highest return
    seed: int = 0
    parallel: sharding.Parallel = sharding.Parallel.SHARD_MAP
    num_devices: int = 0  # 0: all; each learns from its share of a batch
    streamed: bool | None = None  # rows stay on the host; None: where the device has no room
    updates_per_call: int = 1000
    cadences: tuple[int, ...] = ()  # in updates: calls end where a multiple of one is reached

    @property
    def change(self) -> Change:
        """Of rewards."""
        return Change(self.reward_multiplier, self.reward_bias)

    @property
    def rows(self) -> int:
        """Steps of one update."""
        return 1

    @property
    def last_step(self) -> int:
        """Where training ends."""
        return self.total_updates


def of(config: Any) -> Config:
    """How an agent is driven whose config has fields of these names."""
    known = {field.name for field in dataclasses.fields(Config)}
    named = {field.name for field in dataclasses.fields(config)} & known
    return Config(**{name: getattr(config, name) for name in named})


class State(NamedTuple):
    """All that a resume needs, besides the dataset."""

    train: Any


def check(dataset: Dataset, config: Config) -> None:
    """Raises ValueError where dataset, batches and devices do not fit together."""
    sharding.check_split("batch_size", config.batch_size, config.num_devices)
    if config.parallel is not sharding.Parallel.SHARD_MAP or jax.process_count() > 1:
        raise ValueError("learning from a dataset is for one process and --parallel=shard_map.")
    if config.updates_per_call < 1 or config.total_updates < 1:
        raise ValueError("total_updates and updates_per_call must be at least 1.")
    if len(dataset.rows.reward) >= 2**31:
        raise ValueError(
            f"{dataset.source} has {len(dataset.rows.reward):,} rows, more than the 2,147,483,647 "
            "that can be counted here: learn from a part of its episodes."
        )
    action = dataset.spec.action
    if isinstance(action, Box) and any(map(operator.eq, action.low, action.high)):
        fixed = list(map(operator.eq, action.low, action.high)).index(True)
        raise ValueError(
            f"{dataset.source or 'the dataset'} has actions that are {action.low[fixed]:g} in "
            f"dimension {fixed}, always, which leaves nothing to choose: leave it out of the data, "
            "or say with an --env what else it may be."
        )
    if isinstance(action, Box) and action.bounded:
        low, high = (np.array(x, np.float64) for x in (action.low, action.high))
        if (high - low > np.finfo(np.float32).max).any():
            raise ValueError(
                f"{dataset.source or 'the dataset'} has actions from {low.min():g} to "
                f"{high.max():g}, which networks cannot tell apart: scale them."
            )
    if any(0 in shape for _, shape, _ in dataset.spec.parts):
        raise ValueError(
            f"{dataset.source or 'the dataset'} has observations without a number: where nothing "
            "is seen, let them be a constant."
        )
    if () in [shape for _, shape, _ in dataset.spec.parts]:
        raise ValueError(
            f"{dataset.source or 'the dataset'} has observations that are lone numbers: vectors of "
            "one would be right."
        )
    if not dataset.num_steps:
        raise ValueError(f"{dataset.source or 'the dataset'} has no step to learn from.")
    config.change.check()
    if config.normalize_reward:
        _reward_scale(config.change.of_dataset(dataset))


def init(agent: Agent, dataset: Dataset, config: Config) -> State:
    """The state before the first update, with the dataset's statistics where the agent asks.

    Raises ValueError where it asks for those of anything but vectors.
    """
    train = jax.jit(agent.init)(keys(config.seed, -1)[0])
    if getattr(train, "reward_scale", None) is not None:
        changed = config.change.of_dataset(dataset)
        train = train._replace(reward_scale=jnp.float32(_reward_scale(changed)))
    if getattr(train, "observation", None) is None:
        return State(train)
    steps = datasets.steps(dataset, config.top_fraction)
    mean, variance = datasets.moments(dataset, steps)
    found = normalizers.Moments(
        jnp.float32(np.count_nonzero(steps)), jnp.asarray(mean), jnp.asarray(variance)
    )
    return State(train._replace(observation=found))


def _reward_scale(dataset: Dataset) -> float:
    """What makes returns span 1,000 (Kostrikov et al. 2021, app. B, and the authors' code)."""
    returns = dataset.returns()
    worst, best = float(np.min(returns)), float(np.max(returns))
    if worst == best:
        raise ValueError(
            f"all {len(returns):,} episodes of {dataset.source or 'the dataset'} earn {best:g}, so "
            "config.normalize_reward has no range to divide by: leave it off."
        )
    return 1_000 / (best - worst)


def run(
    agent: Agent, dataset: Dataset, state: State, config: Config, first_step: int
) -> Iterator[tuple[int, State, Metrics]]:
    """Trains from update `first_step` on; yields once a call, with the means over its updates.

    The arrays of a yielded state are donated to the next call: save or copy them before asking for
    it. Raises what `check` raises, at once; and where the dataset lacks what the agent `stores`.
    """
    check(dataset, config)
    mesh = sharding.mesh(config.num_devices)
    steps = datasets.steps(dataset, config.top_fraction)
    row_bytes = outlook.row_bytes(dataset.rows, agent.stores)
    if not _is_streamed(row_bytes * int(np.count_nonzero(steps)), config, mesh):
        whole = config.top_fraction == 1  # which is no copy
        chosen = dataset if whole else datasets.top(dataset, config.top_fraction)
        chosen = outlook.add(config.change.of_dataset(chosen), agent.stores, config.discount)
        advance = _in_memory(agent, chosen, config, mesh)
        return _calls(advance, state, config, mesh, first_step)
    config = dataclasses.replace(config, updates_per_call=_streamable(row_bytes, config, mesh))
    reader = concurrent.futures.ThreadPoolExecutor(1, "rows")
    read_on = set(agent.stores) & set(outlook.OF_NEXT_ROW)  # with each row, not of all at once
    others = [name for name in agent.stores if name not in read_on]
    dataset = outlook.add(config.change.of_dataset(dataset), others, config.discount)
    source = _Streamed(dataset.rows, np.flatnonzero(steps).astype(np.int32), tuple(read_on))
    advance = _streamed(agent, source, config, mesh, reader)
    return _calls(advance, state, config, mesh, first_step, reader)


class DivergedError(ValueError):
    """What was measured of learning is not finite."""


def learned(agent: Agent, dataset: Dataset, state: State, config: Config) -> State:
    """The state behind the last update.

    Raises what `run` raises, and DivergedError where a loss or another measure is not finite.
    """
    for step, reached, metrics in run(agent, dataset, state, config, 0):
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise DivergedError(
                    f"{name} is {float(value)} within {step:,} updates: rewards or states of "
                    f"{dataset.source or 'the dataset'} may be too large for a network."
                )
        state = reached
    return state


def draw(
    num_steps: int, seed: int | Array, number: Array, batch_size: int
) -> tuple[Int[Array, " B"], Array]:
    """Which of the dataset's steps update `number` learns from, and the key to learn with."""
    sample_key, learn_key = keys(seed, number)
    return jax.random.randint(sample_key, (batch_size,), 0, num_steps), learn_key


Advance = Callable[[Any, int, int], tuple[Any, Metrics]]  # train, first, stop -> train, means


def _in_memory(agent: Agent, dataset: Dataset, config: Config, mesh: Mesh) -> Advance:
    """Everything in one program, with the rows of the dataset on every device."""

    def many(train: Any, data: tuple[ring.Ring, Array], bounds: Array) -> tuple[Any, Metrics]:
        first, stop, seed = bounds
        rows, valid = data

        def update(number: Array, train: Any) -> tuple[Any, Metrics]:
            step, key = draw(valid.shape[0], seed, number, config.batch_size)
            index = device_rows.mine(valid[step])
            weight = jnp.ones(index.shape, jnp.float32)
            sample = ring.take(rows, index, weight, config.num_steps, config.discount)
            return agent.update(train, sample, key)

        return _loop(update, train, first, stop)

    compiled = _mapped(many, mesh)
    valid = np.flatnonzero(dataset.rows.valid).astype(np.int32)
    data = sharding.replicate((ring.full(dataset.rows), valid), mesh)

    def advance(train: Any, first: int, stop: int) -> tuple[Any, Metrics]:
        return compiled(train, data, np.array([first, stop, config.seed], np.int32))

    return advance


class _Streamed(NamedTuple):
    """What stays on the host."""

    rows: Transition  # [N, ...]
    steps: np.ndarray  # int32: the numbers of the rows that are drawn from
    columns: tuple[str, ...]  # of `outlook.OF_NEXT_ROW`: told by the rows that are read


def _streamed(
    agent: Agent,
    source: _Streamed,
    config: Config,
    mesh: Mesh,
    reader: concurrent.futures.Executor,
) -> Advance:
    """Rows are read on the host; a call takes along those that it needs, `[K, B, ...]`."""

    def many(train: Any, data: tuple[Sample, Array], count: Array) -> tuple[Any, Metrics]:
        samples, learn_keys = data

        def update(number: Array, train: Any) -> tuple[Any, Metrics]:
            sample = jax.tree.map(lambda x: device_rows.mine(x[number]), samples)
            return agent.update(train, sample, learn_keys[number])

        return _loop(update, train, jnp.zeros_like(count), count)

    compiled = _mapped(many, mesh)
    valid, on_host = source.steps, ring.full(source.rows).rows
    numbers = jnp.arange(min((config.updates_per_call, *config.cadences)))  # no call is longer
    draws = jax.jit(
        jax.vmap(lambda number: draw(len(valid), config.seed, number, config.batch_size))
    )
    gather = jax.jit(functools.partial(_gather, config=config))
    ahead: dict[int, tuple[Array, concurrent.futures.Future[_Few]]] = {}

    def read(first: int) -> tuple[Array, concurrent.futures.Future[_Few]]:
        step, learn_keys = draws(first + numbers)
        index = valid[np.asarray(step)]
        return learn_keys, reader.submit(_read, on_host, index, config.num_steps, source.columns)

    def advance(train: Any, first: int, stop: int) -> tuple[Any, Metrics]:
        learn_keys, few = ahead.pop(first, None) or read(first)
        if stop < config.last_step:
            ahead[stop] = read(stop)  # drawn before the call: with more in flight, see `_calls`
        samples = gather(few.result())
        data = sharding.replicate((samples, learn_keys), mesh)
        return compiled(train, data, np.int32(stop - first))

    return advance


class _Few(NamedTuple):
    """Rows that are needed, of many."""

    rows: Transition  # [M, 1, ...]
    place: np.ndarray  # [K, B]: where among them each drawn row is
    index: np.ndarray  # [K, B]: and where it is among all


def _read(
    rows: Transition, index: np.ndarray, num_steps: int, columns: tuple[str, ...] = ()
) -> _Few:
    """The rows of `[N, 1, ...]` that were drawn, with their successors, in the order of the file.

    As many as there could be, the last one repeated: programs are compiled for a number of rows.
    With these columns of `outlook.OF_NEXT_ROW`: a step's next row is a successor, so it is there.
    """
    reach = index.reshape(-1, 1) + np.arange(num_steps + 1)[None]
    reach = np.minimum(reach, len(rows.reward) - 1)
    needed, inverse = np.unique(reach, return_inverse=True)
    needed = np.pad(needed, (0, reach.size - needed.size), mode="edge")
    some = jax.tree.map(lambda x: x[needed], rows)
    some = some._replace(extras={**some.extras, **outlook.of_next_row(some, columns)})
    return _Few(some, inverse.reshape(reach.shape)[:, 0].reshape(index.shape), index)


def _gather(few: _Few, config: Config) -> Sample:
    """`ring.take` of a few rows: the same numbers from the same draws, `[K, B, ...]`."""
    shape, flat = few.place.shape, jnp.asarray(few.place).reshape(-1)
    taken = ring.take(
        ring.Ring(few.rows, jnp.int32(0), jnp.int32(len(few.rows.reward))),
        flat,
        jnp.ones(flat.shape, jnp.float32),
        config.num_steps,
        config.discount,
    )
    taken = taken._replace(index=jnp.asarray(few.index).reshape(-1))
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), taken)


def _calls(
    advance: Advance,
    state: State,
    config: Config,
    mesh: Mesh,
    first_step: int,
    reader: concurrent.futures.Executor | None = None,
) -> Iterator[tuple[int, State, Metrics]]:
    try:
        yield from _advances(advance, state, config, mesh, first_step)
    finally:
        if reader is not None:  # whoever stops does not wait for what would come next
            reader.shutdown(wait=False, cancel_futures=True)


def _advances(
    advance: Advance, state: State, config: Config, mesh: Mesh, first_step: int
) -> Iterator[tuple[int, State, Metrics]]:
    number, train = first_step, sharding.replicate(state.train, mesh)
    while number < config.last_step:
        due = [(number // every + 1) * every for every in (*config.cadences, config.last_step)]
        stop = min(number + config.updates_per_call, *due)
        start = time.perf_counter()
        train, metrics = advance(train, number, stop)
        # Once a call: with more in flight, emulated devices may deadlock.
        metrics = jax.device_get(sharding.local(metrics))
        metrics["time/updates_per_second"] = (stop - number) / (time.perf_counter() - start)
        number = stop
        yield number, State(train), metrics


def _loop(
    update: Callable[[Array, Any], tuple[Any, Metrics]], train: Any, first: Array, stop: Array
) -> tuple[Any, Metrics]:
    """Updates `first` to `stop - 1`, and the means of what they report."""
    shapes = jax.eval_shape(update, first, train)[1]
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)

    def body(number: Array, carry: tuple[Any, Metrics]) -> tuple[Any, Metrics]:
        train, metrics = update(number, carry[0])
        return train, jax.tree.map(jnp.add, carry[1], metrics)

    train, total = jax.lax.fori_loop(first, stop, body, (train, nothing))
    return train, jax.tree.map(lambda x: x / (stop - first), total)


def _mapped(many: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    whole = PartitionSpec()
    return jax.jit(
        jax.shard_map(many, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False),
        donate_argnums=0,
    )


def _is_streamed(needed: float, config: Config, mesh: Mesh) -> bool:
    if config.streamed is not None:
        return config.streamed
    free = memory.available(mesh.devices.flat[0])
    return free is not None and needed > free // 2  # parameters and batches need some, too


def _streamable(row_bytes: float, config: Config, mesh: Mesh) -> int:
    """Updates of a call whose rows fit into an eighth of the device's memory; one at least."""
    free = memory.available(mesh.devices.flat[0])
    if free is None:
        return config.updates_per_call
    # What was read, with n successors, and both ends of the samples that are made of it.
    needed = row_bytes * config.batch_size * (config.num_steps + 3)
    return int(max(1, min(config.updates_per_call, free / 8 // needed)))
