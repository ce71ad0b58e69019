from __future__ import annotations

import copy
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_registry import MODELS, REPORTED, model, registry_data, result, taught, timed

from zoo.cli import app
from zoo.cli.app import VERBS, run
from zoo.cli.output import Output
from zoo.registry.write import write_model
from zoo.system.errors import ParityGateFailed
from zoo.system.files import pretty

LONGEST = "a-name-of-forty-characters-is-the-longes"  # what the schema allows


@pytest.fixture(autouse=True)
def registry(tmp_path, monkeypatch) -> Path:
    place = tmp_path / "registry.json"
    place.write_text(pretty(registry_data(copy.deepcopy(MODELS))))
    monkeypatch.setenv("ZOO_REGISTRY", str(place))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("ZOO_DEBUG", raising=False)
    return place


@pytest.fixture
def call(capsys):
    """Run the command line in this process: exit code, stdout, stderr."""

    def called(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(arguments)
        said = capsys.readouterr()
        return code, said.out, said.err

    return called


def process(*arguments: str, code: str | None = None, **options) -> subprocess.CompletedProcess[str]:
    how = ["-c", code] if code else ["-m", "zoo"]
    return subprocess.run([sys.executable, *how, *arguments], capture_output=True, text=True, **options)


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["list", "*", "--json"], ["show", "small"], ["pick", "--flops", "1G"], ["--help"], ["export", "--help"]],
)
def test_browsing_imports_neither_torch_nor_numpy(arguments):
    code = (
        "import sys; from zoo.cli.app import run; code = run(sys.argv[1:]); "
        "print(sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    process("list", code=code)  # checked once, which takes pydantic
    done = process(*arguments, code=code)
    assert done.returncode == 0, done.stderr
    assert "torch" not in done.stderr.splitlines()[-1]
    assert "numpy" not in done.stderr.splitlines()[-1]
    if "--help" not in arguments:
        assert done.stderr.splitlines()[-1] == "[]"


def test_an_attack_imports_only_what_torch_has_imported():
    """SymPy and the compiler take longer to import than all of PyTorch."""
    code = """if True:
        import sys, torch, zoo
        from zoo.attacks import pgd
        from zoo.evaluation import evaluate
        before = {*sys.modules}
        spec = {"arch": "staged", "widths": [[4], [8]], "resolutions": [8, 4], "stem": 4, "stem_resolution": 16}
        net = zoo.build(zoo.parse_spec(spec)).eval()
        pgd(evaluate.prepare(net), torch.rand(2, 3, 32, 32), torch.tensor([0, 1]), eps=0.1, step=0.1, steps=2)
        print({name.partition(".")[0] for name in {*sys.modules} - before} & {"sympy", "mpmath", "triton"})
    """
    done = process(code=code)
    assert done.stdout == "set()\n", done.stderr


UNKNOWN = """
import sys
from zoo.cli.app import run

verbs = "export,eval,bench,sweep,compare small,verify,train,search,show,show local-dir:,compare small local-dir:"
for verb in verbs.split(","):
    words = verb.split(" ")
    words = [*words[:-1], f"{words[-1]}nope"] if verb.endswith(":") else [*words, "nope"]
    print(verb, run(words), {"torch", "numpy"} & set(sys.modules))
"""


def test_what_is_not_there_is_refused_without_torch():
    done = process(code=UNKNOWN)
    assert done.stdout.splitlines() == [
        *(f"{verb} 3 set()" for verb in ("export", "eval", "bench", "sweep", "compare small")),
        *("verify 2 set()", "train 2 set()", "search 3 set()", "show 3 set()"),
        *("show local-dir: 4 set()", "compare small local-dir: 4 set()"),
    ], done.stderr


def test_an_empty_path_is_not_the_folder_that_the_command_runs_in(call):
    assert call("export", "small", "--out", "") == (2, "", "zoo: error: --out is an empty path: give a path\n")
    assert call("verify", "") == (2, "", "zoo: error: BUNDLE is an empty path: give a path\n")


def test_json_has_no_numbers_that_it_lacks(capsys):
    Output(as_json=True).result({"loss": [1.5, math.nan], "best": (-math.inf, None, True)}, "")
    assert json.loads(capsys.readouterr().out) == {"loss": [1.5, None], "best": [None, None, True]}


def test_legends_are_as_wide_as_the_terminal(call, monkeypatch):
    for columns in (40, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        legend = call("list")[1].split("\n\n")[1].splitlines()
        assert columns - 30 < max(map(len, legend)) < columns


def test_a_folder_is_shown_and_compared(call, tmp_path):
    from zoo.models import build
    from zoo.specs import parse_spec
    from zoo.weights.folder import ModelConfig, ModelFolder
    from zoo.weights.tensors import save_weights

    spec = MODELS["small"]["spec"]
    folder = ModelFolder(tmp_path / ("a-long-path" * 9) / "mine")  # longer than a line, and whole in what is said
    folder.write(ModelConfig(spec=spec, family="own"))
    save_weights(build(parse_spec(spec)).state_dict(), folder.weights)
    address = f"local-dir:{folder.path}"
    shown = json.loads(call("show", address, "--json")[1])
    known = ("mine", "own", MODELS["small"]["macs"], folder.weights.stat().st_size)
    assert (shown["name"], shown["family"], shown["macs"], shown["weights"]["size"]) == known
    assert "linf 8/255" in call("show", address)[1]
    code, out, err = call("compare", address, "small", "--json")
    assert code == 0, err
    compared = json.loads(out)
    assert (compared["a"]["macs"], compared["protocols"]) == (MODELS["small"]["macs"], {})
    assert set(compared["left_out"].values()) == {"only B was measured so"}
    told = " ".join(call("compare", address, "small")[1].split())
    assert "A has no stored measurements. With ZOO_REGISTRY=mine.json" in told
    assert f"`zoo eval {address} -p released --write` adds them to a registry of your own" in told
    assert "B has no stored measurements" not in told


def test_near_names_prefer_models_with_robustness():
    from zoo.system.errors import nearest

    known = {"abcde-1": 0.0, "abcde-2": 0.4, "abcde-3": 0.0, "abcde-4": 0.4, "zzz": 0.9}
    assert nearest("abcde-5", known, 2, merit=lambda name: 0.2 * known[name]) == (
        "; did you mean 'abcde-4' or 'abcde-2'?"
    )
    assert nearest("abcde-1x", known, 1, merit=lambda name: 0.2 * known[name]) == "; did you mean 'abcde-1'?"


def test_importing_the_package_imports_nothing_else():
    heavy = "{'torch', 'numpy', 'pydantic', 'typer', 'rich'}"
    done = process(code=f"import sys, zoo; print({heavy} & set(sys.modules), sorted(set(zoo.__all__) - set(dir(zoo))))")
    assert done.stdout.split() == ["set()", "[]"]


def test_every_public_name_is_there():
    import zoo

    assert all(getattr(zoo, name) is not None for name in zoo.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        zoo.lod  # noqa: B018


def test_list_tells_cost_accuracy_and_what_they_mean(call):
    code, out, err = call("list")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[2:7]] == sorted(MODELS)
    assert "40.0 ±1.0" in out
    assert "MACs (multiply-accumulates)" in out
    assert "pgd20: pgd, linf 8/255, 20 steps of 2/255, loss ce, n = 10,000 test images" in out


def test_list_as_json_is_json_alone(call):
    code, out, _ = call("list", "--family", "nfgsm", "--json")
    (listed,) = json.loads(out)["models"]
    assert code == 0
    assert listed == {"name": "wide", **zoo_entry("wide")}
    assert json.loads(call("list", "no-such-*", "--json")[1]) == {"models": []}


def zoo_entry(name: str) -> dict:
    from zoo import info

    return json.loads(json.dumps(info(name).to_dict()))


def test_list_of_nothing_says_so_on_stderr(call):
    assert call("list", "no-such-*") == (3, "", "no model matches 'no-such-*': zoo list shows them all\n")
    assert call("list", "no-such-*", "--quiet") == (3, "", "")
    assert call("list", "no-such-*", "--json")[0] == 3
    assert call("list", "--max-flops", "1") == (3, "", "no model is within these limits: zoo pick names the nearest\n")


@pytest.mark.parametrize(
    "arguments", [["list"], ["list", "--by", "mifgsm20"], ["show", LONGEST], ["pick", "-n", "9", "--flagged"]]
)
def test_tables_fit_80_columns_with_the_longest_names_uncut(call, registry, arguments):
    from zoo.evaluation.corruptions import KINDS
    from zoo.evaluation.protocols import CORRUPTED, PROTOCOLS

    everything = model(8, family="a-family-of-a-long-name", **dict.fromkeys(PROTOCOLS, 100))
    for name in CORRUPTED:
        accuracy, cells = everything["results"][name]["accuracy"], dict.fromkeys(KINDS, [100] * 5)
        everything["results"][name]["corruptions"] = {"worst": KINDS[0], "accuracy": accuracy, "cells": cells}
    everything |= {
        "description": "A description that takes more than a line of eighty columns to say what there is, at length",
        "reported": {
            "pgd20": {"value": 0.5, "source": "A paper with a long title, its authors, its venue and its year"}
        },
        "latency": {"a device": {"torch.compile-fp32": {"1": timed(1234.5), "1024": timed(12345.6) | {"busy": True}}}},
        "flags": ["unreliable"],
    }
    everything["train"] |= taught()["train"]
    for name in ("autoattack", "square"):
        everything["results"][name] = result(100, 1000)
    write_model(LONGEST, everything, path=registry)
    code, out, _ = call(*arguments)
    assert code == 0
    assert LONGEST in out
    assert max(map(len, out.splitlines())) <= 80


def test_show_tells_every_number_with_its_interval_and_n(call):
    code, out, _ = call("show", "wide")
    assert code == 0
    assert "45.00    44.0 - 46.0  10,000  2025-06-01" in out
    assert f"{MODELS['wide']['macs']:,} MACs (multiply-accumulates)" in out
    assert json.loads(call("show", "wide", "--json")[1]) == {"name": "wide", **zoo_entry("wide")}


def test_show_sets_the_papers_numbers_beside_the_measured_ones(call, registry):
    assert "paper" not in call("show", "wide")[1]
    write_model("student", taught(clean=6000, pgd20=4500) | {"reported": REPORTED}, path=registry)
    _, out, _ = call("show", "student")
    header, _, clean, pgd20, apgd50, *_ = out[out.index("protocol ") :].splitlines()
    assert header.split("  ")[:3] == ["protocol", "accuracy %", "paper %"]
    assert clean.split()[:5] == ["clean", "60.00", "-", "59.0", "-"]
    assert pgd20.split()[:3] == ["pgd20", "45.00", "52.00"]
    assert apgd50.split() == ["apgd50", "-", "50.00"]  # stated there, not measured here
    assert "paper % (pgd20, apgd50), as stated, not measured here: A paper, Table 2\n" in out
    assert "apgd50: apgd" not in out  # the paper's protocol may differ in detail


def test_show_tells_the_teacher_and_the_phases_of_training(call, registry):
    assert "\nteacher      none\n" in call("show", "wide")[1]
    write_model("student", taught(clean=6000), path=registry)
    _, out, _ = call("show", "student")
    assert "\nteacher      nfgsm-wide, clean 79.0 ±0.8, pgd20 48.0 ±3.1\n" in out
    assert "\nphases       search 2 epochs, 2 min; training 0.5 epochs, 1 min\n" in out


def test_pick_prints_the_best_and_names_what_it_left_out(call):
    code, out, err = call("pick", "--flops", str(MODELS["dull"]["macs"]))
    assert code == 0
    assert out.splitlines()[2].startswith("middle ")
    assert err == "left out because a measurement is missing: unmeasured\n"
    assert call("pick", "--macs", "1G", "-q")[2] == ""


def test_pick_as_json_carries_entries_and_the_question(call):
    _, out, _ = call("pick", "-n", "2", "--min-clean", "60%", "--json")
    report = json.loads(out)
    assert [entry["name"] for entry in report["picked"]] == ["wide", "middle"]
    assert (report["by"], report["left_out"]) == ("pgd20", ["unmeasured"])


def test_pick_lists_the_pareto_front_from_the_cheapest(call):
    report = json.loads(call("pick", "--pareto", "--json")[1])
    assert [entry["name"] for entry in report["picked"]] == ["small", "middle", "wide"]


def test_list_shows_the_pareto_front_alone(call):
    report = json.loads(call("list", "--pareto", "--json")[1])
    assert [entry["name"] for entry in report["models"]] == ["small", "middle", "wide"]
    report = json.loads(call("list", "w*", "--pareto", "--json")[1])  # the front of those that are listed
    assert [entry["name"] for entry in report["models"]] == ["wide"]
    code, out, err = call("list", "unmeasured", "--pareto")
    assert (code, out) == (3, "")
    assert "no model here has an accuracy under pgd20" in err


@pytest.fixture
def exporter(monkeypatch):
    """Stands in for what builds an export; returns the exports that it is given."""
    from zoo.export.exporter import Job

    asked: list[Job] = []

    def run(job: Job, progress) -> Path:
        asked.append(job)
        return job.options.folder(job.known.title)

    monkeypatch.setattr("zoo.weights.load._released", lambda name, weights, hub: Path(__file__))
    monkeypatch.setattr(Job, "run", run)
    monkeypatch.setattr("zoo.cli.ladder.outcome", lambda bundle: ({"bundle": str(bundle)}, f"Exported to {bundle}"))
    return asked


def test_pick_exports_what_it_picked(call, exporter, tmp_path):
    places = ["--out", str(tmp_path), "--data", str(tmp_path / "data"), "--offline"]
    code, out, _ = call(
        *("pick", "--flops", "1G", "--export", "onnx", "--batch", "1,32", "--precision", "fp16", *places),
        *("--verify", "none", "--keep-failed", "--force"),
    )
    assert code == 0
    (job,) = exporter
    options = job.options
    assert (job.known.name, job.level, options.engine.name, options.precision) == (
        "wide",
        "none",
        "onnxruntime",
        "fp16",
    )
    assert (options.sizes, options.out, options.data) == ((1, 32), tmp_path, tmp_path / "data")
    assert options.offline
    assert options.force
    assert options.keep_failed
    assert f"Exported to {tmp_path / 'wide--onnxruntime-fp16'}" in out


def timed_with(registry: Path, **engines: float) -> None:
    """Times of the entry "middle" on one device."""
    times = {engine.replace("_", "-"): {"1": timed(ms)} for engine, ms in engines.items()}
    write_model("middle", {**MODELS["middle"], "latency": {"laptop": times}}, path=registry)


def test_a_latency_budget_is_of_the_engine_that_is_exported(call, exporter, registry):
    timed_with(registry, litert_int8=0.08, onnxruntime_fp32=0.2)
    dry = ["--export", "onnx", "--verify", "none", "--dry-run"]
    assert call("pick", "--latency-ms", "0.1", *dry)[::2] == (
        3,
        "zoo: error: no model has at most 0.1 ms latency with onnxruntime-fp32 on laptop; the fastest is middle with "
        "0.2 ms\n",
    )
    code, _, err = call("pick", "--latency-ms", "0.1", *dry, "--precision", "int8", "-q")
    assert (code, "(measured there: litert-int8, onnxruntime-fp32)" in err) == (3, True)
    code, out, _ = call("pick", "--latency-ms", "0.3", *dry)
    assert code == 0
    assert "onnxruntime-fp32 on laptop" in out
    assert "litert" not in out


def test_without_an_export_the_fastest_engine_is_named_with_the_command_for_it(call, registry):
    timed_with(registry, litert_int8=0.08, onnxruntime_fp32=0.2)
    command = "zoo export middle -f litert --precision int8"
    assert command in call("pick", "--latency-ms", "0.1")[1]
    assert json.loads(call("pick", "--latency-ms", "0.1", "--json")[1])["latency"] == [
        {
            **{"name": "middle", "p50_ms": 0.08, "engine": "litert", "precision": "int8", "device": "laptop"},
            "command": command,
        }
    ]
    timed_with(registry, **{"torch.compile_fp32": 0.05})  # a peer, which nothing is exported to
    code, out, _ = call("pick", "--latency-ms", "0.1")
    assert (code, "torch.compile-fp32 on laptop" in out, "zoo export" in out) == (0, True, False)


@pytest.mark.parametrize("useless", [["--precision", "int8"], ["--verify", "none"], ["-o", "there"], ["--sign", "key"]])
def test_options_of_an_export_are_refused_without_one(call, useless):
    spelled = {"-o": "--out"}.get(useless[0], useless[0])
    told = f"zoo: error: {spelled} is for what --export makes: add --export, or leave {spelled} out\n"
    assert call("pick", "--flops", "15M", *useless) == (2, "", told)
    assert call("pick", "--offline")[0] == 0  # as always


def test_a_dry_run_says_what_it_would_do_and_does_nothing(call, exporter, tmp_path):
    _, out, _ = call("pick", "--export", "onnx", "--out", str(tmp_path / "there"), "--verify", "none", "--dry-run")
    assert "Would export wide as onnx in fp32 for batches of 1, 8, 64" in out
    report = json.loads(call("pick", "--export", "onnx", "--verify", "none", "--dry-run", "--json")[1])
    assert report["export"]["dry_run"] is True
    assert "bundle" not in report
    assert not exporter
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["show", "smal"], 3, "no model is called 'smal'; did you mean 'small'"),
        (["pick", "--flops", "1k"], 3, "no model has at most 1.0k MACs; the smallest is small with"),
        (["pick", "--flops", "much"], 2, "'much' is not a count"),
        (["pick", "--by", "pgd21"], 2, "no protocol is called 'pgd21'; did you mean 'pgd20'"),
        (["pick", "-n", "0"], 2, "(see 'zoo pick --help')"),
        (["pick", "--flops"], 2, "requires an argument"),
        (["pick", "-n", "2", "--export", "onnx"], 2, "-n 2 asks for several models"),
        (["pick", "--pareto", "--export", "onnx"], 2, "--pareto asks for several models"),
        (["pick", "--export", "onnx", "--batch", "1,x"], 2, "--batch takes positive integers"),
        (["pick", "--latency-ms", "2", "--device", "phone"], 3, "no latency was measured on 'phone'"),
        (["sweep", "small", "--eps", "0,8"], 2, "each from 0 to 1 on the scale of pixels"),
        (["sweep", "small", "--out", "no/such/folder/x.json"], 2, "--out takes a file in a folder that is there"),
        (["lst"], 2, "'lst' is not a verb of zoo; did you mean 'list'"),
        (["list", "--falmily", "x"], 2, "--falmily"),
        (["show"], 2, "Missing argument 'NAME'"),
        (["list", "a", "b"], 2, "unexpected extra argument"),
    ],
)
def test_errors_are_one_line_with_their_exit_code(call, arguments, code, told):
    found, out, err = call(*arguments)
    assert found == code
    assert out == ""
    assert err.startswith("zoo: error: ")
    assert told in err
    assert err.count("\n") == 1
    found, out, err = call(arguments[0], "--json", *arguments[1:])
    assert found == code
    error = json.loads(out)["error"]
    assert error["exit_code"] == code
    assert told in error["message"]


