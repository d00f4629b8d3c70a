"""The tables of the pages as plain data: methods, folds, published figures, classes, and how each number was made.

The templates lay them out. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import counted
from ..evaluation.result import FROZEN, METHOD_NAMES, Comparison, EvaluationResult, percent, points
from ..run import is_number
from .content import (
    NOTHING,
    Published,
    ReportContent,
    duration,
    first_capital,
    published_classes,
    published_source,
    short,
    short_name,
    signed,
)

if TYPE_CHECKING:
    from ..recipe import Recipe

OPEN_TABLE = 20  # classes; longer tables start folded
STACKED = 8  # rows at most of a table that a phone shows as blocks
GROUPS = (
    ("Frozen encoder", lambda pair: pair.method in FROZEN),
    ("Encoder trained with the labels", lambda pair: pair.method not in FROZEN),
)
COMPARES = "Only figures on the same images and with the same budget compare."


@dataclass(frozen=True)
class Cell:
    """What stands in a cell, plain text.

    Attributes:
        text: the value.
        small: a second, smaller line.
        bold: set in bold.
        name: a name from the data, whose writing direction must not reach the words around it.
        gain: a difference, which is coloured by its sign.
        bar: 0..1, drawn as a bar before the value.
    """

    text: str
    small: str = ""
    bold: bool = False
    name: bool = False
    gain: float | None = None
    bar: float | None = None


@dataclass(frozen=True)
class Row:
    """A row of cells; or, with `group`, the name of the rows below it over the whole width. `sub`: of lesser weight."""

    cells: tuple[Cell, ...] = ()
    group: str = ""
    sub: bool = False


@dataclass(frozen=True)
class Table:
    """A table with its heading and a remark below it, where there are any.

    Attributes:
        head: names of the columns.
        rows: of as many cells.
        words: so many columns are words, the others numbers.
        title: heading.
        aside: remark.
        summary: of a table that a reader opens and closes; empty for one that cannot be closed.
        opened: whether such a table starts open.
    """

    head: tuple[str, ...]
    rows: tuple[Row, ...]
    words: int = 1
    title: str = ""
    aside: str = ""
    summary: str = ""
    opened: bool = False

    @property
    def stacked(self) -> int:
        """Columns in which a phone shows the named values of a row, of a table that is too wide and has few rows;
        0 where it stays a table."""
        values = len(self.head) - 1
        if values < 4 or len(self.rows) > STACKED:
            return 0
        return 4 if values % 4 == 0 else 3


@dataclass(frozen=True)
class Protocol:
    """How one result was made: who it is of, in what way, and what a reader must know to trust it."""

    head: str
    words: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """A part of a page: its heading, and what stands below it, in this order.

    Attributes:
        text: a sentence.
        facts: (name, value); those without a value are left out.
        notes: sentences in a list.
        tables: in a row.
        protocols: how the results of each of several runs were made; one group without a name for a single run.
        code: lines to be copied.
        folded: lines to be copied that a reader opens and closes, below a summary.
        aside: a remark at the end.
        lead: what its pictures have in common, above them.
        pictures: what `page.shown_picture` made of them, below all of this.
    """

    heading: str
    text: str = ""
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    protocols: Mapping[str, Sequence[Protocol]] = field(default_factory=dict)
    code: Sequence[str] = ()
    folded: tuple[str, Sequence[str]] | None = None
    aside: str = ""
    lead: str = ""
    pictures: Sequence[Any] = ()

    @property
    def card(self) -> bool:
        """Whether anything stands in the box above the pictures."""
        return bool(self.text or self.facts or self.tables or self.protocols or self.code)


def row(*values: Cell | str, sub: bool = False) -> Row:
    """A row of cells and of plain text."""
    return Row(tuple(value if isinstance(value, Cell) else Cell(value) for value in values), sub=sub)


def accuracy(result: EvaluationResult) -> float:
    """The accuracy that stands in tables, 0..1: the mean over the folds where there are several."""
    return result.fold_spread[0] if result.fold_spread else result.accuracy


def accuracy_text(result: EvaluationResult | None) -> str:
    """`60.0 %`, or `75.9 ± 0.6 %` over folds (mean and standard deviation)."""
    if result is None:
        return NOTHING
    mean = percent(accuracy(result), result.test_images)
    if result.fold_spread is None:
        return mean
    return f"{mean[:-2]} ± {percent(result.fold_spread[1], result.test_images)}"


def difference(pair: Comparison) -> float | None:
    """Trained minus random, as a fraction, of the accuracies that stand in the tables."""
    return accuracy(pair.trained) - accuracy(pair.scratch) if pair.trained and pair.scratch else None


def methods_section(comparisons: Sequence[Comparison]) -> Section | None:
    """Every method: trained, random, difference, further scores; None without results."""
    if not comparisons:
        return None
    columns = {title: [score(pair) for pair in comparisons] for title, score in _SCORES.items()}
    columns = {title: scores for title, scores in columns.items() if any(score is not None for score in scores)}
    shown = [pair.shown for pair in comparisons]
    data = len({result.data for result in shown}) > 1
    size = data or len({(result.train_images, result.test_images) for result in shown}) > 1
    rows: list[Row] = []
    for title, belongs in GROUPS:
        members = [i for i, pair in enumerate(comparisons) if belongs(pair)]
        rows += [Row(group=title)] if members and len(members) < len(comparisons) else []
        for i in members:
            place = [short_name(shown[i].data)] if data else []
            place += [f"{shown[i].train_images:,} / {shown[i].test_images:,} images"] if size else []
            scores = [column[i] or NOTHING for column in columns.values()]
            rows += _method_rows(comparisons[i], ", ".join(place), scores)
    head = ("method", "pretrained", "random", "largest class", "points apart", *columns)
    aside = _how_to_read(comparisons, "epochs to the baseline" in columns)
    return Section("Methods", tables=(Table(head, tuple(rows), aside=aside),))


def _epochs_to_baseline(pair: Comparison) -> str | None:
    """`6 of 20`; `not in 20` where it never gets there; None where nothing was trained beside a baseline."""
    if pair.trained is None or pair.scratch is None or not pair.trained.history or not pair.scratch.history:
        return None
    epochs = max(int(step["epoch"]) for step in pair.trained.history)
    reached = pair.epochs_to_baseline
    return f"{reached} of {epochs}" if reached is not None else f"not in {epochs}"


# The columns of the methods table beside the accuracies; None where there is nothing.
_SCORES: dict[str, Callable[[Comparison], str | None]] = {
    "macro F1": lambda pair: f"{pair.shown.f1_macro:.4f}",
    "mean IoU": lambda pair: f"{pair.shown.mean_iou:.4f}",
    "calibration error": lambda pair: f"{pair.shown.ece:.3f}",
    "loss (nats)": lambda pair: _number(pair.shown.loss, ".3f"),
    "epochs to the baseline": _epochs_to_baseline,
    "time": lambda pair: duration(pair.shown.seconds),
}


def _method_rows(pair: Comparison, where: str, scores: Sequence[str]) -> list[Row]:
    n, gap = pair.shown.test_images, difference(pair)
    trained, scratch = (accuracy_text(result) for result in pair.both)
    apart = Cell(_apart(gap, n), gain=gap) if gap is not None else NOTHING
    rows = [
        row(
            Cell(pair.name, where, bold=True),
            Cell(trained, bold=True),
            scratch,
            percent(pair.chance, n),
            apart,
            *scores,
        )
    ]
    for variant in pair.shown.also:
        values = [result.also.get(variant) if result else None for result in pair.both]
        texts = [percent(value, n) if value is not None else NOTHING for value in values]
        apart = _apart(values[0] - values[1], n) if values[0] is not None and values[1] is not None else NOTHING
        rows.append(row(variant, *texts, "", apart, *("" for _ in scores), sub=True))
    return rows


def _how_to_read(comparisons: Sequence[Comparison], epochs: bool) -> str:
    """What stands in the columns, and which methods leave the encoder as it is."""
    frozen = list(dict.fromkeys(METHOD_NAMES[pair.method] for pair in comparisons if pair.method in FROZEN))
    words = [
        "Accuracy on the test split: of the pretrained encoder, and of the same network with random weights under the "
        "same protocol. Largest class: the accuracy of always naming it. The columns to the right of the difference "
        "are of the pretrained one, where there is one."
    ]
    if any(pair.shown.folds for pair in comparisons):
        words.append("With folds: on the fold that was held out, mean ± standard deviation over the folds.")
    if epochs:
        words.append(
            "Epochs to the baseline: how many the training from the pretrained weights takes to be as accurate as the "
            "one from random weights is at its end."
        )
    if frozen:
        everywhere = len(frozen) == len({pair.method for pair in comparisons})
        means = "The encoder is frozen" if everywhere else f"In {_listed(frozen)} the encoder is frozen"
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


def folds_section(comparisons: Sequence[Comparison]) -> Section | None:
    """Each fold of each cross-validation; None without one."""
    head = ("fold", "trained on", "held out", "accuracy", "loss (nats)", "test accuracy")
    tables = []
    for pair in comparisons:
        rows: list[Row] = []
        for result in pair.both:
            if result is not None and result.folds:
                rows += [Row(group=f"{'random' if result.init == 'scratch' else 'pretrained'} weights")]
                rows += _fold_rows(result)
        tables += [Table(head, tuple(rows), title=pair.name)] if rows else []
    aside = (
        "Each fold is scored by a model that was trained on the others: accuracy and loss (mean cross-entropy) on "
        "the images held out, and accuracy on the whole test split. sd: standard deviation over the folds (n − 1)."
    )
    return Section("Folds", tables=tables, aside=aside) if tables else None


def _fold_rows(result: EvaluationResult) -> list[Row]:
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
    means = [
        _mean_sd([100 * fold.accuracy for fold in result.folds], 1 if least < 5_000 else 2, " %"),
        _mean_sd([fold.loss for fold in result.folds], 4, ""),
        _mean_sd([100 * fold.test_accuracy for fold in result.folds], 1 if result.test_images < 5_000 else 2, " %"),
    ]
    return [*rows, row(Cell("mean ± sd", bold=True), "", "", *(Cell(mean, bold=True) for mean in means))]


def _mean_sd(values: Sequence[float], digits: int, unit: str) -> str:
    mean = sum(values) / len(values)
    sd = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return f"{mean:.{digits}f} ± {sd:.{digits}f}{unit}" if math.isfinite(mean) else NOTHING


def published_section(content: ReportContent) -> Section | None:
    """The figures of the recipe's system beside ours; None where nothing was published."""
    if not content.published:
        return None
    length, images = counted(short(content.epochs), "epoch"), counted(content.images, "image")
    this = f"{length} on {images} of {content.data_name}"
    source = published_source(content.run.recipe)
    aside = f"Published: {source}. This run: {this}. Accuracies apart in points. {COMPARES}"
    rows = tuple(line for figure in content.published for line in _published_rows(figure))
    table = Table(("method", "encoder", "published", "this run", "apart"), rows, words=2, aside=aside)
    return Section("Beside published figures", tables=(table, *_published_classes(content)))


