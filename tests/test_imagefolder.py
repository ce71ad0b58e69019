from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

import zoo.datasets.imagefolder
from zoo.cli.app import run as command_line
from zoo.datasets.base import check_fits
from zoo.datasets.imagefolder import IMAGEFOLDER, opened
from zoo.models import build
from zoo.registry.file import load_registry
from zoo.specs import StagedSpec
from zoo.system.errors import DataNotFound, IntegrityError, UsageError
from zoo.train.data.crop import crop_box, random_crop
from zoo.train.data.images import Streamed
from zoo.train.pipeline import run
from zoo.train.recipes.phases import load_phases
from zoo.train.spaces.rnascl import search_space
from zoo.weights.load import find
from zoo.weights.tensors import save_weights

CPU = torch.device("cpu")
IMAGENET = ("is", "im", "i")


def draw(folder: Path, classes: int, train: int, val: int) -> Path:
    """An image folder of small JPEGs of many sizes, no two alike."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("val", val)):
        for label in range(classes):
            place = folder / part / f"n{label:03}"
            place.mkdir(parents=True)
            for k in range(count):
                height, width = rng.integers(16, 48, 2)
                pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{k:03}.jpg", quality=95)
    return folder


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ZOO_IMAGENET", raising=False)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three classes of five training and two test images."""
    return draw(tmp_path / "images", classes=3, train=5, val=2)


@pytest.fixture(scope="module")
def hundred(tmp_path_factory) -> Path:
    """A hundred classes of two training images and one test image."""
    return draw(tmp_path_factory.mktemp("imagenet") / "images", classes=100, train=2, val=1)


# -- the data set ------------------------------------------------------------------------------------------------


def test_train_and_validation_share_out_the_files_of_each_class_and_val_is_the_test_split(folder):
    data = IMAGEFOLDER.load(folder)
    assert data.classes == ("n000", "n001", "n002")
    names = {name: {str(path.relative_to(folder)) for path in data.files[name].paths} for name in data.files}
    assert names["validation"] == {f"train/n{label:03}/004.jpg" for label in range(3)}
    assert not names["train"] & names["validation"]
    assert len(names["train"] | names["validation"]) == 15
    assert names["test"] == {f"val/n{label:03}/{k:03}.jpg" for label in range(3) for k in range(2)}


