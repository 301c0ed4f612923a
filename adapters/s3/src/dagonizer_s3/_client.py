"""The SDK's client, made so that it keeps the contract.

Apart from the store, for this is all that depends on how aioboto3, aiobotocore, botocore and aiohttp are put together.
"""

from __future__ import annotations

import asyncio
import functools
import io
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

# None of them says anything of its types; types_aiobotocore_s3 knows those of the client.
import aioboto3  # type: ignore[import-untyped]
import aiohttp
from aiobotocore.config import AioConfig  # type: ignore[import-untyped]
from aiobotocore.endpoint import convert_to_response_dict  # type: ignore[import-untyped]
from aiobotocore.httpsession import AIOHTTPSession  # type: ignore[import-untyped]
from aiobotocore.parsers import create_parser  # type: ignore[import-untyped]
from aiobotocore.session import AioSession  # type: ignore[import-untyped]
from aiohttp.client_proto import ResponseHandler
from botocore.awsrequest import AWSPreparedRequest, AWSRequest  # type: ignore[import-untyped]
from botocore.exceptions import NoCredentialsError  # type: ignore[import-untyped]
from botocore.handlers import add_recursion_detection_header  # type: ignore[import-untyped]
from botocore.loaders import create_loader  # type: ignore[import-untyped]
from botocore.utils import percent_encode  # type: ignore[import-untyped]

from dagonizer.connections import reset
from dagonizer_s3._errors import Redirected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from multidict import CIMultiDict
    from types_aiobotocore_s3 import S3Client

    from dagonizer_s3._config import S3Config

    Answer = Mapping[str, Any]

_LARGE = 1 << 20
_SUCCESSES = frozenset({HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT})
_REDIRECTIONS = frozenset({301, 302, 303, 307, 308})
# What the first client reads: some megabytes of JSON, too much for the event loop's thread.
_SERVICE_DATA = ("service-2", "endpoint-rule-set-1")
_DATA = ("partitions", "endpoints", "sdk-default-configuration", "_retry")


@asynccontextmanager
async def connected(config: S3Config) -> AsyncIterator[S3Client]:
    """Give a client of the running event loop, which sends each request once."""
    session = await asyncio.to_thread(_session, config)
    if await session.get_credentials() is None:
        # The client would be made without them, and would look for them never again.
        raise NoCredentialsError
    async with session.client(
        "s3", endpoint_url=config.endpoint_url, verify=config.ca_bundle, config=_settings(config)
    ) as client:
        yield cast("S3Client", _Direct(client))


async def close_idle(client: S3Client) -> None:
    """Close the connections that nobody uses, unless the client is one that the caller has made."""
    session = cast("Any", client)._endpoint.http_session  # noqa: SLF001 - no public way
    if isinstance(session, _Session):
        session.close_idle()


def _session(config: S3Config) -> Any:  # noqa: ANN401 - untyped
    core = AioSession(profile=config.profile)
    core.register_component("data_loader", _loader())
    # Nobody asks when an object was saved, and to read that takes longer than all else of a listing.
    core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=lambda text: text)
    return aioboto3.Session(
        botocore_session=core,
        aws_access_key_id=config.access_key_id,
        aws_secret_access_key=config.secret_access_key,
        region_name=config.region,
    )


@functools.cache
def _loader() -> Any:  # noqa: ANN401 - untyped
    """Return what knows the SDK's description of S3, read once for all clients of this process."""
    loader = create_loader()
    for name in _SERVICE_DATA:
        loader.load_service_model("s3", name)
    for name in _DATA:
        loader.load_data(name)
    return loader


def _settings(config: S3Config) -> Any:  # noqa: ANN401 - untyped
    return AioConfig(
        http_session_cls=_Session,
        connect_timeout=config.timeout,
        read_timeout=config.timeout,
        max_pool_connections=config.max_connections,
        retries={"total_max_attempts": 1},
        # Trailers are what other servers often do not know. The SHA-256 of what is sent is signed in any case.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": config.addressing},
    )


