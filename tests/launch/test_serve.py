"""The life of a server process: start, versions that come and go, stop; and bad flags."""

import contextlib
import http.client
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from serving.client import PolicyClient
from serving.status import Code
from serving.versions import State
from tests.serving.servers import ROOT, Server, free_port, half_plus_two, policy, write_version


def states(client):
    return {status.version: status.state for status in client.status()}


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def serve(tmp_path):
    """Starts servers on one base path that end with the test."""
    with contextlib.ExitStack() as stack:

        def start(*flags, **settings):
            server = Server(tmp_path, "policy", *flags, **settings)
            stack.callback(server.close)
            client = PolicyClient(server.address, "policy", timeout_ms=20_000)
            return server, stack.enter_context(client)

        yield start


def act(client):
    return client.act(np.zeros(4, np.float32), np.ones(3, bool))


def test_new_versions_are_picked_up_and_broken_ones_are_not(tmp_path, serve):
    write_version(tmp_path, 1, policy())
    server, client = serve()
    assert act(client).version == 1
    write_version(tmp_path, 2, policy())
    wait_until(lambda: states(client) == {1: State.END, 2: State.AVAILABLE})
    assert act(client).version == 2
    write_version(tmp_path, 3, policy(), sha256={})
    wait_until(lambda: states(client).get(3) is State.END)
    failed = client.status()[0]
    assert failed.code is Code.DATA_LOSS
    assert "is not the file that was exported" in failed.message
    assert act(client).version == 2
    assert server.terminate() == 0


def test_no_request_fails_while_versions_are_swapped(tmp_path, serve):
    write_version(tmp_path, 1, policy())
    _, client = serve()
    versions, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            versions.append(act(client).version)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for version in (2, 3):
            write_version(tmp_path, version, policy())
            wait_until(lambda version=version: states(client).get(version) is State.AVAILABLE)
    finally:
        stop.set()
        thread.join()
    assert act(client).version == 3
    assert {1, 2} <= set(versions)
    assert versions == sorted(versions)


def test_waits_for_a_first_version(tmp_path, serve):
    timer = threading.Timer(3.0, write_version, (tmp_path, 1, policy()))
    timer.start()
    server, client = serve()  # reads the line that says it is ready
    timer.join()
    assert act(client).version == 1
    assert any("No versions of servable policy found" in line for line in server.errors)


def test_listens_on_a_unix_socket(tmp_path, serve):
    write_version(tmp_path, 1, policy())
    path = tmp_path / "socket"
    serve(f"--grpc_socket_path={path}")
    with PolicyClient(f"unix:{path}", "policy", timeout_ms=20_000) as client:
        assert act(client).version == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stops_gracefully(tmp_path, serve, number):
    write_version(tmp_path, 1, policy())
    server, client = serve()
    act(client)
    server.process.send_signal(number)
    assert server.process.wait(timeout=30) == 0
    assert not any("Traceback" in line for line in server.errors)


def test_a_request_in_flight_is_answered_before_the_end(tmp_path, serve):
    write_version(tmp_path, 1, policy())
    server, _ = serve(rest=True)
    connection = http.client.HTTPConnection("localhost", server.rest_port, timeout=20)
    body = '{"instances": [{"observation": [0, 0, 0, 0], "action_mask": [true, true, true]}]}'
    with contextlib.closing(connection):
        connection.request("GET", "/v1/models/policy")
        connection.getresponse().read()
        server.process.send_signal(signal.SIGSTOP)  # so that both are there when it wakes up
        connection.request("POST", "/v1/models/policy:predict", body)
        server.process.terminate()
        server.process.send_signal(signal.SIGCONT)
        assert connection.getresponse().status == 200
    assert server.process.wait(timeout=5) == 0  # and does not wait for the rest of its 10 s


def test_is_ready_after_six_seconds_of_work(tmp_path, serve):
    write_version(tmp_path, 1, policy())
    server, _ = serve()
    # CPU time, as the machine may be busy with other things.
    fields = pathlib.Path("/proc", str(server.process.pid), "stat").read_text().rpartition(")")[2]
    user, system = fields.split()[11:13]
    assert 0 < (int(user) + int(system)) / os.sysconf("SC_CLK_TCK") < 6


def run_serve(*flags):
    return subprocess.run(
        [sys.executable, "-m", "launch.serve", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("flag", ["--port", "--rest_api_port"])
def test_a_taken_port_is_one_sentence(tmp_path, flag):
    write_version(tmp_path, 1, half_plus_two())
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        result = run_serve(
            f"--port={free_port()}", f"{flag}={port}", f"--model_base_path={tmp_path}"
        )
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: cannot listen on port {port}: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--model_base_path=models"], "Expected model default to have an absolute path or URI"),
        ([], "--model_base_path is missing"),
        (["--prot=1"], "did you mean --port?"),
        (["--port=0", "--model_base_path=/models"], "nothing to listen on"),
        (["--port=70000"], "port=70000"),
        (["--model_name=", "--model_base_path=/models"], "--model_name is empty"),
        (["surplus"], "unexpected argument 'surplus'"),
        (
            [
                *("--port=0", "--rest_api_port={free}"),
                *("--model_base_path=/nowhere", "--file_system_poll_wait_seconds=0"),
            ],
            "no version of default under /nowhere can be served",
        ),
    ],
)
def test_bad_flags_are_one_sentence(flags, text):
    result = run_serve(*(flag.format(free=free_port()) for flag in flags))
    assert result.returncode == 2
    assert text in result.stderr
    assert "Traceback" not in result.stderr


def test_help_needs_no_jax():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['serve', '--help']\n"
        "try: runpy.run_module('launch.serve', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "sys.exit('jax' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "--model_base_path" in result.stdout


def test_serving_ours_never_imports_tensorflow(tmp_path):
    write_version(tmp_path, 1, half_plus_two())
    code = (
        "import sys, pathlib; from serving import model_server; "
        "model = model_server.load(pathlib.Path(sys.argv[1]) / '1'); "
        "sys.exit('tensorflow' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, check=False)
    assert result.returncode == 0
