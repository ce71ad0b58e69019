from __future__ import annotations

import json
import re
import shutil
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported import bundle_of
from safetensors.torch import save_file
from sturdy import SPEC, TEST
from torch import nn

from zoo.attacks import pgd as attack
from zoo.cli.app import run
from zoo.datasets.base import Split, to_float
from zoo.datasets.cifar10 import CIFAR10
from zoo.evaluation.evaluate import prepare
from zoo.evaluation.protocols import PROTOCOLS
from zoo.export import export_model, read_bundle, sign_off, verify_bundle
from zoo.export.bundle.folder import MANIFEST, SUMS, files, write_sums
from zoo.export.bundle.manifest import Report, to_json
from zoo.export.bundle.source import Known
from zoo.export.engines import onnxruntime
from zoo.export.engines.twin import Twin
from zoo.export.ladder.climb import SQUARE, Trial, climb
from zoo.export.ladder.gate import compared, verdict
from zoo.export.ladder.rungs import black_box, clean, parity, right, survivors, transfer
from zoo.export.ladder.surrogate import surrogate, surrogate_pgd
from zoo.export.ladder.terms import Terms
from zoo.export.onnx.graph import save_onnx, with_weights_of
from zoo.export.verify import choose_level
from zoo.models.fold import fold_batchnorm
from zoo.specs import StagedSpec
from zoo.system.errors import DataNotFound, IntegrityError, ParityGateFailed, RobustnessGateFailed, UsageError
from zoo.system.files import sha256_file

ATTACKED = 150
TERMS = {"n": ATTACKED, "margin": 0.02}  # equal answers on 133 images show 2 points
RUNGS = ["integrity", "parity", "clean", "transfer", "surrogate", "targeted"]  # of an fp32 engine


@pytest.fixture(scope="module")
def source(robust, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    save_file(robust.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"name": "sturdy", "dataset": "cifar10", "spec": SPEC.to_dict()}))
    return folder


@pytest.fixture(scope="module")
def signed_off(robust, source, split, tmp_path_factory) -> Path:
    known = Known(f"local-dir:{source}", "sturdy", dataset="cifar10")
    return bundle_of(robust, known, out=tmp_path_factory.mktemp("out"), verify="attacked", split=split, **TERMS)


@pytest.fixture
def bundle(signed_off, tmp_path) -> Path:
    return Path(shutil.copytree(signed_off, tmp_path / "bundle"))


