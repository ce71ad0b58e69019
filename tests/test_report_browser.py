"""The pages of ``zoo report`` in a browser: the system's Chromium, opened from files, without a network."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_report import bundle_in

from zoo.registry.entry import Registry
from zoo.registry.file import PACKAGED, load_registry
from zoo.registry.pick import pareto, pick
from zoo.report.charts import anchors
from zoo.report.site import write_site

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (the extra test)")
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
MODEL, SUBNET = "rnascl-s7-wrt34-2-trades", "proard-tiny@15M"
PAGES = ("index.html", f"models/{MODEL}.html", f"models/{SUBNET}.html", "bundles/small--onnxruntime-int8.html")
TRADES = ("trades-s3", "trades-s5", "trades-s7")
MODELS = (MODEL, SUBNET, *TRADES, "ard-p4-w15", "nfgsm-w15", "nfgsm-w15-int8", "proard-tiny")


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Path:
    """Some of the released models: a smaller page is checked faster."""
    data = json.loads(PACKAGED.read_bytes())
    data["models"] = {name: entry for name, entry in data["models"].items() if name in MODELS}
    del data["models"]["proard-tiny"]["results"]["autoattack"]  # so that the page has a model without this result
    place: Path = tmp_path_factory.mktemp("registry") / "registry.json"
    place.write_text(json.dumps(data), encoding="utf-8", newline="\n")
    return place


@pytest.fixture(scope="module")
def known(registry) -> Registry:
    return load_registry(registry)


@pytest.fixture(scope="module")
def site(registry, tmp_path_factory) -> Path:
    place: Path = tmp_path_factory.mktemp("report")
    bundle_in(place / "bundles")
    write_site(place / "site", registry=registry, bundles=[place / "bundles"])
    return place / "site"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as library:
        started = library.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def open_page(browser, site) -> Iterator[Any]:
    """Opens a page of a site; at the end nothing may have been said on its console, nor asked of a network."""
    said: list[str] = []
    contexts = []

    def opened(name: str = "index.html", *, site: Path = site, width: int = 1280, scheme: str = "light") -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or said.append(asked.url))
        page.goto((site / name).as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []


def shown(page: Any) -> list[str]:
    """The names of the models in the table, from top to bottom."""
    return page.eval_on_selector_all("#table tbody tr[data-name]", "rows => rows.map(row => row.dataset.name)")


def test_the_heads_of_the_table_sort_it_by_mouse_and_keyboard(open_page, known):
    page, models = open_page(), known.models
    assert [models[name].macs for name in shown(page)] == sorted(entry.macs for entry in models.values())
    for order in ("descending", "ascending"):
        page.click("#table th[data-key=pgd20]")
        page.wait_for_selector(f"#table th[data-key=pgd20][aria-sort={order}]")
        robust = [models[name].accuracy("pgd20") for name in shown(page)]
        assert robust == sorted(robust, reverse=order == "descending")
    page.focus("#table th[data-key=clean] [role=button]")
    page.keyboard.press("Enter")
    page.wait_for_selector("#table th[data-key=clean][aria-sort=descending]")
    clean = [models[name].accuracy("clean") for name in shown(page)]
    assert clean == sorted(clean, reverse=True)
    page.click("#table th[data-key=autoattack]")
    page.wait_for_selector("#table th[data-key=autoattack][aria-sort=descending]")
    assert models[shown(page)[-1]].accuracy("autoattack") is None  # not measured: last


def test_filters_leave_the_models_within_the_limits(open_page, known):
    page, models = open_page(), known.models
    page.fill("#search", "trades-s")
    assert shown(page) == list(TRADES)
    page.fill("#search", "")
    page.select_option("#family", "ard")
    assert shown(page) == ["ard-p4-w15"]
    page.select_option("#family", "")
    page.fill("#least", "40")
    assert set(shown(page)) == {name for name, entry in models.items() if entry.accuracy("pgd20") >= 0.4}
    assert page.inner_text(".dt-info") == f"{len(shown(page))} of {len(models)} models"
    page.fill("#least", "")
    page.check("#front")
    assert shown(page) == [entry.name for entry in pareto(models.values())]
    page.uncheck("#front")
    page.check("#within")
    budget = page.inner_text("#budget-text")
    assert set(shown(page)) == {entry.name for entry in pick(budget, n=99, registry=known)}


def test_the_slider_names_what_zoo_pick_picks_and_its_command(open_page, known):
    page = open_page()
    page.focus("#budget")
    page.keyboard.press("End")
    seen = set()
    for _ in range(int(page.get_attribute("#budget", "max")) + 1):
        budget, name = page.inner_text("#budget-text"), page.inner_text("#pick")
        assert name == pick(budget, registry=known).name
        assert page.inner_text("#pick-command") == f"zoo pick --flops {budget}"
        assert name in page.get_attribute("#budget", "aria-valuetext")
        seen.add(name)
        page.keyboard.press("ArrowLeft")
    assert len(seen) > 1
    page.select_option("#measure", "clean")
    page.focus("#budget")
    page.keyboard.press("End")
    assert page.inner_text("#pick") == pick(by="clean", registry=known).name
    assert page.inner_text("#pick-command").endswith("--by clean")


def test_the_chart_shows_every_model_and_published_results_apart(open_page):
    page = open_page()
    drawn = "all => document.querySelectorAll('svg.marks .mark-symbol path').length == all"
    page.wait_for_function(drawn, arg=len(anchors()) + len(MODELS) + 1)  # and the ring around the picked one
    page.uncheck("#published")
    page.wait_for_function(drawn, arg=len(MODELS) + 1)
    page.hover("svg.marks .mark-symbol path >> nth=0")
    assert "95 % interval" in page.inner_text("#tip")
    costs = "[...document.querySelectorAll('svg.marks .role-axis-label text')].map(one => one.textContent).join()"
    before = page.evaluate(costs)
    page.keyboard.down("Shift")
    page.mouse.wheel(0, -300)  # zooms
    page.wait_for_function(f"before => {costs} != before", arg=before)


def test_a_command_is_copied(open_page):
    page = open_page()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#picker .copy >> nth=0")
    page.wait_for_selector("#picker .copy:has-text('Copied')")
    assert page.evaluate("navigator.clipboard.readText()") == page.inner_text("#pick-command")


def test_links_lead_to_the_pages_of_models_and_back(open_page, site):
    page = open_page()
    page.click(f"#table tr[data-name='{MODEL}'] a")
    assert page.inner_text("h1").replace("\u200b", "") == MODEL
    page.wait_for_selector("[data-chart=tutor-map] svg.marks")
    page.wait_for_selector("[data-chart=learning-curve] svg.marks")
    page.click("nav a >> nth=1")
    assert page.url.endswith("index.html#models")
    for path in site.rglob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"#:]+)[#"]', path.read_text(encoding="utf-8")):
            assert (path.parent / link).is_file(), f"{path.name}: {link}"


def test_the_first_stop_of_the_keyboard_skips_to_the_content(open_page):
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_pages_are_accessible_and_fit_the_screen(open_page, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.base").AXE_FILE_PATH.read_text(encoding="utf-8")
    for name in PAGES:
        page = open_page(name, width=width, scheme=scheme)
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate(axe)
        found = page.evaluate("axe.run({exclude: '.chart svg'}, {preload: false, resultTypes: ['violations']})")
        faults = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
        assert [f"{one['id']}: {one['nodes'][0]['html']}" for one in faults] == [], name


def test_markup_in_a_registry_is_shown_and_never_run(open_page, registry, tmp_path):
    markup = "<img src=x onerror='document.title = 1'></script><script>document.title = 1</script>"
    data = json.loads(registry.read_bytes())
    data["models"]["ard-p4-w15"] |= {"description": markup, "family": markup}
    (tmp_path / "registry.json").write_text(json.dumps(data), encoding="utf-8", newline="\n")
    site = tmp_path / "site"
    write_site(site, registry=tmp_path / "registry.json")
    index, own = open_page(site=site), open_page("models/ard-p4-w15.html", site=site)
    index.select_option("#family", markup)
    assert shown(index) == ["ard-p4-w15"]
    assert markup in index.inner_text("#table tbody")
    assert markup in own.inner_text("main")
    assert (index.title(), own.title()) == ("Models · Robust Zoo", "ard-p4-w15 · Robust Zoo")
