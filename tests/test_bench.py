from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_registry import model, registry_data, result, timed

from zoo.cli.app import run
from zoo.cli.bench import _text
from zoo.export import export_model, read_bundle, verify_bundle
from zoo.export.bench import machine, stopwatch
from zoo.export.bench.bench import bench, time_batch
from zoo.export.bench.contestant import PEERS, Contestant
from zoo.export.bench.entrants import as_bundle, entrants
from zoo.export.bench.times import Bench, Timed, write_to_bundle, write_to_registry
from zoo.models import build
from zoo.registry.file import info
from zoo.registry.write import write_aliases, write_latency
from zoo.specs import parse_spec
from zoo.system import device, fingerprint
from zoo.system.device import cpu_id, gpu_id, is_this, remote_id
from zoo.system.errors import IntegrityError, MissingDependency, UnknownModel, UsageError, ZooError
from zoo.system.files import pretty, sha256_file
from zoo.weights.load import find
from zoo.weights.release import candidate, release
from zoo.weights.tensors import save_weights

TERMS = {"threads": 1, "cpus": None, "batches": [1, 2]}


def quietly(*arguments: str) -> tuple[int, str]:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
        code = run(arguments)
    return code, out.getvalue()


def release_of(name: str, home: Path, **right: int) -> dict[str, Any]:
    """An entry whose weights are in the folder ``home``."""
    entry = model(8)
    path = home / entry["weights"]["file"]
    torch.manual_seed(0)
    save_weights(build(parse_spec(entry["spec"])).state_dict(), path)
    entry["weights"] |= {"size": path.stat().st_size, "sha256": sha256_file(path)}
    return entry | {"results": {key: result(count, sha256=entry["weights"]["sha256"]) for key, count in right.items()}}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    """A registry, in a folder with its weights, that has one model: "small"."""
    home = tmp_path_factory.mktemp("zoo")
    (home / "registry.json").write_text(pretty(registry_data({"small": release_of("small", home, pgd20=4000)})))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_REGISTRY", str(home / "registry.json"))
        patch.setenv("ZOO_CACHE", str(home / "cache"))
        patch.delenv("ZOO_DATA", raising=False)  # it would be decoded for this cache
        patch.setenv("COLUMNS", "80")
        yield home


@pytest.fixture(scope="module")
def bundle(place) -> Path:
    return export_model("small", out=place / "bundles", verify="none", offline=True).folder


@pytest.fixture(scope="module")
def benched(place, bundle) -> Bench:
    """A bench of "small" in real processes, stored in a copy of the bundle and in the registry."""
    copy = shutil.copytree(bundle, place / "benched")
    code, out = quietly(
        *("bench", str(copy), "--batch", "2,1", "--seconds", "0.05", "--peers", "pytorch"),
        *("--write", "--json", "--offline"),
    )
    assert code == 0
    return Bench.model_validate_json(out)


@pytest.fixture
def fresh(place) -> Iterator[Path]:
    """The registry's file, put back afterwards."""
    path = place / "registry.json"
    before = path.read_text()
    yield path
    path.write_text(before)


# -- a bench -------------------------------------------------------------------------------------------------------


def test_engine_and_peer_are_timed_side_by_side(benched, bundle):
    engine, peer = benched.engines
    assert (engine.engine, peer.engine) == ("onnxruntime-fp32", "pytorch-fp32")
    assert engine.artifact_sha256 == read_bundle(bundle).artifact.sha256
    assert peer.artifact_sha256 is None
    assert engine.runtime.startswith("onnxruntime ")
    assert peer.runtime == f"pytorch {torch.__version__}"
    for one in benched.engines:
        assert (one.model, one.source, one.device, one.why) == ("small", "small", cpu_id(1), None)
        assert one.ready_s > 0
        assert [times.batch for times in one.times] == [1, 2]
        for times in one.times:
            assert 0 < times.p50_ms <= times.p95_ms <= times.p99_ms
            assert times.calls >= 1
            assert times.images_per_s > 0
            assert one.memory_mb(times) >= 0