def forge(bundle: Path, *, tolerance: float | None = None) -> None:
    """Make an altered bundle look intact: hashes, and if asked the difference of logits that it claims to allow."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["artifact"]["sha256"] = sha256_file(bundle / "model.onnx")
    manifest["artifact"]["size"] = (bundle / "model.onnx").stat().st_size
    report = json.loads((bundle / "reports" / "verify.json").read_text())
    for gate in (*manifest["gates"], *report["rungs"]):
        gate["artifact_sha256"] = manifest["artifact"]["sha256"]
        if tolerance is not None and "tolerance" in gate["threshold"]:
            gate["threshold"]["tolerance"] = tolerance
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    (bundle / "reports" / "verify.json").write_text(json.dumps(report))
    write_sums(bundle)


def perturb(bundle: Path, scale: float) -> None:
    """Add noise to the weights in model.onnx, of ``scale`` times their own spread."""
    proto = onnx.load(str(bundle / "model.onnx"))
    rng = np.random.default_rng(2)
    for tensor in proto.graph.initializer:
        if tensor.name.endswith("weight"):
            weight = onnx.numpy_helper.to_array(tensor)
            noisy = weight + scale * weight.std() * rng.standard_normal(weight.shape).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(noisy.astype(np.float32), tensor.name))
    onnx.save(proto, str(bundle / "model.onnx"))


def climbed(model, engine, split, *, level: str = "attacked", **terms) -> Report:
    trial = Trial(artifact_sha256="0" * 64, files=1, level=level, split=split, terms=Terms(**terms))
    return climb(model, engine, trial)


def rungs(report: Report) -> dict[str, bool]:
    return {rung.name: rung.holds for rung in report.rungs}


# -- what holds ------------------------------------------------------------------------------------------------


def test_a_faithful_engine_is_signed_off_on_every_rung(signed_off, split):
    manifest = read_bundle(signed_off)
    assert manifest.verified == "attacked"
    assert [rung.name for rung in manifest.gates] == RUNGS
    assert all(rung.holds for rung in manifest.gates)
    last = manifest.gates[-1]
    assert last.n == ATTACKED
    assert last.measured["twin"]["accuracy"] > 0.9  # it has robustness to lose
    assert last.threshold == {"margin": 0.02, "min_robust": 0.1}
    assert re.fullmatch(
        r"attacked with pgd20, apgd50, pgd20-t \(linf 8/255\), the exported engine is right on [\d.]+% of 150 images "
        r"\(95 % interval \d\d\.\d% to \d+\.\d%\), its float twin on [\d.]+%",
        manifest.robustness,
    )


def test_every_result_is_bound_to_artifact_data_protocol_and_seed(signed_off, split):
    report = Report.model_validate_json((signed_off / "reports" / "verify.json").read_bytes())
    for rung in report.rungs:
        assert rung.artifact_sha256 == sha256_file(signed_off / "model.onnx") == report.artifact_sha256
        assert rung.dataset_sha256 == split.fingerprint
        assert rung.seed == 0
    attacks = {rung.name: [protocol["name"] for protocol in rung.protocols] for rung in report.rungs}
    assert attacks["transfer"] == ["pgd20", "apgd50"]
    assert attacks["surrogate"] == ["pgd20"]
    assert attacks["targeted"] == ["pgd20-t"]
    last = report.rungs[-1]
    for who in ("twin", "engine"):
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(last.bits[who]), np.uint8), count=last.n)
        assert bits.mean() == pytest.approx(last.measured[who]["accuracy"])


def test_verifying_changes_no_file_unless_asked(bundle, split):
    before = {name: sha256_file(bundle / name) for name in [*files(bundle), SUMS]}
    verify_bundle(bundle, split=split, level="clean")
    assert {name: sha256_file(bundle / name) for name in [*files(bundle), SUMS]} == before
    verify_bundle(bundle, split=split, level="clean", write=True)
    manifest = read_bundle(bundle)
    assert manifest.verified == "clean"
    assert "NOT verified" in manifest.robustness
    assert manifest.artifact.sha256 == before["model.onnx"]
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["bundle"]


def test_the_engine_may_run_elsewhere(bundle, split):
    report = verify_bundle(bundle, split=split, level="clean", device=f"local:{sys.executable}")
    assert report.reached == "clean"
    assert report.engine["remote"]["python"]  # the device described itself


# -- sabotage --------------------------------------------------------------------------------------------------


def test_weights_that_rely_on_what_is_not_robust_fail_the_robustness_gate(bundle, split, fragile):
    save_onnx(fragile, bundle / "model.onnx")
    forge(bundle, tolerance=1e6)
    report = verify_bundle(bundle, split=split, n=ATTACKED)
    assert rungs(report)["clean"]
    with pytest.raises(RobustnessGateFailed, match="the engine is worse") as caught:
        sign_off(report)
    assert caught.value.exit_code == 9
    assert report.reached == "clean"
    # The twin's gradients find nothing in an engine that looks at other things: its own weights do.
    assert report.failed.measured["gradients"] == ["twin", "artifact"]
    assert "optimistic" not in verdict(report.failed)
    assert report.rungs[-2].name == "transfer"
    assert report.rungs[-2].holds


class Masked(Twin):
    """An engine of its own mind behind coarse logits: it has no gradients, and its twin's find nothing in it."""

    def __call__(self, images):
        return (super().__call__(images) * 8).round().clamp(-128, 127) / 8

    def differentiable(self, model):
        return None


def test_an_engine_with_masked_gradients_passes_the_transfer_and_is_caught_by_the_black_box(robust, fragile, split):
    report = climbed(robust, Masked(fragile), split, n=60, margin=0.03, tolerance=1e6, queries=0)
    assert report.rungs[1].measured["flags"] == ["coarse logits"]  # which Square attacks in every precision
    assert rungs(report) == {
        "integrity": True,
        "parity": True,
        "clean": True,
        "transfer": True,
        "surrogate": True,
        "targeted": True,  # what testing by these alone would have signed off
        "black-box": False,
    }
    assert "no gradients of the engine itself were found" in verdict(report.rungs[-3])
    assert report.failed.measured["difference"] > 0.05
    with pytest.raises(RobustnessGateFailed, match=r"black-box: .* the engine is worse") as caught:
        sign_off(report)
    assert caught.value.exit_code == 9


