from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trustme

from dagonizer_test_servers.s3 import SeaweedFS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def no_aws_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep what the machine has configured for AWS out of the tests, and the tests out of AWS."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / name))


@pytest.fixture(scope="module")
def encrypting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """A server with TLS and keys for server-side encryption."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(folder / "cert.pem", append=True)
    with SeaweedFS(
        f"-s3.cert.file={folder / 'cert.pem'}",
        f"-s3.key.file={folder / 'key.pem'}",
        scheme="https",
        ca_bundle=str(folder / "ca.pem"),
        environment={"WEED_S3_SSE_KEY": "a passphrase for tests"},
    ) as server:
        yield server
