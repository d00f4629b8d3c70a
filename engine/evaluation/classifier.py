"""The methods that train with torch: a linear layer on the frozen encoder, or the whole network end to end."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from simclr_engine.kernels import AugmentSpec, augment, draw_params

from ..data.store import ImageStore
from ..device import Platform, choose_platform, keep_freed_memory
from ..errors import CheckFailed, UsageError
from ..optim import build_optimizer, lr_factor
from ..recipe import LabelledSpec
from ..training import epoch_order
from .features import encoder_hash
from .guards import require_unchanged
from .methods import Prediction, Training
from .target import Encoder
from .task import Task

CHUNK = 250  # images per pass without gradient
# The curve of an epoch is scored on at most this many images, or half as many as the epoch trains on, so that it costs
# a fraction of the training; the reported figure is always that of all images.
CURVE_IMAGES = 2_000
CALIBRATION_STEPS = 4

Inputs = Callable[[NDArray[np.int64], int], Tensor]
Probabilities = Callable[[], Tensor]


@dataclass(frozen=True, eq=False)
class _Lesson:
    """What `_fit` needs beside the model: `inputs(indices, epoch)` gives a batch, `curve()` probabilities of the images
    that `truth` labels."""

    spec: LabelledSpec
    labels: Tensor
    inputs: Inputs
    curve: Probabilities
    truth: Tensor
    platform: Platform
    seed: int
    fold: int

    @property
    def batch(self) -> int:
        """Images per step; never more than there are."""
        return min(self.spec.batch_size, len(self.labels))

    @property
    def steps_per_epoch(self) -> int:
        """What remains of an epoch is left out, as in pretraining."""
        return len(self.labels) // self.batch


def predict_head(encoder: Encoder, task: Task, training: Training) -> Prediction:
    """A linear layer on the standardised features of the frozen encoder, on features computed once, or on those of
    augmented images where the recipe asks for crops or flips."""
    spec, platform = training.recipe().evaluation.head, choose_platform(precision="fp32")
    of_train, of_test = encoder.features(task.train), encoder.features(task.test)
    features = of_train[task.rows]
    mean = torch.from_numpy(features.mean(0, dtype=np.float64).astype(np.float32)).to(platform.device)
    scale = torch.from_numpy(features.std(0, dtype=np.float64).astype(np.float32)).to(platform.device)
    scale = torch.where(scale > 1e-6 * mean.abs().clamp(min=1e-12), scale, torch.ones_like(scale))

    def standard(rows: Tensor) -> Tensor:
        return (rows.to(platform.device) - mean) / scale

    queries = standard(torch.from_numpy(task.of_queries(of_train, of_test)))
    layer = _seeded(lambda: nn.Linear(features.shape[1], task.classes), training.seed + task.fold).to(platform.device)

    def probabilities(of: Tensor) -> Tensor:
        with torch.no_grad():
            return layer(of).softmax(1)

    augmented = encoder.build is not None and (spec.crop_scale != (1.0, 1.0) or spec.flip > 0)
    trunk = encoder.build().to(platform.device).eval() if augmented and encoder.build else None
    if trunk is None:
        how, table = "features computed once", standard(torch.from_numpy(features))

        def inputs(indices: NDArray[np.int64], epoch: int) -> Tensor:
            return table[torch.from_numpy(indices)]
    else:
        how = _augmentation_words(spec)
        views = _views(encoder, task.train, task.rows, spec, training.seed, platform, torch.float32)

        def inputs(indices: NDArray[np.int64], epoch: int) -> Tensor:
            with torch.no_grad():
                return standard(trunk(views(indices, epoch)).float())

    scored = queries[: task.scored]
    lesson = _lesson(task, spec, inputs, lambda: probabilities(scored), task.scored, platform, training.seed)
    total = spec.epochs * lesson.steps_per_epoch
    with _unchanged(trunk):
        history, steps = _fit(layer, lesson, total, training, f"{encoder.init} head{_of_fold(task)}")
    found = probabilities(queries).cpu().numpy()
    return Prediction(
        protocol=f"linear head (torch, frozen encoder, standardised, {how}; {_training_words(spec, lesson, total)})",
        classes=found.argmax(1),
        probabilities=found,
        history=tuple(history),
        steps=tuple(steps),
    )


def predict_finetune(encoder: Encoder, task: Task, training: Training) -> Prediction:
    """The encoder and a linear layer, trained end to end."""
    spec = training.recipe().evaluation.finetune
    return _end_to_end(encoder, task, training, spec, "fine-tuning (end to end", spec.epochs)


def predict_supervised(encoder: Encoder, task: Task, training: Training) -> Prediction:
    """The same network from scratch, for the epochs of the recipe, or for as long as the pretraining took."""
    spec = training.recipe().evaluation.supervised
    return _end_to_end(encoder, task, training, spec, "supervised training from scratch (end to end", spec.epochs)


def _end_to_end(
    encoder: Encoder, task: Task, training: Training, spec: LabelledSpec, words: str, epochs: int
) -> Prediction:
    if encoder.build is None:
        raise UsageError(
            "this method trains the network, and an exported file cannot be trained",
            saw=words.split(" (")[0],
            fix="evaluate the run it came from, or take linear, knn or head",
        )
    platform = choose_platform(precision=training.recipe().train.precision)
    if platform.device.type == "cpu":
        keep_freed_memory()
    trunk = encoder.build()
    width = int(trunk.feature_dim)  # type: ignore[arg-type]  # to torch, a Tensor or Module
    layer = _seeded(lambda: nn.Linear(width, task.classes), training.seed + task.fold)
    model = nn.Sequential(trunk, layer).to(platform.device)
    model = model.to(memory_format=platform.memory_format)  # type: ignore[call-overload]  # not in torch's hints
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(platform.precision, torch.float32)
    inputs = _views(encoder, task.train, task.rows, spec, training.seed, platform, dtype)
    curve_store, curve_rows = task.queries[0]
    curve_rows = _even(curve_rows, max(CURVE_IMAGES, len(task.rows) // 2))
    lesson = _lesson(
        task,
        spec,
        inputs,
        lambda: _probabilities(model, encoder, curve_store, curve_rows, platform),
        len(curve_rows),
        platform,
        training.seed,
        _labels(curve_store)[curve_rows],
    )
    total, budget = epochs * lesson.steps_per_epoch, ""
    if not epochs:
        total = _steps_within(model, lesson, training.seconds)
        budget = f", the {training.seconds / 60:.1f} min of the pretraining"
    history, steps = _fit(model, lesson, total, training, f"{encoder.init} {words.split(' (')[0]}{_of_fold(task)}")
    found = [_probabilities(model, encoder, store, rows, platform, training) for store, rows in task.queries]
    probabilities = torch.cat(found).cpu().numpy()
    notes = () if len(curve_rows) == task.scored else (f"curves over {len(curve_rows):,} of the scored images",)
    trained = f"{_training_words(spec, lesson, total)}{budget}, {_augmentation_words(spec)}, {platform.precision}"
    return Prediction(
        protocol=f"{words}; {trained}; last epoch)",
        classes=probabilities.argmax(1),
        probabilities=probabilities,
        notes=notes,
        history=tuple(history),
        steps=tuple(steps),
    )


def _lesson(
    task: Task,
    spec: LabelledSpec,
    inputs: Inputs,
    curve: Probabilities,
    scored: int,
    platform: Platform,
    seed: int,
    truth: NDArray[np.int64] | None = None,
) -> _Lesson:
    if truth is None:
        store, rows = task.queries[0]
        truth = _labels(store)[rows][:scored]
    labels, right = (torch.from_numpy(np.array(values)).to(platform.device) for values in (task.labels, truth))
    return _Lesson(spec, labels, inputs, curve, right, platform, seed, task.fold)


def _fit(
    model: nn.Module, lesson: _Lesson, total: int, training: Training, what: str
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Trains for `total` steps; one row per epoch and one per step. The weights at the end are those that count.

    Raises:
        CheckFailed: the loss is no longer finite.
    """
    spec, per_epoch = lesson.spec, lesson.steps_per_epoch
    optimizer = build_optimizer(model, spec.optimizer_spec(), spec.lr)
    scaler = torch.amp.GradScaler(lesson.platform.device.type, enabled=lesson.platform.precision == "fp16")
    history: list[dict[str, float]] = []
    steps: list[dict[str, float]] = []
    losses: list[Tensor] = []
    rates: list[float] = []
    with training.bar(what, total * lesson.batch) as advance:
        for step in range(total):
            rates.append(spec.lr * lr_factor(spec.schedule_spec(), step, total, per_epoch))
            losses.append(_step(model, optimizer, scaler, lesson, step, rates[-1]))
            if advance is not None:
                advance(lesson.batch)
            done = step + 1
            if done % per_epoch and done != total:
                continue
            values = torch.stack(losses).tolist()  # the device is read once an epoch
            if not all(math.isfinite(value) for value in values):
                raise CheckFailed(
                    "training with labels diverged: the loss is no longer finite",
                    saw=f"{what}, epoch {math.ceil(done / per_epoch)}",
                    fix="a lower rate, such as --set evaluation.finetune.lr=1e-4",
                )
            first = done - len(values)
            steps += [
                {"fold": lesson.fold, "step": first + i + 1, "epoch": (first + i + 1) / per_epoch}
                | {"train_loss": value, "lr": rate}
                for i, (value, rate) in enumerate(zip(values, rates, strict=True))
            ]
            test_loss, accuracy = _score(lesson)
            history.append(
                {"fold": lesson.fold, "epoch": math.ceil(done / per_epoch), "step": done}
                | {"train_loss": sum(values) / len(values), "test_loss": test_loss, "test_accuracy": accuracy}
                | {"lr": rates[-1]}
            )
            losses, rates = [], []
    return history, steps


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    lesson: _Lesson,
    step: int,
    lr: float,
) -> Tensor:
    """One update; the loss, fp32 scalar on the device."""
    epoch, offset = divmod(step, lesson.steps_per_epoch)
    # Drawn anew at every step, but a function of (seed, epoch) alone; 50,000 indices take half a millisecond.
    order = epoch_order(len(lesson.labels), lesson.seed, epoch).numpy()
    indices = order[offset * lesson.batch : (offset + 1) * lesson.batch]
    for group in optimizer.param_groups:
        group["lr"] = lr
    model.train()
    with lesson.platform.autocast():
        logits = model(lesson.inputs(indices, epoch))
    loss = F.cross_entropy(logits.float(), lesson.labels[torch.from_numpy(indices)])
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def _score(lesson: _Lesson) -> tuple[float, float]:
    """Mean cross-entropy (nats) and accuracy of the images of the curve."""
    found = lesson.curve()
    picked = found.gather(1, lesson.truth[:, None]).clamp(min=torch.finfo(torch.float32).tiny)
    right = (found.argmax(1) == lesson.truth).float().mean()
    return float(-picked.log().mean()), float(right)


