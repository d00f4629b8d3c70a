"""Where the numbers come from: what was run, on what, how long; what was exported; the commands to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ..evaluation.comparison import Comparison
from . import markup
from .content import ReportContent
from .markup import duration, facts, short


def run_facts(content: ReportContent) -> str:
    """Recipe, data, machine, backends, versions and time of the run."""
    env, recipe, about = content.run.environment, content.run.recipe, content.data
    plan: Mapping[str, Any] = env.get("plan", {})
    speeds = [row["images_per_second"] for row in content.metrics if "images_per_second" in row]
    parameters = f", {int(env['parameters']):,} parameters with the projection head" if env.get("parameters") else ""
    limit = f", limited to {int(about['limit']):,}" if about.get("limit") else ""
    size = f"{about.get('image_size', '?')} px"
    batch = f"{recipe.train.batch_size} images × {recipe.train.views} views"
    steps = f"{int(plan['total_steps']):,} of {batch}" if plan.get("total_steps") else f"of {batch}"
    device = (
        env.get("device_name"),
        env.get("device"),
        env.get("precision"),
        "channels_last" if env.get("channels_last") else None,
        "compiled" if env.get("compile") else None,
    )
    versions = {"simclr-engine": env.get("version", "?"), **env.get("versions", {})}
    pairs = [
        ("recipe", f"{recipe.name} — {recipe.origin}"),
        ("encoder", f"{recipe.model.arch}, {recipe.model.stem} stem{parameters}"),
        ("images", f"{about.get('name', '?')}, split {about.get('split', '?')}: {_count(about)} of {size}{limit}"),
        ("fingerprint of the images", f"{str(about.get('fingerprint', 'unknown'))[:16]}…"),
        ("length", f"{short(content.epochs)} epochs"),
        ("steps", steps),
        ("optimizer", f"{recipe.optimizer.name}, {recipe.schedule.name} schedule{_peak(plan)}"),
        ("loss", f"NT-Xent, temperature {recipe.loss.temperature:g}"),
        ("seed", str(recipe.train.seed)),
        ("time", duration(float(env["seconds"])) if env.get("seconds") else "unknown"),
        ("started", _moment(env["ended"] - env["seconds"]) if env.get("ended") and env.get("seconds") else ""),
        ("ended", _moment(env["ended"]) if env.get("ended") else ""),
        ("throughput", f"{float(speeds[-1]):,.0f} images/s at the end" if speeds else ""),
        ("device", ", ".join(str(part) for part in device if part)),
        ("peak memory", f"{float(env['peak_bytes']) / 2**30:.2f} GiB" if env.get("peak_bytes") else ""),
        ("kernels", ", ".join(f"{kernel}: {backend}" for kernel, backend in env.get("backends", {}).items())),
        ("versions", ", ".join(f"{what} {which}" for what, which in versions.items())),
        ("commit", str(env.get("commit") or "")[:12]),
    ]
    notes = "".join(f"<li>{markup.text(note)}</li>" for note in env.get("notes", ()))
    return markup.card(facts(pairs) + (f'<ul class="after">{notes}</ul>' if notes else ""))


def _moment(seconds: float) -> str:
    """Seconds since 1970 as `2025-11-22 02:30 UTC`."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _count(about: Mapping[str, Any]) -> str:
    return f"{int(about.get('images') or 0):,} images"


def _peak(plan: Mapping[str, Any]) -> str:
    return f", peak learning rate {float(plan['peak_lr']):.4g}" if plan.get("peak_lr") else ""


def export_facts(record: Mapping[str, Any] | None) -> str:
    """What the last export said of itself; empty without one."""
    return markup.card(facts(_flat(record))) if record else ""


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as (words, text), in their order."""
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        words = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            rows += _flat(value, f"{words}: ")
        elif key == "bytes" and isinstance(value, int):
            rows.append(("size", f"{value / 2**20:.1f} MiB"))
        elif key == "seconds" and isinstance(value, int | float):
            rows.append(("time", duration(float(value))))
        elif key == "min_cosine" and isinstance(value, int | float):
            rows.append((words, f"1 − {1 - value:.1e}"))
        elif isinstance(value, float):
            rows.append((words, f"{value:.6g}"))
        elif isinstance(value, list | tuple):
            rows.append((words, ", ".join(str(v) for v in value)))
        else:
            rows.append((words, "" if value is None else str(value)))
    return rows


def reproduce(content: ReportContent) -> str:
    """The commands that give this run, its numbers and its page again, and the resolved recipe."""
    recipe = content.run.recipe
    return markup.card(
        markup.code(commands(content))
        + markup.folded(
            f"The resolved recipe ({recipe.hash()[:12]}…)", markup.code(recipe.to_toml().splitlines()), opened=False
        )
    )


def commands(content: ReportContent) -> list[str]:
    """`pretrain`, `evaluate` for each kind of result, `report`."""
    run = content.run
    where = shlex.quote(str(run.directory))
    command = run.environment.get("command")
    if not command:  # started from Python: the same through the command line
        limit = f" --limit {content.data['limit']}" if content.data.get("limit") else ""
        source = shlex.quote(str(content.data.get("name", run.recipe.data.source)))
        again = shlex.quote(f"{run.directory}-again")
        recipe = shlex.quote(f"{run.directory}/recipe.toml")
        command = f"simclr-engine pretrain --recipe {recipe} --data {source}{limit} --out {again}"
    return [str(command), *_evaluations(where, content.comparisons), f"simclr-engine report {where}"]


def _evaluations(where: str, comparisons: Sequence[Comparison]) -> list[str]:
    """One `evaluate` for all methods that have the same data, share of the labels, folds and inits."""
    methods: dict[tuple[str, ...], list[str]] = {}
    for one in comparisons:
        shown = one.shown
        both = all(one.both) or one.method == "supervised"  # which has no other init than random weights
        options: tuple[str, ...] = (
            f"--data {shlex.quote(shown.data)}",
            f"--limit {shown.limit}" if shown.limit else "",
            f"--label-fraction {shown.label_fraction:g}" if shown.label_fraction < 1 else "",
            f"--folds {len(shown.folds)}" if shown.folds else "",
            "" if both else f"--init {shown.init}",
        )
        methods.setdefault(options, []).append(one.method)
    lines = []
    for (data, *rest), names in methods.items():
        flags = [f"--method {method}" for method in dict.fromkeys(names)]
        lines.append(" ".join(["simclr-engine evaluate", where, data, *flags, *filter(None, rest)]))
    return lines
