"""The JavaScript of the site: DataTables and Vega-Lite, as their Python packages carry them. Nothing is downloaded."""

from __future__ import annotations

import re
import shutil
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from zoo.system.cache import cached, intact
from zoo.system.errors import IntegrityError, MissingDependency

PACKAGES = {"itables": "itables", "vl_convert": "vl-convert-python"}
EXPORTS = re.compile(r"export\s*\{([^{}]*)\};?")
VEGA = "Vega, Vega-Lite and Vega-Embed, (c) University of Washington Interactive Data Lab, BSD-3-Clause"


def require() -> None:
    """Raise MissingDependency unless the extra ``report`` is installed."""
    missing = [package for module, package in PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise MissingDependency(
            f"zoo report needs {', '.join(missing)}: install the extra with pip install 'robust-zoo[report]'"
        )


def libraries() -> dict[str, str]:
    """The scripts by the name of their file: ``datatables.js`` and ``vega.js``.

    Raises:
        IntegrityError: DataTables is not the module that it should be.
    """
    return {"datatables.js": _datatables(), "vega.js": _vega()}


def _datatables() -> str:
    """DataTables with jQuery, which sets ``window.DataTable``.

    itables has it as a module, and browsers load no module from a file: its exports become a property of ``window``.
    """
    package = find_spec("itables")  # to import it takes seconds, as it imports pandas
    assert package is not None
    assert package.origin is not None
    module = (Path(package.origin).parent / "html" / "dt_bundle.js").read_text(encoding="utf-8")
    (*_, exports), body = EXPORTS.findall(module) or [""], EXPORTS.sub("", module)
    names = dict(pair.split(" as ")[::-1] for pair in exports.split(",") if " as " in pair)
    if "default" not in names:
        raise IntegrityError(
            f"DataTables of itables {version('itables')} has no default export: install another version"
        )
    return _alone(f'"use strict";{body}\nwindow.DataTable = {names["default"]};')


def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed, which set ``window.vegaEmbed``. They are bundled once, in seconds, and cached."""
    import vl_convert

    def bundle(folder: Path) -> None:
        script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
        (folder / "vega.js").write_text(f"/*! {VEGA} */\n{_alone(script)}", encoding="utf-8", newline="\n")

    maker = f"vega 1 of vl-convert {version('vl-convert-python')}"
    key = f"page-{sha256(maker.encode()).hexdigest()[:16]}"
    place = cached(key, bundle)
    if not intact(place / "vega.js"):
        shutil.rmtree(place)
        cached(key, bundle)
    return (place / "vega.js").read_text(encoding="utf-8")


def _alone(script: str) -> str:
    """``script`` with names of its own."""
    return f"(() => {{\n{script}\n}})();\n"
