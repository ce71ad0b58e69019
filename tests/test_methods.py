"""What every training method promises, over the whole table: a new one is covered once its equation is written here."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import torchrun
from test_training import recipe as old_recipe
from torch import nn

from zoo import attacks
from zoo.attacks.ball import Ball, norm_of, steepest
from zoo.attacks.pulse import listening
from zoo.system.errors import UsageError
from zoo.train.methods import METHODS, adversary, by_name
from zoo.train.methods.mart import mart
from zoo.train.methods.method import Attack, Method
from zoo.train.methods.rdt import Rdt
from zoo.train.methods.trades import Trades
from zoo.train.recipes.differences import UNATTACKED
from zoo.train.recipes.schema import Recipe, parse_recipe
from zoo.train.run.trainer import Trainer

SETTINGS = {  # other than the defaults, so that each setting has a part in the numbers
    "natural": {"label_smoothing": 0.1},
    "pgd-at": {"label_smoothing": 0.1},
    "n-fgsm": {"label_smoothing": 0.1},
    "trades": {"label_smoothing": 0.1, "beta": 3.0},
    "mart": {"beta": 4.0},
    "fast-at": {"label_smoothing": 0.1},
    "free-at": {"label_smoothing": 0.1, "m": 3},
    "kd": {"alpha": 0.7, "temperature": 3.0},
    "ard": {"label_smoothing": 0.1, "ce": 0.6, "kl": 0.7, "temperature": 3.0},
    "fast-ard": {"alpha": 0.7, "temperature": 3.0, "m": 3},
    "rslad": {"alpha": 0.7, "temperature": 3.0},
    "adaad": {"alpha": 0.7, "temperature": 3.0},
    "rrm": {"lam": 0.3, "distance": "l2"},
    "rdt": {"label_smoothing": 0.1, "steps": 3},
    "rnascl": {"label_smoothing": 0.1, "kl": 0.7, "gamma": 30.0, "map_size": 4},
}
VARIANTS = [
    ("ard", {"inner": "n-fgsm"}),
    ("ard", {"alpha": 0.7}),
    ("ard", {"alpha": 1.0, "inner": "n-fgsm"}),
    ("fast-ard", {"alpha": 1.0}),
    ("adaad", {"alpha": 1.0}),
    ("rrm", {"side": "teacher"}),
    ("rrm", {"distance": "cosine", "student_layer": "features.1", "teacher_layer": "features.2"}),
    ("rnascl", {"hard": "trades", "beta": 3.0}),
]
CASES = [(name, {}) for name in METHODS] + VARIANTS
L2 = {"norm": "l2", "eps": 0.5, "step": 0.3}
IN_L2 = [(*case, L2) for case in (*((name, {}) for name in ("pgd-at", "trades", "mart", "fast-at")), VARIANTS[1])]
IN_L2 += [(name, {}, L2) for name in ("ard", "rslad", "adaad")] + [("rnascl", VARIANTS[-1][1], L2)]
TEACHER_FREE = [name for name, one in METHODS.items() if not one.takes_teacher]


def recipe(name: str, teacher, changes: dict | None = None, **sections) -> Recipe:
    data = old_recipe().model_dump(exclude_unset=True, mode="json")
    data["method"] = {"name": name, **SETTINGS.get(name, {}), **(changes or {})}
    if name == "ard" and "alpha" in data["method"]:  # it takes the place of these
        data["method"] = {key: one for key, one in data["method"].items() if key not in ("ce", "kl", "label_smoothing")}
    data["attack"] = {"step": 0.02} if one_step(data["method"]) else {"step": 0.02, "steps": 2}
    if not METHODS[name].model_construct(**data["method"]).attacks:
        data["attack"] = {}
    if teacher is not None and METHODS[name].takes_teacher:
        data["teacher"] = {"name": str(teacher)}
    for section, values in sections.items():
        data[section] = {**data[section], **values}
    return parse_recipe(data, "test")


def test_the_record_of_a_training_knows_which_methods_do_not_attack():
    clean = {name for name, method in METHODS.items() if not method().attacks}
    assert clean - {"rnascl"} == {*UNATTACKED}, "name them in train/recipes/differences.py"  # rnascl: hard = "trades"


def one_step(settings: dict) -> bool:
    return not {"n-fgsm", "fast-at", "free-at", "fast-ard"}.isdisjoint(settings.values())


# -- each equation, as slowly and as plainly as the paper writes it ------------------------------------------------


def divergence(p, q):
    """KL(P || Q), image by image and class by class."""
    return sum(p[i, k] * (p[i, k] / q[i, k]).log() for i in range(len(p)) for k in range(p.shape[1])) / len(p)


def cross_entropy(p, y, smoothing=0.0):
    k = p.shape[1]
    target = F.one_hot(y, k) * (1 - smoothing) + smoothing / k
    return -(target * p.log()).sum() / len(p)


def misclassified(p, q, y, beta):
    total = 0.0
    for i, label in enumerate(y):
        others = torch.cat([q[i, :label], q[i, label + 1 :]])
        boosted = -q[i, label].log() - (1 - others.max()).log()
        total = total + boosted + beta * (p[i] * (p[i] / q[i]).log()).sum() * (1 - p[i, label])
    return total / len(y)


def recorded(net: nn.Module, x):
    """Logits, and the unit attention map of every convolution, 4 x 4."""
    maps, convolutions = [], [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    hooks = [conv.register_forward_hook(lambda m, i, z: maps.append(z.square().sum(1))) for conv in convolutions]
    logits = net(x)
    [hook.remove() for hook in hooks]
    resized = [F.interpolate(attention[:, None], (4, 4), mode="bilinear").flatten(1) for attention in maps]
    return logits, [attention / attention.norm(dim=1, keepdim=True) for attention in resized]


def distilled(net, teacher, x, y, x_adv, trainer):
    """ARD, Algorithm 1 where alpha is set."""
    settings, t = trainer.recipe.method, trainer.recipe.method.temperature
    soft = t**2 * divergence((teacher(x) / t).softmax(1), (net(x_adv) / t).softmax(1))
    if getattr(settings, "alpha", None) is None:
        return 0.6 * cross_entropy(net(x_adv).softmax(1), y, 0.1) + 0.7 * soft
    hard = cross_entropy(net(x).softmax(1), y) if settings.alpha < 1 else 0.0
    return settings.alpha * soft + (1 - settings.alpha) * hard


def twice_softened(net, teacher, x, x_adv, alpha, teacher_on):
    adversarial = divergence((teacher(teacher_on) / 3).softmax(1), (net(x_adv) / 3).softmax(1))
    clean = divergence((teacher(x) / 3).softmax(1), (net(x) / 3).softmax(1)) if alpha < 1 else 0.0
    return 9 * (alpha * adversarial + (1 - alpha) * clean)


def represented(net, layer, x):
    """Logits, and the features of a layer [N, C]; by default those that the head classifies."""
    kept = []
    hook = net.get_submodule(layer or "features").register_forward_hook(lambda m, i, z: kept.append(z))
    logits = net(x)
    hook.remove()
    return logits, kept[0].mean((2, 3)) if kept[0].dim() == 4 else kept[0]


def matched(net, teacher, x, y, x_adv, trainer):
    settings, parts = trainer.recipe.method, trainer.parts
    logits, g_s = represented(net, settings.student_layer, x)
    _, g_t = represented(teacher, settings.teacher_layer, x)
    if settings.side == "teacher":
        g_t = g_t @ parts.teacher.weight.T
        assert torch.allclose(parts.teacher.weight.T @ parts.teacher.weight, torch.eye(8), atol=1e-5)
    elif settings.student_layer is None:  # 16 features, the teacher has 8
        g_s = g_s @ parts.student.weight.T + parts.student.bias
    if settings.distance == "l2":
        apart = sum((a - b).square().sum().sqrt() for a, b in zip(g_s, g_t, strict=True))
    else:
        apart = sum(1 - (a @ b) / (a.norm() * b.norm()) for a, b in zip(g_s, g_t, strict=True))
    return settings.lam * cross_entropy(logits.softmax(1), y) + apart / len(y)


def cross_layer(net, teacher, x, y, x_adv, trainer):
    settings = trainer.recipe.method
    logits, student = recorded(net, x)
    soft, maps = recorded(teacher, x)
    p, t = logits.softmax(1), soft.softmax(1)
    hard = cross_entropy(p, y, 0.1)
    if settings.hard == "trades":
        hard = hard + settings.beta * divergence(p, net(x_adv).softmax(1))
    places = [round(i * (len(maps) - 1) / (len(student) - 1)) for i in range(len(student))]  # of the same depth
    attended = sum((student[i] - maps[j]).norm(dim=1).mean() for i, j in enumerate(places))
    return hard + 0.7 * divergence(p, t) + 30.0 * attended / (len(student) * len(maps))


EQUATIONS = {  # net, teacher, x, y, x', trainer to the loss
    "natural": lambda s, t, x, y, x_adv, _: cross_entropy(s(x).softmax(1), y, 0.1),
    "pgd-at": lambda s, t, x, y, x_adv, _: cross_entropy(s(x_adv).softmax(1), y, 0.1),
    "n-fgsm": lambda s, t, x, y, x_adv, _: cross_entropy(s(x_adv).softmax(1), y, 0.1),
    "trades": lambda s, t, x, y, x_adv, _: (
        cross_entropy(s(x).softmax(1), y, 0.1) + 3.0 * divergence(s(x).softmax(1), s(x_adv).softmax(1))
    ),
    "mart": lambda s, t, x, y, x_adv, _: misclassified(s(x).softmax(1), s(x_adv).softmax(1), y, 4.0),
    "fast-at": lambda s, t, x, y, x_adv, _: cross_entropy(s(x_adv).softmax(1), y, 0.1),
    "free-at": lambda s, t, x, y, x_adv, _: cross_entropy(s(x_adv).softmax(1), y, 0.1),
    "kd": lambda s, t, x, y, x_adv, _: (
        0.7 * 9 * divergence((t(x) / 3).softmax(1), (s(x) / 3).softmax(1)) + 0.3 * cross_entropy(s(x).softmax(1), y)
    ),
    "ard": distilled,
    "fast-ard": distilled,
    "rslad": lambda s, t, x, y, x_adv, _: twice_softened(s, t, x, x_adv, 0.7, x),
    "adaad": lambda s, t, x, y, x_adv, how: twice_softened(s, t, x, x_adv, how.recipe.method.alpha, x_adv),
    "rrm": matched,
    "rdt": lambda s, t, x, y, x_adv, _: cross_entropy(s(x).softmax(1), y, 0.1),
    "rnascl": cross_layer,
}


def ascended(net: nn.Module, teacher, batch, settings: Recipe):
    """The inner maximisation, written out: PGD on the cross-entropy, or on the divergence from the teacher on clean
    images (RSLAD) or on the same images (AdaAD)."""
    x, y, noise, _ = batch
    eps, name = settings.attack.eps, settings.method.name
    single = "n-fgsm" in settings.method.model_dump().values()
    if settings.attack.norm == "l2":
        x_adv = (x + eps * unit(torch.distributions.Normal(0, 1).icdf((noise + 1) / 2))).clamp(0, 1)
    else:
        x_adv = x + 2 * eps * noise if single else (x + eps * noise).clamp(0, 1)
    net.eval()
    for _ in range(settings.attack.steps):
        x_adv = x_adv.detach().requires_grad_()
        p = net(x_adv).softmax(1)
        if name in ("rslad", "adaad"):
            soft = teacher(x if name == "rslad" else x_adv)
            loss = divergence((soft / 3).softmax(1), (net(x_adv) / 3).softmax(1))
        else:
            loss = cross_entropy(p, y)
        x_adv = climbed(x_adv, torch.autograd.grad(loss, x_adv)[0], x, settings, within=not single)
    net.train()
    return x_adv


def unit(v):
    """Each image of v [N, C, H, W] divided by its length."""
    return torch.stack([one / one.square().sum().sqrt() for one in v])


def climbed(x_adv, gradient, x, settings: Recipe, *, within: bool = True):
    """A step up the gradient, then to the nearest point of the ball around x if ``within``, then to the box."""
    eps, step = settings.attack.eps, settings.attack.step
    if settings.attack.norm == "l2":
        delta = x_adv.detach() + step * unit(gradient) - x
        nearest = torch.stack([one * min(1.0, eps / float(one.square().sum().sqrt())) for one in delta])
        return (x + nearest).clamp(0, 1)
    x_adv = x_adv.detach() + step * gradient.sign()
    return (torch.min(torch.max(x_adv, x - eps), x + eps) if within else x_adv).clamp(0, 1)


@pytest.mark.parametrize(("name", "changes", "attack"), [*((*case, {}) for case in CASES), *IN_L2])
def test_the_loss_and_its_gradients_are_the_papers_equation(name, changes, attack, toy, teacher_folder):
    settings = recipe(name, teacher_folder, changes, train={"batch_size": 20}, attack=attack)
    trainer = Trainer(settings, toy)
    trainer.net.train()
    nn.init.normal_(trainer.net.head.weight)  # answers that differ from image to image
    batch, plain = trainer.batch(0), copy.deepcopy(trainer.net)
    for module in plain.modules():
        module._forward_hooks.clear()  # the taps
    step = trainer.step(batch)
    x_adv, soft = settings.method.attacked(step), trainer.teacher.model if trainer.teacher else None
    if settings.method.replays > 1:
        x_adv = (batch.x + 0.03 * batch.noise).clamp(0, 1)
    elif settings.method.attacks:
        near = (x_adv - ascended(plain, soft, batch, settings)).abs() < 1e-5
        assert near.float().mean() > 0.999  # a gradient of zero, but for rounding, has any sign
    loss = settings.method.loss(step, x_adv)
    expected = EQUATIONS[name](plain, soft, batch.x, batch.y, x_adv, trainer)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    own = [p for p in trainer.parts.parameters() if p.requires_grad] if trainer.parts else []
    gradients = torch.autograd.grad(loss, [*trainer.net.parameters(), *own])
    wanted = torch.autograd.grad(expected, [*plain.parameters(), *own])
    torch.testing.assert_close(gradients, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_a_step_takes_the_passes_that_the_method_says_and_moves_the_weights(name, changes, toy, teacher_folder):
    settings = recipe(name, teacher_folder, changes, train={"batch_size": 20})
    trainer, passes = Trainer(settings, toy), Counter()
    trainer.net.train()

    def counting(net, inputs, output):
        passes[net] += 1
        if output.requires_grad:
            backward = 2 if any(p.requires_grad for p in net.parameters()) else 1  # weights and image, or image only
            output.register_hook(lambda gradient: passes.update({net: backward}))

    teacher = trainer.teacher.model if trainer.teacher else None
    hooks = [net.register_forward_hook(counting) for net in (trainer.net, teacher) if net is not None]
    before = [p.detach().clone() for p in trainer.net.parameters()]
    loss = trainer.train_step()
    for hook in hooks:
        hook.remove()
    assert passes[trainer.net] == settings.method.passes(settings.attack) * settings.method.replays
    assert passes[teacher] == settings.method.teacher_passes(settings.attack) * settings.method.replays
    assert torch.isfinite(loss)
    assert all(not torch.equal(a, b) for a, b in zip(before, trainer.net.parameters(), strict=True))


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_a_section_round_trips(name, changes, teacher_folder):
    settings = recipe(name, teacher_folder, changes)
    assert parse_recipe(settings.model_dump(mode="json", exclude_unset=True), "again") == settings
    assert settings.model_dump(mode="json")["method"].items() >= {"name": name, **changes}.items()


@pytest.mark.parametrize("name", METHODS)
def test_a_setting_that_the_method_does_not_use_is_refused_in_one_sentence(name, teacher_folder):
    others = {key for one in METHODS.values() for key in one.model_fields} - METHODS[name].model_fields.keys()
    for key in [*others, "lamda"]:
        with pytest.raises(UsageError, match=f"method '{name}' does not use 'method.{key}'") as caught:
            recipe(name, teacher_folder, {key: 0.5})
        assert "\n" not in str(caught.value)
    if not METHODS[name](**SETTINGS.get(name, {})).attacks:
        with pytest.raises(UsageError, match=r"trains on clean images: remove attack\.steps"):
            recipe(name, teacher_folder, attack={"steps": 2})
    if name == "rnascl":
        with pytest.raises(UsageError, match=r"set method.hard = 'trades', or remove it"):
            recipe(name, teacher_folder, {"beta": 3.0})


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_whether_it_needs_a_teacher(name, teacher_folder):
    if METHODS[name](**SETTINGS.get(name, {})).needs:
        with pytest.raises(UsageError, match=f"method '{name}' needs a teacher"):
            recipe(name, None)
        assert recipe(name, teacher_folder).teacher.name == str(teacher_folder)
    elif name in TEACHER_FREE:
        data = recipe(name, None).model_dump(exclude_unset=True) | {"teacher": {"name": "nfgsm-w15"}}
        with pytest.raises(UsageError, match=f"method '{name}' uses no teacher"):
            parse_recipe(data, "test")


def test_an_unknown_method_is_refused_with_its_neighbour():
    with pytest.raises(UsageError, match=r"method 'trade' is unknown; did you mean 'trades'"):
        parse_recipe(recipe("natural", None).model_dump(exclude_unset=True) | {"method": "trade"}, "test")


def test_mart_is_finite_where_the_net_is_sure_and_wrong():
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    loss = mart(logits, logits, torch.tensor([1]), beta=6.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


# -- what the interface can carry ----------------------------------------------------------------------------------


class FreeRobustFeatures(Method):
    """Several updates from one batch, weights and perturbation by one backward pass; with a layer of its own."""

    name: Literal["free-features"] = "free-features"
    m: int = 3

    @property
    def replays(self) -> int:
        return self.m

    def parts(self, net, teacher, *, compile, seed, dynamic=False) -> nn.Module:
        return nn.Linear(10, 10)

    def updates(self, step) -> Iterator[torch.Tensor]:
        delta = torch.zeros_like(step.batch.x)
        for _ in range(self.m):
            x_adv = (step.batch.x + delta).clamp(0, 1).requires_grad_()
            yield F.cross_entropy(step.parts(step.forward(x_adv).float()), step.batch.y)
            delta = step.attack.ball(step.batch.x).project(x_adv + step.attack.eps * x_adv.grad.sign()) - step.batch.x
            delta = delta.detach()
            assert delta.abs().max() > 0


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # it is not in the table
def test_a_method_with_replays_and_modules_of_its_own_is_one_class(toy, tmp_path):
    settings = recipe("natural", None).model_copy(update={"method": FreeRobustFeatures()})
    trainer = Trainer(settings, toy)
    trainer.net.train()
    assert trainer.total_steps == 3 * trainer.steps_per_epoch // 3  # three epochs, three replays
    before, own = trainer.net.head.weight.detach().clone(), trainer.parts.weight.detach().clone()
    trainer.train_step()
    assert trainer.ema.n_averaged == 3
    assert not torch.equal(trainer.net.head.weight, before)
    assert not torch.equal(trainer.parts.weight, own)
    again = Trainer(settings, toy)
    again.restore(copy.deepcopy(trainer.state()))
    assert torch.equal(again.parts.weight, trainer.parts.weight)
    assert trainer.weights().keys() == again.net.state_dict().keys()


@pytest.mark.parametrize("attack", [{}, L2], ids=["linf", "l2"])
@pytest.mark.parametrize("name", ["free-at", "fast-ard"])
def test_replays_update_weights_and_perturbation_by_one_backward_pass(name, attack, toy, teacher_folder):
    settings = recipe(name, teacher_folder, ema={"recalibrate": 0}, attack=attack)
    trainer = Trainer(settings, toy)
    plain = copy.deepcopy(trainer.net)
    soft = trainer.teacher.model if trainer.teacher else None
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.1
    delta = 0.0
    for number in range(2):  # the second batch starts from the perturbation of the first
        batch = trainer.batch(number)
        trainer.train_step()
        for _ in range(3):
            x_adv = (batch.x + delta).clamp(0, 1).requires_grad_()
            loss = EQUATIONS[name](plain, soft, batch.x, batch.y, x_adv, trainer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            delta = climbed(x_adv, x_adv.grad, batch.x, settings) - batch.x
    expected, found = dict(plain.named_parameters()), dict(trainer.net.named_parameters())
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=2e-4)
    assert ((trainer.parts.delta - delta).abs() < 1e-6).float().mean() > 0.98  # small gradients have any sign
    again = Trainer(settings, toy)
    again.restore(copy.deepcopy(trainer.state()))
    assert torch.equal(again.parts.delta, trainer.parts.delta)
    assert trainer.total_steps == trainer.steps_per_epoch  # three epochs of replays


REPLAYED = """
from test_methods import recipe
from zoo.train.run.trainer import Trainer

