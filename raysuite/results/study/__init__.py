"""Studies of directions: what was measured, its figures and its page."""

from raysuite.results.study.read import Estimate, Rung, Study, read_study

__all__ = ["Estimate", "Rung", "Study", "read_study"]
