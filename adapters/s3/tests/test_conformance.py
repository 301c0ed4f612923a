"""The conformance kit on the S3 store, with hooks for all that it can ask."""

from __future__ import annotations

import asyncio
from functools import cached_property
from typing import Any

import boto3
from botocore.exceptions import ClientError

from dagonizer import StoreURL
from dagonizer_conformance import suite
from dagonizer_s3 import S3Config
from dagonizer_s3 import _names as names
from dagonizer_test_servers.harness import ServerHarness


class S3Harness(ServerHarness):
    """The shared server, in whose bucket each namespace has a prefix of its own."""

    kind = "s3"

    @cached_property
    def client(self) -> Any:
        config = self.config("unused")
        return boto3.client(
            "s3",
            endpoint_url=config.endpoint_url,
            region_name=config.region,
            aws_access_key_id=config.access_key_id,
            aws_secret_access_key=config.secret_access_key,
        )

    async def entries(self) -> list[str]:
        def listed() -> list[str]:
            listing = self.client.list_objects_v2(Bucket=self.config("n").bucket, Prefix="dgzconf-")
            return [entry["Key"] for entry in listing.get("Contents", ())]

        return await asyncio.to_thread(listed)

    def address(self) -> str:
        url, _, query = self.server.url.partition("?")
        return f"{url.removesuffix('/')}/{{namespace}}?{query}&timeout=8"

    async def peek(self, namespace: str, key: str) -> str | None:
        def get() -> bytes:
            return self.client.get_object(**self.object(namespace, key))["Body"].read()

        try:
            return (await asyncio.to_thread(get)).decode(errors="surrogateescape")
        except ClientError as exc:
            assert exc.response["Error"]["Code"] == "NoSuchKey"
            return None

    async def poke(self, namespace: str, key: str, text: str) -> None:
        def put() -> None:
            self.client.put_object(**self.object(namespace, key), Body=text.encode(errors="surrogateescape"))

        await asyncio.to_thread(put)

    def describe_namespaces(self) -> str:
        return "prefixes"

    def config(self, namespace: str) -> S3Config:
        return S3Config.from_url(StoreURL.parse(self.address().format(namespace=namespace)))

    def object(self, namespace: str, key: str) -> dict[str, str]:
        config = self.config(namespace)
        return {"Bucket": config.bucket, "Key": f"{config.prefix}/{names.segment_of(key.encode())}"}


TestS3 = suite(S3Harness(), require="CRASH-SAFE", budget="smoke")
