# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Line charts as inline SVG, without any library."""

import math
from collections.abc import Mapping, Sequence
from html import escape


Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 520, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 30, 34
# The colorblind-safe palette of Okabe and Ito.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within a range: multiples of 1, 2 or 5 times a power of ten, about as many as requested."""
    if high <= low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def chart(title: str, curves: Mapping[str, Points]) -> str:
    """An SVG element with curves over training steps.

    Args:
        title: above the chart.
        curves: by name, points of step and value, sorted by step; points that are not finite are left out.
    """
    finite = {name: [point for point in points if math.isfinite(point[1])] for name, points in curves.items()}
    xs, ys = zip(*(point for points in finite.values() for point in points), strict=True)
    x_scale = _Scale(0, max(xs), _LEFT, _WIDTH - _RIGHT)
    y_scale = _Scale(min(ys), max(ys), _HEIGHT - _BOTTOM, _TOP)
    parts = [f'<text x="{_LEFT}" y="16" font-weight="bold">{escape(title)}</text>']
    for value in ticks(x_scale.low, x_scale.high):
        x = x_scale(value)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 12}" text-anchor="middle">{value:,.10g}</text>')
    for value in ticks(y_scale.low, y_scale.high):
        y = y_scale(value)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for number, (name, points) in enumerate(finite.items()):
        color = _COLORS[number % len(_COLORS)]
        places = [(f"{x_scale(x):.1f}", f"{y_scale(y):.1f}") for x, y in points]
        line = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        if len(points) < 20:
            parts.extend(f'<circle cx="{x}" cy="{y}" r="2.5" fill="{color}"/>' for x, y in places)
        if len(finite) > 1:
            x = _WIDTH - _RIGHT - 90 * (len(finite) - number)
            parts.append(f'<text x="{x + 90}" y="16" text-anchor="end" fill="{color}">{escape(name)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'font-family="sans-serif" font-size="11">{"".join(parts)}</svg>'
    )


class _Scale:
    """Maps values to coordinates: `low` to `start`, `high` to `end`; a single value gets margins on both sides."""

    def __init__(self, low: float, high: float, start: float, end: float):
        room = 0.0 if high > low else abs(low) / 10 or 1.0
        self.low, self.high = low - room, high + room
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        return self._start + (value - self.low) / (self.high - self.low) * (self._end - self._start)
