import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.nn import torsos
from rljax.nn.conv import Grid, Impala, Nature
from rljax.nn.mlp import MLP, Activation
from rljax.nn.torsos import Parts, Torso
from rljax.types import Discrete, EnvSpec, Part


def lone(shape: tuple[int, ...], dtype: str) -> EnvSpec:
    return EnvSpec("task", shape, dtype, Discrete(2))


def parted(*parts: Part) -> EnvSpec:
    return EnvSpec("task", (), "", Discrete(2), named_parts=parts)


def made(spec: EnvSpec, kind: Torso = Torso.AUTO):
    return torsos.make(kind, spec, (5,), Activation.TANH)


VECTOR, FRAME, BOARD = lone((3,), "float32"), lone((36, 40, 1), "uint8"), lone((7, 7, 3), "uint8")
BOTH = parted(Part("image", (7, 7, 3), "uint8"), Part("vector", (3,), "float32"))


@pytest.mark.parametrize(
    ("spec", "kind", "expected"),
    [
        (VECTOR, Torso.AUTO, MLP((5,))),
        (VECTOR, Torso.MLP, MLP((5,))),
        (FRAME, Torso.AUTO, Nature()),
        (FRAME, Torso.NATURE, Nature()),
        (FRAME, Torso.IMPALA, Impala()),
        (BOARD, Torso.AUTO, Grid()),
        (BOARD, Torso.IMPALA, Impala()),
        (lone((35, 90, 1), "uint8"), Torso.AUTO, Grid()),  # one side is too small for Nature
    ],
)
def test_the_network_follows_what_is_shown(spec, kind, expected):
    assert made(spec, kind) == expected


def test_every_part_has_its_own_network():
    spec = parted(
        Part("far", (40, 40, 1), "uint8"),
        Part("near", (7, 7, 1), "uint8"),
        Part("vector", (3,), "float32"),
    )
    assert made(spec) == Parts({"far": Nature(), "near": Grid(), "vector": MLP((5,))})
    hidden, params = jax.eval_shape(
        made(spec).init_with_output, jax.random.key(0), spec.example((2,)).features
    )
    assert hidden.shape == (2, 256)
    assert params["params"]["Dense_0"]["kernel"].shape == (512 + 128 + 5, 256)


def test_parts_are_joined_by_a_layer_that_lets_them_interact():
    # A sum of what each part says could not see that the vector matters for one image only.
    spec = BOTH
    torso, features = made(spec), spec.example((4,)).features
    features["image"] = features["image"].at[2:].set(3)
    features["vector"] = features["vector"].at[1::2].set(1.0)
    hidden, _ = jax.jit(torso.init_with_output)(jax.random.key(0), features)
    change_at_0, change_at_3 = hidden[1] - hidden[0], hidden[3] - hidden[2]
    assert not np.allclose(change_at_0, change_at_3)


@pytest.mark.parametrize(
    ("spec", "kind", "sentence"),
    [
        (VECTOR, Torso.NATURE, "config.torso=nature looks at pixels, and task shows vectors"),
        (FRAME, Torso.MLP, "config.torso=mlp looks at vectors, and task shows pixels"),
        (BOTH, Torso.MLP, "config.torso=mlp looks at vectors, and task shows pixels"),
        (BOARD, Torso.NATURE, r"36 x 36 pixels or more, and task shows \(7, 7, 3\): use auto or"),
        (BOTH, Torso.NATURE, r"36 x 36 pixels or more, and task shows \(7, 7, 3\): use auto or"),
    ],
)
def test_a_torso_that_cannot_see_is_refused_in_a_sentence(spec, kind, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        made(spec, kind)
    assert "\n" not in str(caught.value)


def test_the_smallest_frame_of_nature_is_36(key):
    # 36 -> (36 - 8)/4 + 1 = 8 -> (8 - 4)/2 + 1 = 3 -> 3 - 3 + 1 = 1
    params = jax.eval_shape(Nature().init, key, jnp.zeros((36, 36, 1), jnp.uint8))["params"]
    assert params["Dense_0"]["kernel"].shape == (64, 512)
