import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import sharding
from rljax.agent import AXIS
from rljax.sharding import Parallel
from rljax.types import Observation, Trajectory, Transition

BACKENDS = list(Parallel)


def sgd(state, batch, key):
    """A regression step with momentum and noise, whose shards meet in pmean."""

    def loss(w):
        return jnp.mean((batch["x"] @ w - batch["y"]) ** 2)

    value, grads = jax.value_and_grad(loss)(state["w"])
    value, grads = jax.lax.pmean((value, grads), AXIS)
    velocity = 0.9 * state["velocity"] - 0.1 * grads
    noise = 1e-3 * jax.random.normal(key, state["w"].shape)
    new = {"w": state["w"] + velocity + noise, "velocity": velocity}
    return state | new | {"count": state["count"] + 1}, {"loss": value}


def initial():
    w = jnp.array([1.0, -2.0])
    return {"w": w, "velocity": jnp.zeros(2), "none": None, "count": jnp.int32(0)}


def run(backend, devices, calls=4):
    """State after some consecutive calls, and the losses on the way."""
    mesh = sharding.mesh(devices)
    step = sharding.data_parallel(sgd, mesh, backend, batch_axes=0)
    state = sharding.replicate(initial(), mesh)
    rng = np.random.default_rng(0)
    losses = []
    for i in range(calls):
        batch = {"x": rng.normal(size=(8, 2)), "y": rng.normal(size=8)}
        batch = jax.tree.map(np.float32, batch)
        state, metrics = step(state, batch, jax.random.key(i))
        losses.append(float(metrics["loss"]))
    return sharding.local(state), losses


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_and_devices_agree(backend, devices):
    state, losses = run(backend, devices)
    # by hand, without any device
    expected, rng = initial(), np.random.default_rng(0)
    for i in range(4):
        x, y = (jnp.asarray(a, jnp.float32) for a in (rng.normal(size=(8, 2)), rng.normal(size=8)))
        error = x @ expected["w"] - y
        np.testing.assert_allclose(losses[i], jnp.mean(error**2), rtol=1e-5)
        velocity = 0.9 * expected["velocity"] - 0.1 * 2 * x.T @ error / 8
        noise = 1e-3 * jax.random.normal(jax.random.key(i), (2,))
        expected = {"w": expected["w"] + velocity + noise, "velocity": velocity}
    np.testing.assert_allclose(state["w"], expected["w"], rtol=1e-5)
    np.testing.assert_allclose(state["velocity"], expected["velocity"], rtol=1e-5)
    assert state["count"] == 4
    assert state["none"] is None
    assert state["w"].devices() == {jax.devices()[0]}
    assert state["w"].shape == (2,)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_batch_is_split_in_order_and_the_state_is_not(backend):
    def gather(state, batch, key):
        return state, {"sums": jax.lax.all_gather(batch.sum(), AXIS), "state": state}

    mesh = sharding.mesh(2)
    step = sharding.data_parallel(gather, mesh, backend, batch_axes=0)
    _, metrics = step(sharding.replicate(jnp.arange(3.0), mesh), np.arange(4.0), jax.random.key(0))
    np.testing.assert_array_equal(metrics["sums"], [0.0 + 1.0, 2.0 + 3.0])
    np.testing.assert_array_equal(metrics["state"], [0.0, 1.0, 2.0])


def trajectory(length, envs):
    """Every reward is 100·t + b; the last observation is b."""
    reward = 100.0 * np.arange(length)[:, None] + np.arange(envs)
    rows = Transition(
        Observation(np.zeros((length, envs, 3), np.float32)),
        np.zeros((length, envs), np.int32),
        reward.astype(np.float32),
        np.ones((length, envs), np.float32),
        np.ones((length, envs), bool),
        {"log_prob": np.zeros((length, envs), np.float32)},
    )
    return Trajectory(rows, Observation(np.arange(envs, dtype=np.float32)[:, None]), ())