def _published_rows(figure: Published) -> list[Row]:
    """The accuracy of a published figure beside ours, and below it the other scores that were published."""
    result, theirs = figure.ours, float(figure.row["accuracy"])
    ours = accuracy_text(result) if result else "not run"
    apart = _apart(accuracy(result) - theirs, result.test_images) if result else NOTHING
    return [row(*published_cells(figure.row), ours, apart), *_other_scores(figure)]


def published_cells(published: Mapping[str, Any]) -> tuple[Cell, str, str]:
    """Method, encoder and accuracy of a published figure."""
    method, init = str(published["method"]), str(published.get("init", ""))
    part = [f"{100 * float(published['label_fraction']):g} % of the labels"] if "label_fraction" in published else []
    folds = [f"{published['folds']} folds"] if "folds" in published else []
    name = Cell(METHOD_NAMES.get(method, method), ", ".join(part + folds))
    return name, "random" if init == "scratch" else init, f"{100 * float(published['accuracy']):.2f} %"


def _other_scores(figure: Published) -> list[Row]:
    """Whatever else a published figure has, beside ours."""
    result, pair = figure.ours, figure.comparison
    reached = pair.epochs_to_baseline if pair and figure.row.get("init") == "pretrained" else None
    known = (
        ("f1_macro", "macro F1", 4, result.f1_macro if result else None),
        ("f1_weighted", "weighted F1", 4, result.f1_weighted if result else None),
        ("mean_iou", "mean IoU", 4, result.mean_iou if result else None),
        ("loss", "loss (nats)", 2, result.loss if result else None),
        ("epochs_to_baseline", "epochs to the baseline", 0, reached),
    )
    rows = []
    for key, title, digits, ours in known:
        theirs = figure.row.get(key)
        if isinstance(theirs, int | float):
            mine = _number(ours, f".{digits}f") or NOTHING
            apart = signed(ours - theirs, digits) if ours is not None and mine != NOTHING else NOTHING
            rows.append(row(title, "", f"{theirs:.{digits}f}", mine, apart, sub=True))
    return rows


