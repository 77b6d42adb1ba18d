"""`demo` and `interactive`, as the reference implementation has them: same prompts, same separators."""

from typing import Any

from ventoux.model import Mistral

PROMPTS = (
    "This is a test",
    "This is another test",
    "This is a third test, mistral AI is very good at testing. ",
)
SEPARATOR = "=" * 21
TOP_P = 0.8


def demo(model: Mistral, *, max_tokens: int, temperature: float, adapter: str | None = None) -> None:
    for prompt in PROMPTS:
        sampling: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": TOP_P}
        continued = model.generate(prompt, adapter=adapter, **sampling)
        print(prompt + continued, SEPARATOR, sep="\n", flush=True)


def interactive(
    model: Mistral, *, max_tokens: int, temperature: float, instruct: bool, adapter: str | None = None
) -> None:
    """Ends with the input (Ctrl-D), or with Ctrl-C."""
    messages: list[dict[str, str]] = []
    sampling: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": TOP_P}
    try:
        while True:
            try:
                prompt = input("Prompt: ")
            except EOFError:
                print()
                return
            if instruct:
                messages.append({"role": "user", "content": prompt})
                events = model.stream_chat(messages, adapter=adapter, **sampling)
            else:
                print(prompt, end="", flush=True)
                events = model.stream(prompt, adapter=adapter, **sampling)
            answer = ""
            for event in events:
                answer += event.text
                print(event.text, end="", flush=True)
            print(f"\n{SEPARATOR}", flush=True)
            if instruct:
                messages.append({"role": "assistant", "content": answer})
    except KeyboardInterrupt:
        print()  # the shell's prompt gets a line of its own
        raise
