"""What tests in the browser share."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

__all__ = [
    "click",
    "console",
    "downloaded",
    "element",
    "text_of",
    "wait_for",
    "wait_until",
    "wait_until_gone",
]

SECONDS = 60

Found = TypeVar("Found")


def wait_until(look: Callable[[], Found], what: Callable[[], str] | str) -> Found:
    """Return the first result of ``look`` that is true; ``what`` says what was waited for."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            found = look()
        except StaleElementReferenceException:  # the page has drawn itself anew
            found = None
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(what if isinstance(what, str) else what())
        time.sleep(0.2)


def text_of(browser: Chrome) -> str:
    """Return the text that the page shows, as people see it."""
    # Not the body element's text, which the driver takes seconds for on a page with plots.
    return str(browser.execute_script("return document.body.innerText"))


def wait_for(browser: Chrome, *words: str) -> str:
    """Wait until the page shows all of ``words``, and return all its text."""

    def look() -> str | None:
        text = text_of(browser)
        return text if all(word in text for word in words) else None

    return wait_until(look, lambda: f"{words} are not all on the page:\n{text_of(browser)}")


def element(browser: Chrome, selector: str, *, text: str = "") -> WebElement:
    """Wait for an element that can be seen: by a CSS selector, and by text within it."""

    def look() -> WebElement | None:
        for found in browser.find_elements(By.CSS_SELECTOR, selector):
            if found.is_displayed() and text in found.text:
                return found
        return None

    return wait_until(look, lambda: f"no {selector} with {text!r}:\n{text_of(browser)}")


def click(browser: Chrome, selector: str, *, text: str = "") -> None:
    """Click on an element as soon as it can be."""

    def look() -> bool:
        try:
            element(browser, selector, text=text).click()
        except WebDriverException as error:
            if "not clickable" not in str(error) and "intercepted" not in str(error):
                raise
            return False
        return True

    wait_until(look, f"{selector} with {text!r} cannot be clicked on")


def wait_until_gone(browser: Chrome, selector: str) -> None:
    """Wait until a page has no such element any more."""
    wait_until(lambda: not browser.find_elements(By.CSS_SELECTOR, selector), f"{selector} stays")


def downloaded(folder: Path, name: str) -> bytes:
    """Wait for a download and return its content."""
    path = folder / name
    wait_until(path.exists, lambda: f"no {name} but {[path.name for path in folder.iterdir()]}")
    content = path.read_bytes()
    path.unlink()
    return content


def console(browser: Chrome) -> list[str]:
    """Return what the page's scripts complained of since the last call."""
    entries = browser.get_log("browser")
    lines = [str(entry["message"]) for entry in entries if entry["level"] == "SEVERE"]
    return [re.sub(r"\s+", " ", line) for line in lines]
