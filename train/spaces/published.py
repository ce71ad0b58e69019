"""ProARD's two published spaces: Once-for-All's (Cai et al. 2020) with strides for images of 32 pixels."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.specs import BottleneckSpec, MobileNetV3Spec
from zoo.specs.base import divisible
from zoo.specs.bottleneck import BottleneckStage, BottleneckStem
from zoo.specs.mobilenetv3 import InvertedBlock, InvertedStage
from zoo.train.spaces.dynamic import Gene, Section, Space, Values


def resnet(
    widths: Sequence[int] = (256, 512, 1024, 2048),
    depths: Sequence[int] = (2, 2, 4, 2),
    expands: Sequence[float] = (0.2, 0.25, 0.35),
    stem: int = 64,
) -> Space:
    """Bottleneck ResNets: 285 to 2,358 M MACs, 5.2 to 46 M parameters, 1.6e12 sub-nets.

    The paper counts 2.5e12, because two widths of the stem's middle both give 24 channels.

    Args:
        widths, stem: the largest channels of each stage and of the stem's output; 0.65 and 0.8 of them are choices.
        depths: the least blocks of each stage; one and two more are choices.
        expands: hidden channels of a block, as a share of its stage's width.
    """
    mids = dict.fromkeys(divisible(width // 2) for width in _scaled(stem))
    genes = [
        Gene("stem.depth", (0, 1), "stem"),  # without and with its residual convolution
        Gene("stem.mid.width", tuple(mids), "stem"),
        Gene("stem.width", _scaled(stem), "stem"),
    ]
    sections = [
        Section(("stem.mid.width",)),
        Section(("stem.mid.width",), "stem", 0),
        Section(("stem.mid.width", "stem.width")),
    ]
    stages, before = [f"stage{number}" for number in range(1, len(widths) + 1)], "stem"
    for stage, width, depth in zip(stages, widths, depths, strict=True):
        genes.append(Gene(f"{stage}.depth", (depth, depth + 1, depth + 2), stage))
        genes.append(Gene(f"{stage}.width", _scaled(width), stage))
        for block in range(depth + 2):
            expand = Gene(f"{stage}.block{block}.expand", tuple(expands), stage, block)
            c_in = () if block else (f"{before}.width",)
            genes.append(expand)
            sections.append(Section((*c_in, f"{stage}.width", expand.name), stage, block))
        before = stage
    sections.append(Section((f"{before}.width",)))  # the head

    def architecture(values: Values) -> BottleneckSpec:
        built: list[BottleneckStage] = []
        for stage in stages:
            width = int(values[f"{stage}.width"])
            expands = [values[f"{stage}.block{block}.expand"] for block in range(int(values[f"{stage}.depth"]))]
            hidden = tuple(divisible(round(width * expand)) for expand in expands)
            built.append(BottleneckStage(width=width, hidden=hidden, stride=2 if built else 1))
        channels = BottleneckStem(
            mid=int(values["stem.mid.width"]), out=int(values["stem.width"]), residual=values["stem.depth"] == 1
        )
        return BottleneckSpec(stem=channels, stages=tuple(built))

    return Space("resnet", tuple(genes), tuple(sections), architecture)


def _scaled(channels: int) -> tuple[int, ...]:
    return tuple(divisible(channels * scale) for scale in (0.65, 0.8, 1.0))


# Of each stage: stride, activation, squeeze-and-excitation.
STAGES = (
    (1, "relu", False),
    (2, "relu", True),
    (2, "hardswish", False),
    (1, "hardswish", True),
    (2, "hardswish", True),
)


def mbv3(
    widths: Sequence[int] = (24, 40, 80, 112, 160),
    depths: Sequence[int] = (2, 3, 4),
    kernels: Sequence[int] = (3, 5, 7),
    expands: Sequence[int] = (3, 4, 6),
    last: tuple[int, int] = (960, 1280),
) -> Space:
    """MobileNetV3s: 35 to 180 M MACs, 2.1 to 6.4 M parameters, 2.2e19 sub-nets.

    Args:
        widths: the channels of each stage; the paper's first stages where there are fewer than five.
        depths: the choices of blocks of a stage.
        expands: hidden channels of a block, as a multiple of its input's.
        last: channels of the last two convolutions.
    """
    stages = [f"stage{number}" for number in range(1, len(widths) + 1)]
    genes, sections = [], [Section(()), Section(())]  # the stem, the separable block
    for stage in stages:
        genes.append(Gene(f"{stage}.depth", tuple(depths), stage))
        for block in range(max(depths)):
            kernel = Gene(f"{stage}.block{block}.kernel", tuple(kernels), stage, block)
            expand = Gene(f"{stage}.block{block}.expand", tuple(expands), stage, block)
            genes += [kernel, expand]
            sections.append(Section((kernel.name, expand.name), stage, block))
    sections += [Section(()), Section(())]  # the last convolution, and all that comes after pooling

    def architecture(values: Values) -> MobileNetV3Spec:
        built, c_in = [], 16
        for stage, width, (stride, activation, se) in zip(stages, widths, STAGES, strict=False):
            blocks = []
            for block in range(int(values[f"{stage}.depth"])):
                kernel, expand = (values[f"{stage}.block{block}.{kind}"] for kind in ("kernel", "expand"))
                blocks.append(InvertedBlock(kernel=int(kernel), hidden=divisible(round(c_in * expand))))
                c_in = width
            built.append(InvertedStage(width=width, blocks=tuple(blocks), stride=stride, activation=activation, se=se))
        return MobileNetV3Spec(stages=tuple(built), last=last[0], mix=last[1])

    return Space("mbv3", tuple(genes), tuple(sections), architecture)
