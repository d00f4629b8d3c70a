"""Checkpoints: saved whole or not at all, verified on reading, the previous good one kept; encoder extraction."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from .errors import DataError, UsageError
from .files import Folder, write_atomic
from .model import build_encoder
from .recipe import Recipe

if TYPE_CHECKING:
    from .run import Run

# A checkpoint file is torch's zip archive followed by this footer: magic and the sha256 of what stands before it.
FOOTER = b"simclr-engine/1 "
FOOTER_BYTES = len(FOOTER) + 32
LAST, PREVIOUS, FRESH = "last.pt", "previous.pt", "next.pt"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors, plain scalars, text, nested) to `path`; what was there survives any failure.

    Raises:
        PlatformError: no space or no permission; the file that stood at `path` is untouched.
    """
    write_atomic(path, *_packed(state))


def _packed(state: dict[str, Any]) -> tuple[memoryview, bytes]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = buffer.getbuffer()
    return body, FOOTER + hashlib.sha256(body).digest()


def save_last(folder: Path | Folder, state: dict[str, Any]) -> None:
    """`state` as `last.pt`; the one before stays as `previous.pt`, so there is a good one at any moment.

    Raises:
        PlatformError: no space, no permission, or the directory was replaced; what was saved before is intact.
    """
    at = Folder.of(folder)
    at.write(FRESH, *_packed(state))
    if at.is_file(LAST):
        at.rename(LAST, PREVIOUS)
    at.rename(FRESH, LAST)


def keep_last_as(folder: Path | Folder, name: str) -> None:
    """`last.pt` under a second, lasting name; a link where the file system has them, else a copy."""
    Folder.of(folder).copy(LAST, name)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state in `path`, its sha256 verified, no code executed.

    Raises:
        DataError: missing, truncated, altered, or not a checkpoint of this project.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            "the checkpoint cannot be read", saw=f"{path}: {error.strerror}", fix="check the path"
        ) from error
    body, footer = raw[:-FOOTER_BYTES], raw[-FOOTER_BYTES:]
    if footer != FOOTER + hashlib.sha256(body).digest():
        raise DataError("the checkpoint is truncated or was altered", saw=path, fix="resume: the previous one is taken")
    refuse_bomb(path, io.BytesIO(body))
    try:
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile pickle may raise anything: KeyError, TypeError, MemoryError, …
        raise DataError(
            "the checkpoint does not load",
            saw=f"{path}: {(str(error).splitlines() or [''])[0][:200] or type(error).__name__}",
            fix="resume: the previous one is taken",
        ) from error
    if not isinstance(state, dict):
        raise DataError("the checkpoint holds no state", saw=path, fix="resume: the previous one is taken")
    return state


def refuse_bomb(path: Path, file: IO[bytes]) -> None:
    """Refuses a zip archive whose members are larger than they stand there: torch packs none, and would unpack them.

    Raises:
        DataError: it holds such members, or begins like a zip archive and is none.
    """
    if file.read(2) != b"PK":
        return
    nbytes = file.seek(0, os.SEEK_END)
    try:
        with zipfile.ZipFile(file) as archive:
            # TorchScript packs its code, which `torch.load` would not unpack: it refuses such a file by its own name.
            members = (m for m in archive.infolist() if m.filename.split("/")[1:2] != ["code"])
            held = sum(member.file_size for member in members)
    except Exception as error:  # as of `torch.load`: a damaged directory raises many kinds
        raise DataError(
            "this is no checkpoint, or a damaged one",
            saw=f"{path}: {str(error)[:200]}",
            fix="copy or download it again",
        ) from error
    if held > nbytes:
        raise DataError(
            "the checkpoint claims to hold more than the file has",
            saw=f"{path}: {held:,} bytes in a file of {nbytes:,}",
            fix="take a file that torch.save wrote; it packs nothing",
        )


def newest_checkpoint(folder: Path) -> tuple[dict[str, Any], Path, list[str]]:
    """The newest good checkpoint in a run's `checkpoints/`: `(state, path, complaints about worse ones)`.

    Raises:
        DataError: none is good.
    """
    numbered = sorted(folder.glob("epoch_*.pt"), key=lambda path: (len(path.name), path.name), reverse=True)
    complaints: list[str] = []
    for path in (folder / LAST, folder / FRESH, folder / PREVIOUS, *numbered):
        if not path.exists():
            continue
        try:
            return load_checkpoint(path), path, complaints
        except DataError as error:
            complaints.append(f"{path.name}: {error.cause}")
    raise DataError(
        "no good checkpoint to resume from", saw="; ".join(complaints) or folder, fix="start anew with --overwrite"
    )


