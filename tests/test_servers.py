"""The servers of the tests: who reads of a failure learns how they were."""

import subprocess
import sys

FAILING = """
def test_that_fails(redis_server):
    redis_server.down()
    assert not redis_server.url

def test_that_uses_no_server():
    assert False
"""


def test_a_failed_test_tells_how_its_servers_were(tmp_path):
    test = tmp_path / "test_failing.py"
    test.write_text(FAILING)
    command = [sys.executable, "-m", "pytest", "-p", "dagonizer_test_servers.plugin", "--rootdir", tmp_path, test]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    _, _, told = ran.stdout.partition("redis server")
    assert "it was killed" in told
    assert "Ready to accept connections" in told
    assert "redis server" not in told
