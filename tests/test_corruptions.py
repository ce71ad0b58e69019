"""Common corruptions: the images, the files of CIFAR-10-C, the protocol, and the rung beside the ladder."""

from __future__ import annotations

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exported import bundle_of
from sturdy import SPEC, TEST
from test_registry import FINGERPRINT, TOOLCHAIN
from torch import nn

from zoo.cli.app import run
from zoo.datasets import cifar10_c
from zoo.datasets.base import Split
from zoo.evaluation import corruptions
from zoo.evaluation.cells import evaluate_cells, summary
from zoo.evaluation.corruptions import CELLS, KINDS, SEVERITIES, corrupted, kinds_called, one_each, source_of
from zoo.evaluation.measure import Measurement, measure
from zoo.evaluation.protocols import PROTOCOLS, protocol
from zoo.evaluation.statistics import Accuracy, clustered
from zoo.export import read_bundle, sign_off, verify_bundle
from zoo.export.bundle.manifest import Report, read_report
from zoo.export.bundle.source import Known
from zoo.export.compare import compare
from zoo.export.engines.interface import Engine
from zoo.export.engines.twin import Twin
from zoo.export.ladder import rungs
from zoo.export.ladder.climb import Trial, climb
from zoo.export.ladder.report import accuracy_on_the_engine
from zoo.export.ladder.terms import Terms
from zoo.registry.file import info, load_registry
from zoo.system.errors import DataNotFound, IntegrityError, MissingDependency, RobustnessGateFailed, UsageError
from zoo.weights.load import find
from zoo.weights.release import candidate, release

# -- the images ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_becomes_of_an_image_depends_on_it_and_on_the_seed_alone(split, kind):
    before = np.random.get_state()[1].copy()
    images = split.images[:4]
    whole = corrupted(images, kind, 3, seed=1)
    assert whole.shape == images.shape
    assert whole.dtype == np.uint8
    assert (whole != images).any(axis=(1, 2, 3)).all()
    index = np.array([3, 1])
    assert np.array_equal(corrupted(images[index], kind, 3, seed=1, index=index), whole[index])
    assert np.array_equal(np.random.get_state()[1], before)
    if kind in ("gaussian_noise", "impulse_noise", "glass_blur", "frost"):
        assert not np.array_equal(corrupted(images, kind, 3, seed=2), whole)


def test_threads_get_the_same_images_and_standard_output_stays(split):
    images, kinds, out = split.images[:20], ("gaussian_noise", "snow", "shot_noise"), sys.stdout
    alone = [corrupted(images, kind, 3) for kind in kinds]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda kind: corrupted(images, kind, 3), kinds))
    assert all(map(np.array_equal, alone, together))
    assert sys.stdout is out


@pytest.mark.parametrize("kind", KINDS[:3])
def test_noise_grows_with_the_severity(split, kind):
    images = split.images[:10].astype(int)
    damage = [abs(corrupted(split.images[:10], kind, severity) - images).mean() for severity in SEVERITIES]
    assert damage == sorted(damage)
    assert damage[0] > 0


def test_images_that_are_not_square_are_corrupted_and_nothing_is_printed(capsys):
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 57, 3), np.uint8)
    for kind in ("zoom_blur", "snow", "fog"):
        assert corrupted(images, kind, 5).shape == images.shape
    assert capsys.readouterr().out == ""


def test_images_that_are_too_small_are_refused():
    with pytest.raises(UsageError, match="at least 32 pixels, not 16"):
        corrupted(np.zeros((1, 16, 32, 3), np.uint8), "fog", 1)


@pytest.mark.parametrize(("trouble", "said"), [("missing", "which is not installed"), ("broken", "broken .no libGL.")])
def test_without_the_library_the_extra_is_named(monkeypatch, trouble, said):
    def version(name: str) -> str:
        raise corruptions.PackageNotFoundError(name) if trouble == "missing" else ImportError("no libGL")

    monkeypatch.setattr(corruptions, "version", version)
    with pytest.raises(MissingDependency, match=rf"{said}.*: run 'pip install \"robust-zoo\[corruptions\]\"'"):
        corruptions.require(32)


