"""Markdown on the chat page: what is written means what it says, and what is hostile says it and does nothing."""

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from chat_page import Chat, answering
from served import Served, served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# In each: the address that must not be asked for, and the name that must not be called.
HOSTILE = [
    "<script>hacked(1)</script>",
    "<img src=x onerror=hacked(2)>",
    "<svg onload=hacked(3)><animate onbegin=hacked(3)></svg>",
    "<iframe src='javascript:parent.hacked(4)'></iframe>",
    "[link](javascript:hacked(5))",
    "[link](JaVaScRiPt&colon;hacked(5))",
    "[link](java\tscript:hacked(5))",
    "[link](<java\nscript:hacked(5)>)",
    "[link](\x01javascript:hacked(5))",
    "[link](data:text/html;base64,PHNjcmlwdD5oYWNrZWQoNik8L3NjcmlwdD4=)",
    "[link](vbscript:hacked(7))",
    "[link](//elsewhere.invalid/8)",
    "[link](file:///etc/passwd)",
    "[link](blob:https://elsewhere.invalid/9)",
    "<javascript:hacked(10)>",
    "![secret](https://elsewhere.invalid/?told=secret)",
    "![x](x\"onerror=\"hacked(11))",
    "[![image](https://elsewhere.invalid/12.png)](javascript:hacked(12))",
    '[x](https://elsewhere.invalid/"onmouseover="hacked(13))',
    "&lt;script&gt;hacked(14)&lt;/script&gt; &#106;avascript:hacked(14)",
    "```<img src=x onerror=hacked(15)>\n<script>hacked(15)</script>\n```",
    "`<script>hacked(16)</script>`",
    "| <img src=x onerror=hacked(17)> | b |\n|---|---|\n| <script>hacked(17)</script> | [x](javascript:hacked(17)) |",
    "# <body onload=hacked(18)>\n> <style>*{background:url(https://elsewhere.invalid/18)}</style>",
    "<a href='javascript:hacked(19)'>x</a><form action=https://elsewhere.invalid><button>x</button></form>",
    "<meta http-equiv=refresh content='0;url=https://elsewhere.invalid/20'><base href=https://elsewhere.invalid/>",
    "<link rel=stylesheet href=https://elsewhere.invalid/21><object data=https://elsewhere.invalid/21></object>",
    "${hacked(22)} {{hacked(22)}} <%= hacked(22) %>",
    "\u202e\u2066[link](https://elsewhere.invalid/)\u0000</textarea><script>hacked(23)</script>",
]  # fmt: skip
ALLOWED = set(
    "A ARTICLE BLOCKQUOTE BR BUTTON CODE DEL DIV EM FIGCAPTION FIGURE H1 H2 H3 H4 H5 H6 HR INPUT LI OL P PATH PRE SPAN"
    " STRONG SVG TABLE TBODY TD TH THEAD TR UL".split()
)
TAME = """() => {
  const list = [...document.querySelectorAll("#thread *")];
  const attributes = list.flatMap((each) => [...each.attributes].map(({ name }) => name));
  const links = list.filter((each) => each.tagName === "A");
  for (const link of links) link.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
  return {
    tags: [...new Set(list.map((each) => each.tagName.toUpperCase()))],
    handlers: attributes.filter((name) => name.startsWith("on") || name === "style" || name === "src"),
    addresses: links.map((link) => [link.protocol, link.rel, link.target]),
  };
}"""
DRAW = """async ([pieces, finish]) => {
  const { Markdown } = await import("/page/markdown.js");
  const body = document.createElement("div");
  const markdown = new Markdown(body);
  for (const piece of pieces) markdown.push(piece);
  if (finish) markdown.finish();
  return body;
}"""


@pytest.fixture(scope="module")
def hostile() -> Iterator[Served]:
    """A model that says all that, under names that are as bad."""
    with served(
        lambda: answering(lambda prompt: "\n\n".join(HOSTILE)), aliases=("<img src=x onerror=hacked(0)>",)
    ) as found:
        yield found


@pytest.fixture(scope="module")
def page(browser: "Browser", hostile: Served) -> Iterator["Page"]:
    """One page for all that only draws."""
    page = browser.new_page()
    chat = Chat(page, hostile.url).open()
    yield page
    chat.clean()


def html(page: "Page", *pieces: str) -> str:
    """What a text becomes that comes in these pieces."""
    return page.evaluate(f"async (given) => (await ({DRAW})(given)).innerHTML", [pieces, True])


