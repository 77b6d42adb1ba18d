"""transformers' Auto classes give ours when they are told to; without the extra, the error says what to install."""

import subprocess
import sys

import pytest
from pairs import ours

AUTO = """
import torch, transformers, ventoux.pytorch
names = {
    "AutoModel": "MistralModel",
    "AutoModelForCausalLM": "MistralForCausalLM",
    "AutoModelForSequenceClassification": "MistralForSequenceClassification",
    "AutoModelForTokenClassification": "MistralForTokenClassification",
    "AutoModelForQuestionAnswering": "MistralForQuestionAnswering",
}
folder = FOLDER
before = type(transformers.AutoModelForCausalLM.from_pretrained(folder))
assert before is transformers.MistralForCausalLM, "an import changes nothing"
for time in range(2):  # twice is as good as once
    ventoux.pytorch.register()
for auto, name in names.items():
    model = getattr(transformers, auto).from_pretrained(folder)
    assert type(model) is getattr(ventoux.pytorch, name), (auto, type(model))
model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="ventoux")
print(type(model).__module__, model.config._attn_implementation, type(model.config).__name__)
print(transformers.AutoModelForCausalLM.from_config(model.config).__class__.__module__)
"""


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_register_gives_the_auto_classes_ours(tmp_path):
    ours().save_pretrained(tmp_path)
    done = run(AUTO.replace("FOLDER", repr(str(tmp_path))))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["ventoux.pytorch.model", "ventoux", "MistralConfig", "ventoux.pytorch.model"]


@pytest.mark.parametrize("missing", ["torch", "transformers", "transformers.masking_utils"])
def test_without_the_libraries_the_error_names_the_extra(missing):
    """Or with a transformers of long ago, which has a Mistral, but not the rest."""
    done = run(f"import sys; sys.modules[{missing!r}] = None; import ventoux.pytorch")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "ventoux.pytorch needs the extra [torch]: pip install 'ventoux[torch]'" in last
    assert missing in last
