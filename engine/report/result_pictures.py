"""Which pictures the results of a run give: accuracy by method, predictions, learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..evaluation.records import load_predictions, load_steps, result_id
from ..evaluation.result import FROZEN, Comparison, EvaluationResult, percent, standard_error
from . import calibration, confusion, gallery, learning, methods
from .content import short_name
from .picture import ACCURACY, LEARNING, PREDICTIONS, Picture, unnamed
from .style import Theme, first_capital

MANY = 6  # comparisons; with more, only the first of each of these methods has a gallery and a reliability diagram
SHOWN_OF_MANY = ("linear", "head", "finetune")
ENCODERS = {"pretrained": "pretrained", "scratch": "random"}


def method_pictures(comparisons: Sequence[Comparison]) -> list[Picture]:
    """Every method in one picture, and a curve for each that was run with several shares of the labels."""
    if not comparisons:
        return []
    several = len({one.shown.data for one in comparisons}) > 1
    named = [f"{one.name} · {short_name(one.shown.data)}" if several else one.name for one in comparisons]
    trained, scratch = ([one.both[side] for one in comparisons] for side in (0, 1))

    def bars(theme: Theme) -> Figure:
        return methods.accuracy_bars(
            named,
            [_accuracy(one) for one in trained],
            [_accuracy(one) for one in scratch],
            trained_error=[_uncertainty(one) for one in trained],
            scratch_error=[_uncertainty(one) for one in scratch],
            chance=[one.chance for one in comparisons],
            theme=theme,
        )

    sizes = sorted({one.shown.test_images for one in comparisons})
    span = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    folds = any(one.shown.folds for one in comparisons)
    spread = "; of a cross-validation ± one standard deviation over the folds" if folds else ""
    caption = (
        f"The pretrained encoder beside the same network with random weights, on {span} images that were not learnt "
        f"from. Whiskers: ± one standard error{spread}. Chance: always naming the largest class."
    )
    return [Picture("methods", ACCURACY, caption, bars), *_label_efficiency(comparisons)]


def _label_efficiency(comparisons: Sequence[Comparison]) -> list[Picture]:
    groups: dict[tuple[str, int | None, str, bool], list[Comparison]] = {}
    for one in comparisons:
        shown = one.shown
        groups.setdefault((shown.data, shown.limit, one.method, bool(shown.folds)), []).append(one)
    curves_of = []
    for group in groups.values():
        rising = sorted(group, key=lambda one: one.shown.label_fraction)
        if len({one.shown.label_fraction for one in rising}) > 1:
            most = rising[-1].shown
            curves_of.append(_label_curve(rising, f"labels-{result_id(most).replace(f'-{most.init}', '')}"))
    return curves_of


def _label_curve(group: Sequence[Comparison], name: str) -> Picture:
    trained, scratch = ([one.both[side] for one in group] for side in (0, 1))
    method = group[0].name.split(",")[0]
    span = " to ".join(f"{100 * group[i].shown.label_fraction:g} %" for i in (0, -1))

    def curve(theme: Theme) -> Figure:
        return methods.label_efficiency_figure(
            [one.shown.label_fraction for one in group],
            [_accuracy(one) for one in trained],
            [_accuracy(one) for one in scratch],
            trained_error=[_uncertainty(one) for one in trained],
            scratch_error=[_uncertainty(one) for one in scratch],
            labelled=[one.shown.train_images for one in group],
            chance=group[-1].chance,
            title=method,
            theme=theme,
        )

    caption = (
        f"{first_capital(method)} with {span} of the train labels, drawn so that every class keeps its share; below "
        "each share the images that were learnt from."
    )
    return Picture(name, ACCURACY, caption, curve)


def _accuracy(result: EvaluationResult | None) -> float | None:
    """As the tables have it: the mean over the folds where there are several."""
    if result is None:
        return None
    return result.fold_spread[0] if result.fold_spread else result.accuracy


def _uncertainty(result: EvaluationResult | None) -> float | None:
    """Standard deviation over the folds, or standard error of the accuracy."""
    if result is None:
        return None
    return result.fold_spread[1] if result.fold_spread else standard_error(result)


def prediction_pictures(comparisons: Sequence[Comparison], directory: Path, images: int, seed: int) -> list[Picture]:
    """What the classifiers say: matrix, scores per class, gallery and reliability of each comparison.

    Args:
        comparisons: of the run.
        directory: where its results and predictions are.
        images: of a gallery.
        seed: which images.
    """
    found: list[Picture] = []
    crowded, seen = len(comparisons) > MANY, set()
    for one in comparisons:
        if one.trained is not None or one.method not in FROZEN:
            found += classifier_pictures(one)
        if crowded and (one.method in seen or one.method not in SHOWN_OF_MANY):
            continue
        seen.add(one.method)
        for result in one.both:
            if result is not None:
                found += _gallery_and_reliability(one, result, directory, images, seed)
    return found


def _described(one: Comparison, result: EvaluationResult) -> str:
    """`linear probe, random encoder`; a method that has no pretrained side needs no such word."""
    if one.method == "supervised":
        return one.name
    return f"{one.name}, {ENCODERS.get(result.init, result.init)} encoder"


def classifier_pictures(one: Comparison) -> list[Picture]:
    """Confusion matrix and scores per class of the trained encoder's result (or of the only one there is)."""
    result, table = one.shown, one.shown.per_class
    scratch = [row.accuracy for row in one.scratch.per_class] if one.trained and one.scratch else None
    best, worst = max(table, key=lambda row: row.accuracy), min(table, key=lambda row: row.accuracy)
    name, spelling = result_id(result), unnamed(result.class_names)
    method = first_capital(one.name if result.init == "pretrained" else _described(one, result))

    def matrix(theme: Theme) -> Figure:
        return confusion.confusion_figure(result.confusion, result.class_names, title=one.name, theme=theme)

    def bars(theme: Theme) -> Figure:
        return confusion.per_class_figure(
            result.class_names,
            [row.accuracy for row in table],
            [row.f1 for row in table],
            [row.iou for row in table],
            [row.support for row in table],
            title=one.name,
            scratch_accuracy=scratch,
            theme=theme,
        )

    return [
        Picture(
            f"confusion-{name}",
            PREDICTIONS,
            f"{method}: {percent(result.accuracy, result.test_images)} of {result.test_images:,} test images are right "
            f"(the diagonal).{spelling}",
            matrix,
        ),
        Picture(
            f"per-class-{name}",
            PREDICTIONS,
            f"{method}: the easiest class is {best.name} ({100 * best.accuracy:.1f} %), the hardest {worst.name} "
            f"({100 * worst.accuracy:.1f} %). Accuracy: how much of a class is found; IoU = TP / (TP + FP + FN)."
            f"{spelling}",
            bars,
        ),
    ]


