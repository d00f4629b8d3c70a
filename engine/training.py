"""The training step and its parts: images → parameters → views → projections → loss → update.

An epoch never waits for the device: sums stay on it and are read every `log_steps` steps. Every random choice is a pure
function of (seed, epoch, sample id, view), so a run can be stopped and resumed at any step.

A step can be split over processes and over time without changing the gradient:

- Over the ranks of a `World`: each rank has its share of the batch and sees the projections of all ranks. Its loss is
  that of the whole batch. Its gradient is the part that flows through its own rows, times the number of ranks, so that
  the mean over the ranks is the gradient of the whole batch (`kernels.ntxent.loss`).
- Over micro-batches, in two passes (Gao, Zhang, Han, Callan: "Scaling deep contrastive learning batch size under memory
  limited setup", 2021, arXiv 2101.06983). The first pass computes the projections of the whole batch and the gradient
  of the loss with respect to each. The second propagates it back through the network, one micro-batch at a time.

Only batch norm differs: it computes its statistics over the images that pass through the network together, which are
the share of a rank (the shares of all ranks if it is synchronised) or a micro-batch. The same micro-batch gives the
same run on any number of ranks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from simclr_engine.kernels import AugmentSpec, augment, contrastive_metrics, draw_params, nt_xent

from .batch_norm import synchronise_batch_norm
from .boundary import is_out_of_memory
from .data.loader import Batch, Loader, Prefetched, Resident, stays_in_files
from .data.store import ImageStore
from .device import Platform
from .distributed import World, check_shares
from .errors import CheckFailed, DataError, UsageError, cut
from .model import SimCLR, own_encoder
from .optim import build_optimizer
from .plan import Plan


@dataclass(frozen=True)
class Own:
    """A caller's own parts in place of the recipe's; None for ours.

    Attributes:
        encoder: a module from normalised images `[B, 3, S, S]` to features `[B, D]`. It is copied.
        view: a function from images uint8 `[B, 3, S, S]` to one random view of each, `[B, 3, S', S']`, uint8 or
            floating in 0..1, before the normalisation; called once a view. Torch's generators are seeded for each call,
            so a function that draws from them alone gives the same views again.
    """

    encoder: nn.Module | None = None
    view: Callable[[Tensor], Tensor] | None = None

    def names(self) -> dict[str, str]:
        """Part → name of its class or function, for the record of the run."""
        named = {} if self.encoder is None else {"encoder": type(self.encoder).__qualname__}
        if self.view is not None:
            named["view"] = getattr(self.view, "__qualname__", type(self.view).__qualname__)
        return named

    def notes(self) -> list[str]:
        """What is not promised with them."""
        said = []
        if self.encoder is not None:
            said.append("your own encoder takes no kernel of ours, and commands cannot rebuild it: pass it again")
        if self.view is not None:
            said.append(
                "your own views take no fused kernel, depend on the batch size and the number of processes, and are "
                "drawn again after a resume only where the function draws from torch's generators alone"
            )
        return said


@dataclass(frozen=True)
class Backends:
    """The backend of each kernel, by its name in the dispatch table."""

    augment: str
    nt_xent: str


class Trainer:
    """Model, optimizer and training step. A checkpoint holds exactly its `state_dict`."""

    def __init__(
        self,
        plan: Plan,
        platform: Platform,
        store: ImageStore,
        backends: Backends,
        world: World = World(),  # noqa: B008  # frozen
        batch_norm: str | None = None,
        own: Own = Own(),  # frozen
    ) -> None:
        """batch_norm: sync | local, over several ranks; None synchronises it on CUDA."""
        recipe = plan.recipe
        self.own = own
        torch.manual_seed(recipe.train.seed)
        self.recipe, self.plan, self.platform, self.store = recipe, plan, platform, store
        self.backends, self.world = backends, world
        share = check_shares(recipe.train, world.size)
        self.micro_batch = recipe.train.micro_batch or share
        self.two_passes = self.micro_batch < share
        encoder = None if own.encoder is None else own_encoder(own.encoder, store.image_size)
        model: Any = SimCLR(recipe.model, recipe.head, encoder).to(platform.device)
        if platform.precision == "fp64":
            model = model.double()
        wanted = batch_norm or ("sync" if platform.device.type == "cuda" else "local")
        self.synchronised = world.size > 1 and wanted == "sync"
        if self.synchronised:
            model = synchronise_batch_norm(model)
        self.model: SimCLR = model.to(memory_format=platform.memory_format)
        # The seed already gives every rank the same weights, unless machines draw random numbers differently.
        world.broadcast_([*self.model.parameters(), *self.model.buffers()])
        self.forward: Callable[[Tensor], Tensor] = (
            torch.compile(self.model, dynamic=False) if platform.compile else self.model
        )
        self._key: Tensor | None = None
        self._rate: Tensor | None = None
        if platform.device.type == "cuda":
            self._keep_numbers_on(platform.device)
        self._start()
        self.began = time.perf_counter()  # of the current step
        self.spec: AugmentSpec = replace(recipe.augment, image_size=store.image_size)
        self.streamed = stays_in_files(store, platform.device)
        # The loader refers to the function, not to the trainer, so that the memory of a dropped trainer is freed.
        self.sample_ids = SampleOrder(plan, world, torch.device("cpu") if self.streamed else platform.device)
        loader = Prefetched if self.streamed else Resident
        self._loader: Loader = loader(store, platform.device, self.sample_ids, plan.total_steps)

    def start_from(self, encoder: nn.Module | None) -> None:
        """Gives the encoder the weights of rank 0's `encoder`, which is None on all other ranks."""
        if encoder is not None:
            self.model.encoder.load_state_dict(encoder.state_dict())
        self.world.broadcast_([*self.model.encoder.parameters(), *self.model.encoder.buffers()])

    def _keep_numbers_on(self, device: torch.device) -> None:
        """Lets kernels and optimizer read seed, epoch and learning rate on the device, where each step writes them.

        A step that is captured in a CUDA graph would replay numbers of the host for ever.
        """
        self._key = torch.tensor([self.recipe.train.seed, 0], device=device)
        self._rate = torch.zeros((), device=device)

    def _start(self) -> None:
        """What changes with the steps, other than the model, as it is before the first one."""
        self.optimizer = build_optimizer(self.model, self.recipe.optimizer, self.plan.peak_lr)
        self.scaler = torch.amp.GradScaler(self.platform.device.type, enabled=self.platform.precision == "fp16")
        self.step = 0  # steps done
        self.finite = torch.ones((), dtype=torch.bool, device=self.platform.device)  # all gradients so far

    @contextmanager
    def undone(self) -> Iterator[None]:
        """A context whose steps are undone at its end, bitwise. It may be used before the first step only."""
        weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        cpu, own = torch.get_rng_state(), self._generator_state()
        try:
            yield
        finally:
            self.model.load_state_dict(weights)
            self.optimizer.zero_grad(set_to_none=True)
            torch.set_rng_state(cpu)
            self._set_generator_state(own)
            self._start()

    def relay(self, plan: Plan) -> None:
        """Takes a plan that differs from its own in length only."""
        self.plan, self._loader.steps = plan, plan.total_steps

    def views(self, ids: Tensor, epoch: int, size: int) -> Tensor:
        """Views `[V·B, 3, size, size]` of the images `ids`; row v·B + i is view v of sample i."""
        return self._views(Batch(ids.to(self.platform.device), self._loader.images(ids)), epoch, size)

    def _views(self, batch: Batch, epoch: int, size: int) -> Tensor:
        train = self.recipe.train
        if self.own.view is not None:
            return self._own_views(self.own.view, batch, epoch, size)
        seed: int | Tensor = train.seed
        now: int | Tensor = epoch
        if self._key is not None:
            self._key[1].fill_(epoch)
            seed, now = self._key.unbind()
        params = draw_params(self.spec, seed=seed, epoch=now, sample_ids=batch.ids, views=train.views)
        # The dtype that autocast would cast to: the first convolution sees the same numbers, with half the traffic.
        dtype = self.platform.dtype if self.platform.precision != "fp64" else torch.float32
        views = augment(batch.images, params, self.spec, size=size, dtype=dtype, backend=self.backends.augment)
        return views.to(self.platform.dtype).contiguous(memory_format=self.platform.memory_format)

    def _own_views(self, view: Callable[[Tensor], Tensor], batch: Batch, epoch: int, size: int) -> Tensor:
        """`_views` by the caller's function, normalised here; another size than `size` is resized to it."""
        images, device = batch.images.permute(0, 3, 1, 2), self.platform.device
        seed, made = _mixed(self.recipe.train.seed, epoch, int(batch.ids[0])), []
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for i in range(self.recipe.train.views):
                torch.manual_seed(_mixed(seed, i, 0))
                made.append(_checked_views(view(images), images))
        views = torch.cat(made)
        if views.shape[-2:] != (size, size):
            views = functional.interpolate(views, (size, size), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (self.spec.mean, self.spec.std))
        views = (views - mean) / std
        return views.to(self.platform.dtype).contiguous(memory_format=self.platform.memory_format)

    def train_step(self, step: int, size: int | None = None) -> tuple[Tensor, Tensor]:
        """One update; returns the loss (fp32 scalar) and this process's projections `[V·b, D]`, both on the device."""
        loss, z = self.gradients(step, size)
        lr: float | Tensor = self.plan.lr(step)
        if self._rate is not None:
            lr = self._rate.fill_(lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if not self.scaler.is_enabled():  # the scaler skips such a step
            self._note_gradients()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step = step + 1
        return loss, z

    def run_part(self, images: int, size: int) -> None:
        """A forward and backward pass of so many images, for timing and measuring; nothing is updated but batch norm.

        It takes the plain model, since a compiled one is compiled for a whole batch.
        """
        self.optimizer.zero_grad(set_to_none=True)
        views = self.views(self.sample_ids(self.step)[:images], 0, size)
        with self.platform.autocast():
            z = self.model(views)
        z.float().square().sum().backward()
        self.optimizer.zero_grad(set_to_none=True)

    def gradients(self, step: int, size: int | None = None) -> tuple[Tensor, Tensor]:
        """Computes the gradient of the whole batch into `.grad`, the same on every rank (times the scale, under fp16).

        Returns:
            Loss of the whole batch and projections `[V·b, D]` of this process, as of `train_step`.
        """
        batch, epoch = self._loader.batch(step), step // self.plan.steps_per_epoch
        size = size or self.plan.view_size(step)
        if self.world.size > 1 and self.recipe.head.dropout:
            # A seed for each step and rank, so that no generator has to be saved and the number of ranks may change.
            torch.manual_seed(_mixed(self.recipe.train.seed, step, self.world.rank))
        if self.two_passes:
            loss, z = self._in_two_passes(batch, epoch, size)
        else:
            z = self._project(batch, epoch, size)
            loss = self._loss(z)
            self.scaler.scale(loss).backward()
        self.world.average_([p.grad for p in self.model.parameters() if p.grad is not None])
        return loss.detach(), z.detach()

    def _project(self, batch: Batch, epoch: int, size: int) -> Tensor:
        """Projections `[V·b, D]` of the views of a batch, in fp32 or fp64."""
        views = self._views(batch, epoch, size)
        with self.platform.autocast():
            z = self.forward(views)
        return z if z.dtype == torch.float64 else z.float()

    def _loss(self, z: Tensor) -> Tensor:
        """NT-Xent of the projections of all ranks."""
        train, tau = self.recipe.train, self.recipe.loss.temperature
        return nt_xent(z, views=train.views, temperature=tau, backend=self.backends.nt_xent, group=self.world.group)

    def _in_two_passes(self, batch: Batch, epoch: int, size: int) -> tuple[Tensor, Tensor]:
        """`gradients` with one micro-batch in the network at a time, in two passes.

        Both passes have the same views (drawn by sample id), the same dropout masks (the generator is reset, and ends
        in the state after one pass) and the same batch norm statistics (those of the micro-batch). Running statistics
        are updated in the second pass only, once per micro-batch.
        """
        views, parts = self.recipe.train.views, batch.split(self.micro_batch)
        buffers = list(self.model.buffers())
        before = [b.clone() for b in buffers]
        states, projections = [], []
        for part in parts:
            states.append(self._generator_state())
            # With the graph, which is freed immediately: without it convolutions use other kernels, whose rounding
            # differs from that of the second pass, and a compiled model is compiled twice.
            projections.append(self._project(part, epoch, size).detach())
        if buffers:
            torch._foreach_copy_(buffers, before)
        z = _by_view(projections, views).requires_grad_()
        loss = self._loss(z)
        self.scaler.scale(loss).backward()
        assert z.grad is not None
        for part, state, gradient in zip(parts, states, _by_part(z.grad, views, len(parts)), strict=True):
            self._set_generator_state(state)
            self._project(part, epoch, size).backward(gradient)
        return loss, z

    def _generator_state(self) -> Tensor:
        """State of the generator that dropout draws from; a CPU tensor for every kind of device."""
        device = self.platform.device
        if device.type == "cuda":
            return torch.cuda.get_rng_state(device)
        return torch.mps.get_rng_state() if device.type == "mps" else torch.get_rng_state()

    def _set_generator_state(self, state: Tensor) -> None:
        device = self.platform.device
        if device.type == "cuda":
            torch.cuda.set_rng_state(state, device)
        elif device.type == "mps":
            torch.mps.set_rng_state(state)
        else:
            torch.set_rng_state(state)

    def remaining(self) -> Iterator[int]:
        """The remaining steps (0-based) of the plan, for `train_step`."""
        self.model.train()
        while self.step < self.plan.total_steps:
            self.began = time.perf_counter()
            yield self.step

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run needs to continue as if it had never been stopped.

        Raises:
            CheckFailed: a weight, its state in the optimizer or a gradient of the previous steps is not finite. Such a
                state is never saved over a good one.
        """
        held = [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        tensors = [*self.model.state_dict().values(), *held]
        flags = [torch.isfinite(t).all().to(self.finite.device) for t in tensors if t.is_floating_point()]
        if not bool(torch.stack(flags).all()):
            raise loss_not_finite(self.step, math.nan)
        if not bool(self.finite):
            raise gradient_not_finite(self.step)
        state: dict[str, Any] = {
            "step": self.step,
            "total_steps": self.plan.total_steps,
            "relaid": [list(change) for change in self.plan.relaid],
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "recipe": self.recipe.to_toml(),
            "data": self.store.fingerprint,
        }
        for group in state["optimizer"]["param_groups"]:
            group["lr"] = self.plan.lr(max(0, self.step - 1))  # a number, whatever the device
        if self.platform.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.platform.device)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a saved state.

        Raises:
            DataError: the checkpoint belongs to other data, another network or another optimizer.
        """
        if state["data"] != self.store.fingerprint:
            raise DataError(
                "the data is not what the run was started on",
                saw=f"fingerprint {self.store.fingerprint[:12]}, checkpoint {state['data'][:12]}",
                fix="resume with the same --data and --limit",
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            torch.set_rng_state(state["rng"])
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            if is_out_of_memory(error):
                raise
            raise DataError(
                "the checkpoint is of another network or optimizer",
                saw=cut(" ".join(str(error).split())),
                fix="use the version that wrote it, or start again with --overwrite",
            ) from error
        if "cuda_rng" in state and self.platform.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.platform.device)
        self.step = int(state["step"])

    def _note_gradients(self) -> None:
        """Records on the device whether a gradient's norm was not finite, which may not show in the loss.

        LARS and Adam would then divide by an infinite number, and a weight would never change again.
        """
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients))  # the largest value takes twelve times as long on a CPU
        self.finite = self.finite & norms.isfinite().all()


