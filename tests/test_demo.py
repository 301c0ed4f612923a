"""The demo on every kind of store: a worker is killed, and another process resumes what it left there."""

import json
import subprocess
import sys

import pytest

MODULE = "def function():\n    return 1\n"


@pytest.mark.parametrize("scheme", ["file", "postgresql", "redis", "s3", "etcd", "etcd+http"])
def test_the_demo_resumes_from_the_store(scheme, store_urls, tmp_path):
    for number in range(6):
        (tmp_path / f"module_{number}.py").write_text(MODULE)
    command = [sys.executable, "-m", "dagonizer.cli", "demo", "--json", "--input", str(tmp_path)]
    ran = subprocess.run([*command, "--store", store_urls[scheme]], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    outcome = json.loads(ran.stdout)
    assert outcome["identical"] is True
    assert outcome["problems"] == []
    assert outcome["killed"]["exit"] == -9
    assert [node["worker_1"] for node in outcome["nodes"]] == ["ran", "ran", "killed", "not reached", "not reached"]
    assert [node["worker_2"] for node in outcome["nodes"]] == ["from the checkpoint"] * 2 + ["ran"] * 3
