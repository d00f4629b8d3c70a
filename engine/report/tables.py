"""The tables of the page: methods, folds, published figures, classes, and how each number was made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..evaluation.result import FROZEN, METHOD_NAMES, Comparison, EvaluationResult, percent, points
from . import markup
from .content import Published, ReportContent, published_classes, short_name
from .markup import NOTHING, beneath, duration, gain, row, signed, table

OPEN_TABLE = 20  # classes; longer tables start folded
GROUPS = (
    ("Frozen encoder", lambda one: one.method in FROZEN),
    ("Encoder trained with the labels", lambda one: one.method not in FROZEN),
)
# A column of the methods table beside the accuracies: its head, what stands in it (None where there is nothing).
Column = tuple[str, Callable[[Comparison], str | None]]


def accuracy(result: EvaluationResult) -> float:
    """The accuracy that stands in tables, 0..1: the mean over the folds where there are several."""
    return result.fold_spread[0] if result.fold_spread else result.accuracy


def accuracy_text(result: EvaluationResult) -> str:
    """`60.0 %`, or `75.9 ± 0.6 %` over folds (mean and standard deviation)."""
    mean = percent(accuracy(result), result.test_images)
    if result.fold_spread is None:
        return mean
    return f"{mean[:-2]} ± {percent(result.fold_spread[1], result.test_images)}"


def difference(one: Comparison) -> float | None:
    """Trained minus random, as a fraction, of the accuracies that stand in the tables."""
    return accuracy(one.trained) - accuracy(one.scratch) if one.trained and one.scratch else None


def methods_table(comparisons: Sequence[Comparison]) -> str:
    """Every method: trained, random, difference, further scores; empty without results."""
    if not comparisons:
        return ""
    columns = [
        column for column in _columns() if any(column[1](one) is not None for one in comparisons)
    ]  # those that some method fills
    head = ("method", "#pretrained", "#random", "#points apart", *(f"#{title}" for title, _ in columns))
    place = _place_of(comparisons)
    rows = []
    for title, belongs in GROUPS:
        members = [one for one in comparisons if belongs(one)]
        rows += [markup.group_row(title, len(head))] if members and len(members) < len(comparisons) else []
        rows += [html for one in members for html in _method_rows(one, columns, place(one))]
    return markup.card(table(head, rows) + markup.aside(_how_to_read(comparisons, columns)))


def _place_of(comparisons: Sequence[Comparison]) -> Callable[[Comparison], str]:
    """What tells the images of a comparison from those of the others; nothing where all have the same."""
    shown = [one.shown for one in comparisons]
    data = len({result.data for result in shown}) > 1
    size = data or len({(result.train_images, result.test_images) for result in shown}) > 1

    def place(one: Comparison) -> str:
        words = [short_name(one.shown.data)] if data else []
        words += [f"{one.shown.train_images:,} / {one.shown.test_images:,} images"] if size else []
        return ", ".join(words)

    return place


def _columns() -> list[Column]:
    return [
        ("macro F1", lambda one: f"{one.shown.f1_macro:.4f}"),
        ("mean IoU", lambda one: f"{one.shown.mean_iou:.4f}"),
        ("calibration error", lambda one: f"{one.shown.ece:.3f}"),
        ("loss (nats)", lambda one: _number(one.shown.loss, ".3f")),
        ("epochs to the baseline", lambda one: _epochs_to_baseline(one)),
        ("time", lambda one: duration(one.shown.seconds)),
    ]


def _epochs_to_baseline(one: Comparison) -> str | None:
    """`6 of 20`; `not in 20` where it never gets there; None where nothing was trained beside a baseline."""
    if one.trained is None or one.scratch is None or not one.trained.history or not one.scratch.history:
        return None
    epochs = max(int(step["epoch"]) for step in one.trained.history)
    reached = one.epochs_to_baseline
    return f"{reached} of {epochs}" if reached is not None else f"not in {epochs}"


def _method_rows(one: Comparison, columns: Sequence[Column], where: str) -> list[str]:
    shown, n, gap = one.shown, one.shown.test_images, difference(one)
    trained, scratch = (accuracy_text(result) if result else NOTHING for result in one.both)
    apart = gain(_apart(gap, n), gap) if gap is not None else NOTHING
    scores = [value(one) or NOTHING for _, value in columns]
    rows = [row(beneath(f"<b>{markup.text(one.name)}</b>", where), f"<b>{trained}</b>", scratch, apart, *scores)]
    for variant in shown.also:
        values = [result.also.get(variant) if result else None for result in one.both]
        texts = [percent(value, n) if value is not None else NOTHING for value in values]
        apart = _apart(values[0] - values[1], n) if values[0] is not None and values[1] is not None else NOTHING
        rows.append(row(markup.text(variant), *texts, apart, *("" for _ in columns), css="sub"))
    return rows


def _how_to_read(comparisons: Sequence[Comparison], columns: Sequence[Column]) -> str:
    """What stands in the columns, and which methods leave the encoder as it is."""
    frozen = list(dict.fromkeys(METHOD_NAMES[one.method] for one in comparisons if one.method in FROZEN))
    words = [
        "Accuracy on the test split: of the pretrained encoder, and of the same network with random weights under the "
        "same protocol. The columns to the right of the difference are of the pretrained one, where there is one."
    ]
    if any(one.shown.folds for one in comparisons):
        words.append("With folds: on the fold that was held out, mean ± standard deviation over the folds.")
    if any(title.startswith("epochs") for title, _ in columns):
        words.append(
            "Epochs to the baseline: how many the training from the pretrained weights takes to be as accurate as the "
            "one from random weights is at its end."
        )
    if frozen:
        means = "The encoder is frozen" if len(frozen) == len({one.method for one in comparisons}) else None
        means = means or f"In {_listed(frozen)} the encoder is frozen"
        words.append(f"{means}: a hash of its weights and buffers is the same before and after.")
    return " ".join(words)


def _listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def _number(value: float | None, form: str) -> str | None:
    return format(value, form) if value is not None and math.isfinite(value) else None


def _apart(fraction: float, images: int) -> str:
    """A difference under a head that says `points`."""
    return points(fraction, images).removesuffix(" points")


def fold_tables(comparisons: Sequence[Comparison]) -> str:
    """Each fold of each cross-validation; empty without one."""
    blocks = []
    for one in comparisons:
        rows = []
        for result in one.both:
            if result is None or not result.folds:
                continue
            rows.append(markup.group_row("random weights" if result.init == "scratch" else "pretrained weights", 6))
            rows += _fold_rows(result)
        if rows:
            head = ("fold", "#trained on", "#held out", "#accuracy", "#loss (nats)", "#test accuracy")
            blocks.append(f'<h3 class="of-table">{markup.text(one.name)}</h3>{table(head, rows)}')
    if not blocks:
        return ""
    return markup.card(
        "".join(blocks)
        + markup.aside(
            "Each fold is scored by a model that was trained on the others: accuracy and loss (mean cross-entropy) on "
            "the images held out, and accuracy on the whole test split. sd: standard deviation over the folds (n − 1)."
        )
    )


def _fold_rows(result: EvaluationResult) -> list[str]:
    rows = [
        row(
            str(fold.fold),
            f"{fold.train_images:,}",
            f"{fold.held_out_images:,}",
            percent(fold.accuracy, fold.held_out_images),
            _number(fold.loss, ".4f") or NOTHING,
            percent(fold.test_accuracy, result.test_images),
        )
        for fold in result.folds
    ]
    if len(result.folds) < 2:
        return rows
    least = min(fold.held_out_images for fold in result.folds)
    of_folds = [
        _mean_sd([100 * fold.accuracy for fold in result.folds], 1 if least < 5_000 else 2, " %"),
        _mean_sd([fold.loss for fold in result.folds], 4, ""),
        _mean_sd([100 * fold.test_accuracy for fold in result.folds], 1 if result.test_images < 5_000 else 2, " %"),
    ]
    return [*rows, row("<b>mean ± sd</b>", "", "", *(f"<b>{words}</b>" for words in of_folds))]


def _mean_sd(values: Sequence[float], digits: int, unit: str) -> str:
    mean = sum(values) / len(values)
    sd = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return f"{mean:.{digits}f} ± {sd:.{digits}f}{unit}" if math.isfinite(mean) else NOTHING


def published_table(content: ReportContent) -> str:
    """The figures of the recipe's system beside ours; empty where nothing was published."""
    if not content.published:
        return ""
    recipe = content.run.recipe
    head = ("method", "encoder", "#published", "#this run", "#apart")
    rows = [html for one in content.published for html in published_rows(one)]
    source = recipe.published.get("source", recipe.origin)
    this = f"{markup.short(content.epochs)} epochs on {content.data.get('images', 0):,} images of {content.data_name}"
    return markup.card(
        table(head, rows)
        + markup.aside(
            f"Published: {source}. This run: {this}. Accuracies apart in points. "
            "Only figures on the same images and with the same budget compare."
        )
        + _published_classes(content)
    )


