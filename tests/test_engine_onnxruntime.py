"""ONNX Runtime's providers and session options, its packages, and the arithmetic that its int8 answers depend on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import onnx
import onnxruntime as ort
import pytest
import torch
from exported import bundle_of
from test_export import SMALL, images, model_of

from zoo.cli.app import run
from zoo.export import read_bundle, verify_bundle
from zoo.export.bench.entrants import entrants
from zoo.export.bundle.folder import write_sums
from zoo.export.bundle.manifest import Calibration, Report, read_report
from zoo.export.bundle.source import Known
from zoo.export.engines import backend, onnxruntime
from zoo.export.engines.options import options_of, reloading
from zoo.export.runtimes import onnxruntime as running
from zoo.export.triton import write_triton
from zoo.models import Classifier
from zoo.system import fingerprint
from zoo.system.errors import IntegrityError, MissingDependency, UsageError, WrongDevice
from zoo.system.toolchain import clash, toolchain, writers

CUDA = "CUDAExecutionProvider"
OPTIONS = {"threads": "2", "graph_optimization": "basic", "config.session.disable_prepacking": "1"}


@pytest.fixture(scope="module")
def model() -> Classifier:
    return model_of(SMALL)


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory) -> Path:
    """In int8, with session options of its user's."""
    return int8_bundle(model, tmp_path_factory.mktemp("bundle"), verify="parity", engine_options=OPTIONS)


def int8_bundle(model: Classifier, out: Path, **options) -> Path:
    facts = {"indices_sha256": "0" * 64, "images_sha256": "0" * 64, "method": "minmax"}
    calibrated = images(32, seed=1), Calibration(dataset="noise", split="train", n=32, **facts)
    options |= {"precision": "int8", "batches": (1, 8)}
    return bundle_of(model, Known("small", "small"), out=out, calibrated=calibrated, **options)


@pytest.fixture
def gpu(monkeypatch) -> None:
    """A machine whose driver offers a GPU, so that a provider is asked for in earnest."""
    monkeypatch.setattr(running, "gpus", lambda: 1)
    monkeypatch.delenv(running.TF32, raising=False)  # which the TensorRT providers set for the process


@pytest.fixture
def sessions(monkeypatch) -> list[SimpleNamespace]:
    """The sessions that were asked for. They compute on the CPU, and say that they took what they were asked for."""
    real, made = ort.InferenceSession, []

    class Session:
        def __init__(self, model, options, *, providers, enable_fallback):
            made.append(SimpleNamespace(options=options, providers=providers, enable_fallback=enable_fallback))
            self.session, self.took = real(model, providers=["CPUExecutionProvider"]), dict(providers)

        def get_providers(self):
            return list(self.took)

        def get_provider_options(self):
            return self.took

        def __getattr__(self, name):
            return getattr(self.session, name)

    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [*running.PROVIDERS.values()])
    return made


# -- session options -------------------------------------------------------------------------------------------------


def test_the_session_has_the_options_of_its_user(bundle, sessions):
    options = {"graph_optimization": "disabled", "config": {"session.x64quantprecision": "1"}}
    with onnxruntime.load(bundle / "model.onnx", threads=3, **options) as engine:
        facts = engine.describe()
    (made,) = sessions
    assert made.options.intra_op_num_threads == facts["threads"] == 3
    assert made.options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert made.options.get_session_config_entry("session.x64quantprecision") == "1"
    assert (facts["graph_optimization"], facts["config"]) == ("disabled", {"session.x64quantprecision": "1"})


def test_what_was_attacked_is_what_the_user_runs(bundle, model, tmp_path):
    manifest, report = read_bundle(bundle), read_report(bundle / "reports" / "verify.json", Report)
    settings = {"threads": 2, "graph_optimization": "basic", "config": {"session.disable_prepacking": "1"}}
    assert manifest.artifact.options == settings
    assert settings.items() <= report.engine.items()
    assert settings.items() <= manifest.conditions.items()
    assert "threads=2" in (readme := (bundle / "README.md").read_text())
    assert "graph_optimization=basic, session.disable_prepacking=1.\n" in readme
    with pytest.warns(UserWarning, match="verified with session options of its own"):
        write_triton(bundle, tmp_path)
    again = verify_bundle(bundle, level="parity", model=model, engine_options={"graph_optimization": "all"})
    assert (settings | {"graph_optimization": "all"}).items() <= again.engine.items()
    more = {"config.session.set_denormal_as_zero": "1", "threads": "1"}
    there = verify_bundle(bundle, level="parity", model=model, device="local:", engine_options=more).engine["remote"]
    entries = {"session.disable_prepacking": "1", "session.set_denormal_as_zero": "1"}
    assert (settings | {"threads": 1, "config": entries}).items() <= there.items()