def plain(page: "Page", text: str) -> str:
    """As `html`, without what only dresses it."""
    names = "['dir', 'rel', 'target', 'title', 'tabindex']"
    strip = f"body.querySelectorAll('*').forEach((each) => {names}.forEach((name) => each.removeAttribute(name)));"
    code = f"async (given) => {{ const body = await ({DRAW})(given); {strip} return body.innerHTML; }}"
    return page.evaluate(code, [[text], True])


def test_nothing_hostile_does_anything(browser: "Browser", hostile: Served):
    context = browser.new_context()
    chat = Chat(context.new_page(), hostile.url).open()
    for text in HOSTILE:
        chat.page.evaluate(
            "([text, key]) => localStorage.setItem(`ventoux.chat.${key}`, JSON.stringify({id: text, title: text,"
            " system: text, updated: 1, options: {model: text}, messages: [{role: 'user', content: text},"
            " {role: 'assistant', content: text, reason: text, figures: {tokens: text}}]}))",
            [text, f"<img src=x onerror=hacked(-1)>{text}"],
        )
    chat.page.reload()
    chat.until("document.querySelectorAll('#model option').length === 1")
    assert len(chat.titles) == len(HOSTILE)
    chat.page.click("#new")
    chat.ask("\n".join(HOSTILE))
    chat.page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(status=400, json={"error": {"message": HOSTILE[1]}})
    )
    chat.page.fill("#question", HOSTILE[0])
    chat.page.press("#question", "Enter")
    chat.page.get_by_role("alert").wait_for()
    found = chat.page.evaluate(TAME)
    assert set(found["tags"]) <= ALLOWED
    assert found["handlers"] == []
    assert found["addresses"], "there are links that may be followed"
    for protocol, rel, target in found["addresses"]:
        assert protocol in ("http:", "https:", "mailto:")
        assert (rel, target) == ("noopener noreferrer nofollow", "_blank")
    assert "<script>hacked(1)</script>" in chat.said[1], "it is all there to be read"
    chat.page.get_by_label("Rename <script>hacked(1)").first.press("Enter")
    chat.page.keyboard.press("Enter")
    chat.page.get_by_label("Delete <script>hacked(1)").first.press("Enter")
    chat.page.wait_for_timeout(200)
    context.close()
    chat.clean()


def test_the_policy_itself_stops_what_would_get_through(browser: "Browser", hostile: Served):
    """Markup put in by force, as a bug of ours would: the test's own alarm rings, and nothing runs."""
    page = browser.new_page()
    chat = Chat(page, hostile.url).open()
    page.evaluate(
        "document.getElementById('thread').innerHTML = '<img src=x: onerror=hacked(1)><svg onload=hacked(2)>'"
    )
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'hacked(3)'}))")
    page.evaluate("fetch('https://elsewhere.invalid/').catch(() => 0)")
    page.wait_for_timeout(300)
    told = "\n".join(chat.wrong)
    assert "script-src" in told
    assert "connect-src" in told
    assert not any(f"hacked ({n}" in told for n in (1, 2, 3)), told
    page.close()


WRITTEN = {
    "a *b* **c** ***d*** ~~e~~ `f`": "<p>a <em>b</em> "
    "<strong>c</strong> <strong><em>d</em></strong> <del>e</del> <code>f</code></p>",
    "2 * 3 * 4, snake_case_name, **open": "<p>2 * 3 * 4, snake_case_name, **open</p>",
    "*a **b*": "<p><em>a **b</em></p>",
    "**a *b* c**": "<p><strong>a <em>b</em> c</strong></p>",
    r"\*a\* \`b\` \c": r"<p>*a* `b` \c</p>",
    "`` a`b `` and `c": "<p><code>a`b</code> and `c</p>",
    "one\ntwo\n\nthree": "<p>one<br>two</p><p>three</p>",
    "# A #\n### B\n#no": "<h1>A</h1><h3>B</h3><p>#no</p>",
    "- a\n- b\n  - c\n\n  d\n- e": "<ul><li>a</li><li>b<ul><li>c</li></ul><p>d</p></li><li>e</li></ul>",
    "3. a\n4. b\n\nc": '<ol start="3"><li>a</li><li>b</li></ol><p>c</p>',
    "It was\n1984. A year": "<p>It was<br>1984. A year</p>",
    "> a\n> - b\n\nc": "<blockquote><p>a</p><ul><li>b</li></ul></blockquote><p>c</p>",
    "a\n\n---\nb": "<p>a</p><hr><p>b</p>",
    "|a|b|\n|-|:-:|\n|c\\|d|`e|f`|\n|g|": "<div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody>"
    "<tr><td>c|d</td><td><code>e|f</code></td></tr><tr><td>g</td><td></td></tr></tbody></table></div>",
    "[a](https://x.org/y_(z) 'title') [b](other) [c]": '<p><a href="https://x.org/y_(z)">a</a> [b](other) [c]</p>',
    "see https://x.org/a_b?c=d. <https://y.org/>": '<p>see <a href="https://x.org/a_b?c=d">https://x.org/a_b?c=d</a>. '
    '<a href="https://y.org/">https://y.org/</a></p>',
    "![a](https://x.org/y.png)": '<p><a href="https://x.org/y.png">image: a</a></p>',
    "<b>&amp;": "<p>&lt;b&gt;&amp;amp;</p>",
}  # fmt: skip


