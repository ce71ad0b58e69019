"""``zoo report``: what the pages say, that nothing in a registry can become markup, and what is replaced."""

from __future__ import annotations

import copy
import json
import os
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from test_registry import MODELS, REPORTED, TEST_SPLIT, model, registry_data, result, taught, timed

from zoo.cli.app import run
from zoo.evaluation.protocols import protocol
from zoo.export.bundle.folder import MANIFEST, write_sums
from zoo.export.bundle.manifest import Artifact, Compute, Manifest, Report, Rung, Source, io_of, to_json
from zoo.export.ladder.gate import compared
from zoo.hub.cache import items
from zoo.registry.file import PACKAGED, load_registry
from zoo.registry.pick import choose
from zoo.report import site as report
from zoo.report.choice import measures
from zoo.report.libraries import libraries
from zoo.report.site import write_site
from zoo.specs import StagedSpec, cost
from zoo.system.errors import ExportFailed, IntegrityError, MissingDependency, UsageError
from zoo.system.files import sha256_file
from zoo.system.units import parse_count

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}'</script>"


@pytest.fixture(autouse=True)
def _light(monkeypatch):
    """The pages link to the libraries and need not hold them here; the browser's tests have them."""
    monkeypatch.setattr(report, "libraries", lambda: {"datatables.js": "", "vega.js": ""})


def stored(folder: Path, models: dict[str, Any], **more: Any) -> Path:
    """A registry file with these models."""
    path = folder / "registry.json"
    path.write_text(json.dumps(registry_data(copy.deepcopy(models)) | more), encoding="utf-8", newline="\n")
    return path


