"""ProARD's spaces, what they cost, and the static nets that are cut out of their dynamic ones; channel sorting."""

from __future__ import annotations

import copy
import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fold import lived_in, norms
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from zoo.evaluation.evaluate import prepare
from zoo.models import build
from zoo.models.fold import fold_batchnorm
from zoo.models.staged import ConvBlock
from zoo.models.subnet import skeleton
from zoo.specs import BottleneckSpec, StagedSpec, cost, parse_spec
from zoo.system.errors import UsageError
from zoo.train.proard.elastic import Elastic
from zoo.train.proard.sort import sort_hidden
from zoo.train.spaces import space_called
from zoo.train.spaces.dynamic import Space
from zoo.train.spaces.published import mbv3, resnet

PUBLISHED = {name: space_called(name) for name in ("tiny", "resnet", "mbv3")}
SMALL = {
    "tiny": PUBLISHED["tiny"],
    "resnet": resnet(widths=(64, 96), depths=(1, 1), expands=(0.25, 0.5)),
    "mbv3": mbv3(widths=(16, 24, 32), depths=(1, 2), last=(64, 80)),
}
SEEDS = st.integers(0, 2**32 - 1)


def drawn(space: Space, seed: int) -> np.ndarray:
    """One sub-net, [G], genes without effect included."""
    return np.random.default_rng(seed).integers(space.choices)


def images(n: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=SMALL)
def net(request) -> Elastic:
    torch.manual_seed(0)
    net = Elastic(SMALL[request.param])
    for name, parameter in net.named_parameters():
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif name.endswith("head.weight"):
            torch.nn.init.normal_(parameter)
    return net


# -- genes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
@given(seed=SEEDS)
@settings(max_examples=15)
def test_the_canonical_form_is_reached_at_once_and_survives_values_and_encoding(name, seed):
    space = PUBLISHED[name]
    genes = drawn(space, seed)
    canonical = space.canonical(genes[None])
    assert np.array_equal(space.canonical(canonical), canonical)
    assert np.array_equal(space.genes_of(space.values(genes)), canonical[0])
    code = space.encode(genes[None])[0]
    assert code.shape == (space.choices.sum(),)
    parts = np.split(code, np.cumsum(space.choices)[:-1])
    active = space.active(genes[None])[0]
    assert [part.sum() for part in parts] == active.tolist()
    assert [part.argmax() for part in parts] == canonical[0].tolist()


@pytest.mark.parametrize("name", ["resnet", "mbv3"])
@given(seed=SEEDS)
@settings(max_examples=15)
def test_genes_of_blocks_that_are_not_there_change_nothing(name, seed):
    space = PUBLISHED[name]
    genes = drawn(space, seed)
    other = np.where(space.active(genes[None])[0], genes, drawn(space, seed + 1))
    assert space.spec(genes) == space.spec(other)
    assert np.array_equal(space.encode(genes[None]), space.encode(other[None]))
    assert np.array_equal(space.canonical(genes[None]), space.canonical(other[None]))
    assert space.macs(genes[None]) == space.macs(other[None])


@pytest.mark.parametrize(
    "space",
    [resnet(widths=(64,), depths=(1,), expands=(0.25, 0.5)), mbv3(widths=(24, 40), depths=(1, 2), kernels=(3, 5))],
    ids=["resnet", "mbv3"],
)
def test_the_size_is_the_number_of_different_architectures(space):
    rows = np.array(list(itertools.product(*(range(n) for n in space.choices))))
    canonical = np.unique(space.canonical(rows), axis=0)
    assert space.size() == len(canonical) == len({space.spec(row) for row in canonical})


