pytest_plugins = ["dagonizer_test_servers.plugin"]
