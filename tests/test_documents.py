"""What README and docs say in Python runs as it stands."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("document", ["README.md", "docs/python.md"])
def test_snippets_run(document, default_model, tmp_path, monkeypatch, capsys):
    """All Python of one page, in order, in one namespace, beside a tokenizer.model such as the page assumes."""
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    assert snippets
    data = Path(find_spec("mistral_common").submodule_search_locations[0], "data")
    (tmp_path / "tokenizer.model").write_bytes((data / "mistral_instruct_tokenizer_240323.model.v3").read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(snippets), document, "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    "document", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")), ids=lambda p: p.name
)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target