def test_a_bench_tells_the_terms_and_what_the_machine_did(benched):
    assert (benched.threads, benched.seconds) == (1, 0.05)
    if hasattr(os, "sched_getaffinity"):
        assert benched.cpus == (max(os.sched_getaffinity(0)),)
        assert 0 <= benched.machine["others"] <= 1
    assert benched.machine["load_before"] >= 0
    assert benched.toolchain["cpu"]


def test_the_bundle_has_the_report_and_stays_whole(benched, place, bundle):
    folder = place / "benched"
    assert Bench.model_validate_json((folder / "reports" / "bench.json").read_bytes()) == benched
    assert read_bundle(folder) == read_bundle(bundle)
    assert verify_bundle(folder, level="none").reached == "none"


def test_the_registry_has_every_engine_of_this_device(benched):
    stored = info("small").latency[cpu_id(1)]
    assert set(stored) == {"onnxruntime-fp32", "pytorch-fp32"}
    engine = benched.engines[0]
    for times in engine.times:
        kept = stored["onnxruntime-fp32"][str(times.batch)]
        assert (kept.p50_ms, kept.p99_ms, kept.calls) == (times.p50_ms, times.p99_ms, times.calls)
        assert kept.memory_mb == engine.memory_mb(times)
        assert (kept.runtime, kept.measured_at) == (engine.runtime, benched.created)
        assert kept.busy is bool(benched.warnings)


def test_pick_and_show_tell_the_latency_of_this_machine(benched):
    code, out = quietly("pick", "--latency-ms", "1e6", "--device", "this")
    assert code == 0
    assert out.startswith("model ")
    best = min(one.times[0].p50_ms for one in benched.engines)
    assert re.search(rf"small +\S+ +\S+-fp32 on {cpu_id(1)}", out)
    code, out = quietly("pick", "--latency-ms", str(best / 2), "--device", "this", "--json")
    assert code == 3
    assert "the fastest is small with" in json.loads(out)["error"]["message"]
    code, out = quietly("show", "small")
    assert f"Latency on {cpu_id(1)}:" in out
    assert re.search(r"onnxruntime-fp32 +2 ", out)


def test_the_table_has_a_row_for_each_engine_and_batch_and_fits_80_columns(benched):
    missing = Timed(
        **{"model": "small", "source": "small", "tensors_sha256": benched.engines[0].tensors_sha256},
        **{"engine": "aotinductor-fp32", "why": "InvalidCxxCompiler: No working C++ compiler found"},
    )
    text = _text(benched.model_copy(update={"engines": (*benched.engines, missing)}))
    assert [line.split()[:2] for line in text.splitlines()[4:8]] == [
        *(["onnxruntime-fp32", "1"], ["onnxruntime-fp32", "2"], ["pytorch-fp32", "1"], ["pytorch-fp32", "2"])
    ]
    assert "aotinductor-fp32 was not timed: InvalidCxxCompiler" in text
    assert cpu_id(1) in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.slow
def test_every_peer_computes_in_real_processes(bundle):
    report = bench([bundle], batches=(1, 2), seconds=0.05)
    assert [one.engine for one in report.engines[1:]] == [f"{peer}-fp32" for peer in PEERS]
    assert [(one.why, len(one.times)) for one in report.engines] == [(None, 2)] * 4


# -- rounds --------------------------------------------------------------------------------------------------------


class Paced:
    """A contestant whose calls take ``ms`` each, by its own account."""

    def __init__(self, ms: float, order: list[Any]) -> None:
        self.ms, self.order, self.why, self.times, self.peaks_mb = ms, order, None, [], {4: 7.0}

    def run(self, batch: int, seconds: float) -> list[float]:
        self.order.append(self)
        return [self.ms] * max(1, round(1e3 * seconds / self.ms))


def test_rounds_alternate_and_the_slow_stop_when_their_time_is_used_up():
    order: list[Any] = []
    fast, slow = Paced(1.0, order), Paced(400.0, order)
    time_batch([fast, slow], batch=4, seconds=1.0)
    assert [one is fast for one in order[:6]] == [True, False] * 3
    assert (order.count(fast), order.count(slow)) == (10, 3)
    (times,) = fast.times
    assert (times.batch, times.calls, times.p50_ms, times.images_per_s, times.peak_mb) == (4, 1000, 1.0, 4000.0, 7.0)
    assert slow.times[0].calls == 3


