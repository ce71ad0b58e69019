"""What every data set of the table must do, shown on small ones that are written here, and on the real ones at hand."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from zoo.datasets import DATASETS, dataset_called, dataset_for
from zoo.datasets.base import Dataset, Split, check_labels, to_float
from zoo.datasets.cifar10 import CIFAR10
from zoo.datasets.imagefolder import ImageFolder
from zoo.datasets.parquet import Parquet
from zoo.datasets.restricted_imagenet import RANGES, RESTRICTED_IMAGENET
from zoo.specs import StagedSpec
from zoo.system.cache import MARK, cache_root
from zoo.system.errors import DataNotFound, IntegrityError, UsageError

SIZES = {"train": 26, "validation": 4, "test": 10}
TOP = [name for name, dataset in DATASETS.items() if isinstance(dataset, Parquet)]


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def write_parquet(path: Path, images: np.ndarray, labels: np.ndarray, column: str = "label", kind: str = "PNG") -> None:
    rows = [{"bytes": encoded(image, kind), "path": None} for image in images]
    pq.write_table(pa.table({"img": rows, column: labels}), path)


def of_parquet(dataset: Parquet, folder: Path, rng: np.random.Generator) -> Dataset:
    size = dataset.image_size
    images, labels = rng.integers(0, 256, (40, size, size, 3), np.uint8), rng.integers(0, len(dataset.classes), 40)
    place = folder / dataset.folder
    place.mkdir(parents=True)
    write_parquet(place / "train-00000-of-00002.parquet", images[:20], labels[:20], dataset.label)
    write_parquet(place / "train-00001-of-00002.parquet", images[20:30], labels[20:30], dataset.label, "WEBP")
    write_parquet(place / "test-00000-of-00001.parquet", images[30:], labels[30:], dataset.label)
    return replace(dataset, sizes=SIZES, test_sha256=None, train_sha256=None)


def of_folders(dataset: ImageFolder, folder: Path, rng: np.random.Generator) -> Dataset:
    for part, count in (("train", 10), ("val", 2)):
        for place in (folder / part / f"class{label}" for label in range(3)):
            place.mkdir(parents=True)
            for k in range(count):
                Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(place / f"{k}.png")
        if dataset.ranges:
            (folder / part / "unused").mkdir()
    ranges = {"dog": (2, 2), "cat": (0, 0), "frog": (1, 1)}
    return replace(dataset, ranges=ranges, folders=4) if dataset.ranges else dataset


CACHED = [name for name, dataset in DATASETS.items() if isinstance(dataset, Parquet | ImageFolder)]  # decoded
WRITERS = {Parquet: of_parquet, ImageFolder: of_folders}  # a new layout of files needs its own


def written(name: str, folder: Path, seed: int = 0) -> Dataset:
    """The data set ``name`` with 30 training images and few for tests, random ones, in ``folder``; not loaded yet."""
    dataset = DATASETS[name]
    return WRITERS[type(dataset)](dataset, folder, np.random.default_rng(seed))


@pytest.fixture
def nowhere(tmp_path, monkeypatch) -> None:
    """Empty caches, and no variable that names a folder."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for variable in ("ZOO_DATA", *(dataset.variable for dataset in DATASETS.values())):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(params=DATASETS)
def name(request) -> str:
    return request.param


@pytest.fixture
def folder(tmp_path, nowhere) -> Path:
    return tmp_path / "data"


# -- the contract ------------------------------------------------------------------------------------------------


def pixels(part) -> set[bytes]:
    return {image.tobytes() for image in part.pixels(np.arange(len(part)))}


def test_a_data_set_knows_all_that_a_recipe_or_a_model_asks_of_it(name, folder):
    dataset = written(name, folder).load(folder)
    assert dataset_called(name).name == dataset.name == name
    assert len(set(dataset.classes)) == len(dataset.classes) >= 2
    assert len(dataset.mean) == len(dataset.std) == 3
    assert all(0 < number < 1 for number in dataset.mean + dataset.std)
    assert dataset.contract() == {
        "classes": len(dataset.classes),
        "image_size": dataset.image_size,
        "mean": list(dataset.mean),
        "std": list(dataset.std),
    }
    size = dataset.image_size
    for split, n in dataset.sizes.items():
        part = dataset.split(split)
        assert len(part) == n
        assert part.labels.dtype == np.int64
        assert set(part.labels.tolist()) <= {*range(len(dataset.classes))}
        found = part.pixels(np.arange(2))
        assert (found.shape, found.dtype) == ((2, size, size, 3), np.uint8)
    with pytest.raises(UsageError, match="known: train, validation, test"):
        dataset.split("val")
    with pytest.raises(DataNotFound, match="before it is loaded"):
        DATASETS[name].split("test")