def test_kinds_are_called_by_name_and_an_unknown_one_has_a_nearest():
    assert kinds_called("frost, gaussian-noise,frost") == ("gaussian_noise", "frost")
    assert kinds_called("all") == KINDS
    assert kinds_called("none") == ()
    for wrong in ("fogg", ""):
        with pytest.raises(UsageError, match=f"no corruption is called '{wrong}'"):
            kinds_called(wrong)


@pytest.mark.parametrize("verb", [["export", "trades-s7"], ["verify", "no-bundle"]])
def test_a_corruption_that_does_not_exist_is_refused_first(capsys, verb):
    assert run([*verb, "--corruptions", "fogg"]) == 2
    assert "did you mean 'fog'?" in capsys.readouterr().err


def test_one_corruption_an_image_meets_every_cell_as_often():
    cells = one_each(160, KINDS, seed=0)
    counts = [cells.count(cell) for cell in CELLS]
    assert {*counts} == {2, 3}
    assert cells != one_each(160, KINDS, seed=1)
    assert {kind for kind, _ in one_each(7, ("fog",), seed=0)} == {"fog"}
    assert {kind for kind, _ in one_each(15, KINDS, seed=0)} == {*KINDS}
    with pytest.raises(UsageError, match="15 kinds of corruption need 15 images or more, not 14"):
        Terms(n=14, corruptions=KINDS)


# -- CIFAR-10-C ------------------------------------------------------------------------------------------------


@pytest.fixture
def files(split, monkeypatch, tmp_path):
    """20 pictures as the test split, and files of CIFAR-10-C, where every pixel has the number of its cell, from 1."""
    folder = tmp_path / "home" / cifar10_c.FOLDER
    folder.mkdir(parents=True)
    test = Split("test", split.images[:20], split.labels[:20])
    for number, kind in enumerate(KINDS):
        blocks = [np.full_like(test.images, 5 * number + severity) for severity in SEVERITIES]
        np.save(folder / f"{kind}.npy", np.concatenate(blocks))
    np.save(folder / "labels.npy", np.tile(test.labels, 5).astype(np.uint8))
    monkeypatch.setenv(cifar10_c.VARIABLE, str(folder))
    return folder, test


def test_a_cell_of_the_files_is_the_block_of_its_severity(files):
    _, test = files
    source = source_of(PROTOCOLS["cifar10-c"], test)
    for number, (kind, severity) in enumerate(CELLS):
        assert np.array_equal(source.images(kind, severity, 7), np.full((7, 32, 32, 3), number + 1))
    assert re.fullmatch("[0-9a-f]{64}", source.facts()["cifar10-c"])


def test_the_files_are_found_in_the_home_of_the_data_too(files, monkeypatch):
    folder, test = files
    monkeypatch.delenv(cifar10_c.VARIABLE)
    monkeypatch.setenv("ZOO_DATA", str(folder.parent))
    assert cifar10_c.load(KINDS, test).n == 20


def spoilt(change):
    """A change of one array that is stored again."""

    def write(path):
        np.save(path, change(np.load(path)))

    return write


@pytest.mark.parametrize(
    ("name", "spoil", "error", "said"),
    [
        ("fog", lambda path: path.unlink(), DataNotFound, "no file 'fog.npy'"),
        ("fog", lambda path: path.write_bytes(path.read_bytes()[:5000]), IntegrityError, "not a readable .npy file"),
        ("fog", lambda path: path.write_text("fog"), IntegrityError, "not a readable .npy file"),
        ("fog", spoilt(lambda a: a[:-1]), IntegrityError, r"uint8 \[99, 32, 32, 3\], but .* \[100, 32, 32, 3\]"),
        ("fog", spoilt(lambda a: a / 255), IntegrityError, "has float64"),
        ("fog", spoilt(lambda a: a.transpose(0, 3, 1, 2)), IntegrityError, r"\[100, 3, 32, 32\]"),
        ("labels", spoilt(lambda a: np.roll(a, 1)), IntegrityError, "labels of CIFAR-10's test images"),
        ("labels", spoilt(lambda a: a.astype(float)), IntegrityError, "has float64"),
        ("labels", spoilt(lambda a: a[:20]), IntegrityError, r"\[20\], but CIFAR-10-C has integers \[100\]"),
    ],
)
def test_malformed_files_are_refused_in_one_sentence(files, name, spoil, error, said):
    folder, test = files
    spoil(folder / f"{name}.npy")
    with pytest.raises(error, match=said):
        source_of(PROTOCOLS["cifar10-c"], test)