def test_a_malformed_registry_exits_with_5(call, registry):
    registry.write_text(registry.read_text().replace('"macs": ', '"macs": 1'))
    for arguments in (["list"], ["pick", "--flops", "1G"], ["show", "small"]):
        code, _, err = call(*arguments)
        assert code == 5
        assert "is wrong at 'models.small.macs'" in err
        assert str(registry) in err


def raising(error: BaseException):
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (ParityGateFailed("the logits differ by 3.0"), 8, "zoo: error: the logits differ by 3.0\n"),
        (KeyboardInterrupt(), 130, "zoo: interrupted\n"),
        (OSError(28, "No space left on device", "/x/y"), 1, "zoo: error: No space left on device: '/x/y'\n"),
        (BrokenPipeError(32, "Broken pipe"), 1, "zoo: error: Broken pipe\n"),
        (EOFError("No data left in file"), 1, "internal: EOFError: No data left in file; set ZOO_DEBUG=1"),
        (RuntimeError("a warning\n" * 1000), 1, " ...; set ZOO_DEBUG=1 and run again for the traceback"),
        (ZeroDivisionError("by\nzero"), 1, "internal: ZeroDivisionError: by zero; set ZOO_DEBUG=1"),
    ],
)
def test_whatever_a_verb_raises_becomes_a_line_and_a_code(call, monkeypatch, error, code, told):
    import zoo.cli.list as verb

    app._verb.cache_clear()
    monkeypatch.setattr(verb, "command", raising(error))
    try:
        found, out, err = call("list")
        assert (found, out) == (code, "")
        assert told in err
        assert err.count("\n") == 1
        if code == 1:
            monkeypatch.setenv("ZOO_DEBUG", "1")
            assert "Traceback" in call("list")[2]
    finally:
        app._verb.cache_clear()


