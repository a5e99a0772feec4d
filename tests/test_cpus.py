"""CPUs that a process may use: its affinity mask, and the quotas of its control groups."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from raysuite import cpus


@pytest.mark.parametrize(
    ("membership", "files", "usable"),
    [
        ("", {}, 8),  # no Linux
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),  # docker --cpus=4
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, 8),
        ("0::/job/step\n", {"job/cpu.max": "300000 100000\n", "job/step/cpu.max": "max 100000\n"}, 3),
        (
            "4:memory:/far\n3:cpu,cpuacct:/docker/one\n0::/\n",
            {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            2,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
    ],
)
def test_cpus_are_those_of_the_mask_within_the_quota(
    membership: str, files: dict[str, str], usable: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "membership").write_text(membership)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cpus, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(cpus, "GROUPS", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert cpus.usable_cpus() == usable


@pytest.mark.parametrize(
    ("told", "named"), [("processor\t: 0\nmodel name\t: Some CPU: 9\n", "Some CPU: 9"), ("", platform.machine())]
)
def test_the_processor_is_named_where_linux_does(told: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "_text", lambda file: told)
    assert cpus.processor() == named
