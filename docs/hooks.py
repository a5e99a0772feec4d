"""What the site has beyond the files of docs/: pages made from the code, so that they cannot go stale.

A page asks for what is made by a comment, which a reader of the bare file does not see: `<!-- made: settings -->`.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from raysuite.cli import app
from raysuite.config import described
from raysuite.sweeps.declared import Sweep

ROOT = Path(__file__).resolve().parents[1]
BESIDE = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Documents of the project's root that the site has, and what they are called there."""
ASKED = re.compile(r"^<!-- made: (\w+)(?: (\S+))? -->$", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Pages that the navigation does not name come last in Guides."""
    named = set(re.findall(r"[\w/-]+\.md", json.dumps(config.nav)))
    guides = next(entry["Guides"] for entry in config.nav or [] if "Guides" in entry)
    guides += [page.name for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in named]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """The documents of the project's root are pages, too."""
    for beside, name in BESIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / beside)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in what a page asks for, and let links to files that the site has not be words."""
    made = ASKED.sub(lambda found: MAKERS[found[1]](*filter(None, [found[2]])), markdown)
    return re.sub(r"(?<!!)\[([^\]]+)\]\(((?!https?:|#)[^)#\s]+)(#[^)]*)?\)", lambda link: _link(link, page), made)


def _link(link: re.Match[str], page: Page) -> str:
    """A link as the site has it: pages of the root by their names there, files of the repository by their paths."""
    words, target, anchor = link[1], link[2], link[3] or ""
    source = BESIDE_AT.get(page.file.src_uri, ROOT / "docs" / page.file.src_uri)
    path = (source.parent / target).resolve()
    if path.is_relative_to(ROOT / "docs"):
        return f"[{words}]({path.relative_to(ROOT / 'docs')}{anchor})" if source.parent == ROOT else link[0]
    inside = str(path.relative_to(ROOT))
    if inside in BESIDE:
        return f"[{words}]({'../' * page.file.src_uri.count('/')}{BESIDE[inside]}{anchor})"
    return f"`{inside}`" if words.strip("`") == inside else f"{words} (`{inside}`)"


BESIDE_AT = {name: ROOT / beside for beside, name in BESIDE.items()}


# every setting


def settings() -> str:
    """A table for each section of a run, and for each objective."""
    parts = [_group(f"## {group.name or 'The run'}", group) for group in described.sections()]
    parts += ["## objective", inspect.cleandoc(OBJECTIVE)]
    parts += [_group(f"### {group.name}", group) for group in described.objectives()]
    return "\n\n".join(parts)


OBJECTIVE = """
What an update descends. `name` says which; the other settings are its own. An objective replaces that of an extended recipe whole.
"""


def _group(title: str, group: described.Group) -> str:
    return "\n\n".join([title, group.said, *([_settings(group.settings)] if group.settings else [])])


def _settings(settings: Sequence[described.Setting]) -> str:
    def row(setting: described.Setting) -> tuple[str, ...]:
        default = "" if setting.default is None else f"`{setting.default}`"
        return f"`{setting.path}`", setting.values, default, setting.meaning

    return _table([row(setting) for setting in settings], ("setting", "values", "default", "meaning"))


def _table(rows: list[tuple[str, ...]], header: tuple[str, ...]) -> str:
    """A table in Markdown. What looks like a tag (`runs/<name>`) is text."""
    lines = [header, ("---",) * len(header), *([_cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    outside = (part if code % 2 else part.replace("<", "&lt;") for code, part in enumerate(text.split("`")))
    return "`".join(outside).replace("|", "\\|")


def sweep() -> str:
    """The fields of a sweep."""
    return _settings(described.fields(Sweep))


# every command


def commands() -> str:
    """What `raysuite COMMAND --help` says of every command."""
    return "\n\n".join(_commands(typer.main.get_command(app), ""))


def _commands(command: Any, name: str) -> Iterator[str]:
    """A command, or a group of them."""
    if not hasattr(command, "commands") or getattr(command, "invoke_without_command", False):
        yield _command(name, command)
    for inner, one in getattr(command, "commands", {}).items():
        yield from _commands(one, f"{name} {inner}".strip())


def _command(name: str, command: Any) -> str:
    rows = []
    for parameter in command.params:
        words = (
            ", ".join(parameter.opts) if parameter.param_type_name == "option" else parameter.metavar or parameter.name
        )
        said = (getattr(parameter, "help", None) or "").replace("\\[", "[")
        rows.append((f"`{words}`", said))
    arguments = [row[0].strip("`") for row in rows if not row[0].startswith("`-")]
    usage = " ".join(["raysuite", name, "[OPTIONS]", *arguments])
    return f"## {name}\n\n{inspect.cleandoc(command.help or '')}\n\n```\n{usage}\n```\n\n{_table(rows, ('argument', 'meaning'))}"


# the API


def api(package: str) -> str:
    """Every module of a package of the suite, in the order of its names."""
    folder = ROOT / package.replace(".", "/")
    names = sorted(file.stem for file in folder.glob("*.py") if file.stem != "__init__")
    front = f"::: {package}\n    options: {{members: {json.dumps(_own(folder))}, show_root_heading: false}}"
    return "\n\n".join([front, *(f"::: {package}.{name}\n    options: {{heading_level: 2}}" for name in names)])


def _own(folder: Path) -> list[str]:
    """What a package's own file defines."""
    body = ast.parse((folder / "__init__.py").read_text()).body
    defined = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assigned = [ast.unparse(t) for node in body if isinstance(node, ast.Assign) for t in node.targets]
    return [name for name in defined + assigned if not name.startswith("_")]


MAKERS: dict[str, Callable[..., str]] = {"settings": settings, "sweep": sweep, "commands": commands, "api": api}
