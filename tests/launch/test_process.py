import os
import signal

import pytest

from launch import process


@pytest.mark.parametrize(
    ("xla_flags", "threads"),
    [("", None), ("--xla_force_host_platform_device_count=2", "32")],
    ids=["one device", "emulated devices"],
)
def test_more_threads_than_cores_only_for_emulated_devices(xla_flags, threads, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", xla_flags)
    monkeypatch.delenv("NPROC", raising=False)
    process.prepare()
    assert os.environ.get("NPROC") == threads
    monkeypatch.delenv("NPROC", raising=False)


def test_what_the_user_set_is_left_alone(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    process.prepare()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "mine"


def test_the_first_signal_asks_and_the_second_acts():
    # As in a shell's foreground: what runs in its background ignores SIGINT from the start.
    found = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with process.stop_on_signals() as stop:
            assert stop.signal is None
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signal == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, found)
