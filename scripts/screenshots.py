"""Take the documentation's pictures anew: `python scripts/screenshots.py STUDY`, on a finished one.

Needs Chromium (scripts/chromium.sh). Look at each picture before it is committed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions, ChromeService

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "browser"))
from browser_helpers import wait_for  # noqa: E402

from conftest import ARGUMENTS, CHROMIUM, DRIVER  # noqa: E402

IMAGES = ROOT / "docs" / "images"
QA_HPO = str(Path(sys.executable).with_name("qa-hpo"))
DRAWN_SECONDS = 4  # plots are animated


def main() -> None:
    """Take all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", help="a study file, whose study is over")
    study: str = parser.parse_args().study
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        options = ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for argument in (*ARGUMENTS, f"--user-data-dir={folder}/profile"):
            options.add_argument(argument)
        browser = Chrome(options=options, service=ChromeService(str(DRIVER)))
        try:
            _of_dashboard(browser, study)
            report = Path(folder) / "report.html"
            subprocess.run([QA_HPO, "report", study, "--out", str(report)], check=True)
            _of_report(browser, report)
        finally:
            browser.quit()


def _of_dashboard(browser: Chrome, study: str) -> None:
    command = [QA_HPO, "dashboard", study, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            page = next(word for word in process.stdout.readline().split() if "://" in word)
            browser.set_window_size(1400, 1150)
            browser.get(f"{page}/note")
            wait_for(browser, "PRUNED")
            _picture(browser, "dashboard-note")
            browser.get(page)
            wait_for(browser, "alidation loss")
            time.sleep(DRAWN_SECONDS)
            browser.execute_script(
                "document.querySelector('[id^=\"user-defined-plot:\"]')"
                ".scrollIntoView({block: 'start'}); window.scrollBy(0, -120)"
            )
            _picture(browser, "dashboard-plots")
        finally:
            process.terminate()


def _of_report(browser: Chrome, report: Path) -> None:
    browser.set_window_size(1100, 1500)
    browser.get(report.as_uri())
    _picture(browser, "report")
    # Two plots beside each other, for the README.
    browser.execute_script(
        "for (const plot of [...document.querySelectorAll('figure')].slice(2)) plot.remove();"
        "const plots = document.querySelector('.plots');"
        "plots.style.gridTemplateColumns = '1fr 1fr';"
        "plots.scrollIntoView()"
    )
    _picture(browser, "plots", of=".plots")


def _picture(browser: Chrome, name: str, of: str = "html") -> None:
    time.sleep(DRAWN_SECONDS)
    path = IMAGES / f"{name}.png"
    if of == "html":
        browser.save_screenshot(str(path))
    else:
        browser.find_element("css selector", of).screenshot(str(path))
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