def _published_classes(content: ReportContent) -> list[Table]:
    """The published scores of each class beside ours of the linear probe; none where there are none, or where ours are
    other classes."""
    published = published_classes(content.run.recipe)
    ours = next((pair.trained for pair in content.comparisons if pair.method == "linear" and pair.trained), None)
    by_name = {scores.name.lower(): scores for scores in ours.per_class} if ours else {}
    if not published or (ours and not any(name.lower() in by_name for name in published)):
        return []
    rows = []
    for name, theirs in published.items():
        mine, cells = by_name.get(name.lower()), []
        for key, scale, digits, unit in (("accuracy", 100, 1, " %"), ("f1", 1, 4, ""), ("iou", 1, 4, "")):
            there = isinstance(theirs.get(key), int | float)
            cells.append(f"{scale * theirs[key]:.{digits}f}{unit}" if there else NOTHING)
            cells.append(f"{scale * getattr(mine, key):.{digits}f}{unit}" if mine else NOTHING)
        rows.append(row(Cell(name, name=True), *cells))
    head = ("class", "accuracy, published", "ours", "F1, published", "ours", "IoU, published", "ours")
    return [Table(head, tuple(rows), summary=f"Per class, linear probe: {len(rows):,} published")]


def classes_section(pair: Comparison | None) -> Section | None:
    """Scores per class of the headline method; None without results."""
    if pair is None:
        return None
    other = pair.scratch.per_class if pair.trained and pair.scratch else None
    sizes = {scores.support for scores in pair.shown.per_class}
    rows = []
    for i, scores in enumerate(pair.shown.per_class):
        random = [f"{100 * other[i].accuracy:.1f} %"] if other else []
        share = Cell(f"{100 * scores.accuracy:.1f} %", bar=scores.accuracy)
        cells = (f"{scores.precision:.4f}", f"{scores.f1:.4f}", f"{scores.iou:.4f}")
        support = [f"{scores.support:,}"] if len(sizes) > 1 else []
        rows.append(row(Cell(scores.name, name=True), *support, share, *random, *cells))
    whose = "random encoder" if pair.trained is None else "pretrained encoder"
    images, random = ["images"] if len(sizes) > 1 else [], ["random encoder"] if other else []
    head = ("class", *images, "accuracy", *random, "precision", "F1", "IoU")
    each = "" if images else f", {counted(sizes.pop(), 'test image')} each"
    summary = f"{len(rows):,} classes{each}, {pair.name}, {whose}"
    return Section("Classes", tables=(Table(head, tuple(rows), summary=summary, opened=len(rows) <= OPEN_TABLE),))


