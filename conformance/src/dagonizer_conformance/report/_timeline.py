"""The history of a linearizability failure, drawn: in text, and as SVG."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from rich.cells import cell_len, set_cell_size

from dagonizer_conformance.report._visible import on_one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dagonizer_conformance.results import Operation

_NEVER = math.inf

_SHORTEST_TO_SCALE = 1e-6  # seconds; clocks are no better
_TEXT_COLUMNS = 40
_LONGEST_LABEL = 32

# Sizes of the drawing, in CSS pixels.
_CHARACTER = 7.25
_BAR_PADDING = 10
_BAR_HEIGHT = 40
_BAR_GAP = 1.5
_ROW_HEIGHT = 46
_LANE_PADDING = 7
_AXIS_HEIGHT = 34
_EDGE = 40
_TAIL = 24
_STEP_BETWEEN_EVENTS = 16
_NARROWEST = 600
_WIDEST_TO_SCALE = 1400
_BETWEEN_TICKS = 80
_LONGEST_CLIENT = 14
_GUTTER_PADDING = 16


class _Bar(NamedTuple):
    operation: Operation
    started: float
    ended: float
    call: str
    outcome: str

    @property
    def width(self) -> float:
        """The pixels that the labels need."""
        return max(cell_len(self.call), cell_len(self.outcome)) * _CHARACTER + 2 * _BAR_PADDING


class _Scale(NamedTuple):
    positions: dict[float, float]
    ticks: list[tuple[str, float]]
    title: str


def history_lines(operations: Sequence[Operation]) -> list[str]:
    """Return ``operations`` as text, a line for each in the order of their start, with a bar in the order of events."""
    bars = _bars(operations)
    times = _event_times(bars)
    columns = min(len(times), _TEXT_COLUMNS)
    column = {time: rank * columns // len(times) for rank, time in enumerate(times)} | {_NEVER: columns}
    drawn = []
    for bar in bars:
        left, right = column[bar.started], column[bar.ended]
        drawn.append(" " * left + "├" + "─" * (right - left - 1) + ("┄" if bar.ended == _NEVER else "┤"))
    clients = [on_one_line(bar.operation.client) for bar in bars]
    client_width, drawn_width = max(map(cell_len, clients), default=0), max(map(len, drawn), default=0)
    return [
        f"{set_cell_size(client, client_width)}  {line:<{drawn_width}}  "
        f"{bar.call} {bar.outcome}  ({exact_times(bar.operation)})"
        for bar, client, line in zip(bars, clients, drawn, strict=True)
    ]


def exact_times(operation: Operation) -> str:
    """Return when ``operation`` started and ended, to the microsecond."""
    started = f"{operation.started * 1000:,.3f}"
    if operation.ended is None:
        return f"from {started} ms, never returned"
    return f"{started} to {operation.ended * 1000:,.3f} ms"


def history_svg(operations: Sequence[Operation]) -> str:
    """Return HTML that draws ``operations``: a lane for each client, a bar for each operation, an axis.

    Time is to scale where every label then fits in its bar within a reasonable width. Where it would not, as when
    durations differ by orders of magnitude, events are drawn in their order and no label is ever cut short for it.
    """
    if not operations:
        return ""
    bars = _bars(operations)
    scale = _linear_scale(bars) or _order_scale(bars)
    ends_of_open_bars = [scale.positions[bar.started] + bar.width for bar in bars if bar.ended == _NEVER]
    right_edge = max([*scale.positions.values(), *ends_of_open_bars]) + _TAIL
    positions = {**scale.positions, _NEVER: right_edge}
    width, top = right_edge + 2 * _EDGE, 0.0
    gutter, drawn = [], []
    for client, rows in _lanes(bars).items():
        bottom = top + len(rows) * _ROW_HEIGHT + 2 * _LANE_PADDING
        gutter.append(_lane_label(client, (top + bottom) / 2))
        drawn.append(f'<line class="lane" x1="0" x2="{width:.1f}" y1="{bottom}" y2="{bottom}"/>')
        for number, row in enumerate(rows):
            y = top + _LANE_PADDING + number * _ROW_HEIGHT + (_ROW_HEIGHT - _BAR_HEIGHT) / 2
            drawn += [_bar_svg(bar, positions[bar.started], positions[bar.ended], y) for bar in row]
        top = bottom
    height = f'height="{top + _AXIS_HEIGHT:.0f}"'
    longest = max(cell_len(_lane_name(bar.operation.client)) for bar in bars)
    gutter_width = longest * _CHARACTER + _GUTTER_PADDING
    return (
        f'<div class="history"><svg width="{gutter_width:.0f}" {height} aria-hidden="true">{"".join(gutter)}</svg>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="History of {len(bars)} operations">'
        f'<svg width="{width:.0f}" {height} role="img" aria-label="One lane per client, one bar per operation">'
        f"{_axis(scale, top, width)}{''.join(drawn)}</svg></div></div>"
        f'<p class="axis-title">{escape(scale.title)}</p>'
    )


def _bars(operations: Sequence[Operation]) -> list[_Bar]:
    with_key = len({operation.key for operation in operations}) > 1
    bars = []
    for operation in sorted(operations, key=lambda each: each.started):
        # A call that took no measurable time still ended after it began.
        earliest = math.nextafter(operation.started, _NEVER)
        ended = _NEVER if operation.ended is None else max(operation.ended, earliest)
        words = [operation.name, operation.key if with_key else None, operation.argument]
        call = _shortened(" ".join(word for word in words if word), _LONGEST_LABEL)
        bars.append(
            _Bar(operation, operation.started, ended, call, _shortened(f"→ {operation.outcome}", _LONGEST_LABEL))
        )
    return bars


def _shortened(label: str, longest: int) -> str:
    line = on_one_line(label)
    return line if cell_len(line) <= longest else set_cell_size(line, longest - 1).rstrip() + "…"


def _lanes(bars: list[_Bar]) -> dict[str, list[list[_Bar]]]:
    """Return the bars of each client, in as many rows as it takes that none covers another."""
    # Shorter names first puts client 2 before client 10.
    clients = sorted({bar.operation.client for bar in bars}, key=lambda client: (len(client), client))
    lanes: dict[str, list[list[_Bar]]] = {client: [] for client in clients}
    for bar in bars:
        rows = lanes[bar.operation.client]
        free = next((row for row in rows if row[-1].ended <= bar.started), None)
        if free is None:
            rows.append([bar])
        else:
            free.append(bar)
    return lanes


def _event_times(bars: list[_Bar]) -> list[float]:
    return sorted({time for bar in bars for time in (bar.started, bar.ended) if time < _NEVER})


def _linear_scale(bars: list[_Bar]) -> _Scale | None:
    """Return a scale of time on which every label fits in its bar, or None if it would be too wide."""
    times = _event_times(bars)
    first, span = times[0], times[-1] - times[0]
    needed = [bar.width / (bar.ended - bar.started) for bar in bars if bar.ended < _NEVER]
    if span < _SHORTEST_TO_SCALE or not needed or max(needed) * span > _WIDEST_TO_SCALE:
        return None
    per_second = max(*needed, _NARROWEST / span)
    step = _round_step(_BETWEEN_TICKS / per_second)
    marks = [n * step for n in range(math.ceil(first / step), math.floor(times[-1] / step) + 1)]
    digits = max(0, -math.floor(math.log10(step * 1000)))
    return _Scale(
        {time: (time - first) * per_second for time in times},
        [(f"{mark * 1000:,.{digits}f}", (mark - first) * per_second) for mark in marks],
        "Milliseconds since the case began, to scale.",
    )


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that is not less than ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)


def _order_scale(bars: list[_Bar]) -> _Scale:
    """Return a scale that keeps only the order of events, each as far from the last as its labels need."""
    positions: dict[float, float] = {}
    ticks: list[tuple[str, float]] = []
    position = -float(_STEP_BETWEEN_EVENTS)
    for time in _event_times(bars):
        fits = [positions[bar.started] + bar.width for bar in bars if bar.ended == time]
        position = max([position + _STEP_BETWEEN_EVENTS, *fits])
        positions[time] = position
        if not ticks or position - ticks[-1][1] >= _BETWEEN_TICKS:
            ticks.append((f"{time * 1000:,.3f}", position))
    return _Scale(
        positions,
        ticks,
        "Events in their order, not to scale, so that short operations can be read. "
        "The numbers are milliseconds since the case began.",
    )


def _axis(scale: _Scale, top: float, width: float) -> str:
    parts = [f'<line class="axis" x1="0" x2="{width:.1f}" y1="{top}" y2="{top}"/>']
    for label, position in scale.ticks:
        x = f"{position + _EDGE:.1f}"
        parts.append(
            f'<line class="tick" x1="{x}" x2="{x}" y1="0" y2="{top + 6}"/>'
            f'<text class="time" x="{x}" y="{top + 22}" text-anchor="middle">{label}</text>'
        )
    return "".join(parts)


def _lane_label(client: str, middle: float) -> str:
    return f'<text class="client" x="0" y="{middle:.1f}" dy="0.35em">{escape(_lane_name(client))}</text>'


def _lane_name(client: str) -> str:
    return _shortened(client, _LONGEST_CLIENT)


def _bar_svg(bar: _Bar, left: float, right: float, top: float) -> str:
    operation = bar.operation
    kind = "reads" if operation.name.startswith("load") else "writes"
    left, right, bottom = left + _EDGE + _BAR_GAP, right + _EDGE - _BAR_GAP, top + _BAR_HEIGHT
    if bar.ended == _NEVER:
        # Open to the right: nobody knows when, or whether, it took effect.
        shape = f'<path class="bar {kind} open" d="M{right:.1f} {top:.1f}H{left:.1f}V{bottom:.1f}H{right:.1f}"/>'
    else:
        shape = (
            f'<rect class="bar {kind}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{_BAR_HEIGHT}" rx="4"/>'
        )
    words = [operation.name, operation.key, operation.argument]
    title = f"{operation.client}: {' '.join(word for word in words if word)} → {operation.outcome}"
    x = f"{left + _BAR_PADDING - _BAR_GAP:.1f}"
    return (
        f"<g><title>{escape(on_one_line(title))}\n{escape(exact_times(operation))}</title>{shape}"
        f'<text class="call" x="{x}" y="{top + 17:.1f}">{escape(bar.call)}</text>'
        f'<text class="outcome" x="{x}" y="{top + 32:.1f}">{escape(bar.outcome)}</text></g>'
    )
