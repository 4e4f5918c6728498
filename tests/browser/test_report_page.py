"""A report as people see it: a file in a real browser, without network."""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from browser_helpers import console, text_of, wait_until
from selenium.webdriver import Chrome

from qa_hpo.results.report import study_report, to_html
from qa_hpo.search.storage import open_storage
from report_study import HOSTILE, full_study


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a report with hostile names."""
    folder = tmp_path_factory.mktemp("report, it's ünusual")
    storage = open_storage(f"sqlite:///{folder}/study.db", create=True)
    study = full_study(storage, folder / "artifacts", names=HOSTILE)
    path = folder / "report.html"
    path.write_text(to_html(study_report(study.joined)), encoding="utf-8")
    storage.close()
    return path.as_uri()


@pytest.fixture
def offline(browser: Chrome) -> Iterator[Chrome]:
    """The browser without network; no script complains, and none is kept from running."""
    console(browser)
    browser.execute_cdp_cmd("Network.enable", {})
    _network(browser, offline=True)
    yield browser
    _network(browser, offline=False)
    for command in ("clearDeviceMetricsOverride", "setEmulatedMedia"):
        browser.execute_cdp_cmd(f"Emulation.{command}", {})
    assert console(browser) == []


def _network(browser: Chrome, *, offline: bool) -> None:
    speed = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": offline, **speed})


def _open(browser: Chrome, page: str, width: int, scheme: str = "light") -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page)
    drawn = "return document.querySelectorAll('.plot > .plot-container').length"
    plots = "return document.querySelectorAll('.plot').length"
    wait_until(
        lambda: browser.execute_script(drawn) == browser.execute_script(plots) > 0,
        "not all plots are drawn",
    )


def test_everything_is_drawn_and_nothing_runs(offline: Chrome, page: str):
    _open(offline, page, 1200)
    shown = text_of(offline)
    for name in ("script", "pipe", "dollar", "image", "link"):
        assert HOSTILE[name] in shown
    found = offline.execute_script(
        "const plots = [...document.querySelectorAll('.plot')];"
        "return {titles: plots.map(plot => plot.querySelector('.gtitle').textContent),"
        "        traces: plots.map(plot => plot.data.length),"
        "        loaded: performance.getEntriesByType('resource').map(entry => entry.name),"
        "        strays: document.querySelectorAll('img, iframe, object, a[href]').length}"
    )
    assert len(found["titles"]) == 5
    assert all(found["traces"])
    assert "starts from<script>alert(1)<…" in found["titles"][1]
    assert found["loaded"] == []
    assert found["strays"] == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_one_way(offline: Chrome, page: str, scheme: str):
    _open(offline, page, 390, scheme)
    found: dict[str, Any] = offline.execute_script(
        "const plots = [...document.querySelectorAll('.plot')];"
        "const table = document.querySelector('.leaders').parentElement;"
        "const style = getComputedStyle(document.body);"
        "return {width: document.documentElement.scrollWidth,"
        "        plots: plots.map(plot => plot.querySelector('.main-svg').clientWidth),"
        "        inside: table.scrollWidth > table.clientWidth,"
        "        colours: [style.color, style.backgroundColor]}"
    )
    assert found["width"] <= 390
    assert all(0 < width <= 390 for width in found["plots"])
    assert found["inside"], "the leaderboard scrolls within its box"
    ink, paper = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in found["colours"])
    assert (ink < paper) == (scheme == "light")


def test_its_policy_keeps_other_scripts_and_requests_out(offline: Chrome, page: str):
    _open(offline, page, 1200)
    offline.execute_script(
        "const script = document.createElement('script');"
        "script.textContent = 'document.title = \"run\"';"
        "document.body.append(script);"
        "const image = document.createElement('img');"
        "image.src = 'https://evil.example/';"
        "document.body.append(image);"
    )
    assert offline.title == "demo: what the hyperparameter search found"
    lines = wait_until(lambda: console(offline), "nothing was refused")
    assert all("Content Security Policy" in line for line in lines)


def test_it_prints_on_a4(offline: Chrome, page: str):
    _open(offline, page, 1200)
    offline.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    # As wide as pages without their margins, the leaderboard's across: 96 pixels are 25.4 mm.
    for width, selector in (
        (703, ".plot, .main-svg, table:not(.leaders), pre"),
        (1031, ".leaders"),
    ):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        offline.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        wide = offline.execute_script(
            "return [...document.querySelectorAll(arguments[0])]"
            ".map(element => element.getBoundingClientRect().right)"
            ".filter(right => right > arguments[1])",
            *(selector, width),
        )
        assert wide == [], selector
    assert "PRUNED, overfitting" in text_of(offline)
    printed = offline.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    pdf = base64.b64decode(printed["data"])
    streams = re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL)
    sizes = {tuple(map(round, map(float, box.split()))) for box in _boxes(pdf, streams)}
    assert sizes == {(0, 0, 595, 842), (0, 0, 842, 595)}


def _boxes(pdf: bytes, streams: list[bytes]) -> list[bytes]:
    """The sizes of the pages, in points, wherever the file has them."""
    plain = [pdf]
    for stream in streams:
        try:
            plain.append(zlib.decompress(stream))
        except zlib.error:
            continue
    return [box for part in plain for box in re.findall(rb"/MediaBox \[(.*?)\]", part)]
