import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import distributions
from rljax.config import UsageError
from serving import bundle, parity
from serving.bundle import Signature
from tests.serving import toy_policies as toys

with warnings.catch_warnings():  # TensorFlow's own, while it is imported
    warnings.simplefilter("ignore")
    import tensorflow as tf

    from serving import export, tf_ops

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorflow.*")
X = np.array([[-2.5, -0.5, 0.25], [0.75, 0.5, 3.0]], np.float32)


def translated(function, *inputs):
    """Runs the twin of `function(*inputs)`, in a graph, for any batch size."""
    (b,) = jax.export.symbolic_shape("b")
    names = [f"x{i}" for i in range(len(inputs))]
    specs = {
        n: jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype)
        for n, x in zip(names, inputs, strict=True)
    }

    def named(leaves, values):
        return {"y": function(*(values[n] for n in names))}

    twin = tf_ops.convert(named, [], specs)
    signature = {n: tf.TensorSpec((None, *x.shape[1:]), x.dtype) for n, x in specs.items()}
    graph = tf.function(lambda **values: twin([], values)["y"], autograph=False)
    concrete = graph.get_concrete_function(**signature)
    return concrete(**{n: tf.constant(x) for n, x in zip(names, inputs, strict=True)}).numpy()


FUNCTIONS = {
    "activations": lambda x: jax.nn.swish(x) + jax.nn.elu(x) + jax.nn.relu(x) + jax.nn.gelu(x),
    "exact gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "softplus": jax.nn.softplus,
    "log1p, atanh, sqrt": lambda x: jnp.log1p(x**2) + jnp.arctanh(x / 9) + jnp.sqrt(abs(x)),
    "rsqrt, erf, sign": lambda x: jax.lax.rsqrt(x**2) + jax.lax.erf(x) + jnp.sign(x),
    "powers": lambda x: x**3 + jnp.abs(x) ** 0.5 + jnp.exp2(x) + x**-2,
    "rounding": lambda x: jnp.floor(x) + jnp.ceil(x) + x.astype(jnp.int32),
    "comparisons": lambda x: jnp.where((x > 0) & (x < 1) | ~(x >= -1), x, -x),
    "clip": lambda x: jnp.clip(x, -1.0, 0.4),
    "layer norm": jax.nn.standardize,
    "softmax": jax.nn.softmax,
    "reductions": lambda x: x.max(1) - x.min(1) + x.prod(1) + (x > 0).any(1) + (x > -1).all(1),
    "argmax of equals": lambda x: jnp.argmax(jnp.minimum(x, -0.5), axis=1),  # rows [1, 0]
    "argmax with NaN": lambda x: jnp.argmax(jnp.where(x == 0.25, jnp.nan, x), axis=1),
    "one-hot": lambda x: jax.nn.one_hot(jnp.argmax(x, axis=1), 3),
    "slices": lambda x: jnp.concatenate([x[:, 2:], x[:, :2], x[:, ::2]], axis=1),
    "split and stack": lambda x: jnp.stack(jnp.split(x, 3, axis=1), axis=1),
    "one column": lambda x: x[:, 1],
    "columns by index": lambda x: x[:, jnp.array([2, 0])],
    "rows transposed": lambda x: (x[:, :, None] * x[:, None, :]).transpose(0, 2, 1),
    "row look-up": lambda x: jnp.take_along_axis(x, jnp.argmax(x, axis=1)[:, None], axis=1),
    "outside look-up": lambda x: jnp.take_along_axis(x, x.astype(jnp.int32), axis=1, mode="fill"),
    "batched product": lambda x: jnp.einsum("bi,bj->bij", x, x) @ jnp.arange(6.0).reshape(3, 2),
    "flatten": lambda x: jnp.broadcast_to(x[:, None, :], (x.shape[0], 2, 3)).reshape(-1, 6),
    "unused randomness": lambda x: (x, jax.random.normal(jax.random.key(0), (3,)))[0],
    "a jitted part": lambda x: jax.jit(lambda y, key: jnp.sin(y))(x, jax.random.key(0)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_translations_equal_jax(name):
    function = FUNCTIONS[name]
    expected = jax.jit(function)(X)
    output = translated(function, X)
    assert output.dtype == expected.dtype
    np.testing.assert_allclose(output, expected, rtol=2e-6, atol=1e-6)
    empty = translated(function, X[:0])
    assert empty.shape == (0, *expected.shape[1:])


@pytest.mark.parametrize("low", [-2.0, -1.0])
def test_distributions_translate(low):
    def answer(logits, mask):
        chosen = distributions.categorical(logits, mask)
        mode = chosen.mode()
        normal = distributions.Normal(logits, jnp.broadcast_to(jnp.array([low]), logits.shape))
        tail = normal.log_prob(normal.mode()) + normal.entropy()
        return chosen.log_prob(mode) + chosen.entropy() + tail + mode

    mask = np.array([[True, True, False], [True, False, True]])
    expected = answer(jnp.asarray(X), jnp.asarray(mask))
    np.testing.assert_allclose(translated(answer, X, mask), expected, rtol=2e-6)


@pytest.mark.parametrize(
    ("function", "primitive"),
    [
        (lambda x: jnp.sort(x, axis=1), "sort"),
        (lambda x: jnp.cumsum(x, axis=1), "cumsum"),
        (lambda x: x + jax.random.uniform(jax.random.key(0), (1, 3)), "random_seed"),
        (lambda x: jax.lax.scan(lambda c, _: (c * 2, None), x, None, length=2)[0], "scan"),
    ],
)
def test_the_unknown_is_named(function, primitive):
    with pytest.raises(
        tf_ops.UnsupportedError, match=f"cannot express the primitive '{primitive}'"
    ):
        translated(function, X)


def test_only_the_batch_may_be_of_unknown_size():
    with pytest.raises(tf_ops.UnsupportedError, match=r"an axis of size 3\*b"):
        translated(lambda x: x.reshape(-1), X)


def test_export_runs_in_a_stock_server_and_on_an_empty_batch(tmp_path):
    made = toys.bundled(toys.DISCRETE)
    result = export.export(made, tmp_path, format=export.Format.TF_OPS, max_batch_size=2)
    # The check within ran with XLA off, as a stock server does; and once more, to be sure it can.
    assert result.parity_max_abs_diff <= 1e-5 * bundle.LARGE
    loaded = tf.saved_model.load(str(result.path))
    assert set(loaded.signatures) == {"serving_default"}  # `sample` has no plain operations
    outputs = loaded.signatures["serving_default"](
        observation=tf.zeros((0, 4)), action_mask=tf.zeros((0, 3), tf.bool)
    )
    assert {name: tuple(x.shape) for name, x in outputs.items()} == {
        "action": (0,),
        "log_prob": (0,),
        "value": (0,),
    }
    with pytest.raises(UsageError, match="does not give sample/output/action"):
        parity.of_saved_model(result.path, made, tuple(Signature), xla=True)


def test_an_export_that_needs_more_names_the_other_format(tmp_path):
    def act(policy, carry, observation, key, greedy):
        return carry, jnp.sort(observation.features[:, :2], axis=1), {}

    made = toys.bundled(toys.BOX, toys.agent(toys.BOX)._replace(act=act))
    with pytest.raises(UsageError, match=r"primitive 'sort'; export with --format=jax2tf"):
        export.export(made, tmp_path, format=export.Format.TF_OPS)
    assert list(tmp_path.iterdir()) == []
