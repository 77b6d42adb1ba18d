"""The chat page in a browser: what is asked, streamed, stopped, edited and kept; and the files that it is made of."""

import json
import re
import threading
from base64 import b64encode
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from chat_page import Chat, answering, questions
from served import Served, served

from ventoux.model import Mistral
from ventoux.server.routes.page import assets

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ENDLESS = "la " * 6000


def reply(prompt: str) -> str:
    """An answer that tells which question it is to, and how many there were."""
    asked = questions(prompt)
    if asked[-1].startswith("|"):
        return asked[-1]
    return ENDLESS if asked[-1] == "sing" else f"**{len(asked)}**: you said {asked[-1]}"


@pytest.fixture(scope="module")
def talking() -> Iterator[Served]:
    with served(lambda: answering(reply), aliases=("parrot", "other")) as found:
        yield found


@pytest.fixture(scope="module")
def slow() -> Iterator[Served]:
    with served(lambda: answering(reply, seconds=0.003)) as found:
        yield found


@pytest.fixture
def chat(browser: "Browser", talking: Served) -> Iterator[Chat]:
    context = browser.new_context()
    page = Chat(context.new_page(), talking.url)
    try:
        yield page.open()
    finally:
        context.close()
    page.clean()


@pytest.fixture
def slow_chat(browser: "Browser", slow: Served) -> Iterator[Chat]:
    context = browser.new_context()
    page = Chat(context.new_page(), slow.url)
    try:
        yield page.open()
    finally:
        context.close()
    page.clean()
    slow.until(lambda: slow.service.worker.alive == 0)


def test_the_files_are_served_as_they_are(server: Served):
    with server.client() as client:
        for route in ("/", *(f"/page/{name}" for name in assets() if name != "index.html")):
            whole, head = client.get(route), client.head(route)
            assert (whole.status_code, head.status_code, head.content) == (200, 200, b"")
            assert whole.content == assets()[route.removeprefix("/page/").strip("/") or "index.html"].content
            policy = whole.headers["content-security-policy"].split("; ")
            assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= {*policy}
            assert whole.headers["x-content-type-options"] == "nosniff"
            assert whole.headers["referrer-policy"] == "no-referrer"
            again = client.get(route, headers={"If-None-Match": f'"old", W/{whole.headers["etag"]}'})
            assert (again.status_code, again.content) == (304, b"")
        for route in ("/page/", "/page/none.js", "/page/..%2fapp.py", "/page/%2e%2e/app.py", "/page/index.html"):
            assert client.get(route).status_code == 404, route
        assert client.post("/", json={}).status_code == 405


def test_all_that_the_page_names_is_there_and_nothing_is_elsewhere():
    for name, asset in assets().items():
        text = asset.content.decode()
        named = re.findall(r'(?:href|src)="page/([^"]+)"', text) + re.findall(r'from "\./([^"]+)"', text)
        assert set(named) <= set(assets()), name
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), name
        elsewhere = re.findall(
            r"(?:https?:)?//[a-z0-9]+\.[a-z.]+[^\s\"]*", text.replace("http://www.w3.org/2000/svg", "")
        )
        assert not elsewhere, name
        assert text.count("\n") < 350, name


def test_a_browser_is_asked_for_a_password(tiny: Mistral, browser: "Browser"):
    with served(lambda: tiny, api_keys=("open-sesame",)) as locked:
        with locked.client() as client:
            for route in ("/", "/page/page.js", "/page/none.js"):
                refused = client.get(route)
                assert refused.status_code == 401
                assert refused.headers["www-authenticate"].startswith("Basic ")
            assert "www-authenticate" not in client.get("/v1/models").headers
            key = b64encode(b"anyone:open-sesame").decode()
            assert client.get("/", headers={"Authorization": f"Basic {key}"}).status_code == 200
        context = browser.new_context(http_credentials={"username": "me", "password": "open-sesame"})
        chat = Chat(context.new_page(), locked.url).open()  # which asks for the models with the password
        chat.ask("hello")
        assert chat.page.locator(".failure").count() == 0
        chat.clean()
        context.close()


