"""The Python face on a toy model: what every method gives, refuses and frees."""

import copy
import gc
import itertools
import math
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from toy import BOS, EOS, VOCAB, ByteTokenizer, ToyBackend, hashed, saying

import ventoux
from ventoux import ChatError, Completion, Finished, GenerationError, Mistral, PromptTooLongError, RequestError, Token
from ventoux.batch import Float32

ENDLESS: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "max_tokens": 20}
FRAMES = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"


def toy(backend: ToyBackend | None = None, **parts: Any) -> Mistral:
    return Mistral(backend or ToyBackend(), tokenizer=ByteTokenizer(), **parts)


def test_a_completion_is_its_text_and_knows_its_tokens() -> None:
    model = toy(ToyBackend(saying("Good day!")))
    answer = model.generate("Good", temperature=0, logprobs=1)
    assert isinstance(answer, str)
    assert answer == answer.text == " day!"
    assert (answer.ids, answer.reason) == (list(b" day!"), "stop")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 5)
    assert all(logprob is not None and -0.1 < logprob < 0 for logprob in answer.logprobs)
    assert answer.timings.decode_s > 0


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda text: pickle.loads(pickle.dumps(text))])
def test_a_completion_can_be_copied_and_pickled(duplicate: Any) -> None:
    answer = toy().generate("abc", **ENDLESS)
    again = duplicate(answer)
    assert type(again) is Completion
    assert (again, again.tokens, again.finished) == (answer, answer.tokens, answer.finished)


def test_text_and_ids_and_several_prompts_are_the_same_prompts() -> None:
    model, texts = toy(), ["abc", "d", "eeeeee"]
    ids = [model.tokenizer.encode(text, bos=True) for text in texts]
    one_by_one = [model.generate(text, seed=3, max_tokens=15) for text in texts]
    assert model.generate(texts, seed=3, max_tokens=15) == one_by_one
    assert model.generate(ids, seed=3, max_tokens=15) == one_by_one
    assert [model.generate(each, seed=3, max_tokens=15) for each in ids] == one_by_one
    assert len(set(one_by_one)) == 3


def test_several_prompts_run_as_one_batch() -> None:
    backend = ToyBackend()
    toy(backend).generate([[97], [98], [99]], **ENDLESS)
    assert len(backend.batches) == 20
    assert {len(batch) for batch in backend.batches} == {3}


def test_a_stream_is_the_completion_in_pieces() -> None:
    model = toy()
    events = list(model.stream("abc", seed=1))
    assert "".join(event.text for event in events) == model.generate("abc", seed=1)
    assert [type(event) for event in events] == [Token] * (len(events) - 1) + [Finished]


def test_facts_26_who_leaves_a_stream_frees_its_cache() -> None:
    backend = ToyBackend()
    model = toy(backend)
    for event in model.stream("abc", **ENDLESS):
        assert isinstance(event, Token)
        assert len(backend.cache.sequences) == 1
        break
    gc.collect()
    assert not backend.cache.sequences
    ran = len(backend.batches)
    closed = model.stream("abc", **ENDLESS)
    next(closed)
    closed.close()  # type: ignore[attr-defined]
    assert not backend.cache.sequences
    assert len(backend.batches) == ran + 1
    never_read = model.stream("abc", **ENDLESS)
    del never_read
    assert model.generate("abc", **ENDLESS) == toy().generate("abc", **ENDLESS)


def test_facts_26_a_stream_closed_within_a_step_frees_its_cache_after_it() -> None:
    """As the garbage collector may do, which runs anywhere: it must neither wait for ever nor upset the step."""
    streams: list[Any] = []
    held: list[int] = []

    def row(ids: list[int]) -> Float32:
        if streams and len(ids) > 6:
            streams.pop().close()
        held.append(len(backend.cache.sequences))
        return hashed(ids)

    backend = ToyBackend(row)
    model = toy(backend)
    streams.append(model.stream("abc", **ENDLESS))
    next(streams[0])
    answer = model.generate("d", **ENDLESS)
    assert not streams
    assert (max(held), held[-1]) == (2, 1)
    assert answer == toy().generate("d", **ENDLESS)
    assert not backend.cache.sequences


def test_streams_read_in_turns_run_as_one_batch() -> None:
    backend = ToyBackend()
    model = toy(backend)
    first, second = model.stream("abc", **ENDLESS), model.stream("de", **ENDLESS)
    pairs = list(itertools.zip_longest(first, second))
    assert "".join(event.text for event, _ in pairs) == toy().generate("abc", **ENDLESS)
    assert "".join(event.text for _, event in pairs) == toy().generate("de", **ENDLESS)
    assert max(len(batch) for batch in backend.batches[1:]) > 1
    assert len(backend.batches) <= 22


def test_threads_share_a_model() -> None:
    model = toy()
    prompts = ["abc", "bcd", "e", "aaaa"]
    answers: dict[str, str] = {}

    def ask(prompt: str) -> None:
        answers[prompt] = model.generate(prompt, seed=5, max_tokens=20)

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert answers == {prompt: toy().generate(prompt, seed=5, max_tokens=20) for prompt in prompts}


def test_what_ends_a_request_is_raised_and_the_others_are_cancelled() -> None:
    backend = ToyBackend(lambda ids: hashed(ids) * (math.nan if ids[1] == ord("x") and len(ids) > 4 else 1))
    model = toy(backend)
    with pytest.raises(GenerationError, match="not finite"):
        model.generate(["abc", "x"], **ENDLESS)
    assert not backend.cache.sequences
    stream = model.stream("x", **ENDLESS)
    assert [next(stream).text != "" for _ in range(3)] == [True] * 3
    with pytest.raises(GenerationError):
        next(stream)
    assert model.generate("abc", **ENDLESS) == toy().generate("abc", **ENDLESS)


