"""What every engine owes its callers: one contract for the whole table. What one alone does is tested in its own file.

An engine that is not installed is skipped, and says why. Where there is no GPU a stand-in runs what TensorRT builds.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import bundle_of
from fake_tensorrt import FakeTensorRt, install
from test_examples import agree, check_that_it_shows, drawn, run_example, twins
from test_export import FAMILIES, images, model_of
from torch import nn

from zoo.cli.app import run
from zoo.cli.options import engine_names
from zoo.datasets.cifar10 import CIFAR10
from zoo.export import export_model, read_bundle, verify_bundle
from zoo.export.bench import entrants
from zoo.export.bundle.manifest import Calibration, Manifest
from zoo.export.bundle.source import Known
from zoo.export.engines import ENGINES, Backend, backend
from zoo.export.engines.interface import Engine, Order
from zoo.export.engines.twin import Twin
from zoo.export.remote.engine import connect
from zoo.export.triton import write_triton
from zoo.models import Classifier
from zoo.specs import StagedSpec
from zoo.system.errors import ExportFailed, IntegrityError, MissingDependency, UsageError, WrongDevice

# Without a GPU, these run on a stand-in.
PLAYED = {"tensorrt": {}, "tensorrt-rtx": {"name": "tensorrt_rtx", "version": "1.7.1.116", "capability": (8, 9)}}
PLAYED = {} if torch.cuda.is_available() else PLAYED
SPEC = StagedSpec(widths=((8, 6, 8),), resolutions=(16,), stem=8)  # a shortcut drops channels, the next adds some
NAMES = [one.name for one in ENGINES]
CONVERTED = [one.name for one in ENGINES if not one.from_onnx]  # built from the float model itself
BOUNDS = {"fp16": (1e-6, 0.01), "int8": (1e-3, 0.25)}  # least and most change of a logit, as a share of their spread
LOWER = [(one.name, precision) for one in ENGINES for precision in BOUNDS if precision in one.precisions]


@pytest.fixture(scope="module")
def model() -> Classifier:
    return model_of(SPEC)


@pytest.fixture(scope="module", params=NAMES)
def row(request, tmp_path_factory) -> Iterator[Backend]:
    """The row of an engine that can be used here."""
    engine = backend(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        if engine.name in PLAYED:
            install(patch, FakeTensorRt(**PLAYED[engine.name]))
        try:
            engine.require(build=True)
        except MissingDependency as error:  # an engine that is installed must work
            pytest.skip(str(error))
        yield engine


@pytest.fixture(scope="module")
def bundle(row, model, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp(row.name)
    known = Known("small", "small", dataset="cifar10", labels=CIFAR10.classes)
    return bundle_of(model, known, format=row.name, out=out, verify="parity", batches=(1, 8))


@pytest.fixture(scope="module")
def manifest(bundle) -> Manifest:
    return read_bundle(bundle)


@pytest.fixture(scope="module")
def artifact(bundle, manifest) -> Path:
    return bundle / manifest.artifact.file


@pytest.fixture(scope="module")
def engine(row, artifact) -> Iterator[Engine]:
    with row.load_module().load(artifact, threads=1) as engine:
        yield engine


def expected(model: Classifier, x: torch.Tensor) -> torch.Tensor:
    logits = Twin(model)(x)
    assert logits.std() > 0.05
    return logits


# -- what it answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 16, 65, 131])  # on either side of what an engine may take at once
def test_it_agrees_with_the_model_at_every_batch_size(n, engine, model):
    x = images(n, seed=n)
    logits = engine(x)
    assert (logits.dtype, logits.device.type) == (torch.float32, "cpu")
    assert torch.allclose(logits, expected(model, x), atol=1e-4)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.rand(2, 3, 31, 32), r"shape \[N, 3, 32, 32\].*not \[2, 3, 31, 32\]"),
        (torch.rand(3, 32, 32), r"not \[3, 32, 32\]"),
        (torch.rand(0, 3, 32, 32), "N >= 1"),
        (torch.rand(1, 32, 32, 3), r"not \[1, 32, 32, 3\]"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "float32, not uint8; divide by 255"),
        (torch.rand(1, 3, 32, 32).double(), "float32, not float64"),
        (torch.full((1, 3, 32, 32), 1.5), r"lies in \[0, 1\].*spans \[1\.5, 1\.5\]"),
        (torch.full((1, 3, 32, 32), -3e-8), r"lies in \[0, 1\]"),
        (torch.eye(32).expand(2, 3, 32, 32).log() * 0, "holds NaN"),
        (np.full((1, 3, 32, 32), np.inf, np.float32), "spans"),
        ([[0.5]], "not list"),
    ],
)
def test_a_malformed_batch_is_refused(bad, message, engine, model):
    for one in (engine, Twin(model)):
        with pytest.raises(UsageError, match=message):
            one(bad)


def test_arrays_strides_and_gradients_do_not_matter(engine):
    x = images(3)
    logits = engine(x)
    for same in (x.numpy(), x.to(memory_format=torch.channels_last), x.clone().requires_grad_()):
        assert torch.equal(engine(same), logits)
    assert torch.equal(engine(np.asfortranarray(x.numpy())), logits)
    with torch.inference_mode():
        assert torch.equal(engine(x), logits)


def test_logits_are_the_callers_own(engine):
    x = images(2)
    first = engine(x)
    kept = first.clone()
    second = engine(1 - x)
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, kept)
    first.zero_()  # as some attacks do
    assert torch.equal(engine(x), kept)


def lowered(row: Backend, model: Classifier, precision: str, out: Path, contrast: float = 1.0) -> Engine:
    """The model in ``precision``, with int8 ranges from noise."""
    facts = {"indices_sha256": "0" * 64, "images_sha256": "0" * 64, "method": "minmax"}
    grey = 0.5 + contrast * (images(64, seed=1) - 0.5)
    calibrated = grey, Calibration(dataset="noise", split="train", n=64, **facts)
    options = {"format": row.name, "precision": precision, "calibrated": calibrated if precision == "int8" else None}
    bundle = bundle_of(model, Known("small", "small"), out=out, verify="none", **options)
    return row.load_module().load(bundle / read_bundle(bundle).artifact.file)


@pytest.mark.parametrize(("row", "precision"), LOWER, indirect=["row"])
def test_lower_precisions_are_close_and_are_not_fp32(row, precision, model, tmp_path):
    (least, most), x = BOUNDS[precision], images(33, seed=3)
    logits = expected(model, x)
    with lowered(row, model, precision, tmp_path) as engine:
        assert least < (engine(x) - logits).abs().max() / logits.std() < most


@pytest.mark.parametrize("row", [name for name, precision in LOWER if precision == "int8"], indirect=True)
def test_int8_ranges_come_from_the_calibration_images(row, model, tmp_path, capsys):
    """A net that was calibrated with grey images only cannot represent what other images cause."""
    x = images(33, seed=3)
    logits = expected(model, x)
    with lowered(row, model, "int8", tmp_path, contrast=0.05) as engine:
        assert (engine(x) - logits).abs().max() > 0.5 * logits.std()
    assert capsys.readouterr() == ("", "")  # converters draw progress bars


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-5), ("fp16", 0.01), ("int8", 0.2)])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("row", [*CONVERTED, "openvino"], indirect=True)
def test_every_family_can_be_built_in_every_precision(family, precision, most, row, tmp_path):
    model, x = model_of(FAMILIES[family]), images(9, seed=2)
    logits = expected(model, x)
    with lowered(row, model, precision, tmp_path) as engine:
        assert (engine(x) - logits).abs().max() < most * logits.std()


# -- what it says of itself --------------------------------------------------------------------------------------


def test_it_says_what_it_is(row, engine, manifest):
    facts = engine.describe()
    assert facts["engine"] == manifest.engine == row.name
    assert facts["version"][0].isdigit()
    assert facts["device"] == manifest.device
    assert json.dumps(facts)
    assert manifest.artifact.format == row.file_format
    for tool in row.tools:
        try:
            installed = version(tool)
        except PackageNotFoundError:
            installed = None
        assert manifest.toolchain.get(tool) == installed


def test_it_has_gradients(engine, model):
    assert torch.allclose(engine.differentiable(model)(images(2)), model(images(2)), atol=1e-5)


def test_the_file_names_no_folder_of_the_machine_that_wrote_it(artifact):
    content = artifact.read_bytes()
    for place in (Path(torch.__file__).parents[1], Path.home(), Path.cwd(), Path(__file__).parents[1]):
        assert str(place).encode() not in content


# -- loading, closing, failing -----------------------------------------------------------------------------------


def test_a_closed_engine_is_free_and_says_so(row, engine, artifact):
    x = images(2)
    logits = engine(x)
    other = row.load_module().load(artifact)
    with other as same:
        assert same is other
        assert torch.equal(other(x), logits)
    other.close()
    with pytest.raises(UsageError, match="this engine is closed: load it again"):
        other(x)
    assert torch.equal(engine(x), logits)  # other engines still run


def test_it_runs_on_one_thread_or_more(row, artifact):
    with pytest.raises(UsageError, match="runs on 1 thread or more, not on 0"):
        row.load_module().load(artifact, threads=0)


@pytest.mark.parametrize("kind", ["noise", "empty", "half", "missing"])
def test_a_file_that_is_no_artifact_is_refused(kind, row, artifact, tmp_path):
    path, whole = tmp_path / artifact.name, artifact.read_bytes()
    if kind != "missing":
        path.write_bytes({"noise": b"neither a graph nor a program", "empty": b""}.get(kind, whole[: len(whole) // 2]))
    with pytest.raises(IntegrityError, match=re.escape(f"{row.title} cannot load '{path}'")) as caught:
        row.load_module().load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("row", CONVERTED, indirect=True)
def test_a_model_that_cannot_be_converted_is_an_export_failure(row, tmp_path):
    class Fickle(nn.Module):
        def forward(self, x):
            y = x.mean((2, 3))
            return y if y.sum() > 0 else -y  # no static graph does this

    broken = Classifier(SPEC, Fickle(), nn.Linear(3, 10)).eval()
    order = Order(model=broken, graph=tmp_path / "model.onnx", precision="fp32", batches=(1,))
    with pytest.raises(ExportFailed, match=f"{row.title} could not convert the model") as caught:
        row.load_module().build(order, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


# -- elsewhere ---------------------------------------------------------------------------------------------------


def test_it_runs_on_another_device_or_says_that_it_cannot(row, bundle, engine, model):
    if not row.travels:
        with pytest.raises(MissingDependency, match="the runner for other devices has"):
            verify_bundle(bundle, device="local:", model=model, level="parity")
        return
    if row.name in PLAYED:
        with pytest.raises(WrongDevice, match="cannot load the artifact there: PyTorch finds no NVIDIA GPU"):
            connect("local:", bundle, threads=1)
        return
    with connect("local:", bundle, threads=1) as remote:
        for n in (1, 5):
            assert torch.allclose(remote(images(n)), engine(images(n)), atol=1e-5)
        facts = engine.describe()
        assert {key: remote.describe()[key] for key in ("engine", "version", "device")}.items() <= facts.items()
        assert torch.allclose(remote.differentiable(model)(images(2)), model(images(2)), atol=1e-5)
        with pytest.raises(UsageError, match="spans"):
            remote(2 * images(2))


@pytest.mark.parametrize(
    "row",
    [pytest.param(name, marks=pytest.mark.gpu if name.startswith("tensorrt") else ()) for name in NAMES],
    indirect=True,
)
def test_its_example_says_what_the_model_says(row, bundle, model, tmp_path):
    picture = drawn(tmp_path / "picture.png")
    check_that_it_shows(model, picture, tmp_path / "other.png")
    agree(run_example(row.name, bundle, picture), twins(model, picture))


def test_triton_serves_it_or_the_others_are_named(row, bundle, tmp_path):
    if row.triton:
        folder = write_triton(bundle, tmp_path, notify=lambda message: None)
        assert f'backend: "{row.triton}"' in (folder / "config.pbtxt").read_text()
    else:
        with pytest.raises(UsageError, match="export with --format onnxruntime or openvino or tensorrt"):
            write_triton(bundle, tmp_path / "models")
        assert run(["export", "trades-s3", "-f", row.name, "--triton", str(tmp_path), "-o", str(tmp_path)]) == 2
        assert not list(tmp_path.iterdir())


# -- the table ---------------------------------------------------------------------------------------------------


def test_the_table_is_read_without_pytorch():
    script = "import sys, zoo.cli.options as o; print(o.engine_names('onnx,open'), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['onnx,openvino'] False"


def test_a_shell_completes_engines():
    assert {one.name for one in ENGINES} <= set(engine_names(""))
    assert engine_names("tens") == ["tensorrt", "tensorrt-rtx"]
    assert engine_names("onnx,tr") == ["onnx,trt"]


def test_no_two_engines_share_a_name_or_a_file_format():
    called = [name for one in ENGINES for name in (one.name, *one.aliases)]
    assert len(called) == len(set(called))
    assert len({one.file_format for one in ENGINES}) == len(ENGINES)


def test_doctor_lists_every_engine_and_its_packages(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))  # it reads all that is cached
    run(["doctor", "--json", "-q"])
    report = json.loads(capsys.readouterr().out)
    for one in ENGINES:
        assert report["engines"][one.package].keys() in ({"works", "on"}, {"works", "why"})
        assert set(one.tools) <= report["packages"].keys()


@pytest.fixture(params=NAMES)
def absent(request, monkeypatch) -> Backend:
    """The row of an engine whose packages cannot be imported; no model is loaded, no data read."""
    engine = backend(request.param)
    packages = (engine.package, *engine.converters)
    for module in {*packages, *(name for name in sys.modules if name.partition(".")[0] in packages)}:
        monkeypatch.setitem(sys.modules, module, None)

    def too_late(*_, **__):
        pytest.fail("a model was loaded or data read before the engine was refused")

    for place in (
        "export.exporter.choose_level",
        "export.verify.choose_level",
        "weights.load.read_tensors",
        "weights.tensors.read_tensors",
    ):
        monkeypatch.setattr(f"zoo.{place}", too_late)
    return engine


@pytest.mark.parametrize(
    "verb",
    [
        ("pick", "--flops", "15M", "--dry-run", "--export"),
        ("pick", "--flops", "15M", "--export"),
        ("export", "trades-s3", "-f"),
        ("export", "trades-s3", "--precision", "PRECISIONS", "-f"),
        ("bench", "trades-s3", "--peers", "none", "-f"),
    ],
    ids=" ".join,
)
def test_an_engine_that_is_not_installed_is_refused_before_anything_is_done(
    verb, absent, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    verb = [one.replace("PRECISIONS", ",".join(absent.precisions)) for one in verb]
    assert run([*verb, absent.aliases[-1], "--offline"]) == MissingDependency.exit_code
    assert f"{absent.title} is not installed" in (error := capsys.readouterr().err)
    assert f'pip install "{absent.requires}"' in error


@pytest.mark.parametrize("verb", [("pick", "--flops", "15M", "--dry-run", "--export"), ("export", "trades-s3", "-f")])
def test_an_unknown_engine_is_refused_first(verb, absent, capsys):
    assert run([*verb, f"{absent.name}x", "--offline"]) == UsageError.exit_code
    assert f"did you mean '{absent.name}'" in capsys.readouterr().err


def test_without_the_package_every_use_says_what_to_install(absent, model, tmp_path):
    module, install = absent.load_module(), re.escape(f'pip install "{absent.requires}"')
    order = Order(model=model, graph=tmp_path / "model.onnx", precision="fp32", batches=(1,))
    uses = [lambda: absent.require(), module.runtime, lambda: module.load(tmp_path / "model")]
    uses.append(lambda: export_model("trades-s3", format=absent.name, out=tmp_path))
    if absent.name != "onnxruntime":  # whose build leaves nothing to do
        uses.append(lambda: module.build(order, tmp_path))
    for use in uses:
        with pytest.raises(MissingDependency, match=install):
            use()


@pytest.mark.parametrize("engine", [one for one in ENGINES if one.converters], ids=lambda one: one.name)
def test_converters_are_needed_to_build_and_not_to_run(engine, monkeypatch):
    try:
        engine.require(build=True)
    except MissingDependency as error:
        pytest.skip(str(error))
    monkeypatch.setitem(sys.modules, engine.converters[-1], None)
    engine.require()
    with pytest.raises(MissingDependency, match=f"no package '{engine.converters[-1]}'"):
        engine.require(build=True)


def test_a_bundle_whose_engine_is_not_installed_is_refused_before_its_model_is_loaded(absent, tmp_path, monkeypatch):
    manifest = type("Manifest", (), {"engine": absent.name})
    for module in ("verify", "bench.entrants"):
        monkeypatch.setattr(f"zoo.export.{module}.read_bundle", lambda folder, **_: manifest)
    terms = {"engine": "onnx", "device": None, "offline": True, "notify": print, "terms": {}}
    with pytest.raises(MissingDependency, match=f"{absent.title} is not installed"):
        verify_bundle(tmp_path)
    with pytest.raises(MissingDependency, match=f"{absent.title} is not installed"):
        list(entrants.entrants([tmp_path], (), tmp_path, **terms))
