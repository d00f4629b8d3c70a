"""The range of every value of a recipe, a function for each of its tables; all raise UsageError with key and range."""

from __future__ import annotations

import math

from . import specs
from .errors import UsageError, cut, shown

ARCHITECTURES = ("resnet18", "resnet34", "resnet50")
SCHEDULES = ("cosine", "step", "exponential", "constant")
MOST = 10**9  # of steps, images or epochs, where nothing else sets a bound


def data(d: specs.DataSpec) -> None:
    """[data]"""
    _require(d.size == 0 or 8 <= d.size <= 1024, "data.size", d.size, "0 (as it is) or 8 to 1024 pixels")


def model(m: specs.ModelSpec) -> None:
    """[model]"""
    _require(m.arch in ARCHITECTURES, "model.arch", m.arch, "one of " + ", ".join(ARCHITECTURES))
    _require(m.stem in ("small", "imagenet"), "model.stem", m.stem, "small or imagenet")


def head(h: specs.HeadSpec) -> None:
    """[head]"""
    _require(1 <= len(h.hidden) <= 2, "head.hidden", list(h.hidden), "one or two widths (a head of 2 or 3 layers)")
    _require(all(1 <= n <= 65536 for n in h.hidden), "head.hidden", list(h.hidden), "widths of 1 to 65,536")
    _require(1 <= h.dimension <= 65536, "head.dimension", h.dimension, "1 to 65,536")
    _require(h.batch_norm in ("none", "hidden", "all"), "head.batch_norm", h.batch_norm, "none, hidden or all")
    _require(0 <= h.dropout < 1, "head.dropout", h.dropout, "at least 0 and below 1")


def loss(s: specs.LossSpec) -> None:
    """[loss]"""
    _require(0 < s.temperature <= 100, "loss.temperature", s.temperature, "above 0 and at most 100")


def optimizer(o: specs.OptimizerSpec) -> None:
    """[optimizer]"""
    _require(o.name in ("lars", "sgd", "adam", "adamw"), "optimizer.name", o.name, "lars, sgd, adam or adamw")
    _require(math.isfinite(o.lr) and o.lr > 0, "optimizer.lr", o.lr, "a positive number")
    _require(0 <= o.momentum < 1, "optimizer.momentum", o.momentum, "at least 0 and below 1")
    _require(_finite(o.weight_decay), "optimizer.weight_decay", o.weight_decay, "0 or more")
    _require(o.form in ("paper", "google"), "optimizer.form", o.form, "paper or google")
    _require(_finite(o.trust_coefficient), "optimizer.trust_coefficient", o.trust_coefficient, "0 or more")


def schedule(s: specs.ScheduleSpec) -> None:
    """[schedule]"""
    _require(s.name in SCHEDULES, "schedule.name", s.name, ", ".join(SCHEDULES))
    _require(_finite(s.warmup_epochs), "schedule.warmup_epochs", s.warmup_epochs, "0 or more epochs")
    _require(0 <= s.lr_min <= 1, "schedule.lr_min", s.lr_min, "a fraction of the peak, 0 to 1")
    _require(s.name != "step" or _finite(s.step_epochs, 1e-9), "schedule.step_epochs", s.step_epochs, "above 0")
    for key in ("gamma", "gamma_late"):
        _require(0 < getattr(s, key) <= 1, f"schedule.{key}", getattr(s, key), "above 0 and at most 1")
    _require(_finite(s.phase_epochs), "schedule.phase_epochs", s.phase_epochs, "0 or more epochs")


