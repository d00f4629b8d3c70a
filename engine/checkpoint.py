"""Checkpoints and encoder weights.

A checkpoint is written atomically and verified when it is read. The previous good one is kept.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from .boundary import is_out_of_memory
from .errors import DataError, UsageError
from .files import MARKER, Folder, sealed_tensors, write_atomic
from .inputs import check_safetensors, open_regular
from .model import build_encoder, own_encoder
from .recipe import Recipe
from .sealing import FIELD, AlteredError, NewerError, has_seal, verify_file
from .unpickling import read_state

if TYPE_CHECKING:
    from .run import Run

# A checkpoint file is torch's zip archive followed by this footer: a magic string and the sha256 of the archive.
FORMAT = 1
FOOTER = b"simclr-engine/%d " % FORMAT
FOOTER_BYTES = len(FOOTER) + 32
LAST, PREVIOUS, FRESH = "last.pt", "previous.pt", "next.pt"
WEIGHTS = ("model.safetensors", "encoder.safetensors")  # of a run


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` (nested tensors, plain scalars and text) to `path`, atomically.

    Raises:
        PlatformError: no space or no permission; the file at `path` is unchanged.
    """
    write_atomic(path, *_packed(state))


def _packed(state: dict[str, Any]) -> tuple[memoryview, bytes]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = buffer.getbuffer()
    return body, FOOTER + hashlib.sha256(body).digest()


def save_last(folder: Path | Folder, state: dict[str, Any]) -> None:
    """Saves `state` as `last.pt` and keeps the one before as `previous.pt`, so that a good one exists at any moment.

    Raises:
        PlatformError: no space, no permission, or the directory was replaced; earlier checkpoints are unchanged.
    """
    at = Folder.of(folder)
    at.write(FRESH, *_packed(state))
    if at.is_file(LAST):
        at.rename(LAST, PREVIOUS)
    at.rename(FRESH, LAST)


def keep_last_as(folder: Path | Folder, name: str) -> None:
    """Keeps `last.pt` under a second name, as a hard link if the file system supports it, else as a copy."""
    Folder.of(folder).copy(LAST, name)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state in `path`. Its sha256 is verified, and no code of the file is executed.

    Raises:
        DataError: the file is missing, truncated, altered, or not a checkpoint of this project.
    """
    try:
        with open_regular(path) as file:
            size = max(0, os.fstat(file.fileno()).st_size - FOOTER_BYTES)
            file.seek(size)
            footer = file.read(FOOTER_BYTES)
            file.seek(0)
            # Of a file of any size, nothing is held before its end and its sha256 are right.
            digest, left = hashlib.sha256(), size if footer.startswith(FOOTER) else 0
            while chunk := file.read(min(left, 1 << 24)):
                digest.update(chunk)
                left -= len(chunk)
            file.seek(0)
            body = file.read(size) if footer == FOOTER + digest.digest() else b""
    except OSError as error:
        raise DataError(
            "the checkpoint cannot be read", saw=f"{path}: {error.strerror}", fix="check the path"
        ) from error
    version = re.match(rb"simclr-engine/(\d+) ", footer)
    if version and int(version[1]) > FORMAT:
        raise NewerError(path, int(version[1]), FORMAT)
    if not body:
        raise DataError("the checkpoint is truncated or was altered", saw=path, fix="resume: the previous one is used")
    refuse_bomb(path, io.BytesIO(body))
    try:
        state = read_state(body)
    except Exception as error:  # a hostile pickle may raise anything: KeyError, TypeError, …
        if is_out_of_memory(error):
            # Where there is no memory for what the file holds, an older checkpoint must not take its place.
            bytearray(len(body))
        raise DataError(
            "the checkpoint does not load",
            saw=f"{path}: {(str(error).splitlines() or [''])[0][:200] or type(error).__name__}",
            fix="resume: the previous one is used",
        ) from error
    if not isinstance(state, dict):
        raise DataError("the checkpoint holds no state", saw=path, fix="resume: the previous one is used")
    return state


def refuse_bomb(path: Path, file: IO[bytes]) -> None:
    """Refuses a zip archive with compressed members: torch.save compresses none, and torch.load would unpack them.

    Raises:
        DataError: the file has such members, or starts like a zip archive but is not one.
    """
    if file.read(2) != b"PK":
        return
    nbytes = file.seek(0, os.SEEK_END)
    try:
        with zipfile.ZipFile(file) as archive:
            # TorchScript compresses its code, which `torch.load` does not unpack: it refuses such a file itself.
            members = (m for m in archive.infolist() if m.filename.split("/")[1:2] != ["code"])
            held = sum(member.file_size for member in members)
    except Exception as error:  # as with `torch.load`, a damaged file may raise anything
        raise DataError(
            "the file is not a checkpoint, or it is damaged",
            saw=f"{path}: {str(error)[:200]}",
            fix="copy or download it again",
        ) from error
    if held > nbytes:
        raise DataError(
            "the checkpoint claims to hold more than the file has",
            saw=f"{path}: {held:,} bytes in a file of {nbytes:,}",
            fix="use a file that torch.save wrote; it compresses nothing",
        )


def newest_checkpoint(folder: Path) -> tuple[dict[str, Any], Path, list[str]]:
    """The newest good checkpoint in a run's `checkpoints/`: `(state, path, complaints about bad ones)`.

    Raises:
        DataError: there is no good checkpoint.
    """
    numbered = sorted(folder.glob("epoch_*.pt"), key=lambda path: (len(path.name), path.name), reverse=True)
    complaints: list[str] = []
    for path in (folder / LAST, folder / FRESH, folder / PREVIOUS, *numbered):
        if not path.exists():
            continue
        try:
            return load_checkpoint(path), path, complaints
        except NewerError:  # an older one in its place would replace it
            raise
        except DataError as error:
            complaints.append(f"{path.name}: {error.cause}")
    raise DataError(
        "no good checkpoint to resume from", saw="; ".join(complaints) or folder, fix="start again with --overwrite"
    )


def save_weights(path: Path, module: nn.Module, metadata: dict[str, str]) -> None:
    """Writes the tensors of the module under their own names as safetensors, with text metadata."""
    write_atomic(path, pack_weights(module, metadata))


def pack_weights(module: nn.Module, metadata: dict[str, str]) -> bytes:
    """The bytes of `save_weights`: the same for the same tensors and metadata."""
    tensors = {k: v.detach().to("cpu").contiguous() for k, v in module.state_dict().items()}
    return sealed_tensors(save(tensors, metadata))


def read_tensors(path: Path, cause: str, fix: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and its text metadata.

    Raises:
        DataError: the file cannot be read; `cause` and `fix` are the caller's words.
    """
    try:
        check_safetensors(path)
        verify_file(path, fix, needed=path.name in WEIGHTS and has_seal(path.parent / MARKER))
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            metadata.pop(FIELD, None)
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118  # not a dict
    except AlteredError as error:
        raise DataError(cause, saw=error.saw, fix=fix) from error
    except (OSError, SafetensorError) as error:
        raise DataError(cause, saw=f"{path}: {str(error)[:200]}", fix=fix) from error