@pytest.fixture(scope="module")
def sabotaged(robust, tmp_path_factory):
    """An engine whose first convolution is 1.75 times as strong: as accurate, and ten points less robust."""
    model = deepcopy(robust)
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    first.weight.data *= 1.75
    path = tmp_path_factory.mktemp("sabotaged") / "model.onnx"
    save_onnx(model, path)
    return onnxruntime.load(path, threads=1)


@pytest.mark.parametrize("rung", ["transfer", "surrogate", "targeted", "black-box"])
def test_each_gate_alone_catches_scaled_weights_that_are_as_accurate_but_less_robust(robust, sabotaged, split, rung):
    twin = Twin.of(robust)
    pgd = PROTOCOLS["pgd20"].model_copy(update={"n": len(split)})
    attack = {
        "transfer": lambda: transfer(twin.model, pgd),
        "surrogate": lambda: surrogate(twin.model, twin, sabotaged, pgd),
        "targeted": lambda: surrogate(twin.model, twin, sabotaged, PROTOCOLS["pgd20-t"]),
        "black-box": lambda: black_box(twin, sabotaged, SQUARE.model_copy(update={"n": len(split), "queries": 150})),
    }[rung]()
    bits = clean(twin, sabotaged, split.images, split.labels, lambda done, total: None)
    assert compared("clean", bits, (), 0.01)["holds"]
    some = slice(100 if rung == "targeted" else None)
    images, labels, so_far = split.images[some], split.labels[some], (bits[0][some], bits[1][some])
    attacked = survivors(attack, twin, sabotaged, images, labels, so_far, 0, lambda done, total: None)
    found = compared(rung, attacked, (pgd,), 0.01, decides=rung == "black-box")
    assert not found["holds"]
    assert found["measured"]["difference"] >= 0.05


@pytest.mark.parametrize(
    ("only_twin", "only_engine", "decides", "holds"),
    [
        (12, 5, False, True),  # 0.7 points, which could be 1.4: for the rungs above to decide
        (12, 5, True, False),
        (25, 5, False, True),  # shown to be more than a point, which Square may still find in the twin
        (40, 5, False, False),  # shown to be more than two
        (5, 5, True, True),
    ],
)
def test_a_rung_before_the_last_fails_only_where_the_engine_is_shown_to_be_far_worse(
    only_twin, only_engine, decides, holds
):
    twin, engine = np.ones(1000, bool), np.ones(1000, bool)
    engine[:only_twin] = False
    twin[500 : 500 + only_engine] = False
    assert compared("surrogate", (twin, engine), (), 0.01, decides=decides)["holds"] is holds


def test_parity_tells_how_deterministic_an_engine_is(robust, split):
    class Drifting(Twin):
        """Answers that hang on the size of the batch, and on the time of day."""

        calls = 0

        def __call__(self, images):
            self.calls += 1
            return super().__call__(images) + 1e-3 * len(images) + 1e-4 * self.calls

    x = to_float(split.images[:64])
    steady = parity(robust, Twin.of(robust), x, [1, 8, 64])
    assert steady["difference_between_runs"] == 0
    assert steady["difference_between_batches"] < 1e-5
    drifting = parity(robust, Drifting(prepare(robust), shape=(3, 32, 32)), x, [1, 8, 64])
    assert drifting["difference_between_batches"] == pytest.approx(0.063, rel=0.3)
    assert drifting["difference_between_runs"] == pytest.approx(1e-4, rel=0.1)


@pytest.mark.slow
def test_no_noise_in_the_weights_that_costs_robustness_is_signed_off(bundle, split, robust):
    x, y = to_float(split.images[:ATTACKED]), torch.from_numpy(split.labels[:ATTACKED])
    intact, lost = (bundle / "model.onnx").read_bytes(), []
    for scale in (0.3, 0.45, 0.7):
        (bundle / "model.onnx").write_bytes(intact)
        perturb(bundle, scale)
        forge(bundle, tolerance=1e6)
        noisy = with_weights_of(bundle / "model.onnx", robust)
        lost.append(1 - right(Twin(noisy), attack(noisy, x, y, eps=8 / 255, step=2 / 255, steps=20), y).mean())
        report = verify_bundle(bundle, split=split, n=ATTACKED)
        assert lost[-1] < 0.05 or report.failed is not None
    assert max(lost) > 0.05


