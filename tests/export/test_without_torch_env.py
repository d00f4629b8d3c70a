"""The evaluator works in an environment that has nothing but its light dependencies.

Not a process in which imports are blocked: a virtual environment of its own, with what requirements-onnx.txt names and
what that needs. The distributions are linked from the running environment, so that nothing is downloaded; the package
is linked as `setup.py` maps it.
"""

from __future__ import annotations

import ast
import json
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fixtures import ROOT
from fixtures.environments import LIGHT, linked_environment, requirements, run_in, site_packages, succeeded
from fixtures.image_files import encode, write_tree
from fixtures.synthetic_run import write_run
from fixtures.tiny_probe import CLASSES, write_tiny_probe
from simclr_engine.export import OnnxEncoder, onnx_features

ABSENT = (
    "torch", "torchvision", "onnx", "onnxscript", "safetensors", "tensorboard", "triton", "jinja2", "pydantic", "pip",
    "pytest",
)  # fmt: skip

# In rooms that otherwise need neither: what trains, what runs a torch encoder, and what opens a recipe.
NEEDS = {
    "simclr_engine.data.loader": "torch",
    "simclr_engine.evaluation.finetune": "torch",
    "simclr_engine.evaluation.features": "torch",
    "simclr_engine.recipe": "pydantic",
    "simclr_engine.export.server": "uvicorn",
}
# The rooms of the light install: of export/ only these, of the rest of engine/ likewise.
ROOMS = ("cli", "data", "evaluation", "report")
SINGLE = ("recipe", "documents", "errors", "timing", "run", "terminal", "progress", "bench.card")
EXPORT = (
    "answering", "embed", "features", "index", "metadata", "predict", "publishing", "runtime", "serve", "server",
    "workers",
)  # fmt: skip


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with the light dependencies and the package."""
    home = tmp_path_factory.mktemp("light")
    python = linked_environment(home, requirements(LIGHT).values())
    site = site_packages(home)
    package = site / "simclr_engine"
    package.mkdir()
    for source in [*(ROOT / "engine").iterdir(), *(ROOT / n for n in ("kernels", "export", "bench"))]:
        if source.name != "__pycache__":
            (package / source.name).symlink_to(source)
    return python


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`probe.onnx`, and `photos/CLASS/N.png`: three classes of bright, dark and red images."""
    home = tmp_path_factory.mktemp("files")
    write_tiny_probe(home / "probe.onnx", image_size=8)
    rng, images = np.random.default_rng(0), dict[str, bytes]()
    for label, (name, colour) in enumerate(zip(CLASSES, ((200, 200, 200), (40, 40, 40), (220, 30, 30)), strict=True)):
        for n in range(30):
            noise = rng.integers(-30, 31, (6 + label, 8, 3))
            images[f"{name}/{n}.png"] = encode((np.array(colour) + noise).clip(0, 255).astype(np.uint8))
    write_tree(home / "photos", images)
    return home


def _modules() -> Iterator[str]:
    """Every module of the light rooms, as the files lie there."""
    for room in ROOMS:
        yield from (f"simclr_engine.{room}.{f.stem}" for f in sorted((ROOT / "engine" / room).glob("*.py")))
    yield from (f"simclr_engine.{name}" for name in SINGLE)
    yield from (f"simclr_engine.export.{name}" for name in EXPORT if (ROOT / "export" / f"{name}.py").is_file())


def test_the_environment_has_the_light_dependencies_and_nothing_heavy(light: Path, tmp_path: Path) -> None:
    script = """
import sys
from importlib.util import find_spec
print([name for name in sys.argv[1:] if find_spec(name)])
import simclr_engine, numpy, PIL, onnxruntime, sklearn, click, rich, matplotlib
print({m.__file__.startswith(sys.prefix) for m in (simclr_engine, numpy, PIL, onnxruntime, sklearn)})
"""
    assert succeeded(run_in(light, "-c", script, *ABSENT, cwd=tmp_path)).splitlines() == ["[]", "{True}"]


