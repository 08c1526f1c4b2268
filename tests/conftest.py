"""What every test runs under: two CPU devices, no silent broadcasting, one key."""

import gc
import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]

# All of these are read when JAX is imported, and by the processes that tests start.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("NPROC", "32")  # too few threads and queued collectives abort the process
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=2",
        # On a busy machine one device may come late to a collective: 40 s would end the process.
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    ]
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")  # tests compile little

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Each holds memory mappings, of which a process has 65,530: the whole suite needs more."""
    yield
    jax.clear_caches()
    gc.collect()