@pytest.mark.parametrize(
    ("scale", "tolerance", "climbed"),
    [(1.5, 1e6, ["integrity", "parity", "clean"]), (0.01, None, ["integrity", "parity"])],
)
def test_altered_weights_with_true_hashes_fail_and_nothing_above_is_climbed(bundle, split, scale, tolerance, climbed):
    perturb(bundle, scale)
    forge(bundle, tolerance=tolerance)
    report = verify_bundle(bundle, split=split)
    assert list(rungs(report)) == climbed
    with pytest.raises(ParityGateFailed, match=climbed[-1]) as caught:
        sign_off(report)
    assert caught.value.exit_code == 8


def test_a_bundle_of_another_source_is_refused(bundle, source, split, fragile, tmp_path):
    save_file(fragile.state_dict(), bundle / "twin.safetensors")
    write_sums(bundle)
    with pytest.raises(IntegrityError, match="not the model that"):
        verify_bundle(bundle, split=split)
    shutil.copytree(source, tmp_path / "other")
    save_file(fragile.state_dict(), tmp_path / "other" / "model.safetensors")
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["source"]["name"] = f"local-dir:{tmp_path / 'other'}"
    del manifest["source"]["twin"]
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    write_sums(bundle)
    with pytest.raises(IntegrityError, match="not the model that"):
        verify_bundle(bundle, split=split)


# -- the gate --------------------------------------------------------------------------------------------------


def test_too_few_images_fail_the_gate_and_are_told_apart_from_a_worse_engine(robust, split):
    report = climbed(robust, Twin(robust), split, n=100)
    assert report.failed.measured["difference"] == 0
    with pytest.raises(RobustnessGateFailed, match=r"too few images .* about 268 would do"):
        sign_off(report)


def test_a_wider_margin_admits_what_a_narrow_one_does_not(robust, split):
    for margin, holds in ((0.004, False), (0.02, True)):
        report = climbed(robust, Twin(robust), split, level="clean", margin=margin)
        assert rungs(report)["clean"] is holds  # 500 equal answers show 0.54 points
    assert "too few images" not in verdict(report.rungs[-1])


def test_the_terms_of_the_sign_off_are_those_of_the_export(robust, source, split, tmp_path):
    known = Known(f"local-dir:{source}", "sturdy", dataset="cifar10")
    lenient = {"margin": 0.03, "tolerance": 0.5}
    bundle = bundle_of(robust, known, out=tmp_path, verify="clean", split=split, **lenient)
    thresholds = {rung.name: rung.threshold for rung in verify_bundle(bundle, split=split, level="clean").rungs}
    assert thresholds["parity"] == {"tolerance": 0.5}
    assert thresholds["clean"] == {"margin": 0.03}
    stricter = verify_bundle(bundle, split=split, level="clean", margin=0.02)
    assert stricter.rungs[-1].threshold == {"margin": 0.02}


def test_a_tie_counts_as_broken(split):
    def undecided(x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x), 10)

    x, y = to_float(split.images[:20]), torch.from_numpy(split.labels[:20])
    assert not right(undecided, x, y).any()


def test_parity_takes_the_worst_over_the_batch_sizes(robust, split):
    class Careless(Twin):
        """Right but in batches of 2, as an exporter that took a batch size for a constant."""

        def __call__(self, images):
            return super().__call__(images) + (0.25 if len(images) == 2 else 0.0) * torch.eye(10)[0]

    x = to_float(split.images[:32])
    shape_of_the_fault = parity(robust, Careless(robust), x, (1, 2, 64))
    assert shape_of_the_fault["max_logit_difference"] == pytest.approx(0.25, abs=1e-5)
    assert parity(robust, Careless(robust), x, (1, 64))["max_logit_difference"] < 1e-4


# -- the walk along the twin's gradients -----------------------------------------------------------------------


class Planted:
    """A robust engine that is wrong about every image at its ``at``-th call, and never else."""

    def __init__(self, at: int) -> None:
        self.at, self.calls, self.seen = at, 0, []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen.append(x.clone())
        logits = torch.zeros(len(x), 10)
        logits[:, 0] = -1.0 if self.calls == self.at else 1.0
        return logits