class Meter:
    """Means over the steps since the last row, summed on the device and read once in `log_steps` steps.

    Images per second do not count time that the caller spends between two steps, for example to save or evaluate.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._loss_sum, self._count, self._busy = torch.zeros((), device=trainer.platform.device), 0, 0.0

    def row(self, loss: Tensor, z: Tensor) -> dict[str, float] | None:
        """Called after each step with the result of `train_step`; returns a row, or None between rows.

        Raises:
            CheckFailed: the loss or a gradient is not finite.
        """
        trainer, plan = self._trainer, self._trainer.plan
        self._loss_sum, self._count = self._loss_sum + loss, self._count + 1
        done = trainer.step
        ends = done % plan.steps_per_epoch == 0 or done == plan.total_steps
        values = self._read(z) if ends or done % trainer.recipe.monitor.log_steps == 0 else None
        self._busy += time.perf_counter() - trainer.began
        if values is None:
            return None
        images = self._count * trainer.recipe.train.batch_size / max(self._busy, 1e-9)  # a coarse clock may stand still
        self._loss_sum, self._count, self._busy = torch.zeros_like(self._loss_sum), 0, 0.0
        return {
            "epoch": done / plan.steps_per_epoch,
            **values,
            "lr": plan.lr(done - 1),
            "view_size": plan.view_size(done - 1),
            "images_per_second": images,
            "views_per_second": images * trainer.recipe.train.views,
        }

    def _read(self, z: Tensor) -> dict[str, float]:
        """The numbers of a row that are on the device. Only here does the host wait for it."""
        trainer, views = self._trainer, self._trainer.recipe.train.views
        everyone = trainer.world.gather_views(z, views)
        p_pos, top1 = contrastive_metrics(everyone, views=views, temperature=trainer.recipe.loss.temperature)
        numbers = [self._loss_sum / self._count, p_pos.float(), top1.float(), trainer.finite.float()]
        mean, p, t, finite = torch.stack(numbers).tolist()
        if not math.isfinite(mean):
            raise loss_not_finite(trainer.step, mean)
        if not finite:
            raise gradient_not_finite(trainer.step)
        return {"loss": mean, "chance": trainer.plan.chance_loss(), "p_pos": p, "top1": t}


class SampleOrder:
    """The images that this process trains on in a step: int64 `[B]` on `device`, or this rank's share of them.

    Each epoch has a new permutation. A step sees the same images on any number of ranks, and none of them twice.
    """

    def __init__(self, plan: Plan, world: World, device: torch.device) -> None:
        self._plan, self._world, self._device = plan, world, device
        self._order: tuple[int, Tensor] | None = None

    def __call__(self, step: int) -> Tensor:
        epoch, offset = divmod(step, self._plan.steps_per_epoch)
        train = self._plan.recipe.train
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, epoch_order(self._plan.samples, train.seed, epoch).to(self._device)
        return self._world.share(self._order[1][offset * train.batch_size : (offset + 1) * train.batch_size])


def epoch_order(samples: int, seed: int, epoch: int) -> Tensor:
    """int64 `[samples]`: the order of an epoch, a function of (seed, epoch) alone."""
    generator = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + epoch) % 2**63)
    return torch.randperm(samples, generator=generator)


def _checked_views(views: Tensor, images: Tensor) -> Tensor:
    """What a caller's view function gave, as float32 in 0..1."""
    if not isinstance(views, Tensor) or views.ndim != 4 or views.shape[:2] != images.shape[:2]:
        saw = list(views.shape) if isinstance(views, Tensor) else type(views).__name__
        fix = f"return one view of each image, [{len(images)}, 3, S, S]"
        raise UsageError("the view function must give views [B, 3, S, S]", saw=saw, fix=fix)
    if views.dtype != torch.uint8 and not views.is_floating_point():
        raise UsageError("views must be uint8 or floating", saw=views.dtype, fix="return pixels in 0..255 or in 0..1")
    return views.to(images.device).float() / (255 if views.dtype == torch.uint8 else 1)


