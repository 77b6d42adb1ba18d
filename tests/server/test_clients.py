"""Clients that others wrote, unchanged, against the server: what they say is what the model says."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import openai
import pytest
import torch
from openai import AsyncOpenAI, OpenAI
from openai.types import Completion, CompletionUsage
from served import Served
from tiny import logits, tiny_model
from tiny_tokenizer import VOCAB, tiny_tokenizer

from ventoux.model import Mistral

MESSAGES = [{"role": "user", "content": "Call me Ishmael."}]
GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def client(server: Served) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def said(tiny: Mistral) -> str:
    return str(tiny.chat(MESSAGES, temperature=0, max_tokens=24))


@pytest.fixture(scope="module")
def went_on(tiny: Mistral) -> str:
    return str(tiny.generate("Call me", temperature=0, max_tokens=24))


def strict(found: openai.BaseModel) -> None:
    """Its type takes it as it is: nothing missing, nothing of another type, no field that the type does not know."""
    fields = found.to_dict()
    if isinstance(found, Completion):  # OpenAI's own chunks of texts say null here as well, which their type forgets
        for choice in fields["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"
    type(found).model_validate(fields, strict=True)

    def known(each: openai.BaseModel) -> None:
        assert not each.model_extra, f"{type(each).__name__} has no {sorted(each.model_extra)}"
        for name in type(each).model_fields:
            value = getattr(each, name, None)
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, openai.BaseModel):
                    known(part)

    known(found)


def test_openai_chats(client: OpenAI, said: str):
    answer = client.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=2, **GREEDY)
    chunks = [*client.chat.completions.create(messages=MESSAGES, stream=True, stream_options={"include_usage": True},
                                              logprobs=True, top_logprobs=2, **GREEDY)]  # fmt: skip
    for each in (answer, *chunks):
        strict(each)
    assert answer.choices[0].message.content == said
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == said
    assert chunks[-1].usage == answer.usage
    told = [entry for chunk in chunks[:-1] if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content]
    assert told == answer.choices[0].logprobs.content
    assert isinstance(answer.usage, CompletionUsage)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_openai_goes_on_with_texts(client: OpenAI, went_on: str):
    answer = client.completions.create(prompt="Call me", logprobs=2, **GREEDY)
    chunks = [*client.completions.create(prompt="Call me", stream=True, **GREEDY)]
    for each in (answer, *chunks):
        strict(each)
    assert answer.choices[0].text == went_on == "".join(chunk.choices[0].text for chunk in chunks)
    assert len(answer.choices[0].logprobs.tokens) == answer.usage.completion_tokens
    several = client.completions.create(prompt=["Call me", "The whale"], n=2, seed=3, **{**GREEDY, "temperature": 1})
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]


def test_openai_stops_where_it_is_told(client: OpenAI, said: str):
    stop = said[len(said) // 2 :][:3]
    answer = client.chat.completions.create(messages=MESSAGES, stop=[stop], **GREEDY)
    assert answer.choices[0].message.content == said[: said.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_openai_asks_together(server: Served, said: str):
    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as http:
            answers = [http.chat.completions.create(messages=MESSAGES, **GREEDY) for _ in range(4)]
            stream = await http.chat.completions.create(messages=MESSAGES, stream=True, **GREEDY)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return [text, *(each.choices[0].message.content or "" for each in await asyncio.gather(*answers))]

    assert asyncio.run(ask()) == [said] * 5


def test_openai_helpers(client: OpenAI, said: str):
    """The stream with events, the raw answer, the list of models."""
    with client.chat.completions.stream(messages=MESSAGES, **GREEDY) as stream:
        assert "".join(event.delta for event in stream if event.type == "content.delta") == said
        assert stream.get_final_completion().choices[0].message.content == said
    raw = client.chat.completions.with_raw_response.create(messages=MESSAGES, **GREEDY)
    assert raw.parse()._request_id == raw.headers["x-request-id"]
    models = client.models.list().data
    assert [model.id for model in models] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_openai_gets_errors_of_its_own_kind(client: OpenAI, server: Served):
    ask = client.chat.completions.create
    with pytest.raises(openai.BadRequestError, match="temperature") as wrong:
        ask(messages=MESSAGES, **{**GREEDY, "temperature": -1})
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(prompt=[5] * 600, **GREEDY)
    assert too_long.value.code == "context_length_exceeded"
    assert too_long.value.body["n_ctx"] == 512
    with pytest.raises(openai.NotFoundError):
        ask(messages=MESSAGES, **{**GREEDY, "model": "gpt-4"})
    with pytest.raises(openai.BadRequestError, match="temprature"):
        ask(messages=MESSAGES, extra_body={"temprature": 0}, **GREEDY)


def test_mistralai(server: Served, said: str):
    from mistralai.client import Mistral as Client

    with Client(api_key="none", server_url=server.url) as client:
        answer = client.chat.complete(messages=MESSAGES, random_seed=1, safe_prompt=False, **GREEDY)
        assert answer.choices[0].message.content == said
        assert answer.choices[0].finish_reason in ("stop", "length")
        with client.chat.stream(messages=MESSAGES, **GREEDY) as stream:
            deltas = [event.data.choices[0].delta.content for event in stream if event.data.choices]
        assert "".join(delta for delta in deltas if isinstance(delta, str)) == said
        safe = client.chat.complete(messages=MESSAGES, safe_prompt=True, **GREEDY)
        assert safe.usage.prompt_tokens > answer.usage.prompt_tokens
        begun = [*MESSAGES, {"role": "assistant", "content": "Some years ago", "prefix": True}]
        assert client.chat.complete(messages=begun, **GREEDY).choices[0].message.content
        assert [model.id for model in client.models.list().data] == ["tiny"]


def test_langchain(server: Served, said: str):
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", **GREEDY)
    assert chat.invoke(MESSAGES).content == said
    assert "".join(chunk.content for chunk in chat.stream(MESSAGES)) == said
    assert asyncio.run(chat.ainvoke(MESSAGES)).content == said


@pytest.mark.slow
def test_llm(server: Served, said: str, tmp_path: Path):
    """Simon Willison's command, by the file in which its users name servers of their own."""
    model = {"model_id": "ours", "model_name": "tiny", "api_base": f"{server.url}/v1"}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]))
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    options = ["-o", "temperature", "0", "-o", "max_tokens", "24"]
    for way in ([], ["--no-stream"]):
        command = [sys.executable, "-m", "llm", "-m", "ours", *way, *options, MESSAGES[0]["content"]]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == said.strip()


