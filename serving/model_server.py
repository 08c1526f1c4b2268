"""The model server: TensorFlow Serving's gRPC and REST APIs over the versions of one model.

Read `ModelServer.run`: bind, load, serve, poll, drain. Everything happens on one event loop; only
loading, and inputs of more rows than the largest batch, go to threads. Services that are not here
(Classify, Regress, MultiInference, HandleReloadConfigRequest, Health.Watch) answer
UNIMPLEMENTED.
"""

import asyncio
import dataclasses
import logging
import pathlib
import signal
import socket
from collections.abc import Awaitable, Callable

import grpc

from rljax.config import UsageError
from serving import model_info, saved_model, wire
from serving.batching import Batcher
from serving.predict import Predictor
from serving.rest import RestServer
from serving.signatures import Servable
from serving.status import Code, ServingError, truncated
from serving.versions import Versions

_HOST = "0.0.0.0"  # as TensorFlow Serving: every IPv4 address of the machine
DRAIN_SECONDS = 10.0  # what requests in flight get after SIGTERM or SIGINT
_GRPC_OPTIONS = (
    ("grpc.max_receive_message_length", -1),  # no limit but gRPC's own, 2^31 - 1 bytes
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),  # else two servers share a port in silence
)
_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}
_HEALTH_SERVICES = (  # TensorFlow Serving's names (server.cc), the full ones, and the whole server
    "",
    "ModelService",
    "PredictionService",
    wire.MODEL_SERVICE,
    wire.PREDICTION_SERVICE,
)
_Method = Callable[[wire.Message], Awaitable[wire.Message]]
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """What TensorFlow Serving's flags of the same names say (model_servers/main.cc)."""

    model_name: str
    model_base_path: pathlib.Path
    port: int = 8500  # 0: no gRPC over TCP
    grpc_socket_path: str = ""  # also listen on this Unix socket
    rest_api_port: int = 0  # 0: no REST
    rest_api_timeout_in_ms: int = 30_000
    file_system_poll_wait_seconds: float = 1.0  # 0: look once
    enable_batching: bool = False
    enable_serialization_as_tensor_content: bool = False
    enable_grpc_healthcheck_service: bool = False


def load(directory: pathlib.Path) -> Servable:
    """Loads a version directory: our export in JAX, any other SavedModel in TensorFlow.

    Raises:
        ServingError: it cannot be served.
    """
    if not (directory / "assets.extra" / "rljax").is_dir():
        return saved_model.load(directory)
    from serving import runtime  # imports JAX, which nothing else here needs

    return runtime.load(directory)