def train(t: specs.TrainSpec) -> None:
    """[train]"""
    _require(1 <= t.epochs <= 100_000, "train.epochs", t.epochs, "1 to 100,000")
    _require(2 <= t.batch_size <= 1_000_000, "train.batch_size", t.batch_size, "at least 2 (contrast needs two images)")
    divides = t.micro_batch >= 0 and (t.micro_batch == 0 or t.batch_size % t.micro_batch == 0)
    allowed = f"0 (the whole batch at once) or a divisor of train.batch_size = {t.batch_size}"
    _require(divides, "train.micro_batch", t.micro_batch, allowed)
    _require(2 <= t.views <= 64, "train.views", t.views, "2 to 64")
    _require(
        t.precision in ("auto", "bf16", "fp16", "fp32"), "train.precision", t.precision, "auto, bf16, fp16 or fp32"
    )
    _require(0 <= t.seed < 2**63, "train.seed", t.seed, "0 to 2^63 − 1")
    _require(0 <= t.checkpoint_epochs <= MOST, "train.checkpoint_epochs", t.checkpoint_epochs, "0 or more")
    ends = [end for end, _ in t.resolution]
    good = ends == sorted(set(ends)) and all(0 < e <= 1 for e in ends) and (not ends or ends[-1] == 1)
    good = good and all(size == 0 or 8 <= size <= 1024 for _, size in t.resolution)
    allowed = "rising fractions ending at 1, sizes 0 (the images' own) or 8 to 1024"
    _require(good, "train.resolution", [list(p) for p in t.resolution], allowed)


def monitor(w: specs.MonitorSpec) -> None:
    """[monitor]"""
    _require(1 <= w.log_steps <= MOST, "monitor.log_steps", w.log_steps, "1 or more")
    _require(0 <= w.knn_epochs <= MOST, "monitor.knn_epochs", w.knn_epochs, "0 (never) or more")
    _require(20 <= w.knn_images <= MOST, "monitor.knn_images", w.knn_images, "20 or more")


def evaluation(e: specs.EvaluationSpec) -> None:
    """[evaluation.head], [evaluation.finetune], [evaluation.supervised]"""
    _labelled(e.head, "evaluation.head", least=1)
    _labelled(e.finetune, "evaluation.finetune", least=1)
    _labelled(e.supervised, "evaluation.supervised", least=0)


def short_run(s: specs.ShortRun) -> None:
    """One of `short_runs`; whether its settings can be meant shows when they are applied."""
    _require(1 <= s.epochs <= MOST, "short_runs.epochs", s.epochs, "1 or more")
    for key in s.settings:
        _require("." in key, "short_runs.settings", key, 'keys within a table, such as "train.views"')


def _labelled(s: specs.LabelledSpec, at: str, least: int) -> None:
    _require(least <= s.epochs <= 100_000, f"{at}.epochs", s.epochs, f"{least} to 100,000")
    _require(1 <= s.batch_size <= 1_000_000, f"{at}.batch_size", s.batch_size, "1 or more")
    low, high = s.crop_scale
    _require(0 < low <= high <= 1, f"{at}.crop_scale", list(s.crop_scale), "two shares, 0 < low ≤ high ≤ 1")
    _require(0 <= s.flip <= 1, f"{at}.flip", s.flip, "a probability")
    _require(s.optimizer in ("sgd", "adam", "adamw"), f"{at}.optimizer", s.optimizer, "sgd, adam or adamw")
    _require(math.isfinite(s.lr) and s.lr > 0, f"{at}.lr", s.lr, "a positive number")
    _require(0 <= s.momentum < 1, f"{at}.momentum", s.momentum, "at least 0 and below 1")
    _require(_finite(s.weight_decay), f"{at}.weight_decay", s.weight_decay, "0 or more")
    _require(s.schedule in SCHEDULES, f"{at}.schedule", s.schedule, ", ".join(SCHEDULES))
    for key in ("gamma", "gamma_late"):
        _require(0 < getattr(s, key) <= 1, f"{at}.{key}", getattr(s, key), "above 0 and at most 1")
    _require(_finite(s.phase_epochs), f"{at}.phase_epochs", s.phase_epochs, "0 or more epochs")


def _require(holds: bool, key: str, value: object, allowed: str) -> None:
    if not holds:
        raise UsageError(
            "a recipe value is out of range", saw=f"{key} = {_said(value)}", fix=f"{key} must be {allowed}"
        )


def _said(value: object) -> str:
    return cut(value) if isinstance(value, str) else shown(value)


def _finite(value: float, low: float = 0.0) -> bool:
    return math.isfinite(value) and value >= low
