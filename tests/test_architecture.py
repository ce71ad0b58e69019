"""The house: rooms import downwards only, and the page that describes them is current."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("docs/*.md"), *ROOT.glob("*.md")))


def test_rooms_import_downwards_only(tmp_path):
    pytest.importorskip("importlinter")
    sys.path.insert(0, str(ROOT / "docs"))
    from architecture import installed

    config = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    check = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", check, *config], cwd=installed(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_diagram_is_made_from_the_code():
    done = subprocess.run([sys.executable, "docs/architecture.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_is_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    linked = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    named = re.findall(r"`((?:zoo|train|export|docs|tests|examples|benchmarks)/[\w./-]+\.\w+)`", text)
    missing = [link for link in linked if link and not (ROOT / page).parent.joinpath(link).exists()]
    assert missing + [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []


def test_every_name_that_a_docstring_refers_to_exists():
    missing = []
    for path in sorted(path for room in ("zoo", "train", "export") for path in (ROOT / room).rglob("*.py")):
        for name in re.findall(r":(?:func|mod|class|data|meth):`~?(zoo\.[\w.]+)`", path.read_text(encoding="utf-8")):
            if not _exists(name):
                missing.append(f"{path.relative_to(ROOT)}: {name}")
    assert missing == []


def _exists(name: str) -> bool:
    """Whether ``name`` is a module, or an attribute of one, or of a class in one."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            if not hasattr(found, part) and part not in getattr(found, "__dataclass_fields__", {}):
                return False
            found = getattr(found, part, None)
        return True
    return False