def published_rows(one: Published) -> list[str]:
    """The accuracy of a published figure beside ours, and below it the other scores that were published."""
    published, result = one.row, one.ours
    method, init = str(published.get("method", "")), str(published.get("init", ""))
    named = markup.text(METHOD_NAMES.get(method, method))
    encoder = "random" if init == "scratch" else init
    theirs = float(published["accuracy"])
    ours = accuracy_text(result) if result else "not run"
    apart = _apart(accuracy(result) - theirs, result.test_images) if result else NOTHING
    first = row(
        beneath(named, how_published(published)), markup.text(encoder), f"{100 * theirs:.2f} %", ours, apart, words=2
    )
    return [first, *(row(*cells, css="sub", words=2) for cells in _other_scores(published, one))]


def how_published(published: Mapping[str, Any]) -> str:
    """`30 % of the labels, 5 folds`; empty for all labels and none."""
    part = [f"{100 * float(published['label_fraction']):g} % of the labels"] if "label_fraction" in published else []
    return ", ".join(part + ([f"{published['folds']} folds"] if "folds" in published else []))


def _other_scores(published: Mapping[str, Any], one: Published) -> list[tuple[str, str, str, str, str]]:
    """(score, "", published, ours, apart) of whatever else a published figure has."""
    result = one.ours
    reached = one.comparison.epochs_to_baseline if one.comparison and published.get("init") == "pretrained" else None
    known = (
        ("f1_macro", "macro F1", 4, result.f1_macro if result else None),
        ("f1_weighted", "weighted F1", 4, result.f1_weighted if result else None),
        ("mean_iou", "mean IoU", 4, result.mean_iou if result else None),
        ("loss", "loss (nats)", 2, result.loss if result else None),
        ("epochs_to_baseline", "epochs to the baseline", 0, reached),
    )
    rows = []
    for key, title, digits, ours in known:
        theirs = published.get(key)
        if isinstance(theirs, int | float):
            there = ours is not None and math.isfinite(ours)
            mine = f"{ours:.{digits}f}" if there else NOTHING
            apart = signed(ours - theirs, digits) if ours is not None and there else NOTHING
            rows.append((title, "", f"{theirs:.{digits}f}", mine, apart))
    return rows


