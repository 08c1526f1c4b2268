"""Many devices: one door through which every update runs, with two backends that agree.

An update is written for one device: it sees the whole state and its shard of the batch, and meets
the others in `lax.pmean` over the axis `AXIS`. `data_parallel` maps it over a mesh by
`jax.shard_map` (the default), or by `jax.pmap`, which since JAX 0.8 is a wrapper over it.

Where several processes have joined (`rljax.distributed`), a mesh spans the devices of all of them,
process after process, so that process p of P holds the p-th of P equal parts of every split axis.
Each process hands in its own part; nothing else is said differently.
"""

import collections
import enum
import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rljax.agent import AXIS
from rljax.config import UsageError
from rljax.types import Trajectory

TRAJECTORY_AXES = Trajectory._make((1, 0, 0))  # which axis of each part is split over the devices


class Parallel(enum.Enum):
    """How an update is mapped over devices."""

    SHARD_MAP = "shard_map"
    PMAP = "pmap"


class ReplicaError(UsageError):
    """Copies that should be equal differ between devices."""


def mesh(num_devices: int = 0, indices: Sequence[int] = ()) -> Mesh:
    """A mesh of one axis, `AXIS`, over the first `num_devices` devices (0: all) of every process.

    Or over those that `indices` names on each. Raises ValueError when there are fewer, or when
    processes have different numbers of devices.
    """
    by_process = collections.defaultdict(list)
    for device in sorted(jax.devices(), key=lambda device: (device.process_index, device.id)):
        by_process[device.process_index].append(device)
    here = len(by_process[jax.process_index()])
    if num_devices < 0 or num_devices > here:
        raise ValueError(
            f"--num_devices={num_devices}, but this process has {here} device(s): "
            f"choose 1 to {here}, or 0 for all."
        )
    if indices:
        num_devices = max(indices) + 1
    chosen = [devices[: num_devices or None] for devices in by_process.values()]
    if len({len(devices) for devices in chosen}) > 1:
        counts = ", ".join(str(len(devices)) for devices in by_process.values())
        raise ValueError(
            f"the processes have {counts} devices: each must have equally many; "
            "--num_devices takes that many of each."
        )
    # Auto axes: the default, Explicit, makes pmap trace twice or fail on arrays placed by it.
    if indices:
        chosen = [[devices[index] for index in indices] for devices in chosen]
    return Mesh(np.array(chosen).reshape(-1), (AXIS,), axis_types=(AxisType.Auto,))


def check_split(name: str, size: int, num_devices: int) -> None:
    """Raises ValueError where `size` does not divide by the devices of `mesh(num_devices)`."""
    devices = mesh(num_devices).devices.size
    if size % devices:
        raise ValueError(
            f"{name}={size} cannot be split over {devices} devices: "
            f"choose a multiple of {devices}, or set --num_devices."
        )


def num_processes(mesh: Mesh) -> int:
    """Of how many processes the mesh holds devices."""
    return len({device.process_index for device in mesh.devices.flat})


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy of `tree` on every device of the mesh; the original may be donated or kept.

    With several processes each of them brings an equal tree.
    """
    # The copy is needed: device_put aliases the original on its own device.
    return _place(jax.tree.map(jnp.copy, tree), mesh, PartitionSpec())


def on_first(tree: Any, mesh: Mesh) -> Any:
    """The tree on the first device of the mesh, not copied where it is there already.

    A single device is taken as its mesh, as calls return it: or they would be compiled twice.
    """
    alone = mesh.devices.size == 1
    place = NamedSharding(mesh, PartitionSpec()) if alone else mesh.devices.flat[0]
    return jax.device_put(tree, place)


def local(tree: Any) -> Any:
    """This process's first copy of a replicated tree, as single-device arrays; nothing is moved."""
    return jax.tree.map(lambda x: x.addressable_shards[0].data, tree)


def share(tree: Any) -> Any:
    """This process's part of arrays whose first axis is over all processes' rows."""
    count, index = jax.process_count(), jax.process_index()

    def part(x: Any) -> Any:
        size = x.shape[0] // count
        return x[index * size : (index + 1) * size]

    return tree if count == 1 else jax.tree.map(part, tree)