def test_it_means_what_it_says(page: "Page"):
    drawn = {text: plain(page, text).replace(' class="table"', "").replace(' class="center"', "") for text in WRITTEN}
    assert drawn == WRITTEN


def test_code_is_as_it_was_written(page: "Page"):
    code = "  def f():\n\treturn '<b>**x**</b>'\n\n~~~\n# end"
    found = page.evaluate(
        f"async (given) => [...(await ({DRAW})(given)).querySelectorAll('pre')].map((pre) => pre.textContent)",
        [
            [f"a\n```py\n{code}\n```\n- b\n  ```\n  in a list\n    more\n  ```\n\n````\n```\n````\n```\nnot closed"],
            True,
        ],
    )
    assert found == [code, "in a list\n  more", "```", "not closed"]


def document(rng: random.Random) -> str:
    parts = [
        *WRITTEN,
        *HOSTILE,
        "```py\nx = 1\n\n# y\n```",
        "    ",
        "\n",
        "\n\n",
        "- ",
        "> ",
        "`",
        "**",
        "|",
        "1. x\n2. y",
        "x" * 30,
    ]
    return "".join(rng.choice(parts) + rng.choice(["", " ", "\n", "\n\n"]) for _ in range(rng.randrange(1, 25)))


def cut(rng: random.Random, text: str, pieces: int) -> list[str]:
    places = sorted(rng.randrange(len(text) + 1) for _ in range(pieces - 1))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize("repeat", [1, 60])
def test_pieces_become_what_the_whole_becomes(page: "Page", repeat: int):
    """However a text is cut, the long ones included, of which not every piece is drawn anew."""
    rng = random.Random(5)
    for _ in range(120 // repeat + 2):
        text = document(rng) * repeat
        pieces = cut(rng, text, rng.randrange(2, 60))
        assert html(page, *pieces) == html(page, text), pieces


GROWING = {
    "paragraphs": "A paragraph with *some* `words` in it, [and a link](https://x.org).\n\n",
    "one paragraph": "*word* `and` ",
    "one list": "- an item\n",
    "one block of code": "line of code\n",
    "one table": "| a | b |\n",
    "openers": "**a *b [",
    "nested": "> - ",
    "ticks": "` `` ",
    "links": "[](",
}


IN_SECONDS = ("paragraphs", "one block of code", "links")


@pytest.mark.parametrize(
    "what", [what if what in IN_SECONDS else pytest.param(what, marks=pytest.mark.slow) for what in GROWING]
)
def test_the_cost_is_linear_in_the_text(page: "Page", what: str):
    """Nodes that are made for a text of twice the length, which comes in pieces of a token's, are twice as many."""
    begin = {"one block of code": "```\n", "one table": "| a | b |\n|---|---|\n"}.get(what, "")
    count = f"""async ([begin, piece, times]) => {{
      let made = 0;
      const create = document.createElement;
      document.createElement = function (...all) {{ made++; return create.apply(this, all); }};
      try {{
        await ({DRAW})([[begin, ...Array(times).fill(piece)], true]);
      }} finally {{
        document.createElement = create;
      }}
      return made;
    }}"""
    piece = GROWING[what] * (60 // len(GROWING[what]) or 1)  # a few tokens, as come between two frames
    times = 16_000 // len(piece)
    once, twice = (page.evaluate(count, [begin, piece, n]) for n in (times, 2 * times))
    assert twice <= 2.5 * once + 20