def _steps_within(model: nn.Module, lesson: _Lesson, seconds: float) -> int:
    """How many steps fit into `seconds`, timed on a copy of the model."""
    if seconds <= 0:
        raise UsageError(
            "how long is the supervised training to take? This encoder does not say how long its pretraining took",
            saw="evaluation.supervised.epochs = 0",
            fix="--set evaluation.supervised.epochs=10",
        )
    trial, times = copy.deepcopy(model), []
    optimizer = build_optimizer(trial, lesson.spec.optimizer_spec(), lesson.spec.lr)
    scaler = torch.amp.GradScaler(lesson.platform.device.type, enabled=lesson.platform.precision == "fp16")
    for step in range(CALIBRATION_STEPS + 1):
        start = time.perf_counter()
        _step(trial, optimizer, scaler, lesson, step % lesson.steps_per_epoch, lesson.spec.lr)
        lesson.platform.synchronize()
        times.append(time.perf_counter() - start)
    return max(1, int(seconds / float(np.median(times[1:]))))


def _views(
    encoder: Encoder,
    store: ImageStore,
    rows: NDArray[np.int64],
    spec: LabelledSpec,
    seed: int,
    platform: Platform,
    dtype: torch.dtype,
) -> Inputs:
    """`(indices, epoch)` → one augmented view `[B, 3, S, S]` of each of these images of `rows`."""
    ratio = (1.0, 1.0) if spec.crop_scale == (1.0, 1.0) else (3 / 4, 4 / 3)
    plain = AugmentSpec(store.image_size, spec.crop_scale, ratio, spec.flip, jitter=0.0, gray=0.0, blur=0.0)
    drawn = replace(plain, mean=encoder.mean, std=encoder.std)

    def views(indices: NDArray[np.int64], epoch: int) -> Tensor:
        at = rows[indices]
        ids = torch.from_numpy(np.ascontiguousarray(at)).to(platform.device)
        images = torch.from_numpy(np.ascontiguousarray(store.images[at])).to(platform.device)
        params = draw_params(drawn, seed=seed, epoch=epoch, sample_ids=ids, views=1)
        batch = augment(images, params, drawn, dtype=dtype)
        return batch.contiguous(memory_format=platform.memory_format)

    return views


