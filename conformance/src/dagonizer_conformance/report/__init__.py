"""The report of a run, in the formats that people, browsers and build servers read."""

from dagonizer_conformance.report._json import read_json
from dagonizer_conformance.report._render import FORMATS, render

__all__ = ["FORMATS", "read_json", "render"]