settings = recipe("free-at", None)
trainer = Trainer(settings, dataset)
trainer.net.train()
trainer.train_step()
again = Trainer(settings, dataset)
again.restore(trainer.state())
assert again.parts.delta.equal(trainer.parts.delta)
whole = trainer.parts.state_dict()["_extra_state"]["delta"]
accelerator = trainer.accelerator
mine = slice(accelerator.process_index, None, accelerator.num_processes)
assert whole[mine].equal(trainer.parts.delta)
report(accelerator, list(whole.shape))
"""


def test_each_process_goes_on_with_the_perturbation_of_its_own_images(toy, on_processes):
    assert on_processes(REPLAYED, 2, toy.root, start=torchrun) == [100, 3, 32, 32]


def test_robust_data_look_to_the_teacher_as_the_images_do(toy, teacher_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    settings = recipe("rdt", teacher_folder, {"steps": 60, "step": 0.1}, train={"images": 200})
    trainer, plain = Trainer(settings, toy), Trainer(recipe("natural", None, train={"images": 200}), toy)
    represent = trainer.teacher.model.penultimate
    middle = (slice(None), slice(4, -4), slice(4, -4))
    x, x_r = (one.batches.source.images[middle].permute(0, 3, 1, 2) / 255 for one in (plain, trainer))
    other = x[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    distance = {name: (represent(z) - represent(x)).norm(dim=1).mean() for name, z in (("made", x_r), ("start", other))}
    assert distance["made"] < 0.3 * distance["start"]
    assert (x_r - x).abs().mean() > 0.5 * (other - x).abs().mean()  # it is not the image itself
    assert torch.equal(trainer.batches.source.labels, plain.batches.source.labels)
    monkeypatch.setattr(Rdt, "robust", None)  # now it comes from the cache
    assert torch.equal(Trainer(settings, toy).batches.source.images, trainer.batches.source.images)


def test_robust_data_are_made_on_where_a_run_stopped(toy, teacher_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setattr("zoo.train.methods.rdt.BATCH", 80)
    settings = recipe("rdt", teacher_folder, {"steps": 2}, train={"images": 200})
    robust, made, shares = Rdt.robust, [], []

    def stopped(self, x, start, teacher):
        if sum(made) == 160:
            raise KeyboardInterrupt
        made.append(len(x))
        return robust(self, x, start, teacher)

    monkeypatch.setattr(Rdt, "robust", stopped)
    with pytest.raises(KeyboardInterrupt):
        Trainer(settings, toy)
    made.append(-100)
    with listening(shares.append):
        Trainer(settings, toy)
    assert made == [80, 80, -100, 40]
    assert shares == [0.4, 0.8, 1]


@pytest.mark.parametrize("layer", ["student_layer", "teacher_layer"])
def test_features_of_a_layer_that_does_not_exist_are_refused_at_once_with_its_neighbours(
    layer, toy, teacher_folder, monkeypatch
):
    monkeypatch.setattr("zoo.train.run.trainer.record", lambda *_: pytest.fail("the teacher was measured before"))
    with pytest.raises(UsageError, match=r"no layer 'features.9'; did you mean 'features\.\d'"):
        Trainer(recipe("rrm", teacher_folder, {layer: "features.9"}), toy)
    with pytest.raises(UsageError, match=f"the {layer.removesuffix('_layer')} has no layer 'foo' \\(at the top: "):
        Trainer(recipe("rrm", teacher_folder, {layer: "foo"}), toy)


def test_features_of_a_layer_that_is_never_called_are_refused(toy, teacher_folder):
    rounded = {"int8": True, "images": 200}  # whose graph calls the leaves alone
    with pytest.raises(UsageError, match=r"the student's layer 'features\.1' is never called: choose a layer inside"):
        Trainer(recipe("rrm", teacher_folder, {"student_layer": "features.1"}, train=rounded), toy)


# -- the threat model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_reaches_the_best_point_of_the_ball_on_a_linear_model(norm):
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    x, y = torch.full((4, 3, 4, 4), 0.5), torch.tensor([0, 1, 0, 1])
    ball, noise = Ball(x, 0.3, norm), torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    start = adversary.random_start(ball, noise)
    assert norm_of(start - x, norm).flatten().tolist() == pytest.approx([0.3] * 4, rel=0.2 if norm == "linf" else 1e-5)
    x_adv = adversary.pgd(model, ball, start, adversary.cross_entropy(y), step=0.1, steps=50)
    weight = torch.stack([model[1].weight[1 - k] - model[1].weight[k] for k in y]).view_as(x)
    assert torch.allclose(x_adv - x, 0.3 * steepest(weight, norm), atol=1e-3)


@pytest.mark.parametrize(
    "threat", [pytest.param({"norm": "linf", "eps": 8 / 255}, marks=pytest.mark.slow), {"norm": "l2", "eps": 2.0}]
)
def test_training_for_a_threat_model_resists_it(toy, threat):
    robust = {}
    for name, attack in (("natural", threat), ("pgd-at", {**threat, "step": threat["eps"] / 2, "steps": 2})):
        data = recipe(name, None, guard={"steps": 10}).model_dump(exclude_unset=True) | {"attack": attack}
        trainer = Trainer(parse_recipe(data, "test"), toy)
        for _ in range(60):
            trainer.net.train()
            trainer.train_step()
        net, (x, y) = trainer.averaged(), trainer.held_out
        x_adv = attacks.pgd(net, x, y, steps=10, **threat)
        robust[name] = (net(x_adv).argmax(1) == y).float().mean().item()
        assert abs(trainer.guarded_accuracy(net)[1] - robust[name]) < 0.1  # judged by the same threat model
    assert robust["pgd-at"] > robust["natural"] + 0.1


@pytest.mark.parametrize(
    ("name", "attack", "says"),
    [
        ("pgd-at", {"norm": "l2", "step": 0.1}, "default eps is for norm = 'linf'"),
        ("pgd-at", {"norm": "l2", "eps": 0.5}, r"default attack.step is for norm = 'linf'"),
        ("n-fgsm", {}, "attack.steps = 1 needs attack.step: set it, to attack.eps for most methods"),
        ("ard", {"eps": 0.02}, "attack.steps = 1 needs attack.step"),
        ("ard", {"step": 0.01, "objective": "kl"}, "ard' maximises the cross-entropy"),
        ("fast-at", {"step": 0.01, "objective": "kl"}, "fast-at maximises the cross-entropy"),
        ("n-fgsm", {"norm": "l2", "eps": 0.5, "step": 0.1}, "choose pgd-at for l2"),
        ("rslad", {"objective": "ce"}, "rslad has an inner maximisation of its own"),
        ("adaad", {"objective": "ce"}, "adaad has an inner maximisation of its own"),
        ("fast-at", {"steps": 2}, "fast-at takes one attack step"),
        ("fast-at", {}, r"or to 1\.25 attack.eps for Fast AT"),
        ("free-at", {"steps": 2}, "free-at takes one attack step in each replay"),
        ("free-at", {}, "attack.steps = 1 needs attack.step"),
        ("fast-ard", {"objective": "kl"}, "fast-ard climbs its own loss"),
    ],
)
def test_an_attack_that_the_method_does_not_make_is_refused(name, attack, says, teacher_folder):
    data = recipe(name, teacher_folder).model_dump(exclude_unset=True) | {"attack": attack}
    with pytest.raises(UsageError, match=says):
        parse_recipe(data, "test")


@pytest.mark.parametrize(
    ("name", "changes", "key"),
    [
        ("kd", {"alpha": 1.5}, "alpha"),
        ("kd", {"temperature": 0}, "temperature"),
        ("ard", {"alpha": -0.1}, "alpha"),
        ("fast-ard", {"temperature": -1.0}, "temperature"),
        ("fast-ard", {"m": 0}, "m"),
        ("adaad", {"alpha": 2}, "alpha"),
        ("rslad", {"temperature": 0.0}, "temperature"),
        ("rrm", {"lam": 0}, "lam"),
        ("rrm", {"lam": 1e9}, "lam"),
        ("ard", {"temperature": 1e9}, "temperature"),
        ("rrm", {"distance": "l1"}, "distance"),
        ("rdt", {"steps": 0}, "steps"),
    ],
)
def test_settings_out_of_range_are_refused(name, changes, key, teacher_folder):
    with pytest.raises(UsageError, match=f"'method.{key}' is wrong: Input should be"):
        recipe(name, teacher_folder, changes)


def test_two_methods_cannot_have_one_name_and_each_has_one():
    class Second(Trades):
        pass

    class Nameless(Trades):
        name: Literal["nameless"]

    class Misspelt(Trades):
        name: Literal["spelt"] = "misspelt"

    with pytest.raises(TypeError, match="two training methods are called 'trades'"):
        by_name((Trades, Second))
    for wrong in (Nameless, Misspelt):
        with pytest.raises(TypeError, match=f"{wrong.__name__} must state its name as in name: Literal"):
            by_name((Trades, wrong))


@given(eps=st.floats(1e-3, 0.3))
@settings(max_examples=20)
def test_the_step_is_a_quarter_of_eps_unless_it_is_stated(eps):
    assert Attack(eps=eps).step == eps / 4
    assert Attack(eps=eps, step=0.01).step == 0.01


def test_replays_must_divide_the_epochs(teacher_folder):
    with pytest.raises(UsageError, match=r"train.epochs = 3 counts the replays .* choose a multiple of method.m = 2"):
        recipe("fast-ard", teacher_folder, {"m": 2})


def test_alpha_takes_the_place_of_the_weights_of_the_losses(teacher_folder):
    data = recipe("ard", teacher_folder).model_dump(exclude_unset=True) | {
        "method": {"name": "ard", "alpha": 1, "ce": 1}
    }
    with pytest.raises(UsageError, match=r"alpha weighs both losses, as in the paper: remove method.ce, or alpha"):
        parse_recipe(data, "test")


@pytest.mark.parametrize("name", ["rrm", "adaad", "rdt"])
def test_answers_that_cannot_be_cached_are_not(name, teacher_folder):
    data = recipe(name, teacher_folder).model_dump(exclude_unset=True)
    data["teacher"]["versions"] = 2
    with pytest.raises(UsageError, match=r"set teacher.versions = 0"):
        parse_recipe(data, "test")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ce": 0.0, "kl": 0.0}, "no loss with ce = 0 and kl = 0"),
        ({"ce": 0.0, "label_smoothing": 0.1}, "label_smoothing is of the hard labels, which ce = 0 leaves out"),
    ],
)
def test_settings_of_a_term_that_is_left_out_are_refused(changes, says):
    with pytest.raises(UsageError, match=says):
        recipe("ard", "trades-s3", changes)
