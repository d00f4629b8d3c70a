"""The report of `make gpu` as Markdown: what was measured, what was not and why, and what to tune next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .rows import Row, figure, table_line

KNOWN = ("name", "contender", "median", "p20", "p80", "unit", "repeats", "rows", "dtype", "views", "size")
# What a device has to reach (median of a row, in its unit).
GOALS = (
    ("training step", "ours, compiled", 60_000.0, "views/s of a compiled step"),
    ("epochs through `pretrain`", "epoch 4", 60_000.0, "views/s end to end through `pretrain`"),
    ("augmentation 32×32", "ours (triton) on cuda", 5e6, "views/s of the augmentation"),
)


def report(document: dict[str, Any]) -> str:
    """The document of a session as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    lines = [f"# {document['device']}", "", f"{versions}; commit {document['commit']}", ""]
    if document["dry"]:
        lines += ["**A dry run at tiny sizes: no figure here means anything.**", ""]
    parts: dict[str, dict[str, Any]] = document["parts"]
    rows = [one for part in parts.values() for one in part["rows"]]
    lines += ["## In short", "", *_in_short(rows), "", "## What was not measured, and why", "", *_missing(parts), ""]
    lines += ["## What to tune next", "", *_to_tune(rows), "", "## Parts", "", "| part | status | seconds | rows |"]
    lines += ["|---|---|---|---|"]
    lines += [
        f"| {name} | {part['status']} | {part['seconds']} | {len(part['rows'])} |" for name, part in parts.items()
    ]
    for name, part in parts.items():
        if part["rows"]:
            lines += ["", f"## {name}", "", "| measured | contender | median | p20 | p80 | unit | also |"]
            lines += ["|---|---|---|---|---|---|---|", *map(_line, part["rows"])]
    return "\n".join(lines)


def _in_short(rows: list[Row]) -> list[str]:
    """Goals with what was measured, and the ratios that matter."""
    found = []
    for name, contender, goal, what in GOALS:
        value = _median(rows, name, contender)
        said = "not measured" if value is None else f"{figure(value)} ({value / goal:.2f} × the goal)"
        found.append(f"- {what}, goal {figure(goal)}: {said}")
    ratios = (
        ("a compiled step beside plain eager TF32, goal 2", "training step", "ours, compiled", "plain eager TF32 NCHW"),
        ("a compiled step beside ours not compiled", "training step", "ours, compiled", "ours, not compiled"),
    )
    for what, name, ours, rival in ratios:
        mine, theirs = _median(rows, name, ours), _median(rows, name, rival)
        said = "not measured" if mine is None or theirs is None else f"{mine / theirs:.2f} ×"
        found.append(f"- {what}: {said}")
    return found


def _missing(parts: dict[str, dict[str, Any]]) -> list[str]:
    """Parts that did not end well and rows without a figure, with their reasons."""
    found = [f"- {name}: {part['status']}" for name, part in parts.items() if part["status"] != "done"]
    for name, part in parts.items():
        reasons = {f"{one['contender']}: {one.get('note', '')}" for one in part["rows"] if one["median"] is None}
        found += [f"- {name}, {reason}" for reason in sorted(reasons)]
    return found or ["Everything was measured."]


def _to_tune(rows: list[Row]) -> list[str]:
    """Choices that were made without a device, each beside the figures that decide them."""
    found = []
    for question, name, better in (
        ("Are all of cuDNN's plans worth trying, and is fp16 ahead of bf16?", "cuDNN plans", max),
        ("Is the stem faster with its input padded to 8 channels?", "stem", max),
        ("How many views fill the device?", "views in a step", max),
    ):
        found += _choice(question, [one for one in rows if one["name"] == name], better)
    sizes = sorted({one["name"] for one in rows if one["name"].startswith("NT-Xent") and "backward" in one["name"]})
    for name in sizes:
        same = [one for one in rows if one["name"] == name]
        found += _choice(f"Are the tiles of `kernels/ntxent/fused.py` ahead? {name}", same, min)
    busy = [
        one for one in rows if one["contender"] in ("device busy", "layout changes of a step", "launches of a step")
    ]
    found += [f"- Profile: {one['contender']} {figure(one['median'])} {one['unit']}" for one in busy]
    return found or ["Nothing was measured that would say."]


def _choice(question: str, rows: list[Row], better: Callable[..., Row]) -> list[str]:
    there = [one for one in rows if one["median"] is not None]
    if len(there) < 2:
        return []
    best = better(there, key=lambda one: one["median"])
    figures = ", ".join(f"{one['contender']} {figure(one['median'])}" for one in there)
    return [f"- {question} Best: **{best['contender']}** ({figures} {there[0]['unit']})"]


def _median(rows: list[Row], name: str, contender: str) -> float | None:
    return next((one["median"] for one in rows if (one["name"], one["contender"]) == (name, contender)), None)


def _line(row: Row) -> str:
    also = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k not in KNOWN)
    return f"{table_line(row)} {also if row['median'] is not None else row.get('note', '')} |"
