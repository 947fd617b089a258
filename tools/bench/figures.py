"""Medians, slopes and tables; what a run has found, as text and as JSON."""
import json
import statistics
import sys


class BenchError(RuntimeError):
    """A migration failed or moved wrong data: the one thing that makes ./bench fail."""


def median(values):
    return statistics.median(values) if values else float("nan")


def slope(points):
    """Least squares through (x, y) points: (rise per unit of x, y at 0)."""
    points = list(points)
    if len({x for x, _ in points}) < 2:
        return float("nan"), float("nan")
    line = statistics.linear_regression([x for x, _ in points], [y for _, y in points])
    return line.slope, line.intercept


def number(value):
    """A figure with about three digits that mean something."""
    if value is None or value != value:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"


def ratio(value, base):
    return value / base if base else float("nan")


def percent(value):
    return "-" if value != value else f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.1f} %"


class Findings:
    """What the sections print, kept for --json as well. One section at a time."""

    def __init__(self, out=sys.stdout):
        self._out = out
        self._data = {"sections": {}}
        self._section = None

    def describe(self, **facts):
        self._data["machine"] = facts
        self._print(", ".join(f"{name} {value}" for name, value in facts.items()))

    def begin(self, name, title):
        self._section = self._data["sections"][name] = {"title": title, "tables": [], "goals": [], "raw": {}}
        self._print(f"\n=== {name}: {title}")

    def raw(self, name, values):
        """All that was measured, for --json alone."""
        self._section["raw"][name] = values

    def table(self, title, header, rows, note=None):
        """The first column is text, the others are figures or text that stands for one."""
        cells = [[str(row[0]), *map(number, row[1:])] for row in rows]
        widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]
        self._print(f"\n{title}")
        for line in [header, *cells]:
            self._print("  " + "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]))
        if note:
            self._print(f"  ({note})")
        self._section["tables"].append({"title": title, "header": header, "rows": [list(row) for row in rows], "note": note})

    def goal(self, what, value, limit, unit, at_most=True):
        """A goal of the project: met or missed, never a reason to fail."""
        met = value <= limit if at_most else value >= limit
        word = "goal met" if met else "GOAL MISSED"
        self._print(f"  {word}: {what}: {number(value)} {unit}, {'at most' if at_most else 'at least'} {number(float(limit))}")
        self._section["goals"].append({"what": what, "value": value, "limit": limit, "at_most": at_most, "unit": unit, "met": met})

    def say(self, text):
        self._print(f"  {text}")

    def summary(self):
        goals = [goal for section in self._data["sections"].values() for goal in section["goals"]]
        if goals:
            missed = [goal["what"] for goal in goals if not goal["met"]]
            self._print(f"\n{len(goals) - len(missed)} of {len(goals)} goals met" + "".join(f"\n  missed: {what}" for what in missed))

    def write_json(self, path):
        # NaN is no JSON.
        clean = json.loads(json.dumps(self._data), parse_constant=lambda _: None)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(clean, file, indent=1)

    def _print(self, text):
        print(text, file=self._out, flush=True)