def united(tree: Any) -> Any:
    """The inverse of `share`: this process's rows as its part of an array over all processes.

    Nothing is moved; `gathered` makes such arrays readable. For one process, `tree` as it is.
    """
    return (
        tree if jax.process_count() == 1 else _place(tree, _one_device_each(), PartitionSpec(AXIS))
    )


def gathered(tree: Any) -> Any:
    """The same tree with every leaf whole on this process; all processes must call it together."""

    def whole(x: Any) -> Any:
        here = not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
        return x if here else _copied_to_all()(x)

    return jax.tree.map(whole, tree)


def check_replicas(tree: Any) -> None:
    """Raises ReplicaError, naming a leaf, where a replicated tree is not equal on all devices.

    A debugging aid: what every device computed by itself must agree to the bit. Arrays that are not
    replicated are passed over. All processes must call it together.
    """
    names, checksums = [], []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not isinstance(leaf, jax.Array) or not leaf.is_fully_replicated:
            continue
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        first, *rest = [zlib.crc32(_bytes(shard.data)) for shard in leaf.addressable_shards]
        for shard, checksum in zip(leaf.addressable_shards[1:], rest, strict=True):
            if checksum != first:
                raise ReplicaError(
                    f"{name} differs between devices {leaf.addressable_shards[0].device} and "
                    f"{shard.device}, which should hold the same: an update does not reduce over "
                    f"the axis {AXIS!r} what it should."
                )
        names.append(name)
        checksums.append(first)
    everywhere = np.asarray(gathered(united(np.array([checksums], np.uint32))))
    for process, row in enumerate(everywhere):
        for name, ours, theirs in zip(names, everywhere[0], row, strict=True):
            if ours != theirs:
                raise ReplicaError(
                    f"{name} differs between process 0 and process {process}, which should hold "
                    "the same: they learned from different code, or an update does not reduce "
                    f"over the axis {AXIS!r} what it should."
                )


def data_parallel(
    update: Callable[[Any, Any, jax.Array], tuple[Any, Any]],
    mesh: Mesh,
    backend: Parallel,
    batch_axes: Any = TRAJECTORY_AXES,
) -> Callable[[Any, Any, jax.Array], tuple[Any, Any]]:
    """Compiles `update(state, batch, key)` over the mesh; the state is donated.

    The state and the key are the same on every device, before and after; `batch_axes` is a pytree
    prefix of the batch that says which axis of each part is split. Batches come whole, on the host
    or on any device; with several processes, each brings its part of the batch.

    Raises ValueError when that axis does not divide by the number of devices, and for pmap over
    several processes.
    """
    processes = num_processes(mesh)
    count = mesh.devices.size // processes

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
        return jax.tree.map(lambda spec, part: _place(part, mesh, spec), specs, batch)

    if backend is Parallel.PMAP:
        if processes > 1:
            raise ValueError("--parallel=pmap is for one process: several use shard_map.")
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
        if processes > 1:
            key = _place(key, mesh, PartitionSpec())
        return mapped(state, place(batch) if mesh.devices.size > 1 else batch, key)

    return run


def _place(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """The tree on the mesh: split as `spec` says, or copied. Each process brings its own part."""
    processes = num_processes(mesh)
    if processes == 1:
        return jax.device_put(tree, NamedSharding(mesh, spec))
    here, everywhere = NamedSharding(mesh.local_mesh, spec), NamedSharding(mesh, spec)

    def place(x: jax.Array) -> jax.Array:
        factors = [processes if axis == AXIS else 1 for axis in spec]
        factors += [1] * (x.ndim - len(factors))
        shape = tuple(size * factor for size, factor in zip(x.shape, factors, strict=True))
        shards = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(shape, everywhere, shards)

    # Not device_put onto `everywhere`: that has all processes compare their copies.
    return jax.tree.map(place, jax.device_put(tree, here))


@functools.cache
def _copied_to_all() -> Callable[[jax.Array], jax.Array]:
    everywhere = NamedSharding(_one_device_each(), PartitionSpec())
    return jax.jit(lambda x: x, out_shardings=everywhere)


def _one_device_each() -> Mesh:
    """The first device of every process."""
    return mesh(1)


def _bytes(x: jax.Array) -> bytes:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return np.asarray(x).tobytes()
