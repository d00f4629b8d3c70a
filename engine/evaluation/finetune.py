"""The methods that train with torch: a linear layer on the frozen encoder, or the whole network end to end."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property

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
from .encoders import Encoder
from .features import encoder_hash, normalised_batches
from .methods import Prediction, Training
from .splits import Split, require_unchanged

CHUNK = 250  # images per pass without gradient
# The curve of an epoch is scored on at most this many images, or half as many as the epoch trains on, so that it costs
# a fraction of the training; the reported figure is always that of all images.
CURVE_IMAGES = 2_000
CALIBRATION_STEPS = 4

Inputs = Callable[[NDArray[np.int64], int], Tensor]
Rows = list[dict[str, float]]


@dataclass(frozen=True, eq=False)
class _Lesson:
    """What `_fit` needs beside the model.

    Attributes:
        inputs: `(indices, epoch)` → a batch; the indices count the images of the split that may be learnt from.
        curve: gives the probabilities of the images that each epoch is scored on.
        truth: int64, the labels of those images.
    """

    split: Split
    training: Training
    spec: LabelledSpec
    platform: Platform
    inputs: Inputs
    curve: Callable[[], Tensor]
    truth: NDArray[np.int64]

    @cached_property
    def labels(self) -> Tensor:
        """int64, of the images that may be learnt from, on the device."""
        return torch.from_numpy(self.split.labels).to(self.platform.device)

    @property
    def batch(self) -> int:
        """Images per step; never more than there are."""
        return min(self.spec.batch_size, len(self.labels))

    @property
    def steps_per_epoch(self) -> int:
        """What remains of an epoch is left out, as in pretraining."""
        return len(self.labels) // self.batch

    def score(self) -> tuple[float, float]:
        """Mean cross-entropy (nats) and accuracy of the images of the curve."""
        probabilities, truth = self.curve(), torch.from_numpy(self.truth).to(self.platform.device)
        picked = probabilities.gather(1, truth[:, None]).clamp(min=torch.finfo(torch.float32).tiny)
        right = (probabilities.argmax(1) == truth).float().mean()
        return float(-picked.log().mean()), float(right)

    def words(self, total: int) -> str:
        """How `total` steps train, for the protocol."""
        spec, epochs = self.spec, f"{total / self.steps_per_epoch:.3g} epochs of batch {self.batch}"
        return f"{spec.optimizer}, lr {spec.lr:g}, {spec.schedule}, {epochs}"


class _Updates:
    """The optimizer of a lesson and its steps on a model."""

    def __init__(self, model: nn.Module, lesson: _Lesson) -> None:
        self.model, self.lesson = model, lesson
        self.optimizer = build_optimizer(model, lesson.spec.optimizer_spec(), lesson.spec.lr)
        platform = lesson.platform
        self.scaler = torch.amp.GradScaler(platform.device.type, enabled=platform.precision == "fp16")

    def step(self, step: int, lr: float) -> Tensor:
        """One update; the loss, fp32 scalar on the device."""
        lesson = self.lesson
        epoch, offset = divmod(step, lesson.steps_per_epoch)
        # Drawn anew at every step, but a function of (seed, epoch) alone; 50,000 indices take half a millisecond.
        order = epoch_order(len(lesson.labels), lesson.training.seed, epoch).numpy()
        indices = order[offset * lesson.batch : (offset + 1) * lesson.batch]
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        with lesson.platform.autocast():
            logits = self.model(lesson.inputs(indices, epoch))
        loss = F.cross_entropy(logits.float(), lesson.labels[torch.from_numpy(indices)])
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def predict_head(encoder: Encoder, split: Split, training: Training) -> Prediction:
    """A linear layer on the standardised features of the frozen encoder, on features computed once, or on those of
    augmented images where the recipe asks for crops or flips."""
    spec, platform = training.recipe().evaluation.head, choose_platform(training.device, precision="fp32")
    of_train, of_test = encoder.features(split.train), encoder.features(split.test)
    features = of_train[split.rows]
    standard = _standardiser(features, platform.device)
    queries = standard(torch.from_numpy(split.of_queries(of_train, of_test)))
    layer = _linear(features.shape[1], split, training).to(platform.device)

    @torch.no_grad()
    def probabilities(of: Tensor) -> Tensor:
        return layer(of).softmax(1)

    augmented = encoder.trainable and (spec.crop_scale != (1.0, 1.0) or spec.flip > 0)
    trunk = encoder.build().to(platform.device).eval() if augmented else None
    if trunk is None:
        how, table = "features computed once", standard(torch.from_numpy(features))

        def inputs(indices: NDArray[np.int64], epoch: int) -> Tensor:
            return table[torch.from_numpy(indices)]
    else:
        how, views = _augmentation_words(spec), _views(encoder, split, spec, training, platform)

        @torch.no_grad()
        def inputs(indices: NDArray[np.int64], epoch: int) -> Tensor:
            return standard(trunk(views(indices, epoch)).float())

    scored, (store, rows) = queries[: split.scored], split.queries[0]
    truth = _labels(store)[rows][: split.scored]
    lesson = _Lesson(split, training, spec, platform, inputs, lambda: probabilities(scored), truth)
    total = spec.epochs * lesson.steps_per_epoch
    with _unchanged(trunk):
        history, steps = _fit(layer, lesson, total, f"{encoder.init} head{_of_fold(split)}")
    of_queries = probabilities(queries).cpu().numpy()
    return Prediction(
        protocol=f"linear head (torch, frozen encoder, standardised, {how}; {lesson.words(total)})",
        classes=of_queries.argmax(1),
        probabilities=of_queries,
        history=tuple(history),
        steps=tuple(steps),
    )


def predict_finetune(encoder: Encoder, split: Split, training: Training) -> Prediction:
    """The encoder and a linear layer, trained end to end."""
    return _end_to_end(encoder, split, training, training.recipe().evaluation.finetune, "fine-tuning")


def predict_supervised(encoder: Encoder, split: Split, training: Training) -> Prediction:
    """The same network from scratch, for the epochs of the recipe, or for as long as the pretraining took."""
    return _end_to_end(
        encoder, split, training, training.recipe().evaluation.supervised, "supervised training from scratch"
    )


def _end_to_end(encoder: Encoder, split: Split, training: Training, spec: LabelledSpec, name: str) -> Prediction:
    """Encoder and linear layer trained for the epochs of `spec`, or, where they are 0, for the pretraining's time."""
    trunk = encoder.build()
    platform = choose_platform(training.device, precision=training.recipe().train.precision)
    if platform.device.type == "cpu":
        keep_freed_memory()
    layer = _linear(int(trunk.feature_dim), split, training)  # type: ignore[arg-type]  # to torch, a Tensor or Module
    model = nn.Sequential(trunk, layer).to(platform.device)
    model = model.to(memory_format=platform.memory_format)  # type: ignore[call-overload]  # not in torch's hints
    store, rows = split.queries[0]
    rows = _even(rows, max(CURVE_IMAGES, len(split.rows) // 2))
    lesson = _Lesson(
        split,
        training,
        spec,
        platform,
        inputs=_views(encoder, split, spec, training, platform),
        curve=lambda: _probabilities(model, encoder, store, rows, platform),
        truth=_labels(store)[rows],
    )
    total, budget = spec.epochs * lesson.steps_per_epoch, ""
    if not spec.epochs:
        total = _steps_within(model, lesson, training.seconds)
        budget = f", the {training.seconds / 60:.1f} min of the pretraining"
    history, steps = _fit(model, lesson, total, f"{encoder.init} {name}{_of_fold(split)}")
    of_queries = [_probabilities(model, encoder, *query, platform, training) for query in split.queries]
    probabilities = torch.cat(of_queries).cpu().numpy()
    trained = f"{lesson.words(total)}{budget}, {_augmentation_words(spec)}, {platform.precision}"
    return Prediction(
        protocol=f"{name} (end to end; {trained}; last epoch)",
        classes=probabilities.argmax(1),
        probabilities=probabilities,
        notes=() if len(rows) == split.scored else (f"curves over {len(rows):,} of the scored images",),
        history=tuple(history),
        steps=tuple(steps),
    )


def _fit(model: nn.Module, lesson: _Lesson, total: int, what: str) -> tuple[Rows, Rows]:
    """Trains for `total` steps; one row per epoch and one per step. The weights at the end are those that count.

    Raises:
        CheckFailed: the loss is no longer finite.
    """
    spec, per_epoch, updates = lesson.spec, lesson.steps_per_epoch, _Updates(model, lesson)
    history: Rows = []
    steps: Rows = []
    losses: list[Tensor] = []
    rates: list[float] = []
    with lesson.training.bar(what, total * lesson.batch) as advance:
        for step in range(total):
            rates.append(spec.lr * lr_factor(spec.schedule_spec(), step, total, per_epoch))
            losses.append(updates.step(step, rates[-1]))
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
                {"fold": lesson.split.fold, "step": first + i + 1, "epoch": (first + i + 1) / per_epoch}
                | {"train_loss": value, "lr": rate}
                for i, (value, rate) in enumerate(zip(values, rates, strict=True))
            ]
            test_loss, accuracy = lesson.score()
            history.append(
                {"fold": lesson.split.fold, "epoch": math.ceil(done / per_epoch), "step": done}
                | {"train_loss": sum(values) / len(values), "test_loss": test_loss, "test_accuracy": accuracy}
                | {"lr": rates[-1]}
            )
            losses, rates = [], []
    return history, steps


def _steps_within(model: nn.Module, lesson: _Lesson, seconds: float) -> int:
    """How many steps fit into `seconds`, timed on a copy of the model."""
    if seconds <= 0:
        raise UsageError(
            "how long is the supervised training to take? This encoder does not say how long its pretraining took",
            saw="evaluation.supervised.epochs = 0",
            fix="--set evaluation.supervised.epochs=10",
        )
    updates, times = _Updates(copy.deepcopy(model), lesson), []
    for step in range(CALIBRATION_STEPS + 1):
        start = time.perf_counter()
        updates.step(step % lesson.steps_per_epoch, lesson.spec.lr)
        lesson.platform.synchronize()
        times.append(time.perf_counter() - start)
    return max(1, int(seconds / float(np.median(times[1:]))))


def _views(encoder: Encoder, split: Split, spec: LabelledSpec, training: Training, platform: Platform) -> Inputs:
    """`(indices, epoch)` → one augmented view `[B, 3, S, S]` of each of these images of the split's rows."""
    store, rows = split.train, split.rows
    ratio = (1.0, 1.0) if spec.crop_scale == (1.0, 1.0) else (3 / 4, 4 / 3)
    plain = AugmentSpec(store.image_size, spec.crop_scale, ratio, spec.flip, jitter=0.0, gray=0.0, blur=0.0)
    drawn = replace(plain, mean=encoder.mean, std=encoder.std)

    def views(indices: NDArray[np.int64], epoch: int) -> Tensor:
        at = rows[indices]
        ids = torch.from_numpy(np.ascontiguousarray(at)).to(platform.device)
        images = torch.from_numpy(np.ascontiguousarray(store.images[at])).to(platform.device)
        params = draw_params(drawn, seed=training.seed, epoch=epoch, sample_ids=ids, views=1)
        batch = augment(images, params, drawn, dtype=platform.dtype)
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
    """float32 `[n, C]` for whole images, in eval mode; `training` shows a bar."""
    model.eval()
    found = []
    bar = training.bar(f"scoring {store.split}", len(rows)) if training else nullcontext(None)
    with bar as advance:
        for batch in normalised_batches(store.images, encoder.mean, encoder.std, CHUNK, platform.device, rows):
            with platform.autocast():
                logits = model(batch.contiguous(memory_format=platform.memory_format))
            found.append(logits.float().softmax(1))
            if advance is not None:
                advance(len(batch))
    return torch.cat(found)


def _standardiser(features: NDArray[np.float32], device: torch.device) -> Callable[[Tensor], Tensor]:
    """Features → the same on `device`, less the mean of `features` and over their standard deviation."""
    mean = torch.from_numpy(features.mean(0, dtype=np.float64).astype(np.float32)).to(device)
    scale = torch.from_numpy(features.std(0, dtype=np.float64).astype(np.float32)).to(device)
    scale = torch.where(scale > 1e-6 * mean.abs().clamp(min=1e-12), scale, torch.ones_like(scale))

    def standard(rows: Tensor) -> Tensor:
        return (rows.to(device) - mean) / scale

    return standard


@contextmanager
def _unchanged(trunk: nn.Module | None) -> Iterator[None]:
    """A frozen encoder must leave the context with the weights and buffers that it came with."""
    before = encoder_hash(trunk) if trunk is not None else ""
    yield
    if trunk is not None:
        require_unchanged(before, encoder_hash(trunk))


def _linear(width: int, split: Split, training: Training) -> nn.Linear:
    """A linear layer with weights from the seed; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed + split.fold)
        return nn.Linear(width, split.classes)


def _labels(store: ImageStore) -> NDArray[np.int64]:
    assert store.labels is not None
    return store.labels


def _even(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of the rows, chosen at random once and for all."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(0).permutation(rows)[:most])


def _of_fold(split: Split) -> str:
    return f", fold {split.fold}" if split.fold else ""


def _augmentation_words(spec: LabelledSpec) -> str:
    low, high = spec.crop_scale
    words: Sequence[str] = [f"crops of {low:g} to {high:g} of the area"] if (low, high) != (1.0, 1.0) else []
    return " and ".join([*words, *(["flips"] if spec.flip else [])]) or "whole images"
