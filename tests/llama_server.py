"""llama.cpp as an oracle: its tokenizer and its greedy text, asked through its server."""

import json
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen


class LlamaCpp:
    """One model in llama.cpp's server; small contexts, one thread."""

    def __init__(self, path: Path) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 64, 1, 1
        params.warmup = False
        self._server = xllamacpp.Server(params)

    def ask(self, route: str, **question: Any) -> dict[str, Any]:
        body = json.dumps(question).encode()
        url = f"{self._server.listening_address}/{route}"
        with urlopen(Request(url, body, {"Content-Type": "application/json"})) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.ask("tokenize", content=text, add_special=False, parse_special=False)["tokens"]
        return ids

    def ends_with(self, token_id: int) -> bool:
        """Whether this token, when the model chooses it, ends the text."""
        bias = [[token_id, 1000.0]]
        answer = self.ask("completion", prompt="a", n_predict=2, temperature=0, logit_bias=bias, cache_prompt=False)
        return bool(answer["stop_type"] == "eos")

    def greedy(self, ids: list[int], n: int) -> list[int]:
        """The n likeliest tokens after these ids, whatever they are."""
        settings = {"n_predict": n, "temperature": 0, "top_k": 1, "ignore_eos": True, "cache_prompt": False}
        answer = self.ask("completion", prompt=ids, return_tokens=True, **settings)
        found: list[int] = answer["tokens"]
        return found
