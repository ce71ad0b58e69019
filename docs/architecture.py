"""The diagram of docs/architecture.md: which room imports which, read off the code.

``python docs/architecture.py`` redraws it; with ``--check`` it exits with 1 where the page is not current.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path

import grimp
import networkx

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BLOCK = re.compile(r"(?<=<!-- rooms -->\n).*(?=<!-- /rooms -->)", re.DOTALL)


def installed(folder: Path) -> Path:
    """The package laid out as a wheel has it, under ``folder``: grimp looks for modules in folders."""
    for source, target in (("zoo", "zoo"), ("train", "zoo/train"), ("export", "zoo/export")):
        shutil.copytree(ROOT / source, folder / target, ignore=shutil.ignore_patterns("bundled", "__pycache__"))
    return folder


def room(module: str) -> str | None:
    """``zoo.train.run.loop`` is in the room ``train/run``, ``zoo.cli.pick`` in ``cli``; a file by itself is one."""
    _, *parts = module.split(".")
    depth = 2 if parts and parts[0] in ("train", "export") else 1
    return "/".join(parts[:depth]) if len(parts) >= depth else None


def rooms() -> networkx.DiGraph:
    """An edge for every import between two rooms, without those that follow from others."""
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, str(installed(Path(folder))))
        graph = grimp.build_graph("zoo", cache_dir=None)
    found = networkx.DiGraph()
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            one, other = room(importer), room(imported)
            if one and other and one != other and "__main__" not in one and other != "version":
                found.add_edge(one, other)
    return networkx.transitive_reduction(found)


def diagram() -> str:
    """The rooms in Mermaid, by the folder that they lie in; an arrow is an import."""
    graph = rooms()
    lines = ["```mermaid", "flowchart TD"]
    for folder in ("", "train", "export"):
        own = sorted(name for name in graph if name.partition("/")[0] == folder or (not folder and "/" not in name))
        lines += [f"  subgraph {folder or 'zoo'}", *(f"    {_key(name)}[{name}]" for name in own), "  end"]
    lines += [f"  {_key(one)} --> {_key(other)}" for one, other in sorted(graph.edges)]
    return "\n".join([*lines, "```", ""])


def _key(name: str) -> str:
    return name.replace("/", "_")


if __name__ == "__main__":
    before = PAGE.read_text(encoding="utf-8")
    after = BLOCK.sub(lambda match: diagram(), before)
    if "--check" in sys.argv[1:]:
        sys.exit(before != after and "docs/architecture.md is not current: run python docs/architecture.py")
    PAGE.write_text(after, encoding="utf-8", newline="\n")
