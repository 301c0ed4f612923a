"""A store of ours, by its URL."""

from worker import serve

from dagonizer import open_store

if __name__ == "__main__":
    serve(open_store)