@pytest.mark.parametrize(("train", "held_out"), [(2, 1), (99, 1), (100, 2), (149, 2)])
def test_a_fiftieth_of_each_class_and_at_least_one_image_is_held_out(tmp_path, train, held_out):
    place = tmp_path / "few" / "train" / "a"
    for path in [*(place / f"{k:03}.jpg" for k in range(train)), tmp_path / "few" / "val" / "a" / "0.jpg"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    data = IMAGEFOLDER.load(tmp_path / "few")  # nothing is decoded until it is asked for
    assert [len(data.files[name]) for name in ("train", "validation")] == [train - held_out, held_out]


def test_classes_take_turns_so_that_leading_images_are_of_all(folder):
    shutil.copy(folder / "train" / "n001" / "000.jpg", folder / "train" / "n001" / "0000.jpg")
    data = IMAGEFOLDER.load(folder)
    assert data.split("train").labels.tolist() == [0, 1, 2] * 4 + [1]
    assert data.split("test").labels.tolist() == [0, 1, 2] * 2
    for files in data.files.values():
        assert [path.parent.name for path in files.paths] == [data.classes[label] for label in files.labels]


def test_evaluation_images_are_the_centres_of_torchvision_and_decoded_once(folder, monkeypatch):
    test = IMAGEFOLDER.load(folder).split("test")
    assert test.images.shape == (6, 224, 224, 3)
    assert test.images.dtype == np.uint8
    assert not test.images.flags.writeable
    for k, path in enumerate(IMAGEFOLDER.load(folder).files["test"].paths):
        image = Image.open(path).convert("RGB")
        assert np.array_equal(test.images[k], functional.center_crop(functional.resize(image, 256), [224, 224]))
    monkeypatch.setattr(zoo.datasets.imagefolder, "opened", lambda path: pytest.fail("decoded again"))
    assert IMAGEFOLDER.load(folder).split("test").fingerprint == test.fingerprint


def test_a_changed_file_is_decoded_anew(folder):
    before = IMAGEFOLDER.load(folder).split("test").fingerprint
    shutil.copy(folder / "val" / "n000" / "000.jpg", folder / "val" / "n002" / "001.jpg")
    assert IMAGEFOLDER.load(folder).split("test").fingerprint != before


def test_images_of_every_mode_and_nested_folders_are_read_and_other_files_are_not(folder):
    place = folder / "val" / "n000"
    (place / "deeper").mkdir()
    Image.new("L", (20, 20), 7).save(place / "deeper" / "grey.PNG")
    Image.new("RGBA", (20, 20), (1, 2, 3, 4)).save(place / "alpha.png")
    (place / "readme.txt").write_text("no image")
    (place / "._000.jpg").write_bytes(b"no image")
    (folder / "val" / ".hidden").mkdir()
    test = IMAGEFOLDER.load(folder).split("test")
    assert len(test) == 8
    assert (test.images[test.labels == 0][-1] == 7).all()  # a/deeper/grey.PNG comes last


@pytest.mark.parametrize(("mode", "name"), [("I;16", "deep.png"), ("F", "deep.tiff"), ("I", "deep.tiff")])
def test_an_image_that_pillow_would_clip_is_refused(folder, mode, name):
    path = folder / "val" / "n000" / name
    Image.new(mode, (20, 20), 1).save(path)
    with pytest.raises(IntegrityError, match=f"{name}' has more than 8 bits a channel: save it with 8"):
        opened(path)


def test_colours_of_sixteen_bits_keep_their_leading_eight(folder):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixel = struct.pack(">HHH", 0x80FF, 0x0100, 0xFFFF)
    path = folder / "val" / "n000" / "deep.png"
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" + pixel)) + chunk(b"IEND", b""))
    assert opened(path).getpixel((0, 0)) == (0x80, 0x01, 0xFF)


def remove(*names):
    return lambda folder: [shutil.rmtree(folder / name) for name in names]


def thin(name, left):
    return lambda folder: [path.unlink() for path in sorted((folder / name).iterdir())[left:]]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (remove("train"), "no folder '.*train'"),
        (remove("val"), "no folder '.*val'"),
        (remove("val/n000", "val/n001", "val/n002"), "val' holds no folders"),
        (remove("val/n001"), "val' lacks the class 'n001': train and val"),
        (remove("train/n001", "train/n002"), "train' lacks the class 'n001' and 1 more"),
        (thin("train/n002", 0), "n002' holds no images"),
        (thin("train/n002", 1), "n002' in '.*train' has only one image"),
    ],
)
def test_an_invalid_folder_is_refused_in_one_sentence(folder, damage, says):
    damage(folder)
    with pytest.raises(DataNotFound, match=says) as caught:
        IMAGEFOLDER.load(folder)
    assert "\n" not in str(caught.value)


def test_a_model_for_other_images_or_classes_is_refused(folder, toy):
    data = IMAGEFOLDER.load(folder)
    check_fits(toy, search_space("s3").largest)
    check_fits(data, tiny_spec(224, 3))
    with pytest.raises(UsageError, match=r"100 classes, but .* has 3"):
        check_fits(data, search_space("is").largest)
    with pytest.raises(UsageError, match=r"32 pixels, but .* have 224"):
        check_fits(data, search_space("s3").largest)
    with pytest.raises(UsageError, match="no split"):
        data.split("val")


# -- the source of training images -------------------------------------------------------------------------------


def test_crops_are_within_the_image_and_cover_what_torchvisions_do():
    random, shares = Random(0), []
    for _ in range(2000):
        width, height = random.randint(1, 600), random.randint(1, 600)
        left, top, right, bottom = crop_box(width, height, random)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
    for _ in range(2000):
        left, top, right, bottom = crop_box(400, 400, random)
        shares.append((right - left) * (bottom - top) / 400**2)
    assert 0.07 < min(shares) < 0.12
    assert crop_box(1000, 10, random) == (493, 0, 506, 10)  # no crop fits: the largest in the centre
    assert 0.47 < np.mean(shares) < 0.55  # a little under 0.54: wide crops of nearly all the image do not fit


def test_a_seed_gives_the_crop_that_torchvision_makes_of_its_box(folder):
    path = folder / "train" / "n000" / "000.jpg"
    image = Image.open(path)
    left, top, right, bottom = crop_box(*image.size, Random(5))
    expected = np.asarray(functional.resized_crop(image, top, left, bottom - top, right - left, [224, 224]))
    crop = random_crop(path, 5)
    assert any(np.array_equal(crop, other) for other in (expected, expected[:, ::-1]))
    assert np.array_equal(crop, random_crop(path, 5))


