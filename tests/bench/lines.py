"""Draw a line chart with logarithmic scales as SVG, readable on a light and on a dark background."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 150, 40, 50
_COLOURS = ("#4f46e5", "#d97706", "#059669", "#dc2626")


@dataclass(frozen=True)
class Line:
    name: str
    points: Sequence[tuple[float, float]]


def svg(title: str, x_label: str, y_label: str, lines: Sequence[Line]) -> str:
    """Return the chart. The vertical axis has a tick at each power of ten, the horizontal one at each point."""
    xs = sorted({x for line in lines for x, _ in line.points})
    ys = [y for line in lines for _, y in line.points]
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    high = max(high, low + 1)

    def place_x(value: float) -> float:
        span = math.log(xs[-1] / xs[0]) or 1.0
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * math.log(value / xs[0]) / span, 1)

    def place_y(value: float) -> float:
        share = (math.log10(value) - low) / (high - low)
        return round(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * share, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="#6b7280" role="img" aria-label="{escape(title)}">',
        f'<text x="{_LEFT}" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
        f'<text x="{_LEFT}" y="{HEIGHT - 10}">{escape(x_label)}</text>',
        f'<text x="{_LEFT}" y="{_TOP - 6}">{escape(y_label)}</text>',
    ]
    for power in range(low, high + 1):
        y = place_y(10.0**power)
        parts.append(f'<path d="M{_LEFT} {y}H{WIDTH - _RIGHT}" stroke="#9ca3af" stroke-opacity=".4"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{10.0**power:,g}</text>')
    for x in xs:
        parts.append(f'<text x="{place_x(x)}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">{x:,.10g}</text>')
    for line, colour in zip(lines, _COLOURS, strict=False):
        places = [(place_x(x), place_y(y)) for x, y in line.points]
        path = "L".join(f"{x} {y}" for x, y in places)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in places]
        x, y = places[-1]
        parts.append(f'<text x="{x + 8}" y="{y + 4}" fill="{colour}">{escape(line.name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
