"""Unfinished evaluations go on where they stopped, and only there: the key, the file, and what can happen to it."""

from __future__ import annotations

import errno
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from sturdy import SPEC
from torch import nn

import zoo.evaluation.evaluate
import zoo.evaluation.ledger
from zoo.evaluation.evaluate import evaluate
from zoo.evaluation.ledger import run_key
from zoo.evaluation.protocols import Protocol, protocol
from zoo.evaluation.together import alone
from zoo.evaluation.workers import equal_parts
from zoo.system.errors import UsageError
from zoo.weights.folder import ModelConfig, ModelFolder
from zoo.weights.load import load
from zoo.weights.tensors import save_weights

N = 120


@pytest.fixture
def net(fragile) -> nn.Module:
    return fragile


@pytest.fixture
def pixels(split):
    return split.images[:N], split.labels[:N]


@pytest.fixture
def stopping(monkeypatch):
    """A function that lets the attack run on a number of batches, and then interrupts it; it returns what is attacked.
    With None it is never interrupted."""
    true = zoo.evaluation.evaluate.perturb

    def after(batches: int | None) -> list[int]:
        attacked: list[int] = []

        def perturb(protocol, model, x, y, **options):
            if len(attacked) == batches:
                raise KeyboardInterrupt
            attacked.append(len(x))
            return true(protocol, model, x, y, **options)

        monkeypatch.setattr(zoo.evaluation.evaluate, "perturb", perturb)
        return attacked

    return after


def weak(n: int = N, **changes) -> Protocol:
    return protocol("pgd20").model_copy(update={"n": n, "steps": 2, "eps": 3 / 255, "step": 1.5 / 255, **changes})


AUTO = protocol("autoattack").model_copy(update={"n": 60, "steps": 2, "queries": 5, "eps": 3 / 255})


def interrupted(stopping, batches, model, pixels, folder, n: int = N, **changes) -> None:
    stopping(batches)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, *pixels, weak(n, **changes), batch_size=20, resume=folder)


