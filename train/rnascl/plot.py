"""Plots of a search: expected MACs over the epochs, width probabilities and tutors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.system.notice import say_once


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draw the contents of a ``search.json`` to the PNG file ``path``.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (the extra ``docs`` has it).
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(11, 8), dpi=130, layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 2))
    left, right, below = (figure.add_subplot(place) for place in (grid[0, 0], grid[0, 1], grid[1, :]))
    _macs(left, found)
    _widths(right, found)
    _tutors(figure, below, found)
    figure.suptitle(
        f"Search of space {found['space'].upper()} within {found['budget'] / 1e6:g} M MACs, teacher {found['teacher']}"
    )
    figure.savefig(path)
    plt.close(figure)


def _macs(axes: Any, found: Mapping[str, Any]) -> None:
    history = found["history"]
    epochs = [epoch["epoch"] for epoch in history]
    axes.plot(epochs, [epoch["expected_macs"] / 1e6 for epoch in history], "o-", color="#0b6e99", label="expected")
    axes.plot(epochs, [epoch["chosen_macs"] / 1e6 for epoch in history], "s--", color="#c2571a", label="chosen")
    axes.axhline(found["budget"] / 1e6, color="#8a8a8a", linewidth=1)
    axes.annotate("budget", (epochs[0], found["budget"] / 1e6), xytext=(0, 3), textcoords="offset points", fontsize=8)
    axes.set_xlabel("epoch of the search")
    axes.set_xticks(range(1, 1 + round(epochs[-1]), max(1, round(epochs[-1] / 8))))
    axes.set_ylabel("million MACs")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def _widths(axes: Any, found: Mapping[str, Any]) -> None:
    """A column for each block with its widths from the bottom up; a darker blue is more probable."""
    from matplotlib.colors import LinearSegmentedColormap

    shade = LinearSegmentedColormap.from_list("shade", ["white", "#0b6e99"])
    last = found["history"][-1]["width_probabilities"]
    chosen = [width for stage in found["spec"]["widths"] for width in stage]
    for block, (choices, p) in enumerate(zip(found["width_choices"], last, strict=True)):
        for width, share in zip(choices, p, strict=True):
            axes.bar(block, 4, 0.86, width - 2, color=shade(float(share)), edgecolor="white")
            ink = "white" if share > 0.5 else "#1b1b1b"
            bold = "bold" if width == chosen[block] else "normal"
            axes.text(block, width, str(width), ha="center", va="center", fontsize=6.5, color=ink, fontweight=bold)
    axes.set_xlabel("block")
    axes.set_xticks(range(len(chosen)))
    axes.tick_params(axis="x", labelsize=8)
    axes.set_ylabel("channels")
    axes.set_xlim(-0.6, len(chosen) - 0.4)
    axes.set_title("width probabilities at the end (bold: chosen)", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _tutors(figure: Any, axes: Any, found: Mapping[str, Any]) -> None:
    p = np.array(found["history"][-1]["tutor_probabilities"])  # [n_s, n_t]
    image = axes.imshow(p, cmap="Blues", vmin=0, vmax=max(0.05, float(p.max())), aspect="auto")
    layers = found["teacher_layers"]
    best = [layers.index(tutor) for tutor in found["tutors"].values()]
    axes.scatter(best, range(len(best)), s=14, color="#c2571a", label="tutor")
    axes.set_xticks(range(len(layers)), layers, rotation=90, fontsize=6)
    axes.set_yticks(range(len(best)), [layer.removesuffix(".conv") for layer in found["tutors"]], fontsize=6)
    axes.set_xlabel("convolution of the teacher")
    axes.set_ylabel("convolution of the student")
    axes.legend(frameon=False, fontsize=8, loc="upper right", bbox_to_anchor=(1, 1.12))
    figure.colorbar(image, ax=axes, label="probability", fraction=0.025, pad=0.01)


def draw_if_possible(found: Mapping[str, Any], path: Path) -> None:
    """:func:`draw`; one sentence on stderr if it fails, for the JSON file has all results."""
    try:
        draw(found, path)
    except ModuleNotFoundError as error:
        say_once(f"no picture of the search was drawn ({error}): pip install 'robust-zoo[docs]'")
    except Exception as error:  # a search took hours: it must not fail by its picture
        say_once(f"no picture of the search was drawn: {type(error).__name__}: {error}")
