"""Refresh docs/rnascl.md: ``python docs/rnascl.py [RUN ...]`` takes over the searches of the run folders named
(runs/rnascl-...), draws them again, and writes the table of results from the registry."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from zoo import info, list_models
from zoo.train.rnascl.plot import draw

DOCS = Path(__file__).parent
PAGE = DOCS / "rnascl.md"
SPACES = ("s7", "s5", "s3")
COLUMNS = {
    "clean": "clean",
    "fgsm": "FGSM",
    "pgd20": "PGD-20",
    "mifgsm20": "MI-FGSM-20",
    "cw20": "CW-20",
    "apgd50": "APGD-50",
    "autoattack": "AutoAttack",
}


def take_over(runs: list[str]) -> None:
    for run in runs:
        found = json.loads((Path(run) / "search" / "search.json").read_text())
        (DOCS / f"search-{found['space']}.json").write_text(json.dumps(found) + "\n")


def table() -> str:
    """Ours, and the paper's below it where it reports something; then the control."""
    lines = [
        f"| model | M MACs | {' | '.join(COLUMNS.values())} | minutes |",
        f"| --- | ---: | {' | '.join('---:' for _ in COLUMNS)} | ---: |",
    ]
    for space in SPACES:
        for name in (*sorted(list_models(f"rnascl-{space}-*")), *list_models(f"trades-{space}")):
            entry = info(name)
            cells = []
            for key in COLUMNS:
                result = entry.results.get(key)
                half = 50 * (result.accuracy.ci95[1] - result.accuracy.ci95[0]) if result else 0
                cells.append(f"{100 * result.accuracy.value:.1f} ±{half:.1f}" if result else "-")
            minutes = " + ".join(f"{phase.wall_s / 60:.0f}" for phase in entry.train.phases or (entry.train,))
            lines.append(f"| `{name}` | {entry.macs / 1e6:.1f} | {' | '.join(cells)} | {minutes} |")
            if entry.reported:
                told = [f"{100 * entry.reported[key].value:.1f}" if key in entry.reported else "" for key in COLUMNS]
                lines.append(f"| the paper's | | {' | '.join(told)} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    take_over(sys.argv[1:])
    for stored in DOCS.glob("search-*.json"):
        draw(json.loads(stored.read_text()), stored.with_suffix(".png"))
    PAGE.write_text(
        re.sub(
            r"(<!-- results -->\n).*?(<!-- /results -->)",
            lambda found: f"{found[1]}{table()}\n{found[2]}",
            PAGE.read_text(),
            flags=re.DOTALL,
        )
    )
