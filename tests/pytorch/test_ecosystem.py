"""Pipelines and other callers of transformers' models take ours, and get what they get from transformers' own."""

import json

import pytest
import torch
import transformers
from tiny import tiny_model
from tiny_tokenizer import TEXT, VOCAB, tiny_tokenizer
from transformers import pipeline

from ventoux import pytorch

TEXTS = ["Call me Ishmael.", "Some years ago, never mind how long precisely", "It is a way I have"]
GREEDY = {"max_new_tokens": 12, "do_sample": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose window is shorter than the texts, and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model(vocab_size=VOCAB, sliding_window=8, pad_token_id=2).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def both(folder, name="MistralForCausalLM"):
    """Ours, and transformers' own with the same weights."""
    torch.manual_seed(0)  # new heads
    ours = getattr(pytorch, name).from_pretrained(folder, attn_implementation="ventoux").eval()
    theirs = getattr(transformers, name).from_pretrained(folder, attn_implementation="eager").eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def pipelines(task, folder, name="MistralForCausalLM"):
    return [pipeline(task, model=model, tokenizer=tiny_tokenizer()) for model in both(folder, name)]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_text_generation(folder, batch_size):
    ours, theirs = pipelines("text-generation", folder)
    chats = [[{"role": "user", "content": text}] for text in TEXTS]
    for prompts in (TEXTS, chats):
        found, expected = (pipe(prompts, batch_size=batch_size, **GREEDY) for pipe in (ours, theirs))
        assert found == expected
    assert expected[0][0]["generated_text"][-1]["role"] == "assistant"


@pytest.mark.parametrize("batch_size", [1, 3])
def test_text_classification(folder, batch_size):
    ours, theirs = pipelines("text-classification", folder, "MistralForSequenceClassification")
    found, expected = (pipe(TEXTS, batch_size=batch_size, top_k=None) for pipe in (ours, theirs))
    for row, expected_row in zip(found, expected, strict=True):
        assert [each["label"] for each in row] == [each["label"] for each in expected_row]
        assert [each["score"] for each in row] == pytest.approx([each["score"] for each in expected_row], abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_token_classification(folder, batch_size):
    ours, theirs = pipelines("token-classification", folder, "MistralForTokenClassification")
    found, expected = (pipe(TEXTS, batch_size=batch_size, ignore_labels=[]) for pipe in (ours, theirs))
    for row, expected_row in zip(found, expected, strict=True):
        assert [(each["word"], each["entity"], each["start"]) for each in row] == [
            (each["word"], each["entity"], each["start"]) for each in expected_row
        ]
        assert [each["score"] for each in row] == pytest.approx([each["score"] for each in expected_row], abs=1e-5)


def test_question_answering(folder):
    """transformers 5 has no pipeline for it any more; the class has."""
    if "question-answering" in transformers.pipelines.PIPELINE_REGISTRY.get_supported_tasks():
        found, expected = (
            pipe(question="Who?", context=TEXTS[0])
            for pipe in pipelines("question-answering", folder, "MistralForQuestionAnswering")
        )
        assert found["answer"] == expected["answer"]
    ours, theirs = both(folder, "MistralForQuestionAnswering")
    pair = tiny_tokenizer()(["Who?"] * 3, TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        found, expected = ours(**pair), theirs(**pair)
    real = pair["attention_mask"].bool()
    torch.testing.assert_close(found.start_logits[real], expected.start_logits[real], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.end_logits[real], expected.end_logits[real], rtol=0, atol=1e-4)


def test_feature_extraction(folder):
    ours, theirs = pipelines("feature-extraction", folder, "MistralModel")
    for found, expected in zip(ours(TEXTS), theirs(TEXTS), strict=True):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-4)


def test_streaming(folder, capsys):
    ours, _ = both(folder)
    tokenizer = tiny_tokenizer()
    inputs = tokenizer(TEXTS[0], return_tensors="pt")
    streamer = transformers.TextStreamer(tokenizer, skip_prompt=True)
    words = ours.generate(**inputs, streamer=streamer, **GREEDY)
    assert capsys.readouterr().out.strip() == tokenizer.decode(words[0, inputs["input_ids"].shape[1] :]).strip()


@pytest.mark.slow
def test_lm_eval(folder, tmp_path, monkeypatch):
    """The evaluation harness scores multiple choices and perplexity with our class as with transformers'."""
    lm_eval = pytest.importorskip("lm_eval", reason="pip install 'lm-eval[hf]'")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lines = [TEXT[start : start + 60] for start in range(0, 1200, 60)]
    rows = [{"text": line[:30], "choices": [line[30:], line[30:][::-1]], "gold": 0} for line in lines]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "whales",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    scores = []
    for model in both(folder):
        harness = HFLM(pretrained=model, tokenizer=tiny_tokenizer(), batch_size=4, device="cpu")
        done = lm_eval.simple_evaluate(harness, tasks=[task], task_manager=TaskManager(), bootstrap_iters=0)
        samples = sorted(done["samples"]["whales"], key=lambda sample: sample["doc_id"])
        scores.append([float(response[0][0]) for sample in samples for response in sample["resps"]])
    assert len(scores[0]) == 2 * len(lines)
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
