"""Refresh docs/rnascl.md: ``python docs/rnascl.py [RUN ...]`` takes over the searches of the run folders named
(runs/rnascl-...), draws them again, and writes the table of results from the registry."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from results import COLUMNS, cells, markdown, put

from zoo import info, list_models
from zoo.report.stories import RELEASED
from zoo.train.rnascl.plot import draw

DOCS = Path(__file__).parent
PAGE = DOCS / "rnascl.md"
SPACES = ("s7", "s5", "s3")


def take_over(runs: list[str]) -> None:
    for run in runs:
        found = json.loads((Path(run) / "search" / "search.json").read_bytes())
        path = RELEASED / f"search-{found['space']}.json"
        path.write_text(json.dumps(found) + "\n", encoding="utf-8", newline="\n")


def table() -> str:
    """Ours, and the paper's below it where it reports something; then the control."""
    rows = []
    for space in SPACES:
        for name in (
            *sorted(list_models(f"rnascl-{space}-*")),
            *list_models(f"trades-{space}"),
            *list_models(f"nfgsm-{space}*"),
        ):
            entry = info(name)
            minutes = " + ".join(f"{phase.wall_s / 60:.0f}" for phase in entry.train.phases or (entry.train,))
            rows.append([f"`{name}`", f"{entry.macs / 1e6:.1f}", *cells(entry), minutes])
            if entry.reported:
                told = [f"{100 * entry.reported[key].value:.1f}" if key in entry.reported else "" for key in COLUMNS]
                rows.append(["the paper's", "", *told, ""])
    return markdown(["model", "M MACs", *COLUMNS.values(), "minutes"], rows)


if __name__ == "__main__":
    take_over(sys.argv[1:])
    for stored in RELEASED.glob("search-*.json"):
        draw(json.loads(stored.read_bytes()), DOCS / f"{stored.stem}.png")
    put(PAGE, {"results": table()})