def test_half_of_the_crops_are_flipped(tmp_path):
    """An image that is darker on its left: so is every crop of it, unless it was flipped."""
    path = tmp_path / "ramp.png"
    Image.fromarray(np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(64, 0)).save(path)
    crops = [random_crop(path, seed).mean((0, 2)) for seed in range(100)]
    assert 35 < sum(crop[0] > crop[-1] for crop in crops) < 65


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_batch_depends_on_the_generator_alone(folder):
    files = IMAGEFOLDER.load(folder).split("train")
    index, before = torch.tensor([3, 0, 0, 7]), torch.get_rng_state()
    x, y = Streamed(files, CPU).augmented(index, seeded(1))
    assert x.shape == (4, 3, 224, 224)
    assert 0 <= x.min() < 0.2 < 0.8 < x.max() <= 1
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert y.tolist() == [0, 0, 0, 1]
    assert not torch.equal(x[1], x[2])  # one image, two crops
    again, _ = Streamed(files, CPU).augmented(index, seeded(1))
    assert torch.equal(x, again)
    assert not torch.equal(x, Streamed(files, CPU).augmented(index, seeded(2))[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_expected_images_are_decoded_once_and_are_the_same(folder, monkeypatch):
    files, index = IMAGEFOLDER.load(folder).split("train"), torch.arange(5)
    plain, _ = Streamed(files, CPU).augmented(index, seeded(1))
    source = Streamed(files, CPU)
    source.expect(index, seeded(1))
    assert not torch.equal(source.augmented(index, seeded(2))[0], plain)  # another batch came between
    monkeypatch.setattr("zoo.train.data.images.random_crop", lambda path, seed: pytest.fail("decoded again"))
    assert torch.equal(source.augmented(index, seeded(1))[0], plain)


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_link_that_leads_nowhere_is_named(folder):
    link = folder / "val" / "n001" / "zzz.jpg"
    link.symlink_to(folder / "nowhere.jpg")
    with pytest.raises(IntegrityError, match=r"val/n001/zzz\.jpg' cannot be read \(No such file"):
        IMAGEFOLDER.load(folder).split("test")


def test_a_damaged_training_image_is_named_when_it_is_needed(folder):
    (folder / "train" / "n001" / "000.jpg").write_bytes(b"no image")
    source = Streamed(IMAGEFOLDER.load(folder).split("train"), CPU)
    source.augmented(torch.tensor([0]), seeded(0))
    with pytest.raises(IntegrityError, match=r"train/n001/000\.jpg"):
        source.augmented(torch.tensor([1]), seeded(0))


# -- RNAS-CL's other spaces, all phases --------------------------------------------------------------------------


def tiny_spec(size: int, classes: int) -> StagedSpec:
    if size == 32:
        return StagedSpec(stem=4, widths=((4,), (8,)), resolutions=(16, 8), classes=classes)
    return StagedSpec(
        stem=4, widths=((4,), (8,)), resolutions=(56, 28), stem_resolution=112, image_size=size, classes=classes
    )


@pytest.fixture
def teacher(tmp_path):
    """A function that leaves the folder of an untrained model."""

    def made(size: int, classes: int) -> Path:
        folder, spec = tmp_path / f"teacher-{classes}" / "model", tiny_spec(size, classes)
        folder.mkdir(parents=True)
        save_weights(build(spec).state_dict(), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"spec": spec.to_dict()}))
        return folder

    return made


BRIEF = [
    *("train.batch_size=2", "train.images=4", "ema.recalibrate=2"),
    *("guard.images=2", "guard.steps=1", "phase.trades.attack.steps=1"),
]


def check_phases(space: str, out: Path) -> None:
    """A search within its budget, then two models of the architecture that it found."""
    found = json.loads((out / "search" / "search.json").read_text())
    assert found["space"] == space
    assert found["macs"] <= found["budget"]
    for phase, phases in (("train", ["search", "train"]), ("trades", ["search", "train", "trades"])):
        config = json.loads((out / phase / "model" / "config.json").read_text())
        assert config["spec"] == found["spec"]
        assert config["tutors"] == found["tutors"]
        assert [one["name"] for one in config["train"]["phases"]] == phases


