"""TensorBoard scalars of methods that train, one folder per protocol: `tensorboard/finetune-pretrained/`.

The grouping is that of system E (two-protocols): in one TensorBoard the protocols are curves of different colours on
the same axes, and the x-axis of all of them is the optimizer step.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from numbers import Real
from pathlib import Path
from typing import Any

from ..errors import PlatformError

# Key in a row → tag. The learning rate is known at both; the finer of the two is written.
HISTORY = {"test_accuracy": "test/accuracy", "test_loss": "test/loss", "train_loss": "train/loss_epoch", "lr": "lr"}
STEPS = {"train_loss": "train/loss_step", "lr": "lr"}

Row = Mapping[str, Any]
_Point = tuple[int, str, float]  # step, tag, value


def write_scalars(
    directory: Path, history_rows: Iterable[Row], step_rows: Iterable[Row], group: str
) -> tuple[Path, ...]:
    """Writes the curves of one protocol; those of an earlier evaluation under the same `group` are replaced.

    Args:
        directory: `tensorboard/` of the run; the events go to `directory/group`, those of the folds above one to
            `directory/group/fold-2` and so on.
        history_rows: one per epoch: `fold` (0 without folds, else from 1), `step`, and any of `train_loss`,
            `test_loss`, `test_accuracy`, `lr`. A value that is missing or None gives no point.
        step_rows: one per logged step: `fold`, `step`, and any of `train_loss`, `lr`.
        group: name of the protocol, such as `finetune-pretrained`.

    Returns:
        The folders written, in order of folds.

    Raises:
        ValueError: `group` is no plain folder name.
        PlatformError: no space or no permission.
    """
    if not re.fullmatch(r"[\w-][\w.-]*", group):
        raise ValueError(f"group must be a plain folder name, saw {group!r}")
    base = directory / group
    folds = _by_fold(history_rows, step_rows)
    try:
        _clear(base)
        return tuple(_write(base / f"fold-{fold}" if fold > 1 else base, points) for fold, points in folds)
    except OSError as error:
        raise PlatformError(
            "cannot write the curves for TensorBoard",
            saw=f"{base}: {error.strerror}",
            fix="free space, or choose another place with --out",
        ) from error


def _by_fold(history: Iterable[Row], steps: Iterable[Row]) -> list[tuple[int, list[_Point]]]:
    """The points of each fold, in order of folds and steps."""
    fine = _points(steps, STEPS)
    finer = {fold for fold, points in fine.items() if any(tag == "lr" for _, tag, _ in points)}
    found = _points(history, HISTORY)
    for fold in finer & found.keys():
        found[fold] = [point for point in found[fold] if point[1] != "lr"]
    for fold, points in fine.items():
        found.setdefault(fold, []).extend(points)
    return [(fold, sorted(found[fold], key=lambda point: point[0])) for fold in sorted(found)]


def _points(rows: Iterable[Row], tags: Mapping[str, str]) -> dict[int, list[_Point]]:
    """Points by fold; only numbers make one."""
    found: dict[int, list[_Point]] = {}
    for row in rows:
        points = [
            (int(row["step"]), tag, float(row[key]))
            for key, tag in tags.items()
            if isinstance(row.get(key), Real) and not isinstance(row[key], bool)  # numpy's numbers are Real too
        ]
        if points:
            found.setdefault(int(row.get("fold", 0)), []).extend(points)
    return found


def _clear(base: Path) -> None:
    """Removes the events that stand there, and nothing else: TensorBoard would draw old and new as one curve."""
    for file in [*base.glob("events.out.tfevents.*"), *base.glob("fold-*/events.out.tfevents.*")]:
        file.unlink()
    for folder in base.glob("fold-*"):
        with suppress(OSError):  # it holds something of somebody else's
            folder.rmdir()


def _write(folder: Path, points: list[_Point]) -> Path:
    """One event file; points of one step make one event."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    folder.mkdir(parents=True, exist_ok=True)
    steps: dict[int, list[Any]] = {}
    for step, tag, value in points:
        steps.setdefault(step, []).append(Summary.Value(tag=tag, simple_value=value))
    writer = EventFileWriter(str(folder))
    try:
        now = time.time()
        for step, values in steps.items():
            writer.add_event(Event(wall_time=now, step=step, summary=Summary(value=values)))
    finally:
        writer.close()
    return folder