def test_sampling_and_mutation_stay_in_the_space_and_are_canonical():
    space, rng = PUBLISHED["mbv3"], np.random.default_rng(0)
    genes = space.sample(500, rng)
    changed = space.mutate(genes, rng, rate=0.1)
    for rows in (genes, changed):
        assert np.array_equal(rows, space.canonical(rows))
        assert (rows >= 0).all()
        assert (rows < space.choices).all()
    assert np.array_equal(space.mutate(genes, rng, rate=0.0), genes)
    active = space.active(genes) & space.active(changed)
    assert 0.04 < (genes != changed)[active].mean() < 0.09  # a tenth is redrawn, and a third of that is the same


# -- cost --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
@given(seed=SEEDS)
@settings(max_examples=15)
def test_the_table_has_the_macs_of_every_architecture(name, seed):
    space = PUBLISHED[name]
    genes = space.sample(3, np.random.default_rng(seed))
    assert space.macs(genes).tolist() == [cost(space.spec(row)).macs for row in genes]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_analytic_cost_is_what_a_forward_pass_counts(name):
    space = PUBLISHED[name]
    for genes in (space.smallest[0], space.largest[0], drawn(space, 1), drawn(space, 2)):
        spec = space.spec(genes)
        net = skeleton(spec)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            copy.deepcopy(net).eval()(torch.empty(1, 3, 32, 32, device="meta"))
        assert cost(spec) == (counter.get_total_flops() // 2, sum(one.numel() for one in net.parameters()))


def test_the_published_spaces_cost_what_the_paper_says():
    def millions(name: str) -> list[tuple[int, int]]:
        space = PUBLISHED[name]
        ends = (cost(space.spec(genes[0])) for genes in (space.smallest, space.largest))
        return [(round(macs / 1e6), round(params / 1e6)) for macs, params in ends]

    assert millions("resnet") == [(285, 5), (2358, 46)]
    assert millions("mbv3") == [(35, 2), (180, 6)]  # the paper tells no parameters


def test_the_published_spaces_have_as_many_sub_nets_as_the_paper_says():
    """2e19; and 2.5e12, where the paper counts the stem's two smaller middles apart, both of which have 24 channels."""
    assert PUBLISHED["mbv3"].size() == 7371**5
    assert PUBLISHED["resnet"].size() * 3 // 2 == 2 * 3**6 * 117**3 * 1053
    assert [f"{space.size():.0e}" for space in (PUBLISHED["mbv3"], PUBLISHED["resnet"])] == ["2e+19", "2e+12"]


# -- what is cut out -----------------------------------------------------------------------------------------------


def homes(net: Elastic, spec) -> dict[str, str]:
    """By the names of a sub-net's parameters, those of the dynamic net's that they come from."""
    names = [name for name, _ in skeleton(spec).named_parameters()]
    if not isinstance(spec, StagedSpec):
        return {name: name for name in names}
    blocks = [(s, b) for s, stage in enumerate(net.full.spec.widths) for b in range(len(stage))]
    own = [block for block in blocks if block[1] < len(spec.widths[block[0]])]
    places = {f"features.{own.index(block) + 1}.": f"features.{blocks.index(block) + 1}." for block in own}
    places |= {"features.0.": "features.0.", "head.": "head."}
    return {name: new + name.removeprefix(old) for name in names for old, new in places.items() if name.startswith(old)}


@pytest.mark.parametrize("seed", range(3))
def test_a_frozen_sub_net_is_the_live_one_to_the_last_bit(net, seed):
    spec, x = net.space.spec(drawn(net.space, seed)), images(4, seed)
    net = copy.deepcopy(net).to(memory_format=torch.channels_last)
    frozen = net.freeze(spec, [x])
    with torch.no_grad():
        live = net(x, spec)
        assert live.std() > 0.01
        static = copy.deepcopy(frozen).train()
        assert torch.equal(static(x), live)
        state = {**net.weights(spec), **dict(frozen.named_buffers())}
        again = functional_call(copy.deepcopy(skeleton(spec)).eval(), state, (x,))
        assert torch.equal(frozen(x), again)


@pytest.mark.parametrize("seed", range(2))
def test_gradients_of_a_sub_net_reach_the_leading_parts_of_its_layers_and_nothing_else(net, seed):
    spec = net.space.spec(drawn(net.space, seed))
    net.zero_grad()
    net(images(), spec).square().sum().backward()
    shapes = {home: skeleton(spec).get_parameter(name).shape for name, home in homes(net, spec).items()}
    for name, parameter in net.full.named_parameters():
        if name not in shapes:
            assert parameter.grad is None, name
            continue
        part = tuple(slice(n) for n in shapes[name])
        if len(part) == 4:  # of a kernel, the centre: the transforms are identities
            part = part[:2] + tuple(
                slice((n - m) // 2, (n + m) // 2) for n, m in zip(parameter.shape[2:], shapes[name][2:], strict=True)
            )
        assert parameter.grad[part].any(), name
        outside = parameter.grad.clone()
        outside[part] = 0
        assert not outside.any(), name


# -- kernels -------------------------------------------------------------------------------------------------------


def kernels(space: Space, sizes: tuple[int, ...]) -> StagedSpec:
    """The largest MobileNetV3 of the space, its kernels ``sizes`` in turn."""
    values = space.values(space.largest[0])
    names = [name for name in values if name.endswith(".kernel")]
    return space.spec(space.genes_of({**values, **dict(zip(names, itertools.cycle(sizes), strict=False))}))


def test_a_transform_is_shared_over_channels_and_chained():
    torch.manual_seed(0)
    net = Elastic(SMALL["mbv3"])
    for one in net.transform.parameters():
        torch.nn.init.normal_(one)
    name = "features.stage1.block0.depthwise.conv"
    five, three = (net.transform[name.replace(".", "_")][size] for size in ("5", "3"))
    weight = net.weights(kernels(net.space, (3,)))[f"{name}.weight"]
    for channel in range(len(weight)):
        middle = (net.full.get_parameter(f"{name}.weight")[channel, 0, 1:6, 1:6].flatten() @ five).view(5, 5)
        torch.testing.assert_close(weight[channel, 0].flatten(), middle[1:4, 1:4].flatten() @ three)


# -- sorting -------------------------------------------------------------------------------------------------------


def mass(net: Elastic) -> dict[str, torch.Tensor]:
    """The L1 norm of the weights that take each channel in, for all channels that can be sorted."""

    def norms(*weights: torch.Tensor) -> torch.Tensor:
        return torch.stack([weight.abs().transpose(0, 1).flatten(1).sum(1) for weight in weights]).sum(0)

    spec = net.full.spec
    if isinstance(spec, StagedSpec):
        blocks = [module for module in net.full.modules() if isinstance(module, ConvBlock)]
        readers = iter([*(block.conv.weight for block in blocks[2:]), net.full.head.weight])
        return {f"stage{s}": norms(*itertools.islice(readers, len(stage))) for s, stage in enumerate(spec.widths)}
    reading = r"spatial\.conv|expand\.conv" if isinstance(spec, BottleneckSpec) else r"project\.conv|se\.expand"
    hidden = re.compile(rf"features\.stage\d\.block\d\.({reading})")
    return {name: norms(module.weight) for name, module in net.full.named_modules() if hidden.fullmatch(name)}


@torch.no_grad()
def test_sorting_leaves_the_largest_as_it_was_and_gives_the_smaller_the_channels_of_most_weight(net):
    net = copy.deepcopy(net)
    x, smallest = images(4), net.space.spec(net.space.smallest[0])
    before, logits, of_smallest = mass(net), net(x), net(x, smallest)
    sort_hidden(net)
    torch.testing.assert_close(net(x), logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(net(x, smallest), of_smallest, rtol=0.01)
    assert len(before) >= 3
    for name, sums in mass(net).items():
        assert not torch.allclose(before[name], sums), name
        torch.testing.assert_close(sums, before[name].sort(descending=True).values, msg=name)


def test_channels_that_shortcuts_tie_to_fewer_cannot_be_sorted():
    spec = StagedSpec(widths=((8, 12),), resolutions=(16,), stem=4)
    with pytest.raises(UsageError, match="a shortcut connects 8 to 12 channels, so choose a space with one width"):
        sort_hidden(Elastic(Space("odd", (), (), lambda values: spec)))


# -- static nets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet", "mbv3"])
def test_sub_nets_fold_are_prepared_for_attacks_and_survive_json(name):
    torch.manual_seed(0)
    spec = SMALL[name].spec(drawn(SMALL[name], 3))
    assert parse_spec(spec.to_dict()) == parse_spec(spec.model_dump_json()) == spec
    model, x = lived_in(build(spec)).eval(), images(4)
    torch.nn.init.normal_(model.head.weight)
    with torch.no_grad():
        expected = model(x)
        assert expected.std() > 0.01
        torch.testing.assert_close(prepare(model)(x), expected, rtol=1e-4, atol=1e-4)
    assert norms(model) > 0
    assert norms(fold_batchnorm(model)) == 0


# -- errors --------------------------------------------------------------------------------------------------------


def test_an_unknown_space_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r"no space is called 'resnt'; did you mean 'resnet'\? \(known: tiny, resnet"):
        space_called("resnt")


@pytest.mark.parametrize(
    ("genes", "says"),
    [
        ([0], r"space resnet has 29 genes, not an array of shape \[1\]"),
        ([2] + [0] * 28, "gene 'stem.depth' of space resnet is 2: it must be 0 to 1"),
        ([0] * 28 + [-1], r"gene 'stage4.block3.expand' of space resnet is -1: it must be 0 to 2"),
    ],
)
def test_invalid_genes_are_refused(genes, says):
    with pytest.raises(UsageError, match=says):
        PUBLISHED["resnet"].spec(np.array(genes))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"stage1.block0.kernel": 4}, r"'stage1.block0.kernel' of space mbv3 cannot be 4 \(choices: 3, 5, 7\)"),
        ({"stage1.block0.kernle": 3}, "no gene 'stage1.block0.kernle'; did you mean 'stage1.block0.kernel'"),
        ({"stage5.block1.expand": None}, "'stage5.block1.expand' of space mbv3 has no value"),
    ],
)
def test_invalid_values_are_refused(change, says):
    space = PUBLISHED["mbv3"]
    values = {**space.values(space.smallest[0]), **change}
    with pytest.raises(UsageError, match=says):
        space.genes_of({name: value for name, value in values.items() if value is not None})


