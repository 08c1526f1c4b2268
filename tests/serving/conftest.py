"""Servers as processes, for the tests of a module."""

from collections.abc import Callable, Iterator

import pytest

from tests.serving.servers import Server


@pytest.fixture(scope="module")
def start_server() -> Iterator[Callable[..., Server]]:
    """Starts servers that end with the module."""
    servers = []

    def start(*args, **kwargs) -> Server:
        servers.append(Server(*args, **kwargs))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
