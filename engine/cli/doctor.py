"""`simclr-engine doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import click

from ..boundary import DISTRIBUTIONS, engine_error
from ..terminal import tell
from .options import print_json

# Package → what is imported of it: parts that load its compiled modules.
PACKAGES = {
    "numpy": "numpy",
    "torch": "torch",
    "torchvision": "torchvision",
    "triton": "triton",
    "pillow": "PIL.Image",
    "scikit-learn": "sklearn.linear_model",
    "threadpoolctl": "threadpoolctl",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "onnxruntime": "onnxruntime",
    "safetensors": "safetensors",
    "matplotlib": "matplotlib.figure",
    "tensorboard": "tensorboard.compat.proto.event_pb2",
    "pydantic": "pydantic",
    "jinja2": "jinja2",
    "rich": "rich.console",
}
Finding = tuple[str, bool, str]  # name, whether it works, detail


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout instead of text.")
def command(as_json: bool) -> None:
    """Check what this machine and installation can do.

    Exits with 3 if a required part does not work.
    """
    versions = {name: _version(name) for name in (*PACKAGES, "nvidia-dali-cuda130")}
    findings: list[Finding] = [("python", True, platform.python_version())]
    for package in PACKAGES:
        findings += _guarded(package, partial(_package_findings, package, versions[package]))
    if all(works for name, works, _ in findings if name in ("torch", "triton")):
        for group, look in {"device": _device_findings, "augmentation": _kernel_findings}.items():
            findings += _guarded(group, look)
    findings += _guarded("cache", _cache_findings)
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    findings.append(
        ("C++ compiler", True, compiler or "not found: torch.compile and the native module are not available")
    )
    broken = [name for name, works, _ in findings if not works]
    if as_json:
        document = {
            "versions": versions,
            "findings": [{"name": n, "works": w, "detail": d} for n, w, d in findings],
            "broken": broken,
        }
        print_json(document)
    else:
        for name, works, detail in findings:
            tell(f"{'ok  ' if works else 'FAIL'} {name:<14} {detail}")
    if broken:
        raise click.exceptions.Exit(3)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _guarded(name: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    """What `look` finds, or that it failed, so that no broken part hides the others."""
    try:
        return look()
    except ModuleNotFoundError as error:
        missing = str(error.name)
        return [(name, False, f"{missing} is not installed: pip install {DISTRIBUTIONS.get(missing, missing)}")]
    except Exception as error:  # packages raise all kinds while they are imported
        ours = engine_error(error)
        said = (ours.cause, ours.saw, ours.fix) if ours else (f"{type(error).__name__}: {error}",)
        return [(name, False, "; ".join(str(part).strip().partition("\n")[0] for part in said if part))]


def _package_findings(package: str, version: str | None) -> list[Finding]:
    detail = version or "works"
    if package == "torchvision":
        from ..torchvision_shim import import_torchvision, is_shimmed

        import_torchvision()
        if is_shimmed():
            detail += ": its compiled operators do not load (built for another torch); data sets still work"
    elif package == "triton" and find_spec("triton") is None:  # where it is installed, torch fails if it does
        detail = "not installed (it exists for Linux)"
    else:
        module = import_module(PACKAGES[package])
        if package == "onnxruntime":
            detail += ": " + ", ".join(module.get_available_providers())
    return [(package, True, detail)]


def _device_findings() -> list[Finding]:
    from ..device import choose_platform

    chosen = choose_platform()
    about = chosen.describe()
    return [
        ("device", True, f"{about['device']}: {about['device_name']}"),
        ("precision", True, f"{chosen.precision}, {'channels_last' if chosen.channels_last else 'contiguous'}"),
    ]


def _kernel_findings() -> list[Finding]:
    from simclr_engine.kernels import pick_augment, pick_nt_xent
    from simclr_engine.kernels.augmentation.dispatch import BACKENDS

    from ..device import choose_platform

    device = choose_platform().device
    rows = [
        ("NT-Xent", True, ": ".join(pick_nt_xent("auto", device))),
        ("augmentation", True, ": ".join(pick_augment("auto", device))),
    ]
    for backend in BACKENDS:
        try:
            pick_augment(backend, device)
        except ValueError as reason:
            rows.append((f"  {backend}", True, str(reason).partition(" here: ")[2]))
        else:
            rows.append((f"  {backend}", True, f"--augment {backend} works on {device.type}"))
    return rows


def _cache_findings() -> list[Finding]:
    from ..data.cache import cache_root, unusable

    root = cache_root()
    try:
        nearest = next(path for path in (root, *root.parents) if path.exists())
        with tempfile.TemporaryFile(dir=nearest) as file:  # permissions do not tell: the disk may be full
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(nearest).free / 2**30
    except OSError as error:
        raise unusable(error) from error
    return [("cache", True, f"{root} ({free:.0f} GiB free)")]