STEM = {"mid": 8, "out": 8}
STAGE = {"width": 8, "hidden": [8], "stride": 1}
INVERTED = {"width": 8, "stride": 1, "activation": "relu", "se": True, "blocks": [{"kernel": 3, "hidden": 8}]}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"arch": "bottleneck", "stages": [STAGE]}, r"'bottleneck.stem'"),
        ({"arch": "bottleneck", "stem": STEM, "stages": []}, r"'bottleneck.stages'"),
        ({"arch": "bottleneck", "stem": STEM, "stages": [{**STAGE, "hidden": []}]}, r"stages.0.hidden"),
        ({"arch": "bottleneck", "stem": STEM, "stages": [{**STAGE, "stride": 3}]}, r"stages.0.stride"),
        ({"arch": "bottleneck", "stem": STEM, "stages": [STAGE] * 2 + [{**STAGE, "stride": 2}] * 6}, "not 1"),
        ({"arch": "mobilenetv3", "stages": [{**INVERTED, "blocks": [{"kernel": 4, "hidden": 8}]}]}, "blocks.0.kernel"),
        ({"arch": "mobilenetv3", "stages": [{**INVERTED, "colour": 1}]}, "stages.0.colour"),
    ],
)
def test_a_bad_spec_is_refused_with_the_place_and_the_reason(data, says):
    with pytest.raises(UsageError, match=says):
        parse_spec(data)
