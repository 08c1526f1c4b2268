"""Many devices: one door through which every update runs, with two backends that agree.

An update is written for one device: it sees the whole state and its shard of the batch, and meets
the others in `lax.pmean` over the axis `AXIS`. `data_parallel` maps it over a mesh by
`jax.shard_map` (the default), or by `jax.pmap`, which since JAX 0.8 is a wrapper over it.
"""

import enum
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rljax.agent import AXIS
from rljax.types import Trajectory

TRAJECTORY_AXES = Trajectory._make((1, 0, 0))  # which axis of each part is split over the devices


class Parallel(enum.Enum):
    """How an update is mapped over devices."""

    SHARD_MAP = "shard_map"
    PMAP = "pmap"


def mesh(num_devices: int = 0) -> Mesh:
    """A mesh of one axis, `AXIS`, over the first `num_devices` local devices (0: all of them).

    Raises ValueError when there are fewer.
    """
    devices = jax.local_devices()
    if num_devices < 0 or num_devices > len(devices):
        raise ValueError(
            f"--num_devices={num_devices}, but this process has {len(devices)} device(s): "
            f"choose 1 to {len(devices)}, or 0 for all."
        )
    devices = devices[: num_devices or None]
    # Auto axes: the default, Explicit, makes pmap trace twice or fail on arrays placed by it.
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy of `tree` on every device of the mesh; the original may be donated or kept."""
    # The copy is needed: device_put aliases the original on its own device.
    return jax.device_put(jax.tree.map(jnp.copy, tree), NamedSharding(mesh, PartitionSpec()))


def local(tree: Any) -> Any:
    """This process's first copy of a replicated tree, as single-device arrays; nothing is moved."""
    return jax.tree.map(lambda x: x.addressable_shards[0].data, tree)


def data_parallel(
    update: Callable[[Any, Any, jax.Array], tuple[Any, Any]],
    mesh: Mesh,
    backend: Parallel,
    batch_axes: Any = TRAJECTORY_AXES,
) -> Callable[[Any, Any, jax.Array], tuple[Any, Any]]:
    """Compiles `update(state, batch, key)` over the mesh; the state is donated.

    The state and the key are the same on every device, before and after; `batch_axes` is a pytree
    prefix of the batch that says which axis of each part is split. Batches come whole, on the host
    or on any device. Raises ValueError when that axis does not divide by the number of devices.
    """
    count = mesh.devices.size

    def check(axis: int, part: Any) -> None:
        for leaf in jax.tree.leaves(part):
            if leaf.shape[axis] % count:
                raise ValueError(
                    f"{leaf.shape[axis]} environments cannot be split over {count} devices: "
                    f"choose a multiple of {count}."
                )

    specs = jax.tree.map(lambda axis: PartitionSpec(*[None] * axis, AXIS), batch_axes)

    def place(batch: Any) -> Any:
        """Splits the batch: arrays that are committed to one device do not move by themselves."""
        shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
        return jax.tree.map(lambda s, part: jax.device_put(part, s), shardings, batch)

    if backend is Parallel.PMAP:
        mapped = jax.pmap(
            update,
            axis_name=AXIS,
            in_axes=(None, batch_axes, None),
            out_axes=None,  # the state is not stacked: its leaves keep their shapes
            devices=list(mesh.devices.flat),
            donate_argnums=0,
        )

        def stack(axis: int, part: Any) -> Any:
            return jax.tree.map(
                lambda x: x.reshape(*x.shape[:axis], count, -1, *x.shape[axis + 1 :]), part
            )

        def run(state: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
            jax.tree.map(check, batch_axes, batch)
            return mapped(state, place(jax.tree.map(stack, batch_axes, batch)), key)

        return run

    mapped = jax.jit(
        jax.shard_map(
            update,
            mesh=mesh,
            in_specs=(PartitionSpec(), specs, PartitionSpec()),
            out_specs=PartitionSpec(),
            check_vma=False,
        ),
        donate_argnums=0,
    )

    def run(state: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
        jax.tree.map(check, batch_axes, batch)
        return mapped(state, place(batch) if count > 1 else batch, key)

    return run