def test_a_bench_times_what_was_attacked_on_its_own_number_of_threads(bundle, tmp_path):
    known = {"engine": "onnx", "device": None, "offline": True, "notify": print, "terms": {"threads": 1}}
    (one,) = entrants([bundle], (), tmp_path, **known)
    options = {"graph_optimization": "basic", "config": {"session.disable_prepacking": "1"}}
    assert (one.job["options"], one.job["threads"]) == (options, 1)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("provider=tensort", "'tensorrt-rtx', not 'tensort'; did you mean 'tensorrt'"),
        ("threads=0", "greater than or equal to 1, not '0'"),
        ("graph_optimization=everything", "'disabled', 'basic', 'extended' or 'all', not 'everything'"),
        (
            "config.session.disable_prepack=1",
            "'session.disable_prepack'; did you mean 'session.disable_prepacking'",
        ),
        ("config.session.disable_prepacking=yes", "'0' or '1', not 'yes'"),
        ("config=1", "option 'config'"),
        ("provider_options.use_tf32=1", "the CPU takes no provider_options: name a provider"),
    ],
)
@pytest.mark.parametrize("verb", ["export", "verify"])
def test_options_that_the_runtime_would_ignore_or_reject_are_refused(verb, option, told, bundle, capsys, tmp_path):
    subject = str(bundle) if verb == "verify" else "trades-s3"
    assert run([verb, subject, "-O", option, "--offline"]) == UsageError.exit_code
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


# -- providers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "tensorrt-rtx"])
def test_a_provider_without_a_gpu_is_refused_before_a_model_is_loaded(provider, bundle, model, capsys, monkeypatch):
    monkeypatch.setattr(running, "gpus", lambda: 0)
    monkeypatch.setattr("zoo.weights.load.read_tensors", lambda *_, **__: pytest.fail("a model was loaded"))
    assert run(["export", "trades-s3", "-O", f"provider={provider}", "--offline"]) == WrongDevice.exit_code
    assert f"provider={provider} needs an NVIDIA GPU" in capsys.readouterr().err
    for place in ({}, {"device": "local:"}):
        if place:  # another process, whose driver is asked in earnest
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        with pytest.raises(WrongDevice, match="needs an NVIDIA GPU"):
            verify_bundle(bundle, level="parity", model=model, engine_options={"provider": provider}, **place)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here its libraries may be found")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "tensorrt-rtx"])
def test_a_provider_whose_libraries_are_missing_is_refused(provider, bundle, gpu, capfd):
    with pytest.raises(MissingDependency, match=running.PROVIDERS[provider]) as caught:
        onnxruntime.load(bundle / "model.onnx", provider=provider)
    assert "install" in str(caught.value) or "it needs" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""


def test_a_provider_that_falls_back_is_refused(bundle, gpu, sessions, monkeypatch):
    class Meek(ort.InferenceSession):
        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(ort, "InferenceSession", Meek)
    with pytest.raises(MissingDependency, match=f"'{CUDA}' does not start here, or"):
        onnxruntime.load(bundle / "model.onnx", provider="cuda")


@pytest.mark.parametrize("tf32", [None, "1"])
def test_a_provider_gets_the_whole_graph_and_tf32_only_if_asked_for(bundle, gpu, sessions, tf32):
    options = {"provider": "cuda"} if tf32 is None else {"provider": "cuda", "provider_options": {"use_tf32": tf32}}
    with onnxruntime.load(bundle / "model.onnx", **options) as engine:
        facts = engine.describe()
    (made,) = sessions
    assert made.providers == [(CUDA, {"use_tf32": tf32 or "0"})]
    assert made.enable_fallback == 0
    assert made.options.get_session_config_entry(running.STRICT) == "1"
    assert (facts["device"], facts["providers"], facts["tf32"]) == ("cuda", [CUDA], tf32 == "1")
    assert facts["provider_options"] == {"use_tf32": tf32 or "0"}


@pytest.mark.parametrize(("override", "tf32"), [("0", False), ("1", True)])
def test_tf32_is_recorded_as_off_where_a_variable_switches_it_off(bundle, gpu, sessions, monkeypatch, override, tf32):
    monkeypatch.setenv(running.TF32, override)
    with onnxruntime.load(bundle / "model.onnx", provider="cuda", provider_options={"use_tf32": "1"}) as engine:
        assert engine.describe()["tf32"] == tf32


