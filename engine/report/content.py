"""What a report says, read from a run's files; how it looks is the page's business. Imports no torch."""

from __future__ import annotations

import itertools
import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bounds import LARGEST_DOCUMENT
from ..command_line import shell_command
from ..errors import counted
from ..evaluation.records import load_results
from ..evaluation.result import METHOD_NAMES, Comparison, EvaluationResult, compare
from ..inputs import read_text
from ..run import Run, changes, is_number, of_a_start, public_name

if TYPE_CHECKING:
    from ..recipe import Recipe

NOTHING = "—"
_LAST_MOMENT = 253_402_300_799  # 9999-12-31 23:59:59 UTC
# What the published figures of the named recipes are on. An archive of the same images has the same classes.
PUBLISHED_ON = "cifar10"
PUBLISHED_CLASSES = frozenset(
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
)


@dataclass(frozen=True, eq=False)
class Published:
    """A published figure of the recipe's system, and our comparison and result of the same method, share of the labels
    and folds where one was run."""

    row: Mapping[str, Any]
    comparison: Comparison | None
    ours: EvaluationResult | None

    @classmethod
    def beside(cls, row: Mapping[str, Any], comparisons: Iterable[Comparison]) -> Published:
        """A published figure beside the first of the comparisons that has its method, share of the labels and number of
        folds, and a result of its init."""
        for pair in comparisons:
            result = pair.trained if row.get("init") == "pretrained" else pair.scratch
            if result is None or result.method != row.get("method") or len(result.folds) != row.get("folds", 0):
                continue
            if math.isclose(result.label_fraction, float(row.get("label_fraction", 1.0)), rel_tol=1e-6):
                return cls(row, pair, result)
        return cls(row, None, None)


@dataclass(frozen=True, eq=False)
class ReportContent:
    """Everything on the page.

    Attributes:
        run: the run.
        metrics: the rows of its log.
        comparisons: its results in pairs, the headline first.
        published: the figures of its recipe's system, where they are on the same images.
        export: what its last export said of itself, if there was one.
    """

    run: Run
    metrics: tuple[Mapping[str, Any], ...]
    comparisons: tuple[Comparison, ...]
    published: tuple[Published, ...]
    export: Mapping[str, Any] | None

    @property
    def headline(self) -> Comparison | None:
        """The comparison on top of the page: the linear probe if it was run."""
        return self.comparisons[0] if self.comparisons else None

    @property
    def results(self) -> list[EvaluationResult]:
        """All results, in the order of the comparisons, the trained encoder's first."""
        return [result for pair in self.comparisons for result in pair.both if result is not None]

    @property
    def data(self) -> Mapping[str, Any]:
        """What environment.json says of the training images."""
        about: Mapping[str, Any] = self.run.environment.get("data", {})
        return about

    @property
    def data_name(self) -> str:
        """The training data as people call it: the last part of a path."""
        return short_name(str(self.data.get("name", "unknown data")))

    @property
    def images(self) -> int:
        """Training images; 0 if unknown."""
        return int(self.data.get("images") or 0)

    @property
    def device(self) -> str:
        """Name of the device, or what kind it is; empty if unknown."""
        return str(self.run.environment.get("device_name") or self.run.environment.get("device") or "")

    @property
    def epochs(self) -> float:
        """Planned length of the run."""
        return float(self.run.environment.get("plan", {}).get("epochs") or self.run.recipe.train.epochs)

    @property
    def length(self) -> str:
        """`2.3 epochs`; of a run that has not ended, how many are logged of how many planned."""
        planned = counted(short(self.epochs), "epoch")
        return f"{short(self.trained_epochs)} of {planned}" if self.run.unfinished else planned

    @property
    def trained_epochs(self) -> float:
        """How far the log goes, in epochs; 0 where nothing was logged."""
        return max((row.get("epoch", 0.0) for row in self.metrics), default=0.0)

    def last(self, column: str, event: str = "train") -> float | None:
        """The last finite number that the log has in a column."""
        rows = logged_rows(self, event, column)
        return float(rows[-1][column]) if rows else None


def load_content(run: Run) -> ReportContent:
    """Reads the results of a run.

    Raises:
        DataError: a file under evaluation/ is not a result.
    """
    own = str(run.environment.get("data", {}).get("name", ""))
    comparisons = compare(load_results(run.directory / "evaluation").values(), own)
    content = ReportContent(run, tuple(run.metrics), tuple(comparisons), (), _export_record(run.directory))
    return replace(content, published=beside_published(content, published_figures(run.recipe)))


def beside_published(content: ReportContent, figures: Iterable[Mapping[str, Any]]) -> tuple[Published, ...]:
    """Published figures beside the run's own; none where it was neither trained nor evaluated on their images."""
    recipe, about = content.run.recipe, content.data
    same = [pair for pair in content.comparisons if _as_published(recipe, pair.shown.data, pair.shown.class_names)]
    if not same and not _as_published(recipe, str(about.get("name", "")), about.get("class_names") or ()):
        return ()
    return tuple(Published.beside(row, same) for row in figures)


