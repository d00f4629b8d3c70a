"""Frozen features of a torch encoder, with the guard that proves the encoder was left as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.store import Pixels
from ..model import build_encoder
from .splits import SEED, require_unchanged

BATCH = 64  # larger ones are no faster on a CPU


def scratch_encoder(arch: str, stem: str, seed: int = SEED) -> nn.Module:
    """The reference of every table: the same network, randomly initialised from a fixed seed, in eval mode.

    Its batch norm uses its initial statistics (mean 0, variance 1), since no image has passed through it yet. The
    caller's random state is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_encoder(arch, stem).eval()


def encoder_hash(encoder: nn.Module) -> str:
    """sha256 over the names, shapes and bytes of all parameters **and buffers**, 64 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted([*encoder.named_parameters(), *encoder.named_buffers()]):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def extract_features(
    encoder: nn.Module,
    images: Pixels,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch_size: int = BATCH,
    device: str | torch.device = "cpu",
    advance: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Features of all images in eval mode, without gradient, in fp32 (TF32 off).

    Args:
        encoder: normalised float32 `[B, 3, S, S]` → `[B, D]`; put into eval mode, moved to `device`.
        images: uint8 `[N, S, S, 3]`.
        mean, std: per channel, on the scale where white is 1.
        batch_size: images per pass.
        device: where to compute.
        advance: called with the number of images done after each batch.

    Returns:
        float32 `[N, D]`.

    Raises:
        CheckFailed: a weight or a buffer of the encoder differs afterwards.
    """
    before = encoder_hash(encoder)
    encoder = encoder.to(device).eval()
    # Stride and layout only: channels_last convolutions are faster on CPU and CUDA (and much slower on MPS).
    layout = torch.contiguous_format if torch.device(device).type == "mps" else torch.channels_last
    encoder = encoder.to(memory_format=layout)  # type: ignore[call-overload]  # not in torch's hints
    rows: list[Tensor] = []
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for batch in normalised_batches(images, mean, std, batch_size, device):
            rows.append(encoder(batch.contiguous(memory_format=layout)).float().cpu())
            if advance is not None:
                advance(len(rows[-1]))
    features = torch.cat(rows).numpy()
    require_unchanged(before, encoder_hash(encoder))
    return features


def normalised_batches(
    images: Pixels,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    device: str | torch.device,
    rows: NDArray[np.int64] | None = None,
) -> Iterator[Tensor]:
    """Images uint8 `[N, S, S, 3]`, or these rows of them, in order, as an encoder takes them: float32 `[B, 3, S, S]`
    batches on `device`."""
    shift, spread = (torch.tensor(list(v), dtype=torch.float32, device=device).view(1, 3, 1, 1) for v in (mean, std))
    for start in range(0, len(images if rows is None else rows), batch_size):
        at = slice(start, start + batch_size)
        batch = torch.from_numpy(np.array(images[at if rows is None else rows[at]])).to(device)
        yield (batch.permute(0, 3, 1, 2).float() / 255 - shift) / spread


def default_device() -> str:
    """`cuda` or `mps` where torch can use it, else `cpu`."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
