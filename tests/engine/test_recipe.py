"""Recipes: defaults and what a file adds, typed, refused when wrong, equal after a round trip."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simclr_engine.errors import UsageError
from simclr_engine.kernels import AugmentSpec
from simclr_engine.recipe import Recipe, known_keys, read_value, recipe_names

HASHES = {  # of the resolved recipes, as every version has had them: runs and exported files name their recipe by it
    "cifar10": "1307e41feaf921319828549a065beade3e83f5ab4c17939c81294471186c08bc",
    "cifar10-fast": "e05f78988eab6522cff1651403e7be119e8be14ede9b25ed0d11b0ae8722bd12",
    "cifar10-sgd": "a76360f764958c3abd776039434f7cd93b42609bf970fefacc94fd14d25f2aa1",
    "demo": "560d7fd4240c6e7dd254be948f32fb08c45a478e0a6873e211ef7fa1eb5bc34f",
    "few-labels-50": "9bd6c4ba066abb5df982324a5291dcbdc9a7252009cfb9547ece499619ed757b",
    "lars-800": "c25dba150dcf9f4ab531157c3931e97c0be0a01d8b0f364749299cf47dcee1ac",
    "quick-10": "8c3c5e256ebffea4ffd2af2f215ed6066f368e781868ca61c5fb3c5dc9866428",
    "scratch-100": "7b996747105b54b47b5cc561b13e3357032af0808991431edcbc6393c8725b29",
    "two-protocols": "63e3edd59773da595d667fd8fd6cb8a9d143eb9ebd26fcb38d016cc45f726eff",
}


@pytest.mark.parametrize("name", HASHES)
def test_a_recipe_of_the_package_has_the_hash_it_has_always_had(name: str) -> None:
    assert Recipe.load(name).hash() == HASHES[name]


def test_every_recipe_of_the_package_has_a_known_hash() -> None:
    assert recipe_names() == sorted(HASHES)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_survives_the_round_trip_through_toml(name: str) -> None:
    recipe = Recipe.load(name)
    again = Recipe.from_toml(recipe.to_toml())
    assert again == recipe
    assert again.hash() == recipe.hash()
    assert recipe.name == name


def _without(text: str, lost: str) -> str:
    """The lines of a run's recipe.toml but those whose key (`train.epochs`, `evaluation.`) starts so."""
    kept, table = [], ""
    for line in text.split("\n"):
        table = f"{line[1:-1]}." if line.startswith("[") else table
        kept += [] if f"{table}{line}".startswith(lost) else [line]
    return "\n".join(kept)


def test_a_run_recipe_that_lost_a_key_is_refused() -> None:
    text = Recipe.load("cifar10", {"optimizer.name": "muon"}).to_toml()
    for key in set(known_keys()) - {"train.micro_batch", "published", "data.levels"}:
        with pytest.raises(UsageError, match=f"incomplete\n.*no {re.escape(key)}"):
            Recipe.from_toml(_without(text, f"{key} ="))


@pytest.mark.parametrize("younger", ["train.micro_batch =", "evaluation."])
def test_a_recipe_of_an_older_run_takes_the_defaults(younger: str) -> None:
    recipe = Recipe.load("cifar10")
    text = _without(recipe.to_toml(), younger)
    assert text != recipe.to_toml() and Recipe.from_toml(text) == recipe


def test_the_text_of_a_recipe_has_muons_settings_only_with_muon() -> None:
    for name in ("lars", "sgd", "adam", "adamw"):
        assert (
            not {"muon_steps", "rest_lr"}
            & Recipe.load("cifar10", {"optimizer.name": name}).to_tree()["optimizer"].keys()
        )
    muon = Recipe.load("cifar10-sgd", {"optimizer.name": "muon", "optimizer.rest_lr": 0.07})
    assert (muon.to_tree()["optimizer"]["muon_steps"], muon.to_tree()["optimizer"]["rest_lr"]) == (5, 0.07)
    assert Recipe.from_toml(muon.to_toml()) == muon
    assert muon.differences(Recipe.load("cifar10-sgd")) == {
        "optimizer.name": "muon", "optimizer.muon_steps": 5, "optimizer.rest_lr": 0.07
    }  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [("muon_steps", 5), ("rest_lr", 0.03)])
def test_a_setting_of_muon_with_another_optimizer_is_refused(key: str, value: float, tmp_path: Path) -> None:
    says = f'Muon.s settings.*\\n.*optimizer.{key} = {value} with optimizer.name = "sgd"'
    with pytest.raises(UsageError, match=says):
        Recipe.load("cifar10-sgd", {f"optimizer.{key}": value})
    file = tmp_path / "mine.toml"
    file.write_text(f'base = "cifar10-sgd"\n[optimizer]\n{key} = {value}\n')
    with pytest.raises(UsageError, match=says):
        Recipe.load(file)
    with pytest.raises(UsageError, match=says):  # in any order
        Recipe.load("cifar10", {f"optimizer.{key}": value, "optimizer.name": "sgd"})