def test_who_drops_out_is_left_alone_and_the_others_go_on():
    order: list[Any] = []
    gone, there = Paced(1.0, order), Paced(1.0, order)
    gone.why = "no compiler"
    time_batch([gone, there], batch=4, seconds=0.1)
    assert gone not in order
    assert not gone.times
    assert len(there.times) == 1


def test_the_first_call_is_not_timed():
    calls = []
    told = stopwatch.timed(lambda: calls.append(1), seconds=0.0)
    assert (len(calls), len(told["ms"])) == (2, 1)
    assert told["cpu_s"] >= 0


def test_memory_is_of_this_process():
    before = stopwatch.peak_mb()
    held = np.ones(40_000_000, np.uint8)
    assert stopwatch.peak_mb() >= before
    assert 1 < before < 1e6
    del held


# -- a contestant's process ----------------------------------------------------------------------------------------


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """A contestant whose process runs ``script`` in place of the stopwatch."""
    made = []

    def contestant(kind: str, script: str) -> Contestant:
        monkeypatch.setattr("zoo.export.bench.contestant.COMMAND", (sys.executable, "-c", script))
        made.append(Contestant({"engine": f"{kind}-fp32", "model": "small"}, {"kind": kind, **TERMS}))
        return made[-1]

    yield contestant
    for one in made:
        one.close()
        assert one.process.poll() is not None


READY = 'print(\'{"peaks_mb": [1, 2], "device": "d"}\', flush=True);'


def test_a_peer_that_dies_is_listed_with_its_last_words(scripted, tmp_path):
    script = f"import sys; input(); {READY} input(); sys.exit('no memory left')"
    peer = scripted("torch.compile", script)
    peer.start(tmp_path / "log")
    assert (peer.why, peer.peaks_mb, peer.facts["device"]) == (None, {1: 1, 2: 2}, "d")
    assert peer.run(1, 0.1) == []
    assert peer.why == "its process ended: exit code 1, after 'no memory left'"


@pytest.mark.parametrize(
    ("kind", "error", "told"),
    [
        ("MissingDependency", MissingDependency, "^OpenVINO is not installed$"),
        ("RuntimeError", ZooError, "^engine-fp32 of small failed: RuntimeError: OpenVINO is not installed$"),
    ],
)
def test_an_engine_that_fails_is_an_error_of_its_own_class(scripted, tmp_path, kind, error, told):
    answer = json.dumps({"error": {"kind": kind, "message": "OpenVINO is not installed"}})
    with pytest.raises(error, match=told):
        scripted("engine", f"input(); print({answer!r})").start(tmp_path / "log")
    peer = scripted("pytorch", f"input(); print({answer!r})")
    peer.start(tmp_path / "log")
    assert peer.why == f"{kind}: OpenVINO is not installed"


def test_threads_are_set_before_the_process_starts(scripted, tmp_path):
    script = f"import json, os; input(); {READY} input(); ms = [int(os.environ['OMP_NUM_THREADS'])];"
    script += "print(json.dumps({'ms': ms, 'cpu_s': 1}))"
    one = scripted("pytorch", script)
    one.job["threads"] = 3
    one.start(tmp_path / "log")
    assert one.run(1, 0.1) == [3]
    assert one.cpu_s == 1


# -- who takes part ------------------------------------------------------------------------------------------------


def taking_part(subjects: list[Any], folder: Path, peers: Any = PEERS) -> list[Contestant]:
    options = {"engine": "onnx", "device": None, "offline": True, "notify": lambda message: None, "terms": {**TERMS}}
    return list(entrants(subjects, peers, folder, **options))


