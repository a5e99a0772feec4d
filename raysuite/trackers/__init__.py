"""Trackers: where a run's numbers and pictures go besides its directory. One file per tracker; the place to add one.

The run directory is the record, and a tracker is told what is in it by the process that started the run: where the user's
credentials are, and where no tracker can disturb the learning. What a tracker could not be told is told again later.
"""

from __future__ import annotations

from raysuite.trackers.follow import following, preflight, tell
from raysuite.trackers.tracker import Picture, Tracker

__all__ = ["Picture", "Tracker", "following", "preflight", "tell"]
