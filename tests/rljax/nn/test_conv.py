import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rljax.nn import conv

SHAPES = [  # height (the width is one more), kernel, stride, padding
    (20, 8, 4, "VALID"),
    (9, 4, 2, "VALID"),
    (10, 4, 3, "VALID"),  # the last rows are seen by no window
    (7, 3, 1, "SAME"),
    (8, 3, 2, "SAME"),
    (5, 5, 1, "VALID"),
]


def shapes(module: nn.Module, key) -> dict:
    return jax.eval_shape(module.init, key, jnp.zeros((84, 84, 4), jnp.uint8))["params"]


def test_a_convolution_by_hand():
    x = jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1)  # 1 2 3 / 4 5 6 / 7 8 9
    kernel = jnp.array([[1.0, 0.0], [0.0, -1.0]]).reshape(2, 2, 1, 1)
    y = conv.convolve(x, kernel, 1, "VALID")
    np.testing.assert_array_equal(y[0, ..., 0], [[-4, -4], [-4, -4]])  # 1 - 5, 2 - 6, 4 - 8, 5 - 9


def test_its_gradients_by_hand():
    x = jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    kernel = jnp.array([[1.0, 0.0], [0.0, -1.0]]).reshape(2, 2, 1, 1)
    dx, dk = jax.grad(lambda x, k: conv.convolve(x, k, 1, "VALID").sum(), (0, 1))(x, kernel)
    # each window adds 1 at its first cell and -1 at its last
    np.testing.assert_array_equal(dx[0, ..., 0], [[1, 1, 0], [1, 0, -1], [0, -1, -1]])
    # 1 + 2 + 4 + 5 under the first weight, ..., 5 + 6 + 8 + 9 under the last
    np.testing.assert_array_equal(dk[..., 0, 0], [[12, 16], [24, 28]])


@pytest.mark.parametrize(("height", "size", "stride", "padding"), SHAPES)
def test_values_and_gradients_are_those_of_linen(height, size, stride, padding, key):
    ours = conv.Conv(5, size, stride, padding)
    theirs = nn.Conv(5, (size, size), (stride, stride), padding)
    x = jax.random.normal(key, (2, height, height + 1, 3))
    params = ours.init(key, x)

    def loss(module, params, x):
        return jnp.sum(jnp.sin(module.apply(params, x)))

    mine = jax.value_and_grad(loss, (1, 2))(ours, params, x)
    reference = jax.value_and_grad(loss, (1, 2))(theirs, params, x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), mine, reference
    )


def test_any_number_of_leading_axes(key):
    module = conv.Conv(2, 3)
    x = jax.random.normal(key, (2, 3, 5, 5, 1))
    params = module.init(key, x)
    y = module.apply(params, x)
    assert y.shape == (2, 3, 3, 3, 2)
    np.testing.assert_allclose(module.apply(params, x[1, 2]), y[1, 2], rtol=1e-5, atol=1e-6)


def test_gradients_inside_of_a_scan_have_the_form_of_the_fast_kernels(key):
    module = conv.Nature(size=8)
    pixels = jnp.zeros((2, 1, 84, 84, 4), jnp.uint8)
    params = jax.eval_shape(module.init, key, pixels)

    def step(params, x):
        grads = jax.grad(lambda params: jnp.sum(module.apply(params, x) ** 2))(params)
        return jax.tree.map(jnp.subtract, params, grads), None

    program = jax.jit(lambda params: jax.lax.scan(step, params, pixels)[0])
    text = program.lower(params).compile().as_text()
    forms = re.findall(r" convolution\(.*dim_labels=(\S+?)[,\s]", text)
    assert len(forms) >= 7  # three forward, and backward two each but for the pixels
    assert set(forms) == {"b01f_01io->b01f"}


def test_nature_has_the_published_layers(key):
    params = shapes(conv.Nature(), key)
    assert {name: layer["kernel"].shape for name, layer in params.items()} == {
        "Conv_0": (8, 8, 4, 32),
        "Conv_1": (4, 4, 32, 64),
        "Conv_2": (3, 3, 64, 64),
        "Dense_0": (7 * 7 * 64, 512),  # (84 - 8)/4 + 1 = 20, (20 - 4)/2 + 1 = 9, 9 - 3 + 1 = 7
    }


def test_impala_has_the_published_layers(key):
    params = shapes(conv.Impala(), key)
    assert (
        sum(name.startswith("Conv") for name in params) == 15
    )  # figure 3: 15 convolutional layers
    assert params["Dense_0"]["kernel"].shape == (11 * 11 * 32, 256)  # 84 -> 42 -> 21 -> 11


@pytest.mark.parametrize("torso", [conv.Nature(size=4), conv.Impala(channels=(2,), size=4)])
def test_pixels_are_divided_by_255(torso, key):
    pixels = jax.random.randint(key, (2, 36, 36, 1), 0, 256).astype(jnp.uint8)
    params = torso.init(key, pixels)
    shown = torso.apply(params, pixels)

    weights = params["params"]["Conv_0"]
    scaled = params["params"] | {"Conv_0": weights | {"kernel": weights["kernel"] * 255}}
    assert not np.allclose(torso.apply({"params": scaled}, pixels), shown)
    ones = torso.apply({"params": scaled}, (pixels > 127).astype(jnp.uint8))
    full = torso.apply(params, 255 * (pixels > 127).astype(jnp.uint8))
    np.testing.assert_allclose(ones, full, rtol=1e-4, atol=1e-5)  # 255 · 1/255 = 1 · 255/255


def test_cells_of_a_grid_are_names_not_numbers(key):
    torso = conv.Grid(size=16)
    params = torso.init(key, jnp.zeros((3, 3, 1), jnp.uint8))
    assert params["params"]["Conv_0"]["kernel"].shape == (3, 3, conv.GRID_VALUES, 32)
    boards = jnp.arange(13, dtype=jnp.uint8)[:, None, None, None] * jnp.ones(
        (1, 3, 3, 1), jnp.uint8
    )
    seen = np.asarray(torso.apply(params, boards))
    assert len(np.unique(seen.round(5), axis=0)) == 11
    np.testing.assert_array_equal(seen[10], seen[12])  # what is larger is read as the last name
