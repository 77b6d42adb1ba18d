"""Each command says what the Python face says."""

import json

import numpy as np
import pytest
import tiny

import ventoux as package
from ventoux.chat import VERSIONS
from ventoux.cli import bench
from ventoux.cli.options import CHAT_FORMATS, counted
from ventoux.cli.reference import PROMPTS

LINE = "=" * 21


@pytest.fixture(scope="module")
def model(folder):
    return package.load(folder)


def result(run):
    status, out, err = run
    assert (status, err) == (0, "")
    assert "\x1b" not in out, "no colours where there is no terminal"
    return out


def test_demo_continues_the_three_prompts(ventoux, folder, model):
    out = result(ventoux("demo", folder, "--max_tokens", 5))
    expected = [prompt + model.generate(prompt, max_tokens=5, temperature=0) for prompt in PROMPTS]
    assert out == "".join(f"{text}\n{LINE}\n" for text in expected)
    assert out == result(ventoux("demo", "-m", folder, "--max-tokens", 5))


def test_interactive_continues_each_prompt_until_the_input_ends(ventoux, folder, model):
    out = result(ventoux("interactive", folder, "--max_tokens", 4, "--temperature", 0, stdin="one\ntwo\n"))
    expected = [text + model.generate(text, max_tokens=4, temperature=0) for text in ("one", "two")]
    assert out == "".join(f"Prompt: {text}\n{LINE}\n" for text in expected) + "Prompt: \n"


def test_interactive_instruct_remembers_the_turns(ventoux, folder, model):
    out = result(ventoux("interactive", folder, "--instruct", "--max_tokens", 4, "--temperature", 0, stdin="a\nb\n"))
    messages, expected = [], ""
    for text in "ab":
        messages.append({"role": "user", "content": text})
        answer = model.chat(messages, max_tokens=4, temperature=0)
        messages.append({"role": "assistant", "content": answer})
        expected += f"Prompt: {answer}\n{LINE}\n"
    assert out == expected + "Prompt: \n"


def test_generate_streams_what_json_says(ventoux, folder, model):
    flags = ("-m", folder, "--max-tokens", 8, "--temperature", 0)
    found = json.loads(result(ventoux("generate", "Hello", *flags, "--json", "--logprobs", 2)))
    expected = model.generate("Hello", max_tokens=8, temperature=0)
    assert (found["text"], found["ids"], found["finish_reason"]) == (expected, expected.ids, "length")
    assert found["usage"] == {"prompt_tokens": 2, "completion_tokens": 8, "cached_tokens": 0}
    assert found["guesses"].keys() == {"checked", "right"}
    assert found["timings"].keys() >= {"queued_s", "prompt_s", "decode_s"}
    assert [each["top"][0][0] for each in found["logprobs"]] == expected.ids
    assert result(ventoux("generate", "Hello", *flags)) == f"{expected}\n"
    assert result(ventoux("generate", *flags, stdin="Hello\n")) == f"{expected}\n"


def test_every_sampling_flag_arrives(ventoux, folder, model):
    flags = {"max_tokens": 6, "temperature": 1.5, "top_p": 0.9, "top_k": 40, "min_p": 0.001, "seed": 3}
    flags |= {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.25}
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", value)]
    words += ["--logit-bias", "400=2", "--logit-bias", "401=-3.5", "--stop", "zq", "--stop-id", "7", "--ignore-eos"]
    out = result(ventoux("generate", "Hello", "-m", folder, *words))
    more = {"logit_bias": {400: 2, 401: -3.5}, "stop": ["zq"], "stop_ids": [7], "ignore_eos": True}
    assert out == model.generate("Hello", **flags, **more) + "\n"


def test_a_bias_of_100_forces_a_token_and_a_stop_id_ends(ventoux, folder):
    force = ("-m", folder, "--logit-bias", "400=100", "--max-tokens", 3, "--json")
    assert json.loads(result(ventoux("generate", "x", *force)))["ids"] == [400] * 3
    stopped = json.loads(result(ventoux("generate", "x", *force, "--stop-id", 400)))
    assert (stopped["ids"], stopped["finish_reason"]) == ([], "stop")


def test_chat_answers_one_message(ventoux, folder, model):
    flags = ("-m", folder, "--max-tokens", 6, "--temperature", 0)
    expected = model.chat([{"role": "user", "content": "Hi"}], max_tokens=6, temperature=0)
    assert result(ventoux("chat", "--message", "Hi", *flags)) == f"{expected}\n"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    expected = model.chat(messages, max_tokens=6, temperature=0, safe_prompt=True)
    out = result(ventoux("chat", "--message", "Hi", "--system", "Be brief.", "--safe-prompt", *flags))
    assert out == f"{expected}\n"