@torch.no_grad()
def _probabilities(
    model: nn.Module,
    encoder: Encoder,
    store: ImageStore,
    rows: NDArray[np.int64],
    platform: Platform,
    training: Training | None = None,
) -> Tensor:
    """float32 `[n, C]` for whole images, in eval mode."""
    model.eval()
    shift, spread = (torch.tensor(v, device=platform.device).view(1, 3, 1, 1) for v in (encoder.mean, encoder.std))
    found = []
    bar = training.bar(f"scoring {store.split}", len(rows)) if training else nullcontext(None)
    with bar as advance:
        for start in range(0, len(rows), CHUNK):
            pixels = np.ascontiguousarray(store.images[rows[start : start + CHUNK]])
            images = torch.from_numpy(pixels).to(platform.device).permute(0, 3, 1, 2).float() / 255
            with platform.autocast():
                logits = model(((images - shift) / spread).contiguous(memory_format=platform.memory_format))
            found.append(logits.float().softmax(1))
            if advance is not None:
                advance(len(pixels))
    return torch.cat(found)


@contextmanager
def _unchanged(trunk: nn.Module | None) -> Iterator[None]:
    """A frozen encoder must leave the context with the weights and buffers that it came with."""
    before = encoder_hash(trunk) if trunk is not None else ""
    yield
    if trunk is not None:
        require_unchanged(before, encoder_hash(trunk))


def _seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A module with weights from `seed`; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _labels(store: ImageStore) -> NDArray[np.int64]:
    assert store.labels is not None
    return store.labels


def _even(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of the rows, chosen at random once and for all."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(0).permutation(rows)[:most])


def _of_fold(task: Task) -> str:
    return f", fold {task.fold}" if task.fold else ""


def _training_words(spec: LabelledSpec, lesson: _Lesson, total: int) -> str:
    epochs = f"{total / lesson.steps_per_epoch:.3g} epochs of batch {lesson.batch}"
    return f"{spec.optimizer}, lr {spec.lr:g}, {spec.schedule}, {epochs}"


def _augmentation_words(spec: LabelledSpec) -> str:
    low, high = spec.crop_scale
    words: Sequence[str] = [f"crops of {low:g} to {high:g} of the area"] if (low, high) != (1.0, 1.0) else []
    return " and ".join([*words, *(["flips"] if spec.flip else [])]) or "whole images"