def test_a_conversation_is_told_whole(chat: Chat):
    chat.ask("first")
    chat.ask("second")
    assert chat.said == ["first", "1: you said first", "second", "2: you said second"]
    assert chat.page.locator("#thread strong").all_inner_texts() == ["1", "2"]
    figures = chat.page.locator(".figures").last.inner_text()
    assert re.search(r"\d+ tokens, [\d.]+ a second · prompt \d+", figures)
    assert chat.titles == ["first"]
    assert chat.page.title() == "first - Ventoux"


def test_an_answer_is_shown_as_it_comes_and_stopped(slow_chat: Chat, slow: Served):
    slow_chat.ask("sing", wait=False)
    slow_chat.until("document.querySelector('.assistant .body')?.textContent.length > 20")
    assert slow.service.worker.alive == 1
    assert slow_chat.page.locator("#thread").get_attribute("aria-busy") == "true"
    slow_chat.page.keyboard.press("Escape")
    slow_chat.done()
    slow.until(lambda: slow.service.worker.alive == 0)
    assert slow_chat.said[1].startswith("la la")
    assert "stopped" in slow_chat.page.locator(".figures").last.inner_text()
    slow_chat.ask("and now")  # the conversation goes on
    assert slow_chat.said[-1] == "2: you said and now"


def test_a_reload_in_the_middle_keeps_what_had_come(slow_chat: Chat, slow: Served):
    slow_chat.ask("sing", wait=False)
    slow_chat.until("document.querySelector('.assistant .body')?.textContent.length > 20")
    slow_chat.page.reload()
    slow.until(lambda: slow.service.worker.alive == 0)
    assert slow_chat.said[0] == "sing"
    assert slow_chat.said[1].startswith("la la la")
    assert "broken off" in slow_chat.page.locator(".figures").last.inner_text()


def test_a_message_is_edited_and_an_answer_given_again(chat: Chat):
    chat.ask("first")
    chat.ask("second")
    chat.page.get_by_label("Answer again").click()
    chat.done()
    assert chat.said == ["first", "1: you said first", "second", "2: you said second"]
    chat.page.get_by_label("Edit the message").first.click()
    chat.page.get_by_label("Edited message").fill("changed")
    chat.page.keyboard.press("Escape")
    assert chat.said[0] == "first"
    chat.page.get_by_label("Edit the message").first.click()
    chat.page.get_by_label("Edited message").fill("changed")
    chat.page.keyboard.press("Enter")
    chat.done()
    assert chat.said == ["changed", "1: you said changed"]


