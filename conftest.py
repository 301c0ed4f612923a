"""The servers are fixtures of every test."""

pytest_plugins = ["dagonizer_test_servers.plugin"]