def protocols_section(results: Sequence[EvaluationResult]) -> Section | None:
    """How every result was made and the state of the features; None without results."""
    if not results:
        return None
    aside = (
        "The last weights of the run are evaluated, never the best on test. Hyper-parameters of a "
        "probe come from a split of train. Test images that are in train, pixel for pixel, are counted, and more "
        "than 1 % is refused. Macro averages run over the classes that have test images."
    )
    return Section("How the numbers were made", protocols={"": protocols(results)}, aside=aside)


def protocols(results: Sequence[EvaluationResult]) -> list[Protocol]:
    """The protocol sentence and the notes of every result, then once what those of one encoder have in common: the
    state of its features, and its hash."""
    made: list[Protocol] = []
    encoders: dict[Protocol, None] = {}
    for result in results:
        whose = f"{'random' if result.init == 'scratch' else result.init} encoder"
        name = METHOD_NAMES.get(result.method, result.method)
        words = result.protocol.removeprefix(f"{name} ")  # not said twice
        end = "." if words == result.protocol else ""
        made.append(Protocol(f"{first_capital(name)}, {whose}{end}", f"{words}.", tuple(result.notes)))
        features, said = result.features, []
        if features:
            said.append(
                f"Features: {int(features.get('dim', 0))}-d, effective rank {features.get('effective_rank', 0.0):.1f}, "
                f"standard deviation {features.get('std', 0.0):.4f} at unit length."
            )
        if result.encoder:
            said.append(f"Encoder sha256 {result.encoder[:16]}…")
        if said:
            encoders[Protocol(f"{first_capital(whose)}.", " ".join(said), ())] = None
    return [*made, *encoders]