WALK = {"eps": 8 / 255, "step": 2 / 255, "steps": 10, "seed": 0}


@pytest.mark.parametrize("at", [1, 2, 3, 8, 12])  # the image, the start, the steps 1, 6 and 10
def test_the_engine_judges_the_image_the_start_and_every_step(robust, split, at):
    x, y = to_float(split.images[:4]), torch.zeros(4, dtype=torch.int64)
    engine = Planted(at)
    (x_adv,) = surrogate_pgd(robust, [engine], x, y, **WALK)
    assert engine.calls == at  # what is broken drops out
    assert torch.equal(x_adv, engine.seen[at - 1])
    assert engine.calls == at


def test_a_walk_that_finds_nothing_ends_after_its_steps(robust, split):
    engine = Planted(at=1000)
    surrogate_pgd(robust, [engine], to_float(split.images[:4]), torch.zeros(4, dtype=torch.int64), **WALK)
    assert engine.calls == 1 + 1 + 10


def test_a_walk_goes_towards_every_target_from_a_start_of_its_own(robust, split):
    x, y, engine = to_float(split.images[:4]), torch.zeros(4, dtype=torch.int64), Planted(at=1000)
    surrogate_pgd(robust, [engine], x, y, **WALK, targets=torch.tensor([[1, 2, 3]] * 4))
    assert engine.calls == 1 + 3 * (1 + 10)
    starts = [engine.seen[1 + k * 11] for k in range(3)]
    assert all((one - x).abs().max() <= 8 / 255 + 1e-6 for one in starts)
    assert not torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[1], starts[2])


def test_walks_towards_targets_find_a_class_that_the_cross_entropy_leads_away_from(split):
    x, y = to_float(split.images[:4]) / 2 + 0.25, torch.zeros(4, dtype=torch.int64)
    net = Lured(x.mean((1, 2, 3)).mean().item()).eval()
    x = x - x.mean((1, 2, 3), keepdim=True) + net.middle
    twin, everyone = Twin(net), torch.ones(2, 4, dtype=torch.bool)
    for protocol, holds in ((PROTOCOLS["pgd20"], True), (PROTOCOLS["pgd20-t"], False)):
        for found in surrogate(net, twin, twin, protocol)(x, y, 0, np.arange(4), everyone):
            assert (right(twin, found, y) == holds).all()
            assert (found - x).abs().max() <= 8 / 255 + 1e-6


def test_an_fp32_engine_is_led_towards_each_likely_wrong_class_too(robust):
    """What PGD-20 and APGD-50 leave whole on Lured, the examples of its twin towards targets break in both."""
    images = np.tile(np.array([100, 156], np.uint8)[:, None], (40, 32, 16, 3)).reshape(40, 32, 32, 3)
    net = Lured(128 / 255).eval()
    net.spec = robust.spec.model_copy(update={"classes": 3})
    report = climbed(net, Twin(net), Split("test", images, np.zeros(40, np.int64)), n=40, margin=0.5)
    assert [rung.name for rung in report.rungs][-3:] == ["transfer", "surrogate", "targeted"]
    right = [(rung.measured["twin"]["accuracy"], rung.measured["engine"]["accuracy"]) for rung in report.rungs[-3:]]
    assert right == [(1, 1), (1, 1), (0, 0)]
    assert "is not shown to reach 33.3%" in verdict(report.failed)


class Lured(nn.Module):
    """Brighter images come nearer to class 1 and never reach it; darker ones, of which the cross-entropy at first sees
    little, are in class 2."""

    def __init__(self, middle: float) -> None:
        super().__init__()
        self.middle = middle

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t = (x.mean((1, 2, 3)) - self.middle) * 255 / 8  # [-1, 1] in the ball
        return torch.stack([0 * t, 0.04 * torch.tanh(5 * t) - 0.05, -7 - 12 * t], 1)


def test_the_walk_stays_in_the_ball_and_in_the_range(fragile, robust, split):
    x, y = to_float(split.images[:50]), torch.from_numpy(split.labels[:50])
    for engine in (Twin(fragile), Twin(robust)):
        (x_adv,) = surrogate_pgd(fragile, [engine], x, y, **WALK)
        assert (x_adv - x).abs().max() <= 8 / 255 + 1e-6
        assert 0 <= x_adv.min() <= x_adv.max() <= 1


