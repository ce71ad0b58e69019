"""Run the benchmarks; write ``benchmarks/results/latest.json`` and a Markdown table beside it, anew after each."""

from __future__ import annotations

import importlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from zoo.system.files import write_atomic
from zoo.system.toolchain import toolchain

NAMES = ("startup", "engines", "bundle", "evaluation", "training", "distillation", "rnascl", "proard", "supernet")
RESULTS = Path(__file__).parent / "results"


def number(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio >= 2 else f"{ratio:.2f}"


def page(report: dict, names: list[str]) -> str:
    lines = [
        f"# Speed: {', '.join(names) or 'all benchmarks'} ({report['measured_at'][:10]})",
        "",
        f"Measured {report['measured_at']} on {report['toolchain']['cpu']}, {report['toolchain']['cores']} cores, "
        f"torch {report['toolchain']['torch']}. Medians; a ratio above 1 means that ours is faster.",
        "",
        "| what | contestant | seconds (min-max) | ours is faster by | goal |",
        "| --- | --- | --- | --- | --- |",
    ]
    for result in report["results"]:
        for name, median in result["median_s"].items():
            spread = f"{median:.4g} ({result['min_s'][name]:.4g}-{result['max_s'][name]:.4g})"
            ratio = f"{number(result['speedup'][name])}x" if name in result["speedup"] else "(ours)"
            goal = f"{number(result['goal'][name])}x" if name in result["goal"] else ""
            verdict = f"; accuracy {result['verdict'][name]:.1%}" if name in result.get("verdict", {}) else ""
            memory = f"; {result['peak_mib'][name]:,.0f} MiB" if "peak_mib" in result else ""
            lines.append(f"| {result['what']} | {name} | {spread} | {ratio}{verdict}{memory} | {goal} |")
    return "\n".join(lines) + "\n"


def main(names: list[str]) -> None:
    unknown = set(names) - set(NAMES)
    if unknown:
        raise SystemExit(f"no benchmark is called {', '.join(sorted(unknown))} (known: {', '.join(NAMES)})")
    report: dict = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "toolchain": toolchain(),
        "results": [],
    }
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / ("-".join(names) or "latest")
    for name in names or NAMES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        report["results"] += importlib.import_module(f"benchmarks.{name}").run()
        write_atomic(stem.with_suffix(".json"), (json.dumps(report, indent=2) + "\n").encode())
        write_atomic(stem.with_suffix(".md"), page(report, names).encode())
    print(page(report, names))


if __name__ == "__main__":
    main(sys.argv[1:])