def _as_published(recipe: Recipe, data: str, class_names: Iterable[str]) -> bool:
    """Whether these images are those of the recipe's published figures, by their name or by their classes."""
    published = str(recipe.published.get("data", PUBLISHED_ON))
    same_classes = published == PUBLISHED_ON and {str(name).lower() for name in class_names} == PUBLISHED_CLASSES
    return data == published or same_classes


def published_figures(recipe: Recipe) -> list[Mapping[str, Any]]:
    """The published figures of the recipe's system: those rows that name a method and an accuracy."""
    rows = recipe.published.get("results", ())
    rows = rows if isinstance(rows, list | tuple) else ()
    return [row for row in rows if isinstance(row, Mapping) and row.get("method") and is_number(row.get("accuracy"))]


def published_classes(recipe: Recipe) -> dict[str, Mapping[str, Any]]:
    """The published scores of each class by its name, of the linear probe; from a table or from rows with a `name`."""
    scores = recipe.published.get("per_class", ())
    if isinstance(scores, Mapping):
        return {str(name): row for name, row in scores.items() if isinstance(row, Mapping)}
    rows = [row for row in scores if isinstance(row, Mapping)] if isinstance(scores, list | tuple) else []
    return {str(row["name"]): row for row in rows if "name" in row}


def published_source(recipe: Recipe) -> str:
    """Where the published figures of the recipe's system stand."""
    return str(recipe.published.get("source", recipe.origin))


def other_encoders(results: Sequence[EvaluationResult]) -> str:
    """A warning where results of the pretrained encoder belong to different weights: the run was trained on after some
    of them, or its files come from another run. Empty where they agree, or where results do not say."""
    encoders: dict[str, list[str]] = {}
    for result in results:
        if result.init == "pretrained" and result.method != "probe" and result.encoder:
            words = METHOD_NAMES.get(result.method, result.method)
            part = f" with {100 * result.label_fraction:g} % of the labels" if result.label_fraction < 1 else ""
            encoders.setdefault(result.encoder, []).append(words + part)
    if len(encoders) < 2:
        return ""
    which = "; ".join(f"{', '.join(dict.fromkeys(methods))}: {encoder[:12]}…" for encoder, methods in encoders.items())
    return (
        f"Results of {len(encoders)} different encoders stand on this page, so some are not those of the run's present "
        f"weights ({which}). Evaluate again with the same methods to replace them."
    )


def logged_rows(content: ReportContent, event: str, *columns: str) -> list[Mapping[str, Any]]:
    """The rows of one kind that have all these columns as finite numbers."""
    rows = [row for row in content.metrics if row.get("event") == event]
    return [row for row in rows if row.keys() >= set(columns)]


def seconds_of_training(content: ReportContent) -> list[float]:
    """Of each logged `train` row with a throughput, how long the training steps up to it took, in seconds: the sum of
    images / throughput, so without start-up and monitoring, and right for a resumed run too."""
    spent, before, times = 0.0, 0.0, []
    for row in logged_rows(content, "train", "epoch", "images_per_second"):
        if row["images_per_second"] > 0:
            spent += max(0.0, row["epoch"] - before) * content.images / row["images_per_second"]
            before = row["epoch"]
        times.append(spent)
    return times


def images_per_second(content: ReportContent) -> float | None:
    """Throughput of the whole training, as logged; None where it was not."""
    times, rows = seconds_of_training(content), logged_rows(content, "train", "epoch", "images_per_second")
    return rows[-1]["epoch"] * content.images / times[-1] if times and times[-1] else None


def in_time(content: ReportContent, epochs: Sequence[float], unit: float) -> list[float]:
    """When these epochs were reached, in units of so many seconds, between the rows linearly."""
    known = [0.0, *(row["epoch"] for row in logged_rows(content, "train", "epoch", "images_per_second"))]
    return [float(t) / unit for t in np.interp(epochs, known, [0.0, *seconds_of_training(content)])]


def _lengthened(plan: Mapping[str, Any]) -> str:
    """Where the plan was made longer, in words."""
    changes = plan.get("lengthened")
    changes = changes if isinstance(changes, list) else []
    steps = [change.get("after_step") for change in changes if isinstance(change, dict)]
    said = ", ".join(f"{step:,}" for step in steps if isinstance(step, int))
    return f"; the schedule was laid anew over a longer run after step {said}" if said else ""