def test_the_graph_of_int8_is_symmetric_where_tensorrt_runs_it(model, tmp_path, monkeypatch):
    load = onnxruntime.load
    monkeypatch.setattr(onnxruntime, "load", lambda path, **options: load(path))
    folder = int8_bundle(model, tmp_path, verify="none", engine_options={"provider": "tensorrt"})
    graph = onnx.load(str(folder / "model.onnx")).graph
    held = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    zeros = [held[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert zeros
    assert not any(zero.any() for zero in zeros)


def test_options_of_a_provider_go_with_it():
    recorded = {"provider": "cuda", "provider_options": {"use_tf32": "1"}, "threads": 2}
    assert reloading(backend("onnx"), recorded, {"provider": "cpu"}) == {"provider": "cpu", "threads": 2}


# -- packages --------------------------------------------------------------------------------------------------------


@pytest.fixture
def both(tmp_path, monkeypatch) -> Path:
    """A folder in which onnxruntime and onnxruntime-gpu were installed one after the other; it cannot be imported."""
    (tmp_path / "onnxruntime" / "capi").mkdir(parents=True)
    (tmp_path / "onnxruntime" / "__init__.py").write_text("raise ImportError('undefined symbol')")
    for name, version in (("onnxruntime", "1.32.0"), ("onnxruntime_gpu", "1.31.1"), ("onnxruntime_genai", "0.9")):
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name.replace('_', '-')}\nVersion: {version}\n")
        folder = name if name == "onnxruntime_genai" else "onnxruntime"
        (info / "RECORD").write_text(f"{folder}/__init__.py,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "onnxruntime"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


@pytest.mark.parametrize("force", ["onnxruntime", "onnxruntime-gpu"])
def test_both_packages_in_one_folder_are_told_apart(force, both, capsys):
    note = f"package_name = '{force}'\n__version__ = '1.0'\n"
    (both / "onnxruntime" / "capi" / "build_and_package_info.py").write_text(note)
    told = "onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1 write into the same folder"
    assert f"{told}, and the files of {force} are in force" in clash()
    assert run(["export", "trades-s3", "--offline"]) == MissingDependency.exit_code
    error = capsys.readouterr().err
    assert told in error
    assert "run 'pip uninstall onnxruntime onnxruntime-gpu'" in error


def test_doctor_finds_both_packages_in_one_folder(both, capsys, monkeypatch):
    monkeypatch.setattr("zoo.cli.doctor._engine", lambda *_: {"works": False, "why": "not asked here"})
    run(["doctor", "-q"])
    assert f"CLASH: {clash()}" in " ".join(capsys.readouterr().out.split())


def test_the_toolchain_names_the_package_that_is_imported(both):
    assert writers() == {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}
    (both / "onnxruntime-1.32.0.dist-info" / "RECORD").write_text("")
    assert clash() is None
    assert toolchain()["onnxruntime-gpu"] == "1.31.1"
    assert "onnxruntime" not in toolchain()


# -- arithmetic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "int8"),
    [
        ("x86_64", "flags : fpu avx avx2", "x86-64 without VNNI"),
        ("x86_64", "flags : avx2 avx_vnni", "x86-64 with VNNI"),
        ("AMD64", "flags : avx512f avx512_vnni", "x86-64 with VNNI"),
        ("aarch64", "Features : fp asimd", "Arm without dot product"),
        ("aarch64", "Features : fp asimd asimddp i8mm", "Arm with dot product"),
        ("riscv64", "isa : rv64imafdc", "unknown"),
        ("x86_64", "", "unknown"),
    ],
)
def test_linux_tells_how_int8_is_added_up(machine, cpuinfo, int8, monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{cpuinfo}\n")
    monkeypatch.setattr(fingerprint, "CPUINFO", str(tmp_path / "cpuinfo"))
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    assert fingerprint.arithmetic()["int8"] == toolchain()["int8"] == int8
    assert (fingerprint.arithmetic()["isa"] == "unknown") == (fingerprint.isa() == "")


@pytest.mark.parametrize(
    ("machine", "said", "isa", "int8"),
    [
        (
            "x86_64",
            "machdep.cpu.features: FPU SSE4.2 AVX1.0; machdep.cpu.leaf7_features: AVX2 AVX512F AVX512VNNI",
            "sse4_2 avx avx2 avx512f avx512_vnni",
            "x86-64 with VNNI",
        ),
        (
            "arm64",
            "machdep.cpu.brand_string: Apple M2; hw.optional.AdvSIMD: 1; hw.optional.arm.AdvSIMD: 1; "
            "hw.optional.arm.FEAT_DotProd: 1; hw.optional.arm.FEAT_SME: 0",
            "asimd asimddp",
            "Arm with dot product",
        ),
        ("arm64", "", "unknown", "unknown"),
    ],
)
def test_macos_tells_how_int8_is_added_up(machine, said, isa, int8, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr(fingerprint, "_output", lambda *command: said)
    assert fingerprint.arithmetic() == {"machine": machine, "isa": isa, "int8": int8}


@pytest.mark.parametrize(("machine", "int8"), [("AMD64", "unknown"), ("ARM64", "Arm with dot product")])
def test_windows_does_not_say_whether_there_is_vnni(machine, int8, monkeypatch):
    kernel = SimpleNamespace(
        IsProcessorFeaturePresent=lambda number: number in ((43,) if machine == "ARM64" else (40,))
    )
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("platform.system", lambda: "Windows")
    monkeypatch.setattr(fingerprint.ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    assert fingerprint.arithmetic()["int8"] == int8


@pytest.fixture
def elsewhere(bundle, tmp_path):
    """A copy of the bundle that was attacked where int8 is computed in this way; None: it does not say how."""

    def copy(int8: str | None, precision: str = "int8") -> Path:
        place = tmp_path / str(int8)
        for part in [path for path in bundle.rglob("*") if path.is_file()]:
            (place / part.relative_to(bundle)).parent.mkdir(parents=True, exist_ok=True)
            (place / part.relative_to(bundle)).write_bytes(part.read_bytes())
        for name in ("manifest.json", "reports/verify.json"):
            facts = json.loads((place / name).read_text())
            held = facts["conditions" if name == "manifest.json" else "toolchain"]
            held["int8"] = int8
            if int8 is None:
                facts.pop("conditions", None)
                del held["int8"]
            (place / name).write_text(json.dumps(facts))
        write_sums(place)
        return place

    return copy


def test_int8_of_another_arithmetic_is_verified_anew_and_said(elsewhere, model):
    here = fingerprint.arithmetic()["int8"]
    folder, told = elsewhere("x86-64 without VNNI" if here != "x86-64 without VNNI" else "unknown"), []
    report = verify_bundle(folder, level="parity", model=model, write=True, notify=told.append)
    (line,) = told
    assert f"int8 is computed otherwise now ({here}) than where this bundle was checked before (" in line
    assert report.toolchain["int8"] == here
    assert read_bundle(folder).conditions["int8"] == here
    verify_bundle(folder, level="parity", model=model, notify=told.append)
    assert len(told) == 1


def test_arithmetic_that_is_not_known_may_be_another(elsewhere, model):
    told = []
    verify_bundle(elsewhere("unknown"), level="parity", model=model, notify=told.append)
    assert "int8 may be computed otherwise now" in told[0]


def test_a_limit_of_the_instruction_set_is_recorded(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert fingerprint.arithmetic()["int8"].endswith("(ONEDNN_MAX_CPU_ISA=AVX2)")


def test_other_options_are_for_a_look_and_not_stored(elsewhere, model):
    with pytest.raises(UsageError, match="with the engine's own options: leave -O out"):
        verify_bundle(elsewhere(None), model=model, engine_options={"threads": 1}, write=True)


def test_a_bundle_that_nothing_was_asked_of_names_no_missing_data_and_no_conditions(elsewhere, model):
    folder = elsewhere(None)
    assert verify_bundle(folder, level="none", model=model, write=True).ran is False
    manifest = read_bundle(folder)
    assert "only level 'none' was asked for" in manifest.robustness
    assert manifest.conditions == {}


@pytest.mark.parametrize("twice", [{"config": None}, {"config": "x"}, {1: 2}])
def test_options_of_the_wrong_shape_are_refused(twice):
    with pytest.raises(UsageError):
        options_of(backend("onnx"), twice | {"config.session.disable_prepacking": "1"})


def test_bundles_of_before_do_not_say_how_int8_was_computed(elsewhere, model):
    told = []
    assert verify_bundle(elsewhere(None), level="parity", model=model, notify=told.append).failed is None
    assert told == []


def test_conditions_that_the_reports_contradict_are_refused(elsewhere, model):
    folder = elsewhere("x86-64 without VNNI")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["conditions"]["threads"] = 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    write_sums(folder)
    with pytest.raises(IntegrityError, match="conditions"):
        verify_bundle(folder, level="parity", model=model)
