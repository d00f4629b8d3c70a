"""Writes the files of a run while it trains: environment, log, checkpoints, weights. Only rank 0 writes."""

from __future__ import annotations

import platform as host
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from . import __version__, stopping
from .budget import Clock
from .checkpoint import LAST, WEIGHTS, encoder_metadata, keep_last_as, pack_weights, save_last
from .command_line import PROGRAM, shell_command
from .distributed import DATA_TIMEOUT, run_id
from .errors import PlatformError
from .event_log import RunLog
from .files import Folder
from .flops import pflop_of
from .loggers import Listener, open_logger
from .memory import peak_memory
from .model import parameter_count
from .planning import Estimate, RunOptions
from .recipe import leaves
from .resuming import Stopped
from .run import MOST_STARTS, Run, RunLock, changes, finished_runs, of_a_start
from .sealing import BLANK, sealed, sealed_json
from .training import Plan, Trainer

SAVE_SECONDS = 120.0  # at most this much training is lost in a crash
VIEWS_SHOWN, IMAGES_SHOWN = 16, 4  # in views.npz, for the augmentation sheet of the report


class Recording:
    """The directory of a run while it trains. Every rank has one, but only rank 0 writes; if it fails, all ranks fail.

    At the end of the `with`, the log is closed and the time is written to environment.json.

    Args:
        lock: lock of the directory, taken by rank 0.
        trainer: the trainer.
        environment: contents of environment.json.
        clock: of this part of the run.
        options: name the loggers beside metrics.jsonl and TensorBoard, and hold the caller's listeners.
        anew: whether a resumed run has a longer plan. It is saved at once, so that a later resume goes on with it.
    """

    def __init__(
        self,
        lock: RunLock,
        trainer: Trainer,
        environment: dict[str, Any],
        clock: Clock,
        options: RunOptions,
        anew: bool = False,
    ) -> None:
        self._lock, self._trainer, self._world, self._environment = lock, trainer, trainer.world, environment
        self._clock = clock
        self._spent, self._uncounted = float(environment["seconds"]), float(environment["uncounted_seconds"])
        self._saved_at = time.monotonic()
        self._listeners: list[Listener] = []
        with self._world.fail_together():
            if self._world.main:
                self._log = RunLog(lock.folder, resume_step=trainer.step or None)
                recipe = f"# {BLANK}\n{trainer.recipe.to_toml()}"
                lock.folder.write("recipe.toml", sealed(recipe.encode(), "recipe.toml"))
                self._listen(options)
                self._write_environment()
                save_view_samples(lock.folder, trainer)
                self._checkpoints = lock.folder.folder("checkpoints")
                self._mend_names()
                if anew:  # what was reached so far stays
                    keep_last_as(self._checkpoints, f"epoch_{trainer.step // trainer.plan.steps_per_epoch:04d}.pt")
                    self._save()
                if trainer.step < trainer.plan.total_steps:
                    for name in WEIGHTS:  # of a shorter plan; the checkpoint has them too
                        lock.folder.remove(name)

    def _listen(self, options: RunOptions) -> None:
        """Starts the loggers; their IDs go into environment.json, so that a resumed run goes on with them."""
        ids, title = self._environment.setdefault("loggers", {}), self._lock.directory.resolve().name
        settings = {key: value for key, value in leaves(self._trainer.recipe.to_tree()) if "published" not in key}
        for name in options.log:
            listener, ids[name] = open_logger(name, title, settings, ids.get(name))
            self._listeners.append(listener)
        self._listeners += options.listeners

    def __enter__(self) -> Recording:
        self._verify(wait=False)
        return self

    def _verify(self, wait: bool) -> None:
        """Compares images that stay in files with their hashes, while the first epoch runs; see `ImageStore.verify`."""
        if self._world.local_rank == 0:
            self._trainer.store.verify(wait)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the log. An error raised in the `with` is more useful than one from closing, such as a full disk."""
        if self._world.main:
            for listener in self._listeners:
                listener.close(error is None)
            with suppress(*(() if error is None else (PlatformError,))):
                self._log.close()
                self._write_environment()

    def log(self, event: str, row: dict[str, float]) -> None:
        """Writes a row to metrics.jsonl and TensorBoard, at the step of the trainer."""
        if self._world.main:
            self._log.write(event, self._trainer.step, row)
            for listener in self._listeners:
                listener.on_log(self._trainer.step, {"event": event, **row})

    def save_due(self, seconds: float) -> bool:
        """Whether to save now. A step of `seconds` that is long enough for a deadline to cut is always saved."""
        return time.monotonic() - self._saved_at > (SAVE_SECONDS if seconds < stopping.STOP_SECONDS / 2 else 0.0)

    def lasting_name(self) -> str | None:
        """The lasting name of the checkpoint of this step, if it is to be kept."""
        epoch, into = divmod(self._trainer.step, self._trainer.plan.steps_per_epoch)
        keep = self._trainer.recipe.train.checkpoint_epochs
        return f"epoch_{epoch:04d}.pt" if keep and into == 0 and epoch % keep == 0 else None

    def save(self) -> None:
        """Saves the state of the trainer as `last.pt`, and under its lasting name if it is to be kept.

        AlteredError, and nothing saved, if the images are known to be damaged by now.
        """
        with self._world.fail_together():
            self._verify(wait=False)
            if self._world.main:
                self._save()
        self._saved_at = time.monotonic()

    def _save(self) -> None:
        save_last(self._checkpoints, self._trainer.state_dict())
        self._environment["step"] = self._trainer.step
        self._write_environment()
        if name := self.lasting_name():
            keep_last_as(self._checkpoints, name)
        for listener in self._listeners:
            listener.on_checkpoint(self._checkpoints.path / (name or LAST))

    def note_plan(self, why: str) -> None:
        """Records a plan that was relaid, and why; the checkpoint holds it from the next `save` on."""
        if self._world.main:
            self._environment["notes"].append(why)
            self._environment["plan"] |= length_of(self._trainer.plan)
            self._write_environment()

    def finish(self) -> Run:
        """Writes the weights and marks the run as finished, once the images are verified."""
        trainer, folder = self._trainer, self._lock.folder if self._world.main else None
        with self._world.fail_together(DATA_TIMEOUT):
            self._verify(wait=True)
        with self._world.fail_together():
            if folder is not None:
                metadata = encoder_metadata(trainer.recipe, trainer.store.image_size)
                for name, part in zip(WEIGHTS, (trainer.model, trainer.model.encoder), strict=True):
                    folder.write(name, pack_weights(part, metadata))
                others = finished_runs(self._lock.directory.absolute().parent)
                number = 1 + max((run[0] for run in others), default=0)  # the order of runs, which no clock turns
                self._environment.update(finished=True, ended=time.time(), number=number)
                self._write_environment()
        environment = self._world.same(self._environment)
        directory = self._lock.directory
        # Other machines may not see the directory.
        return Run.open(directory) if folder is not None else Run(directory, trainer.recipe, environment)

    def _write_environment(self) -> None:
        """With the time up to now, so that a run that is killed keeps that of its last save."""
        seconds = self._spent + time.perf_counter() - self._clock.began
        uncounted = self._uncounted + self._clock.uncounted
        peak = peak_memory(self._trainer.platform)
        self._environment.update(seconds=seconds, uncounted_seconds=uncounted, peak_bytes=peak)
        self._lock.folder.write("environment.json", sealed_json(self._environment, "environment.json"))

    def _mend_names(self) -> None:
        """Gives the resumed checkpoint the names that it lacks because the process was killed."""
        names = [LAST, self.lasting_name()]
        if self._trainer.step and not all(self._checkpoints.is_file(name) for name in names if name):
            self._save()


def environment_of(
    trainer: Trainer, options: RunOptions, place: Mapping[str, str], estimate: Estimate | None, stopped: Stopped | None
) -> dict[str, Any]:
    """The contents of environment.json when a run begins or resumes.

    No other file holds `place`: the absolute path of the images, and of their table and list if they have them.
    """
    plan, store, started = trainer.plan, trainer.store, Path(sys.argv[0]).name == PROGRAM
    environment: dict[str, Any] = {
        "version": __version__,
        "finished": False,
        "command": shell_command(*sys.argv[1:]) if started else None,
        "commit": commit_of_checkout(),
        **trainer.platform.describe(),
        "backends": {"augment": trainer.backends.augment, "nt_xent": trainer.backends.nt_xent},
        "notes": list(trainer.platform.notes),
        "own": trainer.own.names(),
        "feature_dim": trainer.model.encoder.feature_dim,
        "versions": {"python": host.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "parameters": parameter_count(trainer.model),
        "ranks": trainer.world.size,
        "threads": torch.get_num_threads(),
        "micro_batch": trainer.micro_batch,
        "batch_norm": "synchronised" if trainer.synchronised else "local",
        "images_in_files": trainer.streamed,
        "launch": run_id(),
        "step": trainer.step,
        "data": {
            "name": store.name,
            "path": None,
            **place,
            "split": store.split,
            "fingerprint": store.fingerprint,
            "images": len(store),
            "limit": options.limit,
            "image_size": store.image_size,
            "class_names": list(store.class_names),
        },
        "plan": {
            **length_of(plan),
            "steps_per_epoch": plan.steps_per_epoch,
            "peak_lr": plan.peak_lr,
            "max_minutes": options.max_minutes,
            "max_pflop": options.max_pflop,
            "estimated_seconds": estimate.seconds if estimate else None,
        },
        "seconds": 0.0,
        "uncounted_seconds": 0.0,
    }
    earlier = [] if stopped is None else stopped.starts
    environment["starts"] = [*earlier, {"step": trainer.step, "time": time.time(), **of_a_start(environment)}]
    del environment["starts"][1:-MOST_STARTS]
    return environment if stopped is None else _of_resumed(environment, trainer, estimate, stopped)


def other_than_before(environment: Mapping[str, Any]) -> list[str]:
    """What is said of a resumed run that goes on with other kernels, versions, … than its start before used."""
    last = [of_a_start(start) for start in environment["starts"][-2:]]
    found = changes(last[0], last[-1])
    return [f"note: resumed with {'; '.join(found)}: weights may differ in their last bits or more"] if found else []


def _of_resumed(
    environment: dict[str, Any], trainer: Trainer, estimate: Estimate | None, stopped: Stopped
) -> dict[str, Any]:
    """The same with what the run has been until now."""
    earlier = stopped.run.environment
    environment |= {"seconds": stopped.seconds, "command": earlier.get("command")}
    environment["notes"] += [stopped.lost] if stopped.lost else []
    environment |= {"loggers": dict(earlier.get("loggers") or {})}
    environment |= {"weights": earlier["weights"]} if "weights" in earlier else {}
    environment["uncounted_seconds"] = stopped.uncounted_seconds
    before = earlier.get("plan")
    before = before if isinstance(before, dict) else {}
    if not stopped.longer:
        environment["plan"] |= {"max_pflop": stopped.max_pflop}
    if estimate is not None:
        environment["plan"] |= {"estimated_seconds": stopped.seconds + estimate.seconds}
    elif not stopped.longer:  # the plan is that of the checkpoint
        environment["plan"] |= before | length_of(trainer.plan)
    changes = before.get("lengthened")
    changes = changes if isinstance(changes, list) else []
    if stopped.longer:
        changes = [*changes, {"after_step": trainer.step, "from_steps": before.get("total_steps")}]
    if changes:
        environment["plan"] |= {"lengthened": changes}
    return environment


def length_of(plan: Plan) -> dict[str, Any]:
    """The entries of environment.json about the length of a plan, which may change on the way."""
    return {
        "total_steps": plan.total_steps,
        "epochs": plan.total_steps / plan.steps_per_epoch,
        "pflop": pflop_of(plan),
        "relaid": [list(change) for change in plan.relaid],
    }


def save_view_samples(at: Folder, trainer: Trainer) -> None:
    """Writes `views.npz`: some images and their views in the first epochs.

    Arrays `originals` uint8 `[n, S, S, 3]` and `views` uint8 `[n, 16, S', S', 3]`, without the normalisation.
    """
    ids = torch.arange(min(IMAGES_SHOWN, len(trainer.store)), device=trainer.platform.device)
    views, size = trainer.recipe.train.views, trainer.plan.view_size(trainer.plan.total_steps - 1)
    epochs = range(-(-VIEWS_SHOWN // views))
    batch = torch.cat(
        [trainer.views(ids, epoch, size).float().cpu().reshape(views, len(ids), 3, size, size) for epoch in epochs]
    )[:VIEWS_SHOWN]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (trainer.spec.mean, trainer.spec.std))
    pixels = ((batch * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 0, 3, 4, 2)
    originals = np.ascontiguousarray(trainer.store.images[: len(ids)])
    with at.sealing("views.npz") as file:
        np.savez_compressed(file, originals=originals, views=pixels.numpy())


def commit_of_checkout() -> str | None:
    """The commit of the checkout that this package runs from; None if there is none or it cannot be read."""
    here = Path(__file__).resolve().parent.parent
    try:
        if not (here / ".git").exists():
            return None
        return subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