def test_no_image_is_in_two_splits_and_validation_is_cut_from_the_training_images(name, folder):
    dataset = written(name, folder).load(folder)
    train, held_out, test = (dataset.split(part) for part in ("train", "validation", "test"))
    assert not pixels(train) & pixels(held_out)
    assert not pixels(test) & (pixels(train) | pixels(held_out))
    assert len(pixels(train) | pixels(held_out)) == len(train) + len(held_out) == 30


def test_files_of_another_data_set_are_refused(name, folder, tmp_path):
    dataset = written(name, folder)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for other in DATASETS.keys() - {name}:
        written(other, tmp_path / other)
    for place in ("missing", "empty", "file", *(DATASETS.keys() - {name})):
        with pytest.raises(DataNotFound, match=str(tmp_path / place)) as caught:
            dataset.load(tmp_path / place)
        assert caught.value.exit_code == 4
        assert "\n" not in str(caught.value)


def test_a_damaged_file_is_named_and_leaves_no_cache(name, folder):
    dataset = written(name, folder)
    broken = sorted(folder.rglob("test-*.parquet")) or sorted(folder.glob("val/*/*"))
    broken[-1].write_bytes(broken[-1].read_bytes()[:100])
    with pytest.raises(IntegrityError, match=broken[-1].name) as caught:
        dataset.load(folder).split("test")
    assert caught.value.exit_code == 5
    assert not list(cache_root().iterdir())


def decoded(name: str, part: str) -> Path:
    """The file of the test split's images or labels in the cache."""
    (path,) = cache_root().rglob(f"test_{part}.npy" if name in TOP else f"{part}.npy")
    return path


def zeroed(path: Path) -> None:
    np.load(path, mmap_mode="r+")[:2] = 0


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:150]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": Path.unlink,
    "altered": zeroed,
    "without a record": lambda path: path.with_name(MARK).write_bytes(b""),
    "with a damaged record": lambda path: path.with_name(MARK).write_bytes(b'{"images'),
}


@pytest.mark.parametrize("name", CACHED)
@pytest.mark.parametrize("part", ["images", "labels"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_decoded_again_which_is_said_once(name, folder, damage, part, capsys):
    dataset = written(name, folder).load(folder)
    before = dataset.split("test").fingerprint
    path = decoded(name, part)
    DAMAGE[damage](path)
    assert dataset.split("test").fingerprint == before
    assert dataset.split("test").fingerprint == before
    (said,) = capsys.readouterr().err.splitlines()
    assert "is missing or damaged: its folder of the cache is made again" in said
    assert str(path.parent) in said
    assert sorted(path.parent.parent.iterdir()) == sorted({file.parent for file in cache_root().rglob(MARK)})


@pytest.mark.parametrize("name", CACHED)
def test_a_damaged_cache_that_cannot_be_written_is_named(name, folder, monkeypatch):
    dataset = written(name, folder).load(folder)
    dataset.split("test")
    zeroed(decoded(name, "images"))

    def full(path, *_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DataNotFound, match=r"cannot be written \(No space left on device\): set ZOO_CACHE"):
        dataset.split("test")
    assert not [path for path in cache_root().iterdir() if not (path / MARK).exists()]


def test_an_offline_miss_says_how_to_get_the_data(name, nowhere):
    with pytest.raises(DataNotFound, match=DATASETS[name].variable) as caught:
        DATASETS[name].load(offline=True)
    assert caught.value.exit_code == 4
    assert "--data" in str(caught.value)


def test_it_is_found_by_its_variable_or_by_its_name_in_zoo_data(name, folder, tmp_path, monkeypatch):
    dataset = written(name, folder / name)
    expected = dataset.load(folder / name).split("test").fingerprint
    with monkeypatch.context() as patch:
        patch.setenv(dataset.variable, str(folder / name))
        assert dataset.load().split("test").fingerprint == expected
    monkeypatch.setenv("ZOO_DATA", str(folder))
    assert dataset.load().split("test").fingerprint == expected
    with pytest.raises(DataNotFound, match="elsewhere"):  # a place that is passed is the only one
        dataset.load(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((2, 32, 32, 3), np.float32), np.zeros(2, np.int64)),
        (np.zeros((2, 3, 32, 32), np.uint8), np.zeros(2, np.int64)),
        (np.zeros((2, 32, 32, 3), np.uint8), np.zeros(2, np.int32)),
        (np.zeros((2, 32, 32, 3), np.uint8), np.zeros(3, np.int64)),
    ],
)
def test_a_split_is_uint8_images_in_the_last_layout_and_a_label_for_each(images, labels):
    with pytest.raises(TypeError, match=r"uint8 \[N, H, W, 3\] and labels int64 \[N\], not .*\["):
        Split("train", images, labels)