def _gallery_and_reliability(
    one: Comparison, result: EvaluationResult, directory: Path, images: int, seed: int
) -> list[Picture]:
    """The gallery, and the reliability diagram of the trained encoder's result (or of the only one there is)."""
    name, classes = result_id(result), len(result.class_names)
    stored = load_predictions(directory, name)
    if stored is None or min(stored.predicted.min(), stored.truth.min()) < 0:
        return []
    if max(stored.predicted.max(), stored.truth.max()) >= classes:
        return []
    found: list[Picture] = []
    method, right = _described(one, result), stored.predicted == stored.truth
    chosen = gallery.pick(images, seed, len(stored.rows))
    if len(chosen):
        rows = stored.rows[chosen]
        sure = f"{100 * float(stored.confidence[~right].mean()):.0f} %" if not right.all() else ""
        mean = f" Where it is wrong, it is {sure} confident on average." if sure else ""
        caption = (
            f"{first_capital(method)}: {len(chosen)} of {len(stored.truth):,} test images, drawn at random (seed "
            f"{seed}; the same for every method), with the predicted class and its confidence. "
            f"{int(right[rows].sum())} of these are right, {percent(float(right.mean()), len(right))} of all.{mean}"
            f"{unnamed(result.class_names)}"
        )

        def sheet(theme: Theme) -> Figure:
            return gallery.gallery_figure(
                stored.images[chosen],
                result.class_names,
                stored.predicted[rows],
                stored.confidence[rows],
                stored.truth[rows],
                title=method,
                theme=theme,
            )

        found.append(Picture(f"predictions-{name}", PREDICTIONS, caption, sheet))
    if result is one.shown:
        caption = (
            f"{first_capital(method)}: is it right as often as it says? Bars below the line: surer than it should be. "
            f"The calibration error {result.ece:.3f} is the mean distance from the line, weighted by images."
        )

        def reliability(theme: Theme) -> Figure:
            return calibration.reliability_figure(stored.confidence, right, result.ece, title=one.name, theme=theme)

        found.append(Picture(f"reliability-{name}", PREDICTIONS, caption, reliability))
    return found


def learning_pictures(one: Comparison, directory: Path) -> list[Picture]:
    """The curves of a method that trains."""
    histories = [result.history if result else () for result in one.both]
    if not any(histories):
        return []
    steps = [load_steps(directory, result_id(result)) if result else [] for result in one.both]
    shown, reached = one.shown, one.epochs_to_baseline
    folds = len(shown.folds)
    scored = "held-out fold" if folds else "test"
    images = shown.folds[0].held_out_images if folds else shown.test_images
    curve = f" Thin: the {folds} folds; thick: their mean, in a band of ± one standard deviation." if folds else ""
    goal = ""
    if all(histories):
        when = "never is within these epochs" if reached is None else f"is after epoch {reached}"
        goal = (
            f" As accurate as training from the random encoder is at its end, training from the pretrained one {when}."
        )
    epochs = max(int(row["epoch"]) for rows in histories for row in rows)
    caption = (
        f"{first_capital(one.name)}: {epochs} epochs on {shown.train_images:,} labelled images. The last epoch "
        f"counts, not the best.{goal}{curve}"
    )

    def curves_of(theme: Theme) -> Figure:
        return learning.training_figure(
            histories[0],
            histories[1],
            trained_steps=steps[0],
            scratch_steps=steps[1],
            reached=reached,
            scored=scored,
            images=images,
            title=first_capital(one.name),
            theme=theme,
        )

    return [Picture(f"training-{result_id(shown)}", LEARNING, caption, curves_of)]