def load_encoder(target: str | Path | Run, encoder: nn.Module | None = None) -> nn.Module:
    """The trained encoder of a run directory, or of an `encoder.safetensors` alone.

    Args:
        target: run, directory or file.
        encoder: of a run that trained a caller's own encoder, that module again; a copy of it gets the weights.

    Returns:
        A module in eval mode on the CPU: normalised images `[B, 3, S, S]` → features `[B, feature_dim]`, float32.

    Raises:
        DataError: no such run or file, or its weights do not load.
    """
    path = Path(target) if isinstance(target, str | Path) else target.directory
    if path.is_dir() and not (path / "encoder.safetensors").exists():  # an interrupted run has only checkpoints
        return _encoder_from_checkpoint(path, encoder)
    return _encoder_from_file(path / "encoder.safetensors" if path.is_dir() else path, encoder)


def encoder_metadata(run_recipe: Any, image_size: int) -> dict[str, str]:
    """The metadata of `encoder.safetensors`; the format allows text only."""
    return {
        "format": "simclr-engine encoder 1",
        "arch": run_recipe.model.arch,
        "stem": run_recipe.model.stem,
        "image_size": str(image_size),
        "mean": json.dumps(list(run_recipe.augment.mean)),
        "std": json.dumps(list(run_recipe.augment.std)),
        "recipe": run_recipe.name,
    }


def _encoder_from_file(path: Path, own: nn.Module | None) -> nn.Module:
    name_it = "name a run directory or its encoder.safetensors"
    tensors, metadata = read_tensors(path, "the weights cannot be read", name_it)
    if "arch" not in metadata:
        raise DataError("the file is not an encoder of this project", saw=path, fix=name_it)
    side = metadata.get("image_size", "")
    size = int(side) if re.fullmatch("[0-9]{1,4}", side) else 0
    return _filled(metadata["arch"], metadata.get("stem", "none"), tensors, path, own, size)


def _encoder_from_checkpoint(directory: Path, own: nn.Module | None) -> nn.Module:
    if not (directory / "checkpoints").is_dir():
        raise DataError("there is no run here", saw=directory, fix="name a directory that `pretrain` wrote")
    state, path, _ = newest_checkpoint(directory / "checkpoints")
    model = state.get("model")
    if not isinstance(model, dict) or not all(isinstance(name, str) for name in model):
        raise DataError("the checkpoint holds no model", saw=path, fix="use one that `pretrain` wrote")
    tensors = {k.removeprefix("encoder."): v for k, v in model.items() if k.startswith("encoder.")}
    if not tensors:
        raise DataError("the checkpoint holds no model", saw=path, fix="use one that `pretrain` wrote")
    try:
        recipe = Recipe.from_toml(str(state.get("recipe", "")))
    except UsageError as error:
        saw = f"{path}: {error.cause}: {error.saw}"
        raise DataError("the checkpoint holds no recipe", saw=saw, fix="use one that `pretrain` wrote") from error
    return _filled(recipe.model.arch, recipe.model.stem, tensors, path, own, recipe.data.size)


def _filled(
    arch: str, stem: str, tensors: dict[str, torch.Tensor], path: Path, own: nn.Module | None, size: int
) -> nn.Module:
    """The encoder with these weights; `own` is the caller's, which takes images of `size` pixels."""
    if (arch == "own") != (own is not None):
        raise UsageError(
            "the run trained its caller's own encoder" if own is None else "the run did not train an own encoder",
            saw=path,
            fix="from Python, pass it again: load_encoder(RUN, MODULE)" if own is None else "leave out the encoder",
        )
    try:
        if own is not None:
            loaded = own_encoder(own, size)
            loaded.load_state_dict(tensors)
            return loaded.eval()
        with torch.device("meta"):  # do not draw weights that are replaced below
            encoder = build_encoder(arch, stem)
        # Copied, not assigned: tensors of a safetensors file are memory-mapped, and other files may hold meta tensors.
        encoder.to_empty(device="cpu").load_state_dict(tensors)
    except (RuntimeError, ValueError) as error:
        raise DataError(
            "the weights do not fit the encoder",
            saw=f"{path}: {str(error)[:300]}",
            fix="use weights of the same architecture",
        ) from error
    return encoder.eval()