def test_the_walk_breaks_what_has_no_gradients(fragile, split):
    """An engine with coarse logits and no gradient, judged along its twin's."""

    def coarse(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return (fragile(x) * 2).round() / 2

    x, y = to_float(split.images[:100]), torch.from_numpy(split.labels[:100])
    assert right(coarse, x, y).mean() > 0.9
    assert right(coarse, *surrogate_pgd(fragile, [coarse], x, y, **WALK), y).mean() < 0.1


def test_twin_and_engine_get_the_same_walks(fragile, split):
    folded = fold_batchnorm(fragile)
    x, y = to_float(split.images[:50]), torch.from_numpy(split.labels[:50])
    one, other = surrogate_pgd(folded, [Twin(folded), Twin(folded)], x, y, **WALK)
    assert torch.equal(one, other)


def test_walks_that_several_engines_share_are_those_of_each_alone(fragile, robust, split):
    x, y = to_float(split.images[:50]), torch.from_numpy(split.labels[:50])
    engines = [Twin(fragile), Planted(at=3), Twin(robust), Planted(at=1)]
    together = surrogate_pgd(fragile, engines, x, y, **WALK)
    assert [engine.calls for engine in engines[1::2]] == [3, 1]
    alone = [surrogate_pgd(fragile, [one], x, y, **WALK)[0] for one in (engines[0], Planted(3), engines[2], Planted(1))]
    for shared, own in zip(together, alone, strict=True):
        torch.testing.assert_close(shared, own, atol=1e-6, rtol=0)


# -- as high as the data allow ---------------------------------------------------------------------------------


@pytest.fixture
def data_at_hand(split, tmp_path, found) -> None:
    """The pictures as what a load of CIFAR-10 finds."""
    root = tmp_path / "pictures"
    root.mkdir()
    np.save(root / "test_images.npy", split.images)
    np.save(root / "test_labels.npy", split.labels)
    found(replace(CIFAR10, root=root))


@pytest.fixture
def asked(monkeypatch, found) -> list:
    """No data; the list of what was asked for."""
    monkeypatch.delenv("ZOO_DATA", raising=False)
    return found(DataNotFound("CIFAR-10 is not here"))


def test_with_data_the_default_is_to_attack(data_at_hand):
    level, found = choose_level(None, "cifar10", SPEC, None, offline=True)
    assert (level, len(found)) == ("attacked", TEST)


def test_without_data_the_default_is_parity_but_nothing_asked_for_is_skipped(asked, monkeypatch):
    assert choose_level(None, "cifar10", SPEC, None, offline=True) == ("parity", None)
    for level in ("clean", "attacked"):
        with pytest.raises(DataNotFound):
            choose_level(level, "cifar10", SPEC, None, offline=True)
    with pytest.raises(DataNotFound):  # a place was named, and it is wrong
        choose_level(None, "cifar10", SPEC, "elsewhere", offline=True)
    monkeypatch.setenv("ZOO_DATA", "elsewhere")
    with pytest.raises(DataNotFound):
        choose_level(None, "cifar10", SPEC, None, offline=True)


def test_the_network_is_asked_for_data_only_when_they_were_asked_for(asked):
    choose_level(None, "cifar10", SPEC, None, offline=False)
    with pytest.raises(DataNotFound):
        choose_level("attacked", "cifar10", SPEC, None, offline=False)
    assert [offline for _, _, offline in asked] == [True, False]


@pytest.mark.parametrize("dataset", [None, "somebody's own"])
def test_a_model_for_another_task_is_not_judged_on_cifar(data_at_hand, dataset):
    assert choose_level(None, dataset, SPEC, None, offline=True) == ("parity", None)
    with pytest.raises(UsageError, match="names none that is known"):
        choose_level("attacked", dataset, SPEC, None, offline=True)
    other = StagedSpec(widths=((8,),), resolutions=(16,), classes=7)
    with pytest.raises(UsageError, match="7 classes"):
        choose_level(None, "cifar10", other, None, offline=True)


def test_levels_without_labels_are_refused(robust):
    with pytest.raises(UsageError, match="labelled images"):
        climbed(robust, Twin(robust), None, level="clean")


# -- what is said ----------------------------------------------------------------------------------------------


def test_a_model_that_is_near_chance_under_attack_is_not_called_robust(fragile, tmp_path, data_at_hand, capsys):
    save_file(fragile.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"name": "fragile", "dataset": "cifar10", "spec": SPEC.to_dict()}))
    out, attack = tmp_path / "out", ["-n", str(ATTACKED), "--margin", "2"]
    export = ["export", f"local-dir:{tmp_path}", "-o", str(out), *attack]
    assert run(export) == 9
    headline = (
        r"the engine is right on \d\.\d% of 150 images \(95 % interval 0\.0% to \d\.\d%\).* not shown to reach 10\.0%"
    )
    said = capsys.readouterr().err
    assert re.search(headline, said)
    assert "--min-robust" in said
    assert "--verify clean" in said
    assert not out.exists() or not list(out.iterdir())
    assert run([*export, "--verify", "clean", "-q"]) == 0
    assert "NOT verified" in (out / "fragile--onnxruntime-fp32" / "README.md").read_text()
    capsys.readouterr()
    assert run([*export, "--min-robust", "0%", "--force", "-q"]) == 0
    bundle = out / "fragile--onnxruntime-fp32"
    said = [capsys.readouterr().out, (bundle / "README.md").read_text(), read_bundle(bundle).robustness]
    assert run(["verify", str(bundle), "-q", *attack]) == 0
    for text in (" ".join(one.split()) for one in (*said, capsys.readouterr().out)):
        assert re.search(
            r"ttacked with pgd20, apgd50, pgd20-t \(linf 8/255\), the exported engine is right on \d\.\d% of 150", text
        )
        assert re.search(r"95 % interval 0\.0% to \d\.\d%", text)
        sentence = "no better than chance (10.0%): the engine is as good as its twin, and neither is robust"
        assert sentence in text
        assert "robust" not in text.replace(sentence, "").replace("robust-zoo", "")


