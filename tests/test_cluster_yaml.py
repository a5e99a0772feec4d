"""`ray up cluster.yaml` would accept the file, and the file fits the rest of the checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent


@pytest.fixture
def cluster() -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture
def pins() -> dict[str, str]:
    lines = (line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#"))
    requirements = [Requirement(line) for line in lines]
    return {r.name: str(r.specifier).removeprefix("==") for r in requirements}


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))


def test_the_validation_sees_mistakes(cluster: dict[str, Any]) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(ValidationError, match="max_worker"):
        validate_config(prepare_config(cluster | {"max_worker": 1}))


def test_workers_fit_the_cap(cluster: dict[str, Any]) -> None:
    workers = [kind for name, kind in cluster["available_node_types"].items() if name != cluster["head_node_type"]]
    assert workers
    for kind in workers:
        assert kind["min_workers"] <= kind["max_workers"] <= cluster["max_workers"]


@pytest.mark.parametrize("image", ["head_image", "worker_image"])
def test_images_run_the_pinned_ray(cluster: dict[str, Any], pins: dict[str, str], image: str) -> None:
    tag = cluster["docker"][image].partition(":")[2]
    assert tag.startswith(f"{pins['ray']}-py311-")


def test_mounted_files_are_in_the_checkout_or_the_token(cluster: dict[str, Any]) -> None:
    """Without a token Ray would let in whoever reaches it, with a warning on the machines alone."""
    assert cluster["file_mounts"].pop("/home/ray/.ray/auth_token") == "~/.ray/auth_token"
    assert "-e RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    for remote, local in cluster["file_mounts"].items():
        assert (ROOT / local).exists()
        assert any(remote in command for command in cluster["setup_commands"])


def test_jobs_write_where_the_storage_is_mounted(cluster: dict[str, Any]) -> None:
    mounts = [option.removeprefix("-v ") for option in cluster["docker"]["run_options"] if option.startswith("-v ")]
    host, inside = mounts[0].split(":")
    assert inside == "/home/ray/raysuite-runs"  # the default of jobs/train.py
    (mount,) = (line for line in cluster["initialization_commands"] if f" {host}" in line and "mount -t" in line)
    assert "lookupcache=positive" in mount  # or a learner that looked for a request to stop does not see one that comes