class ModelServer:
    """One model behind one gRPC and, if asked for, one REST port."""

    def __init__(self, config: ServerConfig):
        self._config = config
        self._versions = Versions(config.model_name, config.model_base_path, load)
        self._predictor = Predictor(self._versions, Batcher() if config.enable_batching else None)

    async def run(self, on_ready: Callable[[str], None]) -> None:
        """Serves until SIGTERM or SIGINT, then lets requests in flight finish.

        Args:
            on_ready: is told once, in a line, that a version is available and the ports answer.

        Raises:
            UsageError: an address is not to be had, or nothing is there and no look is to follow.
        """
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        grpc_server, rest_server = self._grpc_server(), self._rest_server()  # both are bound now
        await asyncio.to_thread(self._versions.poll)
        if not self._config.file_system_poll_wait_seconds and not self._versions.available():
            raise UsageError(
                f"no version of {self._config.model_name} under {self._config.model_base_path} "
                "can be served, and --file_system_poll_wait_seconds=0 says not to wait for one."
            )
        await grpc_server.start()
        if rest_server:
            await rest_server.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                polling = tasks.create_task(self._poll(on_ready))
                await stopping.wait()
                polling.cancel()
        finally:
            _log.info("Stopping: requests in flight get %.0f s to finish", DRAIN_SECONDS)
            await asyncio.gather(
                grpc_server.stop(DRAIN_SECONDS),
                *([rest_server.stop()] if rest_server else []),
            )

    async def _poll(self, on_ready: Callable[[str], None]) -> None:
        wait = self._config.file_system_poll_wait_seconds
        told = False
        while True:
            if not told and self._versions.available():
                told = True
                on_ready(f"serving {self._config.model_name} on {', '.join(self._addresses())}")
            if not wait:
                return
            await asyncio.sleep(wait)
            await asyncio.to_thread(self._versions.poll)

    def _addresses(self) -> list[str]:
        config, addresses = self._config, []
        if config.port:
            addresses.append(f"grpc {_HOST}:{config.port}")
        if config.grpc_socket_path:
            addresses.append(f"grpc unix:{config.grpc_socket_path}")
        if config.rest_api_port:
            addresses.append(f"rest {_HOST}:{config.rest_api_port}")
        return addresses

    def _rest_server(self) -> RestServer | None:
        if not self._config.rest_api_port:
            return None
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((_HOST, self._config.rest_api_port))
        except OSError as error:
            listener.close()
            raise _cannot_listen(f"port {self._config.rest_api_port}", str(error)) from error
        return RestServer(
            self._predictor,
            listener,
            timeout_ms=self._config.rest_api_timeout_in_ms,
            drain_seconds=DRAIN_SECONDS,
        )

    def _grpc_server(self) -> grpc.aio.Server:
        server = grpc.aio.server(options=_GRPC_OPTIONS)
        server.add_generic_rpc_handlers(
            (
                _service(
                    wire.PREDICTION_SERVICE,
                    Predict=(self._predict, wire.PredictRequest),
                    GetModelMetadata=(self._metadata, wire.GetModelMetadataRequest),
                ),
                _service(
                    wire.MODEL_SERVICE, GetModelStatus=(self._status, wire.GetModelStatusRequest)
                ),
            )
        )
        if self._config.enable_grpc_healthcheck_service:
            check = _service(wire.HEALTH_SERVICE, Check=(self._check, wire.HealthCheckRequest))
            server.add_generic_rpc_handlers((check,))
        if self._config.port:
            _listen(server, f"{_HOST}:{self._config.port}", f"port {self._config.port}")
        if path := self._config.grpc_socket_path:
            _listen(server, f"unix:{path}", f"socket {path}")
        return server

    async def _predict(self, request: wire.Message) -> wire.Message:
        spec, outputs = await self._predictor.predict(request)
        response = wire.PredictResponse(model_spec=spec)
        as_content = self._config.enable_serialization_as_tensor_content
        for name, array in outputs.items():
            wire.fill_tensor(response.outputs[name], array, as_content=as_content)
        return response

    async def _metadata(self, request: wire.Message) -> wire.Message:
        return model_info.model_metadata(self._predictor, request)

    async def _status(self, request: wire.Message) -> wire.Message:
        return model_info.model_status(self._versions, request)

    async def _check(self, request: wire.Message) -> wire.Message:
        if request.service not in _HEALTH_SERVICES:
            raise ServingError(Code.NOT_FOUND, f"there is no service {request.service!r}")
        status = "SERVING" if self._versions.available() else "NOT_SERVING"
        return wire.HealthCheckResponse(status=status)


def _service(name: str, **methods: tuple[_Method, wire.Message]) -> grpc.GenericRpcHandler:
    handlers = {
        method: grpc.unary_unary_rpc_method_handler(
            _answering(function),
            request_deserializer=request_class.FromString,
            response_serializer=wire.serialize,
        )
        for method, (function, request_class) in methods.items()
    }
    return grpc.method_handlers_generic_handler(name, handlers)


def _answering(function: _Method) -> Callable[..., Awaitable[wire.Message | None]]:
    """The method as gRPC calls it: ServingErrors become statuses; requests too late are dropped."""

    async def handle(
        request: wire.Message, context: grpc.aio.ServicerContext
    ) -> wire.Message | None:
        try:
            remaining = context.time_remaining()
            if remaining is not None and remaining <= 0:
                raise ServingError(Code.DEADLINE_EXCEEDED, "The deadline passed in the queue")
            return await function(request)
        except ServingError as error:
            await context.abort(_GRPC_CODES[error.code], truncated(error.message))

    return handle


def _listen(server: grpc.aio.Server, address: str, what: str) -> None:
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise _cannot_listen(what, "it is taken, or not ours to take") from error


def _cannot_listen(what: str, why: str) -> UsageError:
    return UsageError(f"cannot listen on {what}: {why}.")
