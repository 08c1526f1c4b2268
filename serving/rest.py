"""TensorFlow Serving's REST API over HTTP/1.1.

Paths, methods and texts: model_servers/http_rest_api_{util,handler}.cc and http_server.cc. Not
here: `:classify`, `:regress` and CORS.
"""

import asyncio
import json
import re
import socket
import urllib.parse

from aiohttp import web
from google.protobuf import json_format

from serving import json_tensor, model_info, wire
from serving.predict import Predictor
from serving.signatures import DEFAULT_SIGNATURE
from serving.status import Code, ServingError, invalid

MAX_BODY_BYTES = 64 << 20

_CHOICE = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_PREDICT = re.compile(
    rf"/v1/models/(?P<name>[^/:]+){_CHOICE}:(?P<method>classify|regress|predict)",
    re.ASCII | re.IGNORECASE,
)
_STATUS = re.compile(
    rf"/v1/models(?:/(?P<name>[^/:]+))?{_CHOICE}(?P<metadata>/metadata)?",
    re.ASCII | re.IGNORECASE,
)
_MAX_VERSION = 2**63 - 1


class RestServer:
    """Serves one bound socket; `start` begins to listen, `stop` lets requests in flight finish."""

    def __init__(
        self,
        predictor: Predictor,
        listener: socket.socket,
        *,
        timeout_ms: int,
        drain_seconds: float,
    ):
        """`timeout_ms` bounds a request, `drain_seconds` what `stop` waits for those in flight."""
        self._predictor = predictor
        self._timeout = timeout_ms / 1000
        self._listener = listener
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=drain_seconds)

    async def start(self) -> None:
        """Begins to accept connections."""
        await self._runner.setup()
        await web.SockSite(self._runner, self._listener).start()

    async def stop(self) -> None:
        """Stops accepting, and waits for requests in flight."""
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        path = request.raw_path.partition("?")[0]
        if not path.lower().startswith("/v1/"):
            return web.Response(status=404)
        try:
            async with asyncio.timeout(self._timeout):
                body = await self._answer(request, path)
        except ServingError as error:
            return _error_response(error.code.http, error.message)
        except TimeoutError:
            message = f"The request took longer than {self._timeout * 1000:.0f} ms"
            return _error_response(Code.DEADLINE_EXCEEDED.http, message)
        except web.HTTPRequestEntityTooLarge:
            return _error_response(413, f"The body is larger than {MAX_BODY_BYTES} bytes")
        return web.Response(body=body, content_type="application/json")

    async def _answer(self, request: web.Request, path: str) -> bytes:
        if request.method == "POST" and (match := _PREDICT.fullmatch(path)):
            if match["method"].lower() != "predict":
                raise ServingError(Code.UNIMPLEMENTED, f"{match['method']} is not implemented")
            announced = request.content_length or 0
            if announced > MAX_BODY_BYTES:  # `read` would take it in first
                raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, announced)
            return await self._predict(_model_spec(match), await request.read())
        if request.method == "GET" and (match := _STATUS.fullmatch(path)):
            if not match["name"]:
                raise invalid("Missing model name in request.")
            spec = _model_spec(match)
            return self._metadata(spec) if match["metadata"] else self._status(spec)
        raise invalid(f"Malformed request: {request.method} {path}")

    async def _predict(self, spec: wire.Message, body: bytes) -> bytes:
        document = json_tensor.parse(body)
        name = json_tensor.signature_name(document) or DEFAULT_SIGNATURE
        _, servable = self._predictor.resolve(spec)
        if name not in servable.signatures:
            raise invalid(f'Serving signature name: "{name}" not found in signature def')
        by_row = json_tensor.is_by_row(document)
        if by_row:
            arrays = json_tensor.from_rows(document["instances"], servable.signatures[name])
        else:
            arrays = json_tensor.from_columns(document["inputs"], servable.signatures[name])
        outputs = await self._predictor.run(servable, name, arrays)
        return json_tensor.to_json(outputs, by_row=by_row)

    def _status(self, spec: wire.Message) -> bytes:
        request = wire.GetModelStatusRequest(model_spec=spec)
        response = model_info.model_status(self._predictor.versions, request)
        return json.dumps(_to_dict(response), indent=1).encode()

    def _metadata(self, spec: wire.Message) -> bytes:
        request = wire.GetModelMetadataRequest(
            model_spec=spec, metadata_field=[model_info.SIGNATURE_DEF]
        )
        response = model_info.model_metadata(self._predictor, request)
        definitions = wire.SignatureDefMap()
        response.metadata[model_info.SIGNATURE_DEF].Unpack(definitions)
        document = {
            "model_spec": _to_dict(response.model_spec),
            "metadata": {model_info.SIGNATURE_DEF: _to_dict(definitions)},
        }
        return json.dumps(document, indent=1).encode()


def _model_spec(match: re.Match[str]) -> wire.Message:
    spec = wire.ModelSpec(name=urllib.parse.unquote(match["name"]))
    if version := match["version"]:
        if len(version) > len(str(_MAX_VERSION)) or int(version) > _MAX_VERSION:
            raise invalid(f"Failed to convert version: {version} to numeric.")
        spec.version.value = int(version)
    if match["label"]:
        spec.version_label = urllib.parse.unquote(match["label"])
    return spec


def _to_dict(message: wire.Message) -> dict[str, object]:
    return json_format.MessageToDict(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        descriptor_pool=wire.POOL,
    )


def _error_response(status: int, message: str) -> web.Response:
    body = json.dumps({"error": message}, indent=4).encode()
    return web.Response(status=status, body=body, content_type="application/json")
