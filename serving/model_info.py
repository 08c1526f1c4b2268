"""GetModelStatus and GetModelMetadata, one implementation for gRPC and REST.

Codes and texts: model_servers/get_model_status_impl.cc and
servables/tensorflow/get_model_metadata_impl.cc.
"""

from serving import wire
from serving.predict import Predictor, model_spec
from serving.signatures import signature_def
from serving.status import Code, ServingError, invalid
from serving.versions import Versions

SIGNATURE_DEF = "signature_def"  # the one field that metadata may be asked for


def model_status(versions: Versions, request: wire.Message) -> wire.Message:
    """Answers a GetModelStatusRequest; a version label in it is ignored, as in TensorFlow Serving.

    Raises:
        ServingError: INVALID_ARGUMENT without a ModelSpec, NOT_FOUND if there is nothing to report.
    """
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    name = request.model_spec.name
    statuses = versions.statuses() if name == versions.name else []
    if request.model_spec.HasField("version"):
        version = request.model_spec.version.value
        statuses = [status for status in statuses if status.version == version]
        if not statuses:
            raise ServingError(Code.NOT_FOUND, f"Could not find version {version} of model {name}")
    if not statuses:
        raise ServingError(Code.NOT_FOUND, f"Could not find any versions of model {name}")
    response = wire.GetModelStatusResponse()
    for status in statuses:
        entry = response.model_version_status.add(version=status.version, state=status.state)
        entry.status.error_code = status.code
        entry.status.error_message = status.message
    return response


def model_metadata(predictor: Predictor, request: wire.Message) -> wire.Message:
    """Answers a GetModelMetadataRequest with the signatures of a version.

    Raises:
        ServingError: INVALID_ARGUMENT for anything but `signature_def`; what `resolve` raises.
    """
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    if not request.metadata_field:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != SIGNATURE_DEF:
            raise invalid(f"Metadata field {field} is not supported")
    version, servable = predictor.resolve(request.model_spec)
    definitions = wire.SignatureDefMap()
    for name, signature in servable.signatures.items():
        definitions.signature_def[name].CopyFrom(signature_def(signature))
    response = wire.GetModelMetadataResponse(
        model_spec=model_spec(request.model_spec.name, version)
    )
    response.metadata[SIGNATURE_DEF].Pack(definitions)
    return response
