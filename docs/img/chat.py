"""Draws chat.png anew: `ventoux serve`, and beside it `python docs/img/chat.py http://127.0.0.1:8000`.

Needs playwright, and Chromium on PATH.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

EARLIER = "What is the capital of France?"
QUESTION = "Write a Python function that returns the mean of a list of numbers. Explain it in three short points."


def main(url: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 720})
        page.goto(url)
        page.wait_for_selector("#model option", state="attached")
        page.click("#open-settings")
        page.fill("#temperature", "0")
        page.click("#open-settings")
        for question in (EARLIER, QUESTION):
            page.click("#new")
            page.fill("#question", question)
            page.press("#question", "Enter")
            page.wait_for_selector("#send:not([hidden])", timeout=120_000)
        page.evaluate("document.getElementById('scroll').scrollTop = 0")
        page.wait_for_timeout(300)
        page.screenshot(path=Path(__file__).with_suffix(".png"))
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
