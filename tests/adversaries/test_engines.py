"""Engines that are not what they seem, each with its true robust accuracy: the ladder says no more, or refuses."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import bundle_of
from torch import Tensor, nn

from zoo import load
from zoo.datasets.base import Split, to_float
from zoo.export import sign_off, verify_bundle
from zoo.export.bundle.folder import MANIFEST, write_sums
from zoo.export.bundle.manifest import Report
from zoo.export.bundle.source import Known
from zoo.export.engines.interface import Engine
from zoo.export.ladder import climb as climbing
from zoo.export.ladder.climb import Trial, climb
from zoo.export.ladder.terms import Terms
from zoo.export.ladder.witness import Witness
from zoo.export.onnx.graph import save_onnx
from zoo.export.remote import link
from zoo.export.remote.engine import connect
from zoo.models import Classifier
from zoo.system.errors import IntegrityError, ParityGateFailed, RobustnessGateFailed, Unreachable
from zoo.system.files import sha256_file

N = 60  # equal answers on 52 images show 5 points
EPS = 8 / 255


def engine_of(answer: Callable[[Tensor], Tensor]) -> Engine:
    """An engine that answers with ``answer``: images [N, 3, 32, 32] to logits [N, 10]."""

    @torch.no_grad()
    def run(images: np.ndarray) -> np.ndarray:
        return answer(torch.from_numpy(images)).numpy()

    return Engine(run, (3, 32, 32), {"engine": "hostile", "version": "0", "device": "cpu"})


def climbed(
    model: Classifier,
    answer: Callable[[Tensor], Tensor],
    split: Split,
    *,
    n: int = N,
    level: str = "attacked",
    reopen: bool = False,
    **terms,
) -> Report:
    """The report on an engine that gives this answer; with ``reopen`` it can be opened again, without its memory."""
    fresh = deepcopy(answer)
    trial = Trial(
        artifact_sha256="0" * 64,
        files=1,
        level=level,
        split=Split(split.name, split.images[:n], split.labels[:n]),
        terms=Terms(**{"n": n, "margin": 0.05} | terms),
        reopen=(lambda: nullcontext(engine_of(deepcopy(fresh)))) if reopen else None,
    )
    return climb(model, engine_of(answer), trial)


def robust_accuracy(report: Report) -> float:
    return report.rungs[-1].measured["engine"]["accuracy"]


def flags(report: Report) -> list[str]:
    return [flag for rung in report.rungs for flag in rung.measured.get("flags", ())]


def with_head(model: Classifier, factor: float) -> Classifier:
    """The same decisions, and logits that are ``factor`` times as large."""
    scaled = deepcopy(model)
    with torch.no_grad():
        scaled.head.weight *= factor
        scaled.head.bias *= factor
    return scaled


# -- large and small logits ------------------------------------------------------------------------------------


def test_the_verdict_on_an_intact_engine_does_not_depend_on_the_scale_of_its_logits(robust, split):
    plain = climbed(robust, robust, split)
    assert plain.failed is None
    for factor in (1e-3, 1e3):
        model = with_head(robust, factor)
        scaled = climbed(model, model, split)
        assert scaled.failed is None
        assert scaled.rungs[1].measured["relative_difference"] < 1e-5
        assert robust_accuracy(scaled) == pytest.approx(robust_accuracy(plain), abs=0.02)


@pytest.mark.parametrize("factor", [100, 10_000])
def test_large_logits_hide_nothing(fragile, split, factor):
    model = with_head(fragile, factor)
    report = climbed(model, model, split, min_robust=0)
    assert [rung.name for rung in report.rungs][-3:] == ["transfer", "surrogate", "targeted"]
    assert report.rungs[-3].measured["engine"]["accuracy"] <= 0.02
    assert robust_accuracy(report) <= 0.02  # as at factor 1


@pytest.mark.parametrize("factor", [1, 100, 10_000])
def test_large_logits_hide_nothing_on_a_released_net(cifar, factor):
    model = with_head(load("rnascl-s3-wrt34-2").eval(), factor)
    report = climbed(model, model, cifar.split("test"), n=50, margin=0.06, min_robust=0)
    clean, *attacked = (rung.measured["engine"]["accuracy"] for rung in report.rungs[2:])
    assert clean > 0.6
    assert len(attacked) == 3
    assert max(attacked) <= 0.04  # 0.1 % of 10,000 images withstand PGD-20


def test_an_engine_with_other_logits_than_its_twin_is_refused_however_small_they_are(robust, fragile, split):
    for twin, engine in (
        (robust, with_head(robust, 1.01)),
        (with_head(robust, 1e-5), with_head(fragile, 1e-5)),
        (with_head(robust, 1e-5), lambda x: torch.zeros(len(x), 10)),
    ):
        report = climbed(twin, engine, split)
        with pytest.raises(ParityGateFailed, match="differ from the float model's by up to"):
            sign_off(report)
    assert report.rungs[1].measured["max_logit_difference"] < 1e-3  # which an absolute tolerance would allow


def test_a_decision_that_the_tolerance_does_not_explain_fails_parity(robust, split):
    exact = climbed(robust, robust, split, level="parity").rungs[1].measured
    allowed = exact["smallest_margin"] / 1.5

    def swayed(x: Tensor) -> Tensor:
        """Off by less than is allowed, but on both sides of the decision."""
        z = robust(x)
        decided, other = z.topk(2).indices.T
        push = torch.zeros_like(z).scatter(1, other[:, None], 1.0).scatter(1, decided[:, None], -1.0)
        return z + 0.9 * allowed * push

    tolerance = allowed / exact["logit_spread"]
    report = climbed(robust, swayed, split, level="parity", tolerance=tolerance)
    measured = report.rungs[1].measured
    assert measured["relative_difference"] < tolerance < measured["widest_margin_flipped"]
    with pytest.raises(ParityGateFailed, match="the model decides one of the others by"):
        sign_off(report)
    assert climbed(robust, swayed, split, level="parity", tolerance=2 * tolerance).failed is None


# -- few values ------------------------------------------------------------------------------------------------


def test_coarse_logits_are_flagged_and_attacked_by_square_in_fp32_too(fragile, split, monkeypatch):
    monkeypatch.setattr(climbing, "QUERIES", 20)

    def rounded(x: Tensor) -> Tensor:
        return (fragile(x) * 2).round() / 2

    report = climbed(fragile, rounded, split, tolerance=1.0, min_robust=0)
    assert flags(report) == ["coarse logits"]
    assert report.rungs[-1].name == "black-box"
    assert robust_accuracy(report) <= 0.02  # the truth: the gradients of the net behind it find 0
    exact = climbed(fragile, fragile, split, min_robust=0)
    assert flags(exact) == []
    assert exact.rungs[-1].name == "targeted"


# -- memory ----------------------------------------------------------------------------------------------------


class Recognising:
    """Answers within ``reach`` of an image that it knows as at that image, and else as its net."""

    def __init__(self, net: nn.Module, known: Tensor, reach: float) -> None:
        self.net, self.known, self.reach = net, known, reach

    def distances(self, x: Tensor) -> Tensor:
        """From each image to each that is known, by a few of the pixels: [N, M]."""
        some, known = (images[:, :, ::4, ::4].flatten(1) for images in (x, self.known))
        return torch.cdist(some, known, p=torch.inf)

    def __call__(self, x: Tensor) -> Tensor:
        distance, nearest = self.distances(x).min(1)
        return self.net(torch.where((distance < self.reach)[:, None, None, None], self.known[nearest], x))


class Caching(Recognising):
    """Knows every image that it was ever asked about, and answers near it as it did then."""

    def __init__(self, net: nn.Module, reach: float) -> None:
        super().__init__(net, torch.full((1, 3, 32, 32), 9.0), reach)

    def __call__(self, x: Tensor) -> Tensor:
        self.known = torch.cat([self.known, x[self.distances(x).amin(1) >= self.reach]])
        return super().__call__(x)


def test_an_engine_that_recognises_attacked_images_is_refused(fragile, split):
    """Its net has no robustness; on images that it does not know, the engine has none either."""
    report = climbed(fragile, Recognising(fragile, to_float(split.images[:N]), 1.5 * EPS), split)
    assert robust_accuracy(report) > 0.9
    assert flags(report) == ["better than its twin"]
    with pytest.raises(RobustnessGateFailed, match="flagged as better than its twin") as caught:
        sign_off(report)
    assert "no option signs it off" in str(caught.value)


def test_an_engine_that_knows_only_the_test_images_fails_parity_on_moved_ones(robust, split):
    report = climbed(robust, Recognising(robust, to_float(split.images[:N]), torch.inf), split)
    with pytest.raises(ParityGateFailed):
        sign_off(report)


@pytest.mark.parametrize(("reopen", "rung", "flag"), [(True, 3, "unsteady"), (False, 5, "better than its twin")])
def test_an_engine_that_answers_from_a_cache_is_refused(fragile, split, reopen, rung, flag):
    report = climbed(fragile, Caching(fragile, 1.5 * EPS), split, reopen=reopen, min_robust=0)
    assert report.rungs[2].holds
    assert report.rungs[rung].measured["flags"] == [flag]
    assert report.rungs[-1] == report.rungs[rung]
    with pytest.raises(RobustnessGateFailed, match=f"flagged as {flag}"):
        sign_off(report)


def test_a_cache_that_gains_too_little_to_show_is_found_by_a_fresh_engine(robust, split):
    assert flags(climbed(robust, Caching(robust, 1.5 * EPS), split, reopen=True)) == ["unsteady"]


def test_a_witness_finds_what_depends_on_chance_on_the_order_and_on_the_batch(robust, split):
    x, first = to_float(split.images[:128]), torch.eye(10)[0]
    source = torch.Generator().manual_seed(0)
    for answer, changed in (
        (robust, False),
        (lambda x: robust(x) + 0.1 * torch.randn(len(x), 10, generator=source), True),
        (lambda x: robust(x) + 10 * first * x.mean(), True),
        (lambda x: robust(x) + first * torch.arange(len(x))[:, None], True),
    ):
        engine = engine_of(answer)
        witness = Witness(engine, seed=0)
        for batch in x.split(4):
            witness(batch)
        assert len(witness.kept) == 128
        share = witness.changed(engine, 1e-3)
        assert share > 0.9 if changed else share == 0
        assert witness.changed(engine, 0.0) == 0  # it has forgotten them


def test_a_witness_keeps_late_images_as_well_as_early_ones(robust):
    witness = Witness(engine_of(robust), seed=0)
    for step in range(100):
        witness(torch.full((20, 3, 32, 32), step / 100))
    steps = torch.tensor([image[0, 0, 0] * 100 for image, _ in witness.kept.values()])
    assert len(steps) == 256
    assert 40 < steps.mean() < 60


def test_random_answers_are_refused_though_the_tolerance_allows_them(robust, split):
    source = torch.Generator().manual_seed(0)
    report = climbed(
        robust, lambda x: robust(x) + 0.3 * torch.randn(len(x), 10, generator=source), split, tolerance=1e6
    )
    # Parity knows by how much two runs differ, and no more than that is allowed later.
    assert report.rungs[1].measured["flags"] == ["unsteady"]
    with pytest.raises(ParityGateFailed, match="flagged as unsteady"):
        sign_off(report)


# -- what is written, what is late, what is claimed ------------------------------------------------------------


def test_an_engine_that_writes_into_its_images_changes_nothing(fragile, split):
    def writing(x: Tensor) -> Tensor:
        z = fragile(x)
        x.fill_(0.5)
        return z

    x = to_float(split.images[:4])
    before = x.clone()
    engine_of(writing)(x)
    assert torch.equal(x, before)
    assert robust_accuracy(climbed(fragile, writing, split, min_robust=0)) <= 0.02


@pytest.fixture(scope="module")
def bundle(robust, tmp_path_factory) -> Path:
    return bundle_of(robust, Known("sturdy", "sturdy"), out=tmp_path_factory.mktemp("out"), verify="none")


@pytest.fixture
def runner(monkeypatch, tmp_path):
    """Send a runner over in which ``old`` reads ``new``: a device that misbehaves."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))

    def alter(old: str, new: str) -> None:
        here = Path(link.__file__).parent
        shutil.copytree(here, tmp_path / "altered")
        text = (here / "runner.py").read_text(encoding="utf-8")
        assert text.count(old) == 1
        (tmp_path / "altered" / "runner.py").write_text(text.replace(old, new), encoding="utf-8")
        monkeypatch.setattr(link, "HERE", tmp_path / "altered")

    return alter


