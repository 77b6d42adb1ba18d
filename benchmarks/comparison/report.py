"""results -> peers.md and two drawings. All figures come out of peers.json: nothing is typed."""

from pathlib import Path
from statistics import median
from typing import Any

from comparison import plots
from comparison.table import MACHINE, OURS, ROWS, WORKS, M, Outcome, outcome

Results = dict[str, Any]
ABOUT = {
    "roofline.svg": "What each engine reached, next to the machine's limits",
    "ratios.svg": "Each row's ratio, and its target as a line",
}


BEGIN, END = "<!-- begin: written by benchmarks/peers.py -->\n", "<!-- end: written by benchmarks/peers.py -->\n"


def write(results: Results, folder: Path) -> None:
    """peers.md and its drawings."""
    (folder / "peers.md").write_text(markdown(results, draw(results, folder), found(results)))


def write_into(page: Path, results: Results) -> None:
    """Put the report between the marks of a page, and its drawings in img/ beside the page."""
    before, begin, _, end, after = parts(page)
    (page.parent / "img").mkdir(exist_ok=True)
    drawings = [f"img/{name}" for name in draw(results, page.parent / "img")]
    page.write_text(before + begin + markdown(results, drawings, found(results)) + end + after)


def parts(page: Path, begin_mark: str = BEGIN, end_mark: str = END) -> tuple[str, str, str, str, str]:
    """A page's text before its marks, a mark, the text between, a mark, the rest. ValueError if it has no marks."""
    before, begin, rest = page.read_text().partition(begin_mark)
    between, end, after = rest.partition(end_mark)
    if not (begin and end):
        raise ValueError(f"{page} has no lines {begin_mark.strip()} and {end_mark.strip()} to write between")
    return before, begin, between, end, after


def draw(results: Results, folder: Path) -> list[str]:
    """Write the drawings for which there are figures -> their names."""
    drawings = {}
    if points := plots.points(results):
        drawings["roofline.svg"] = plots.roofline(points, limits(results))
    if outcomes := found(results):
        drawings["ratios.svg"] = plots.ratios(outcomes)
    for name, svg in drawings.items():
        (folder / name).write_text(svg)
    return list(drawings)


def found(results: Results) -> list[Outcome]:
    """The rows that were run, in the order of the table."""
    works = results["works"]
    outcomes = (outcome(row, works[row.work]["pairs"]) for row in ROWS if row.work in works)
    return [o for o in outcomes if o is not None]


def limits(results: Results) -> dict[str, list[float]]:
    """The machine's limits in all runs: read_gb_s, int8_gmac_s, fp32_gmac_s."""
    runs = [p[MACHINE] for work in results["works"].values() for p in work["pairs"] if MACHINE in p]
    return {name: [run[name] for run in runs] for name in ("read_gb_s", "int8_gmac_s", "fp32_gmac_s")} if runs else {}


def span(values: list[float]) -> str:
    """[1, 2, 9] -> 2.00 (1.00 to 9.00): three digits that count, of the median."""
    digits = 0 if median(values) >= 100 else 1 if median(values) >= 10 else 2
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def line(o: Outcome) -> str:
    ratio = f"{o.ratio:.2f} ({min(o.ratios):.2f} to {max(o.ratios):.2f})"
    target = "" if o.row.target is None else f"{o.row.target:g}"
    reached = {None: "", True: "yes", False: "**no**"}[o.reached]
    return (
        f"| {o.row.text} | {span(o.ours)} {o.row.unit} | {o.peer} {span(o.theirs)} | {ratio} | {target} | {reached} |"
    )


def markdown(results: Results, drawings: list[str], outcomes: list[Outcome]) -> str:
    works, host = results["works"], results["host"]
    dates = sorted({work["date"][:10] for work in works.values()})
    counts = sorted({len(work["pairs"]) for work in works.values()})
    pairs = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    lines = [
        f"Measured on {' and '.join(dates)}: {host['cpu']}, {host['cores']} cores, {host['memory_gib']} GiB,"
        f" {host['threads']} threads; Python {host['python']}, {host['system']}. Medians (ranges) of {pairs} pairs,"
        f" the ratio taken pair by pair. {M}. S: the default model, SmolLM2-135M-Instruct in Q4_1. A ratio says how"
        " many times as good ours is: faster, or smaller.",
        "",
        "| work | Ventoux | peer | ratio | target | reached |",
        "|---|---|---|---|---|---|",
        *map(line, outcomes),
        "",
        *machine_lines(results),
        *version_lines(works),
        *left_out_lines(works),
    ]
    for drawing in drawings:
        lines += ["", f"![{ABOUT[drawing.rpartition('/')[2]]}]({drawing})"]
    return "\n".join(lines) + "\n"


def machine_lines(results: Results) -> list[str]:
    if not (bounds := limits(results)):
        return []
    shares = []
    for name, work in results["works"].items():
        ours = [pair[OURS] for pair in work["pairs"] if "prefill_share" in pair.get(OURS, {})]
        if ours:
            prefill, decode = (median(run[f"{phase}_share"] for run in ours) for phase in ("prefill", "decode"))
            shares.append(f"{name} {prefill:.0%} and {decode:.0%}")
    read, int8, fp32 = (span(bounds[name]) for name in ("read_gb_s", "int8_gmac_s", "fp32_gmac_s"))
    return [
        f"The machine reads {read} GB/s and multiplies {int8} GMAC/s in int8, {fp32} in fp32, measured in each run of"
        " ours. What prefill reaches of the multiplications, and decode of the reading: " + "; ".join(shares) + ".",
        "",
    ]


def version_lines(works: Results) -> list[str]:
    versions = sorted(
        {said for name, work in works.items() if WORKS[name].kind == "speed" for said in work["versions"].values()}
    )
    return ["Versions: " + "; ".join(versions) + "."] if versions else []


def left_out_lines(works: Results) -> list[str]:
    lines = [f"- {name}, {engine}: {why}" for name, work in works.items() for engine, why in work["left_out"].items()]
    return ["", "Left out:", "", *lines] if lines else []