# -- the command -----------------------------------------------------------------------------------------------


def test_the_commands_export_and_verify_sign_off(source, data_at_hand, tmp_path, capsys):
    attack = ["-n", str(ATTACKED), "--margin", "2", "--json"]
    assert run(["export", f"local-dir:{source}", "-o", str(tmp_path / "out"), *attack]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verified"] == "attacked"
    assert run(["verify", told["bundle"], "-n", str(ATTACKED), "--write"]) == 0
    again = read_bundle(told["bundle"])
    assert [rung.measured for rung in again.gates[1:]] == [rung["measured"] for rung in told["gates"][1:]]
    table = capsys.readouterr().out
    assert [line.split()[0] for line in table.splitlines()[2:8]] == RUNGS
    assert table.count("holds") == 7
    assert max(map(len, table.splitlines()[:9])) <= 80


def test_exit_codes_tell_the_gates_apart(bundle, data_at_hand, fragile, capsys):
    intact = (bundle / "model.onnx").read_bytes()
    (bundle / "model.onnx").write_bytes(intact[:-1])
    assert run(["verify", str(bundle)]) == 5
    (bundle / "model.onnx").write_bytes(intact)
    save_onnx(fragile, bundle / "model.onnx")
    forge(bundle)
    capsys.readouterr()
    assert run(["verify", str(bundle), "--json"]) == 8
    told = json.loads(capsys.readouterr().out)
    assert told["error"]["type"] == "ParityGateFailed"
    assert run(["verify", str(bundle), "--tolerance", "1e6", "-n", str(ATTACKED)]) == 9
    assert "surrogate: on 150 images the float twin is right" in capsys.readouterr().err
    assert run(["verify", str(bundle / "nowhere")]) == 2


# -- real images -----------------------------------------------------------------------------------------------


def test_export_model_finds_the_images_that_it_is_told_of(cifar, source, tmp_path, found):
    found(cifar)
    bundle = export_model(f"local-dir:{source}", out=tmp_path, verify="clean")
    manifest, probe = bundle.manifest, np.load(bundle.folder / "probe" / "clean.npz")
    assert np.array_equal(probe["labels"], cifar.split("test").labels[:8])
    assert to_json(read_bundle(bundle)) == to_json(manifest)  # what is in hand is what was written
    assert to_json(bundle.report) == (bundle.folder / "reports" / "verify.json").read_text()
    assert manifest.gates[-1].n == 10_000
    assert manifest.gates[-1].dataset_sha256 == cifar.split("test").fingerprint
