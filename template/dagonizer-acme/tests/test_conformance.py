"""The conformance kit on a real server, which DAGONIZER_TEST_ACME_URL names."""

from __future__ import annotations

import os

from dagonizer_conformance import suite

URL = os.environ.get("DAGONIZER_TEST_ACME_URL", "acme://localhost?timeout=5")

# The namespaces of the kit are prefixes here. A Harness with more hooks earns CRASH-SAFE.
TestAcme = suite(f"{URL}{'&' if '?' in URL else '?'}prefix={{namespace}}", require="CONCURRENT", budget="smoke")
