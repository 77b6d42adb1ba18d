"""Errors, help, and the page that describes them."""

import re
import shutil
from pathlib import Path

import pytest
import tiny

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
COMMANDS = ("pull", "info", "demo", "interactive", "generate", "chat", "serve", "tokenize", "bench", "convert", "cache")


def flags_of(help_text):
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", help_text)) - {"--help"}


def sections():
    """The page's sections by heading."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def documented(command):
    """The flags of a command by the tables of the page."""
    text = sections()
    tables = [text[command], *([text["Which model"]] if command not in ("pull", "convert", "cache") else [])]
    tables += [text["generate"]] if command == "chat" else []
    rows = [
        line.split("|")[1] + line.split("|")[2] * ("too" in line)
        for t in tables
        for line in re.findall("^[|].*", t, re.M)
    ]
    names = flags_of(" ".join(rows))
    return names - {"--logprobs", "--json", "--json-schema", "--regex"} if command == "chat" else names


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_documented_flag_and_no_other(ventoux, command):
    status, out, _ = ventoux(command, "--help")
    assert status == 0
    described = out.partition("options:")[2]
    assert flags_of(described) == documented(command)
    assert f"ventoux {command}" in sections()[command], "an example"


def test_every_command_is_listed(ventoux):
    status, out, _ = ventoux()
    assert status == 0
    assert tuple(re.findall(r"^    ([a-z]+)\b", out, re.M)) == COMMANDS
    assert [name for name in sections() if name in COMMANDS] == list(COMMANDS)


def test_version(ventoux):
    status, out, _ = ventoux("--version")
    assert status == 0
    assert re.fullmatch(r"ventoux \d+\.\d+.*\n", out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["brew"], "invalid choice: 'brew'"),
        (["generate", "x", "--tempo", "1"], "unrecognized arguments: --tempo 1"),
        (["generate", "x", "--temperature", "hot"], "invalid float value: 'hot'"),
        (["generate", "x", "--logit-bias", "5"], "expected ID=X, for example 15=-2.5, found '5'"),
        (["generate", "x", "--window", "0"], "expected off or a whole number of at least 1, found '0'"),
        (["generate", "x", "--temperature", "-1"], "--temperature must be a number at least 0, found -1.0"),
        (["generate", "x", "--top-p", "2"], "--top-p must be a number above 0 and at most 1, found 2.0"),
        (["generate", "x", "--top-k", "-1"], "--top-k must be a whole number of at least 0, found -1"),
        (["generate", "x", "--max-tokens", "0"], "--max-tokens must be a whole number of at least 1, found 0"),
        (["generate", "x", "--seed", "-1"], "--seed must be a whole number of at least 0, found -1"),
        (["generate", "x", "--stop", ""], "--stop must be non-empty strings, found ''"),
        (["generate", "x", "--stop-id", "-1"], "each of --stop-id must be a whole number of at least 0, found -1"),
        (["generate", "x", "--json", "--logprobs", "99999"], "--logprobs must be a whole number of at least 0 and at"),
        (["generate", "x", "--logprobs", "2"], "--logprobs needs --json"),
        (["demo", "--max_tokens", "0"], "--max-tokens must be a whole number of at least 1, found 0"),
        (["interactive", "--temperature", "-1"], "--temperature must be a number at least 0, found -1.0"),
        (["chat", "--top-p", "2"], "--top-p must be a number"),
        (["chat", "--chat-format", "v9"], "argument --chat-format: invalid choice: 'v9'"),
        (["chat", "--message", ""], "--message is empty"),
        (["chat", "--message", " \n"], "--message is empty"),
        (["tokenize", "hi", "--chat-format", "v3"], "--chat-format needs --chat"),
        (["generate", "x", "--threads", "0"], "--threads must be a whole number from 1 to 1024, found 0"),
        (["generate", "x", "--threads", "9" * 30], "--threads must be a whole number from 1 to 1024, found 999"),
        (["info", "a", "-m", "b"], "the model is named twice"),
        (["cache", "clean"], "argument clear: invalid choice: 'clean' (choose from"),
        (["generate", "x", "--draft-model", "a", "--no-speculation"], "--draft-model needs the cpu backend and specul"),
        (["chat", "--draft-model", "a", "--backend", "pytorch"], "--draft-model needs the cpu backend and speculation"),
        (["info", "--draft-model", "a"], "unrecognized arguments: --draft-model"),
        (["bench", "--repeat", "0"], "expected a whole number of at least 1, found '0'"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(ventoux, arguments, message):
    status, out, err = ventoux(*arguments)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"ventoux: error: .*see ventoux.* --help\n", err)
    assert message in err


def errors(folder):
    wide = ["-m", str(folder)]
    return [
        (["info", "no-such-model"], "no such file or folder, no such alias"),
        (["generate", "x", *wide, "--window", str(1 << 31)], "from 1 to 1073741824, found 2147483648"),
        (["generate", "\udcff", *wide], "expected text, found the byte 0xff at character 0"),
        (["info", ""], "no model is called ''"),
        (["generate", "x", *wide, "--draft-model", "no-such-draft"], "no-such-draft"),
        (["info", "~nobody/x"], "'~nobody/x': there is no such file or folder"),
        (["info", "x" * 5000], "File name too long"),
        (["bench", *wide, "--streams", "9" * 30], "streams must be at most 512, found 999"),
        (["generate", "word " * 600, *wide], "but the context holds 512"),
        (["generate", "x", "-m", str(folder / "config.json")], "config.json"),
        (["bench", *wide, "--prompt", "600"], "depth, prompt and new are 632 positions, but the context holds 512"),
        (["bench", *wide, "--depth", "-1"], "depth must be at least 0"),
    ]


@pytest.mark.parametrize("number", range(11))
def test_an_error_is_one_line_and_status_1(ventoux, folder, number):
    arguments, message = errors(folder)[number]
    status, out, err = ventoux(*arguments)
    assert (status, out) == (1, "")
    assert re.fullmatch(r"ventoux: error: .*\n", err)
    assert message in err


def test_facts_24_a_prompt_that_does_not_fit_is_refused_with_both_numbers(ventoux, folder):
    status, _, err = ventoux("generate", "word " * 600, "-m", folder, "--max-tokens", "7")
    assert status == 1
    assert re.search(r"the prompt has 6\d\d tokens and 7 more are asked for, but the context holds 512", err)


def test_debug_shows_the_traceback(ventoux):
    with pytest.raises(Exception, match="no such alias"):
        ventoux("info", "no-such-model", "--debug")


def test_a_draft_that_breaks_down_is_a_warning_of_one_line(ventoux, folder, tmp_path):
    model = tiny.tiny_model(vocab_size=32000, hidden_size=32, intermediate_size=32)
    model.model.norm.weight.data.fill_(float("nan"))
    tiny.save_hf(model, tmp_path)
    shutil.copy(folder / "tokenizer.model", tmp_path)
    words = (
        "generate",
        "Hello",
        "-m",
        folder,
        "--window",
        "off",
        "--max-tokens",
        20,
        "--temperature",
        0,
        "--ignore-eos",
    )
    status, out, err = ventoux(*words, "--draft-model", tmp_path)
    assert (status, out) == ventoux(*words)[:2]
    assert status == 0
    [told] = [line for line in err.splitlines() if "ventoux" in line]
    assert re.fullmatch("ventoux: warning: the draft model guesses no more, .*not finite numbers.*", told)
