"""Two drawings as SVG, written by hand: a plot of a few points needs no library."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from statistics import median
from typing import Any

from comparison.table import LLAMA, MACHINE, OURS, OWN, TRANSFORMERS, VLLM, WORKS, Outcome

COLOURS = {OURS: "#0b7285", LLAMA: "#d9480f", TRANSFORMERS: "#5f3dc4", VLLM: "#2b8a3e", OWN: "#868e96"}
GREY, FONT = "#868e96", 'font-family="sans-serif" font-size="12"'


@dataclass(frozen=True)
class Point:
    """One engine's speed in one phase: multiply-adds for each byte read (x), and 10^9 of them a second (y)."""

    engine: str
    label: str
    intensity: float
    gmac_s: float


def points(results: dict[str, Any]) -> list[Point]:
    """What was measured, on a roofline: ours tells a token's multiply-adds and bytes; others do the same work."""
    found = []
    for name, work in results["works"].items():
        runs = [p for p in work["pairs"] if "decode_gmac_s" in p.get(OURS, {}) and MACHINE in p]
        if WORKS[name].kind != "speed" or not runs:
            continue
        ours = runs[-1][OURS]
        macs = {
            phase: ours[f"{phase}_gmac_s"] / ours[f"{phase}_tok_s"] for phase in ("prefill", "decode")
        }  # 10^9 a token
        step = ours["step_gb"]
        for engine in WORKS[name].engines:
            for phase, tokens in (("prefill", min(WORKS[name].prompt, 512)), ("decode", WORKS[name].streams)):
                if phase == "prefill" and WORKS[name].streams > 1:
                    continue  # short prompts: no row of the table
                speeds = [p[engine][f"{phase}_tok_s"] for p in runs if f"{phase}_tok_s" in p.get(engine, {})]
                if speeds:
                    found.append(
                        Point(engine, f"{name} {phase}", macs[phase] * tokens / step, macs[phase] * median(speeds))
                    )
    return found


class Canvas:
    """An SVG that grows; x to the right, y down, in pixels."""

    def __init__(self, width: int, height: int) -> None:
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" {FONT}>'
        self.parts = [head, f'<rect width="{width}" height="{height}" fill="white"/>']

    def text(self, x: float, y: float, text: str, *, anchor: str = "start", colour: str = "black") -> None:
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>')

    def line(self, along: Iterable[tuple[float, float]], colour: str, *, dashed: bool = False) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in along)
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}"{dash}/>')

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>')

    def dot(self, x: float, y: float, colour: str, title: str) -> None:
        title = f"<title>{escape(title)}</title>"
        self.parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}" fill-opacity="0.8">{title}</circle>'
        )

    def svg(self) -> str:
        return "\n".join([*self.parts, "</svg>"]) + "\n"


def roofline(measured: list[Point], limits: dict[str, list[float]]) -> str:
    """Both axes in powers of ten. The roofs are the best that the machine did in any run."""
    read, int8, fp32 = (max(limits[name]) for name in ("read_gb_s", "int8_gmac_s", "fp32_gmac_s"))
    left, right, top, bottom = 60, 760, 30, 400
    x0, x1 = math.floor(math.log10(min(p.intensity for p in measured))), 4
    y0, y1 = math.floor(math.log10(min(p.gmac_s for p in measured))), math.ceil(math.log10(int8))

    def place(intensity: float, gmac_s: float) -> tuple[float, float]:
        x, y = (math.log10(intensity) - x0) / (x1 - x0), (math.log10(gmac_s) - y0) / (y1 - y0)
        return left + x * (right - left), bottom - y * (bottom - top)

    canvas = Canvas(800, 450)
    for power in range(x0, x1 + 1):
        x, _ = place(10.0**power, 1)
        canvas.line([(x, top), (x, bottom)], "#e9ecef")
        canvas.text(x, bottom + 16, f"{10.0**power:g}", anchor="middle")
    for power in range(y0, y1 + 1):
        _, y = place(1, 10.0**power)
        canvas.line([(left, y), (right, y)], "#e9ecef")
        canvas.text(left - 6, y + 4, f"{10.0**power:g}", anchor="end")
    slope_from = max(10.0**x0, 10.0**y0 / read)
    for peak, name in ((int8, "int8"), (fp32, "fp32")):
        canvas.line([place(slope_from, slope_from * read), place(peak / read, peak), place(10.0**x1, peak)], GREY)
        _, y = place(1, peak)
        canvas.text(right, y - 4, f"{name}: {peak:.0f} GMAC/s", anchor="end", colour=GREY)
    x, y = place(slope_from * 2, slope_from * 2 * read)
    canvas.text(x + 8, y + 12, f"memory: {read:.1f} GB/s", colour=GREY)
    canvas.text(
        (left + right) / 2, 440, "multiply-adds for each byte of weights, keys and values read", anchor="middle"
    )
    canvas.text(left, 18, "10^9 multiply-adds a second")
    for p in measured:
        canvas.dot(*place(p.intensity, p.gmac_s), colour(p.engine), f"{p.engine}, {p.label}: {p.gmac_s:.1f} GMAC/s")
    for i, engine in enumerate(dict.fromkeys(p.engine for p in measured)):
        canvas.dot(left + 20, top + 16 + 18 * i, colour(engine), engine)
        canvas.text(left + 30, top + 20 + 18 * i, engine)
    return canvas.svg()


def colour(engine: str) -> str:
    return COLOURS.get(engine, COLOURS[OWN])


def ratios(outcomes: list[Outcome]) -> str:
    """A bar for each row's ratio; a line where its target is, and one at 1."""
    left, width, step = 450, 340, 24
    longest = max((max(o.ratio, o.row.target or 0) for o in outcomes), default=1.0)
    scale = width / max(longest, 1.0)
    canvas = Canvas(870, step * len(outcomes) + 40)
    for i, o in enumerate(outcomes):
        y = 20 + step * i
        canvas.text(left - 8, y + 13, f"{o.row.text} / {o.peer}"[:68], anchor="end")
        canvas.box(left, y, o.ratio * scale, 16, COLOURS[LLAMA] if o.reached is False else COLOURS[OURS])
        canvas.text(left + max(o.ratio, o.row.target or 0) * scale + 6, y + 13, f"{o.ratio:.2f}")
        if o.row.target is not None:
            x = left + o.row.target * scale
            canvas.line([(x, y - 3), (x, y + 19)], "black")
    bottom = 20 + step * len(outcomes)
    canvas.line([(left + scale, 10), (left + scale, bottom)], GREY, dashed=True)
    canvas.text(left + scale, bottom + 12, "1", anchor="middle", colour=GREY)
    return canvas.svg()
