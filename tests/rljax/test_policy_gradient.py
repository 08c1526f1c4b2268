"""What actor-critic agents share: how they see and act, weights of rows, the step, the state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import normalizers, policy_gradient, sharding
from rljax.nn import actor_critic
from rljax.nn.mlp import Activation
from rljax.nn.policies import BoxPolicy
from rljax.nn.torsos import Torso
from rljax.types import Discrete, EnvSpec, Observation, Transition

SPEC = EnvSpec("masked", (2,), "float32", Discrete(3), has_mask=True)


def player_and_params(key, clip=1.5):
    networks = actor_critic.make(
        SPEC, Torso.AUTO, (8,), Activation.TANH, shared=None, head_gain=1.0, initial_log_scale=0.0
    )
    return policy_gradient.player(SPEC, networks, BoxPolicy.NORMAL, clip), networks.init(key)


def on_devices(f, devices, *arrays):
    """`f` of arrays whose first axis is split over devices; results are laid side by side."""
    mapped = jax.shard_map(
        f,
        mesh=sharding.mesh(devices),
        in_specs=jax.P("data"),
        out_specs=jax.P("data"),
        check_vma=False,
    )
    return mapped(*arrays)


def test_a_player_normalizes_clips_obeys_the_mask_and_says_its_value(key):
    player, params = player_and_params(key)
    moments = normalizers.Moments(jnp.float32(9.0), jnp.array([1.0, 2.0]), jnp.array([4.0, 4.0]))
    policy = policy_gradient.Policy(params, moments)
    mask = jnp.array([[True, False, True]])
    observation = Observation(jnp.array([[3.0, -8.0]]), mask)
    seen = player.normalized(policy, observation)
    # (3 - 1) / 2 = 1 and (-8 - 2) / 2 = -5, clipped to -1.5
    np.testing.assert_allclose(seen.features, [[1.0, -1.5]], rtol=1e-4)
    np.testing.assert_array_equal(seen.mask, mask)

    carry, action, extras = player.act(policy, (), observation, key, True)
    chosen_by, value = player.look(params, seen)
    assert carry == ()
    np.testing.assert_allclose(extras["value"], value)
    assert extras["probabilities"][0, 1] == 0
    assert action[0] == np.argmax(extras["probabilities"][0])
    np.testing.assert_allclose(extras["log_prob"], chosen_by.log_prob(action))
    draws = {
        int(player.act(policy, (), observation, jax.random.fold_in(key, i), False)[1][0])
        for i in range(30)
    }
    assert draws == {0, 2}  # not greedy: both that are allowed, and only those


@pytest.mark.parametrize("devices", [1, 2])
def test_a_step_goes_down_the_mean_gradient_by_the_rate(devices):
    optimizer = optax.sgd(2.0)  # gives -2 g: the sign shows that the step is subtracted

    def f(x):
        def loss(w):
            return jnp.mean(w * x), {"loss/it": jnp.mean(x)}

        learner = (jnp.float32(1.0), optimizer.init(jnp.float32(1.0)))
        (w, _), metrics = policy_gradient.gradient_step(loss, learner, optimizer, jnp.float32(0.5))
        return jnp.stack([w, metrics["loss/it"], metrics["policy/grad_norm"]])[None]

    # the gradient is the mean of x, -3: w = 1 - 0.5 · (-2 · -3) = -2
    out = on_devices(f, devices, jnp.array([-1.0, -5.0]))
    np.testing.assert_allclose(out, [[-2.0, -3.0, 3.0]] * devices)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_next_state_counts_and_takes_valid_rows_into_the_statistics(normalize, key):
    unknown = normalizers.init_observation(SPEC) if normalize else None
    schedules = policy_gradient.Schedules(jnp.float32(0.1), jnp.float32(0.2))
    state = policy_gradient.TrainState({}, (), unknown, schedules, jnp.int32(4))
    features = jnp.array([[[1.0, 2.0]], [[3.0, 2.0]], [[77.0, 77.0]]])  # [T = 3, B = 1]
    nothing = jnp.zeros((3, 1))
    valid = jnp.array([[True], [True], [False]])
    rows = Transition(Observation(features), nothing, nothing, nothing, valid, {})

    def f(features):
        after = policy_gradient.next_state(
            state,
            ({"w": jnp.float32(1.0)}, ()),
            rows._replace(observation=Observation(features)),
        )
        return jax.tree.map(lambda x: jnp.asarray(x)[None], after)

    after = jax.tree.map(lambda x: x[0], on_devices(f, 1, features))
    assert after.updates == 5
    assert after.params == {"w": 1}
    assert after.schedules == schedules
    assert after.policy == policy_gradient.Policy(after.params, after.observation)
    if normalize:
        np.testing.assert_allclose(after.observation.mean, [2.0, 2.0], rtol=1e-5)
        np.testing.assert_allclose(after.observation.variance, [1.0, 0.0], atol=1e-5)
    else:
        assert after.observation is None