@pytest.mark.parametrize("labels", [(0, 3), (-1, 2), (1, 2, 3)])
def test_labels_outside_the_classes_are_refused(labels):
    check_labels(np.array([0, 2]), 3, "it")
    says = f"the train split has labels from {min(labels)} to {max(labels)}, but those of 3 classes are 0 to 2"
    with pytest.raises(IntegrityError, match=says):
        check_labels(np.array(labels), 3, "the train split")


def test_the_fingerprint_is_that_of_the_pixels_and_the_labels(name, folder, tmp_path):
    test = written(name, folder).load(folder).split("test")
    again = written(name, tmp_path / "again").load(tmp_path / "again").split("test")
    other = written(name, tmp_path / "other", seed=1).load(tmp_path / "other").split("test")
    relabelled = Split("test", test.images, (test.labels + 1) % 3)
    assert test.fingerprint == again.fingerprint
    assert len({test.fingerprint, other.fingerprint, relabelled.fingerprint}) == 3


def test_the_real_data_set_matches_its_value(name):
    try:
        dataset = DATASETS[name].load(offline=True)
    except DataNotFound as error:
        pytest.skip(f"needs {DATASETS[name].title}: {error}")
    for split, n in dataset.sizes.items():
        assert len(dataset.split(split)) == n
    test = dataset.split("test")
    if isinstance(dataset, Parquet):
        assert test.fingerprint == dataset.test_sha256
        parts = (np.load(dataset.root / f"train_{part}.npy", mmap_mode="r") for part in ("images", "labels"))
        assert Split("train", *parts).fingerprint == dataset.train_sha256
    assert test.images.shape[1:] == (dataset.image_size, dataset.image_size, 3)
    counts = np.bincount(test.labels, minlength=len(dataset.classes))
    assert np.unique(counts).size == 1 or name == "restricted-imagenet"  # of every class as many
    if isinstance(dataset, Parquet):  # the held-out images are as bright as all, within their error
        held_out = to_float(dataset.split("validation").images)
        assert held_out.mean((0, 2, 3)).tolist() == pytest.approx(dataset.mean, abs=0.02)
        assert held_out.std((0, 2, 3)).tolist() == pytest.approx(dataset.std, abs=0.02)


def test_the_table_is_read_without_torch_and_numpy():
    check = "import sys, zoo.datasets; sys.exit(bool({'torch', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_a_typo_is_corrected_and_a_model_without_a_data_set_gets_one_that_fits():
    with pytest.raises(UsageError, match="did you mean 'cifar100'"):
        dataset_called("cifar-100")
    spec = StagedSpec(widths=((4,),), resolutions=(16,))
    assert dataset_for(spec, "cifar100").name == "cifar100"
    for classes, size, expected in ((10, 32, "cifar10"), (100, 32, "cifar100"), (7, 224, "imagefolder")):
        assert dataset_for(spec.model_copy(update={"classes": classes, "image_size": size}), None).name == expected
    with pytest.raises(UsageError, match="7 classes and images of 32 pixels"):
        dataset_for(spec.model_copy(update={"classes": 7}), None)


