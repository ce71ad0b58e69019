"""A space of a few dozen nets that train in seconds."""

from __future__ import annotations

from zoo.specs import StagedSpec
from zoo.train.spaces.dynamic import Gene, Section, Space

GENES = (
    Gene("stage1.depth", (1, 2, 3), "stage1"),
    Gene("stage1.width", (4, 6, 8), "stage1"),
    Gene("stage2.depth", (1, 2), "stage2"),
    Gene("stage2.width", (6, 8, 12), "stage2"),
)
SECTIONS = (
    Section(()),
    Section(("stage1.width",)),
    Section(("stage1.width",), "stage1", 1),
    Section(("stage1.width",), "stage1", 2),
    Section(("stage1.width", "stage2.width")),
    Section(("stage2.width",), "stage2", 1),
    Section(("stage2.width",)),
)


def architecture(values):
    widths = tuple((values[f"{s}.width"],) * values[f"{s}.depth"] for s in ("stage1", "stage2"))
    return StagedSpec(widths=widths, resolutions=(8, 4), stem=4, stem_resolution=16)


def micro() -> Space:
    return Space("micro", GENES, SECTIONS, architecture)


RECIPE = """
name = "proard-micro"
description = "for tests"
family = "proard"

[supernet]
space = "micro"

[teacher]
name = "largest"

[method]
name = "ard"
inner = "n-fgsm"
ce = 0.5
kl = 0.5

[train]
epochs = 2
batch_size = 50
images = 500
compile = false
precision = "fp32"
weights = "fp16"

[attack]
step = 0.03

[ema]
recalibrate = 100
decay = 0.9

[guard]
images = 50
steps = 1
drop = 0.01

[predictor]
subnets = 20
images = 50
steps = 2
members = 2

[phase.train]
"supernet.own.name" = "n-fgsm"

[preset.phases]
"train.epochs" = 1
"""
