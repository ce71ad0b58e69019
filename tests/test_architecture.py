"""The house: rooms import downwards only, and the page that describes them is current."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = ("zoo", "train", "export", "docs", "benchmarks", "examples")
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


def test_the_light_tests_are_there():
    named = (ROOT / ".ci" / "light").read_text(encoding="utf-8").split()
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_every_name_that_a_docstring_refers_to_exists():
    missing = []
    for path in sorted(path for room in ("zoo", "train", "export") for path in (ROOT / room).rglob("*.py")):
        for name in re.findall(r":(?:func|mod|class|data|meth):`~?(zoo\.[\w.]+)`", path.read_text(encoding="utf-8")):
            if not _exists(name):
                missing.append(f"{path.relative_to(ROOT)}: {name}")
    assert missing == []


def test_text_files_are_utf8_and_have_the_same_line_ends_everywhere():
    faults = []
    for path in sorted(path for room in CODE for path in (ROOT / room).rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and (missing := _missing(call)):
                faults.append(f"{path.relative_to(ROOT)}:{call.lineno} lacks {', '.join(missing)}")
    assert faults == []


def _missing(call: ast.Call) -> list[str]:
    """The arguments that ``call`` should have, if it opens a text file."""
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    mode = call.args[1].value if len(call.args) > 1 and isinstance(call.args[1], ast.Constant) else "r"
    opens = name == "fdopen" or (isinstance(call.func, ast.Name) and name == "open")
    if not (name in ("read_text", "write_text") or (opens and "b" not in str(mode))):
        return []
    writes = name == "write_text" or (name == "open" and not str(mode).startswith("r"))
    given = {keyword.arg for keyword in call.keywords}
    return sorted({"encoding", *(["newline"] if writes else [])} - given)


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