# -- parquet files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOP)
def test_the_cache_answers_once_the_data_are_gone(name, folder):
    dataset = written(name, folder)
    before = dataset.load(folder).split("test").fingerprint
    for path in (folder / dataset.folder).iterdir():
        path.unlink()
    assert dataset.load().split("test").fingerprint == before
    with pytest.raises(DataNotFound):  # another data set's images do not stand in
        next(other for key, other in DATASETS.items() if key != name).load(offline=True)


@pytest.mark.parametrize("name", TOP)
def test_damaged_training_images_do_not_hide_the_test_split(name, folder):
    dataset = replace(written(name, folder), train_sha256="0" * 64)
    root = dataset.load(folder).root
    shutil.rmtree(folder)
    zeroed(root / "train_images.npy")
    found = dataset.load(offline=True)
    assert len(found.split("test")) == SIZES["test"]
    with pytest.raises(DataNotFound, match=dataset.variable):
        found.split("train")


@pytest.mark.parametrize("name", TOP)
def test_other_training_images_are_used_only_where_their_folder_is_named(name, folder, tmp_path):
    dataset, other = written(name, folder), tmp_path / "other"
    first = dataset.load(folder).root
    original = Split("train", *(np.load(first / f"train_{part}.npy") for part in ("images", "labels"))).fingerprint
    dataset = replace(dataset, train_sha256=original)
    shutil.copytree(folder, other)
    shards = [pq.read_table(path) for path in sorted(other.rglob("train-*"))]
    for path, table in zip(sorted(other.rglob("train-*")), shards, strict=True):
        turned = pa.array(len(dataset.classes) - 1 - table[dataset.label].to_numpy())
        pq.write_table(table.set_column(1, dataset.label, turned), path)
    changed = dataset.load(other)
    assert changed.root != first
    assert dataset.load().root == first
    shutil.rmtree(first)
    with pytest.raises(DataNotFound, match=dataset.variable):
        dataset.load(offline=True)
    hub = changed.root.with_name(f"{name}-hub-{dataset.revision[:12]}")
    dataset.load(folder).root.rename(hub)  # as if it had been fetched
    assert dataset.load(offline=True).root == hub


def test_png_and_lossless_webp_shards_decode_to_the_same_pixels_in_order(folder):
    dataset = written("cifar10", folder).load(folder)
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    train, held_out = dataset.split("train"), dataset.split("validation")
    assert np.array_equal(np.concatenate([train.images, held_out.images]), images[:30])
    assert np.array_equal(dataset.split("test").images, images[30:])


@pytest.mark.parametrize("name", TOP)
def test_a_damaged_cache_without_the_data_is_asked_of_the_hub(name, folder):
    written(name, folder).load(folder)
    shutil.rmtree(folder)
    zeroed(decoded(name, "labels"))
    with pytest.raises(DataNotFound, match=DATASETS[name].variable):
        replace(DATASETS[name], sizes=SIZES).load(offline=True).split("test")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1 half a file PAR1"])
def test_an_empty_or_truncated_parquet_file_is_named(folder, content):
    dataset = written("cifar10", folder)
    (file,) = folder.rglob("test-*.parquet")
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match=f"'{file}' is not a readable parquet file"):
        dataset.load(folder)


def test_files_with_other_test_images_than_those_of_cifar10_are_refused(folder):
    dataset = written("cifar10", folder)
    true = dataset.load(folder).split("test").fingerprint
    replace(dataset, test_sha256=true).load(folder)
    for path in cache_root().iterdir():
        shutil.rmtree(path)
    with pytest.raises(IntegrityError, match=r"the test split in '.*' has other images or labels than CIFAR-10"):
        replace(dataset, test_sha256=CIFAR10.test_sha256).load(folder)
    assert not list(cache_root().iterdir())


def test_a_changed_parquet_file_is_decoded_anew(folder):
    dataset = written("cifar10", folder)
    test = dataset.load(folder).split("test")
    write_parquet(folder / "plain_text" / "test-00000-of-00001.parquet", 255 - test.images, test.labels)
    assert dataset.load(folder).split("test").fingerprint != test.fingerprint


