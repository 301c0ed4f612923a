"""The configuration, its URLs and the plugin."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any, cast

import pytest

import dagonizer_s3
from dagonizer.errors import StoreURLError
from dagonizer.registry import store_endpoints
from dagonizer.url import Host, StoreURL
from dagonizer_s3 import S3CheckpointStore, S3Config, _plugin
from dagonizer_s3._client import connected

LOCAL = "http://127.0.0.1:9000"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket", {}),
        ("s3://bucket/", {}),
        ("s3://my.bucket-1", {"bucket": "my.bucket-1"}),
        ("s3://bucket/prefix", {"prefix": "prefix"}),
        ("s3://bucket/a/b:c/", {"prefix": "a/b:c"}),
        ("s3://bucket/a%2Fb", {"prefix": "a/b"}),
        ("s3://me:se%2Fcret@bucket/p", {"prefix": "p", "access_key_id": "me", "secret_access_key": "se/cret"}),
        (f"s3://bucket?endpoint_url={LOCAL}", {"endpoint_url": LOCAL}),
        (
            "s3://bucket?endpoint_url=https%3A%2F%2Fs3.example.org%2Fpath",
            {"endpoint_url": "https://s3.example.org/path"},
        ),
        ("s3://bucket?region=eu-central-1", {"region": "eu-central-1"}),
        ("s3://bucket?profile=work", {"profile": "work"}),
        ("s3://bucket?addressing=virtual", {"addressing": "virtual"}),
        ("s3://bucket?addressing=path", {"addressing": "path"}),
        ("s3://bucket?sse=AES256", {"sse": "AES256"}),
        ("s3://bucket?sse=aws:kms&sse_kms_key_id=alias/k", {"sse": "aws:kms", "sse_kms_key_id": "alias/k"}),
        ("s3://bucket?ca_bundle=/etc/ca.pem", {"ca_bundle": "/etc/ca.pem"}),
        ("s3://bucket?max_connections=3", {"max_connections": 3}),
        ("s3://bucket?timeout=2.5", {"timeout": 2.5}),
        ("s3://bucket?compression=zstd", {"compression": "zstd"}),
    ],
)
def test_a_url_says_every_part_of_the_configuration(url: str, expected: dict[str, Any]) -> None:
    assert S3Config.from_url(StoreURL.parse(url)) == S3Config(**{"bucket": "bucket", **expected})


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3:", "bucket is missing"),
        ("s3:///prefix", "bucket is missing"),
        ("s3:bucket/prefix", "bucket is missing"),
        ("s3://one,two/p", "one bucket only"),
        ("s3://bucket:9000/p", "a bucket has no port.*endpoint_url"),
        ("s3://ab", "3 to 63"),
        ("s3://-bucket", "3 to 63"),
        ("s3://b%C3%BCcket", "3 to 63"),
        ("s3://bu%2Fcket", "3 to 63"),
        ("s3://bucket/a//b", "nothing between"),
        ("s3://bucket//a", "nothing between"),
        ("s3://bucket/../a", "must not have"),
        ("s3://bucket/./a", "must not have"),
        ("s3://bucket/%C3%A9", "must consist of"),
        ("s3://bucket/a%5Cb", "must consist of"),
        ("s3://bucket/a%0Ab", "must consist of"),
        ("s3://bucket/" + "p" * 769, "more than 768"),
        ("s3://me@bucket", "together"),
        ("s3://:secretsecret@bucket", "together"),
        ("s3://me:secretsecret@bucket?profile=p", "exclude each other"),
        ("s3://bucket?endpoint=x", "did you mean 'endpoint_url'"),
        ("s3://bucket?endpoint_url=localhost:9000", "http://host:port"),
        ("s3://bucket?endpoint_url=ftp://localhost", "http://host:port"),
        ("s3://bucket?endpoint_url=http://", "http://host:port"),
        ("s3://bucket?endpoint_url=http://a_b:1", "http://host:port"),
        ("s3://bucket?endpoint_url=http://h:99999", "http://host:port"),
        ("s3://bucket?endpoint_url=http://me:secretsecret%40h", "http://host:port"),
        ("s3://bucket?endpoint_url=http://h?key=secretsecret", "http://host:port"),
        ("s3://bucket?addressing=host", "one of auto, path, virtual"),
        ("s3://bucket?sse=rot13", "one of AES256, aws:kms, aws:kms:dsse"),
        ("s3://bucket?sse_kms_key_id=secretsecret", "needs sse"),
        ("s3://bucket?sse=AES256&sse_kms_key_id=secretsecret", "needs sse"),
        ("s3://bucket?max_connections=0", "a whole number of at least 1"),
        ("s3://bucket?max_connections=many", "a whole number of at least 1"),
        ("s3://bucket?timeout=0", "a number above 0"),
        ("s3://bucket?timeout=nan", "above 0"),
        ("s3://bucket?timeout=inf", "a finite number"),
        ("s3://bucket?timeout=1e999", "above 0"),
        ("s3://bucket?max_connections=inf", "a whole number of at least 1"),
        ("s3://bucket?region=a&region=b", "given twice"),
        ("s3://bucket?compression=gzip", "one of none, zstd"),
    ],
)
def test_a_wrong_url_is_refused_with_the_reason(url: str, message: str) -> None:
    with pytest.raises(StoreURLError, match=message) as caught:
        S3Config.from_url(StoreURL.parse(url))
    assert "secretsecret" not in repr(caught.value)
    assert "secretsecret" not in repr(caught.value.__cause__)


def test_arguments_that_make_no_sense_are_refused() -> None:
    for timeout in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="timeout"):
            S3Config(bucket="bucket", timeout=timeout)
    with pytest.raises(ValueError, match="max_connections"):
        S3Config(bucket="bucket", max_connections=0)
    with pytest.raises(ValueError, match="compression"):
        S3Config(bucket="bucket", compression=cast("Any", "gzip"))


def test_a_configuration_does_not_show_its_credentials() -> None:
    config = S3Config(bucket="bucket", access_key_id="accessaccess", secret_access_key="secretsecret")
    assert "accessaccess" not in repr(config)
    assert "secretsecret" not in repr(config)
    assert "secret" not in repr(S3CheckpointStore(config))


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        (f"s3://bucket?endpoint_url={LOCAL}", Host("127.0.0.1", 9000)),
        ("s3://bucket?endpoint_url=https://s3.example.org", Host("s3.example.org", 443)),
        ("s3://bucket?endpoint_url=http://[::1]", Host("::1", 80)),
        ("s3://bucket", Host("s3.amazonaws.com", 443)),
        ("s3://bucket?region=eu-central-1", Host("s3.eu-central-1.amazonaws.com", 443)),
        ("s3://bucket?region=cn-north-1", Host("s3.cn-north-1.amazonaws.com.cn", 443)),
    ],
)
def test_the_endpoint_is_the_server_and_not_the_bucket(url: str, endpoint: Host) -> None:
    assert store_endpoints(url) == (endpoint,)


def test_the_plugin_opens_and_describes_s3_urls() -> None:
    description = _plugin.dagonizer_describe_store()
    assert description.schemes == ("s3",)
    assert {p.name: p.default for p in description.parameters} == {
        "endpoint_url": None,
        "region": None,
        "profile": None,
        "addressing": "auto",
        "sse": None,
        "sse_kms_key_id": None,
        "ca_bundle": None,
        "max_connections": 50,
        "timeout": 30.0,
        "compression": "none",
    }
    assert isinstance(_plugin.dagonizer_open_store(StoreURL.parse("s3://bucket/prefix")), S3CheckpointStore)


@pytest.mark.parametrize(
    ("parameters", "start"),
    [
        ({"endpoint_url": LOCAL}, f"{LOCAL}/bucket/key?"),
        ({"endpoint_url": "http://s3.test:1"}, "http://s3.test:1/bucket/key?"),
        ({"endpoint_url": "http://s3.test:1", "addressing": "virtual"}, "http://bucket.s3.test:1/key?"),
        ({"endpoint_url": LOCAL, "addressing": "virtual"}, f"{LOCAL}/bucket/key?"),
        ({"region": "eu-central-1"}, "https://bucket.s3."),
        ({"region": "eu-central-1", "addressing": "path"}, "https://s3.eu-central-1.amazonaws.com/bucket/key?"),
    ],
)
async def test_the_bucket_is_where_addressing_says(parameters: dict[str, Any], start: str) -> None:
    config = S3Config(bucket="bucket", access_key_id="a", secret_access_key="b", **parameters)
    async with connected(config) as client:
        url = await client.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "key"})
        direct = cast("Any", client)
        await direct._find(client.meta.service_model.operation_model("GetObject"), "bucket")
    assert url.startswith(start)
    assert f"{direct._places['bucket'][0]}/key?".startswith(start)


async def test_a_directory_bucket_is_left_to_the_sdk() -> None:
    bucket = "bucket--use1-az1--x-s3"
    async with connected(
        S3Config(bucket=bucket, region="us-east-1", access_key_id="a", secret_access_key="b")
    ) as client:
        direct = cast("Any", client)
        await direct._find(client.meta.service_model.operation_model("GetObject"), bucket)
    assert direct._places == {}


def test_the_package_exports_two_names() -> None:
    assert dagonizer_s3.__all__ == ["S3CheckpointStore", "S3Config"]


def test_the_configuration_does_not_import_the_sdk() -> None:
    code = (
        "import importlib.machinery, sys, types, pathlib\n"
        "import dagonizer.url\n"
        "package = types.ModuleType('dagonizer_s3')\n"
        f"package.__path__ = [str(pathlib.Path({dagonizer_s3.__file__!r}).parent)]\n"
        "sys.modules['dagonizer_s3'] = package\n"
        "import dagonizer_s3._config\n"
        "assert not {'aioboto3', 'botocore', 'aiohttp'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