def test_one_prompt_that_is_refused_leaves_none_behind() -> None:
    backend = ToyBackend()
    model = toy(backend)
    with pytest.raises(PromptTooLongError):
        model.generate([[97], [97] * 100], max_tokens=5)
    assert model.generate([97], max_tokens=1, **{k: ENDLESS[k] for k in ("temperature", "ignore_eos")})
    assert {len(batch) for batch in backend.batches} == {1}


@pytest.mark.parametrize("method", ["generate", "stream"])
def test_mistakes_are_refused_at_the_call(method: str) -> None:
    call = getattr(toy(), method)
    with pytest.raises(RequestError, match=r"unknown parameter\(s\) heat, topp; known are temperature, top_p"):
        call("abc", topp=0.5, heat=1)
    with pytest.raises(RequestError, match="temperature must be"):
        call("abc", temperature=-1)
    with pytest.raises(RequestError, match="empty"):
        call([])
    with pytest.raises(PromptTooLongError):
        call("abc", max_tokens=100)


def test_chat_writes_the_conversation_and_answers_in_a_text_of_its_own() -> None:
    messages = [{"role": "user", "content": "hi"}]
    model = toy(ToyBackend(saying("[hi] hello!")), template=FRAMES)
    answer = model.chat(messages, temperature=0)
    assert answer == " hello!"
    assert answer.usage.prompt_tokens == 1 + len("[hi]")  # the BOS
    assert "".join(event.text for event in model.stream_chat(messages, temperature=0)) == answer


def test_the_chat_format_can_be_named_and_is_checked() -> None:
    assert toy(chat_format="v3").chat_format.version == "v3"
    with pytest.raises(ChatError, match="v1, v2, v3"):
        toy(chat_format="v33")
    model = toy()
    with pytest.raises(ChatError):
        model.chat([{"role": "user", "content": "hi"}])
    assert model.generate("hi", **ENDLESS)  # a model that cannot chat can still write


def test_a_model_without_a_tokenizer_takes_ids_and_says_what_is_missing_for_text() -> None:
    model = Mistral(ToyBackend())
    assert model.generate([97, 98], **ENDLESS).ids == toy().generate([97, 98], **ENDLESS).ids
    assert model.generate([97, 98], **ENDLESS) == ""
    assert model.logits([97, 98]).shape == (2, VOCAB)
    for asks_for_text in (
        lambda: model.tokenizer,
        lambda: model.chat_format,
        lambda: model.generate("ab"),
        lambda: model.stream("ab"),
        lambda: model.chat([{"role": "user", "content": "hi"}]),
    ):
        with pytest.raises(ventoux.TokenizerError, match="no tokenizer"):
            asks_for_text()


@pytest.mark.parametrize("length", [1, 511, 512, 513, 1200])
def test_logits_are_those_of_every_position(length: int) -> None:
    backend = ToyBackend(context_length=1200)
    ids = np.random.default_rng(0).integers(0, EOS, length).tolist()
    found = Mistral(backend).logits(ids)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [hashed(ids[: i + 1]) for i in range(length)])
    assert not backend.cache.sequences


def test_logits_refuse_what_is_no_prompt() -> None:
    model = Mistral(ToyBackend(context_length=64))
    with pytest.raises(RequestError, match="empty"):
        model.logits([])
    with pytest.raises(RequestError, match="258"):
        model.logits([VOCAB])
    with pytest.raises(PromptTooLongError, match=r"65 .*64"):
        model.logits([1] * 65)


def test_importing_ventoux_imports_next_to_nothing() -> None:
    heavy = ["numpy", "torch", "transformers", "fastapi", "typer", "jinja2", "tokenizers", "sentencepiece"]
    program = f"import ventoux, sys; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


def test_every_public_name_is_there() -> None:
    for name in ventoux.__all__:
        assert getattr(ventoux, name)
    assert set(ventoux.__all__) <= set(dir(ventoux))
    with pytest.raises(AttributeError, match="no attribute 'generate_all'"):
        ventoux.generate_all  # noqa: B018


@pytest.mark.parametrize("prompt", [None, 5, b"hi", {"a": 1}])
def test_what_is_neither_text_nor_ids_is_refused(prompt: Any) -> None:
    for method in ("generate", "stream"):
        with pytest.raises(RequestError, match=f"text or a list of token ids, found {type(prompt).__name__}"):
            getattr(toy(), method)(prompt)


def test_a_chats_next_turn_reads_only_what_is_new(tmp_path: Path) -> None:
    """As `load` makes a model: the answers are those of one that keeps nothing, and so are their log-probabilities."""
    model = ventoux.load(tiny.save_hf(tiny.tiny_model(vocab_size=258), tmp_path), threads=1)
    prompt = [BOS, *b"a question of some length"]
    for turn in range(3):
        answer = model.generate(prompt, temperature=0, max_tokens=7, logprobs=1, ignore_eos=True)
        alone = Mistral(model.backend).generate(prompt, temperature=0, max_tokens=7, logprobs=1, ignore_eos=True)
        assert (answer.ids, answer.logprobs) == (alone.ids, alone.logprobs)
        assert answer.usage.cached_tokens == (len(prompt) - 6 if turn else 0)
        prompt = [*prompt, *answer.ids, *b"and?!"]
