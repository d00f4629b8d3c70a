"""Where the numbers come from: what was run, on what, how long; what was exported; the commands to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from html import escape
from typing import Any

from .content import ReportContent
from .markup import duration, facts, section, short


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
        ("throughput", f"{float(speeds[-1]):,.0f} images/s at the end" if speeds else ""),
        ("device", ", ".join(str(part) for part in device if part)),
        ("peak memory", f"{float(env['peak_bytes']) / 2**30:.2f} GiB" if env.get("peak_bytes") else ""),
        ("kernels", ", ".join(f"{kernel}: {backend}" for kernel, backend in env.get("backends", {}).items())),
        ("versions", ", ".join(f"{what} {which}" for what, which in versions.items())),
        ("commit", str(env.get("commit") or "")[:12]),
    ]
    notes = "".join(f"<li>{escape(str(note))}</li>" for note in env.get("notes", ()))
    return section("What was run", facts(pairs) + (f'<ul class="after">{notes}</ul>' if notes else ""))


def _count(about: Mapping[str, Any]) -> str:
    return f"{int(about.get('images') or 0):,} images"


def _peak(plan: Mapping[str, Any]) -> str:
    return f", peak learning rate {float(plan['peak_lr']):.4g}" if plan.get("peak_lr") else ""


def export_facts(record: Mapping[str, Any] | None) -> str:
    """What the last export said of itself; empty without one."""
    return section("Exported file", facts(_flat(record))) if record else ""


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
    """The commands that give this run and its numbers again, and the resolved recipe."""
    run = content.run
    where = shlex.quote(str(run.directory))
    command = run.environment.get("command")
    if not command:  # started from Python: the same through the command line
        limit = f" --limit {content.data['limit']}" if content.data.get("limit") else ""
        source = shlex.quote(str(content.data.get("name", run.recipe.data.source)))
        command = f"simclr-engine pretrain --recipe {where}/recipe.toml --data {source}{limit} --out {where}-again"
    commands = [str(command)]
    for data in dict.fromkeys(one.shown.data for one in content.comparisons):
        methods = dict.fromkeys(one.method for one in content.comparisons if one.shown.data == data)
        flags = " ".join(f"--method {method}" for method in methods)
        commands.append(f"simclr-engine evaluate {where} --data {shlex.quote(data)} {flags}")
    return section(
        "Reproduce",
        f"<pre>{escape(chr(10).join(commands))}</pre>"
        f"<details><summary>The resolved recipe ({escape(run.recipe.hash()[:12])}…)</summary>"
        f"<pre>{escape(run.recipe.to_toml())}</pre></details>",
    )
