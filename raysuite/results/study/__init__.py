"""Studies of directions: what was measured, its figures and its page."""

from raysuite.results.study.read import Study, read_study

__all__ = ["Study", "read_study"]