def save_weights(path: Path, module: nn.Module, metadata: dict[str, str]) -> None:
    """The module's tensors under their own names as safetensors, with text metadata."""
    write_atomic(path, pack_weights(module, metadata))


def pack_weights(module: nn.Module, metadata: dict[str, str]) -> bytes:
    """The bytes of `save_weights`."""
    return save({k: v.detach().to("cpu").contiguous() for k, v in module.state_dict().items()}, metadata)


def read_tensors(path: Path, cause: str, fix: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and its text metadata.

    Raises:
        DataError: unreadable, in the caller's words.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118  # not a dict
    except (OSError, SafetensorError) as error:
        raise DataError(cause, saw=f"{path}: {str(error)[:200]}", fix=fix) from error


def load_encoder(target: str | Path | Run) -> nn.Module:
    """The trained encoder of a run directory, or of an `encoder.safetensors` alone.

    Returns:
        A module in eval mode on the CPU: normalised images `[B, 3, S, S]` → features `[B, feature_dim]`, float32.

    Raises:
        DataError: no such run or file, or its weights do not load.
    """
    path = Path(target) if isinstance(target, str | Path) else target.directory
    if path.is_dir() and not (path / "encoder.safetensors").exists():  # an interrupted run has checkpoints alone
        return _encoder_from_checkpoint(path)
    return _encoder_from_file(path / "encoder.safetensors" if path.is_dir() else path)


def encoder_metadata(run_recipe: Any, image_size: int) -> dict[str, str]:
    """What `encoder.safetensors` says of itself (text only, as the format asks)."""
    return {
        "format": "simclr-engine encoder 1",
        "arch": run_recipe.model.arch,
        "stem": run_recipe.model.stem,
        "image_size": str(image_size),
        "mean": json.dumps(list(run_recipe.augment.mean)),
        "std": json.dumps(list(run_recipe.augment.std)),
        "recipe": run_recipe.name,
    }


def _encoder_from_file(path: Path) -> nn.Module:
    name_it = "name a run directory or its encoder.safetensors"
    tensors, metadata = read_tensors(path, "the weights cannot be read", name_it)
    if "arch" not in metadata:
        raise DataError("not an encoder of this project", saw=path, fix=name_it)
    return _filled(metadata["arch"], metadata.get("stem", "none"), tensors, path)


def _encoder_from_checkpoint(directory: Path) -> nn.Module:
    if not (directory / "checkpoints").is_dir():
        raise DataError("no run here", saw=directory, fix="name a directory that `pretrain` wrote")
    state, path, _ = newest_checkpoint(directory / "checkpoints")
    model = state.get("model")
    if not isinstance(model, dict) or not all(isinstance(name, str) for name in model):
        raise DataError("the checkpoint holds no model", saw=path, fix="take one that `pretrain` wrote")
    tensors = {k.removeprefix("encoder."): v for k, v in model.items() if k.startswith("encoder.")}
    if not tensors:
        raise DataError("the checkpoint holds no model", saw=path, fix="take one that `pretrain` wrote")
    try:
        recipe = Recipe.from_toml(str(state.get("recipe", "")))
    except UsageError as error:
        saw = f"{path}: {error.cause}: {error.saw}"
        raise DataError("the checkpoint holds no recipe", saw=saw, fix="take one that `pretrain` wrote") from error
    return _filled(recipe.model.arch, recipe.model.stem, tensors, path)


def _filled(arch: str, stem: str, tensors: dict[str, torch.Tensor], path: Path) -> nn.Module:
    try:
        with torch.device("meta"):  # no weights are drawn that are replaced at once
            encoder = build_encoder(arch, stem)
        # Copied, not assigned: the tensors of a safetensors file are its pages, and those of others may hold no values.
        encoder.to_empty(device="cpu").load_state_dict(tensors)
    except (RuntimeError, ValueError) as error:
        raise DataError(
            "the weights do not fit the encoder",
            saw=f"{path}: {str(error)[:300]}",
            fix="take weights of the same architecture",
        ) from error
    return encoder.eval()
