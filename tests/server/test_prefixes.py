"""What begins alike is read once, over HTTP too, and nobody learns of it who does not share the salt."""

from served import served

from ventoux.model import Mistral

LONG = "It was a dark and stormy night in the harbour of New Bedford. "


def test_turns_and_shared_beginnings_are_cached_facts_13(tiny_wide: Mistral):
    with served(lambda: tiny_wide) as server, server.client() as client:

        def ask(messages: list, **more) -> dict:
            body = {"messages": messages, "temperature": 0, "max_tokens": 8, **more}
            return client.post("/v1/chat/completions", json=body).json()

        def cached(answer: dict) -> int:
            return answer["usage"]["prompt_tokens_details"]["cached_tokens"]

        first = [{"role": "user", "content": LONG}]
        answer = ask(first)
        assert cached(answer) == 0
        again = ask(first)
        assert cached(again) == again["usage"]["prompt_tokens"] - 1
        assert again["choices"] == answer["choices"]
        said = answer["choices"][0]["message"]["content"]
        turn = [*first, {"role": "assistant", "content": said}, {"role": "user", "content": "Go on."}]
        second = ask(turn)
        assert cached(second) >= answer["usage"]["prompt_tokens"] - 2
        assert cached(ask(turn, cache_salt="another")) == 0
        assert ask(turn, cache_salt="another")["choices"] == second["choices"]
    with served(lambda: tiny_wide, prefix_bytes=0) as server, server.client() as client:
        alone = client.post("/v1/chat/completions", json={"messages": turn, "temperature": 0, "max_tokens": 8}).json()
    assert alone["choices"] == second["choices"]
    assert cached(alone) == 0
