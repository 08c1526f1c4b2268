"""One update over a batch on any number of devices, and how two outcomes compare."""

import copy
import dataclasses
import functools

import jax
import numpy as np

from rljax import sharding
from rljax.replay.base import Sample
from rljax.sharding import TRAJECTORY_AXES, Parallel


@functools.cache  # so that an agent's update compiles once
def _compiled(update, devices, backend, batch_axes):
    return sharding.data_parallel(update, sharding.mesh(devices), backend, batch_axes)


def learn(agent, state, batch, key, *, devices=1, backend=Parallel.SHARD_MAP):
    """The state after one update, and its metrics as NumPy has them; the given state survives."""
    axes = 0 if isinstance(batch, Sample) else TRAJECTORY_AXES
    update = _compiled(agent.update, devices, backend, axes)
    state, metrics = update(sharding.replicate(state, sharding.mesh(devices)), batch, key)
    return sharding.local(state), jax.tree.map(np.asarray, sharding.local(metrics))


def same(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def differs(a, b) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(x.shape != y.shape or not np.array_equal(x, y) for x, y in leaves)


def quickly(function):
    """The function on one device of the axis of updates, compiled fast and not to run long."""
    mapped = jax.shard_map(
        function, mesh=sharding.mesh(1), in_specs=jax.P(), out_specs=jax.P(), check_vma=False
    )
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(mapped, compiler_options=options)


# What a field of a config is to an update says how much another value of it has to compile.
SIZES = {  # of networks: seen in the shapes of the parameters, so that nothing needs to run
    "actor_hidden_sizes", "attention_heads", "attention_window", "critic_hidden_sizes",
    "hidden_sizes", "memory", "memory_layers", "memory_size", "shared_torso", "torso",
}  # fmt: skip
STARTS = {  # where the state starts from, and nothing else: the program is the same
    "actor_learning_rate", "actor_penalty", "clip_ratio", "conservative_weight",
    "critic_learning_rate", "critic_penalty", "entropy_cost", "expectile", "initial_log_std",
    "initial_temperature", "inverse_temperature", "learning_rate", "log_std_multiplier",
    "log_std_offset", "policy_head_scale", "value_learning_rate", "value_weight",
}  # fmt: skip
NUMBERS = {  # of the update: inputs of a program that serves all their values
    "adam_epsilon", "c_bound", "discount", "gae_lambda", "huber_threshold", "max_grad_norm",
    "observation_clip", "optimizer_epsilon", "policy_period", "policy_rho_bound", "reward_clip",
    "rho_bound", "rmsprop_decay", "target_noise", "target_noise_clip", "target_period",
    "target_rate", "total_steps", "trace_lambda", "value_cost",
}  # fmt: skip


def changed_by(make, base, changes, spec, batch_of, prepared, updates=2):
    """The states that `updates` leave, without the changes and with them.

    Of sizes, the first states' shapes. `prepared` is what happens to a first state; the batches are
    `batch_of(spec, key)`, the same with and without the changes.
    """
    changed = dataclasses.replace(base, **changes)
    if changes.keys() <= SIZES:
        inits = [make(config, spec).init for config in (base, changed)]
        return [jax.eval_shape(init, jax.random.key(0)) for init in inits]
    program = base if changes.keys() <= STARTS | NUMBERS else changed
    pairs = ((base, base), (program, changed))
    return [_outcome(make, *pair, spec, batch_of, prepared, updates) for pair in pairs]


@functools.cache
def _outcome(make, program, config, spec, batch_of, prepared, updates):
    """The state after `updates` of the program's config, from where `config` starts."""
    key = jax.random.key(0)
    state = prepared(make(config, spec).init(key))
    numbers = {name: getattr(config, name) for name in sorted(NUMBERS) if hasattr(config, name)}
    for i in range(updates):
        step = jax.random.fold_in(key, i)
        state, _ = _program(make, program, spec)(numbers, state, batch_of(spec, step), step)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    return state


@functools.cache
def _program(make, config, spec):
    def update(numbers, state, batch, key):
        traced = copy.copy(config)
        for name, number in numbers.items():
            object.__setattr__(traced, name, number)  # frozen, and its own checks want a float
        return make(traced, spec).update(state, batch, key)

    return quickly(update)
