"""Where the numbers come from: what was run, on what, how long; what was exported; the commands to repeat it."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..command_line import shell_command
from ..run import public_name
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
    """`pretrain`, `evaluate` for each kind of result, `report`; the page is handed on, and tells no absolute path of
    the images."""
    run = content.run
    given = run.environment.get("command")
    if given:
        again = _without_place(str(given))
    else:  # started from Python: the same through the command line
        options = ["--limit", content.data["limit"]] if content.data.get("limit") else []
        source = public_name(str(content.data.get("name", run.recipe.data.source)))
        recipe, out = run.directory / "recipe.toml", Path(f"{run.directory}-again")
        again = shell_command("pretrain", "--recipe", recipe, "--data", source, *options, "--out", out)
    return [again, *_evaluations(content), shell_command("report", run.directory)]


def _without_place(given: str) -> str:
    """A command, the absolute path of its `--data` reduced to the last part."""
    try:
        words = shlex.split(given)
    except ValueError:  # of a run from before commands were quoted
        return given
    shown = list(words)
    for i, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option == "--data" and equals:
            shown[i] = f"--data={public_name(value)}"
        elif i and words[i - 1] == "--data":
            shown[i] = public_name(word)
    return given if shown == words else shlex.join(shown)


def _evaluations(content: ReportContent) -> list[str]:
    """One `evaluate` for all methods that have the same data, share of the labels, folds and inits."""
    own = content.data.get("name") if "path" in content.data else None  # the run knows where these are
    methods: dict[tuple[tuple[object, ...], ...], list[str]] = {}
    for one in content.comparisons:
        shown = one.shown
        both = all(one.both) or one.method == "supervised"  # which has no other init than random weights
        options: tuple[tuple[object, ...], ...] = (
            () if shown.data == own else ("--data", shown.data),
            ("--limit", shown.limit) if shown.limit else (),
            ("--label-fraction", f"{shown.label_fraction:g}") if shown.label_fraction < 1 else (),
            ("--folds", len(shown.folds)) if shown.folds else (),
            () if both else ("--init", shown.init),
        )
        methods.setdefault(options, []).append(one.method)
    lines = []
    for (data, *rest), names in methods.items():
        flags = [word for method in dict.fromkeys(names) for word in ("--method", method)]
        lines.append(shell_command("evaluate", content.run.directory, *data, *flags, *itertools.chain(*rest)))
    return lines