class _Direct:
    """A client that puts and gets objects without most of what the SDK does for each request.

    That takes longer than all the rest. The SDK does the first request to a bucket, and says where the bucket is. It
    signs the others, sends them, and reads each answer that is no plain success.
    """

    def __init__(self, client: S3Client) -> None:
        self._client: Any = client
        # For each bucket its URL, and the region that is signed for.
        self._places: dict[str, tuple[str, str]] = {}

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all else is the client's
        return getattr(self._client, name)

    async def put_object(self, **parameters: Any) -> Answer:  # noqa: ANN401 - as in all that follows, untyped
        return await self._call("PutObject", self._client.put_object, parameters)

    async def get_object(self, **parameters: Any) -> Answer:  # noqa: ANN401
        return await self._call("GetObject", self._client.get_object, parameters)

    async def _call(self, operation: str, whole: Callable[..., Awaitable[Answer]], parameters: Answer) -> Answer:
        model = self._client.meta.service_model.operation_model(operation)
        place = self._places.get(parameters["Bucket"])
        if place is None:
            answer = await whole(**parameters)
            await self._find(model, parameters["Bucket"])
            return answer
        request = await self._request(model, place, parameters)
        response = await self._client._endpoint.http_session.send(request)  # noqa: SLF001 - no public way, as below
        if response.status_code in _SUCCESSES and (model.has_streaming_output or not await response.content):
            return {"ETag": response.headers.get("etag"), "Body": response.raw}
        return await self._read(model, response)

    async def _find(self, model: Any, bucket: str) -> None:  # noqa: ANN401
        """Remember where the bucket is, unless its requests are signed in a way of their own."""
        context: dict[str, Any] = {}
        resolve = self._client._resolve_endpoint_ruleset  # noqa: SLF001
        url, _, _ = await resolve(model, {"Bucket": bucket}, context)
        signing = context.get("signing", {})
        if context.get("auth_type") == "v4" and signing.get("signing_name") == "s3":
            self._places[bucket] = url.rstrip("/"), signing["region"]

    async def _request(self, model: Any, place: tuple[str, str], parameters: Answer) -> Any:  # noqa: ANN401
        url, region = place
        body: bytes | None = parameters.get("Body")
        request = AWSRequest(
            method=model.http["method"],
            url=f"{url}/{percent_encode(parameters['Key'], safe='/~')}",
            headers=_headers(model, parameters),
            data=body,
        )
        request.context["client_config"] = self._client.meta.config
        # Asked for each time, for credentials expire.
        signer = self._client._request_signer  # noqa: SLF001
        auth = await signer.get_auth_instance("s3", region, "s3v4")
        auth.add_auth(request)
        headers = request.headers
        headers["User-Agent"] = self._client.meta.config.user_agent
        add_recursion_detection_header({"headers": headers})
        if body is not None:
            headers["Content-Length"] = str(len(body))
            headers["Expect"] = "100-continue"
        # What is large aiohttp sends in parts only if it is a file.
        data = io.BytesIO(body) if body is not None and len(body) >= _LARGE else body
        return AWSPreparedRequest(request.method, request.url, headers, data, model.has_streaming_output)

    async def _read(self, model: Any, response: Any) -> Answer:  # noqa: ANN401
        """Read an answer as the SDK does, and raise what it says."""
        said = await convert_to_response_dict(response, model)
        # There the SDK finds errors under the status 200.
        await self._client.meta.events.emit(
            f"before-parse.s3.{model.name}", operation_model=model, response_dict=said, customized_response_dict={}
        )
        parsed: dict[str, Any] = await create_parser("rest-xml").parse(said, model.output_shape)
        if said["status_code"] < HTTPStatus.MULTIPLE_CHOICES:
            return parsed
        error = self._client.exceptions.from_code(parsed.get("Error", {}).get("Code"))
        raise error(parsed, model.name)


def _headers(model: Any, parameters: Answer) -> dict[str, str]:  # noqa: ANN401 - untyped
    """Return the headers that the parameters of an operation become."""
    headers: dict[str, str] = {}
    for name, value in parameters.items():
        member = model.input_shape.members[name].serialization
        if member.get("location") == "header":
            headers[member["name"]] = value
        elif member.get("location") == "headers":
            headers |= {member["name"] + key: text for key, text in value.items()}
    return headers


class _Session(AIOHTTPSession):  # type: ignore[misc] # untyped
    """An HTTP session that sends each request once.

    aiohttp itself repeats a PUT or DELETE whose connection broke, when the first one may have taken effect and been
    overwritten since, and goes where a redirection leads, where a PUT may become a GET that succeeds. Of a request
    that was given up it still sends the rest, which may take effect after a later one.
    """

    def _create_connector(self, proxy_url: str | None) -> aiohttp.TCPConnector:
        connector: aiohttp.TCPConnector = super()._create_connector(proxy_url)
        factory = connector._factory  # noqa: SLF001 - aiohttp has no other way to name the class
        protocol = cast("type[ResponseHandler]", _Protocol)
        connector._factory = functools.partial(protocol, **factory.keywords)  # noqa: SLF001 - as above
        return connector

    def close_idle(self) -> None:
        """Close the connections that nobody uses."""
        for session in self._sessions.values():
            # aiohttp has no other way; it passes over those that are closed.
            connector: Any = session.connector
            for connections in connector._conns.values():  # noqa: SLF001
                for connection, _ in connections:
                    connection.close()

    # What uses it needs no more than its ``request``.
    async def _get_session(self, proxy_url: str | None) -> Any:  # noqa: ANN401 - not a ClientSession, but as good
        return _Once(await super()._get_session(proxy_url))


class _Protocol(ResponseHandler):
    """A connection that takes back what was not sent yet when it is closed; an idle one has nothing to take back."""

    def close(self) -> None:
        if self.transport is not None:
            reset(self.transport)
        super().close()


class _Once:
    """What aiobotocore uses of ``aiohttp.ClientSession``."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def request(
        self,
        method: str,
        *,
        headers: CIMultiDict[str],
        **options: Any,  # noqa: ANN401 - passed on
    ) -> aiohttp.ClientResponse:
        # The first lets the event loop look at its sockets, the second lets it act on what it saw: so connections that
        # the server has closed leave the pool before one is taken from it.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if int(headers.get("Content-Length", 0)) < _LARGE:
            # To ask whether the server wants it would take longer than to send it. The header is not signed.
            headers.pop("Expect", None)
        response = await self._session.request(
            method, headers=headers, allow_redirects=False, middlewares=(_told,), **options
        )
        if response.status in _REDIRECTIONS:
            # botocore would ask the bucket for its region, and if that is redirected as well, without end.
            response.close()
            raise Redirected(response.status, response.headers.get("x-amz-bucket-region"))
        return response


async def _told(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Raise that a connection broke as an error for which aiohttp does not repeat the request."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        # Nothing was sent, and aiohttp does not repeat it.
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as exc:
        raise aiohttp.ClientPayloadError(str(exc)) from exc