def _published_classes(content: ReportContent) -> str:
    """The published scores of each class beside ours of the linear probe; empty where there are none, or where ours
    are other classes."""
    published = published_classes(content.run.recipe)
    ours = next((one.trained for one in content.comparisons if one.method == "linear" and one.trained), None)
    found = {scores.name.lower(): scores for scores in ours.per_class} if ours else {}
    if not published or (ours and not any(name.lower() in found for name in published)):
        return ""
    rows = []
    for name, theirs in published.items():
        mine, cells = found.get(name.lower()), []
        for key, scale, digits, unit in (("accuracy", 100, 1, " %"), ("f1", 1, 4, ""), ("iou", 1, 4, "")):
            there = isinstance(theirs.get(key), int | float)
            cells.append(f"{scale * theirs[key]:.{digits}f}{unit}" if there else NOTHING)
            cells.append(f"{scale * getattr(mine, key):.{digits}f}{unit}" if mine else NOTHING)
        rows.append(row(markup.name(name), *cells))
    head = ("class", "#accuracy, published", "#ours", "#F1, published", "#ours", "#IoU, published", "#ours")
    inside = table(head, rows)
    return markup.folded(f"Per class, linear probe: {len(rows):,} published", inside, opened=False)


def class_table(one: Comparison | None) -> str:
    """Scores per class of the headline method; empty without results."""
    if one is None:
        return ""
    other = one.scratch.per_class if one.trained and one.scratch else None
    rows = []
    for i, scores in enumerate(one.shown.per_class):
        bar = f'<span class="cell"><i style="width:{100 * scores.accuracy:.1f}%"></i></span>'
        rows.append(
            row(
                markup.name(scores.name),
                f"{scores.support:,}",
                f"{bar}{100 * scores.accuracy:.1f} %",
                *([f"{100 * other[i].accuracy:.1f} %"] if other else []),
                f"{scores.precision:.4f}",
                f"{scores.f1:.4f}",
                f"{scores.iou:.4f}",
            )
        )
    whose = "random encoder" if one.trained is None else "pretrained encoder"
    head = ("class", "#images", "#accuracy", *(["#random encoder"] if other else []), "#precision", "#F1", "#IoU")
    summary = f"{len(rows):,} classes, {one.name}, {whose}"
    return markup.card(markup.folded(summary, table(head, rows), opened=len(rows) <= OPEN_TABLE))


def protocol_notes(content: ReportContent) -> str:
    """The protocol sentence, the state of the features and the notes of every result; empty without results."""
    if not content.results:
        return ""
    return markup.card(
        f'<ul class="protocols">{"".join(protocol(result) for result in content.results)}</ul>'
        + markup.aside(
            "The last weights of the run are evaluated, never the best on test. Hyper-parameters of a "
            "probe come from a split of train. Test images that are in train, pixel for pixel, are counted, and more "
            "than 1 % is refused. Accuracy of a class is its recall; IoU = TP / (TP + FP + FN); macro averages run "
            "over all classes."
        )
    )


def protocol(result: EvaluationResult) -> str:
    """One result's protocol as a list item, with its notes below."""
    features, more = result.features, []
    if features:
        more.append(
            f"Features: {int(features.get('dim', 0))}-d, effective rank {features.get('effective_rank', 0.0):.1f}, "
            f"standard deviation {features.get('std', 0.0):.4f} at unit length."
        )
    if result.encoder:
        more.append(f"Encoder sha256 {result.encoder[:16]}….")
    init = "random" if result.init == "scratch" else result.init
    head = f"{METHOD_NAMES.get(result.method, result.method)}, {init} encoder."
    words = f"<b>{markup.text(head[0].upper() + head[1:] if head[1:2].islower() else head)}</b>"
    said = " ".join([f"{result.protocol}.", *more])
    return f"<li>{words} {markup.text(said)}{markup.warnings(result.notes, css='')}</li>"
