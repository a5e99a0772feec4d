"""Which CPUs this process runs on, and how many it may use, which are often fewer than the machine has."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

MEMBERSHIP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""Where Linux says which control groups a process belongs to, and what they are allowed."""


def usable_cpus() -> int:
    """Those that it may run on (Slurm and taskset name them), within what its control groups have (docker --cpus, Kubernetes)."""
    named = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([named, *_quotas()])))


def processor() -> str:
    """The model of the CPUs where Linux names it, else their kind: results are the same to the bit on one model, and others may round
    otherwise.
    """
    named = (
        line.partition(":")[2].strip()
        for line in _text(Path("/proc/cpuinfo")).splitlines()
        if line.startswith("model name")
    )
    return next(named, platform.machine())


def _quotas() -> Iterator[float]:
    """CPUs of every control group that limits them, from the root to the process's own; of version 2 and 1."""
    for line in _text(MEMBERSHIP).splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        place = GROUPS / "cpu" if controllers else GROUPS
        for step in ("", *group.split("/")):  # in a container its own group may be the root
            place /= step
            limit = _text(place / "cpu.max") or _text(place / "cpu.cfs_quota_us") + _text(place / "cpu.cfs_period_us")
            quota, period = limit.split() or ("none", "")
            if quota.isdigit():  # and not max, or -1
                yield int(quota) / int(period)


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # no Linux, or no such group
        return ""
