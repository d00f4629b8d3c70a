"""The tables of a recipe as frozen dataclasses: what each hyper-parameter is called, and what it means.

Ranges are the business of `ranges`; the values themselves stand in the recipe files alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DataSpec:
    """What is trained on: `source` is a name or a path; `size` in pixels, 0 keeps the images as they are."""

    source: str
    size: int


@dataclass(frozen=True)
class ModelSpec:
    """The encoder: torchvision's ResNet with a `small` (3×3, no max-pool) or `imagenet` (7×7, max-pool) stem."""

    arch: str
    stem: str


@dataclass(frozen=True)
class HeadSpec:
    """The projection head: hidden widths, output width D, where batch norm stands, dropout before each linear layer but
    the first."""

    hidden: tuple[int, ...]
    dimension: int
    batch_norm: str
    dropout: float


@dataclass(frozen=True)
class LossSpec:
    """NT-Xent."""

    temperature: float


@dataclass(frozen=True)
class OptimizerSpec:
    """`lr` is per 256 images where `lr_per_256` holds."""

    name: str
    lr: float
    lr_per_256: bool
    momentum: float
    nesterov: bool
    weight_decay: float
    form: str
    trust_coefficient: float


@dataclass(frozen=True)
class ScheduleSpec:
    """cosine | step | exponential | constant, after a linear warm-up; lengths in epochs.

    `gamma` is the factor of `step` (every `step_epochs`) and of the first phase of `exponential` (each epoch until
    `phase_epochs`); `gamma_late` that of its second phase. `lr_min` is where cosine ends, as a fraction of the peak.
    """

    name: str
    warmup_epochs: float
    lr_min: float
    step_epochs: float
    gamma: float
    phase_epochs: float
    gamma_late: float


@dataclass(frozen=True)
class TrainSpec:
    """The loop.

    `views` V ≥ 2 per image; `resolution` lists (fraction of the run, crop output size in pixels, 0 for the images' own
    size), empty for their own size throughout; `checkpoint_epochs` keeps a numbered checkpoint, 0 the last one alone.
    `batch_size` counts the images of all processes in a step; `micro_batch` those that are in memory at once on each
    (0: all of its share), with the gradient of the whole batch.
    """

    epochs: int
    batch_size: int
    micro_batch: int
    views: int
    resolution: tuple[tuple[float, int], ...]
    precision: str
    seed: int
    checkpoint_epochs: int


@dataclass(frozen=True)
class MonitorSpec:
    """What is watched: a log row every `log_steps`; online kNN over `knn_images` every `knn_epochs` (0 = never)."""

    log_steps: int
    knn_epochs: int
    knn_images: int


@dataclass(frozen=True)
class LabelledSpec:
    """Training with labels, for an evaluation.

    `crop_scale` is the share of an image's area that a random crop covers, [1, 1] for whole images; `flip` the
    probability of mirroring. The other names mean what they mean for pretraining; lengths in epochs.
    """

    epochs: int
    batch_size: int
    crop_scale: tuple[float, float]
    flip: float
    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    schedule: str
    gamma: float
    phase_epochs: float
    gamma_late: float

    def optimizer_spec(self) -> OptimizerSpec:
        """As pretraining knows it; LARS has no place here."""
        return OptimizerSpec(self.optimizer, self.lr, False, self.momentum, False, self.weight_decay, "paper", 0.001)

    def schedule_spec(self) -> ScheduleSpec:
        """As pretraining knows it, without warm-up."""
        return ScheduleSpec(self.schedule, 0.0, 0.0, 1.0, self.gamma, self.phase_epochs, self.gamma_late)


@dataclass(frozen=True)
class EvaluationSpec:
    """The evaluation methods that train.

    `head`: a linear layer on the frozen encoder; `finetune`: encoder and layer end to end; `supervised`: the same
    network from scratch, for as long as the pretraining took where its `epochs` are 0.
    """

    head: LabelledSpec
    finetune: LabelledSpec
    supervised: LabelledSpec


@dataclass(frozen=True)
class ShortRun:
    """What a run of at most `epochs` epochs does otherwise: `settings` as for `--set`, `{"train.views": 4}`."""

    epochs: int
    settings: dict[str, Any]