def test_every_module_of_the_light_rooms_is_imported(light: Path, tmp_path: Path) -> None:
    script = """
import sys
from importlib import import_module
for name in sys.argv[1:]:
    try:
        import_module(name.removesuffix(".__init__"))
    except ImportError as error:
        print(name, error.name)
"""
    names = list(_modules())
    assert len(names) > 60 and {"simclr_engine.export.runtime", "simclr_engine.report.page"} <= set(names)
    lines = succeeded(run_in(light, "-c", script, *names, cwd=tmp_path)).splitlines()
    assert dict(line.split(" ", 1) for line in lines) == NEEDS


# What the light rooms import only where it is there or asked for, and say how to install it otherwise.
OPTIONAL = {
    "torch", "torchvision", "safetensors", "pydantic", "jinja2", "starlette", "uvicorn", "zstandard", "pillow-heif",
    "compression",  # of Python 3.14 itself
}  # fmt: skip


def _imported() -> set[str]:
    """The distributions that the source of the light rooms imports anywhere but for type checkers."""
    found = set[str]()
    for name in _modules():
        path = ROOT / ("" if name.startswith(("simclr_engine.export", "simclr_engine.bench")) else "engine")
        tree = ast.parse((path.joinpath(*name.split(".")[1:]).with_suffix(".py")).read_text("utf-8"))
        for_types = {
            below
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for below in ast.walk(node)
        }
        for node in set(ast.walk(tree)) - for_types:
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                found.add(node.module.split(".")[0])
    owners = packages_distributions()
    others = found - sys.stdlib_module_names - {"simclr_engine"}
    return {canonicalize_name(owner) for name in others for owner in owners.get(name, [name])}


def test_the_requirements_are_what_the_light_rooms_import() -> None:
    assert _imported() - OPTIONAL == set(requirements(LIGHT))


def test_the_requirements_have_the_bounds_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    bounds = {canonicalize_name(one.name): one for one in map(Requirement, project["dependencies"])}
    light = requirements(LIGHT)
    assert light == {name: bounds[name] for name in light}


def test_importing_a_light_package_loads_nothing_heavy(tmp_path: Path) -> None:
    # The other half: that nothing asks for torch softly, in a try block, and is slowed down where it is there.
    names = [name.removesuffix(".__init__") for name in _modules() if name not in NEEDS]
    script = f"""
import sys
from importlib import import_module
for name in sys.argv[1:]:
    import_module(name)
print(sorted({{name.split(".")[0] for name in sys.modules}} & {set(ABSENT)!r}))
"""
    assert succeeded(run_in(sys.executable, "-c", script, *names, cwd=tmp_path)).strip() == "[]"


METHODS = ("linear", "knn", "probe")
EVALUATE = ("-m", "simclr_engine", "evaluate", "probe.onnx", "--data", "photos", *(f"--method={m}" for m in METHODS))


def test_evaluate_gives_the_same_scores_as_in_the_full_environment(light: Path, files: Path) -> None:
    documents = [
        json.loads(succeeded(run_in(python, *EVALUATE, "--json", cwd=files))) for python in (light, sys.executable)
    ]
    for results in zip(*(document["results"] for document in documents), strict=True):
        ours, full = ({k: v for k, v in r.items() if k != "seconds"} for r in results)
        assert ours == full
    methods = {r["method"]: r for r in documents[0]["results"]}
    assert set(methods) == set(METHODS)
    assert methods["linear"]["accuracy"] == 1.0 and len(methods["linear"]["per_class"]) == 3


def test_the_table_is_printed_and_results_and_pictures_are_written(light: Path, files: Path) -> None:
    done = run_in(light, *EVALUATE, "--out", "results", cwd=files)
    said = succeeded(done)
    assert "linear" in said and all(name in said for name in CLASSES)
    written = {path.name for path in (files / "results").rglob("*")}
    assert {f"photos-{method}-pretrained.json" for method in METHODS} <= written
    assert any(name.endswith(".png") for name in written)
    # The probe's own format needs a package that the light installation lacks.
    assert "photos-linear-pretrained.safetensors" not in written
    assert "the probe itself is not written: pip install safetensors" in done.stderr


