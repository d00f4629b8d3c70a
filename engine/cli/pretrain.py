"""`simclr-engine pretrain`."""

from __future__ import annotations

import time
from typing import Any

import click

from ..terminal import tell
from .options import Number, parse_overrides, print_json, selected, selection_options, stem_options


@click.command(name="pretrain")
@click.option("--recipe", metavar="NAME|PATH", help="A named recipe or a TOML file.  [default: cifar10]")
@click.option(
    "--data", metavar="NAME|PATH", help="Images: a data set, a folder or an archive.  [default: those of the recipe]"
)
@selection_options
@click.option(
    "--allow-skipped",
    is_flag=True,
    help="Train although more than a few per cent of the files cannot be used; they are said.",
)
@click.option("--out", metavar="DIR", help="Run directory.  [default: runs/RECIPE]")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a recipe value, such as loss.temperature=0.2; may be repeated.",
)
@click.option(
    "--fused/--no-fused",
    default=None,
    help="--fused says which kernel is used for each part, and why; --no-fused uses plain PyTorch everywhere.  "
    "[default: fused kernels where the device supports them]",
)
@click.option(
    "--augment",
    type=click.Choice(["auto", "triton", "native", "dali", "torch"]),
    default="auto",
    show_default=True,
    help="Augmentation backend; auto uses the fastest one that works on the device.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "bf16", "fp16", "fp32"]),
    help="Precision of convolutions and matrix products.  [default: the recipe's]",
)
@click.option(
    "--compile/--no-compile",
    default=None,
    help="Compile the encoder with torch.compile.  [default: if it saves time over the whole run]",
)
@click.option("--device", default="auto", show_default=True, metavar="auto|cuda|mps|cpu", help="Device.")
@click.option(
    "--epochs",
    type=int,
    metavar="N",
    help="Number of epochs; with --resume, more make the run longer.  [default: the recipe's]",
)
@click.option(
    "--batch-size",
    type=int,
    metavar="N",
    help="Images per step, over all processes. Each image gives train.views views.  [default: the recipe's]",
)
@click.option(
    "--limit", type=int, metavar="N", help="Train on at most N images, balanced over classes.  [default: all]"
)
@click.option(
    "--max-minutes",
    type=Number(min=0, min_open=True),
    metavar="MINUTES",
    help="Shorten the run so that it ends within this time.  [default: no limit]",
)
@click.option(
    "--max-pflop",
    type=Number(min=0, min_open=True),
    metavar="PFLOP",
    help="Shorten the run to so much compute: 10^15 operations of the network and the optimizer.  [default: no limit]",
)
@click.option("--seed", type=int, metavar="N", help="Seed of all random numbers of the run.  [default: the recipe's]")
@click.option(
    "--gpus",
    type=int,
    metavar="N",
    help="Train on N CUDA devices of this machine, with one process per device.  [default: one process]",
)
@click.option(
    "--batch-norm",
    type=click.Choice(["sync", "local"]),
    help="With several processes: batch norm statistics over all of them, or over each one's share of the batch.  "
    "[default: sync on CUDA, local on the CPU]",
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value=True,
    default=None,
    type=click.UNPROCESSED,  # True if no directory follows
    metavar="[RUN]",
    help="Continue the run in RUN (or in --out) from its newest good checkpoint. Recipe, images and limit are those "
    "of the run.",
)
@click.option(
    "--weights",
    metavar="RUN|PATH",
    help="Start from this encoder: a run, or weights of torchvision, timm, lightly and others. Architecture, stem and "
    "normalisation are those of the weights.  [default: random weights]",
)
@stem_options
@click.option(
    "--overwrite", is_flag=True, help="Delete the run that is in --out and start a new one. Only a run is ever deleted."
)
@click.option(
    "--deterministic",
    is_flag=True,
    help="Use deterministic algorithms: repeated runs on the same device are bitwise equal. Slower on CUDA.",
)
@click.option(
    "--dry-run", is_flag=True, help="Time a few steps and show the plan with its time and memory. Nothing is trained."
)
@click.option(
    "--log",
    multiple=True,
    type=click.Choice(["wandb", "mlflow"]),
    help="Also log to wandb or mlflow, which are extras to install; may be repeated.  [default: TensorBoard alone]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout instead of text.")
