"""Broken stores, each caught by a case, and the correct one that they are made from."""
