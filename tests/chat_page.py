"""The chat page in a browser, for tests; and a model that says what a test wants to hear."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from toy import EOS, VOCAB, ByteTokenizer, ToyBackend

from ventoux.model import Mistral

if TYPE_CHECKING:
    from playwright.sync_api import Dialog, Locator, Page, Request

# \x02 begins a message's content, \x03 ends it; the answer comes after the last \x04.
TEMPLATE = "{% for m in messages %}{{ m['role'] }}\x02{{ m['content'] }}\x03{% endfor %}\x04"


def answering(answer: Callable[[str], str], *, context_length: int = 20_000, seconds: float = 0) -> Mistral:
    """A model that answers what `answer` makes of the prompt as the template writes it, a byte at a time.

    `seconds` are what a byte takes.
    """

    def row(ids: list[int]) -> np.ndarray:
        time.sleep(seconds)
        prompt, _, said = bytes(i for i in ids if i < EOS - 1).rpartition(b"\x04")
        script = [*answer(prompt.decode()).encode(), EOS]
        logits = np.zeros(VOCAB, np.float32)
        logits[script[len(said)]] = 100
        return logits

    return Mistral(ToyBackend(row, context_length=context_length), tokenizer=ByteTokenizer(), template=TEMPLATE)


def questions(prompt: str) -> list[str]:
    """What the user has asked in a prompt of the template's."""
    return [part.split("\x02", 1)[1] for part in prompt.split("\x03") if part.startswith("user\x02")]


class Chat:
    """The page as its user has it. Collects what must not happen."""

    def __init__(self, page: "Page", url: str) -> None:
        self.page = page
        self.url = url
        self.wrong: list[str] = []
        page.set_default_timeout(15_000)
        page.on("dialog", self._dialog)
        page.on("request", self._request)
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("popup", lambda popup: self.wrong.append(f"popup: {popup.url}"))
        page.on("console", lambda said: self.wrong.append(said.text) if "Content Security" in said.text else None)
        page.expose_function("hacked", lambda *what: self.wrong.append(f"hacked {what}"))
        page.add_init_script(
            "addEventListener('securitypolicyviolation', (event) => hacked(event.violatedDirective, event.blockedURI))"
        )

    def _dialog(self, dialog: "Dialog") -> None:
        self.wrong.append("a dialog")
        dialog.dismiss()

    def _request(self, request: "Request") -> None:
        if not request.url.startswith(f"{self.url}/"):
            self.wrong.append(f"a request to {request.url}")

    def open(self) -> "Chat":
        self.page.goto(f"{self.url}/")
        self.page.wait_for_selector("#model option", state="attached")
        return self

    def ask(self, text: str, *, wait: bool = True) -> None:
        self.page.fill("#question", text)
        self.page.press("#question", "Enter")
        if wait:
            self.done()

    def done(self) -> None:
        self.page.wait_for_selector("#send:not([hidden])")

    def until(self, condition: str) -> None:
        """Wait for JavaScript to be true. Asked from here: the page's policy lets the browser wait for none."""
        end = time.monotonic() + 15
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, f"it did not come about: {condition}"
            self.page.wait_for_timeout(10)

    @property
    def said(self) -> list[str]:
        """Texts of the messages, the user's and the model's."""
        return self.page.locator("#thread .body").all_inner_texts()

    @property
    def titles(self) -> list[str]:
        return self.page.locator("#conversations .title").all_inner_texts()

    @property
    def answer(self) -> "Locator":
        return self.page.locator("#thread .assistant .body").last

    def clean(self) -> None:
        """Nothing of what was written did anything."""
        assert not self.wrong, self.wrong
