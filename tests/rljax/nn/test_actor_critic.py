import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.nn import actor_critic
from rljax.nn.actor_critic import ActorCritic
from rljax.nn.mlp import Activation
from rljax.nn.torsos import Torso
from rljax.types import Box, Discrete, EnvSpec, MultiDiscrete, Part

VECTOR = EnvSpec("vector", (4,), "float32", Discrete(3))
BOARD = EnvSpec("board", (5, 5, 1), "uint8", Discrete(3))
BOTH = EnvSpec(
    "both",
    (),
    "",
    MultiDiscrete((2, 3)),
    named_parts=(Part("image", (5, 5, 1), "uint8"), Part("vector", (4,), "float32")),
)
BOX = EnvSpec("box", (4,), "float32", Box((-1.0,) * 2, (1.0,) * 2))


def made(spec: EnvSpec, shared: bool | None) -> ActorCritic:
    return actor_critic.make(spec, Torso.AUTO, (8, 8), Activation.TANH, shared=shared)


def touched(networks: ActorCritic, of: str, spec: EnvSpec, key) -> set[str]:
    """The groups of parameters that a gradient reaches."""

    def total(params):
        return jnp.sum(getattr(networks, of)(params, features) ** 2)

    features = jax.tree.map(lambda x: x + 1, spec.example((2,)).features)
    grads = jax.jit(jax.grad(total))(jax.jit(networks.init)(key))
    return {name for name, tree in grads.items() if any(x.any() for x in jax.tree.leaves(tree))}


@pytest.mark.parametrize(("spec", "shared"), [(VECTOR, False), (BOARD, True), (BOTH, True)])
def test_frames_share_their_torso_and_vectors_do_not(spec, shared, key):
    assert ("torso" in jax.eval_shape(made(spec, None).init, key)) == shared


@pytest.mark.parametrize("spec", [VECTOR, BOARD, BOTH], ids=lambda spec: spec.name)
def test_both_losses_teach_a_shared_torso_and_neither_the_others_head(spec, key):
    networks = made(spec, True)
    assert touched(networks, "critic", spec, key) == {"torso", "critic"}
    assert touched(networks, "actor", spec, key) == {"torso", "actor"}


@pytest.mark.parametrize("spec", [VECTOR, BOARD], ids=lambda spec: spec.name)
def test_networks_apart_learn_apart(spec, key):
    networks = made(spec, False)
    assert touched(networks, "critic", spec, key) == {"critic"}
    assert touched(networks, "actor", spec, key) == {"actor"}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("spec", [VECTOR, BOARD, BOTH], ids=lambda spec: spec.name)
def test_apply_is_actor_and_critic_in_one(spec, shared, key):
    networks = made(spec, shared)
    params = jax.jit(networks.init)(key)
    features = jax.tree.map(lambda x: x + 1, spec.example((2, 3)).features)
    outputs, value = networks.apply(params, features)
    assert outputs.shape == (2, 3, *spec.action.mask_shape)
    assert value.shape == (2, 3)
    np.testing.assert_allclose(outputs, networks.actor(params, features), rtol=1e-6)
    np.testing.assert_allclose(value, networks.critic(params, features), rtol=1e-6)


def test_networks_apart_have_the_parameters_that_checkpoints_hold(key):
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(made(VECTOR, None).init, key))
    layers = {
        "Dense_0": {"kernel": (4, 8), "bias": (8,)},
        "Dense_1": {"kernel": (8, 8), "bias": (8,)},
    }

    def head(size: int) -> dict:
        return {"Dense_0": {"kernel": (8, size), "bias": (size,)}}

    assert shapes == {
        "actor": {"params": {"torso": layers, "LinearHead_0": head(3)}},
        "critic": {"params": {"layers_0": layers, "layers_1": head(1)}},
    }


def test_a_box_gets_means_and_one_log_deviation_a_dimension(key):
    networks = actor_critic.make(
        BOX, Torso.AUTO, (8,), Activation.TANH, shared=True, initial_log_scale=-0.5
    )
    mean, log_scale = networks.actor(jax.jit(networks.init)(key), jnp.ones((6, 4)))
    assert mean.shape == (6, 2)
    assert log_scale.tolist() == [-0.5, -0.5]
    assert np.abs(mean).max() < 0.1  # the default gain of the head is 0.01
