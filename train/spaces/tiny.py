"""The space that fits a laptop: a dynamic net for small devices."""

from __future__ import annotations

from zoo.specs import StagedSpec
from zoo.train.spaces.dynamic import Gene, Section, Space, Values


def tiny() -> Space:
    """1.3 to 43 M MACs for CIFAR-10: stages of 3x3 blocks, one width and one depth a stage.

    Wide and shallow nets are in it as well as narrow and deep ones. A width for a whole stage keeps the space compound
    (CompOFA, Sahni et al. 2021): its sub-nets are fewer, and better for it.
    """
    widths = ((12, 16, 20, 24, 28, 32, 36), (28, 36, 44, 52, 60, 68, 76, 84), tuple(range(64, 193, 16)))
    stages = [f"stage{s}" for s in (1, 2, 3)]
    depths = (1, 2, 3, 4)
    genes = [
        gene
        for stage, choices in zip(stages, widths, strict=True)
        for gene in (Gene(f"{stage}.depth", depths, stage), Gene(f"{stage}.width", choices, stage))
    ]
    sections = [Section(())]  # the stem
    for before, stage in zip([None, *stages], stages, strict=False):
        into = (f"{before}.width", f"{stage}.width") if before else (f"{stage}.width",)
        sections.append(Section(into))
        sections += [Section((f"{stage}.width",), stage, block) for block in range(1, max(depths))]
    sections.append(Section((f"{stages[-1]}.width",)))  # the head

    def architecture(values: Values) -> StagedSpec:
        return StagedSpec(
            widths=tuple((int(values[f"{s}.width"]),) * int(values[f"{s}.depth"]) for s in stages),
            resolutions=(16, 8, 4),
            activation="silu",
        )

    return Space("tiny", tuple(genes), tuple(sections), architecture)
