from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import nn

import zoo.evaluation.evaluate
from zoo.datasets.base import to_float
from zoo.evaluation.evaluate import evaluate, evaluate_split, worst_case
from zoo.evaluation.look import wrong_gradient
from zoo.evaluation.protocols import CORRUPTED, PROTOCOLS, Protocol, protocol
from zoo.models import build
from zoo.specs import StagedSpec
from zoo.system.errors import UsageError
from zoo.train.run.loop import fit
from zoo.weights.load import load

N = 200


@pytest.fixture(scope="module")
def net(toy, tmp_path_factory):
    """A small net, trained for some seconds so that there is robustness to lose."""
    from test_training import recipe

    folder = tmp_path_factory.mktemp("net")
    return load(f"local-dir:{fit(recipe(train={'epochs': 8}, guard={'every': 8}), toy, folder / 'run')}")


@pytest.fixture
def pixels(toy):
    test = toy.split("test")
    return test.images[:N], test.labels[:N]


def small(name: str, **changes) -> Protocol:
    return protocol(name).model_copy(update={"n": N, **changes})


def test_clean_bits_are_the_models_own_predictions(net, pixels):
    images, labels = pixels
    x = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        expected = net(x).argmax(1).numpy() == labels
    assert np.array_equal(evaluate(net, images, labels, small("clean")), expected)


def test_only_images_that_are_still_right_are_attacked(net, pixels, monkeypatch):
    seen = []
    true = zoo.evaluation.evaluate.perturb

    def counting(protocol, model, x, y, **options):
        seen.append(len(x))
        return true(protocol, model, x, y, **options)

    monkeypatch.setattr(zoo.evaluation.evaluate, "perturb", counting)
    clean = evaluate(net, *pixels, small("clean"))
    evaluate(net, *pixels, small("fgsm"), batch_size=60)
    assert sum(seen) == clean.sum() < N
    assert max(seen) <= 60
    assert max(seen) - min(seen) <= 1
    assert len(seen) % 2 == 0


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_start(net, pixels):
    weak = small("pgd20", steps=1, eps=0.2, step=0.04)  # the start decides
    first, again = (evaluate(net, *pixels, weak) for _ in range(2))
    assert np.array_equal(first, again)
    others = [evaluate(net, *pixels, weak.model_copy(update={"seed": seed})) for seed in range(1, 6)]
    assert any(not np.array_equal(first, other) for other in others)


def test_accuracy_falls_with_eps_and_with_steps_down_to_nothing(net, pixels):
    by_eps = [
        evaluate(net, *pixels, small("pgd20", eps=eps, step=eps / 4)).mean() for eps in (1e-9, 4 / 255, 0.06, 0.5)
    ]
    assert by_eps == sorted(by_eps, reverse=True)
    assert by_eps[0] == evaluate(net, *pixels, small("clean")).mean()
    assert by_eps[-1] < 0.05
    one, many = (evaluate(net, *pixels, small("pgd20", steps=steps)).mean() for steps in (1, 20))
    assert many <= one


def test_noise_of_size_eps_hurts_almost_nothing_and_less_than_an_attack(net, pixels):
    clean, noise, attacked = (evaluate(net, *pixels, small(name)).mean() for name in ("clean", "noise", "pgd20"))
    assert clean - noise <= 0.05
    assert attacked < noise


def test_the_worst_case_is_per_image_and_over_the_images_all_attacks_saw():
    bits = {"a": np.array([True, True, False, True]), "b": np.array([False, True, True])}
    assert worst_case(bits).tolist() == [False, True, False]


def test_the_model_is_left_as_it_was(net, pixels):
    before = {key: value.clone() for key, value in net.state_dict().items()}
    evaluate(net, *pixels, small("fgsm"))
    assert not net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_autoattack_reports_what_each_part_broke(net, pixels):
    images, labels = (array[:20] for array in pixels)
    counts: dict[str, float] = {}
    tiny = small("autoattack", n=20, steps=5, queries=20)
    robust = evaluate(net, images, labels, tiny, counts=counts)
    clean = evaluate(net, images, labels, small("clean", n=20))
    assert sum(counts.values()) == clean.sum() - robust.sum()


def test_every_named_protocol_runs(pixels):
    net = build(StagedSpec(stem=4, widths=((4,),), resolutions=(16,)))
    images, labels = (array[:8] for array in pixels)
    for name in (name for name, one in PROTOCOLS.items() if one.attack not in CORRUPTED):  # see test_corruptions.py
        bits = evaluate(net, images, labels, small(name, n=8))
        assert bits.shape == (8,)


class Viewed(nn.Module):
    """A net as many are written: ``view`` is for contiguous feature maps."""

    def __init__(self):
        super().__init__()
        self.features, self.head = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4)), nn.Linear(4 * 15 * 15, 10)

    def forward(self, x):
        return self.head(self.features(x).relu().view(-1, 4 * 15 * 15))


class Five(Viewed):
    """One with weights that have no channels_last order."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(1, 1, 1, 1, 1))

    def forward(self, x):
        return self.head((self.features(x) * self.scale[0]).relu().flatten(1))


class Backwards(torch.autograd.Function):
    """The identity, whose gradient must be contiguous."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.view(len(gradient), -1).view_as(gradient)


class Straight(Viewed):
    """One that works in channels_last, but for its backward pass."""

    def forward(self, x):
        return self.head(Backwards.apply(self.features(x)).relu().flatten(1))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("make", [Viewed, Five, Straight, lambda: torch.jit.script(Viewed())])
