from __future__ import annotations

import numpy as np
import pytest
import torch

from zoo.train.data.images import InMemory
from zoo.train.teachers.cache import CachedAnswers, Versions
from zoo.train.teachers.teacher import Teacher

CPU = torch.device("cpu")


@pytest.fixture
def versions(toy):
    return Versions(InMemory(toy.split("train"), CPU, 60), 3)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))


def cached_by(folder, versions, precision="fp32"):
    teacher = Teacher(str(folder), CPU, size=4)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    return teacher, CachedAnswers(teacher, versions, autocast, precision=precision)


def test_every_version_is_an_augmented_image_of_the_same_label(toy, versions):
    assert len(versions) == 180
    index = torch.arange(60)
    rows = versions.rows(index, torch.Generator().manual_seed(1))
    x, y = versions[rows]
    assert torch.equal(y, torch.from_numpy(toy.split("train").labels[:60].copy()))
    assert torch.equal(rows % 60, index)
    assert len(rows.div(60, rounding_mode="floor").unique()) == 3  # all versions get their turn
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal((x * 255).round(), x * 255)  # 8-bit images, nothing lost


def test_versions_do_not_depend_on_the_seed_of_a_run(toy, versions):
    torch.manual_seed(77)
    again = Versions(InMemory(toy.split("train"), CPU, 60), 3)
    assert torch.equal(again.images, versions.images)


def test_a_cached_answer_is_the_teachers_on_that_version(teacher_folder, versions):
    teacher, cached = cached_by(teacher_folder, versions)
    rows = torch.tensor([0, 179, 61, 61])
    teacher.tap(teacher.layers)
    asked = teacher(versions[rows][0])  # the cache is not read where no rows are given
    stored = cached.answer(rows, teacher.layers)
    assert torch.allclose(stored.logits, asked.logits, atol=2e-3)
    assert torch.allclose(stored.maps, asked.maps, atol=2e-3)
    some = cached.answer(rows, [teacher.layers[2], teacher.layers[0]])
    assert torch.equal(some.maps, stored.maps[:, [2, 0]])
    assert cached.answer(rows, None).maps is None


def test_a_cache_is_written_once_and_again_for_other_images_or_another_precision(
    teacher_folder, versions, toy, tmp_path, monkeypatch
):
    cached_by(teacher_folder, versions)
    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "__call__", lambda self, x: pytest.fail("the teacher was asked again"))
        cached_by(teacher_folder, versions)
    others = Versions(InMemory(toy.split("train"), CPU, 59), 3)
    cached_by(teacher_folder, others)
    cached_by(teacher_folder, versions, "bf16")
    caches = [path for path in tmp_path.iterdir() if (path / "complete").exists()]
    assert len(caches) == 3 == len(list(tmp_path.iterdir()))


def test_an_interrupted_cache_leaves_nothing(teacher_folder, versions, tmp_path, monkeypatch):
    monkeypatch.setattr(Teacher, "__call__", lambda self, x: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cached_by(teacher_folder, versions)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["logits.npy", "maps.npy"])
def test_damaged_answers_are_asked_for_again(teacher_folder, versions, tmp_path, capsys, name):
    rows = torch.arange(5)
    teacher, cached = cached_by(teacher_folder, versions)
    before = cached.answer(rows, teacher.layers)
    (path,) = tmp_path.rglob(name)
    np.load(path, mmap_mode="r+")[:5] = 0
    _, again = cached_by(teacher_folder, versions)
    after = again.answer(rows, teacher.layers)
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(after.maps, before.maps)
    assert f"'{path}' is missing or damaged" in capsys.readouterr().err
