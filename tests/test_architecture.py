"""The import rule of docs/architecture.md, held against the code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (
    {"types", "devices", "rng", "errors", "background", "cpus", "signals", "terminal"},
    {"imported", "kernel", "places", "rewritten", "tables"},
    {"config"},
    {"families", "rewards", "worlds"},
    {"stages"},
    {"datasets", "in_context", "study", "suites", "sweeps", "trackers", "writer"},
    {"progress", "results"},
    {"cluster"},
    {"cli"},
)
"""From the ground up: a room imports from floors below its own, and from itself."""
ABOVE_THEIR_OWN = {("rewards", "worlds"), ("types", "devices"), ("devices", "errors")}
"""Rooms of one floor of which the first may import the second."""
OUTSIDE = {
    "ray": {"cluster"},
    "diffusers": {"families", "worlds.scenes.bundled", "worlds.scenes.pretrain"},
    "peft": {"families"},
    "typer": {"cli"},
}
"""Who may import what from outside of the house."""
RESULTS = {"results", "errors", "places", "rewritten", "tables", "kernel.stats", "kernel.guards", "kernel.diversity"}
"""What results may import of the house, so that a report needs neither torch nor Ray."""


def floor(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package without its first name, such as `kernel.stats`, and its file."""
    for path in sorted((ROOT / "raysuite").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / "raysuite").with_suffix("").parts).removesuffix("__init__").rstrip(".")
        if name:
            yield name, path


def imports(path: Path) -> Iterator[str]:
    """Whole names that a file imports, those inside of functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports hide where arrows lead"
            if node.module == "raysuite":
                yield from (f"raysuite.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""


def inside(module: str, places: set[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def test_every_room_has_a_floor() -> None:
    rooms = {name.partition(".")[0] for name, _ in modules()} - {"recipes"}
    assert rooms == set.union(*FLOORS)


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_run_one_way(module: str, path: Path) -> None:
    room = module.partition(".")[0]
    for name in imports(path):
        first, _, rest = name.partition(".")
        if first in OUTSIDE:
            assert inside(module, OUTSIDE[first]), f"{module} imports {name}"
        if first != "raysuite" or not rest:
            continue
        other = rest.partition(".")[0]
        allowed = other == room or floor(other) < floor(room) or (room, other) in ABOVE_THEIR_OWN
        assert allowed, f"{module} imports {name}, which is not below it"
        if room == "results":
            assert inside(rest, RESULTS), f"{module} imports {name}"


def test_the_rule_sees_an_import_inside_of_a_function(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "def f():\n    from raysuite.cluster import launch\n    import ray.train\n    from raysuite import config\n"
    )
    assert list(imports(path)) == ["raysuite.cluster", "ray.train", "raysuite.config"]