def test_what_the_text_leaves_out_is_a_difference_too() -> None:
    plain, levels = Recipe.load("cifar10"), Recipe.load("cifar10", {"data.levels": [0, 100]})
    assert levels.differences(plain) == {"data.levels": [0, 100]}
    assert plain.differences(levels) == {"data.levels": []}


def test_an_optimizer_in_muons_place_does_not_inherit_its_settings() -> None:
    sgd = Recipe.load("cifar10-sgd")
    muon = sgd.override({"optimizer.name": "muon", "optimizer.rest_lr": 0.07})
    assert muon.override({"optimizer.name": "sgd"}) == sgd
    assert muon.override({"optimizer.lr": 0.5}).optimizer.rest_lr == 0.07
    short = {"epochs": 10, "settings": {"optimizer.name": "sgd"}}
    assert muon.override({"short_runs": [short]}).for_epochs(1).optimizer == sgd.optimizer


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


def test_a_short_run_takes_the_settings_of_every_limit_it_is_within() -> None:
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


def test_the_narrowest_limit_has_the_last_word_in_any_order() -> None:
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
        ([{"epoch": 10, "settings": {}}], "did you mean `short_runs.epochs`"),
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
    "schedule": "cyclic",
    "gamma": 0.0,
    "phase_epochs": -1.0,
    "gamma_late": 1.5,
}
BEYOND: dict[str, object] = {
    "data.levels": [5, 5],
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
    "optimizer.muon_steps": 21,
    "optimizer.rest_lr": 0.0,
    "schedule.name": "cyclic",
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


def test_a_recipe_is_frozen() -> None:
    recipe = Recipe.load("cifar10")
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.epochs = 3
    with pytest.raises(ValueError, match="frozen"):
        recipe.train = Recipe.load("demo").train


def test_what_a_file_leaves_unsaid_has_its_default(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    text = 'name = "mine"\n[data]\nsource = "digits"\n[loss]\ntemperature = 0.3\n[optimizer]\nname = "sgd"\nlr = 1\n'
    file.write_text(text + "[train]\nepochs = 3\nbatch_size = 8\n[evaluation.head]\nepochs = 4\n")
    recipe = Recipe.load(file)
    assert (recipe.train.epochs, recipe.optimizer.lr, recipe.loss.temperature) == (3, 1.0, 0.3)
    assert recipe.evaluation == Recipe.load("cifar10", {"evaluation.head.epochs": 4}).evaluation
    assert recipe.augment == AugmentSpec()
    assert (recipe.train.views, recipe.train.precision, recipe.schedule.name) == (2, "auto", "cosine")
    assert (recipe.published, recipe.short_runs) == ({}, ())


@pytest.mark.parametrize("key", ["name", "data.source", "loss.temperature", "optimizer.lr", "train.epochs"])
def test_what_makes_a_recipe_has_no_default(key: str) -> None:
    tree = Recipe.load("cifar10").to_tree()
    table, _, name = key.rpartition(".")
    del (tree[table] if table else tree)[name]
    with pytest.raises(UsageError, match=f"incomplete\n.*no {key}\n"):
        Recipe.from_tree(tree)


def test_a_half_character_of_a_path_is_refused_before_it_is_written() -> None:
    for key in ("notes", "data.source"):
        with pytest.raises(UsageError, match=f"{key} must be text"):
            Recipe.load("cifar10", {key: "a\udc80"})
    with pytest.raises(UsageError, match="published must be"):
        Recipe.load("cifar10", {"published": {"x": ["\ud800"]}})


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("train.epochs", 2.5, "train.epochs must be a valid integer"),
        ("train.epochs", True, "train.epochs must be a valid integer"),
        ("loss.temperature", "warm", "loss.temperature must be a valid number"),
        ("head.hidden", "wide", "head.hidden must be a valid list"),
        ("optimizer.nesterov", 1, "optimizer.nesterov must be a valid boolean"),
        ("evaluation.head.crop_scale", [1.0], "evaluation.head.crop_scale must be a list as long"),
        ("augment.crop_scale", [1.0], "crop_scale must be 2 numbers"),
        ("augment.flip", "often", "flip must be a number"),
        ("augment.flip", 10**400, "flip must be between 0 and 1"),
        ("loss.temperature", math.inf, "loss.temperature must be finite and above 0 and at most 100"),
        ("optimizer.name", "sdg", "optimizer.name must be lars, sgd, adam, adamw or muon"),
        ("optimizer.momentum", 1.0, "optimizer.momentum must be at least 0 and below 1"),
        ("train.views", 65, "train.views must be 2 to 64 .V, of each image"),
        ("monitor.log_steps", 0, "monitor.log_steps must be 1 or more"),
    ],
)
def test_an_error_names_the_type_or_the_range(key: str, value: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Recipe.load("cifar10", {key: value})


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


def test_an_empty_table_beside_a_base_changes_nothing_or_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\nbase = "cifar10-sgd"\n[train]\n[evaluation.head]\n')
    ours, base = Recipe.load(str(file)), Recipe.load("cifar10-sgd")
    assert (ours.train, ours.evaluation) == (base.train, base.evaluation)
    file.write_text('name = "mine"\nbase = "cifar10-sgd"\n[trian]\n')
    with pytest.raises(UsageError):
        Recipe.load(str(file))
