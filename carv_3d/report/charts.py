"""Line charts as inline SVG: no dependency, sharp at every size, and offline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 400, 230  # so narrow that 12 units of text can still be read on a telephone
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 38
ROW = 18  # of the legend
# distinct for the color-blind too
COLORS = ("#2f6f9f", "#c8553d", "#5a8f4e", "#8a6bb1", "#b08a2e", "#4d8f8b")


@dataclass
class Series:
    """One line: `y` over `x` (equal lengths; points with a y that is not finite are left out).

    low, high: the ends of a band around it, drawn where both are finite.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    points: list[tuple[float, float]] = field(init=False)
    band: list[tuple[float, float, float]] = field(init=False)

    def __post_init__(self) -> None:
        self.points = [(a, b) for a, b in zip(self.x, self.y) if math.isfinite(a) and math.isfinite(b)]
        self.band = [row for row in zip(self.x, self.low, self.high) if all(map(math.isfinite, row))]


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) within [low, high].

    >>> nice_ticks(0.0, 10.0)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def smooth(y: Sequence[float], window: int, robust: bool = False) -> list[float]:
    """The mean over the `window` points around each one (fewer at the ends): a noisy line made readable.

    With `robust` the median instead, which a few outliers do not move.

    >>> smooth([0.0, 3.0, 0.0], 3)
    [1.5, 1.0, 1.5]
    """
    half = window // 2
    out = []
    for i in range(len(y)):
        part = y[max(0, i - half) : i + half + 1]
        out.append(statistics.median(part) if robust else sum(part) / len(part))
    return out


@dataclass
class _Frame:
    """The ranges of both axes, and where they lie in the image."""

    x0: float
    x1: float
    y0: float
    y1: float
    top: float

    @classmethod
    def around(cls, drawn: Sequence[Series], robust: bool, top: float) -> _Frame:
        xs = [p[0] for s in drawn for p in s.points]
        ys = [p[1] for s in drawn for p in s.points] + [end for s in drawn for row in s.band for end in row[1:]]
        x0, x1 = min(xs), max(xs)
        y0, y1 = min(ys), max(ys)
        if robust:
            y1 = min(y1, 1.25 * sorted(ys)[int(0.98 * (len(ys) - 1))])
        if y0 >= 0 and y0 < 0.5 * y1:
            y0 = 0.0
        pad = (y1 - y0) * 0.06 or abs(y1) * 0.1 or 1.0
        return cls(x0, x1 if x1 > x0 else x0 + 1.0, y0 - pad if y0 != 0 else y0, y1 + pad, top)

    def x(self, value: float) -> float:
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (min(value, self.y1) - self.y0) / (self.y1 - self.y0)
        return HEIGHT - BOTTOM - share * (HEIGHT - self.top - BOTTOM)

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in points)


def line_chart(series: Sequence[Series], x_label: str, y_label: str, window: int = 1, robust: bool = False) -> str:
    """An SVG of lines with axes, grid and, for more than one line, a legend.

    Args:
        series: the lines. One without points takes no place in the legend, and keeps its color from the others.
        x_label: escaped, as all names are.
        y_label: the same.
        window: above 1, each line is drawn faint as it is, with its running mean over so many points on top.
        robust: the y axis ends a little above the 98th percentile, what lies higher is cut off at it, and running
            medians take the place of means.

    Returns:
        The SVG, or "" where there is no point.
    """
    drawn = [(s, COLORS[index % len(COLORS)]) for index, s in enumerate(series) if s.points]
    if not drawn:
        return ""
    places, rows = _legend_places([s.name for s, _ in drawn])
    frame = _Frame.around([s for s, _ in drawn], robust, TOP + ROW * rows)
    label = escape(f"{y_label} over {x_label}", quote=True)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}" class="chart">']
    parts += _axes(frame, x_label)
    for line, color in drawn:
        parts += _line(frame, line, color, window, robust)
    if len(drawn) > 1:
        parts += _legend(drawn, places)
    return "".join([*parts, "</svg>"])


def _axes(frame: _Frame, x_label: str) -> list[str]:
    parts = []
    for tick in nice_ticks(frame.y0, frame.y1):
        y = frame.y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in nice_ticks(frame.x0, frame.x1, 6):
        x, y = frame.x(tick), HEIGHT - BOTTOM + 18
        parts.append(f'<text class="tick" x="{x:.1f}" y="{y}" text-anchor="middle">{tick:.6g}</text>')
    parts.append(
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    return parts


def _line(frame: _Frame, line: Series, color: str, window: int, robust: bool) -> list[str]:
    """The band, the line as it is where it is smoothed, and the line on top."""
    parts, shown = [], line.points
    if line.band:
        around = [(x, high) for x, _, high in line.band] + [(x, low) for x, low, _ in reversed(line.band)]
        parts.append(f'<path d="{frame.path(around)}Z" fill="{color}" fill-opacity=".16"/>')
    if window > 1 and len(shown) > window:
        parts.append(f'<path d="{frame.path(shown)}" fill="none" stroke="{color}" stroke-opacity=".25"/>')
        shown = list(zip([p[0] for p in shown], smooth([p[1] for p in shown], window, robust)))
    if len(shown) == 1:
        x, y = frame.x(shown[0][0]), frame.y(shown[0][1])
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>')
    parts.append(f'<path d="{frame.path(shown)}" fill="none" stroke="{color}" stroke-width="2"/>')
    return parts


def _legend_places(names: Sequence[str]) -> tuple[list[tuple[float, int]], int]:
    """Where each name of the legend begins, and how many rows they take; one name alone needs no legend."""
    places, x, row = [], float(LEFT + 8), 0
    for name in names:
        width = 30 + 6.6 * len(name)
        if x + width > WIDTH and x > LEFT + 8:
            x, row = float(LEFT + 8), row + 1
        places.append((x, TOP + ROW * row))
        x += width
    return places, row + 1 if len(names) > 1 else 0


def _legend(drawn: Sequence[tuple[Series, str]], places: Sequence[tuple[float, int]]) -> list[str]:
    parts = []
    for (line, color), (x, y) in zip(drawn, places):
        parts.append(f'<rect x="{x:.0f}" y="{y}" width="12" height="3" fill="{color}"/>')
        parts.append(f'<text class="tick" x="{x + 17:.0f}" y="{y + 6}">{escape(line.name)}</text>')
    return parts
