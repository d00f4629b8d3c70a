"""The tables of the page: methods, published figures, classes, and how each number was made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ..evaluation.comparison import METHOD_NAMES, Comparison, percent, points
from ..evaluation.result import EvaluationResult
from .content import ReportContent, short_name
from .markup import duration, gain, numbers, section, short, table

OPEN_TABLE = 20  # classes; longer tables start folded


def methods_table(comparisons: Sequence[Comparison]) -> str:
    """Every method: trained, random, difference, further scores; empty without results."""
    if not comparisons:
        return ""
    head = (
        "method",
        "#pretrained",
        "#random",
        "#points apart",
        "#macro F1",
        "#mean IoU",
        "#calibration error",
        "#time",
    )
    several = len({(one.shown.data, one.shown.train_images, one.shown.test_images) for one in comparisons}) > 1
    rows = [row for one in comparisons for row in _method_rows(one, several)]
    return section(
        "Methods",
        table(head, rows)
        + '<p class="aside">Accuracy on the test split: of the pretrained encoder, and of the same network with random '
        "weights under the same protocol. The last four columns are of the pretrained one. The encoder is frozen: a "
        "hash of its weights and buffers is the same before and after.</p>",
    )


def _method_rows(one: Comparison, name_data: bool) -> list[str]:
    shown, n = one.shown, one.shown.test_images
    trained, scratch = (percent(r.accuracy, n) if r else "—" for r in one.both)
    apart = gain(_apart(one.difference, n), one.difference) if one.difference is not None else "—"
    where = f"{short_name(shown.data)}, {shown.train_images:,} / {n:,} images"
    small = f"<br><small>{escape(where)}</small>" if name_data else ""
    scores = (f"{shown.f1_macro:.4f}", f"{shown.mean_iou:.4f}", f"{shown.ece:.3f}", duration(shown.seconds))
    rows = [
        f"<tr><td><b>{escape(one.name)}</b>{small}</td>{numbers(f'<b>{trained}</b>', scratch, apart, *scores)}</tr>"
    ]
    for variant in shown.also:
        values = [r.also.get(variant) if r else None for r in one.both]
        texts = [percent(value, n) if value is not None else "—" for value in values]
        apart = _apart(values[0] - values[1], n) if values[0] is not None and values[1] is not None else "—"
        rows.append(f'<tr class="sub"><td>{escape(variant)}</td>{numbers(*texts, apart, "", "", "", "")}</tr>')
    return rows


def _apart(fraction: float, images: int) -> str:
    """A difference under a head that says `points`."""
    return points(fraction, images).removesuffix(" points")


def published_table(content: ReportContent) -> str:
    """The figures of the recipe's system beside ours; empty where nothing was published."""
    if not content.published:
        return ""
    recipe, rows = content.run.recipe, []
    for one in content.published:
        accuracy, result = float(one.row.get("accuracy", math.nan)), one.ours
        method, init = str(one.row.get("method", "")), str(one.row.get("init", ""))
        how = [f"{float(one.row['label_fraction']):.0%} of the labels"] if "label_fraction" in one.row else []
        how += [f"{one.row['folds']} folds"] if "folds" in one.row else []
        note = f"<br><small>{escape(', '.join(how))}</small>" if how else ""
        ours = percent(result.accuracy, result.test_images) if result else "not run"
        apart = _apart(result.accuracy - accuracy, result.test_images) if result else "—"
        encoder = "random" if init == "scratch" else init
        rows.append(
            f"<tr><td>{escape(METHOD_NAMES.get(method, method))}{note}</td><td>{escape(encoder)}</td>"
            f"{numbers(f'{100 * accuracy:.2f} %', ours, apart)}</tr>"
        )
    head = ("method", "encoder", "#published", "#this run", "#points apart")
    source = escape(str(recipe.published.get("source", recipe.origin)))
    this = f"{short(content.epochs)} epochs on {content.data.get('images', 0):,} images of {content.data_name}"
    return section(
        "Beside published figures",
        f'{table(head, rows)}<p class="aside">Published: {source}. This run: {escape(this)}. '
        "Only figures on the same images and with the same budget compare.</p>",
    )


def class_table(one: Comparison | None) -> str:
    """Scores per class of the headline method; empty without results."""
    if one is None:
        return ""
    other = one.scratch.per_class if one.trained and one.scratch else None
    rows = []
    for i, row in enumerate(one.shown.per_class):
        bar = f'<span class="cell"><i style="width:{100 * row.accuracy:.1f}%"></i></span>'
        scratch = f"{100 * other[i].accuracy:.1f} %" if other else "—"
        cells = numbers(
            f"{row.support:,}",
            f"{bar}{100 * row.accuracy:.1f} %",
            scratch,
            f"{row.precision:.4f}",
            f"{row.f1:.4f}",
            f"{row.iou:.4f}",
        )
        rows.append(f"<tr><td><bdi>{escape(row.name)}</bdi></td>{cells}</tr>")
    whose = "random encoder" if one.trained is None else "pretrained encoder"
    head = ("class", "#images", "#accuracy", "#random encoder", "#precision", "#F1", "#IoU")
    opened = " open" if len(rows) <= OPEN_TABLE else ""
    return section(
        "Classes",
        f"<details{opened}><summary>{len(rows):,} classes, {escape(one.name)}, {whose}</summary>"
        f"{table(head, rows)}</details>",
    )


def protocol_notes(comparisons: Sequence[Comparison]) -> str:
    """The protocol sentence, the state of the features and the notes of every result; empty without results."""
    results = [result for one in comparisons for result in one.both if result is not None]
    if not results:
        return ""
    return section(
        "How the numbers were made",
        f'<ul class="protocols">{"".join(_protocol(result) for result in results)}</ul>'
        '<p class="aside">The last weights of the run are evaluated, never the best on test. Hyper-parameters of a '
        "probe come from a split of train. Test images that are in train, pixel for pixel, are counted, and more than "
        "1 % is refused. Accuracy of a class is its recall; IoU = TP / (TP + FP + FN); macro averages run over all "
        "classes.</p>",
    )


def _protocol(result: EvaluationResult) -> str:
    features, spread = result.features, ""
    if features:
        spread = (
            f" Features: {int(features.get('dim', 0))}-d, effective rank {features.get('effective_rank', 0.0):.1f}, "
            f"standard deviation {features.get('std', 0.0):.4f} at unit length."
        )
    init = "random" if result.init == "scratch" else result.init
    head = f"<b>{escape(METHOD_NAMES.get(result.method, result.method))}, {escape(init)} encoder.</b>"
    notes = "".join(f'<li class="warn">{escape(note)}</li>' for note in result.notes)
    return f"<li>{head} {escape(result.protocol)}.{spread}{f'<ul>{notes}</ul>' if notes else ''}</li>"
