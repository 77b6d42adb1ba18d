"""Tokenizers and chat templates go along: ids stay what they were, in Ventoux, transformers and llama.cpp."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_server import LlamaCpp
from tiny import logits, save_gguf, save_hf, save_raw, tiny_model
from transformers import AutoTokenizer, MistralForCausalLM
from vocabularies import FILES, MISTRAL, byte_fallback_json, byte_level_json, sentencepiece_metadata

import ventoux
from ventoux import gguf, tokenizer
from ventoux.chat.jinja import mistral_template
from ventoux.conversion import Converted
from ventoux.tokenizer import Tokenizer
from ventoux.tokenizer.metadata import to_metadata

SLOW = ("v1", "v7", "tekken", "json-pieces", "json-bytes")
CORPUS = Path(__file__).parents[1] / "tokenizer" / "corpus"


@pytest.fixture(scope="module")
def lines() -> list[str]:
    files = sorted(CORPUS.iterdir())
    texts = [file.read_bytes().decode() for file in files]
    return [*(text[:3000] for text in texts), *(line for text in texts for line in text.split("\n")[:8]), "", " ", "\n"]


def quiet(source: Path, target: Path, to: str, **settings: Any) -> Converted:
    return ventoux.convert(source, target, to=to, progress=lambda here, total: None, **settings)  # type: ignore[arg-type]


def agree(one: Tokenizer, other: Tokenizer, lines: list[str]) -> None:
    assert (one.bos_id, one.eos_id, one.version, one.end_ids) == (
        *(other.bos_id, other.eos_id, other.version, other.end_ids),
    )
    for line in lines:
        ids = one.encode(line, bos=True)
        assert other.encode(line, bos=True) == ids, line[:80]
        assert other.decode(ids) == one.decode(ids)


def source_of(kind: str, folder: Path, default_model: Path) -> Path:
    """A tiny Hugging Face folder with one of the tokenizers in use."""
    sizes = {"v1": 32000, "json-pieces": 32000, "v3": 32768, "v7": 32768, "tekken": 131072, "json-bytes": 49152}
    save_hf(tiny_model(vocab_size=sizes[kind], hidden_size=32, intermediate_size=32, num_hidden_layers=1), folder)
    if kind == "json-bytes":
        byte_level_json(gguf.read(default_model).metadata, folder / "tokenizer.json")
        (folder / "tokenizer_config.json").write_text('{"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}')
    elif kind == "json-pieces":
        byte_fallback_json(sentencepiece_metadata(MISTRAL / FILES["v1"]), folder / "tokenizer.json")
    elif kind == "tekken":
        shutil.copy(MISTRAL / FILES[kind], folder / "tekken.json")
    else:
        shutil.copy(MISTRAL / FILES[kind], folder / ("tokenizer.model" if kind == "v1" else f"tokenizer.model.{kind}"))
    return folder


@pytest.mark.parametrize("kind", ["v3", *(pytest.param(k, marks=pytest.mark.slow) for k in SLOW)])
def test_ids_stay_what_they_were_all_the_way_round(
    kind: str, lines: list[str], default_model: Path, tmp_path: Path
) -> None:
    source = source_of(kind, tmp_path / "source", default_model)
    before = tokenizer.load(source)
    path = source
    for step, to in enumerate(["gguf", "hf", "gguf", "raw"]):
        done = quiet(path, tmp_path / f"{step}-{to}", to)
        known = ("combining marks", "text that follows a typed '[")
        assert [remark for remark in done.remarks if not any(part in remark for part in known)] == []
        path = done.path
        if to == "gguf":
            agree(before, tokenizer.from_gguf(gguf.read(path).metadata, source=path), lines)
        else:
            agree(before, tokenizer.load(path), lines)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    if before.version:
        formats = [ventoux.load(each).chat_format.encode(chat, tokenizer=before) for each in (source, path)]
        assert formats[0] == formats[1]


@pytest.mark.parametrize("kind", ["v1", *(pytest.param(k, marks=pytest.mark.slow) for k in SLOW[1:])])
def test_transformers_reads_our_folder_with_the_same_ids(
    kind: str, lines: list[str], default_model: Path, tmp_path: Path
) -> None:
    source = source_of(kind, tmp_path / "source", default_model)
    ours = tokenizer.load(source)
    quiet(source, tmp_path / "m.gguf", "gguf")
    folders = [quiet(source, tmp_path / "hf", "hf").path, quiet(tmp_path / "m.gguf", tmp_path / "hf2", "hf").path]
    for folder in folders:
        theirs = AutoTokenizer.from_pretrained(folder)
        common = (folder / "tekken.json").exists()  # mistral-common cuts, which knows no such setting
        for line in lines:
            found = theirs.encode(line) if common else theirs(line, split_special_tokens=True).input_ids
            expected = ours.encode(line, bos=True)
            assert found == expected, line[:80]
        assert theirs.bos_token_id == ours.bos_id
        assert theirs.eos_token_id == ours.eos_id


@pytest.fixture(scope="module")
def llama_cpp(talking: Path, tmp_path_factory: pytest.TempPathFactory) -> LlamaCpp:
    path = tmp_path_factory.mktemp("llama") / "m.gguf"
    quiet(talking, path, "gguf")
    assert gguf.read(path).metadata["llama.attention.sliding_window"] == 64
    return LlamaCpp(path)


def test_llama_cpp_cuts_text_alike(llama_cpp: LlamaCpp, talking: Path, lines: list[str]) -> None:
    ours = tokenizer.load(talking)
    for line in lines:
        assert llama_cpp.encode(line) == ours.encode(line)


def test_llama_cpp_writes_conversations_with_our_template(llama_cpp: LlamaCpp, talking: Path) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    prompt = llama_cpp.ask("apply-template", messages=messages)["prompt"]
    found = llama_cpp.ask("tokenize", content=prompt, add_special=True, parse_special=True)["tokens"]
    model = ventoux.load(talking)
    assert found == model.chat_format.encode(messages, tokenizer=model.tokenizer)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_llama_cpp_says_the_same_greedily(dtype: str, talking: Path, tmp_path: Path) -> None:
    path = quiet(talking, tmp_path / "m.gguf", "gguf", dtype=dtype).path
    ours = ventoux.load(path, compute="f32")
    theirs = LlamaCpp(path)
    prompt = [1, 851, 349, 264, 1369]
    found = theirs.greedy(prompt, 12)
    expected: list[int] = ours.generate(prompt, max_tokens=12, temperature=0, ignore_eos=True).ids
    for place, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one != other:  # llama.cpp rounds activations to 8 bits, so a near tie may fall otherwise
            logits_here = ours.logits(prompt + expected[:place])[-1]
            assert logits_here[other] - logits_here[one] < 0.05 * np.ptp(logits_here)
            return


def test_a_folder_of_hugging_face_gets_what_is_missing_and_keeps_what_is_there(
    talker: MistralForCausalLM, tmp_path: Path
) -> None:
    source = save_hf(talker, tmp_path / "source")
    shutil.copy(MISTRAL / FILES["v1"], source / "tokenizer.model")
    (source / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>", "chat_template": "x"}')
    folder = quiet(source, tmp_path / "out", "hf").path
    for name in ("tokenizer.model", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    assert (folder / "tokenizer.json").exists()
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
    through = gguf.read(quiet(folder, tmp_path / "m.gguf", "gguf").path).metadata
    assert through["tokenizer.chat_template"] == "x"
    new = quiet(folder, tmp_path / "new", "hf", chat_template="{{ messages }}").path
    assert (new / "chat_template.jinja").read_text() == "{{ messages }}"
    assert AutoTokenizer.from_pretrained(new).chat_template == "{{ messages }}"


def test_a_vocabulary_smaller_than_the_embedding_is_padded(tmp_path: Path) -> None:
    source = save_raw(tiny_model(vocab_size=32064, hidden_size=32, intermediate_size=32), tmp_path / "raw")
    shutil.copy(MISTRAL / FILES["v1"], source / "tokenizer.model")
    path = quiet(source, tmp_path / "m.gguf", "gguf").path
    assert gguf.read(path).metadata["tokenizer.ggml.tokens"][31999:32001] == ["梦", "[PAD32000]"]
    assert LlamaCpp(path).encode("Hello world") == tokenizer.load(source).encode("Hello world")


def test_a_vocabulary_larger_than_the_embedding_does_not_go_along(tmp_path: Path) -> None:
    source = save_raw(tiny_model(), tmp_path / "raw")
    shutil.copy(MISTRAL / FILES["v1"], source / "tokenizer.model")
    done = quiet(source, tmp_path / "m.gguf", "gguf")
    assert done.remarks == ("tokenizer.model does not go along: it has 32000 tokens, the model's embedding 96",)
    assert ventoux.load(done.path).logits([1, 2]).shape == (2, 96)


def test_a_tokenizer_that_gguf_cannot_say_is_left_out_and_a_remark_says_why(
    default_model: Path, tmp_path: Path
) -> None:
    source = source_of("json-bytes", tmp_path / "source", default_model)
    found = json.loads((source / "tokenizer.json").read_text())
    found["normalizer"] = {"type": "NFC"}
    (source / "tokenizer.json").write_text(json.dumps(found))
    done = quiet(source, tmp_path / "m.gguf", "gguf")
    assert done.remarks == ("tokenizer.json does not go along: it normalizes text, which a GGUF file cannot say",)
    found["normalizer"], found["pre_tokenizer"]["pretokenizers"] = None, found["pre_tokenizer"]["pretokenizers"][1:]
    found["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "WhitespaceSplit"})
    (source / "tokenizer.json").write_text(json.dumps(found))
    (remark,) = quiet(source, tmp_path / "n.gguf", "gguf").remarks
    assert "it cuts text into words as none of GGUF's names says" in remark


def test_without_a_tokenizer_a_remark_says_so(raw: Path, tmp_path: Path) -> None:
    (remark,) = quiet(raw, tmp_path / "m.gguf", "gguf").remarks
    assert remark == "the checkpoint has no tokenizer, so none goes along"
    assert quiet(tmp_path / "m.gguf", tmp_path / "hf", "hf").remarks == (
        "the file has no vocabulary, so none goes along",
    )
    made = save_gguf(tiny_model(), tmp_path / "theirs.gguf")
    assert quiet(made, tmp_path / "copy.gguf", "gguf").remarks == ()


def test_tekken_keeps_its_version_where_the_pieces_tell_another(tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_bytes((MISTRAL / FILES["tekken"]).read_bytes())
    metadata = to_metadata(tmp_path / "tekken.json")
    assert tokenizer.load(tmp_path).version == "v3"
    assert tokenizer.from_gguf(metadata, source="x").version == "v3"
    del metadata["tokenizer.mistral_version"]
    assert tokenizer.from_gguf(metadata, source="x").version == "v7"


def test_the_default_model_converts_and_answers(default_model: Path, tmp_path: Path) -> None:
    folder = ventoux.convert("smollm2-135m-instruct", tmp_path / "hf", to="hf", dtype="bf16").path
    model = ventoux.load(folder)
    assert model.chat([{"role": "user", "content": "What is the capital of France?"}], temperature=0) == (
        "The capital of France is Paris."
    )
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("mistral", ["MistralForCausalLM"])
    theirs = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "Hi"}]
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == model.chat_format.encode(messages, tokenizer=model.tokenizer)
    copy = ventoux.convert(None, tmp_path / "copy.gguf", to="gguf").path
    assert copy.read_bytes() == default_model.read_bytes()


def test_logits_with_the_vocabulary_are_those_without(
    talking: Path, talker: MistralForCausalLM, tmp_path: Path
) -> None:
    folder = quiet(talking, tmp_path / "hf", "hf").path
    ids = ventoux.load(folder).tokenizer.encode("My favourite condiment is", bos=True)
    found = ventoux.load(folder, compute="f32").logits(ids)
    np.testing.assert_allclose(found, logits(talker, ids), atol=5e-5, rtol=0)
    assert mistral_template("v1") == json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]


@pytest.mark.parametrize("special", [True, False])
def test_tokens_that_a_fine_tune_added(special: bool, tmp_path: Path) -> None:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Library

    sizes = {"vocab_size": 32002, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    source = save_hf(tiny_model(**sizes), tmp_path / "source")
    path = byte_fallback_json(sentencepiece_metadata(MISTRAL / FILES["v1"]), source / "tokenizer.json")
    library = Library.from_file(str(path))
    names = ("<|im_end|>", "<|im_start|>")
    library.add_tokens([AddedToken(name, special=special, normalized=False) for name in names])
    library.save(str(path))
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    config = {"bos_token": "<s>", "eos_token": "<|im_end|>", "chat_template": template}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    done = quiet(source, tmp_path / "m.gguf", "gguf")
    back = quiet(done.path, tmp_path / "back", "hf")
    assert len(done.remarks) == (0 if special else 1)
    assert special or "text that follows a typed '<|im_end|>', ... is cut" in done.remarks[0]
    conversation = [{"role": "user", "content": "Hello <s> there"}]
    models = [ventoux.load(each) for each in (source, done.path, back.path)]
    ids = [model.chat_format.encode(conversation, tokenizer=model.tokenizer) for model in models]
    assert ids[1] == ids[2]
    assert {32000, 32001} <= set(ids[1])
    if special:
        assert ids[0] == ids[1]
        assert {model.tokenizer.eos_id for model in models} == {32000}


def test_ids_that_raw_cannot_say_are_told(talker: MistralForCausalLM, tmp_path: Path) -> None:
    source = save_hf(talker, tmp_path / "source")
    shutil.copy(MISTRAL / FILES["v1"], source / "tokenizer.model")
    (source / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    (remark,) = quiet(source, tmp_path / "raw", "raw").remarks
    assert remark == "raw has no place for these ids, which end a text: 7"
    assert quiet(source, tmp_path / "hf", "hf").remarks == ()