def test_an_interrupted_run_resumes_to_the_same_bits_and_counts(net, pixels, tmp_path, stopping):
    counts: list[dict[str, float]] = [{}, {}]
    whole = evaluate(net, *pixels, AUTO, batch_size=20, counts=counts[0])
    stopping(2)
    with pytest.raises(KeyboardInterrupt):
        evaluate(net, *pixels, AUTO, batch_size=20, resume=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    attacked = stopping(None)
    resumed = evaluate(net, *pixels, AUTO, batch_size=20, resume=tmp_path, counts=counts[1])
    assert len(attacked) == 1
    assert np.array_equal(resumed, whole)
    assert counts[0] == counts[1] != {}
    assert not list(tmp_path.iterdir())


TOGETHER = """
import contextlib, io
from types import SimpleNamespace
import zoo.evaluation.evaluate as evaluation
from test_ledger import AUTO, weak
from zoo.cli.app import run
from zoo.evaluation.together import gathered, joined, place
from zoo.weights.load import load

type(CIFAR10).load = lambda self, *_, **__: dataset
model, test = load("local-dir:{model}"), dataset.split("test")
images, found, attacked, true = (test.images, test.labels), [], [], evaluation.perturb


def perturb(*given, **options):
    attacked.append(1)
    return true(*given, **options)


with joined():
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert run(["eval", "local-dir:{model}", "-p", "clean", "-p", "fgsm", "-n", "60", "--json"]) == 0
    evaluation.perturb = perturb
    for protocol in (weak(), AUTO):
        options = dict(batch_size=20, resume=Path({ledgers!r}), counts=dict(), together=True)
        bits = evaluation.evaluate(model, *images, protocol, **options)
        found.append([bits.tolist(), options["counts"]])
    everyone = [gathered(one) for one in (printed.getvalue(), len(attacked), found)]
    rank, processes = place()
report(SimpleNamespace(is_main_process=rank == 0, num_processes=processes, end_training=lambda: None), everyone)
"""


def test_two_processes_share_an_evaluation_and_find_the_bits_of_one(
    net, world, tmp_path, stopping, on_processes, monkeypatch
):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    model, ledgers = ModelFolder(tmp_path / "model"), tmp_path / "ledgers"
    model.write(ModelConfig(name="mine", spec=net.spec.to_dict(), dataset="cifar10"))
    save_weights(net.state_dict(), model.weights)
    net, test = load(f"local-dir:{model.path}"), world.split("test")
    pixels = test.images, test.labels
    expected, batches = [], stopping(None)
    for one in (weak(), AUTO):
        counts: dict[str, float] = {}
        expected.append([evaluate(net, *pixels, one, batch_size=20, counts=counts).tolist(), counts])
    assert 0 < sum(expected[0][0]) < N
    interrupted(stopping, 2, net, pixels, ledgers)  # two processes go on with what one has left

    printed, attacked, found = on_processes(TOGETHER, 2, world.root, model=str(model.path), ledgers=str(ledgers))
    assert found == [expected, expected]
    assert sum(attacked) == len(batches) - 2
    assert min(attacked) > 0
    assert not list(ledgers.iterdir())
    assert printed[1] == ""
    stopping(None)
    told = json.loads(printed[0])["results"]
    for name in ("clean", "fgsm"):
        one = protocol(name).model_copy(update={"n": 60})
        assert told[name]["accuracy"]["value"] == evaluate(net, *pixels, one).mean()


def test_a_shorter_run_leaves_the_progress_of_a_longer_one(net, pixels, tmp_path, stopping):
    interrupted(stopping, 2, net, pixels, tmp_path)
    (longer,) = tmp_path.iterdir()
    before = longer.read_bytes()
    stopping(None)
    evaluate(net, *pixels, weak(40), batch_size=20, resume=tmp_path)
    assert longer.read_bytes() == before
    interrupted(stopping, 1, net, pixels, tmp_path, n=50)
    assert longer.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


class Masked(nn.Module):
    """The net in it with logits of sixteen levels: the same weights, decisions that hardly differ, no gradients."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x):
        return (self.net(x) * 4).round() / 4


class Plain(Masked):
    def forward(self, x):
        return self.net(x)


class Cut(Masked):
    """The same answers too, with other gradients."""

    def forward(self, x):
        return self.net(x.detach()) + 0 * x.sum()


Cut.__name__ = Masked.__name__ = Plain.__name__  # as it is when a user edits a class


def test_nets_with_the_same_weights_and_names_of_modules_have_keys_of_their_own(net, pixels):
    nets = [kind(net).eval() for kind in (Plain, Masked, Cut)]
    assert len({repr(one) for one in nets}) == 1
    assert len({run_key(one, *pixels, weak(), 20, "cpu") for one in nets}) == 3


def test_where_a_net_keeps_an_object_in_memory_is_not_in_its_key(net, pixels):
    class Shown(nn.Sequential):
        def extra_repr(self) -> str:
            return repr(self.thing)

    shown = [Shown(net).eval() for _ in range(2)]
    for one in shown:
        one.thing = object()
    assert repr(shown[0]) != repr(shown[1])
    assert run_key(shown[0], *pixels, weak(), 20, "cpu") == run_key(shown[1], *pixels, weak(), 20, "cpu")


def test_a_net_is_not_resumed_as_another_with_the_same_weights(net, pixels, tmp_path, stopping):
    interrupted(stopping, 4, Cut(net), pixels, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(
        json.dumps({first: ([1] * len(bits), {}) for first, (bits, _) in json.loads(file.read_bytes()).items()})
    )
    stopping(None)
    resumed = evaluate(Plain(net), *pixels, weak(), batch_size=20, resume=tmp_path)
    assert np.array_equal(resumed, evaluate(Plain(net), *pixels, weak(), batch_size=20))
    assert file.exists()  # it still waits for its own net


def test_the_key_has_everything_that_decides_the_bits(net, pixels, monkeypatch):
    from zoo.models import build

    images, labels = pixels

    def key(model=net, images=images, labels=labels, protocol=None, batch=20, device="cpu") -> str:
        return run_key(model, images, labels, protocol or weak(), batch, device)

    def shifted() -> nn.Module:
        other = build(SPEC.model_copy(update={"mean": (0.4, 0.5, 0.5)})).eval()
        other.load_state_dict(net.state_dict())
        return other

    def unsaved() -> nn.Module:
        other = nn.Sequential(net)
        other.register_buffer("unsaved", torch.ones(1), persistent=False)
        return other

    assert key() == key()
    altered = images.copy()
    altered[-1, 0, 0, 0] ^= 1
    keys = [
        key(),
        key(shifted()),
        key(nn.Sequential(net)),
        key(unsaved()),
        key(images=altered),
        key(labels=(labels + 1) % 10),
        key(protocol=weak(seed=1)),
        key(protocol=weak(n=N - 1)),
        key(batch=21),
    ]
    monkeypatch.setattr(zoo.evaluation.ledger, "_sources", lambda: "other code")
    keys.append(key())
    assert len(set(keys)) == len(keys)


def test_processes_that_cannot_meet_are_refused(monkeypatch):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="WORLD_SIZE is '2' and RANK is not set: start the processes with torchrun"):
        alone()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert alone()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"0": 1}', b'{"0": [[1, 1', b"\xff\xfe"])
def test_a_damaged_ledger_is_dropped_with_one_sentence(net, pixels, tmp_path, stopping, capsys, content):
    whole = evaluate(net, *pixels, weak(), batch_size=20)
    interrupted(stopping, 2, net, pixels, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    stopping(None)
    assert np.array_equal(evaluate(net, *pixels, weak(), batch_size=20, resume=tmp_path), whole)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"zoo: the progress in '{file}' cannot be read")
    assert said.endswith("the evaluation begins again")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_cache_that_cannot_be_written_costs_the_resumption_only(net, pixels, tmp_path, monkeypatch, capsys, code):
    def refused(path, content) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(zoo.evaluation.ledger, "write_atomic", refused)
    whole = evaluate(net, *pixels, weak(), batch_size=20)
    folder = tmp_path / "evaluations"
    assert np.array_equal(evaluate(net, *pixels, weak(), batch_size=20, resume=folder), whole)
    (said,) = capsys.readouterr().err.splitlines()
    assert f"cannot be stored in '{folder}' ({os.strerror(code)})" in said


def test_a_cache_that_cannot_be_made_costs_the_resumption_only(net, pixels, tmp_path, capsys):
    (tmp_path / "file").touch()
    evaluate(net, *pixels, weak(), batch_size=20, resume=tmp_path / "file" / "evaluations")
    assert "cannot be stored" in capsys.readouterr().err


def test_four_at_once_share_the_ledger_and_all_end(net, pixels, tmp_path):
    whole, folder = evaluate(net, *pixels, weak(), batch_size=4), tmp_path / "evaluations"
    with ThreadPoolExecutor(4) as pool:
        at_once = [pool.submit(evaluate, net, *pixels, weak(), batch_size=4, resume=folder) for _ in range(4)]
    assert all(np.array_equal(one.result(), whole) for one in at_once)
    assert not list(folder.iterdir())


def test_batches_of_another_process_are_taken_over(net, pixels, tmp_path, stopping):
    """A batch that another process adds meanwhile is not attacked again."""
    interrupted(stopping, 3, net, pixels, tmp_path)
    (file,) = tmp_path.iterdir()
    three = json.loads(file.read_bytes())
    file.unlink()
    attacked = stopping(None)

    def progress(done: int, total: int) -> None:
        if len(attacked) == 1 and file.exists() and len(json.loads(file.read_bytes())) == 1:
            file.write_text(json.dumps(three))

    evaluate(net, *pixels, weak(), batch_size=20, resume=tmp_path, progress=progress)
    right = evaluate(net, *pixels, protocol("clean").model_copy(update={"n": N})).sum()
    batches = len(equal_parts(right, 20))
    assert len(attacked) == batches - 1  # the first; the second, with which the others are read; not the third


def test_square_after_misleading_gradients_is_resumed_too(net, pixels, tmp_path, stopping, monkeypatch):
    monkeypatch.setitem(sys.modules["zoo.evaluation.evaluate"].SQUARE, "queries", 5)

    def verdict(**options) -> tuple[list[bool], dict[str, float], set[str]]:
        counts: dict[str, float] = {}
        flags: set[str] = set()
        bits = evaluate(Masked(net), *pixels, weak(), batch_size=4, counts=counts, flags=flags, **options)
        return bits.tolist(), counts, flags

    attacked = stopping(None)
    whole = verdict()
    assert "square" in whole[1]
    stopping(len(attacked) - 1)
    with pytest.raises(KeyboardInterrupt):
        verdict(resume=tmp_path)
    attacked = stopping(None)
    assert verdict(resume=tmp_path) == whole
    assert len(attacked) == 1