def test_a_name_is_exported_and_its_peers_get_the_float_model(place, tmp_path):
    engine, *peers = taking_part(["small"], tmp_path)
    assert Path(engine.job["file"]).is_file()
    assert [peer.job["kind"] for peer in peers] == list(PEERS)
    assert {peer.job["device"] for peer in peers} == {"cpu"}
    assert all((Path(peer.job["folder"]) / "model.safetensors").is_file() for peer in peers)
    assert sha256_file(Path(peers[0].job["folder"]) / "model.safetensors") == info("small").weights.sha256


def test_a_model_that_is_asked_for_by_an_alias_is_timed_and_kept_under_its_own_name(benched, fresh, tmp_path):
    write_aliases("small", ["wee"])
    (engine,) = taking_part(["wee"], tmp_path, [])
    assert (engine.facts["model"], engine.facts["source"]) == ("small", "small")
    assert engine.facts["file_sha256"] == info("small").weights.sha256
    older = tuple(one.model_copy(update={"source": "wee", "device": "older"}) for one in benched.engines)
    assert write_to_registry(benched.model_copy(update={"engines": older})) == ["small"]
    assert info("small").latency["older"].keys() == {"onnxruntime-fp32", "pytorch-fp32"}


def test_where_the_float_model_is_missing_peers_are_listed_with_the_reason(bundle, place, fresh, tmp_path):
    fresh.write_text(pretty(registry_data({})))
    engine, peer = taking_part([bundle], tmp_path, ["pytorch"])
    assert engine.why is None
    assert peer.why.startswith("the float model cannot be had: no model is called 'small'")


def test_another_model_of_the_same_name_is_no_peer(bundle, place, fresh, tmp_path):
    torch.manual_seed(1)
    other = model(12)
    save_weights(build(parse_spec(other["spec"])).state_dict(), place / "w12.safetensors")
    path = place / "w12.safetensors"
    other["weights"] |= {"size": path.stat().st_size, "sha256": sha256_file(path)}
    fresh.write_text(pretty(registry_data({"small": other})))
    _, peer = taking_part([bundle], tmp_path, ["pytorch"])
    assert peer.why == "the source 'small' is not the model that the bundle was made from"


def test_the_same_engine_twice_is_refused(bundle, tmp_path):
    with pytest.raises(UsageError, match="two subjects are onnxruntime-fp32 of small"):
        taking_part([bundle, shutil.copytree(bundle, tmp_path / "again")], tmp_path, [])


def test_a_folder_with_the_name_of_a_model_is_not_taken_for_a_bundle(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    assert as_bundle("small") is None
    assert as_bundle("local-dir:runs/small/model") is None
    assert as_bundle("no/bundle") == Path("no/bundle")
    shutil.copytree(bundle, tmp_path / "small", dirs_exist_ok=True)
    assert as_bundle("small") == Path("small")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["small", "--threads", "0"], 2, "a bench takes 1 to "),
        (["small", "--threads", "4096"], 2, "one for each processor that it may use, not 4096"),
        (["small", "--seconds", "0"], 2, "seconds above 0, not 0"),
        (["small", "--peers", "tvm"], 2, "peers are pytorch, torch.compile, aotinductor, not 'tvm'"),
        (["small", "--batch", "0"], 2, "--batch takes positive integers"),
        (["local-dir:somewhere", "--write"], 2, "--write stores in bundles and registry entries"),
        (["no/such/bundle"], 2, "'no/such/bundle' is not a bundle"),
        (["smal"], 3, "no model is called 'smal'; did you mean 'small'"),
        ([], 2, "Missing argument 'NAME|BUNDLE"),
    ],
)
def test_what_cannot_be_timed_is_refused_before_anything_starts(place, arguments, code, told):
    found, out = quietly("bench", *arguments, "--json", "--offline")
    error = json.loads(out)["error"]
    assert (found, error["exit_code"]) == (code, code)
    assert told in error["message"]


