"""A guard against slower kernels that other work on the machine does not trip: it counts, and looks at no clock."""

import json

import pytest
import tiny
from counting import FORMATS, RECORD, Call, Counter, allocations, calls, why_not

from ventoux.cpu import instruction_sets

RECORDED = json.loads(RECORD.read_text())
USUAL = ("Q4_0", "Q8_0", "Q4_K", "BF16")
pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "counted")


@pytest.fixture(scope="module")
def count(tmp_path_factory):
    return Counter(tmp_path_factory.mktemp("counting"))


def compare(count: Counter, isa: str, made: dict[str, Call]) -> None:
    recorded = RECORDED["instructions"].get(isa)
    if recorded is None:
        pytest.skip(f"counts.json has no numbers for {isa}")
    counted = {name: count(call) for name, call in made.items()}
    slower = {name: f"{n} > {recorded[name]}" for name, n in counted.items() if n > 1.1 * recorded[name]}
    assert not slower, "a tenth more instructions than recorded; if it is meant, run python tests/counting/renew.py"


def test_kernels_take_no_more_instructions_than_recorded(count):
    isa = instruction_sets()[0]
    compare(count, isa, calls(isa, formats=USUAL))


@pytest.mark.slow
@pytest.mark.parametrize("isa", instruction_sets())
def test_all_kernels_take_no_more_instructions_than_recorded(count, isa):
    compare(count, isa, calls(isa, formats=FORMATS))


def test_counts_grow_with_the_work(count):
    made = calls(instruction_sets()[0], formats=("Q4_0",))
    one, eight = (count(made[f"linear Q4_0, {n} tokens"]) for n in (1, 8))
    assert 3 * one < eight < 8 * one
    assert count(made["linear Q4_0, 1 tokens"]) == one


def test_a_decode_step_allocates_no_more_than_recorded(tmp_path):
    for layers, recorded in RECORDED["allocations"].items():
        path = tiny.save_hf(tiny.tiny_model(num_hidden_layers=int(layers)), tmp_path / layers)
        assert allocations(path, tmp_path) <= recorded, f"with {layers} layers"
