from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import zoo.datasets.cifar10
from zoo.datasets.cifar10 import Dataset, load_cifar10, to_float
from zoo.system.errors import DataNotFound, IntegrityError, UsageError
from zoo.system.files import cache_root


def encoded(image: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def write_parquet(path, images, labels, kind="PNG"):
    rows = [{"bytes": encoded(image, kind), "path": None} for image in images]
    pq.write_table(pa.table({"img": rows, "label": labels}), path)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A dataset folder of 30 + 10 images in two train shards, and an empty cache."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ZOO_DATA", raising=False)
    monkeypatch.setattr(zoo.datasets.cifar10, "COUNTS", {"train": 30, "test": 10})
    monkeypatch.setattr(zoo.datasets.cifar10, "VALIDATION", 4)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, 40)
    folder = tmp_path / "data" / "plain_text"
    folder.mkdir(parents=True)
    write_parquet(folder / "train-00000-of-00002.parquet", images[:20], labels[:20])
    write_parquet(folder / "train-00001-of-00002.parquet", images[20:30], labels[20:30], "WEBP")
    write_parquet(folder / "test-00000-of-00001.parquet", images[30:], labels[30:])
    return tmp_path / "data", images, labels


def test_png_and_lossless_webp_shards_decode_to_the_same_pixels_in_order(tiny):
    folder, images, labels = tiny
    dataset = load_cifar10(folder)
    train, held_out, test = (dataset.split(name) for name in ("train", "validation", "test"))
    assert np.array_equal(np.concatenate([train.images, held_out.images]), images[:30])
    assert np.array_equal(test.labels, labels[30:])
    assert (len(train), len(held_out)) == (26, 4)


def test_the_cache_answers_once_the_data_are_gone(tiny):
    folder, images, _ = tiny
    load_cifar10(folder)
    for path in (folder / "plain_text").iterdir():
        path.unlink()
    assert np.array_equal(load_cifar10().split("test").images, images[30:])


def test_a_changed_parquet_file_is_decoded_anew(tiny):
    folder, images, labels = tiny
    before = load_cifar10(folder).split("test").fingerprint
    write_parquet(folder / "plain_text" / "test-00000-of-00001.parquet", 255 - images[30:], labels[30:])
    assert load_cifar10(folder).split("test").fingerprint != before


def test_the_fingerprint_depends_on_pixels_and_on_labels(tiny):
    test = load_cifar10(tiny[0]).split("test")
    prints = {test.fingerprint}
    for images_of, labels_of in ((255 - test.images, test.labels), (test.images, (test.labels + 1) % 10)):
        prints.add(zoo.datasets.cifar10.Split("test", images_of, labels_of).fingerprint)
    assert len(prints) == 3


def test_a_decode_that_fails_leaves_no_cache(tiny, monkeypatch):
    folder, _, _ = tiny
    (folder / "plain_text" / "train-00001-of-00002.parquet").write_bytes(b"PAR1 but no")
    with pytest.raises(IntegrityError, match="train-00001"):
        load_cifar10(folder)
    assert not list(cache_root().iterdir())


def test_too_few_images_are_not_cifar(tiny, monkeypatch):
    monkeypatch.setattr(zoo.datasets.cifar10, "COUNTS", {"train": 31, "test": 10})
    with pytest.raises(IntegrityError, match=r"\(30, 32, 32, 3\)"):
        load_cifar10(tiny[0])


@pytest.mark.parametrize("place", ["missing", "data/plain_text/test-00000-of-00001.parquet", "."])
def test_a_folder_that_is_not_the_dataset_is_refused_by_name(tiny, tmp_path, place):
    with pytest.raises(DataNotFound, match=str(tmp_path)) as caught:
        load_cifar10(tmp_path / place)
    assert caught.value.exit_code == 4


def test_an_offline_miss_says_how_to_get_the_data(tiny, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", "nowhere")
    with pytest.raises(DataNotFound, match="ZOO_DATA"):
        load_cifar10(offline=True)


def test_images_become_contiguous_floats_in_0_1():
    images = np.array([0, 51, 255], np.uint8).repeat(32 * 32 * 3).reshape(3, 32, 32, 3)
    x = to_float(images)
    assert x.is_contiguous()
    assert x.shape == (3, 3, 32, 32)
    assert torch.equal(x[:, 0, 0, 0], torch.tensor([0.0, 0.2, 1.0]))


def test_an_unknown_split_is_refused(toy: Dataset):
    with pytest.raises(UsageError, match="validation"):
        toy.split("val")


def test_real_cifar10_is_decoded_once(cifar, monkeypatch):
    monkeypatch.setattr(zoo.datasets.cifar10, "_read_parquet", lambda paths: pytest.fail("decoded again"))
    test = load_cifar10(offline=True).split("test")
    assert test.images.shape == (10_000, 32, 32, 3)
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert len(cifar.split("train")) == 49_000
