"""What is read from the files of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fixtures.saved_results import saved
from fixtures.synthetic_run import fold_scores, write_run
from simclr_engine.report.comparison import open_runs
from simclr_engine.report.content import commands, images_per_second, in_time, load_content, seconds_of_training


def test_time_is_the_sum_over_the_steps_also_where_throughput_changes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")  # 512 images
    other = write_run(tmp_path / "b")
    rows = [(1.0, 512.0), (2.0, 256.0), (2.5, 128.0)]
    log = [{"event": "train", "step": 1, "epoch": e, "images_per_second": speed} for e, speed in rows]
    (run.directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    first, second = open_runs([run.directory, other.directory])
    assert seconds_of_training(first.content) == [1.0, 3.0, 5.0]
    assert images_per_second(first.content) == pytest.approx(2.5 * 512 / 5.0)
    assert images_per_second(second.content) is None
    assert in_time(first.content, [0.5, 2.0, 2.25], 60.0) == pytest.approx([0.5 / 60, 3.0 / 60, 4.0 / 60])


def test_the_commands_have_the_options_of_each_kind_of_result(tmp_path: Path) -> None:
    run = write_run(tmp_path / "my runs; rm", data="my photos/")
    for init in ("pretrained", "scratch"):
        saved(run, init=init)
        saved(run, method="finetune", init=init, label_fraction=0.3, folds=fold_scores(5, 0.5))
    saved(run, method="knn", limit=500)
    saved(run, method="supervised", init="scratch")
    where = f"'{run.directory}'"
    recipe, again = f"'{run.directory}/recipe.toml'", f"'{run.directory}-again'"
    assert commands(load_content(run)) == [
        f"simclr-engine pretrain --recipe {recipe} --data 'my photos/' --out {again}",
        f"simclr-engine evaluate {where} --data 'my photos/' --method linear --method supervised",
        f"simclr-engine evaluate {where} --data 'my photos/' --method knn --limit 500 --init pretrained",
        f"simclr-engine evaluate {where} --data 'my photos/' --method finetune --label-fraction 0.3 --folds 5",
        f"simclr-engine report {where}",
    ]
