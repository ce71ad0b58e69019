"""Models from elsewhere: converted checkpoints compute what the original nets do; what does not fit is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from test_datasets import written
from test_fold import lived_in
from torch import Tensor, nn
from torchvision.models import resnet

from zoo.cli.app import run
from zoo.models import build
from zoo.specs import ResNetSpec
from zoo.system.errors import IntegrityError, Unreachable, UsageError
from zoo.train.pipeline import run as train
from zoo.train.recipes.phases import load_phases, load_recipe
from zoo.train.teachers.teacher import Teacher
from zoo.weights.convert import convert
from zoo.weights.load import find, load
from zoo.weights.tensors import save_weights

# -- nets as other code bases write them ---------------------------------------------------------------------------


class TradesBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(c_in), nn.BatchNorm2d(c_out)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.convShortcut = None if c_in == c_out else nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return out + (x if self.convShortcut is None else self.convShortcut(activated))


class TradesGroup(nn.Module):
    def __init__(self, blocks: int, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            TradesBlock(c_in, c_out, stride), *(TradesBlock(c_out, c_out, 1) for _ in range(blocks - 1))
        )


class TradesWideResNet(nn.Module):
    def __init__(self, blocks: int = 2, widen: int = 2, classes: int = 10) -> None:
        super().__init__()
        widths = (16, 16 * widen, 32 * widen, 64 * widen)
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        for place, stride in ((1, 1), (2, 2), (3, 2)):
            setattr(self, f"block{place}", TradesGroup(blocks, widths[place - 1], widths[place], stride))
        self.sub_block1 = TradesGroup(blocks, widths[0], widths[1], 1)  # never called
        self.bn1, self.fc = nn.BatchNorm2d(widths[3]), nn.Linear(widths[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3.layer(self.block2.layer(self.block1.layer(self.conv1(x))))
        return self.fc(F.avg_pool2d(F.relu(self.bn1(x)), 8).flatten(1))


class CifarResNet(resnet.ResNet):
    """RobustBench's, by torchvision's blocks under its own names."""

    def __init__(self, block: type[nn.Module], layers: list[int]) -> None:
        super().__init__(block, layers, num_classes=10)
        self.conv1, self.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()

    def state_dict(self, *args, **kwargs):
        renamed = ((".downsample.", ".shortcut."), ("fc.", "linear."))
        tensors = dict(super().state_dict(*args, **kwargs))
        for ours, theirs in renamed:
            tensors = {name.replace(ours, theirs): tensor for name, tensor in tensors.items()}
        return tensors


class CifarVGG(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers, c_in = [], 3
        for c_out in (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"):
            if c_out == "M":
                layers.append(nn.MaxPool2d(2, 2))
            else:
                layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()]
                c_in = c_out
        self.features, self.classifier = nn.Sequential(*layers, nn.AvgPool2d(1, 1)), nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def plain(tensors: dict[str, Tensor]) -> dict:
    return tensors


def wrapped(tensors: dict[str, Tensor]) -> dict:
    return {"epoch": 100, "state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}, "best": 0.5}


def twice(tensors: dict[str, Tensor]) -> dict:
    return {"net": {f"module.model.{name}": tensor for name, tensor in tensors.items()}}


def old(tensors: dict[str, Tensor]) -> dict:
    """As before PyTorch 0.4.1, and in half precision."""
    return {"model_state_dict": {k: v.half() for k, v in tensors.items() if not k.endswith("num_batches_tracked")}}


WIDE = ["--arch=wideresnet", "--set=depth=16", "--set=widen=2"]
R18 = ["--arch=resnet", "--set=depth=18"]
NETS = {
    "the WideResNet of TRADES": (TradesWideResNet, wrapped, WIDE),
    "in half precision": (TradesWideResNet, old, WIDE),
    "torchvision's ResNet-18": (lambda: resnet.resnet18(num_classes=10), plain, [*R18, "--set=stem=7x7"]),
    "RobustBench's ResNet-18": (lambda: CifarResNet(resnet.BasicBlock, [2, 2, 2, 2]), twice, R18),
    "RobustBench's ResNet-50": (
        lambda: CifarResNet(resnet.Bottleneck, [3, 4, 6, 3]),
        wrapped,
        ["--arch=resnet", "--set=depth=50"],
    ),
    "VGG-11 with one linear layer": (CifarVGG, plain, ["--arch=vgg", "--set=depth=11"]),
}
NONE = "--normalise=none"


@pytest.mark.parametrize(("make", "layout", "arch"), NETS.values(), ids=NETS)
def test_a_converted_checkpoint_computes_what_the_net_did(make, layout, arch, tmp_path, capsys):
    torch.manual_seed(0)
    net = lived_in(make()).eval()
    content = layout(net.state_dict())
    torch.save(content, tmp_path / "net.pt")
    assert run(["convert", str(tmp_path / "net.pt"), *arch, NONE, "-o", str(tmp_path / "m"), "--json", "-q"]) == 0
    model = load(f"local-dir:{tmp_path / 'm'}")
    assert json.loads(capsys.readouterr().out)["params"] == sum(p.numel() for p in model.parameters())
    x = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        expected, actual = net(x), model(x)
    assert expected.std() > 1e-2
    torch.testing.assert_close(actual, expected, rtol=0, atol=(1e-2 if layout is old else 1e-5) * expected.abs().max())


@pytest.mark.parametrize("names", [("normalize.mean", "normalize.std"), ("mu", "sigma")])
def test_a_normalisation_in_a_checkpoint_must_be_the_stated_one(names, tmp_path, capsys):
    values = torch.tensor([0.49, 0.48, 0.44]), torch.tensor([0.25, 0.25, 0.26])
    whole = {f"model.{name}": tensor for name, tensor in TradesWideResNet().state_dict().items()}
    torch.save(whole | {n: v.view(1, 3, 1, 1) for n, v in zip(names, values, strict=True)}, tmp_path / "net.pt")
    stated = ["--set", "mean=[0.49, 0.48, 0.44]", "--set", "std=[0.25, 0.25, 0.26]"]
    for how, code in (([NONE], 5), (["--normalise=dataset"], 5), (stated, 0)):
        assert run(["convert", str(tmp_path / "net.pt"), *WIDE, *how, "-o", str(tmp_path / "m")]) == code
        said = capsys.readouterr().err
        assert ('give --set "mean=[0.49, 0.48, 0.44]" --set "std=[0.25, 0.25, 0.26]"' in said) == bool(code)
    assert load(f"local-dir:{tmp_path / 'm'}").spec.std == (0.25, 0.25, 0.26)


def test_safetensors_are_read_and_images_normalised_as_stated(tmp_path, capsys):
    torch.manual_seed(0)
    net = lived_in(TradesWideResNet()).eval()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    call = ["convert", str(tmp_path / "net.safetensors"), *WIDE, "-q", "--threat=l2 0.5", "-o"]
    assert run([*call, str(tmp_path / "set"), "--set=mean=[0.5, 0.4, 0.3]", "--set=std=[0.2, 0.3, 0.4]"]) == 0
    assert run([*call, str(tmp_path / "cifar"), "--normalise=dataset"]) == 0
    x = torch.rand(2, 3, 32, 32)
    for name, mean, std in (("set", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), ("cifar", ResNetSpec().mean, ResNetSpec().std)):
        found = find(f"local-dir:{tmp_path / name}")
        assert (str(found.task.threat), found.task.dataset, found.classes[0]) == ("l2 0.5", "cifar10", "airplane")
        centred = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        with torch.no_grad():
            torch.testing.assert_close(found.load()(x), net(centred))


# -- what does not fit ---------------------------------------------------------------------------------------------


@pytest.fixture
def trades(tmp_path) -> Path:
    torch.save(wrapped(TradesWideResNet().state_dict()), tmp_path / "net.pt")
    return tmp_path / "net.pt"


@pytest.mark.parametrize(
    ("arguments", "says", "code"),
    [
        (["--arch=wideresnet", "--set=depth=22", "--set=widen=2", NONE], "lacks 'features.3.bn1.bias' and 29 more", 5),
        (["--arch=wideresnet", "--set=depth=10", "--set=widen=2", NONE], "has 'module.block1.layer.1.bn1.bias' and", 5),
        (
            [*WIDE[:2], "--set=widen=4", NONE],
            "'module.block1.layer.0.conv1.weight' in '.*' has shape [32, 16, 3, 3], not",
            5,
        ),
        ([*WIDE, "--dataset=cifar100", NONE], "'module.fc.weight' in '.*' has shape [10, 128], not [100, 128]", 5),
        ([*WIDE, "--set=classes=1000000", NONE], "values, and this architecture has 129,", 5),
        ([*WIDE, "--set=classes=1000000000000", NONE], "wrong at 'wideresnet.classes'", 2),
        ([*R18, NONE], "lacks 'features.layer1.0.bn1.bias'", 5),
        (["--arch=staged", "--set=widths=[[4]]", "--set=resolutions=[16]", NONE], "no layout of checkpoints is", 2),
        (["--arch=wideresnet", "--set=depth=17", NONE], "6n + 4", 2),
        ([*WIDE], "say how the net normalises images", 2),
        ([*WIDE, "--set=mean=[0, 0, 0]"], "say how the net normalises images", 2),
        ([*WIDE, "--set=mean=[0, 0, 0]", NONE], "contradict each other", 2),
        ([*WIDE, "--normalise=non"], "did you mean 'none'", 2),
        ([*WIDE, "--set=stem", NONE], "--set needs KEY=VALUE", 2),
        ([*WIDE, "--set=dept=10", NONE], "'wideresnet' has no key 'dept'; did you mean 'depth'?", 2),
        ([*WIDE, "--set=arch=resnet", NONE], "leave --set arch out", 2),
        (["--arch=wideresnt", NONE], "did you mean 'wideresnet'", 2),
        (["--arch=staged", NONE], "no layout of checkpoints is", 2),
    ],
)
def test_what_does_not_fit_is_refused_by_its_first_name(trades, arguments, says, code, tmp_path, capsys):
    assert run(["convert", str(trades), *arguments, "-o", str(tmp_path / "m")]) == code
    said = capsys.readouterr().err
    before, _, after = says.partition(".*")
    assert before in said
    assert after in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "m").exists()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"state_dict": {}, "more": Evil()}, "is not a whole pickle of tensors, and nothing else is unpickled"),
        ({"weights": {"a": torch.zeros(1)}}, "holds no state dict"),
        ({"state_dict": {"conv1.weight": 5}}, "holds no state dict"),
        ([torch.zeros(1)], "holds no state dict"),
        (dict.fromkeys(("conv1.weight", "module.conv1.weight"), torch.zeros(1)), "names with and without a prefix"),
        ({"conv1.weight": torch.full((1,), torch.inf)}, "values in 'conv1.weight' that are not finite"),
        (
            {"conv1.weight": torch.full((1,), 1e300, dtype=torch.float64)},
            "values in 'conv1.weight' that are not finite",
        ),
        ({"conv1.weight": torch.zeros(1).expand(1 << 50)}, "does not hold all values of 'conv1.weight' as plain"),
        ({"conv1.weight": torch.empty(1, device="meta")}, "does not hold all values of 'conv1.weight' as plain"),
        ({"conv1.weight": torch.ones(1, 1).to_sparse()}, "does not hold all values of 'conv1.weight' as plain"),
        ({"conv1.weight": torch.zeros(1, dtype=torch.complex64)}, "as plain numbers (torch.complex64)"),
        ({"conv1.weight": torch.zeros(1).to(torch.float8_e4m3fn)}, "as plain numbers (torch.float8_e4m3fn)"),
        ({}, "holds no state dict"),
        (b"", "is not a whole pickle"),
        (b"PK\3\4" + b"x" * 100, "is not a whole pickle"),
        (b"no pickle", "is not a whole pickle"),
        (b"\x80\x02c_codecs\nencode\nG\x00", "is not a whole pickle"),  # struct.error
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused_and_runs_nothing(content, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        Path("net.pt").write_bytes(content)
    else:
        torch.save(content, "net.pt")
    assert run(["convert", "net.pt", *WIDE, NONE, "-o", "m"]) == 5
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1
    assert os.listdir() == ["net.pt"]


def test_tensors_in_two_layouts_are_refused(tmp_path):
    torch.save(dict.fromkeys(("fc.bias", "linear.bias"), torch.zeros(10)), tmp_path / "net.pt")
    with pytest.raises(IntegrityError, match=r"or in two layouts: keep those of one net"):
        convert(tmp_path / "net.pt", ResNetSpec())


def test_integers_are_no_weights(tmp_path, capsys):
    torch.save({name: tensor.long() for name, tensor in TradesWideResNet().state_dict().items()}, tmp_path / "net.pt")
    assert run(["convert", str(tmp_path / "net.pt"), *WIDE, NONE, "-o", str(tmp_path / "m")]) == 5
    assert "holds integers in '" in capsys.readouterr().err


def test_a_variance_is_not_negative(tmp_path, capsys):
    state = TradesWideResNet().state_dict()
    state["bn1.running_var"][3] = -1e-3
    torch.save(state, tmp_path / "net.pt")
    assert run(["convert", str(tmp_path / "net.pt"), *WIDE, NONE, "-o", str(tmp_path / "m")]) == 5
    assert "holds a negative variance in 'bn1.running_var'" in capsys.readouterr().err


def test_no_file_and_a_taken_folder_are_refused(trades, tmp_path, capsys):
    assert run(["convert", str(tmp_path / "no.pt"), *WIDE, NONE, "-o", str(tmp_path / "m")]) == 2
    assert "there is no file" in capsys.readouterr().err
    assert run(["convert", str(trades), *WIDE, NONE, "-o", str(tmp_path / "m")]) == 0
    assert run(["convert", str(trades), *WIDE, NONE, "-o", str(tmp_path / "m")]) == 2
    assert "already holds a model" in capsys.readouterr().err
    (tmp_path / "m" / "config.json").unlink()
    before = (tmp_path / "m" / "model.safetensors").read_bytes()
    assert run(["convert", str(trades), *WIDE, "--normalise=dataset", "-o", str(tmp_path / "m")]) == 2
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before


# -- a file with its spec beside it ----------------------------------------------------------------------------------


def test_a_teacher_is_a_safetensors_file_with_its_spec_beside_it(net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_weights(net.state_dict(), Path("mine.safetensors"))
    with pytest.raises(Unreachable, match=r"'mine\.safetensors' has no architecture: write it to 'mine\.json'"):
        find("mine.safetensors", folders=True)
    Path("mine.json").write_text(json.dumps({"spec": net.spec.to_dict()}))
    recipe = load_recipe("ard-p4-w15", overrides=["teacher.name=mine.safetensors"])
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = net(x)
    torch.testing.assert_close(Teacher(recipe.teacher.name, torch.device("cpu"))(x).logits, expected)
    assert find("mine.safetensors", folders=True).title == "mine"
    assert torch.equal(load("local-dir:mine.safetensors")(x), expected)
    with pytest.raises(UsageError, match=r"'mine\.safetensors' is a file, .*: write local-dir:mine\.safetensors"):
        load("mine.safetensors")
    Path("net.pt").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"'net\.pt' is a file, not a model: .* `zoo convert`"):
        find("net.pt", folders=True)
    with pytest.raises(Unreachable, match=r"'net\.pt' is a file, not a model folder: .* `zoo convert`"):
        find("local-dir:net.pt")
    with pytest.raises(Unreachable, match=r"there is no file 'other\.safetensors'"):
        find("other.safetensors", folders=True)


def test_a_converted_net_teaches_on_cifar100(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    torch.save(TradesWideResNet(blocks=1, widen=1, classes=100).state_dict(), tmp_path / "net.pt")
    small = ["--arch=wideresnet", "--set=depth=10", "--set=widen=1", "--dataset=cifar100", NONE]
    assert run(["convert", str(tmp_path / "net.pt"), *small, "-o", str(tmp_path / "teacher"), "-q"]) == 0
    overrides = [f"teacher.name={tmp_path / 'teacher'}", "arch={ arch = 'staged', widths = [[8]], resolutions = [16] }"]
    overrides += ["guard.images=4"]
    dataset = written("cifar100", tmp_path / "data").load(tmp_path / "data")
    trained = train(
        load_phases("kd-mobilenetv2-cifar100", preset="smoke", overrides=overrides), dataset, tmp_path / "run"
    )
    found = find(f"local-dir:{trained['train']}")
    assert (found.task.dataset, found.classes, found.spec.mean) == ("cifar100", dataset.classes, dataset.mean)
    assert found.facts.train["teacher"]["weights_sha256"] == find(str(tmp_path / "teacher"), folders=True).sha256


def test_a_folder_may_be_called_like_a_file(net, tmp_path):
    folder = tmp_path / "odd.safetensors"
    folder.mkdir()
    save_weights(build(net.spec).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"spec": net.spec.to_dict()}))
    assert load(f"local-dir:{folder}").spec == net.spec