def test_a_reader_that_goes_away_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m zoo list --json | head -c 1", shell=True, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("{", "")


LOCAL = ("list", "show", "compare", "convert", "cache", "doctor", "report")  # verbs that never use the network


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples_and_the_common_options(call, verb):
    code, out, _ = call(verb, "--help")
    assert code == 0
    assert f"zoo {verb} " in out.partition("Examples:")[2] or f"zoo {verb}\n" in out or verb == "doctor"
    assert "\\b" not in out
    assert all(option in out for option in ("--json", "--quiet", "-q"))
    assert ("--offline" in out) == (verb not in LOCAL)


def test_help_of_eval_names_every_protocol(call):
    from zoo.evaluation.protocols import PROTOCOLS

    words = re.split(r"[\s,;]+|[.] ", call("eval", "--help")[1])
    assert set(PROTOCOLS) <= set(words)


def test_help_names_every_verb_and_the_unit_of_cost(call):
    code, out, _ = call()
    assert code == 0
    assert all(f"{verb} " in out for verb in VERBS)
    assert "multiply-accumulates" in out
    assert call("--version")[1].startswith("robust-zoo ")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("zoo show sm", {"small"}),
        ("zoo pick --by pgd", {"pgd20"}),
        ("zoo li", {"list"}),
        ("zoo pick --pare", {"--pareto"}),
        ("zoo eval small -p mifg", {"mifgsm20"}),
        ("zoo sweep small --attack fgsm,mifg", {"fgsm,mifgsm20"}),
        ("zoo train trades-s", {"trades-s3", "trades-s5", "trades-s7"}),
        ("zoo export small --precision fp32,i", {"fp32,int8"}),
        ("zoo verify x --verify a", {"attacked"}),
        ("zoo list sm", {"small"}),
    ],
)
def test_the_shell_completes_verbs_options_models_and_protocols(line, offered):
    asked = {"_ZOO_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    done = process(env=os.environ | asked)
    assert set(done.stdout.split()) == offered, done.stderr


def test_one_of_several_processes_prints_the_error_as_json(call, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    printed = {}
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        code, printed[rank], told = call("show", "none-such", "--json")
        assert (code, "no model is called" in told) == (3, True)
    assert json.loads(printed["0"])["error"]["type"] == "UnknownModel"
    assert printed["1"] == ""


def test_doctor_reports_packages_engines_data_and_weights(call, registry, monkeypatch, tmp_path):
    registry.write_text(pretty(registry_data({})))
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "nowhere"))
    code, out, _ = call("doctor", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["packages"]["torch"]
    assert report["engines"]["onnxruntime"]["works"]
    assert "CPUExecutionProvider" in report["engines"]["onnxruntime"]["on"]
    assert report["data"]["ZOO_DATA_is_folder"] is False
    assert report["registry"] == {"place": str(registry), "models": 0, "weights": {}, "faults": []}
    _, out, _ = call("doctor", "-q")
    assert max(map(len, (line for line in out.splitlines() if str(tmp_path) not in line))) <= 80


def test_doctor_exits_with_5_when_weights_are_missing_or_altered(call, monkeypatch, tmp_path):
    import zoo.weights.load

    monkeypatch.setattr(zoo.weights.load, "BUNDLED", tmp_path)
    (tmp_path / "w8.safetensors").write_bytes(b"x" * MODELS["small"]["weights"]["size"])
    code, out, _ = call("doctor", "--json", "-q")
    state = json.loads(out)["registry"]
    assert code == 5
    assert state["weights"]["small"] == "damaged"
    assert state["weights"]["wide"] == "missing"
    assert any("SHA-256" in fault for fault in state["faults"])


def test_doctor_names_files_of_the_cache_that_are_damaged(call, registry, tmp_path):
    import numpy as np

    from zoo.system.cache import cached, mapped

    registry.write_text(pretty(registry_data({})))
    folder = cached("cifar10-0123", lambda folder: np.save(folder / "test_labels.npy", np.arange(100)))
    assert call("doctor", "-q")[0] == 0
    labels = mapped(folder / "test_labels.npy").copy()
    np.save(folder / "test_labels.npy", labels[::-1])
    code, out, _ = call("doctor", "--json", "-q")
    assert code == 5
    assert json.loads(out)["data"]["damaged"] == [str(folder / "test_labels.npy")]
    assert f"FAULT: '{folder / 'test_labels.npy'}' is damaged: it is made again when it is used" in call("doctor")[1]
    (folder / "complete").write_bytes(b"")
    assert json.loads(call("doctor", "--json", "-q")[1])["data"]["damaged"] == [str(folder / "complete")]


def test_doctor_tells_a_malformed_registry(call, registry):
    registry.write_text("{")
    code, out, _ = call("doctor", "-q")
    assert code == 5
    assert "FAULT: the registry" in out