def test_other_numbers_of_images_or_classes_are_refused(folder):
    dataset = written("cifar10", folder)
    with pytest.raises(IntegrityError, match=r"\(30, 32, 32, 3\)"):
        replace(dataset, sizes={**SIZES, "train": 27}).load(folder)
    with pytest.raises(IntegrityError, match="but those of 3 classes are 0 to 2"):
        replace(dataset, classes=("a", "b", "c")).load(folder)


def test_files_of_the_hub_are_hashed_and_fetched_once_more_if_damaged(folder, tmp_path, monkeypatch):
    dataset = written("cifar10", folder)
    whole = (folder / "plain_text" / "test-00000-of-00001.parquet").read_bytes()
    blob = tmp_path / "hub" / hashlib.sha256(whole).hexdigest()  # the client's cache names large files so
    blob.parent.mkdir()
    calls, answers = [], iter([b"damaged", b"damaged again"])

    def download(repo_id, name, *, repo_type, revision, force_download=False, **_):
        calls.append((repo_id, repo_type, revision, force_download))
        blob.write_bytes(next(answers))
        return str(blob)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(IntegrityError, match="SHA-256"):
        dataset.load()
    asked = (CIFAR10.repo_id, "dataset", CIFAR10.revision)
    assert calls == [(*asked, False), (*asked, True)]
    assert not cache_root().exists()


def test_images_become_contiguous_floats_in_0_1():
    images = np.array([0, 51, 255], np.uint8).repeat(32 * 32 * 3).reshape(3, 32, 32, 3)
    x = to_float(images)
    assert x.is_contiguous()
    assert x.shape == (3, 3, 32, 32)
    assert torch.equal(x[:, 0, 0, 0], torch.tensor([0.0, 0.2, 1.0]))


# -- Restricted-ImageNet -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> Path:
    """1,000 synset folders; those of the super-classes hold three training images (of 100 in one) and a test image."""
    root = tmp_path_factory.mktemp("imagenet")
    (root / "image.png").write_bytes(encoded(np.zeros((4, 4, 3), np.uint8)))
    used = {place for first, last in RANGES.values() for place in range(first, last + 1)}
    for place in range(1000):
        for part, count in (("train", 100 if place == 283 else 3), ("val", 1)):
            folder = root / part / f"n{1_440_764 + 13 * place:08}"
            folder.mkdir(parents=True)
            for k in range(count if place in used else 0):
                os.link(root / "image.png", folder / f"{k:03}.png")
    return root


def test_the_super_classes_are_those_of_the_class_indices(imagenet, nowhere):
    dataset = RESTRICTED_IMAGENET.load(imagenet)
    assert dataset.classes == ("dog", "cat", "frog", "turtle", "bird", "primate", "fish", "crab", "insect")
    synsets = sorted(path.name for path in (imagenet / "val").iterdir())
    train = dataset.split("train")
    found = {synsets.index(path.parent.name): label for path, label in zip(train.paths, train.labels, strict=True)}
    ends = {151: 0, 268: 0, 281: 1, 30: 2, 37: 3, 80: 4, 382: 5, 389: 6, 121: 7, 300: 8}
    assert found.items() >= ends.items()
    assert np.bincount(dataset.split("test").labels).tolist() == [118, 5, 3, 5, 21, 18, 9, 4, 20]
    assert dataset.sizes["train"] + dataset.sizes["validation"] == 202 * 3 + 100


def test_every_synset_gives_its_share_of_the_held_out_images(imagenet, nowhere):
    dataset = RESTRICTED_IMAGENET.load(imagenet)
    files = dataset.files["validation"]
    held_out = [path for path, label in zip(files.paths, files.labels, strict=True) if label == 1]
    assert [path.name for path in held_out] == ["098.png", "099.png"]  # of the 112 cats the last fiftieth
    assert dataset.files["train"].labels[:18].tolist() == [*range(9)] * 2


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_folder_without_all_synsets_is_refused(imagenet, nowhere, tmp_path, part):
    shutil.copytree(imagenet, tmp_path / "less", copy_function=os.link)
    shutil.rmtree(next((tmp_path / "less" / part).iterdir()))
    with pytest.raises(
        DataNotFound, match=f"{part}' holds 999 folders: Restricted-ImageNet needs all 1,000 of ImageNet's"
    ):
        RESTRICTED_IMAGENET.load(tmp_path / "less")