def test_engines_are_timed_on_another_device_under_its_own_id(place, bundle, fresh, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    order = ("bench", str(copy), "--batch", "1,2", "--seconds", "0.05", "--device", "local:", "--write", "--json")
    code, out = quietly(*order, "--offline")
    assert code == 0
    (timed,) = Bench.model_validate_json(out).engines  # no peers
    assert timed.device == cpu_id(1)  # it is the same machine
    assert timed.runtime.startswith("onnxruntime ")
    assert [one.batch for one in timed.times] == [1, 2]
    assert all(0 < one.p50_ms <= one.p95_ms <= one.p99_ms and one.calls >= 10 for one in timed.times)
    assert set(info("small").latency[cpu_id(1)]["onnxruntime-fp32"]) == {"1", "2"}
    assert Bench.model_validate_json((copy / "reports" / "bench.json").read_text()).machine == {}


def test_peers_are_not_for_other_devices(bundle):
    with pytest.raises(UsageError, match="ask for none"):
        bench([bundle], device="local:")


def test_a_device_that_tells_of_itself_has_the_id_that_it_would_have_there():
    facts = {"machine": "aarch64", "cpu": "Cortex-A76", "cores": 4, "os": "Linux", "device": "cpu"}
    assert remote_id(facts, 2) == "cortex-a76-4c-neon-linux-2t"
    gpu = {**facts, "device": "cuda", "gpu": "NVIDIA H100 80GB HBM3, 580.1"}
    assert remote_id(gpu, 1) == "nvidia-h100-80gb-hbm3-linux"


# -- where it is kept ----------------------------------------------------------------------------------------------


def test_a_bundle_that_was_not_timed_gets_no_report(benched, bundle, tmp_path):
    other = shutil.copytree(bundle, tmp_path / "other")
    engines = tuple(one.model_copy(update={"artifact_sha256": "0" * 64}) for one in benched.engines)
    with pytest.raises(IntegrityError, match="not a bundle that was timed"):
        write_to_bundle(other, benched.model_copy(update={"engines": engines}))
    assert not (other / "reports" / "bench.json").exists()


def test_times_of_other_weights_do_not_enter_the_registry(benched, fresh):
    before = fresh.read_text()
    engines = tuple(one.model_copy(update={"file_sha256": "0" * 64}) for one in benched.engines)
    assert write_to_registry(benched.model_copy(update={"engines": engines})) == []
    assert fresh.read_text() == before


def test_new_times_replace_those_of_the_same_batch_and_leave_the_rest(fresh):
    sha256 = info("small").weights.sha256
    write_latency("small", sha256, {"phone": {"ort": {"32": timed(9.0), "1": timed(1.0)}, "slow": {"1": timed(5.0)}}})
    results = info("small").results
    write_latency("small", sha256, {"phone": {"ort": {"1": timed(2.0)}}})
    entry = info("small")
    assert {batch: one.p50_ms for batch, one in entry.latency["phone"]["ort"].items()} == {"1": 2.0, "32": 9.0}
    assert list(entry.latency["phone"]["ort"]) == ["1", "32"]
    assert entry.latency["phone"]["slow"]["1"].p50_ms == 5.0
    assert entry.results == results
    with pytest.raises(IntegrityError, match="other weights"):
        write_latency("small", "0" * 64, {"phone": {"ort": {"1": timed(2.0)}}})
    with pytest.raises(UnknownModel):
        write_latency("large", sha256, {})
    with pytest.raises(IntegrityError, match="the median is above"):
        write_latency("small", sha256, {"phone": {"ort": {"1": timed(2.0) | {"p95_ms": 0.0}}}})
    assert info("small") == entry


def test_an_evaluation_that_began_earlier_does_not_undo_a_bench(fresh):
    evaluated = candidate(find("small"))
    write_latency("small", evaluated.sha256, {"phone": {"ort": {"1": timed(1.0)}}})
    release(evaluated, [])
    assert info("small").latency["phone"]["ort"]["1"].p50_ms == 1.0


def test_where_nothing_was_measured_here_pick_says_what_to_run(fresh):
    data = json.loads(fresh.read_text())
    data["models"]["small"]["latency"] = {"phone-1t": {"ort": {"1": timed(1.0)}}}
    fresh.write_text(json.dumps(data))
    code, out = quietly("pick", "--latency-ms", "2", "--device", "this", "--json")
    message = json.loads(out)["error"]["message"]
    assert code == 3
    assert f"no latency was measured on this machine, '{cpu_id(1)}' (measured devices: phone-1t)" in message
    assert "`zoo bench NAME --write`" in message


# -- the device ----------------------------------------------------------------------------------------------------

X86 = "processor : 0\nmodel name\t: Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz\nflags\t\t: fpu {}\n"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("avx avx2 fma", "avx2"),
        ("avx2 avx_vnni", "avx2-vnni"),
        ("avx2 avx512f avx512_vnni amx_tile amx_int8", "avx512-vnni-amx"),
    ],
)
def test_an_id_tells_processor_cores_instructions_system_and_threads(monkeypatch, tmp_path, flags, told):
    (tmp_path / "cpuinfo").write_text(X86.format(flags))
    monkeypatch.setattr(fingerprint, "CPUINFO", str(tmp_path / "cpuinfo"))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert cpu_id(4) == f"intel-xeon-platinum-8370c-16c-{told}-linux-4t"
    assert is_this(cpu_id(1))
    assert not is_this(cpu_id(1).replace("16c", "8c"))


