"""Where the log goes beside metrics.jsonl and TensorBoard: a caller's functions, wandb, mlflow. Imports no torch."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import PlatformError
from .run import is_number
from .terminal import say

if TYPE_CHECKING:
    from pathlib import Path

Row = Mapping[str, Any]
PROJECT = "simclr-engine"  # where the user's environment names none: WANDB_PROJECT, MLFLOW_EXPERIMENT_NAME


def _nothing(*_: Any) -> None:
    pass


@dataclass(frozen=True)
class Listener:
    """What is called while a run trains, in the process that writes (rank 0).

    Attributes:
        on_log: number of the step and the row, as metrics.jsonl has it: `event` (`train` or `knn`) and its values.
        on_checkpoint: path of the checkpoint that was just written whole.
        close: once at the end; True where the run is finished.
    """

    on_log: Callable[[int, Row], None] = _nothing
    on_checkpoint: Callable[[Path], None] = _nothing
    close: Callable[[bool], None] = _nothing


def open_logger(name: str, title: str, settings: Mapping[str, Any], resumed: str | None) -> tuple[Listener, str]:
    """Starts a logger of `LOGGERS`; one that fails later is switched off with a line, and training goes on.

    Args:
        name: `wandb` or `mlflow`.
        title: name of the run there.
        settings: hyper-parameters, dotted key → value.
        resumed: its ID there, where this run logged there before it was stopped.

    Returns:
        The listener, and the ID of the run there.

    Raises:
        PlatformError: it is not installed, or does not start.
    """
    try:
        module = import_module(name)
    except ImportError as error:
        fix = f"pip install 'simclr-engine[{name}]' (in a checkout: pip install '.[{name}]')"
        raise PlatformError(f"--log {name} needs {name}", saw=str(error), fix=fix) from error
    try:
        listener, key = LOGGERS[name](module, title, settings, resumed)
    except Exception as error:  # no network, no account, no permission: each has kinds of its own
        raise PlatformError(
            f"{name} does not start", saw=f"{type(error).__name__}: {error}", fix=f"{_HINTS[name]}, or leave out --log"
        ) from error
    return _lenient(name, listener), key


_HINTS = {"wandb": "`wandb login`, or WANDB_MODE=offline", "mlflow": "set MLFLOW_TRACKING_URI to a store that works"}


def _lenient(name: str, listener: Listener) -> Listener:
    """The listener, switched off by its first error."""
    works = True

    def guarded(call: Callable[..., None]) -> Callable[..., None]:
        def called(*arguments: Any) -> None:
            nonlocal works
            if works:
                try:
                    call(*arguments)
                except Exception as error:
                    works = False
                    say(f"warning: {name} failed and gets no more rows: {type(error).__name__}: {error}")

        return called

    return Listener(guarded(listener.on_log), guarded(listener.on_checkpoint), guarded(listener.close))


def _numbers(row: Row) -> dict[str, float]:
    """`event/name` → value, as TensorBoard has them."""
    return {f"{row.get('event')}/{name}": float(value) for name, value in row.items() if is_number(value)}


def _wandb(wandb: Any, title: str, settings: Mapping[str, Any], resumed: str | None) -> tuple[Listener, str]:
    key = resumed or uuid.uuid4().hex[:8]
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    run = wandb.init(project=project, name=title, id=key, resume="allow", config=dict(settings))
    return Listener(
        on_log=lambda step, row: run.log(_numbers(row), step=step),
        close=lambda finished: run.finish(exit_code=0 if finished else 1),
    ), key


def _mlflow(mlflow: Any, title: str, settings: Mapping[str, Any], resumed: str | None) -> tuple[Listener, str]:
    """Through a client, so that a run that the caller's program has open stays as it is."""
    client, entities = mlflow.MlflowClient(), import_module("mlflow.entities")
    key = resumed
    if key is None:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = client.get_experiment_by_name(name)
        at = client.create_experiment(name) if experiment is None else experiment.experiment_id
        key = client.create_run(at, run_name=title).info.run_id
        values = [entities.Param(name, str(value)[:250]) for name, value in settings.items()]
        for start in range(0, len(values), 100):  # the most that one call takes
            client.log_batch(key, params=values[start : start + 100])
    else:
        client.update_run(key, status="RUNNING")

    def on_log(step: int, row: Row) -> None:
        now = int(1000 * time.time())
        client.log_batch(key, [entities.Metric(name, value, now, step) for name, value in _numbers(row).items()])

    return Listener(
        on_log, close=lambda finished: client.set_terminated(key, "FINISHED" if finished else "KILLED")
    ), key


LOGGERS: dict[str, Callable[[Any, str, Mapping[str, Any], str | None], tuple[Listener, str]]] = {
    "wandb": _wandb,
    "mlflow": _mlflow,
}
