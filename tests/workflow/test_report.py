"""The report of a run, as a reader with a browser meets it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from dklfm.config import Config, Plan, validate
from tests.workflow.small import config, snakemake

DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(DRIVER is None, reason="no Chromium; `make packages` installs it on Debian"),
]
CATEGORIES = {
    "1 Methods compared": 2,
    "2 Forces inferred from simulated tasks": 2,
    "3 Forces inferred from measurements": 1,
    "4 Are the bands honest?": 2,
    "5 Training": 2,
    "6 What tasks and time buy": 1,
    "7 Settings": 1,
}


@pytest.fixture(scope="module")
def report(finished: Path) -> Path:
    path = finished / "report.html"
    snakemake(finished, "--report", str(path))
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1500,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def opened(browser: webdriver.Chrome, report: Path, category: str | None = None) -> None:
    browser.get(report.as_uri())
    seen(browser, "7 Settings")
    if category is not None:
        seen(browser, category).click()


def seen(browser: webdriver.Chrome, text: str) -> WebElement:
    """The innermost element that shows a text, once there is one."""
    path = f'//*[contains(text(), "{text}")]'

    def found(driver: webdriver.Chrome) -> WebElement | None:
        shown = [e for e in driver.find_elements(By.XPATH, path) if e.is_displayed()]
        return shown[-1] if shown else None

    return WebDriverWait(browser, 20).until(found)


def icons(browser: webdriver.Chrome, name: str) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, f'a[iconname="{name}"]')


def widths(browser: webdriver.Chrome) -> list[int]:
    """Of the pictures of a page, in their own pixels."""
    pictures = browser.find_elements(By.TAG_NAME, "img")
    return [int(picture.get_attribute("naturalWidth") or 0) for picture in pictures]


def test_every_figure_and_table_is_in_its_category(
    browser: webdriver.Chrome, report: Path, finished: Path
) -> None:
    plan = Plan.of(validate(Config, config(finished), "test"))
    figures = [count for name, count in CATEGORIES.items() if name[0] in "23456"]
    assert sum(figures) == len(plan.stages("figure"))
    for category, count in CATEGORIES.items():
        opened(browser, report, category)
        assert len(icons(browser, "eye")) == count, category


def test_story_pictures_captions_and_times_are_shown(
    browser: webdriver.Chrome, report: Path
) -> None:
    opened(browser, report)
    assert seen(browser, "A latent force model is a differential equation")
    assert seen(browser, "small").text == "small"
    for category, words in {
        "2 Forces inferred from simulated": "its central 95 % interval",
        "4 Are the bands honest?": "uniform",
        "6 What tasks and time buy": "number of training tasks",
    }.items():
        opened(browser, report, category)
        icons(browser, "eye")[0].click()
        WebDriverWait(browser, 20).until(lambda driver: max(widths(driver)) > 500)
        opened(browser, report, category)
        icons(browser, "information-circle")[0].click()
        assert seen(browser, words)
    opened(browser, report, "1 Methods compared")
    icons(browser, "eye")[1].click()
    WebDriverWait(browser, 20).until(lambda d: d.find_elements(By.TAG_NAME, "iframe"))
    browser.switch_to.frame(browser.find_element(By.TAG_NAME, "iframe"))
    assert seen(browser, "mechanistic")
    opened(browser, report, "Statistics")
    WebDriverWait(browser, 20).until(
        lambda d: d.find_elements(By.CSS_SELECTOR, "svg.marks, canvas")
    )


def test_console_has_no_errors(browser: webdriver.Chrome, report: Path) -> None:
    browser.get_log("browser")
    for category in (None, *CATEGORIES, "Statistics", "About"):
        opened(browser, report, category)
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
