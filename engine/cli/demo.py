"""`simclr-engine demo`: pretraining, evaluation and export on images that come with the package."""

from __future__ import annotations

import time

import click

from ..errors import DataError
from ..terminal import say, tell
from .options import Number


@click.command(name="demo")
@click.option(
    "--out",
    default="runs/demo",
    show_default=True,
    metavar="DIR",
    help="Run directory to write. An earlier demo there is replaced.",
)
@click.option("--overwrite", is_flag=True, help="Replace any run in --out.")
@click.option("--file", default="encoder.onnx", show_default=True, metavar="PATH", help="ONNX file to write.")
@click.option(
    "--max-minutes",
    type=Number(min=0, min_open=True),
    default=1.25,
    show_default=True,
    metavar="MINUTES",
    help="Time limit of the pretraining in minutes.",
)
def command(out: str, overwrite: bool, file: str, max_minutes: float) -> None:
    """Pretrain on built-in letters without labels, compare with a random encoder, export, and evaluate the file.

    Writes a run directory with report.html, and an ONNX file. Takes about two minutes on two CPU cores.
    """
    from simclr_engine.export import export_onnx

    from ..evaluation import evaluate, evaluate_all
    from ..pretraining import pretrain
    from ..recipe import Recipe
    from ..report import write_report

    began = time.perf_counter()
    say("1/4  pretraining on drawn letters, without their labels")
    run = pretrain(Recipe.load("demo"), out=out, overwrite=overwrite or _holds_a_demo(out), max_minutes=max_minutes)
    say("2/4  evaluating the encoder and one with random weights")
    results = evaluate_all(run, methods=["linear", "knn"], inits=["pretrained", "scratch"])
    say("3/4  exporting an ONNX file and checking it against PyTorch")
    exported = export_onnx(run, file)
    from_file = evaluate(exported.file, data=run.environment["data"]["name"], method="linear")
    say("4/4  writing the report")
    page = write_report(run)

    accuracy = {(r.method, r.init): 100 * r.accuracy for r in results}
    tell("")
    for method, words in (("linear", "linear probe"), ("knn", "kNN, k = 10")):
        trained, scratch = accuracy[method, "pretrained"], accuracy[method, "scratch"]
        tell(f"{words:<13} trained {trained:5.1f} %   random {scratch:5.1f} %   {trained - scratch:+.1f} points")
    difference = 100 * from_file.accuracy - accuracy["linear", "pretrained"]
    tell(f"{'ONNX file':<13} linear  {100 * from_file.accuracy:5.1f} %   {difference:+.2f} points from PyTorch")
    size = f"{exported.bytes / 2**20:.1f} MiB"
    tell("", f"report        {page}", f"encoder       {exported.file} ({size})")
    tell(f"took          {(time.perf_counter() - began) / 60:.1f} minutes")


def _holds_a_demo(directory: str) -> bool:
    from ..run import Run

    try:
        return Run.open(directory).recipe.name == "demo"
    except DataError:
        return False