def test_chat_reads_a_piped_conversation(ventoux, folder, model, tmp_path):
    saved = tmp_path / "saved.json"
    typed = f"Hi\n\nAnd?\n/save {saved}\n/reset\nHi\n/system S\nHi\n/bad x\n/save\n/quit\nnever read\n"
    out = result(ventoux("chat", "-m", folder, "--max-tokens", 4, "--temperature", 0, stdin=typed))

    def answer(*messages):
        return str(model.chat(list(messages), max_tokens=4, temperature=0))

    def user(text):
        return {"role": "user", "content": text}

    first = answer(user("Hi"))
    turns = [user("Hi"), {"role": "assistant", "content": first}, user("And?")]
    second = answer(*turns)
    with_system = answer({"role": "system", "content": "S"}, user("Hi"))
    saved_it = f"saved 4 messages to {saved}"
    said = [first, second, saved_it, "forgotten", first, "system prompt: S", with_system]
    said += ["unknown command /bad; /help lists them", "/save needs a file name"]
    assert out == "".join(f"{text}\n" for text in said)
    assert json.loads(saved.read_text()) == [*turns, {"role": "assistant", "content": second}]


def test_chat_format_can_be_chosen(ventoux, folder):
    ids = [json.loads(result(ventoux("tokenize", "--chat", "a", "-m", folder, "--json")))["ids"]]
    ids += [
        json.loads(result(ventoux("tokenize", "--chat", "a", "-m", folder, "--json", "--chat-format", "v1")))["ids"]
    ]
    assert ids[0] == ids[1] == [1, 733, 16289, 28793, 264, 733, 28748, 16289, 28793]
    assert CHAT_FORMATS == VERSIONS


def test_tokenize_shows_ids_and_pieces(ventoux, folder, model):
    text = "Hé <s>\n🌬"
    found = json.loads(result(ventoux("tokenize", text, "-m", folder, "--json")))
    assert found["ids"] == model.tokenizer.encode(text, bos=True)
    assert found["pieces"][0] == "<s>"
    assert found["pieces"].count("<s>") == 1, "typed control words are text"
    lines = result(ventoux("tokenize", "-m", folder, stdin=text)).splitlines()
    assert [int(line.split()[0]) for line in lines[:-1]] == found["ids"]
    assert lines[-1] == f"{len(found['ids'])} tokens"
    assert r"b'\xf0'" in [line.split()[1] for line in lines[:-1]], "a part of a character is shown as bytes"
    assert (counted(1), counted(0)) == ("1 token", "0 tokens")


def test_info_says_what_the_model_is(ventoux, folder, model):
    facts = json.loads(result(ventoux("info", folder, "--json")))
    config = model.config
    assert facts["windows"] == [4, 4] == list(config.windows)
    assert (facts["layers"], facts["heads"], facts["kv_heads"], facts["vocab_size"]) == (2, 4, 2, 32000)
    assert facts["tensors"] == {"F32": {"count": 21, "bytes": 4 * facts["parameters"]}}
    assert facts["chat_format"]["version"] == facts["tokenizer"]["version"] == "v1"
    assert facts["compute"] == "f32"
    assert facts["threads"] == model.backend.threads
    cache = package.load(folder, window=512).backend.new_cache()
    cache.allocate(512)
    assert cache.nbytes == 512 * facts["kv_bytes_per_token"]
    assert facts["kv_dtype"] == "f32"
    narrow = json.loads(result(ventoux("info", folder, "--json", "--kv-cache-dtype", "int8")))
    cache = package.load(folder, window=512, kv_cache_dtype="int8").backend.new_cache()
    cache.allocate(512)
    assert cache.nbytes == 512 * narrow["kv_bytes_per_token"]
    assert narrow["kv_dtype"] == "int8"
    text = result(ventoux("info", folder, "--window", 7, "--threads", 1))
    assert "window     7 keys\n" in text
    assert ", 1 threads" in text


def test_info_of_a_model_without_text(ventoux, tmp_path):
    tiny.save_raw(tiny.tiny_model(), tmp_path)
    out = result(ventoux("info", "-m", tmp_path))
    assert "(raw)\n" in out
    assert "tokenizer  none\n" in out
    assert "chat       none: " in out


def test_bench_prints_its_object(ventoux, folder):
    flags = ("-m", folder, "--prompt", 6, "--new", 3, "--streams", 2, "--repeat", 2, "--threads", 1)
    found = json.loads(result(ventoux("bench", *flags, "--json")))
    assert len(found["prefill_tok_s"]) == len(found["decode_tok_s"]) == 2
    assert min(found["prefill_tok_s"] + found["decode_tok_s"]) > 0
    assert found["threads"] == 1
    text = result(ventoux("bench", *flags))
    assert found["isa"] in text
    assert "2 x 3 at depth 6\n" in text
    assert found["rss_bytes"] > found["kv_bytes"] > 0
    assert sum(found["resident"].values()) <= found["rss_bytes"]
    machine = found["machine"]
    assert min(machine["read_gb_s"], machine["int8_gmac_s"], machine["fp32_gmac_s"]) > 0
    assert machine["prefill_against"] == "fp32"  # a checkpoint without block formats
    assert machine["decode_share"] == pytest.approx(machine["decode_gb_s"] / machine["read_gb_s"], rel=0.1, abs=1e-3)
    assert "machine  reads " in text