@pytest.mark.slow
@pytest.mark.parametrize("space", ["m", "l"])
def test_smoke_of_the_large_cifar_spaces(space, toy, teacher, tmp_path):
    toy = replace(toy, sizes={**toy.sizes, "validation": 16})
    name = f"rnascl-{space}-wrt34-10"
    overrides = [*BRIEF, f"teacher.name={teacher(32, 10)}"]
    run(load_phases(name, preset="smoke", overrides=overrides), toy, tmp_path / name)
    check_phases(space, tmp_path / name)


@pytest.mark.parametrize("space", ["is", *(pytest.param(space, marks=pytest.mark.slow) for space in IMAGENET[1:])])
def test_smoke_of_the_imagenet_spaces(space, hundred, teacher, tmp_path, monkeypatch, capsys):
    name = f"rnascl-{space}-r18"
    overrides = [*BRIEF, f"teacher.name={teacher(224, 100)}"]
    arguments = [f"--set={one}" for one in overrides]
    out = tmp_path / name
    assert command_line(["train", name, "--preset=smoke", f"--data={hundred}", f"--out={out}", "-q", *arguments]) == 0
    check_phases(space, out)
    assert find(f"local-dir:{out}/trades/model").classes == tuple(f"n{label:03}" for label in range(100))
    monkeypatch.setenv("ZOO_REGISTRY", str(tmp_path / "registry.json"))
    ask = ["eval", f"local-dir:{out}/trades/model", f"--data={hundred}", "-p", "clean", "--write", "-q"]
    assert command_line(ask) == 0
    (entry,) = load_registry().models.values()
    assert (entry.dataset, [*entry.results]) == ("imagefolder", ["imagefolder-clean"])
    capsys.readouterr()
    assert command_line(["list", "--by", "imagefolder-clean"]) == 0
    said, n = capsys.readouterr().out, entry.results["imagefolder-clean"].accuracy.n
    assert f"imagefolder-clean: no attack, n = {n} test images." in said


def test_the_command_line_refuses_data_that_do_not_fit_the_recipe(folder, teacher, capsys):
    taught = f"--set=teacher.name={teacher(224, 100)}"
    assert command_line(["train", "rnascl-is-r18", f"--data={folder}", "-q", taught]) == 2
    assert "100 classes" in capsys.readouterr().err


def test_images_of_other_classes_or_in_another_order_are_refused(folder, teacher, tmp_path, capsys):
    model = Path(shutil.copytree(teacher(224, 3), tmp_path / "named"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps(config | {"dataset": "imagefolder", "classes": ["n000", "n001", "n002"]})
    )
    assert command_line(["eval", f"local-dir:{model}", f"--data={folder}", "-p", "clean", "-n", "1", "-q"]) == 0
    for part in ("train", "val"):
        (folder / part / "n000").rename(folder / part / "wasp")
    for verb in (["eval", "-p", "clean"], ["sweep"], ["export", "--verify", "clean", "--out", str(tmp_path / "out")]):
        assert command_line([verb[0], f"local-dir:{model}", f"--data={folder}", "-q", *verb[1:]]) == 2
        assert "such as 'n001' in place of 'n000'" in capsys.readouterr().err


def test_a_link_that_leads_back_is_refused(folder):
    (folder / "val" / "n000" / "loop").symlink_to("..")
    with pytest.raises(UsageError, match="leads back to a folder that it is in"):
        IMAGEFOLDER.load(folder)


def test_a_model_of_image_folders_is_evaluated_and_swept_on_one(folder, teacher, capsys):
    model = f"local-dir:{teacher(224, 3)}"
    assert command_line(["eval", model, f"--data={folder}", "-p", "clean", "-p", "fgsm", "--json", "-q"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert results["imagefolder-clean"]["accuracy"]["n"] == 6
    assert results["imagefolder-fgsm"]["accuracy"]["value"] <= results["imagefolder-clean"]["accuracy"]["value"]
    assert command_line(["sweep", model, f"--data={folder}", "--eps=0", "--attack=fgsm", "--json", "-q"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["dataset"], record["curves"]["fgsm"][0]["accuracy"]["n"]) == ("imagefolder", 6)
    assert command_line(["sweep", f"local-dir:{teacher(224, 4)}", f"--data={folder}", "-q"]) == 2
    assert "4 classes" in capsys.readouterr().err