@pytest.mark.parametrize("where", ["host", "first device"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_trajectories_are_split_by_environment_not_by_time(backend, where):
    def look(state, batch, key):
        rewards = jax.lax.all_gather(batch.transitions.reward, AXIS)
        last = jax.lax.all_gather(batch.last_observation.features, AXIS)
        return state, (rewards, last)

    mesh = sharding.mesh(2)
    batch = trajectory(3, 4)
    if where == "first device":  # committed, as an in-graph collector leaves it
        batch = jax.device_put(batch, jax.devices()[0])
    step = sharding.data_parallel(look, mesh, backend)
    _, (rewards, last) = step(sharding.replicate(jnp.zeros(1), mesh), batch, jax.random.key(0))
    assert rewards.shape == (2, 3, 2)
    np.testing.assert_array_equal(rewards[0], [[0, 1], [100, 101], [200, 201]])
    np.testing.assert_array_equal(rewards[1], [[2, 3], [102, 103], [202, 203]])
    np.testing.assert_array_equal(last[..., 0], [[0, 1], [2, 3]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_environments_that_do_not_divide_are_refused_in_a_sentence(backend):
    mesh = sharding.mesh(2)
    step = sharding.data_parallel(lambda s, b, k: (s, {}), mesh, backend)
    state = sharding.replicate(jnp.zeros(1), mesh)
    sentence = "3 environments cannot be split over 2 devices: choose a multiple of 2"
    with pytest.raises(ValueError, match=sentence):
        step(state, trajectory(4, 3), jax.random.key(0))
    assert not state.is_deleted()  # refused before anything was donated


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("devices", [1, 2])
def test_the_replicated_original_survives_donation(backend, devices):
    mesh = sharding.mesh(devices)
    original = jax.device_put({"w": jnp.ones(2)}, jax.devices()[0])
    step = sharding.data_parallel(
        lambda s, b, k: (jax.tree.map(lambda x: x + b.sum(), s), {}), mesh, backend, batch_axes=0
    )
    state, _ = step(sharding.replicate(original, mesh), np.ones(2, np.float32), jax.random.key(0))
    np.testing.assert_array_equal(original["w"], [1.0, 1.0])
    assert state["w"][0] > 1


def test_the_state_is_donated():
    mesh = sharding.mesh(1)
    step = sharding.data_parallel(
        lambda s, b, k: (s + 1, {}), mesh, Parallel.SHARD_MAP, batch_axes=0
    )
    state = sharding.replicate(jnp.zeros(1000), mesh)
    new, _ = step(state, np.zeros(2, np.float32), jax.random.key(0))
    jax.block_until_ready(new)
    assert state.is_deleted()


@pytest.mark.parametrize("backend", BACKENDS)
def test_shared_buffers_in_the_state_are_copied_apart(backend):
    shared = jnp.ones(3)  # parameters and their target, as a careless init leaves them
    mesh = sharding.mesh(2)
    step = sharding.data_parallel(
        lambda s, b, k: ({"online": s["online"] + 1, "target": s["target"]}, {}),
        mesh,
        backend,
        batch_axes=0,
    )
    state = sharding.replicate({"online": shared, "target": shared}, mesh)
    for _ in range(2):
        state, _ = step(state, np.zeros(2, np.float32), jax.random.key(0))
        jax.block_until_ready(state)
    np.testing.assert_array_equal(sharding.local(state)["target"], 1.0)
    np.testing.assert_array_equal(sharding.local(state)["online"], 3.0)


def test_replicate_and_local_are_inverse_for_every_kind_of_leaf():
    params = {"w": jnp.arange(3.0)}
    tree = {
        "params": params,
        "optimizer": optax.adam(1e-3).init(params),
        "key": jax.random.key(7),
        "bits": jnp.ones(2, bool),
        "half": jnp.ones(2, jnp.bfloat16),
        "none": None,
    }
    replicated = sharding.replicate(tree, sharding.mesh(2))
    assert all(len(x.addressable_shards) == 2 for x in jax.tree.leaves(replicated))
    back = sharding.local(replicated)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert a.dtype == b.dtype
        assert a.devices() == {jax.devices()[0]}
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def test_mesh_takes_all_devices_or_the_first_ones():
    assert sharding.mesh().devices.size == len(jax.local_devices()) == 2
    assert list(sharding.mesh(1).devices.flat) == jax.local_devices()[:1]
    assert sharding.mesh(2).axis_names == (AXIS,)


@pytest.mark.parametrize("count", [3, -1])
def test_mesh_refuses_devices_that_are_not_there(count):
    sentence = rf"{count}.*has 2 device\(s\): choose 1 to 2, or 0 for all"
    with pytest.raises(ValueError, match=sentence):
        sharding.mesh(count)