def command(
    recipe: str | None,
    data: str | None,
    labels: str | None,
    files: str | None,
    allow_skipped: bool,
    out: str | None,
    settings: tuple[str, ...],
    fused: bool | None,
    augment: str,
    precision: str | None,
    compile: bool | None,
    device: str,
    epochs: int | None,
    batch_size: int | None,
    limit: int | None,
    max_minutes: float | None,
    max_pflop: float | None,
    seed: int | None,
    gpus: int | None,
    batch_norm: str | None,
    resume: str | bool | None,
    weights: str | None,
    stem_padding: int | None,
    stem_pool: str | None,
    overwrite: bool,
    deterministic: bool,
    dry_run: bool,
    log: tuple[str, ...],
    as_json: bool,
) -> None:
    """Pretrain an encoder without labels.

    Writes a run directory: encoder.safetensors, checkpoints, metrics.jsonl, and the recipe with every value.

    \b
    simclr-engine pretrain --data cifar10
    simclr-engine pretrain --recipe cifar10-fast --data photos/ --max-minutes 30
    simclr-engine pretrain --gpus 4 --batch-size 2048
    torchrun --nproc-per-node 2 -m simclr_engine pretrain --data digits      (also without CUDA)
    simclr-engine pretrain --resume runs/cifar10
    simclr-engine pretrain --resume runs/cifar10 --epochs 400
    simclr-engine pretrain --weights resnet18.pth --data photos/
    """
    began = time.perf_counter()  # before PyTorch is imported: the user waits for that too
    from ..errors import UsageError
    from ..recipe import DEFAULT, Recipe

    overrides: dict[str, object] = dict(parse_overrides(settings))
    direct = {"train.epochs": epochs, "train.batch_size": batch_size, "train.precision": precision, "train.seed": seed}
    overrides |= {key: value for key, value in direct.items() if value is not None}
    for other, given in (("--overwrite", overwrite), ("--dry-run", dry_run)):
        if resume is not None and given:
            raise UsageError(f"--resume and {other} cannot be used together", fix="give one of them")
    if isinstance(resume, str):
        out = _directory(resume, out)
    # A resumed run uses its own recipe.
    resolved = Recipe.load(recipe or DEFAULT, overrides=overrides) if recipe or resume is None else None

    from dataclasses import replace

    from ..device import deterministic_algorithms, pick_device
    from ..distributed import PeerFailed, is_main, start_world
    from ..planning import RunOptions, choose_augment, describe, prepare
    from ..pretraining import Interrupted, open_data, pretrain, start_of
    from ..resuming import trained_on

    images = selected(data, labels, files)
    if gpus is not None and _launched(gpus, device):
        return

    how: dict[str, Any] = {
        "device": device,
        "fused": fused,
        "augment": augment,
        "compile": compile,
        "batch_norm": batch_norm,
        "max_minutes": max_minutes,
        "max_pflop": max_pflop,
        "limit": limit,
        "deterministic": deterministic,
        "overrides": overrides,
        "allow_skipped": allow_skipped,
        "weights": weights,
        "stem_padding": stem_padding,
        "stem_pool": stem_pool,
    }
    if dry_run and resolved is not None:
        options = RunOptions(**how)
        with deterministic_algorithms(deterministic), start_world(device) as world:
            options = replace(options, device=world.device, quiet=as_json or not world.main)
            choose_augment(options, pick_device(world.device))
            start = start_of(world, resolved, options)
            recipe_of_start = resolved if start is None else start.recipe
            store, _ = world.leaders_first(lambda: open_data(recipe_of_start, images, options))
            trained = trained_on(recipe_of_start, world.same(store.name), store.image_size)
            trainer, estimate = prepare(trained, store, options, world, measure=True)
        if not world.main:
            return
        if as_json and estimate is not None:
            print_json(
                {
                    "dry_run": True,
                    "recipe": trainer.recipe.to_tree(),
                    "steps": trainer.plan.total_steps,
                    "epochs": trainer.plan.total_steps / trainer.plan.steps_per_epoch,
                    "estimated_seconds": estimate.seconds,
                    "peak_bytes_so_far": estimate.peak_bytes,
                }
            )
        else:
            tell(*describe(trainer, estimate), *(start.lines() if start is not None else ()))
        return

    try:
        run = pretrain(
            resolved,
            images,
            out,
            resume=resume is not None,
            overwrite=overwrite,
            log=log,
            began=began,
            **how,
        )
    except (PeerFailed, Interrupted) as error:
        if is_main():
            raise
        raise SystemExit(error.exit_code) from error  # rank 0, or the rank that failed, prints the error
    if not is_main():
        return

    logged = [row for row in run.metrics if row.get("event") == "train"]
    logged = [row for row in logged if row.keys() >= {"loss", "chance"}]
    environment, last = run.environment, logged[-1] if logged else {"loss": None, "chance": None}  # none of a lost log
    if as_json:
        images = environment["plan"]["total_steps"] * run.recipe.train.batch_size
        print_json(
            {
                "out": str(run.directory),
                "epochs": environment["plan"]["epochs"],
                "steps": environment["plan"]["total_steps"],
                "seconds": environment["seconds"],
                "images_per_second": images / environment["seconds"],
                "loss": last["loss"],
                "chance": last["chance"],
                "backends": environment["backends"],
            }
        )
    else:
        from ..command_line import command_here

        minutes = environment["seconds"] / 60
        reached = f"loss {last['loss']:.3f} (chance {last['chance']:.3f})" if logged else "done"
        tell(f"{reached} after {minutes:.1f} min → {run.directory}")
        tell(f"next: {command_here('evaluate', run.directory)}")
        tell(f"      {command_here('export', 'encoder.onnx', '--run', run.directory)}")


def _directory(resume: str, out: str | None) -> str:
    """The directory that `--resume RUN` names; `--out` may name the same one."""
    from pathlib import Path

    from ..errors import UsageError

    if not resume:
        raise UsageError("--resume names no run", saw="an empty name", fix="give --resume RUN, or --out RUN --resume")
    if out is not None and Path(out).absolute() != Path(resume).absolute():
        raise UsageError(
            "--resume and --out name different directories",
            saw=f"--resume {resume}, --out {out}",
            fix="give one of them: a run is continued in its own directory",
        )
    return resume


def _launched(gpus: int, device: str) -> bool:
    """Trains in `gpus` processes and returns True when they are done; returns False where this is one of them."""
    import sys

    from ..command_line import launch_command, launcher_number
    from ..distributed import check_gpus, is_launched, launch
    from ..errors import UsageError

    if device not in ("auto", "cuda"):
        raise UsageError(
            "--gpus counts CUDA devices",
            saw=f"--device {device}",
            fix=f"on a CPU: {launch_command(gpus)}",
        )
    if is_launched():
        here = launcher_number("LOCAL_WORLD_SIZE", 1)
        if here != gpus:
            raise UsageError(
                "--gpus differs from the number of processes that the launcher started",
                saw=f"--gpus {gpus}, {here} processes on this machine",
                fix="leave out --gpus under torchrun",
            )
        return False
    check_gpus(gpus)
    if gpus == 1:
        return False
    if code := launch(gpus, sys.argv[1:]):
        raise SystemExit(code)
    return True