def _by_view(parts: list[Tensor], views: int) -> Tensor:
    """Rows `[V·m, D]` of each micro-batch, view by view → `[V·B, D]` of the whole batch, view by view."""
    return torch.stack([part.view(views, len(part) // views, -1) for part in parts], 1).flatten(0, 2)


def _by_part(rows: Tensor, views: int, parts: int) -> list[Tensor]:
    """The reverse of `_by_view`."""
    return [part.flatten(0, 1) for part in rows.view(views, parts, -1, rows.shape[1]).unbind(1)]


def _mixed(seed: int, step: int, rank: int) -> int:
    """A seed for each step and rank, far from the seeds of neighbouring ones."""
    return ((seed * 0x9E3779B97F4A7C15 + step) * 0xD1B54A32D192ED03 + rank * 0x8CB92BA72F3D8DD7) % 2**63


def loss_not_finite(step: int, value: float) -> CheckFailed:
    """The error of a diverged run."""
    return CheckFailed(
        "training diverged: loss or weights are no longer finite",
        saw=f"loss {value} at step {step}",
        fix="the last good checkpoint is kept; see metrics.jsonl, lower optimizer.lr, or use --precision fp32",
    )


def gradient_not_finite(step: int) -> CheckFailed:
    """The error of a run whose gradients overflowed, though the loss did not show it."""
    return CheckFailed(
        "training diverged: a gradient is no longer finite",
        saw=f"at step {step} or since the row before it",
        fix="the last good checkpoint is kept; see metrics.jsonl, lower optimizer.lr, or use --precision fp32",
    )