@pytest.mark.slow
def test_llm_has_schemas(server: Served, tmp_path: Path):
    model = {"model_id": "ours", "model_name": "tiny", "api_base": f"{server.url}/v1", "supports_schema": True}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]))
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    tame = {"type": "object", "properties": {"tame": {"type": "boolean"}}, "required": ["tame"]}
    schema = {**tame, "additionalProperties": False}  # else random weights add properties without end
    command = [
        sys.executable,
        "-m",
        "llm",
        "-m",
        "ours",
        "--schema",
        json.dumps(schema),
        "-o",
        "max_tokens",
        "200",
        "A cat",
    ]
    for way in ([], ["--no-stream"]):
        done = subprocess.run([*command, *way], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert isinstance(json.loads(done.stdout)["tame"], bool)


NODE = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const asked = { model: "tiny", temperature: 0, max_tokens: 24, messages: JSON.parse(process.argv[3]) };
const answer = await client.chat.completions.create(asked);
let streamed = "", usage = null;
const options = { stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create({ ...asked, ...options })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
let refused = null;
try { await client.chat.completions.create({ ...asked, temperature: -1 }); }
catch (error) { refused = error instanceof OpenAI.BadRequestError ? error.param : String(error); }
const models = [];
for await (const model of client.models.list()) models.push(model.id);
console.log(JSON.stringify({ text: answer.choices[0].message.content, streamed, usage, refused, models }));
"""


SHAPES = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const schema = JSON.parse(process.argv[3]);
const asked = { model: "tiny", max_tokens: 300, seed: 1, messages: [{ role: "user", content: "Weather in Paris?" }] };
const shaped = { ...asked, response_format: { type: "json_schema", json_schema: { name: "weather", schema } } };
const json = (await client.chat.completions.create(shaped)).choices[0].message.content;
const tools = [{ type: "function", function: { name: "weather", parameters: schema } }];
const calling = { ...asked, tools, tool_choice: "required" };
const calls = (await client.chat.completions.create(calling)).choices[0].message.tool_calls;
const streamed = [];
for await (const chunk of await client.chat.completions.create({ ...calling, stream: true }))
  for (const part of chunk.choices[0]?.delta?.tool_calls ?? [])
    streamed[part.index] = (streamed[part.index] ?? "") + (part.function.arguments ?? "");
console.log(JSON.stringify({ json, calls: calls.map((call) => call.function.arguments), streamed }));
"""


@pytest.fixture(scope="session")
def npm_openai(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which node finds the package `openai`."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not here")
    folder = tmp_path_factory.mktemp("node")
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), "openai@^6"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except subprocess.TimeoutExpired:  # seen once: it waited for the registry for ten minutes
        pytest.skip("npm has not installed openai in two minutes")
    if done.returncode:
        pytest.skip(f"npm could not install openai: {done.stderr.strip()[-200:]}")
    (folder / "ask.mjs").write_text(NODE)
    (folder / "shapes.mjs").write_text(SHAPES)
    return folder


@pytest.mark.slow
def test_openai_of_npm(server: Served, said: str, npm_openai: Path):
    command = ["node", "ask.mjs", f"{server.url}/v1", json.dumps(MESSAGES)]
    done = subprocess.run(command, cwd=npm_openai, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["text"] == found["streamed"] == said
    assert found["refused"] == "temperature"
    assert found["models"] == ["tiny"]
    assert found["usage"]["completion_tokens"] > 0


@pytest.mark.slow
def test_openai_of_npm_has_tools_and_schemas(mistral_server: Served, npm_openai: Path):
    sky = {"type": "object", "properties": {"sky": {"enum": ["rain", "sun"]}}, "required": ["sky"]}
    schema = {**sky, "additionalProperties": False}
    command = ["node", "shapes.mjs", f"{mistral_server.url}/v1", json.dumps(schema)]
    done = subprocess.run(command, cwd=npm_openai, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for text in (found["json"], *found["calls"], *found["streamed"]):
        assert json.loads(text)["sky"] in ("rain", "sun")
    assert found["streamed"] == found["calls"]


@pytest.mark.slow
def test_lm_eval_generates(server: Served, tiny: Mistral, tmp_path: Path):
    """`local-completions` over a task of our own, from files, without a network."""
    limits = {"max_gen_toks": 8, "until": ["\n\n"]}
    task = {"output_type": "generate_until", "generation_kwargs": limits, "metric_list": [{"metric": "exact_match"}]}
    found = lm_eval(server, tmp_path, task)
    for sample in found:
        prompt = sample["doc"]["text"]
        right = str(tiny.generate(prompt, temperature=0, max_tokens=8, stop=["\n\n"]))
        assert sample["resps"] == [[right]]


@pytest.mark.slow
def test_lm_eval_weighs_answers(server: Served, tiny_folder: Path, tmp_path: Path):
    """Log-likelihoods, out of prompts of ids that are echoed with theirs; transformers' are the oracle."""
    task = {"output_type": "loglikelihood", "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}]}
    model, tokenizer = tiny_model(vocab_size=VOCAB, sliding_window=16), tiny_tokenizer()
    samples = lm_eval(server, tmp_path, task, tokenizer=tiny_folder)
    assert len(samples) == 3
    for sample in samples:
        context, answer = sample["arguments"]["gen_args_0"].values()
        start = len(tokenizer.encode(context, add_special_tokens=False))
        ids = tokenizer.encode(context + answer, add_special_tokens=False)
        rows = torch.from_numpy(logits(model, ids)).log_softmax(-1)
        told = float(sample["resps"][0][0][0])
        assert told == pytest.approx(sum(float(rows[i - 1, ids[i]]) for i in range(start, len(ids))), abs=1e-3)


def lm_eval(server: Served, folder: Path, task: dict, *, tokenizer: Path | None = None) -> list[dict]:
    """Run a task over three texts -> its samples."""
    texts = [{"text": text, "answer": "whale"} for text in ("Call me", "The sea is", "It was a")]
    (folder / "texts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in texts))
    dataset = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "texts.jsonl")}}}
    settings = {
        "task": "ours",
        **dataset,
        "test_split": "test",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{answer}}",
    }
    (folder / "ours.yaml").write_text(json.dumps({**settings, **task}))
    model = f"base_url={server.url}/v1/completions,model=tiny,num_concurrent=2,max_retries=1"
    ids = f"tokenizer_backend=huggingface,tokenizer={tokenizer}" if tokenizer else "tokenizer_backend=None"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", f"{model},{ids}"]
    where = ["--tasks", "ours", "--include_path", str(folder), "--output_path", str(folder / "out"), "--log_samples"]
    environment = {**os.environ, "OPENAI_API_KEY": "none", "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1",
                   "HF_HOME": str(folder / "hub")}  # fmt: skip
    done = subprocess.run([*command, *where], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (samples,) = (folder / "out").rglob("samples_*.jsonl")
    return [json.loads(line) for line in samples.read_text().splitlines()]