def exported_section(record: Mapping[str, Any] | None) -> Section | None:
    """What the last export wrote: its files beside PyTorch, and what was measured of them. None without a record, whose
    values are read as they come: it may be of another version."""
    if not record:
        return None
    files = [record, *_mappings(record.get("variants"))]
    head = ("file", "precision", "size", "largest difference", "same label", "accuracy", "accuracy in fp32")
    rows = [_exported_row(file) for file in files]
    known = [k for k in range(len(head)) if k < 5 or any(cells[k] != NOTHING for cells in rows)]
    lines = tuple(row(*(cells[k] for k in known)) for cells in rows)
    table = Table(tuple(head[k] for k in known), lines, words=2, aside=_export_words(files))
    seconds = _figure(record, "seconds")
    facts = {
        "takes": str(record.get("input") or ""),
        "returns": str(record.get("output") or ""),
        "opset": str(record.get("opset") or ""),
        "probe": _probe_words(record.get("probe")),
        "written in": duration(seconds) if seconds is not None else "",
    }
    said = {name: value for name, value in facts.items() if value}
    contract = [Table(tuple(said), (row(*said.values()),), words=len(said))] if said else []
    return Section("Exported file", tables=(table, *contract, *_card_tables(record.get("card"))))


def _exported_row(file: Mapping[str, Any]) -> tuple[Cell | str, ...]:
    size, apart = _figure(file, "bytes"), _figure(file, "parity", "max_abs")
    same = _figure(file, "agreement", "agreement")
    same = _figure(file, "parity", "label_agreement") if same is None else same
    scores = [_figure(file, "agreement", key) for key in ("accuracy", "accuracy_fp32")]
    return (
        Cell(Path(str(file.get("file") or "?")).name, name=True),
        str(file.get("precision") or "?"),
        f"{size / 2**20:.1f} MiB" if size is not None else NOTHING,
        f"{apart:.1e}" if apart is not None else NOTHING,
        *(f"{100 * share:.1f} %" if share is not None else NOTHING for share in (same, *scores)),
    )


def _export_words(files: Sequence[Mapping[str, Any]]) -> str:
    """On which images the files were compared with PyTorch, and the smaller ones with fp32; and the hash of each."""
    words = [
        "Largest difference: of a feature from that of PyTorch. Same label: as PyTorch, or for a smaller file as fp32."
    ]
    for file in files:
        name = Path(str(file.get("file"))).name
        for key, what in (("parity", "checked"), ("agreement", "accuracy")):
            images, source = _figure(file, key, "images"), _value(file, key, "image_source")
            if images is not None and source:
                words.append(f"{name}: {what} on {counted(int(images), 'image')} ({source}).")
        if file.get("sha256"):
            words.append(f"sha256 of {name}: {file['sha256']}.")
    return " ".join(words)


def _probe_words(about: Any) -> str:
    right, images = _figure({"probe": about}, "probe", "accuracy"), _figure({"probe": about}, "probe", "test_images")
    if right is None or images is None:
        return ""
    return f"{about.get('id')}: {100 * right:.2f} % of {counted(int(images), 'test image')}"


def _card_tables(card: Any) -> list[Table]:
    """Speed, memory and start-up of each file, where they were measured."""
    rows = []
    for line in _mappings(card.get("rows")) if isinstance(card, Mapping) else ():
        rates = [_figure(line, "images_per_second", batch, "median") for batch in ("1", "64")]
        held, start = _figure(line, "resident_bytes"), _figure(line, "start_up_seconds")
        cells = [f"{rate:,.0f}" if rate is not None else NOTHING for rate in rates]
        cells.append(f"{held / 2**20:,.0f} MiB" if held is not None else NOTHING)
        rows.append(row(str(line.get("name")), *cells, f"{start:.2f} s" if start is not None else NOTHING))
    if not rows:
        return []
    head = ("runs by", "images/s, batch 1", "images/s, batch 64", "memory", "start-up")
    threads = _figure(card, "threads")
    machine = f"{card.get('device')}" + (f", {counted(int(threads), 'thread')}" if threads is not None else "")
    return [Table(head, tuple(rows), aside=f"Median rates on {machine}, measured in turn.")]


def _value(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _figure(tree: Any, *keys: str) -> float | None:
    """The number at these keys; None where there is none."""
    found = _value(tree, *keys)
    return float(found) if is_number(found) else None


def _mappings(rows: Any) -> list[Mapping[str, Any]]:
    return [one for one in rows if isinstance(one, Mapping)] if isinstance(rows, list | tuple) else []


def published_sets(recipes: Iterable[Recipe]) -> list[Recipe]:
    """One recipe for each set of published figures."""
    return list({repr(recipe.published): recipe for recipe in recipes}.values())