class Page(HTMLParser):
    """A parsed page: its elements as (tag, attributes), its text, and the JSON in it."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.data: list[tuple[str, str]] = []  # text, and the element that was opened last before it
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.data.append((data, self.elements[-1][0] if self.elements else ""))

    @property
    def text(self) -> str:
        return " ".join("".join(data for data, tag in self.data if tag != "script").split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def heads(page: Page) -> set[str | None]:
    return {head.get("data-key") for head in page.all("th")} - {None}


# -- what the pages say ----------------------------------------------------------------------------------------


def test_a_page_for_every_model_says_what_was_measured_and_how(tmp_path):
    entry = taught(20, clean=6100, pgd20=4123)
    entry["reported"] = REPORTED
    entry["latency"] = {"board": {"onnxruntime-int8": {"1": timed(1.25)}}}
    site = write_site(tmp_path / "site", registry=stored(tmp_path, {**MODELS, "taught": entry}))
    assert site.models == len(MODELS) + 1
    assert {path.stem for path in (site.folder / "models").iterdir()} == {*MODELS, "taught"}
    text = Page(site.folder / "models" / "taught.html").text
    for fact in (
        "41.23",
        "40.3 \N{EN DASH} 42.2",
        "10,000",
        "2025-06-01",
        "pgd, linf 8/255, 20 steps of 2/255, loss ce",
        "some processor",
    ):
        assert fact in text
    for fact in ("52.00", "A paper, Table 2", "nfgsm-wide", "search 2 epochs", "1.25", 'load("taught")'):
        assert fact in text


def test_columns_that_no_model_has_are_left_out(tmp_path):
    plain = write_site(tmp_path / "plain", registry=stored(tmp_path, MODELS)).folder
    assert heads(Page(plain / "index.html")) == {"family", "macs", "params", "clean", "pgd20"}
    entry = model(40, clean=1, autoattack=0) | {"latency": {"board": {"onnxruntime-int8": {"1": timed(1.25)}}}}
    entry["results"]["autoattack"] = result(300, 1000)
    more = write_site(tmp_path / "more", registry=stored(tmp_path, {**MODELS, "timed": entry})).folder
    assert heads(Page(more / "index.html")) == {"family", "macs", "params", "clean", "pgd20", "autoattack", "ms-board"}


def test_models_of_another_data_set_and_threat_model_have_measures_of_their_own(tmp_path):
    other = protocol("cifar100-pgd20-l2-0.5")
    entry = model(8) | {"dataset": "cifar100", "threat": {"norm": "l2", "eps": 0.5}}
    entry["results"] = {other.name: result(2500)}
    data = registry_data(copy.deepcopy(MODELS) | {"hundred": entry})
    data["protocols"][other.name] = other.model_dump(mode="json")
    data["datasets"]["cifar100"] = TEST_SPLIT["cifar10"]
    (tmp_path / "registry.json").write_text(json.dumps(data), encoding="utf-8", newline="\n")
    index = Page(write_site(tmp_path / "site", registry=tmp_path / "registry.json").folder / "index.html")
    assert "PGD-20 · CIFAR-100, l2 0.5" in index.text
    assert {"dataset", "threat"} < heads(index)
    assert [one["value"] for one in index.all("option") if "pgd20" in (one.get("value") or "")] == ["pgd20", other.name]
    by = next(json.loads(text) for text, tag in index.data if tag == "script" and '"command"' in text)
    assert by["measures"][-1]["command"] == f"zoo pick --flops {{}} --by {other.name}"


def test_every_budget_has_the_pick_of_zoo_pick():
    registry = load_registry(PACKAGED)
    found = measures(registry)
    assert {"pgd20", "autoattack", "clean"} <= {measure.protocol for measure in found}
    for measure in found:
        costs = {entry.macs for entry in measure.entries}
        assert measure.stops
        for stop in measure.stops:
            assert parse_count(stop.text) == stop.budget
            assert stop.pick == choose(registry, {"flops": stop.text}, by=measure.protocol).ranked[0].name
        # Between two budgets nothing else could be picked: every model's cost has a budget just above it.
        assert {choose(registry, {"flops": cost}, by=measure.protocol).ranked[0].name for cost in costs} == {
            stop.pick for stop in measure.stops
        }


def test_a_flagged_model_is_marked_and_never_picked(tmp_path):
    best = model(8, pgd20=9000) | {"flags": ["masked"]}
    place = stored(tmp_path, {**MODELS, "best": best})
    assert all(stop.pick != "best" for measure in measures(load_registry(place)) for stop in measure.stops)
    site = write_site(tmp_path / "site", registry=place).folder
    assert "best flagged" in Page(site / "index.html").text
    assert "Its accuracy may be too high" in Page(site / "models" / "best.html").text


def test_the_released_students_of_a_search_show_their_tutors_and_sub_nets_their_choices(tmp_path):
    site = write_site(tmp_path / "site").folder
    student, subnet, control = (
        Page(site / "models" / f"{name}.html") for name in ("rnascl-s7-wrt34-2-trades", "proard-tiny@15M", "trades-s7")
    )
    assert {chart["data-chart"] for chart in student.all("div") if "data-chart" in chart} == {
        "learning-curve",
        "tutor-map",
    }
    assert "features.9.conv1" in student.text
    assert "Cut from proard-tiny without retraining" in subnet.text
    assert "Tutors" not in control.text


def test_names_that_differ_by_case_alone_have_pages_of_their_own(tmp_path):
    models = {"Small": model(8, pgd20=3000), "small": model(16, pgd20=4000)}
    site = write_site(tmp_path / "site", registry=stored(tmp_path, models)).folder
    assert len({path.name.lower() for path in (site / "models").iterdir()}) == 2


# -- bundles -----------------------------------------------------------------------------------------------------


SMALL = StagedSpec(widths=((8,), (16,)), resolutions=(16, 8), stem=6)
SHA256 = "c" * 64


def rung_of(artifact: str, name: str, *protocols: str, twin: int, engine: int) -> Rung:
    """A rung on which twin and engine are right on so many of 400 images."""
    bits = tuple(np.arange(400) < right for right in (twin, engine))
    found = compared(name, bits, [protocol(one) for one in protocols], 0.99)
    bound = {"artifact_sha256": artifact, "seed": 0, "dataset": "test", "dataset_sha256": SHA256}
    return Rung(**found, **bound, seconds=1.0)


def bundle_in(place: Path) -> tuple[Path, dict[str, Any]]:
    """An int8 bundle that was attacked, by what its files say, and the registry entry of its model."""
    folder = place / "small--onnxruntime-int8"
    (folder / "reports").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"a graph")
    artifact, (macs, params) = sha256_file(folder / "model.onnx"), cost(SMALL)
    rungs = (
        rung_of(artifact, "clean", twin=300, engine=298),
        rung_of(artifact, "surrogate", "pgd20", twin=200, engine=190),
    )
    shared: dict[str, Any] = {"toolchain": {"torch": "2.11.0"}, "created": "2026-01-01T00:00:00+00:00"}
    manifest = Manifest(
        name="small",
        spec=SMALL,
        source=Source(name="small", tensors_sha256=SHA256),
        cost=Compute(macs=macs, params=params),
        io=io_of(SMALL),
        labels=(),
        dataset="cifar10",
        artifact=Artifact(
            file="model.onnx", format="onnx", precision="int8", opset=20, batches=(1,), size=7, sha256=artifact
        ),
        engine="onnxruntime",
        device="cpu",
        verified="attacked",
        robustness="attacked with pgd20",
        gates=rungs,
        command="zoo export small --precision int8",
        **shared,
    )
    report = Report(artifact_sha256=artifact, asked="attacked", reached="attacked", rungs=rungs, engine={}, **shared)
    for name, record in ((MANIFEST, manifest), ("reports/verify.json", report)):
        (folder / name).write_text(to_json(record), encoding="utf-8", newline="\n")
    write_sums(folder)
    entry = model(8, clean=7000, pgd20=5000) | {"spec": SMALL.to_dict(), "macs": macs, "params": params}
    return folder, entry


@pytest.fixture
def attacked(tmp_path) -> tuple[Path, Path]:
    """A bundle, and a registry that has its model."""
    folder, entry = bundle_in(tmp_path / "bundles")
    return folder, stored(tmp_path, {"small": entry})


def test_a_bundle_has_a_page_with_its_ladder_and_its_model_what_int8_keeps(attacked, tmp_path):
    folder, registry = attacked
    site = write_site(tmp_path / "site", registry=registry, bundles=[folder.parent])
    assert site.bundles == 1
    page = Page(site.folder / "bundles" / f"{folder.name}.html")
    for fact in ("Clean holds", "Surrogate holds", "75.00", "47.50", "99.00 are allowed", f"zoo verify {folder.name}"):
        assert fact in page.text
    index = Page(site.folder / "index.html")
    assert "int8" in heads(index)
    assert "95.0 % onnxruntime" in index.text
    assert folder.name in Page(site.folder / "models" / "small.html").text.replace(" ", "")


def test_a_bundle_that_was_altered_or_contradicts_the_registry_is_refused(attacked, tmp_path):
    folder, registry = attacked
    (tmp_path / "other").mkdir()
    other = stored(tmp_path / "other", {"small": model(8)})
    with pytest.raises(IntegrityError, match=r"says spec\.widths .*, but the registry's 'small' has"):
        write_site(tmp_path / "site", registry=other, bundles=[folder])
    (folder / "model.onnx").write_bytes(b"another")
    with pytest.raises(IntegrityError, match="altered"):
        write_site(tmp_path / "site", registry=registry, bundles=[folder])
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    ("fields", "value"),
    [
        (("threat_model", "norm"), [[]]),
        (("gates", 1, "protocols", 0, "attack"), []),
        (("gates", 1, "protocols", 0, "n"), None),
        (("gates", 1, "protocols", 0), {}),
        (("robustness",), ""),
        (("labels",), None),
    ],
)
def test_a_bundle_with_a_value_of_the_wrong_kind_is_refused_in_a_sentence(attacked, tmp_path, fields, value):
    folder, registry = attacked
    for name in (MANIFEST, "reports/verify.json"):
        data = json.loads((folder / name).read_text(encoding="utf-8"))
        if fields[0] in data:
            inner = data
            for field in fields[:-1]:
                inner = inner[field]
            inner[fields[-1]] = value
            (folder / name).write_text(json.dumps(data), encoding="utf-8", newline="\n")
    write_sums(folder)
    with pytest.raises(IntegrityError):
        write_site(tmp_path / "site", registry=registry, bundles=[folder])


def test_a_bundle_that_is_given_twice_is_shown_once_and_no_site_is_put_into_it(attacked, tmp_path):
    folder, registry = attacked
    assert write_site(tmp_path / "site", registry=registry, bundles=[folder, folder.parent]).bundles == 1
    with pytest.raises(UsageError, match="is in the bundle"):
        write_site(folder / "site", registry=registry, bundles=[folder])
    assert not (folder / "site").exists()


@pytest.mark.skipif(os.name == "nt", reason="such names are not allowed there")
def test_commands_of_a_hostile_bundle_do_nothing_else(attacked, tmp_path):
    folder, registry = attacked
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    evil = folder.with_name("x; touch evil\n" + "y" * 240)
    folder.rename(evil)
    for command, shown in (
        ("zoo export small", True),
        ("zoo export 'a b' --verify surrogate", True),
        ("zoo export small; touch evil", False),
        ("zoo export small\ntouch evil", False),
        ("zoo export $(touch evil)", False),
        ("zoo export 'small", False),
        ("touch evil", False),
    ):
        (evil / MANIFEST).write_text(json.dumps({**manifest, "command": command}), encoding="utf-8", newline="\n")
        write_sums(evil)
        site = write_site(tmp_path / "site", registry=registry, bundles=[evil], force=True).folder
        page = Page(next((site / "bundles").iterdir()))
        given = [data for data, tag in page.data if tag == "code" and data.startswith(("zoo", "touch"))]
        assert (command in given) == shown
        assert [shlex.split(one) for one in given if "verify x" in one or "bench" in one] == [
            ["zoo", "bench", evil.name]
        ]


def test_a_place_without_bundles_is_refused(tmp_path):
    with pytest.raises(UsageError, match="neither a bundle nor a folder of bundles"):
        write_site(tmp_path / "site", bundles=[tmp_path])


# -- nothing becomes markup --------------------------------------------------------------------------------------


@pytest.fixture
def hostile(tmp_path) -> Path:
    """A registry with markup wherever a text is free."""
    entry = taught(20, clean=6100, pgd20=4123)
    entry |= {"family": HOSTILE, "description": HOSTILE, "license": HOSTILE, "paper": HOSTILE, "flags": [HOSTILE]}
    entry["train"] |= {
        "recipe": HOSTILE,
        "device": HOSTILE,
        "torch": HOSTILE,
        "settings": {HOSTILE: {HOSTILE: [HOSTILE]}},
    }
    entry["train"]["teacher"]["name"] = HOSTILE
    entry["reported"] = {HOSTILE: {"value": 0.5, "source": HOSTILE}}
    entry["latency"] = {HOSTILE: {HOSTILE: {"1": timed(1.25) | {"runtime": HOSTILE}}}}
    entry["results"]["clean"]["toolchain"][HOSTILE] = HOSTILE
    entry["results"]["clean"]["extra"] = {HOSTILE: 1.0}
    return stored(tmp_path, {**MODELS, "hostile": entry})


def test_markup_in_a_registry_stays_text(hostile, tmp_path):
    site = write_site(tmp_path / "site", registry=hostile).folder
    index, own = Page(site / "index.html"), Page(site / "models" / "hostile.html")
    assert HOSTILE in index.text.replace("- ", "-")
    assert own.text.count("alert(1)") >= 10
    for page in (index, own):
        assert page.all("img") == []
        for script in page.all("script"):
            assert script.get("type") == "application/json" or (script["src"] or "").split("/")[-2] == "assets"
        for _, attributes in page.elements:
            assert not [name for name in attributes if name.startswith("on") or name == "style"]
        for text, tag in page.data:
            if tag == "script" and text.strip():
                json.loads(text)
        (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv")]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy


# -- what is written, and what is replaced -----------------------------------------------------------------------


def test_only_a_site_is_replaced_and_only_if_it_is_asked_for(tmp_path):
    registry, out = stored(tmp_path, MODELS), tmp_path / "site"
    write_site(out, registry=registry)
    with pytest.raises(UsageError, match="--force"):
        write_site(out, registry=registry)
    write_site(out, registry=registry, force=True)
    (out / "notes.txt").write_text("mine", encoding="utf-8", newline="\n")
    with pytest.raises(UsageError, match="holds other files too"):
        write_site(out, registry=registry, force=True)
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "report.json").write_text("{}", encoding="utf-8", newline="\n")
    with pytest.raises(UsageError, match="not a report"):
        write_site(foreign, registry=registry, force=True)


def test_of_a_link_the_target_is_replaced(tmp_path):
    registry, link = stored(tmp_path, MODELS), tmp_path / "link"
    link.symlink_to("site")
    for force in (False, True, True):
        write_site(link, registry=registry, force=force)
    assert link.is_symlink()
    assert (tmp_path / "site" / "index.html").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "registry.json", "site"]


def test_a_failure_leaves_the_old_site_as_it_was(tmp_path, monkeypatch):
    registry, out = stored(tmp_path, MODELS), tmp_path / "site"
    write_site(out, registry=registry)
    before = (out / "report.json").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "copytree", lambda *_, **__: full())
    with pytest.raises(ExportFailed, match=r"the report '.*' could not be written: No space left"):
        write_site(out, registry=registry, force=True)
    assert (out / "report.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["registry.json", "site"]


def test_a_missing_extra_is_named_before_anything_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("zoo.report.libraries.find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"robust-zoo\[report\]"):
        write_site(tmp_path / "site", registry=tmp_path / "none.json")
    assert run(["report", "--out", str(tmp_path / "site")]) == MissingDependency.exit_code
    assert "itables" in capsys.readouterr().err


def test_a_damaged_library_in_the_cache_is_made_again_and_the_cache_lists_it(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    made = Mock(return_value="a library")
    monkeypatch.setattr(pytest.importorskip("vl_convert"), "javascript_bundle", made)
    scripts = libraries()
    assert "a library" in scripts["vega.js"]
    next((tmp_path / "cache").rglob("vega.js")).write_text("a lib")
    assert libraries() == scripts == libraries()
    assert made.call_count == 2
    assert [item.kind for item in items() if item.hashed] == ["scripts of zoo report"]


def test_an_empty_registry_is_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no model yet"):
        write_site(tmp_path / "site", registry=stored(tmp_path, {}))


def test_the_command_says_where_the_first_page_is(tmp_path, capsys):
    given = ["report", "--registry", str(stored(tmp_path, MODELS)), "--out", str(tmp_path / "site")]
    assert run([*given, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["index"], said["models"], said["bundles"]) == (str(tmp_path / "site" / "index.html"), len(MODELS), 0)
    assert said["size"] == sum(path.stat().st_size for path in (tmp_path / "site").rglob("*") if path.is_file())
    assert run([*given, "--force"]) == 0
    assert capsys.readouterr().out.startswith(said["index"])


def test_the_pages_of_a_registry_need_neither_torch_nor_the_libraries_beneath(tmp_path):
    code = "import sys, zoo.report.site; print(sorted({'torch', 'pandas', 'vl_convert'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- the plot in the terminal ------------------------------------------------------------------------------------


def test_zoo_list_draws_accuracy_over_macs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ZOO_REGISTRY", str(stored(tmp_path, MODELS)))
    monkeypatch.setenv("COLUMNS", "60")
    assert run(["list", "--plot"]) == 0
    said = capsys.readouterr().out
    assert said.replace("±", "").isascii()
    drawn = "".join(line.partition("|")[2] for line in said.splitlines())
    assert {letter: drawn.count(letter) for letter in "ABCo"} == {"A": 1, "B": 1, "C": 1, "o": 1}
    assert "C  wide:" in said
    assert run(["list", "--plot", "--json"]) == UsageError.exit_code
    assert "leave one of them out" in capsys.readouterr().err