def test_arm_processors_have_neon(monkeypatch):
    monkeypatch.setattr(device, "cpu_name", lambda: "Apple M2")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert cpu_id(1) == "apple-m2-8c-neon-darwin-1t"


@pytest.mark.parametrize(
    ("lscpu", "name"), [("Architecture: aarch64\nModel name: Cortex-A76\n", "cortex-a76"), ("", "aarch64")]
)
def test_a_board_has_one_id_from_near_and_from_far(monkeypatch, tmp_path, lscpu, name):
    (tmp_path / "cpuinfo").write_text("processor : 0\nFeatures : fp asimd asimddp\n")
    monkeypatch.setattr(fingerprint, "CPUINFO", str(tmp_path / "cpuinfo"))
    monkeypatch.setattr(fingerprint, "_output", lambda *command: lscpu if command == ("lscpu",) else "")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    there = remote_id({**fingerprint.fingerprint(), "device": "cpu"}, 1)
    assert there == cpu_id(1) == f"{name}-{os.cpu_count()}c-neon-linux-1t"
    assert is_this(there)


def test_the_gpus_of_this_machine_are_this_machine(monkeypatch, tmp_path):
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:01:00.0" / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 1\n")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    assert not is_this("nvidia-h100-80gb-hbm3-linux")
    monkeypatch.setattr(device, "GPUS", tmp_path)
    assert gpu_id("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3-linux"
    assert is_this("nvidia-h100-80gb-hbm3-linux")
    assert not is_this("nvidia-a100-linux")


# -- was the machine quiet? ----------------------------------------------------------------------------------------


def test_work_of_others_and_of_the_host_is_told(monkeypatch, tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 100 5000 0 0 0 0 0 0\ncpu0 1\n")
    monkeypatch.setattr(machine, "STAT", stat)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr("os.getloadavg", lambda: (3.0, 0.0, 0.0))
    watch = machine.Watch()
    watch.start -= 10  # ten seconds ago: 40 CPU seconds
    second = os.sysconf("SC_CLK_TCK")
    stat.write_text(f"cpu  {100 + 14 * second} 0 {100 + 2 * second} 5000 0 0 0 {4 * second} 0 0\ncpu0 1\n")
    told = watch.seen(own_s=8.0)
    assert told["others"] == pytest.approx(8 / 40, abs=0.02)
    assert told["steal"] == pytest.approx(4 / 40, abs=0.01)
    assert told["load_before"] == 3.0
    assert [re.search(r"load of 3\.0 on 4|took 20%|kept 10%", text)[0] for text in machine.warnings_of(told)] == [
        *("load of 3.0 on 4", "took 20%", "kept 10%")
    ]


def test_a_quiet_machine_gives_no_warning_and_an_untold_one_none_either(monkeypatch, tmp_path):
    assert machine.warnings_of({"cores": 4, "load_before": 1.0, "others": 0.05, "steal": 0.0}) == []
    monkeypatch.setattr(machine, "STAT", tmp_path / "missing")
    told = machine.Watch().seen(own_s=0.0)
    assert (told["others"], told["steal"]) == (None, None)