def test_embed_and_predict_give_what_they_give_in_the_full_environment(light: Path, files: Path) -> None:
    found = []
    for python, out in ((light, "light.npy"), (Path(sys.executable), "full.npy")):
        succeeded(
            run_in(python, "-m", "simclr_engine", "embed", "probe.onnx", "photos", "--out", out, "--json", cwd=files)
        )
        arguments = ("predict", "probe.onnx", "photos/ant/0.png", "photos/cat/1.png", "--neighbours", "2", "--json")
        done = succeeded(run_in(python, "-m", "simclr_engine", *arguments, "--index", out, cwd=files))
        found.append(json.loads(done)["images"])
    assert found[0] == found[1] and len(found[0]) == 2
    assert np.array_equal(np.load(files / "light.npy"), np.load(files / "full.npy"))


def test_features_are_those_of_the_full_environment(light: Path, files: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    script = """
import sys
import numpy as np
from simclr_engine import OnnxEncoder
from simclr_engine.data.store import ImageStore
from simclr_engine.export.features import onnx_features, probe_predictions
images, path = np.load("images.npy"), sys.argv[1]
store = ImageStore.from_arrays(images)
features = OnnxEncoder(path).embed(images)
assert np.array_equal(features, onnx_features(path, store))
probabilities, labels = probe_predictions(path, store)
np.savez("found.npz", features=features, probabilities=probabilities, labels=labels)
"""
    succeeded(run_in(light, "-c", script, files / "probe.onnx", cwd=tmp_path))
    encoder = OnnxEncoder(files / "probe.onnx")
    probabilities, labels = encoder.predict(images)
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_allclose(found["features"], encoder.embed(images), rtol=1e-6)
        np.testing.assert_allclose(found["probabilities"], probabilities, atol=1e-6)
        assert np.array_equal(found["labels"], labels)
    assert onnx_features.__module__ == "simclr_engine.export.features"


WITHOUT_JINJA2 = "import sys; sys.modules['jinja2'] = None; from simclr_engine.cli.main import main; main()"


def test_a_page_without_its_packages_says_what_to_install(light: Path, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name).directory for name in ("first", "second")]
    for arguments in (("report", runs[0]), ("compare", *runs)):
        for package, how in (
            ("pydantic", (light, "-m", "simclr_engine")),
            ("jinja2", (sys.executable, "-c", WITHOUT_JINJA2)),
        ):
            done = run_in(*how, *arguments, cwd=tmp_path)
            assert done.returncode == 3, done.stderr
            assert f"fix: pip install {package}" in done.stderr
            assert "Traceback" not in done.stderr
    assert not (runs[0] / "figures").exists() and not (runs[0] / "report.html").exists()


NO_JINJA2 = """
import sys
from simclr_engine import OnnxEncoder
from simclr_engine.cli.main import cli
import numpy as np
OnnxEncoder("probe.onnx").embed(np.zeros((2, 8, 8, 3), np.uint8))
cli.main(sys.argv[1:], standalone_mode=False)
assert "matplotlib" in sys.modules
print("jinja2" in sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [(*EVALUATE[2:], "--out", "drawn"), ("predict", "probe.onnx", "photos/ant/0.png", "--save", "drawn.png")],
)
def test_scores_predictions_and_pictures_import_no_jinja2(files: Path, arguments: tuple[str, ...]) -> None:
    done = run_in(sys.executable, "-c", NO_JINJA2, *arguments, cwd=files)
    assert succeeded(done) and done.stderr.strip().splitlines()[-1] == "False"


def test_what_needs_torch_says_so_without_a_traceback(light: Path, files: Path) -> None:
    done = run_in(light, "-m", "simclr_engine", "pretrain", "--data", "photos", "--dry-run", cwd=files)
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert "fix: pip install pydantic" in done.stderr or "fix: pip install torch" in done.stderr