def test_the_files_are_for_cifar10_alone(monkeypatch, tmp_path):
    assert protocol("cifar10-c") == PROTOCOLS["cifar10-c"]
    assert protocol("cifar100-corruptions").dataset == "cifar100"
    with pytest.raises(UsageError, match="'corruptions' attacks nothing, so it has no threat model"):
        protocol("corruptions-l2-0.5")
    with pytest.raises(UsageError, match="on cifar100, use 'corruptions'"):
        protocol("cifar10-c").on("cifar100")
    monkeypatch.setenv(cifar10_c.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(DataNotFound, match="nowhere is not a folder: set ZOO_CIFAR10_C"):
        cifar10_c.load(KINDS, Split("test", np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int64)))


# -- the protocol ----------------------------------------------------------------------------------------------


class Level(torch.nn.Module):
    """Right about label ``y`` in a block of the stand-in files if its value (the number of the cell) is up to 10 y."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = (x.mean((1, 2, 3)) * 255).round()
        return -(torch.arange(10) - (value / 10).floor()[:, None]).abs()


def test_every_cell_is_measured_with_its_own_images_and_labels(files):
    _, test = files
    bits = evaluate_cells(Level(), test, PROTOCOLS["cifar10-c"], source_of(PROTOCOLS["cifar10-c"], test))
    expected = [test.labels == (number + 1) // 10 for number in range(75)]
    assert np.array_equal(bits, expected)
    table = summary(bits)
    assert table["cells"]["shot_noise"] == [int(one.sum()) for one in expected[5:10]]
    assert table["worst"] == min(KINDS, key=lambda kind: sum(table["cells"][kind]))
    assert table["accuracy"]["value"] == sum(table["cells"][table["worst"]]) / 100


def test_an_interrupted_measurement_goes_on_with_the_cells_that_are_left(files, tmp_path):
    _, test = files
    asked = PROTOCOLS["cifar10-c"].model_copy(update={"n": 10})
    source = source_of(asked, test)
    made: list[str] = []

    def images(kind: str, severity: int, n: int) -> np.ndarray:
        if len(made) == 40:
            raise KeyboardInterrupt
        made.append(kind)
        return source.images(kind, severity, n)

    with pytest.raises(KeyboardInterrupt):
        evaluate_cells(Level(), test, asked, replace(source, images=images), resume=tmp_path / "progress")
    made.clear()
    resumed = evaluate_cells(Level(), test, asked, replace(source, images=images), resume=tmp_path / "progress")
    assert len(made) == 35
    assert np.array_equal(resumed, evaluate_cells(Level(), test, asked, source))
    assert not list((tmp_path / "progress").iterdir())


def test_a_result_has_the_mean_the_worst_kind_and_the_hash_of_the_files(files):
    dataset = SimpleNamespace(split=lambda name: files[1])
    (measured,) = measure(Level(), "a" * 64, dataset, [PROTOCOLS["cifar10-c"]])
    accuracy, table = Accuracy.from_dict(measured.result["accuracy"]), measured.result["corruptions"]
    assert measured.bits.shape == (75 * 20,)
    assert accuracy == Accuracy.over(measured.bits.reshape(75, 20))
    assert accuracy.n == 20
    assert sum(map(sum, table["cells"].values())) == measured.bits.sum()
    assert len(measured.result["toolchain"]["cifar10-c"]) == 64


@pytest.fixture
def released(bundled):
    """A released model with a result under corruptions on 40 images, in which fog is worst."""
    rng = np.random.default_rng(0)
    bits = rng.random((75, 40)) < 0.7
    bits[45:50] = rng.random((5, 40)) < 0.2
    one = candidate(find("tiny"))
    result = {
        "accuracy": Accuracy.over(bits).to_dict(),
        "weights_sha256": one.sha256,
        "dataset_sha256": FINGERPRINT,
        "toolchain": TOOLCHAIN,
        "measured_at": "2026-06-01T12:00:00+00:00",
        "wall_s": 1.0,
        "flags": [],
        "extra": {},
        "corruptions": summary(bits),
    }
    release(one, [Measurement(PROTOCOLS["corruptions"], result, bits.ravel(), 10_000)])
    return bits


def test_a_released_result_is_stored_shown_and_compared_with_its_table(released, capsys):
    result = info("tiny").results["corruptions"]
    assert result.corruptions.worst == "fog"
    assert result.accuracy == Accuracy.over(released)
    assert run(["show", "tiny"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("fog"))
    assert row.split()[-1] == f"{100 * released[45:50].mean():.1f}"
    found = compare("tiny", "tiny").protocols["corruptions"]
    assert (found["n"], found["difference"], found["a"]["accuracy"]) == (40, 0, result.accuracy.value)
    assert run(["compare", "tiny", "tiny"]) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["corruptions"]["cells"].update(fog=[40] * 5), "'fog' is not the kind with the fewest"),
        (lambda r: r["corruptions"]["cells"].update(snow=[41] * 5), "each of up to 40 images"),
        (lambda r: r["corruptions"]["cells"].pop("snow"), "not the counts of gaussian_noise"),
        (lambda r: r["corruptions"].update(worst="rain"), "'rain' is not the kind"),
        (lambda r: r["corruptions"]["cells"].update(snow=[40] * 5), "is not what the cells come to"),
        (lambda r: r["accuracy"].update(ci95=[0.0, 0.1]), "does not contain"),
        (lambda r: r.pop("corruptions"), "a result has a table of corruptions if"),
    ],
)
def test_a_registry_whose_table_contradicts_itself_is_refused(released, bundled, change, said):
    from zoo.registry.file import registry_path

    data = json.loads(registry_path().read_text())
    change(data["models"]["tiny"]["results"]["corruptions"])
    registry_path().write_text(json.dumps(data))
    with pytest.raises(IntegrityError, match=said):
        load_registry()


# -- intervals -------------------------------------------------------------------------------------------------


def test_the_interval_over_images_covers_the_truth_where_cells_depend_on_each_other():
    rng = np.random.default_rng(0)
    covered = narrow = 0
    for _ in range(300):
        ease = rng.beta(0.6, 0.4, 100)  # of an image, in all cells
        found = Accuracy.over(rng.random((15, 100)) < ease)
        low, high = found.ci95
        covered += low <= 0.6 <= high
        independent = Accuracy.of(rng.random(1500) < 0.6)
        narrow += abs(independent.value - 0.6) < (high - low) / 6
    assert 270 <= covered <= 297  # 95 %: 285
    assert narrow > 150  # with 1,500 independent answers the interval would be far narrower


def test_one_condition_and_equal_conditions_have_nearly_wilsons_interval():
    bits = np.arange(200) % 3 == 0
    usual = Accuracy.of(bits).ci95
    for conditions in (1, 75):
        found = Accuracy.over(np.tile(bits, (conditions, 1)))
        assert (found.n, found.value) == (200, bits.mean())
        assert found.ci95 == pytest.approx(usual, abs=1e-3)
    for certain in (0.0, 1.0):
        assert Accuracy.over(np.full((75, 200), bool(certain))).ci95 == Accuracy.of(np.full(200, bool(certain))).ci95


def test_a_difference_in_pairs_has_the_interval_of_the_images_own_differences():
    a = np.ones((4, 100), bool)
    b = a.copy()
    b[:, :10] = False  # ten images, lost in all conditions
    mean, (low, high) = clustered(a, b)
    assert mean == pytest.approx(0.1)
    half = 1.96 * np.sqrt(0.1 * 0.9 / 99)
    assert (low, high) == pytest.approx((0.1 - half, 0.1 + half), abs=1e-4)
    with pytest.raises(UsageError, match="two images or more"):
        clustered(a[:, :1], b[:, :1])


# -- the rung --------------------------------------------------------------------------------------------------


def grain(x: torch.Tensor) -> torch.Tensor:
    """How much neighbouring pixels differ, by image [N]."""
    return (x[:, :, 1:] - x[:, :, :-1]).abs().mean((1, 2, 3))


class AfraidOfNoise(Twin):
    """An engine that answers as its twin does, but guesses class 0 on images that are very grainy."""

    def __call__(self, images):
        logits = super().__call__(images)
        logits[grain(torch.as_tensor(images)) > 0.15] = torch.eye(10)[0]
        return logits


def climbed(model, engine: Engine, split: Split, *, level: str = "clean", **terms):
    trial = Trial(artifact_sha256="0" * 64, files=1, level=level, split=split, terms=Terms(margin=0.02, **terms))
    return climb(model, engine, trial)


def test_an_engine_that_is_bad_in_noise_only_is_refused(robust, split):
    assert SPEC.image_size == split.images.shape[1]
    engine = AfraidOfNoise(robust)
    assert climbed(robust, engine, split).failed is None
    report = climbed(robust, engine, split, corruptions=(*KINDS[:3], "brightness"), n=TEST)
    assert [rung.name for rung in report.rungs] == ["integrity", "parity", "clean", "corruptions"]
    assert report.reached == "clean"
    measured = report.failed.measured
    assert measured["worst"] in ("gaussian_noise", "shot_noise", "impulse_noise")
    assert sum(one["engine"] for one in measured["kinds"].values()) == measured["engine"]["accuracy"] * TEST
    with pytest.raises(RobustnessGateFailed, match=r"corruptions: .* worst is \w+_noise, with \d+ of \d+ images"):
        sign_off(report)


def test_a_bundle_keeps_its_kinds_and_is_verified_by_them_again(robust, split, tmp_path):
    terms = {"margin": 0.02, "n": 135, "corruptions": ("fog", "snow")}  # 135 equal answers show 2 points
    folder = bundle_of(robust, Known("sturdy", "sturdy"), out=tmp_path, verify="clean", split=split, **terms)
    manifest = read_bundle(folder)
    gate = manifest.gates[-1]
    assert (gate.name, gate.n, gate.holds, manifest.verified) == ("corruptions", 135, True, "clean")
    assert [*gate.measured["kinds"]] == ["fog", "snow"]
    assert accuracy_on_the_engine(manifest) == manifest.gates[-2].measured["engine"]["accuracy"]
    again = verify_bundle(folder, model=robust, split=split, level="clean", n=135)
    assert again.rungs[-1].bits == read_report(folder / "reports" / "verify.json", Report).rungs[-1].bits
    plain = verify_bundle(folder, model=robust, split=split, level="clean", corruptions=())
    assert plain.rungs[-1].name == "clean"
    same = compare(str(folder), str(folder)).protocols
    assert same["corruptions"]["n"] == 135


def test_an_image_of_the_rung_keeps_its_label_and_its_own_corruption(split):
    seen: list[torch.Tensor] = []

    class Blind(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 10)

    class Recording(Twin):
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return super().__call__(images)

    recording = Recording(Blind())
    images, labels = split.images[:30], np.arange(30) % 10
    rungs.corruptions(recording, recording, images, labels, KINDS, 3, lambda done, total: None)
    for i, cell in enumerate(one_each(30, KINDS, 3)):
        expected = corrupted(images[i : i + 1], *cell, seed=3, index=np.array([i]))[0]
        assert np.array_equal((seen[0][i] * 255).round().numpy().transpose(1, 2, 0), expected)

    def oracle(x: torch.Tensor) -> torch.Tensor:
        return torch.eye(10)[[next(i for i, one in enumerate(seen[0]) if torch.equal(one, each)) % 10 for each in x]]

    bits, found = rungs.corruptions(recording, oracle, images, labels, KINDS, 3, lambda done, total: None)
    assert not bits[0].any()
    assert bits[1].all()
    assert sum(one["n"] for one in found["kinds"].values()) == 30


def test_corruptions_without_labelled_images_are_refused():
    with pytest.raises(UsageError, match="verify 'clean' or 'attacked', not 'parity'"):
        Terms(corruptions=KINDS).level("parity")
    assert Terms.of("fp32", corruptions="all") == Terms(corruptions=KINDS)
    assert Terms(corruptions=KINDS).level(None) == "attacked"
    assert Terms().level(None) is None
