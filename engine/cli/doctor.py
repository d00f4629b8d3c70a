"""`simclr-engine doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil

import click

from ..errors import PlatformError
from ..terminal import tell
from .options import print_json

PACKAGES = (
    "torch",
    "torchvision",
    "triton",
    "nvidia-dali-cuda130",
    "numpy",
    "pillow",
    "scikit-learn",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "matplotlib",
)


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout instead of text.")
def command(as_json: bool) -> None:
    """Check what this machine and installation can do.

    Exits with 3 if a required part does not work.
    """
    versions = {name: _version(name) for name in PACKAGES}
    findings: list[tuple[str, bool, str]] = [("python", True, platform.python_version())]
    if versions["torch"] is None:
        findings.append(("torch", False, "not installed: pretraining needs it; `evaluate FILE.onnx` works without it"))
    else:
        findings += _torch_findings()
    findings += [_cache_finding(), *_onnx_findings(versions)]
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
        tell("     packages       " + ", ".join(f"{n} {v or '–'}" for n, v in versions.items()))
    if broken:
        raise click.exceptions.Exit(3)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch_findings() -> list[tuple[str, bool, str]]:
    import torch

    from simclr_engine.kernels import pick_augment, pick_nt_xent
    from simclr_engine.kernels.augmentation.dispatch import BACKENDS

    from ..device import choose_platform
    from ..torchvision_shim import import_torchvision, is_shimmed

    chosen = choose_platform()
    about = chosen.describe()
    rows = [
        ("torch", True, torch.__version__),
        ("device", True, f"{about['device']}: {about['device_name']}"),
        ("precision", True, f"{chosen.precision}, {'channels_last' if chosen.channels_last else 'contiguous'}"),
        ("NT-Xent", True, ": ".join(pick_nt_xent("auto", chosen.device))),
        ("augmentation", True, ": ".join(pick_augment("auto", chosen.device))),
    ]
    for backend in BACKENDS:
        try:
            pick_augment(backend, chosen.device)
        except ValueError as reason:
            rows.append((f"  {backend}", True, str(reason).partition(" here: ")[2]))
        else:
            rows.append((f"  {backend}", True, f"--augment {backend} works on {chosen.device.type}"))
    try:
        import_torchvision()
        detail = (
            "its compiled operators do not load (built for another torch); data sets still work"
            if is_shimmed()
            else "works"
        )
        rows.append(("torchvision", True, detail))
    except PlatformError as error:
        rows.append(("torchvision", False, f"{error.cause}: {error.saw}"))
    return rows


def _cache_finding() -> tuple[str, bool, str]:
    from ..data.cache import cache_root

    root = cache_root()
    parent = next(p for p in (root, *root.parents) if p.exists())
    free = shutil.disk_usage(parent).free / 2**30
    writable = os.access(parent, os.W_OK)
    return (
        "cache",
        writable,
        f"{root} ({free:.0f} GiB free)" + ("" if writable else ": not writable; set SIMCLR_ENGINE_CACHE"),
    )


def _onnx_findings(versions: dict[str, str | None]) -> list[tuple[str, bool, str]]:
    if versions["onnxruntime"] is None:
        return [("onnxruntime", False, "not installed: ONNX files need it")]
    import onnxruntime

    return [("onnxruntime", True, ", ".join(onnxruntime.get_available_providers()))]