def run_facts(content: ReportContent) -> list[tuple[str, str]]:
    """Recipe, data, machine, backends, versions and time of the run, as (name, value); values may be empty."""
    env, recipe, about = content.run.environment, content.run.recipe, content.data
    plan: Mapping[str, Any] = env.get("plan", {})
    weights = env.get("weights")
    weights = weights if isinstance(weights, dict) and "words" in weights else None
    speed = content.last("images_per_second")
    parameters = f", {int(env['parameters']):,} parameters with the projection head" if env.get("parameters") else ""
    images = f"{counted(content.images, 'image')} of {about.get('image_size', '?')} px"
    limit = f", limited to {int(about['limit']):,}" if about.get("limit") else ""
    stem = f"{recipe.model.arch}, {recipe.model.stem} stem"
    encoder = (
        f"{env.get('own', {}).get('encoder', 'a module')}, passed from Python" if recipe.model.arch == "own" else stem
    )
    batch = f"of {counted(recipe.train.batch_size, 'image')} × {recipe.train.views} views"
    peak = f", peak learning rate {float(plan['peak_lr']):.4g}" if plan.get("peak_lr") else ""
    device = [env.get("device_name"), env.get("device"), env.get("precision")]
    device += ["channels_last" if env.get("channels_last") else None, "compiled" if env.get("compile") else None]
    versions = {"simclr-engine": env.get("version", "?"), **env.get("versions", {})}
    seconds, ended = env.get("seconds"), env.get("ended")
    return [
        ("recipe", f"{recipe.name} — {recipe.origin}"),
        ("encoder", encoder + parameters),
        ("started from", str(weights["words"]) if weights else ""),
        ("images", f"{about.get('name', '?')}, split {about.get('split', '?')}: {images}{limit}"),
        ("fingerprint of the images", f"{str(about.get('fingerprint', 'unknown'))[:16]}…"),
        ("length", f"{content.length}{_lengthened(plan)}"),
        ("steps", f"{int(plan['total_steps']):,} {batch}" if plan.get("total_steps") else batch),
        ("optimizer", f"{recipe.optimizer.name}, {recipe.schedule.name} schedule{peak}"),
        ("loss", f"NT-Xent, temperature {recipe.loss.temperature:g}"),
        ("seed", str(recipe.train.seed)),
        ("time", duration(float(seconds)) if seconds else "unknown"),
        ("started", _moment(ended - seconds) if ended and seconds else ""),
        ("ended", _moment(ended) if ended else ""),
        ("resumed", _resumed(env)),
        ("throughput", f"{speed:,.0f} images/s at the end" if speed else ""),
        ("device", ", ".join(str(part) for part in device if part)),
        ("peak memory", f"{float(env['peak_bytes']) / 2**30:.2f} GiB" if env.get("peak_bytes") else ""),
        ("kernels", ", ".join(f"{kernel}: {backend}" for kernel, backend in env.get("backends", {}).items())),
        ("versions", ", ".join(f"{what} {which}" for what, which in versions.items())),
        ("commit", str(env.get("commit") or "")[:12]),
    ]


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
    for pair in content.comparisons:
        shown = pair.shown
        both = all(pair.both) or pair.method == "supervised"  # which has no other init than random weights
        options: tuple[tuple[object, ...], ...] = (
            () if shown.data == own else ("--data", shown.data),
            ("--limit", shown.limit) if shown.limit else (),
            ("--label-fraction", f"{shown.label_fraction:g}") if shown.label_fraction < 1 else (),
            ("--folds", len(shown.folds)) if shown.folds else (),
            () if both else ("--init", shown.init),
        )
        methods.setdefault(options, []).append(pair.method)
    lines = []
    for (data, *rest), names in methods.items():
        flags = [word for method in dict.fromkeys(names) for word in ("--method", method)]
        lines.append(shell_command("evaluate", content.run.directory, *data, *flags, *itertools.chain(*rest)))
    return lines


def short_name(source: str) -> str:
    """The last part of a path, or the name as it is."""
    return Path(source).name or source


def short(number: float) -> str:
    """`800`, `2.47`: two digits behind the point at most."""
    return f"{number:,.2f}".rstrip("0").rstrip(".")


def first_capital(words: str) -> str:
    """`Linear probe`, and `kNN` as it is."""
    return words if words[:1].islower() and words[1:2].isupper() else words[:1].upper() + words[1:]


def signed(number: float, digits: int) -> str:
    """`+0.0120`, `−3`: the sign always shown, the minus a typographer's."""
    return f"{number:+,.{digits}f}".replace("-", "−")


def duration(seconds: float) -> str:
    """`1 h 4 min`, `3 min 12 s`, `8.4 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _moment(seconds: float) -> str:
    """Seconds since 1970 as `2025-11-22 02:30 UTC`."""
    return datetime.fromtimestamp(min(seconds, _LAST_MOMENT), UTC).strftime("%Y-%m-%d %H:%M UTC")


def _resumed(environment: Mapping[str, Any]) -> str:
    """After which steps a run was resumed, and what differed from the start before."""
    starts = [one for one in environment.get("starts", ()) if isinstance(one, dict)]
    said = []
    for before, now in itertools.pairwise(starts):
        others = changes(of_a_start(before), of_a_start(now))
        said.append(f"after step {str(now.get('step'))[:20]}" + (f" with {', '.join(others)}" if others else ""))
    return "; ".join(said)


def _export_record(directory: Path) -> Mapping[str, Any] | None:
    try:
        record = json.loads(read_text(directory / "export.json", LARGEST_DOCUMENT))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
