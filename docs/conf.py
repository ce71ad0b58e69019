"""The site of the documentation: ``make docs``, or ``sphinx-build -W -c docs . build/site``.

Sphinx reads the pages where they are, README.md first, so that a link is the same here and on GitHub. Nothing is
fetched: no fonts, no scripts from elsewhere. Diagrams are drawn when the site is built.
"""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import zoo

try:
    from merman import Merman
except ModuleNotFoundError:  # it does not exist for Linux on Arm: there diagrams stay text
    Merman = None

ROOT = Path(__file__).resolve().parents[1]
CONTENTS = {
    "Guide": ("quickstart", "choosing", "data", "exporting", "device", "training", "page", "hub"),
    "Robustness": ("robustness", "numbers"),
    "Studies": ("engines", "int8", "nvidia", "corruptions", "students", "methods", "rnascl", "proard"),
    "Reference": ("cli", "api", "../examples/README"),
    "Speed": (
        "speed",
        "../benchmarks/results/2026-11-27",
        "../benchmarks/results/2026-11-26",
        "../benchmarks/results/2026-11-21",
        "../benchmarks/results/bundle",
        "../benchmarks/results/autoattack",
        "../benchmarks/results/rnascl",
        "../benchmarks/results/proard-supernet",
    ),
    "Project": ("architecture", "../CONTRIBUTING", "../SECURITY", "../CHANGELOG"),
}

EXAMPLES = re.compile("\b\n(.+):\n((?:  .+\n)+)")  # in a help text, lines after a \\b are kept as they are

project = "Robust Zoo"
project_copyright = "the authors of Robust Zoo, Apache-2.0"
version = release = zoo.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "examples/README.md", "benchmarks/results/*.md"]
exclude_patterns = [".*", "build", "bundles", "runs", "shared", "tests", "zoo", "train", "export"]

myst_heading_anchors = 4
myst_enable_extensions = ["html_image"]
smartquotes = False  # they would make dashes of the options of the command line
suppress_warnings = [] if Merman else ["misc.highlighting_failure"]
autodoc_preserve_defaults = True
autodoc_type_aliases = {name: name for name in ("ArchSpec", "Level")}  # else spelled out, validators and all
napoleon_use_rtype = False
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
copybutton_prompt_text = "$ "

html_theme = "furo"
html_title = f"Robust Zoo {version}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_search_summary = False  # it fetches, which a page from a file cannot


class CommandLine(SphinxDirective):
    """Every verb of ``zoo`` with its arguments and options, as the command line itself has them."""

    def run(self) -> list[nodes.Node]:
        from typer.cli import get_docs_for_click
        from typer.main import get_command

        from zoo.cli.app import VERBS, app

        group, pages = get_command(app), []
        with group.make_context("zoo", ["--help"], resilient_parsing=True) as context:
            for verb in VERBS:
                command = group.get_command(context, verb)
                page = get_docs_for_click(obj=command, ctx=context, name=verb, call_prefix="zoo")
                page = EXAMPLES.sub(lambda found: f"**{found[1]}**:\n\n```console\n{dedent(found[2])}```\n", page)
                pages.append(re.sub("^#+ .*", f"## zoo {verb}", page.replace("\b\n", ""), count=1))
        return self.parse_text_to_nodes("\n".join(pages), allow_section_headings=True)


def contents(app: Sphinx, page: str, source: list[str]) -> None:
    """Append the table of contents to README.md, which is the first page."""
    if page == root_doc:
        for caption, pages in CONTENTS.items():
            listed = "\n".join(f"/docs/{one}" for one in pages)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{listed}\n```\n"


def diagrams(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Draw every block of Mermaid."""
    for block in list(tree.findall(nodes.literal_block)):
        if Merman and block["language"] == "mermaid":
            drawn = Merman().render_svg(block.astext(), None)
            block.replace_self(nodes.raw("", f'<div class="diagram" tabindex="0">{drawn}</div>', format="html"))


def signatures(
    app: Sphinx, what: str, name: str, given: Any, options: Any, signature: str | None, returned: Any
) -> Any:
    """Aliases of types by their names: Sphinx 9.0 leaves its own wrapper around them."""
    return signature and (re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", signature), returned)


def accessible(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: nodes.document | None) -> None:
    """What scrolls can be reached by keyboard, and headings of the navigation have a level."""
    body, navigation = context.get("body", ""), context.get("furo_navigation_tree", "")
    body = body.replace("<pre>", '<pre tabindex="0">').replace(
        '<div class="table-wrapper', '<div tabindex="0" class="table-wrapper'
    )
    context["body"] = body
    context["furo_navigation_tree"] = navigation.replace('role="heading"', 'role="heading" aria-level="2"')


def first_page(app: Sphinx, error: Exception | None) -> None:
    """index.html leads to README.html."""
    if error is None:
        text = f'<!doctype html><meta charset="utf-8"><title>{html_title}</title>'
        text += f'<meta http-equiv="refresh" content="0; url={root_doc}.html"><a href="{root_doc}.html">{project}</a>\n'
        (Path(app.outdir) / "index.html").write_text(text, encoding="utf-8", newline="\n")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("command-line", CommandLine)
    app.connect("source-read", contents)
    app.connect("autodoc-process-signature", signatures)
    app.connect("doctree-resolved", diagrams)
    app.connect("html-page-context", accessible, priority=900)  # after the theme's own
    app.connect("build-finished", first_page)
    return {"parallel_read_safe": True}
