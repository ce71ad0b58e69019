"""The models that ship: do the registry's numbers stand up to being measured again?"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from zoo import info, list_models, load, pick
from zoo.datasets.base import to_float
from zoo.evaluation.evaluate import evaluate
from zoo.evaluation.perturb import perturb
from zoo.evaluation.protocols import EPS, PROTOCOLS, RELEASED, protocol
from zoo.train.recipes.phases import load_recipe
from zoo.weights.load import BUNDLED
from zoo.weights.release import stored_bits


@pytest.fixture(scope="module")
def pixels(cifar):
    test = cifar.split("test")
    return test.images, test.labels


def test_what_a_15m_budget_finds_was_measured_with_the_whole_protocol():
    assert set(pick(flops="15M").results) >= set(RELEASED)


def test_weights_are_small_enough_to_come_with_the_package():
    sizes = {path.name: path.stat().st_size for path in BUNDLED.glob("*.safetensors")}
    assert len(sizes) > 20
    assert max(sizes.values()) <= 5e6
    assert sum(sizes.values()) <= 40e6


@pytest.mark.parametrize("name", list_models())
def test_every_released_model_has_its_protocols_and_their_bits(name):
    entry, bits = info(name), stored_bits(name)
    student = entry.macs < 100e6  # a teacher costs too much to be attacked in every way
    assert set(entry.results) >= (set(RELEASED) - {"autoattack"} if student else {"clean", "pgd20"})
    for key, result in entry.results.items():
        assert result.accuracy.n == PROTOCOLS[key].n == len(bits[key])
        assert result.accuracy.value == bits[key].mean()
        assert not (bits[key] & ~bits["clean"][: len(bits[key])]).any()  # no attack mends an image


@pytest.mark.parametrize("name", list_models())
def test_white_box_attacks_are_at_least_as_strong_as_weaker_ones(name):
    bits = stored_bits(name)
    accuracy = {key: one.mean() for key, one in bits.items()}
    assert accuracy["clean"] > accuracy["pgd20"]
    if accuracy["pgd20"] > 0.1 and "noise" in bits:  # noise hurts a model that is not robust
        assert accuracy["clean"] - accuracy["noise"] < 0.02
    if "apgd50" in bits:
        assert accuracy["clean"] > accuracy["fgsm"] > accuracy["pgd20"] > accuracy["apgd50"] - 0.005
    if "autoattack" in bits:  # on the first 1,000 of the same images
        assert bits["autoattack"].mean() <= bits["apgd50"][:1000].mean()


@pytest.mark.parametrize("name", list_models())
def test_bits_are_reproduced_but_for_rounding(name, pixels):
    model, (images, labels) = load(name), (array[:100] for array in pixels)
    x, y = to_float(images), torch.tensor(labels)
    for key in ("clean", "fgsm"):
        if key in info(name).results:
            with torch.no_grad():
                bits = model(perturb(protocol(key), model, x, y)).argmax(1).numpy() == labels
            assert (bits != stored_bits(name)[key][:100]).sum() <= 1


@pytest.mark.parametrize("space", ["s7", "s5", "s3"])
def test_the_short_name_of_a_paper_finds_the_best_student_that_keeps_its_promise(space, pixels):
    """Searched in the space, taught by a robust WideResNet-34, and robust itself."""
    entry = info(f"rnascl-{space}-wrt34")
    named = [info(name) for name in list_models(f"rnascl-{space}-wrt34*")]
    able = [one for one in named if one.accuracy("autoattack") and one.train.teacher.name == "nfgsm-wrn34-2"]
    assert entry == max(able, key=lambda one: one.accuracy("autoattack"))
    assert entry.name == f"rnascl-{space}-wrt34-2-trades"
    assert entry.train.teacher.name == "nfgsm-wrn34-2"
    model = load(f"rnascl-{space}-wrt34")
    images, labels = (array[:50] for array in pixels)
    robust = evaluate(model, images, labels, protocol("pgd20"))
    assert (robust != stored_bits(entry.name)["pgd20"][:50]).sum() <= 1


@pytest.mark.parametrize("name", ["nfgsm-p4", "nfgsm-p12"])
def test_a_model_that_was_renamed_is_found_by_its_old_name(name):
    entry = info(name)
    assert (entry.family, entry.train.teacher.name, entry.train.recipe) == ("ard", "nfgsm-w15", name)
    assert load(name).spec.to_dict() == entry.spec
    assert load_recipe(name).name == entry.name
    assert load_recipe(name).arch == load(name).spec


def test_a_15m_budget_finds_a_student_within_it():
    entry = pick(flops="15M")
    assert entry.macs <= 15_000_000
    assert entry.results["pgd20"].accuracy.value == max(
        info(name).results["pgd20"].accuracy.value for name in list_models(max_flops="15M")
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_robustness_survives_the_sanity_checks(name, pixels):
    images, labels = (array[:500] for array in pixels)
    model = load(name)

    def accuracy(**changes) -> float:
        settings = protocol("pgd20").model_copy(update=changes)
        return float(evaluate(model, images, labels, settings).mean())

    by_eps = [accuracy(eps=eps, step=eps / 4) for eps in (1e-9, EPS / 2, EPS, 2 * EPS, 4 * EPS, 8 * EPS)]
    assert by_eps == sorted(by_eps, reverse=True)
    assert by_eps[-1] < 0.01
    by_steps = [accuracy(steps=steps) for steps in (1, 5, 20, 100)]
    assert all(more <= fewer + 0.005 for fewer, more in pairwise(by_steps))
    assert by_steps[2] - by_steps[3] < 0.015  # PGD-100 is about PGD-20
    once, often = accuracy(), accuracy(restarts=10)
    assert 0 <= once - often < 0.02
    assert np.isclose(once, stored_bits(name)["pgd20"][:500].mean(), atol=0.01)
