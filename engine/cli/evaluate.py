"""`simclr-engine evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ..errors import plain
from ..terminal import add, show, styled, table, tell
from .options import Number, parse_overrides, print_json, selected, selection_options, sha256_option, stem_options

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from ..evaluation import EvaluationResult
    from ..evaluation.result import Comparison

METHOD_CHOICES = ("linear", "knn", "head", "finetune", "supervised", "probe")
FULL_TABLE = 30  # classes; with more, the five best and the five worst are listed


@click.command(name="evaluate")
@click.argument("target", metavar="RUN|FILE.onnx|WEIGHTS")
@click.option(
    "--data",
    metavar="NAME|PATH",
    help="Labelled images: a data set, a folder or an archive.  [default: those of the run]",
)
@selection_options
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(METHOD_CHOICES),
    help="Evaluation method; may be repeated.  [default: linear]",
)
@click.option(
    "--init",
    "inits",
    multiple=True,
    type=click.Choice(["pretrained", "scratch"]),
    help="Weights to start from; may be repeated.  [default: both; for an exported file, pretrained]",
)
@click.option(
    "--label-fraction",
    "fraction",
    type=Number(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    metavar="FRACTION",
    help="Fraction of the train labels to learn from, balanced over classes.",
)
@click.option(
    "--folds",
    type=click.IntRange(min=2),
    metavar="N",
    help="Number of folds: cross-validate on the labelled train images.  [default: no cross-validation]",
)
@click.option(
    "--limit",
    type=click.IntRange(min=2),
    metavar="N",
    help="Use at most N images of each split, balanced over classes.  [default: all]",
)
@click.option(
    "--allow-overlap",
    is_flag=True,
    help="Evaluate although more than 1 % of the test images are in train too; the results are marked.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a recipe value of a method that trains, such as evaluation.finetune.epochs=3; may be repeated.",
)
@click.option("--device", default="auto", show_default=True, metavar="auto|cuda|mps|cpu", help="Device.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Seed of the label fraction, the folds, and of what is trained.",
)
@sha256_option
@stem_options
@click.option("--out", metavar="DIR", help="Directory for results and pictures.  [default: the run directory]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout instead of text.")
def command(
    target: str,
    data: str | None,
    labels: str | None,
    files: str | None,
    methods: tuple[str, ...],
    inits: tuple[str, ...],
    fraction: float,
    folds: int | None,
    limit: int | None,
    allow_overlap: bool,
    settings: tuple[str, ...],
    device: str,
    seed: int,
    sha256: str | None,
    stem_padding: int | None,
    stem_pool: str | None,
    out: str | None,
    as_json: bool,
) -> None:
    """Evaluate an encoder and compare it with the same network at random weights.

    Prints the accuracy of each class and of each method, and the difference to the random encoder. For a run, the
    results and pictures are written to RUN/evaluation and RUN/report.html.

    \b
    linear      scikit-learn's logistic regression on frozen features
    knn         vote of the nearest train images, by frozen features
    head        a linear layer trained with torch on the frozen encoder
    finetune    encoder and linear layer trained end to end
    supervised  the same network trained from scratch, for as long as the pretraining took
    probe       the probe in an ONNX file that was exported with --probe

    \b
    simclr-engine evaluate runs/cifar10 --method linear --method knn
    simclr-engine evaluate runs/cifar10 --method finetune --label-fraction 0.1
    simclr-engine evaluate encoder.onnx --data photos/ --json
    simclr-engine evaluate resnet18.pth --data photos/
    """
    from pathlib import Path

    from ..evaluation import evaluate_all
    from ..evaluation.encoders import open_target
    from ..evaluation.result import compare

    subject = open_target(target, stem_padding=stem_padding, stem_pool=stem_pool, sha256=sha256)
    results = evaluate_all(
        subject,
        selected(data, labels, files),
        list(methods or ("linear",)),
        list(inits or subject.encoders),
        label_fraction=fraction,
        folds=folds or 0,
        limit=limit,
        allow_overlap=allow_overlap,
        overrides=parse_overrides(settings),
        out=out,
        progress=True,
        device=device,
        seed=seed,
    )
    comparisons = compare(results)
    written = _write(target, comparisons, Path(out) if out else None, subject.run is not None)
    if as_json:
        document = {"target": target, "data": results[0].data, "results": [r.to_dict() for r in results]}
        print_json(document | {"report": str(written) if written else None})
        return
    _print(target, results, comparisons)
    if written is not None:
        tell("", f"written  {written}")


def _write(target: str, comparisons: Sequence[Comparison], out: Path | None, is_run: bool) -> Path | None:
    """Writes the pictures, and the page of a run; returns the path to open."""
    if out is not None:
        from ..report.page import write_pictures

        for one in comparisons:
            write_pictures(one, out)
        return out
    if not is_run:
        return None
    from ..report import write_report
    from ..run import Run

    return write_report(Run.open(target))


def _print(target: str, results: Sequence[EvaluationResult], comparisons: Sequence[Comparison]) -> None:
    lines = [styled(plain(f"{target} on {results[0].data}") + "\n")]
    for result in results:
        lines.append(styled(plain(f"{result.method}, {result.init}: {result.protocol}"), "dim"))
        lines += [styled(plain(f"  note: {note}"), "yellow") for note in result.notes]
    show(*lines, "", _class_table(comparisons[0]), "", _methods_table(comparisons), width=120)


def _methods_table(comparisons: Sequence[Comparison]) -> Table:
    from ..evaluation.result import percent, points, standard_error

    figures = ("pretrained", "random", "largest", "difference", "±", "loss", "macro F1", "mean IoU", "ECE")
    caption = (
        "accuracy on the test split, or on the held-out folds; largest: of always naming the largest class; "
        "± one standard error; loss in nats; ECE: expected calibration error"
    )
    made = table("method", *(f"#{name}" for name in figures), caption=caption)
    for one in comparisons:
        shown, n = one.shown, one.shown.test_images
        accuracies = [percent(r.accuracy, n) if r else "–" for r in one.both]
        gain = points(one.difference, n).removesuffix(" points") if one.difference is not None else "–"
        error = f"{100 * standard_error(shown):.1f}"
        loss = f"{shown.loss:.3f}" if shown.loss is not None else "–"
        scores = (loss, f"{shown.f1_macro:.4f}", f"{shown.mean_iou:.4f}", f"{shown.ece:.3f}")
        add(made, one.name, *accuracies, percent(one.chance, n), gain, error, *scores)
        if shown.folds:
            spreads = [_mean_and_spread(r) for r in one.both]
            add(made, "  mean ± sd of the folds", *spreads, style="dim")
        for variant in shown.also:
            values = [percent(r.also[variant], n) if r and variant in r.also else "–" for r in one.both]
            add(made, f"  {variant}", *values, style="dim")
        if one.epochs_to_baseline is not None:
            add(made, "  epochs to the random start's final", str(one.epochs_to_baseline), style="dim")
    return made


def _mean_and_spread(result: EvaluationResult | None) -> str:
    if result is None or result.fold_spread is None:
        return "–"
    mean, spread = result.fold_spread
    return f"{100 * mean:.1f} ± {100 * spread:.1f} %"


def _class_table(one: Comparison) -> Table:
    rows = list(range(len(one.shown.per_class)))
    title = f"{one.name}, per class ({one.shown.init} encoder)"
    if len(rows) > FULL_TABLE:
        rows.sort(key=lambda i: -one.shown.per_class[i].accuracy)
        rows = rows[:5] + rows[-5:]
        title += f": the best and worst of {len(one.shown.per_class):,}"
    figures = ("images", "accuracy", "random", "difference", "precision", "F1", "IoU")
    made = table("class", *(f"#{name}" for name in figures), title=title)
    for i in rows:
        row = one.shown.per_class[i]
        other, gain = "–", "–"
        if one.trained is not None and one.scratch is not None:
            scratch = one.scratch.per_class[i].accuracy
            other, gain = f"{100 * scratch:.1f} %", f"{100 * (row.accuracy - scratch):+.1f}".replace("-", "−")
        scores = (f"{row.precision:.4f}", f"{row.f1:.4f}", f"{row.iou:.4f}")
        add(made, row.name, f"{row.support:,}", f"{100 * row.accuracy:.1f} %", other, gain, *scores)
    return made