@pytest.mark.parametrize(("window", "expected"), [(None, (3 + 4 + 5) / 3), (4, (3 + 4 + 4) / 3), (1, 1)])
def test_bench_counts_the_keys_that_queries_see(window, expected):
    assert bench.seen(2, 5, window) == pytest.approx(expected)


def test_bench_counts_the_work_of_the_reference_shapes(model):
    c = model.config
    shape = bench.Shape(prompt=3, new=1, depth=2, streams=2)
    work = bench.Work.of(c, shape)
    same = tiny.tiny_model(vocab_size=32000, hidden_size=32, intermediate_size=32)
    matrices = {name: w.numel() for name, w in same.named_parameters() if "proj" in name}
    weights, keys = sum(matrices.values()), {p: min(p + 1, c.window) for p in range(6)}
    once = [
        n
        for name, n in matrices.items()
        if f"layers.{c.num_layers - 1}." in name and name.split(".")[-2] not in ("k_proj", "v_proj")
    ]
    assert len(once) == 5, "of the last layer, the last token alone goes through q, o, gate, up and down"
    scores = 2 * c.num_heads * c.head_dim * np.array([keys[p] for p in (2, 3, 4)])
    attention = (c.num_layers - 1) * scores.mean() + scores[-1] / 3
    assert work.prefill_macs == pytest.approx(weights - sum(once) * 2 / 3 + attention)
    assert work.decode_macs == weights + 32000 * 32 + 2 * c.num_layers * c.num_heads * c.head_dim * keys[5]
    assert work.step_kv_elements == 2 * 2 * c.num_layers * c.num_kv_heads * c.head_dim * keys[5]


def test_bench_of_a_long_past_reads_what_the_window_shows(model):
    shape = bench.Shape(prompt=3, new=2, depth=200, streams=1)
    assert model.config.window is not None
    prepared = bench.Prepared.of(model.backend, shape)
    assert prepared.once().decode_tok_s > 0


def test_facts_16_bench_shows_kv_bytes_level_off_at_the_window(ventoux, folder):
    def kv_bytes(*flags):
        common = ("-m", folder, "--prompt", 40, "--new", 1, "--repeat", 1, "--json")
        return json.loads(result(ventoux("bench", *common, *flags)))["kv_bytes"]

    assert kv_bytes("--depth", 0) == kv_bytes("--depth", 400)
    assert 2 * kv_bytes() == kv_bytes("--streams", 2)
    assert kv_bytes("--window", 400, "--depth", 400) > kv_bytes()


def test_bench_reads_a_prompt_in_chunks_as_at_once(model, monkeypatch):
    monkeypatch.setattr(bench, "CHUNK", 5)
    ids = [1, *range(300, 322)]
    cache = model.backend.new_cache()
    slot = cache.allocate(len(ids))
    assert bench.read(model.backend, cache, slot, ids[:9], start=0) == model.logits(ids[:9])[-1].argmax()
    assert bench.read(model.backend, cache, slot, ids[9:], start=9) == model.logits(ids)[-1].argmax()


def test_generate_holds_the_text_to_a_schema_or_an_expression(ventoux, folder, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["ab", "cd"]}')
    flags = ("generate", "Hello", "-m", folder, "--temperature", 0)
    assert json.loads(result(ventoux(*flags, "--json-schema", schema))) in ("ab", "cd")
    assert set(result(ventoux(*flags, "--regex", "[xyz]{4}")).strip()) <= set("xyz")


def test_generate_says_what_is_wrong_with_a_schema(ventoux, folder, tmp_path):
    schema = tmp_path / "schema.json"
    flags = ("generate", "Hello", "-m", folder, "--json-schema", schema)
    for text, reason in (
        (None, "cannot be read: No such file"),
        ("{", "found no JSON"),
        ("[]", "an object, found a list"),
        ('{"type": "strin"}', "Invalid type"),
        ("[" * 100_000, "found no JSON"),
    ):
        if text is not None:
            schema.write_text(text)
        status, out, err = ventoux(*flags)
        assert (status, out.strip()) == (1, "")
        assert reason in err
        assert err.count("\n") == 1
    status, _, err = ventoux(*flags, "--regex", "a")
    assert status == 2
    assert "not allowed with" in err
