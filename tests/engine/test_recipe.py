"""Recipes: complete, typed, refused when wrong, equal after a round trip."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simclr_engine.errors import UsageError
from simclr_engine.recipe import Recipe, recipe_names
from simclr_engine.toml_tree import read_value
from simclr_engine.typed_tree import known_keys

SYSTEMS = {"lars-800", "few-labels-50", "quick-10", "scratch-100", "two-protocols"}


def test_all_published_systems_and_the_bases_are_there() -> None:
    assert set(recipe_names()) >= SYSTEMS | {"demo", "cifar10", "cifar10-sgd"}


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_survives_the_round_trip_through_toml(name: str) -> None:
    recipe = Recipe.load(name)
    again = Recipe.from_toml(recipe.to_toml())
    assert again == recipe
    assert again.hash() == recipe.hash()
    assert recipe.name == name


def test_published_figures_and_settings_of_the_systems_are_the_authors() -> None:
    a, b, c, d, e = (Recipe.load(n) for n in ("lars-800", "few-labels-50", "quick-10", "scratch-100", "two-protocols"))
    assert (a.train.epochs, a.train.batch_size, a.optimizer.name, a.loss.temperature) == (800, 512, "lars", 0.5)
    assert a.learning_rate() == pytest.approx(0.3 * 512 / 256)
    assert (a.head.hidden, a.head.dimension, a.head.batch_norm) == ((2048,), 128, "all")
    assert [r["accuracy"] for r in a.published["results"]] == [0.7965, 0.7953, 0.7768]
    assert {row["name"]: row["accuracy"] for row in a.published["per_class"]}["automobile"] == 0.918
    assert (b.train.epochs, b.schedule.name, b.schedule.step_epochs, b.schedule.gamma) == (50, "step", 10.0, 0.6)
    assert (b.optimizer.name, b.optimizer.lr, b.optimizer.weight_decay) == ("adam", 1e-3, 1e-6)
    assert (c.train.epochs, c.loss.temperature, c.head.hidden, c.head.dimension, c.head.dropout) == (
        10,
        0.07,
        (256,),
        64,
        0.1,
    )
    assert (c.augment.blur, c.augment.blur_kernel, c.augment.mean[0]) == (1.0, 3, 0.485)
    assert (d.train.epochs, d.train.batch_size, d.optimizer.name, d.loss.temperature) == (100, 128, "adamw", 0.2)
    assert (d.augment.crop_scale, d.augment.blur, d.augment.gray) == ((0.3, 1.0), 0.5, 0.0)
    assert [r["accuracy"] for r in e.published["results"]] == [0.4089, 0.5887, 0.8918, 0.8908]


def test_a_short_run_takes_the_settings_of_every_limit_that_it_is_within() -> None:
    recipe = Recipe.load("cifar10-sgd", overrides={"train.batch_size": 128})
    long, hundred, minutes = recipe.for_epochs(100.5), recipe.for_epochs(100), recipe.for_epochs(2.5)
    assert long.learning_rate() == pytest.approx(0.03 * 128 / 256)
    assert hundred.learning_rate() == minutes.learning_rate() == pytest.approx(0.06 * 128 / 256)
    assert (long.train.views, hundred.train.views, minutes.train.views) == (2, 2, 4)
    assert (hundred.loss.temperature, minutes.loss.temperature) == (0.5, 0.2)
    assert minutes.train.resolution == ((0.8, 16), (1.0, 0))
    assert minutes.differences(recipe).keys() == {
        "optimizer.lr", "loss.temperature", "train.views", "train.resolution"
    }  # fmt: skip


def test_the_narrowest_limit_has_the_last_word_in_any_order_of_the_list() -> None:
    wide, narrow = ({"epochs": e, "settings": {"optimizer.lr": lr}} for e, lr in ((100, 0.5), (10, 0.25)))
    for listed in ([wide, narrow], [narrow, wide]):
        recipe = Recipe.load("cifar10", overrides={"short_runs": listed})
        assert [recipe.for_epochs(e).optimizer.lr for e in (5, 50, 500)] == [0.25, 0.5, 4.0]


def test_what_a_short_run_takes_is_final_and_one_of_the_variants() -> None:
    recipe = Recipe.load("cifar10-sgd")
    for epochs in (1000, 100, 99.9, 10, 0.1):
        adapted = recipe.for_epochs(epochs)
        assert adapted.short_runs == () and adapted == adapted.for_epochs(1)
        assert adapted in recipe.variants()
        assert Recipe.from_toml(adapted.to_toml()) == adapted
    assert Recipe.from_toml(recipe.to_toml()) == recipe


def test_a_value_that_was_set_holds_for_short_runs_too(tmp_path: Path) -> None:
    by_flag = Recipe.load("cifar10-sgd", overrides={"train.views": 2, "optimizer.lr": 0.01}).for_epochs(1)
    assert (by_flag.train.views, by_flag.optimizer.lr, by_flag.loss.temperature) == (2, 0.01, 0.2)
    (tmp_path / "mine.toml").write_text('base = "cifar10-sgd"\n[loss]\ntemperature = 0.4\n')
    by_file = Recipe.load(tmp_path / "mine.toml").for_epochs(1)
    assert (by_file.loss.temperature, by_file.train.views) == (0.4, 4)


@pytest.mark.parametrize(
    ("short_runs", "message"),
    [
        ([{"epochs": 10, "settings": {"train.view": 4}}], "did you mean `train.views`"),
        ([{"epochs": 10, "settings": {"train.views": 1}}], "train.views must be 2 to 64"),
        ([{"epochs": 0, "settings": {}}], "short_runs.epochs must be 1 or more"),
        ([{"epochs": 10, "settings": {"name": "x"}}], "keys within a table"),
        ([{"epoch": 10, "settings": {}}], "did you mean `epochs`"),
        ({"epochs": 10}, "short_runs"),
    ],
)
def test_settings_for_short_runs_are_checked_like_any_other(short_runs: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe.load("cifar10", overrides={"short_runs": short_runs})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("loss.temperature", 0),
        ("loss.temperature", "-0.5"),
        ("loss.temperature", math.inf),
        ("optimizer.lr", math.nan),
        ("optimizer.lr", 0.0),
        ("train.epochs", 0),
        ("train.batch_size", 1),
        ("train.views", 1),
        ("train.resolution", [[0.5, 16], [0.4, 32]]),
        ("train.resolution", [[0.5, 16]]),
        ("augment.hue", 0.9),
        ("model.arch", "resnet19"),
        ("head.hidden", []),
        ("head.hidden", [0]),
        ("schedule.name", "cosin"),
        ("data.size", 4),
        ("train.epochs", 2.5),
        ("train.epochs", True),
        ("head.hidden", "wide"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(UsageError) as caught:
        Recipe.load("cifar10", overrides={key: value})
    assert key.split(".")[-1] in str(caught.value)
    assert caught.value.exit_code == 2


LABELLED = {
    "epochs": -1,
    "batch_size": 0,
    "crop_scale": [0.5, 0.2],
    "flip": 1.5,
    "optimizer": "lars",
    "lr": 0.0,
    "momentum": 1.0,
    "weight_decay": -1.0,
    "schedule": "linear",
    "gamma": 0.0,
    "phase_epochs": -1.0,
    "gamma_late": 1.5,
}
BEYOND: dict[str, object] = {
    "data.size": 1025,
    "model.arch": "resnet101",
    "model.stem": "large",
    "head.hidden": [8, 8, 8],
    "head.dimension": 0,
    "head.batch_norm": "last",
    "head.dropout": 1.0,
    "loss.temperature": 101.0,
    "optimizer.name": "rmsprop",
    "optimizer.lr": -0.1,
    "optimizer.momentum": 1.0,
    "optimizer.weight_decay": -1e-6,
    "optimizer.form": "book",
    "optimizer.trust_coefficient": math.inf,
    "schedule.name": "linear",
    "schedule.warmup_epochs": -1.0,
    "schedule.lr_min": 1.5,
    "schedule.step_epochs": 0.0,
    "schedule.gamma": 0.0,
    "schedule.phase_epochs": math.nan,
    "schedule.gamma_late": 2.0,
    "train.epochs": 100_001,
    "train.batch_size": 1_000_001,
    "train.micro_batch": -1,
    "train.views": 65,
    "train.resolution": [[1.0, 4]],
    "train.precision": "fp8",
    "train.seed": -1,
    "train.checkpoint_epochs": -1,
    "monitor.log_steps": 0,
    "monitor.knn_epochs": -1,
    "monitor.knn_images": 19,
    **{f"evaluation.{m}.{key}": bad for m in ("head", "finetune", "supervised") for key, bad in LABELLED.items()},
}
UNBOUNDED = {"name", "origin", "notes", "published", "data.source", "optimizer.lr_per_256", "optimizer.nesterov"}


@pytest.mark.parametrize("key", BEYOND)
def test_every_value_has_a_range(key: str) -> None:
    with pytest.raises(UsageError, match=f"out of range[^§]*{key} must be"):
        Recipe.load("few-labels-50", overrides={key: BEYOND[key]})


def test_no_key_of_a_recipe_is_without_a_range() -> None:
    keys = {key for key in known_keys(Recipe) if not key.startswith("augment.")}  # those of the kernels' own spec
    assert keys - UNBOUNDED - {"short_runs"} == BEYOND.keys()


def test_only_supervised_may_have_no_epochs_of_its_own() -> None:
    assert Recipe.load("cifar10", overrides={"evaluation.supervised.epochs": 0}).evaluation.supervised.epochs == 0
    for method in ("head", "finetune"):
        with pytest.raises(UsageError, match=f"evaluation.{method}.epochs must be 1 to"):
            Recipe.load("cifar10", overrides={f"evaluation.{method}.epochs": 0})


@pytest.mark.parametrize(
    ("wrong", "right"), [("train.epohcs", "train.epochs"), ("los.temperature", "loss.temperature")]
)
def test_a_misspelt_key_names_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(UsageError, match=right):
        Recipe.load("cifar10", overrides={wrong: 1})


def test_a_misspelt_recipe_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="cifar10-sgd"):
        Recipe.load("cifar10-sdg")


def test_a_file_builds_on_a_base_and_lists_only_what_differs(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('base = "cifar10"\nname = "mine"\n[train]\nepochs = 3\n')
    recipe = Recipe.load(file)
    assert (recipe.name, recipe.train.epochs, recipe.optimizer.lr) == ("mine", 3, 4.0)
    assert recipe.published == {}  # another recipe's figures are not this one's


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('base = "cifar10"\n[train]\nepoch = 3\n', "epochs"),
        ('name = "x"\n', "incomplete"),
        ("name = \n", "TOML"),
        ('base = "cifar11"\n', "cifar10"),
        ('base = "cifar10"\ntrain = 3\n', "train"),
    ],
)
def test_a_broken_file_says_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=says):
        Recipe.load(file)


@given(st.text())
def test_any_note_survives_toml(text: str) -> None:
    recipe = Recipe.load("cifar10").replace(notes=text) if not _reads_as_value(text) else Recipe.load("cifar10")
    assert Recipe.from_toml(recipe.to_toml()) == recipe


def _reads_as_value(text: str) -> bool:
    """Overrides read numbers, lists and quoted text as TOML does; such text is not a plain note."""
    return read_value(text) != text or "\n" in text or "\r" in text


def test_to_toml_is_toml_of_the_same_tree() -> None:
    recipe = Recipe.load("lars-800")
    assert tomllib.loads(recipe.to_toml()) == recipe.to_tree()


def test_an_empty_table_beside_a_base_changes_nothing_and_a_misspelt_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\nbase = "cifar10-sgd"\n[train]\n[evaluation.head]\n')
    ours, base = Recipe.load(str(file)), Recipe.load("cifar10-sgd")
    assert (ours.train, ours.evaluation) == (base.train, base.evaluation)
    file.write_text('name = "mine"\nbase = "cifar10-sgd"\n[trian]\n')
    with pytest.raises(UsageError):
        Recipe.load(str(file))