def test_a_device_that_never_answers_a_batch_is_given_up(bundle, split, runner):
    runner("return self.run(x)", "time.sleep(600)")
    with connect("local:", bundle, timeout=15, threads=1) as engine:
        engine.link.timeout = 0.2  # it has started
        with pytest.raises(Unreachable, match=r"'local:' has not answered within 0\.2 s") as caught:
            engine(to_float(split.images[:2]))
    assert caught.value.exit_code == 4


def test_a_device_that_runs_another_file_than_it_says_fails_parity(bundle, fragile, robust, split, runner, tmp_path):
    save_onnx(fragile, tmp_path / "other.onnx")
    other = f"self.runtime.open([open({str(tmp_path / 'other.onnx')!r}, 'rb').read()], self.threads, **self.options)"
    runner("self.runtime.open(list(parts.values()), self.threads, **self.options)", other)
    report = verify_bundle(bundle, device=f"local:{sys.executable}", level="clean", split=split, model=robust)
    assert report.artifact_sha256 == sha256_file(bundle / "model.onnx")  # as the device says
    with pytest.raises(ParityGateFailed):
        sign_off(report)


@pytest.mark.parametrize("sums", ["made anew", "as they were"])
def test_a_bundle_that_lies_about_the_hash_of_its_engine_is_refused(bundle, robust, split, tmp_path, sums):
    forged = Path(shutil.copytree(bundle, tmp_path / "forged"))
    manifest = json.loads((forged / MANIFEST).read_text())
    manifest["artifact"]["sha256"] = "0" * 64
    (forged / MANIFEST).write_text(json.dumps(manifest))
    if sums == "made anew":
        write_sums(forged)
    with pytest.raises(IntegrityError, match=r"not the artifact of its manifest|altered or damaged"):
        verify_bundle(forged, level="parity", split=split, model=robust)