def test_settings_reach_the_model(chat: Chat):
    bodies: list[dict] = []
    chat.page.on("request", lambda sent: bodies.append(sent.post_data_json) if sent.method == "POST" else None)
    chat.page.click("#open-settings")
    chat.page.fill("#system", "Be brief.")
    for name, value in {"temperature": "0.5", "top_p": "0.9", "max_tokens": "7", "seed": "3"}.items():
        chat.page.fill(f"#{name}", value)
    chat.page.select_option("#model", "other")
    chat.ask("first")
    said = {key: bodies[0][key] for key in ("temperature", "top_p", "max_tokens", "seed", "model")}
    assert said == {"temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "seed": 3, "model": "other"}
    assert bodies[0]["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "first"}]
    assert "cut at the limit" in chat.page.locator(".figures").last.inner_text()
    chat.page.fill("#temperature", "7")
    assert "Temperature" in chat.page.locator("#wrong").inner_text()
    chat.ask("second")
    assert "temperature" not in bodies[1], "what cannot be used is left out, and said"
    chat.page.reload()
    chat.until("document.getElementById('model').value === 'other'")
    assert chat.page.input_value("#system") == "Be brief."


def test_conversations_are_kept_renamed_and_deleted(chat: Chat):
    chat.ask("one")
    chat.page.keyboard.press("Control+Shift+O")
    assert chat.page.locator("#welcome").is_visible()
    chat.ask("two")
    assert chat.titles == ["two", "one"]
    chat.page.get_by_label("Rename one").press("Enter")
    chat.page.get_by_label("Name of the conversation").fill("The first")
    chat.page.keyboard.press("Enter")
    chat.page.reload()
    assert chat.titles == ["two", "The first"]
    chat.page.get_by_text("The first").click()
    assert chat.said == ["one", "1: you said one"]
    chat.page.get_by_label("Delete The first").press("Enter")
    assert chat.titles == ["two"]
    assert chat.said[0] == "two"
    chat.page.get_by_role("button", name="Undo").click()
    assert chat.titles == ["two", "The first"]
    chat.page.get_by_label("Delete two").press("Enter")
    chat.page.reload()
    assert chat.titles == ["The first"]


def test_another_conversation_can_be_read_while_one_is_answered(slow_chat: Chat):
    slow_chat.ask("hello")
    slow_chat.page.click("#new")
    slow_chat.ask("sing", wait=False)
    slow_chat.until("document.querySelector('.assistant .body')?.textContent.length > 20")
    slow_chat.page.locator("#conversations .title", has_text="hello").click()
    assert slow_chat.said == ["hello", "1: you said hello"]
    slow_chat.ask("again")
    slow_chat.page.locator("#conversations .title", has_text="sing").click()
    slow_chat.until("document.querySelector('.assistant .body')?.textContent.length > 60")
    slow_chat.page.click("#stop")
    slow_chat.done()
    assert slow_chat.said[0] == "sing"


def test_two_tabs_know_of_each_other(chat: Chat):
    chat.ask("one")
    other = Chat(chat.page.context.new_page(), chat.url).open()
    chat.page.get_by_label("Edit the message").click()
    other.page.click("#new")
    other.ask("two")
    chat.until("document.querySelectorAll('#conversations .title').length === 2")
    assert chat.titles == ["two", "one"]
    assert chat.page.get_by_label("Edited message").is_visible(), "another conversation's changes disturb nothing"
    other.page.get_by_label("Delete one").press("Enter")
    chat.until("document.querySelectorAll('#conversations .title').length === 1")
    other.clean()


def test_a_model_that_is_gone_is_not_asked_for(chat: Chat):
    gone = {
        "title": "old",
        "updated": 1,
        "messages": [{"role": "user", "content": "hello"}],
        "options": {"model": "gone"},
    }
    chat.page.evaluate("(text) => localStorage.setItem('ventoux.chat.old', text)", json.dumps(gone))
    chat.page.reload()
    chat.until("document.getElementById('model').value === 'parrot'")
    chat.page.get_by_role("button", name="Try again").click()
    chat.done()
    assert chat.said == ["hello", "1: you said hello"]


DAMAGED = [
    "{", "null", "7", '"text"', "[]", "{}", '{"messages": 5}', '{"messages": [null, 5, {"role": "system"}]}',
    '{"messages": [{"role": "user", "content": {"a": 1}}], "title": [], "options": 5, "updated": "never"}',
    '{"messages": [], "options": {"temperature": "hot", "seed": null, "model": {}}, "__proto__": {"hacked": 1}}',
]  # fmt: skip


def test_damaged_storage_is_survived(chat: Chat):
    chat.ask("kept")
    write = "(texts) => texts.forEach((text, i) => localStorage.setItem(`ventoux.chat.damaged${i}`, text))"
    chat.page.evaluate(write, DAMAGED)
    chat.page.evaluate("['choices', 'theme'].forEach((name) => localStorage.setItem(`ventoux.${name}`, '{[')) ")
    chat.page.reload()
    assert chat.titles[0] == "kept"
    assert chat.said == ["kept", "1: you said kept"]
    chat.page.click("#new")
    chat.ask("more")
    assert chat.said == ["more", "1: you said more"]


def test_full_storage_is_told_and_the_conversation_goes_on(chat: Chat):
    write = "try { localStorage.setItem(i++, 'x'.repeat(size)) } catch { size >>= 1 }"
    chat.page.evaluate(f"() => {{ for (let size = 1 << 22, i = 0; size; ) {write} }}")
    chat.ask("hello")
    assert "storage is full" in chat.page.locator("#notice").inner_text()
    chat.ask("more")
    assert chat.said[-1] == "2: you said more"


def test_what_goes_wrong_is_said_and_can_be_tried_again(chat: Chat):
    def refuse(status: int, **error: object):
        body = json.dumps({"error": {"message": "no", **error}})
        return lambda route: route.fulfill(status=status, body=body, headers={"Retry-After": "3"})

    told = {
        "has as much to do": refuse(429),
        "is being loaded": refuse(503, code="loading"),
        "has 600 tokens": refuse(400, code="context_length_exceeded", n_prompt_tokens=600, n_ctx=512),
        "wants a key": refuse(401),
        "cannot be reached": lambda route: route.abort(),
        "ended before": lambda route: route.fulfill(body='data: {"choices": [{"delta": {"content": "half"}}]}\n\n'),
        "The end.": lambda route: route.fulfill(body='data: {"error": {"message": "the end"}}\n\n'),
        "status 500": lambda route: route.fulfill(status=500, body="<h1>proxy</h1>"),
    }
    chat.ask("hello")
    for words, answer in told.items():
        chat.page.route("**/v1/chat/completions", answer)
        chat.page.fill("#question", "hello?")
        chat.page.press("#question", "Enter")
        chat.page.get_by_role("alert").filter(has_text=words).wait_for()
        chat.page.unroute("**/v1/chat/completions")
    chat.page.get_by_role("button", name="Try again").click()
    chat.done()
    assert chat.page.locator(".failure").count() == 0
    assert chat.said[-1].startswith("3: you said hello?")  # the half answer stands between


def test_it_waits_for_a_model_that_is_being_loaded(browser: "Browser", tiny: Mistral):
    loaded = threading.Event()

    def load() -> Mistral:
        loaded.wait(20)
        return tiny

    with served(load, wait=False) as loading:
        page = browser.new_page()
        chat = Chat(page, loading.url)
        try:
            page.goto(f"{loading.url}/")
            page.get_by_text("The model is being loaded.").wait_for()
        finally:
            loaded.set()
        page.wait_for_selector("#model option", state="attached")
        chat.clean()
        page.close()


def test_a_phone_has_room_for_it(browser: "Browser", talking: Served):
    wide = "| a | b |\n|---|---|\n| " + "wide" * 60 + " | x |\n\n```\n" + "code " * 60 + "\n```\n\n" + "x" * 300
    context = browser.new_context(viewport={"width": 360, "height": 640}, has_touch=True, color_scheme="dark")
    chat = Chat(context.new_page(), talking.url).open()
    chat.ask(wide)
    assert chat.page.locator("#thread td, #thread pre").count() == 3
    fits = "() => document.documentElement.scrollWidth <= 360 && document.getElementById('scroll').scrollWidth <= 360"
    assert chat.page.evaluate(fits)
    new = chat.page.locator("#new")
    assert not new.is_visible()
    chat.page.get_by_role("button", name="Conversations").click()
    assert new.is_visible()
    assert new.evaluate("(button) => document.activeElement === button")
    assert chat.page.evaluate(fits)
    chat.page.keyboard.press("Escape")
    new.wait_for(state="hidden")
    chat.page.click("#open-settings")
    assert chat.page.evaluate(fits)
    chat.clean()
    context.close()


def test_colours_are_the_systems_until_others_are_chosen(chat: Chat):
    def dark() -> bool:
        red = chat.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
        return int(red) < 128

    assert not dark()
    chat.page.emulate_media(color_scheme="dark")
    assert dark()
    chat.page.click("#theme")
    assert not dark()
    chat.page.reload()
    assert not dark()
    chat.page.emulate_media(color_scheme="light")
    chat.page.click("#theme")
    assert dark()


def test_it_can_be_used_without_a_mouse(chat: Chat):
    keys = chat.page.keyboard
    keys.type("one")
    keys.press("Shift+Enter")
    keys.type("two")
    keys.press("Enter")
    chat.done()
    assert chat.said[0] == "one\ntwo"
    seen = set()
    for _ in range(14):
        keys.press("Tab")
        label = "document.activeElement.ariaLabel ?? document.activeElement.textContent.trim()"
        seen.add(chat.page.evaluate(label))
        if chat.page.evaluate("document.activeElement !== document.body"):
            style = "getComputedStyle(document.activeElement)"
            assert chat.page.evaluate(f"{style}.outlineStyle !== 'none' || document.activeElement.id === 'question'")
    assert {"New chat", "Settings", "Edit the message", "Answer again", "Copy the message"} <= seen


def test_messages_and_code_are_copied(browser: "Browser"):
    text = "Look:\n\n```python\nx = 1\n  y\n```"
    with served(lambda: answering(lambda prompt: text)) as found:
        context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
        chat = Chat(context.new_page(), found.url).open()
        chat.ask("code?")
        chat.page.get_by_label("Copy the code").click()
        assert chat.page.evaluate("navigator.clipboard.readText()") == "x = 1\n  y"
        chat.page.get_by_label("Copy the message").last.click()
        assert chat.page.evaluate("navigator.clipboard.readText()") == text
        chat.clean()
        context.close()
