"""Releases: processes that write to one entry at once, and damaged per-image bits."""

from __future__ import annotations

import json
import multiprocessing
import sys
from dataclasses import replace
from unittest.mock import MagicMock as Mock

import numpy as np
import pytest
from test_registry import config_of, result

from zoo.evaluation.measure import Measurement
from zoo.evaluation.protocols import PROTOCOLS
from zoo.registry.file import info, load_registry
from zoo.registry.write import check_splits
from zoo.system.errors import IntegrityError, UsageError
from zoo.weights.load import find
from zoo.weights.release import Candidate, candidate, on_images, release, stored_bits

MEASURED = ("clean", "noise", "fgsm", "pgd20")


def measured(name: str, sha256: str) -> Measurement:
    """A result of 3 in 10 images."""
    bits = np.arange(10_000) % 10 < 3
    return Measurement(PROTOCOLS[name], result(int(bits.sum()), sha256=sha256), bits, 10_000)


@pytest.fixture
def taken(bundled) -> list[Candidate]:
    """Candidates of the same model that were made before anything was released."""
    return [candidate(find("tiny")) for _ in MEASURED]


def test_results_that_another_process_adds_meanwhile_are_kept(taken):
    for one, name in zip(taken, MEASURED, strict=True):
        release(one, [measured(name, one.sha256)])
    assert set(info("tiny").results) == set(stored_bits("tiny")) == set(MEASURED)


def test_results_on_two_splits_are_released_at_once(taken):
    held_out = PROTOCOLS["clean"].model_copy(update={"name": "held-out", "split": "validation", "n": 1000})
    told = result(300, n=1000, sha256=taken[0].sha256)
    both = [measured("clean", taken[0].sha256), Measurement(held_out, told, np.arange(1000) < 300, 1000)]
    release(taken[0], both)
    assert set(info("tiny").results) == set(stored_bits("tiny")) == {"clean", "held-out"}


def test_four_releases_at_once_lose_nothing(taken):
    def work(one: Candidate, name: str) -> None:
        release(one, [measured(name, one.sha256)])
        sys.exit(0)

    fork = multiprocessing.get_context("fork")
    works = [fork.Process(target=work, args=pair) for pair in zip(taken, MEASURED, strict=True)]
    for each in works:
        each.start()
    for each in works:
        each.join(60)
    assert [each.exitcode for each in works] == [0] * 4
    bits = stored_bits("tiny")
    assert set(info("tiny").results) == set(bits) == set(MEASURED)
    assert {bits[name].sum() for name in MEASURED} == {3000}


@pytest.mark.parametrize("damage", ["emptied", "truncated", "no archive", "a flipped byte"])
def test_damaged_bits_are_named_before_anything_is_measured(taken, bundled, damage):
    release(taken[0], [measured("clean", taken[0].sha256)])
    path = bundled.with_name("tiny.bits.npz")
    content = bytearray(path.read_bytes())
    content[content.index(b"clean.npy") + 40] ^= 255
    path.write_bytes({"emptied": b"", "truncated": bytes(content[:90]), "no archive": b"x" * 99}.get(damage, content))
    for read in (lambda: stored_bits("tiny"), lambda: candidate(find("tiny"))):
        with pytest.raises(IntegrityError, match=rf"the per-image bits in '{path}' are damaged"):
            read()


def folder_of(tmp_path, seed: int) -> str:
    """A trained model called "mine", whose weights differ with ``seed``; returns the name that opens it."""
    folder = tmp_path / f"trained-{seed}"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_of(name="mine")))
    (folder / "model.safetensors").write_bytes(b"weights %d" % seed)
    return f"local-dir:{folder}"


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_a_release_that_is_refused_changes_no_file(taken, bundled, tmp_path):
    first = candidate(find(folder_of(tmp_path, 1)))
    release(first, [measured("clean", first.sha256)])
    release(taken[0], [measured("clean", taken[0].sha256)])
    before = contents(bundled.parent)
    other = candidate(find(folder_of(tmp_path, 2)), replace=True)
    one = measured("clean", other.sha256)
    one.result["dataset_sha256"] = "e" * 64  # an image was added to the folder; another entry has results without it
    splits = {"cifar10": {"splits": {"test": {"n": 10_000, "sha256": "e" * 64}}}}
    for work in (lambda: check_splits("mine", other.entry, splits), lambda: release(other, [one])):
        with pytest.raises(IntegrityError, match="has results of 'tiny' on other images in the test split of cifar10"):
            work()
    assert contents(bundled.parent) == before


