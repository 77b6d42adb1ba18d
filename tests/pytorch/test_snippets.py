"""docs/pytorch.md runs as it stands, tiny models with Mistral's own vocabulary in the places of the 7B ones."""

import re
from pathlib import Path

import pytest
import torch
import transformers
from tiny import save_gguf, save_raw, tiny_model
from tiny_tokenizer import CHAT_TEMPLATE
from vocabularies import FILES, MISTRAL, byte_fallback_json, sentencepiece_metadata

from ventoux import pytorch

PAGE = Path(__file__).parents[2] / "docs" / "pytorch.md"


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """The names that the page uses, as folders and files where it is run."""
    metadata = sentencepiece_metadata(MISTRAL / FILES["v1"])
    path = byte_fallback_json(metadata, tmp_path / "tokenizer.json")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(path), bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=CHAT_TEMPLATE
    )
    model = tiny_model(vocab_size=32000, sliding_window=8, intermediate_size=128)
    for name in ("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.3"):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    save_raw(model, tmp_path / "mistral-7B-v0.1")
    save_gguf(model, tmp_path / "mistral-7b.Q4_0.gguf", format="Q4_0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_the_page_runs(checkpoints, monkeypatch, capsys):
    for auto in ("", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"):
        mapping = getattr(transformers, f"AutoModel{auto}")._model_mapping
        monkeypatch.setattr(mapping, "_extra_content", dict(mapping._extra_content))  # register() is for the process
    names = {}
    torch.manual_seed(0)
    for i, snippet in enumerate(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)):
        exec(compile(snippet, f"{PAGE.name}, block {i}", "exec"), names)
    assert type(names["chatbot"].model) is pytorch.MistralForCausalLM
    assert names["losses"][-1] < 0.9 * names["losses"][0]
    assert (names["packed"][3:] - names["alone"]).abs().max() < 1e-4
    assert names["cache"].get_seq_length() == names["ids"].shape[1]
    assert names["adapted"].get_base_model() is names["small"]
    assert "7110660096 4096" in capsys.readouterr().out


def test_what_is_not_run_says_why_and_is_python():
    blocks = re.findall(r"```python (.*?)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 3
    for why, snippet in blocks:
        assert why.startswith("not run")
        compile(snippet, PAGE.name, "exec")
