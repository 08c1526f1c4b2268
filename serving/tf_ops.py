"""JAX functions as plain TensorFlow operations, by interpreting their jaxprs.

What `jax2tf` writes is one XlaCallModule operation, which a stock `tensorflow_model_server` (XLA
compilation off) refuses to run. What `convert` writes runs in any server and takes an empty batch
too. It knows the primitives of greedy feed-forward policies: matrix products, elementwise
functions, reductions, selections, shape changes and look-ups along one axis.

Read `convert`, then the table `_PRIMITIVES`. The batch is a symbolic dimension while JAX traces,
and the length of the inputs when TensorFlow runs.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorflow as tf
from jax.extend.core import Jaxpr, Literal

Size = Callable[[Any], Any]  # a dimension of a shape, perhaps the symbolic one -> int or tensor
_CALLS = {  # primitives that stand for another jaxpr, and the parameter that holds it
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


class UnsupportedError(ValueError):
    """The function uses something that has no translation here."""


class _Step(NamedTuple):
    """One primitive applied to numbered values."""

    primitive: str
    params: dict[str, Any]
    inputs: list[int]
    outputs: list[int]


def convert(
    function: Callable[..., dict[str, jax.Array]],
    leaf_specs: Sequence[jax.ShapeDtypeStruct],
    input_specs: dict[str, jax.ShapeDtypeStruct],
) -> Callable[[Sequence[tf.Tensor], dict[str, tf.Tensor]], dict[str, tf.Tensor]]:
    """The TensorFlow twin of `function(leaves, inputs) -> outputs`.

    Args:
        function: JAX function to translate.
        leaf_specs: shapes and types of the leaves.
        input_specs: those of the inputs; every first axis is the same symbolic dimension.

    Raises:
        UnsupportedError: the function uses a primitive that is not in the table, which is named.
    """
    closed, out_specs = jax.make_jaxpr(function, return_shape=True)(list(leaf_specs), input_specs)
    names, structure = sorted(input_specs), jax.tree.structure(out_specs)
    batch = input_specs[names[0]].shape[0]
    numbers, constants, steps = itertools.count(), {}, []
    arguments = [next(numbers) for _ in closed.jaxpr.invars]
    results = _inline(closed.jaxpr, closed.consts, arguments, numbers, constants, steps)
    steps = _live(steps, results)
    for step in steps:
        if step.primitive not in _PRIMITIVES:
            raise UnsupportedError(f"tf_ops cannot express the primitive {step.primitive!r}")

    def twin(leaves: Sequence[tf.Tensor], inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        rows = tf.shape(inputs[names[0]])[0]

        def size(dimension: Any) -> Any:
            if isinstance(dimension, int):
                return dimension
            if dimension == batch:
                return rows
            raise UnsupportedError(f"tf_ops cannot express an axis of size {dimension}")

        values = dict(zip(arguments, [*leaves, *(inputs[n] for n in names)], strict=True))
        values |= {number: tf.constant(constant) for number, constant in constants.items()}
        for step in steps:
            operands = [values[number] for number in step.inputs]
            outputs = _PRIMITIVES[step.primitive](size, step.params, *operands)
            values |= zip(step.outputs, outputs, strict=True)
        return jax.tree.unflatten(structure, [values[number] for number in results])

    return twin


def _inline(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    arguments: Sequence[int],
    numbers: Iterator[int],
    constants: dict[int, np.ndarray],
    steps: list[_Step],
) -> list[int]:
    """Appends the jaxpr's steps, inner jaxprs dissolved, and returns its outputs' numbers."""

    def constant(value: Any) -> int:
        number = next(numbers)
        constants[number] = np.asarray(value)
        return number

    known = dict(zip(jaxpr.invars, arguments, strict=True))
    known |= zip(jaxpr.constvars, map(constant, consts), strict=True)

    def read(atom: Any) -> int:
        if isinstance(atom, Literal):
            aval: Any = atom.aval
            return constant(np.asarray(atom.val, aval.dtype))
        return known[atom]

    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        inputs = [read(atom) for atom in equation.invars]
        if name in _CALLS:
            inner = params[_CALLS[name]]
            outputs = _inline(inner.jaxpr, inner.consts, inputs, numbers, constants, steps)
        else:
            outputs = [next(numbers) for _ in equation.outvars]
            steps.append(_Step(name, params, inputs, outputs))
        known |= zip(equation.outvars, outputs, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _live(steps: list[_Step], results: list[int]) -> list[_Step]:
    """The steps that the results need: greedy policies trace a random key that they never use."""
    needed, live = set(results), []
    for step in reversed(steps):
        if needed.intersection(step.outputs):
            needed.update(step.inputs)
            live.append(step)
    return live[::-1]


def _elementwise(function: Callable[..., Any]) -> Callable[..., list[Any]]:
    return lambda size, params, *operands: [function(*operands)]


def _reduction(function: Callable[..., Any]) -> Callable[..., list[Any]]:
    return lambda size, params, x: [function(x, axis=params["axes"])]


def _argmax(size: Size, params: dict[str, Any], x: Any) -> list[Any]:
    # As in JAX the first of equals wins, and a NaN wins over all; tf.argmax promises neither.
    (axis,) = params["axes"]
    best = tf.equal(x, tf.reduce_max(x, axis=axis, keepdims=True))
    if x.dtype.is_floating:
        best = tf.where(tf.reduce_any(tf.math.is_nan(x), axis, True), tf.math.is_nan(x), best)
    dtype = tf.as_dtype(params["index_dtype"])
    shape = [-1 if i == axis else 1 for i in range(x.shape.rank)]
    indices = tf.reshape(tf.range(tf.shape(x)[axis]), shape)
    return [tf.cast(tf.reduce_min(tf.where(best, indices, tf.int32.max), axis=axis), dtype)]


def _broadcast_in_dim(size: Size, params: dict[str, Any], x: Any) -> list[Any]:
    kept = params["broadcast_dimensions"]
    rank = len(params["shape"])
    x = x[tuple(slice(None) if axis in kept else tf.newaxis for axis in range(rank))]
    return [tf.broadcast_to(x, [size(dimension) for dimension in params["shape"]])]


def _convert_element_type(size: Size, params: dict[str, Any], x: Any) -> list[Any]:
    return [tf.cast(x, tf.as_dtype(params["new_dtype"]))]


def _dot_general(size: Size, params: dict[str, Any], x: Any, y: Any) -> list[Any]:
    (x_summed, y_summed), (x_batch, y_batch) = params["dimension_numbers"]
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    x_names = [next(letters) for _ in range(x.shape.rank)]
    y_names = [next(letters) for _ in range(y.shape.rank)]
    for i, j in zip((*x_batch, *x_summed), (*y_batch, *y_summed), strict=True):
        y_names[j] = x_names[i]
    shared = [x_names[i] for i in x_batch]
    x_free = [n for i, n in enumerate(x_names) if i not in (*x_batch, *x_summed)]
    y_free = [n for i, n in enumerate(y_names) if i not in (*y_batch, *y_summed)]
    names = ("".join(part) for part in (x_names, y_names, [*shared, *x_free, *y_free]))
    return [tf.einsum("{},{}->{}".format(*names), x, y)]


def _gather(size: Size, params: dict[str, Any], x: Any, indices: Any) -> list[Any]:
    """Look-ups along one axis: `x[:, i]`, `x[:, i:j]`, `take_along_axis`; nothing more general."""
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    axis = numbers.start_index_map[0]
    leading = tuple(range(len(numbers.operand_batching_dims)))
    whole = (
        part == length or not isinstance(part, int)  # a symbolic slice is the whole batch
        for i, (part, length) in enumerate(zip(sizes, x.shape, strict=True))
        if i not in (*leading, axis)
    )
    along_one_axis = (
        numbers.start_index_map == (axis,)
        and numbers.operand_batching_dims == numbers.start_indices_batching_dims == leading
        and axis >= len(leading)
        and all(whole)
    )
    filling = params["mode"] is jax.lax.GatherScatterMode.FILL_OR_DROP
    length = x.shape[axis]
    if along_one_axis and not (numbers.collapsed_slice_dims or leading or filling):
        if indices.shape == (1,):  # a window
            start = tf.clip_by_value(indices[0], 0, length - sizes[axis])
            return [tf.gather(x, start + tf.range(sizes[axis]), axis=axis)]
    if not along_one_axis or numbers.collapsed_slice_dims != (axis,):
        raise UnsupportedError("tf_ops cannot express a gather that is no look-up along one axis")
    indices = tf.squeeze(indices, -1)
    if filling:
        if not x.dtype.is_floating:
            raise UnsupportedError("tf_ops cannot express a filling gather of integers")
        # Outside indices find one more slice, of NaN; tf.gather would raise on them.
        end = [[0, int(i == axis)] for i in range(x.shape.rank)]
        x = tf.pad(x, end, constant_values=math.nan)
        indices = tf.where((indices < 0) | (indices > length), length, indices)
    else:
        indices = tf.clip_by_value(indices, 0, length - 1)
    found = tf.gather(x, indices, axis=axis, batch_dims=len(leading))
    # tf.gather puts the indices' axes where `axis` was; JAX says where the others are to go.
    offset = list(numbers.offset_dims)
    batch = [i for i in range(found.shape.rank) if i not in offset]
    before = axis - len(leading)
    order = [*batch[: len(leading)], *offset[:before], *batch[len(leading) :], *offset[before:]]
    return [tf.transpose(found, [order.index(i) for i in range(len(order))])]


def _iota(size: Size, params: dict[str, Any]) -> list[Any]:
    shape = [size(dimension) for dimension in params["shape"]]
    axis = params["dimension"]
    line = tf.reshape(tf.range(shape[axis]), [-1 if i == axis else 1 for i in range(len(shape))])
    return [tf.broadcast_to(tf.cast(line, tf.as_dtype(params["dtype"])), shape)]


def _reshape(size: Size, params: dict[str, Any], x: Any) -> list[Any]:
    return [tf.reshape(x, [size(dimension) for dimension in params["new_sizes"]])]


def _select_n(size: Size, params: dict[str, Any], which: Any, *cases: Any) -> list[Any]:
    if which.dtype != tf.bool:
        raise UnsupportedError("tf_ops cannot express a selection by number, only by truth")
    return [tf.where(which, cases[1], cases[0])]


def _slice(size: Size, params: dict[str, Any], x: Any) -> list[Any]:
    starts, limits = params["start_indices"], params["limit_indices"]
    strides = params["strides"] or (1,) * len(starts)
    parts = zip(map(size, starts), map(size, limits), strides, strict=True)
    return [x[tuple(slice(*part) for part in parts)]]


_PRIMITIVES: dict[str, Callable[..., list[Any]]] = {
    "argmax": _argmax,
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": lambda size, params, *xs: [tf.concat(xs, params["dimension"])],
    "convert_element_type": _convert_element_type,
    "dot_general": _dot_general,
    "gather": _gather,
    "integer_pow": lambda size, params, x: [tf.pow(x, tf.cast(params["y"], x.dtype))],
    "iota": _iota,
    "reduce_and": _reduction(tf.reduce_all),
    "reduce_max": _reduction(tf.reduce_max),
    "reduce_min": _reduction(tf.reduce_min),
    "reduce_or": _reduction(tf.reduce_any),
    "reduce_prod": _reduction(tf.reduce_prod),
    "reduce_sum": _reduction(tf.reduce_sum),
    "reshape": _reshape,
    "select_n": _select_n,
    "slice": _slice,
    "split": lambda size, params, x: tf.split(x, params["sizes"], params["axis"]),
    "squeeze": lambda size, params, x: [tf.squeeze(x, params["dimensions"])],
    "stack": lambda size, params, *xs: [tf.stack(xs, params["axis"])],
    "transpose": lambda size, params, x: [tf.transpose(x, params["permutation"])],
} | {
    name: _elementwise(function)
    for name, function in {
        "abs": tf.abs,
        "add": tf.add,
        "and": tf.logical_and,
        "asinh": tf.asinh,
        "atanh": tf.atanh,
        "ceil": tf.math.ceil,
        "clamp": lambda low, x, high: tf.minimum(tf.maximum(x, low), high),
        "copy": tf.identity,
        "cos": tf.cos,
        "div": lambda x, y: x / y if x.dtype.is_floating else tf.truncatediv(x, y),
        "eq": tf.equal,
        "erf": tf.math.erf,
        "erf_inv": tf.math.erfinv,
        "erfc": tf.math.erfc,
        "exp": tf.exp,
        "exp2": lambda x: tf.pow(tf.cast(2, x.dtype), x),
        "expm1": tf.math.expm1,
        "floor": tf.floor,
        "ge": tf.greater_equal,
        "gt": tf.greater,
        "is_finite": tf.math.is_finite,
        "le": tf.less_equal,
        "log": tf.math.log,
        "log1p": tf.math.log1p,
        "logistic": tf.sigmoid,
        "lt": tf.less,
        "max": tf.maximum,
        "min": tf.minimum,
        "mul": tf.multiply,
        "ne": tf.not_equal,
        "neg": tf.negative,
        "not": tf.logical_not,
        "or": tf.logical_or,
        "pow": tf.pow,
        "rem": tf.truncatemod,
        "rsqrt": tf.math.rsqrt,
        "sign": tf.sign,
        "sin": tf.sin,
        "sqrt": tf.sqrt,
        "square": tf.square,
        "stop_gradient": tf.identity,
        "sub": tf.subtract,
        "tan": tf.tan,
        "tanh": tf.tanh,
        "xor": tf.math.logical_xor,
    }.items()
}