def test_replaced_weights_may_be_measured_on_other_images(bundled, tmp_path):
    first = candidate(find(folder_of(tmp_path, 1)))
    release(first, [measured("clean", first.sha256)])
    other = candidate(find(folder_of(tmp_path, 2)), replace=True)
    one = measured("clean", other.sha256)
    one.result["dataset_sha256"] = "e" * 64
    release(other, [one])
    assert info("mine").weights.sha256 == other.sha256
    assert load_registry().datasets["cifar10"]["splits"]["test"]["sha256"] == "e" * 64


def test_after_a_full_disk_any_weights_may_be_released(bundled, tmp_path, monkeypatch):
    first = candidate(find(folder_of(tmp_path, 1)))
    release(first, [measured("clean", first.sha256)])

    def full(source, target):
        target.write_bytes(b"half")  # and then the disk is full
        raise OSError(28, "No space left on device")

    other = candidate(find(folder_of(tmp_path, 2)), replace=True)
    with monkeypatch.context() as patched:
        patched.setattr("zoo.weights.release.copy_atomic", full)
        with pytest.raises(OSError, match="No space"):
            release(other, [measured("clean", other.sha256)])
    assert info("mine").weights.sha256 == first.sha256
    again = candidate(find(f"local-dir:{tmp_path}/trained-1"))
    release(again, [measured("fgsm", again.sha256)])
    assert bundled.with_name("mine.safetensors").read_bytes() == b"weights 1"
    assert set(info("mine").results) == {"clean", "fgsm"}


def test_bits_that_are_not_the_registrys_are_never_overwritten(bundled, tmp_path):
    own = bundled.with_name("mine.bits.npz")
    np.savez(own, weights_sha256=np.array("f" * 64))
    before = own.read_bytes()
    with pytest.raises(UsageError, match=r"mine\.bits\.npz' is no file of this registry"):
        candidate(find(folder_of(tmp_path, 1)))
    assert own.read_bytes() == before


def test_a_file_that_is_not_the_registrys_is_never_overwritten(bundled, tmp_path):
    own = bundled.with_name("mine.safetensors")
    own.write_bytes(b"work of days")
    with pytest.raises(UsageError, match=r"mine\.safetensors' is no file of this registry, and would be overwritten"):
        candidate(find(folder_of(tmp_path, 1)), replace=True)
    assert own.read_bytes() == b"work of days"


def on(one: Measurement, letter: str) -> Measurement:
    """The measurement as if the images had another hash."""
    return replace(one, result={**one.result, "dataset_sha256": letter * 64})


class Images:
    """A data set whose splits have these fingerprints."""

    name = "cifar10"

    def __init__(self, **letters: str) -> None:
        self.letters = letters

    def split(self, name: str) -> Mock:
        split = Mock(fingerprint=self.letters[name] * 64)
        split.__len__ = lambda self: {"test": 10_000, "validation": 1000}[name]
        return split


def test_two_splits_may_both_have_other_images(taken):
    held_out = PROTOCOLS["clean"].model_copy(update={"name": "held-out", "split": "validation", "n": 1000})
    told = result(300, n=1000, sha256=taken[0].sha256)
    one, other = measured("clean", taken[0].sha256), Measurement(held_out, told, np.arange(1000) < 300, 1000)
    release(taken[0], [on(one, "a"), on(other, "b")])
    again = on_images(candidate(find("tiny")), Images(test="c", validation="d"), [one.protocol, other.protocol])
    release(again, [on(one, "c"), on(other, "d")])
    images = {name: one.dataset_sha256[0] for name, one in info("tiny").results.items()}
    assert images == {"clean": "c", "held-out": "d"}


def test_a_result_that_is_added_meanwhile_on_the_old_images_is_not_lost(taken, bundled):
    clean, sha256 = measured("clean", taken[0].sha256), taken[0].sha256
    release(taken[0], [on(clean, "a")])
    moving = on_images(candidate(find("tiny")), Images(test="b"), [clean.protocol])
    release(taken[1], [on(measured("fgsm", sha256), "a")])
    before = contents(bundled.parent)
    with pytest.raises(IntegrityError, match="has results of 'tiny' on other images in the test split of cifar10"):
        release(moving, [on(clean, "b")])
    assert contents(bundled.parent) == before


def test_models_of_one_registry_cannot_move_to_other_images_one_by_one(taken, tmp_path):
    mine = candidate(find(folder_of(tmp_path, 1)))
    clean = measured("clean", taken[0].sha256)
    for one in (taken[0], mine):
        release(one, [measured("clean", one.sha256), measured("fgsm", one.sha256)])
    for given in (False, True):  # in either case this is what is wrong
        with pytest.raises(IntegrityError, match=r"results of 'mine' on other images .* set ZOO_REGISTRY"):
            on_images(candidate(find("tiny")), Images(test="b"), [clean.protocol], replace=given)