def test_nets_that_cannot_work_in_channels_last_or_are_scripted_are_attacked_as_they_are(pixels, make):
    images = pixels[0][:40]
    torch.manual_seed(0)
    net = make().eval()
    with torch.no_grad():
        expected = net(to_float(images)).argmax(1).numpy()
    right = evaluate(net, images, expected, small("clean", n=40))
    assert right.all()
    assert evaluate(net, images, expected, small("pgd20", n=40)).mean() < 1


@pytest.mark.parametrize("kept", [threading.Lock, lambda: [torch.ones(1, requires_grad=True) * 2]])
def test_a_model_that_cannot_be_copied_is_refused(pixels, kept):
    net = Viewed()
    net.kept = kept()
    with pytest.raises(UsageError, match=r"cannot be copied, as an attack needs it: "):
        evaluate(net, *pixels, small("clean"))


def test_released_nets_are_attacked_in_channels_last(pixels):
    for name in ("ard-w4", "trades-s3"):
        prepared = zoo.evaluation.evaluate.prepare(load(name), to_float(pixels[0][:2]))
        weights = [one.weight for one in prepared.modules() if isinstance(one, nn.Conv2d) and one.in_channels > 3]
        assert all(one.is_contiguous(memory_format=torch.channels_last) for one in weights)


def test_a_model_without_gradients_is_left_to_square(pixels):
    class Blind(Viewed):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    images, labels = (array[:20] for array in pixels)
    torch.manual_seed(0)
    net = Blind().eval()
    labels = net(to_float(images)).argmax(1).numpy()
    with pytest.raises(UsageError, match=r"no gradient in its input: attack it with Square \(protocol 'square'\)"):
        evaluate(net, images, labels, small("pgd20", n=20))
    assert evaluate(net, images, labels, small("square", n=20)).mean() < 1


@pytest.mark.parametrize(
    ("images", "labels", "refused"),
    [
        (lambda a: a / np.float32(255), lambda y: y, "uint8 arrays of shape .N, H, W, 3., not float32"),
        (lambda a: a.transpose(0, 3, 1, 2), lambda y: y, "not uint8"),
        (lambda a: torch.from_numpy(a.copy()), lambda y: y, "not Tensor"),
        (lambda a: a, lambda y: y.astype(np.float32), "array of integers of shape .N., not float32"),
        (lambda a: a, lambda y: np.eye(10, dtype=np.int64)[y], "not int64"),
        (lambda a: a, list, "not list"),
        (lambda a: a, lambda y: y + 10, "labels from 0 to 9, but these go from 10 to 19"),
        (lambda a: a, lambda y: y - 10, "labels from 0 to 9, but these go from -10 to -1"),
    ],
)
def test_images_and_labels_of_another_kind_are_refused_in_one_sentence(net, pixels, images, labels, refused):
    with pytest.raises(UsageError, match=refused):
        evaluate(net, images(pixels[0]), labels(pixels[1]), small("pgd20"))


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64])
def test_labels_may_be_integers_of_any_size(net, pixels, kind):
    expected = evaluate(net, *pixels, small("fgsm"))
    assert (evaluate(net, pixels[0], pixels[1].astype(kind), small("fgsm")) == expected).all()


def test_a_caller_in_inference_mode_gets_the_same(net, pixels):
    expected = evaluate(net, *pixels, small("fgsm"))
    with torch.inference_mode():
        assert (evaluate(net, *pixels, small("fgsm")) == expected).all()
        assert all(not one.is_inference() for one in load("nfgsm-w4").parameters())


def test_invalid_requests_are_refused(net, pixels, toy):
    images, labels = pixels
    with pytest.raises(UsageError, match="as many labels"):
        evaluate(net, images, labels[:-1], small("clean"))
    with pytest.raises(UsageError, match="got 0 images"):
        evaluate(net, images[:0], labels[:0], small("clean"))
    with pytest.raises(UsageError, match="protocol must be a value of type Protocol, not a value of type str"):
        evaluate(net, images, labels, "pgd20")
    with pytest.raises(UsageError, match="batch_size must be at least 1, not 0"):
        evaluate(net, images, labels, small("clean"), batch_size=0)
    with pytest.raises(UsageError, match="corrupts images and attacks none: use zoo"):
        evaluate(net, images, labels, PROTOCOLS["corruptions"])
    with pytest.raises(UsageError, match="'nope' is not a device"):
        evaluate(net, images, labels, small("clean"), device="nope")
    with pytest.raises(UsageError, match="the test split"):
        evaluate_split(net, toy.split("validation"), small("clean"))
    with pytest.raises(UsageError, match="did you mean 'pgd20'"):
        protocol("pgd-20")


def test_a_gradient_that_only_a_larger_step_shows_to_be_right_is_right():
    """Half of the images have logits that are rounded: there, differences over a small step vanish."""

    class Rounded(nn.Module):
        def forward(self, x):
            z = torch.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], 1) * 40
            steps = z + ((z / 0.05).round() * 0.05 - z).detach()
            return torch.where((x[:, :1, :1, 0] > 0.5)[..., 0], steps, z)

    x = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x[::2, 0, 0, 0], x[1::2, 0, 0, 0] = 1, 0
    y = torch.zeros(32, dtype=torch.long)
    model = Rounded().eval()
    wrong = wrong_gradient(model, x, y)
    one_by_one = torch.cat([wrong_gradient(model, a, b) for a, b in zip(x.split(1), y.split(1), strict=True)])
    assert wrong.float().mean() < 0.2
    assert not wrong[1::2].any()
    assert one_by_one[1::2].equal(wrong[1::2])
