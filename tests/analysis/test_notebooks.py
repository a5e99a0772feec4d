"""The notebooks run from the first cell to the last, at small size, and are kept with what they found at full size; figures of the
documents are drawn from what was published.
"""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from raysuite.config import load

ANALYSIS = Path(__file__).parents[2] / "analysis"
NOTEBOOKS = sorted(ANALYSIS.glob("*.ipynb"))
MARKS = {"01": [pytest.mark.slow], "03": []}
"""One that trains and one that reads: the others take minutes more."""

IN_PROCESS = """
import re, shlex
from raysuite.cli import main

def system(line):
    words = re.search(r"-m raysuite.cli (.*?)( \\| tail -n \\d+| > \\S+ 2>&1)?$", shell.var_expand(line, depth=1))[1]
    try:
        main([*shlex.split(words), "--set", "cluster.actors=1"])
    except SystemExit as left:
        assert not left.code, words

shell = get_ipython()
shell.system = system
"""
"""What a page gives to a shell runs in its own process instead, where Ray and torch start once for all of its commands, and
with one actor: at this size a second one takes longer to start than it saves.
"""


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")  # Jupyter's own affairs
@pytest.mark.parametrize(
    "notebook",
    [pytest.param(page, id=page.stem, marks=MARKS.get(page.stem[:2], [pytest.mark.exhaustive])) for page in NOTEBOOKS],
)
def test_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "analysis"
    place.mkdir()
    (tmp_path / "docs").symlink_to(ANALYSIS.parent / "docs")  # what was published, for pages that read it
    for beside in (*ANALYSIS.glob("*.yaml"), *ANALYSIS.glob("*.py")):
        shutil.copy(beside, place)
    monkeypatch.setenv("RAYSUITE_SMALL", "1")
    monkeypatch.setenv("PYTHONPATH", str(ANALYSIS.parent))
    page = nbformat.read(notebook, as_version=4)
    page.cells.insert(0, nbformat.v4.new_code_cell(IN_PROCESS))
    NotebookClient(page, timeout=900, resources={"metadata": {"path": str(place)}}).execute()


def test_the_recipe_of_the_notebooks_is_one() -> None:
    """For the objectives that compare pictures, whose pairs it sets: the first page itself is among the slow tests."""
    trained = {"objective": "{name: trajectory_dpo, strength: 10, discount: 1}"}
    assert load(str(ANALYSIS / "exact-world.yaml"), trained).preferences.limit == 512


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_its_figures_and_says_what_was_found(notebook: Path) -> None:
    page = nbformat.read(notebook, as_version=4)
    code = [cell for cell in page.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), "execute it at full size before committing it"
    outputs = [output for cell in code for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert not any(output.output_type == "error" for output in outputs)
    assert not any("@@" in cell.source or "/tmp" in cell.source for cell in page.cells)


def test_figures_of_the_documents_are_drawn_from_their_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ANALYSIS))
    figures = importlib.import_module("figures")
    assert all((figures.DOCS / f"{called}.png").is_file() for called in figures.FIGURES)
    first, *others = figures.contest_gained().axes
    assert [len(axes.collections) for axes in (first, *others)] == [2 * 10] * 6  # an interval and its seeds
    names = [label.get_text() for label in first.get_yticklabels()]
    assert names[0] == "forward RL" and first.lines[1].get_xdata() == pytest.approx([0.065625])
    assert len(figures.contest_tuning().axes[0].get_yticklabels()) == 10
    panels = [axes for axes in figures.longer_curves("contest").axes if axes.axison]
    assert len(panels) == 10 and {len(axes.lines) for axes in panels} == {5 + 1 + 2}  # seeds, their mean, two marks
    cosines = [[line.get_xdata()[0] for line in axes.lines[1:]] for axes in figures.contest_directions_after().axes]
    assert [(len(of), sum(cosine > 0 for cosine in of), of[0] < 0) for of in cosines] == [
        (10, 3, True),
        (10, 4, True),
        (10, 6, True),
    ]
    dspo, cal_dpo, cosine = figures.contest_labels_tossed().axes
    sizes = [[line.get_xdata()[0] for line in axes.lines] for axes in (dspo, cal_dpo)]
    assert [sum(size > 0 for size in of) for of in sizes] == [20, 9]  # the rest show no direction
    before, tossed = (line.get_xdata()[0] for line in cosine.lines[1:3])
    assert -1 <= tossed < before < 0
