"""Philox4x32-10: random words that depend on a key and a counter alone, the same on every device and backend.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 4.3. A generator with
no state: whoever knows (key, counter) knows the four words, so a view can be drawn again anywhere, at any time.
"""

from __future__ import annotations

import torch
from torch import Tensor

try:
    from . import _native
except ImportError:  # built without a compiler: the torch arithmetic below gives the same bits
    _native = None  # type: ignore[assignment]  # a module, or nothing

ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # what the two key words grow by, round by round
_MASK = 0xFFFFFFFF


def philox(counter: Tensor, seed: int | Tensor) -> Tensor:
    """Four random words for every counter.

    Args:
        counter: int64 `[4, n]`, each entry an unsigned 32-bit word (higher bits are ignored), on any device.
        seed: the 64-bit key; its low word is the first key word. Taken modulo 2**64. A number, or an int64 scalar on
            the counter's device.

    Returns:
        int64 `[4, n]` on the counter's device, each entry in [0, 2**32).
    """
    if counter.dtype != torch.int64 or counter.ndim != 2 or counter.shape[0] != 4:
        raise ValueError(f"counter must be int64 [4, n], not {counter.dtype} {list(counter.shape)}")
    if _native is not None and counter.device.type == "cpu":
        return philox_native(counter, int(seed))
    return philox_torch(counter, seed)


def philox_native(counter: Tensor, seed: int) -> Tensor:
    """`philox` by the compiled module; CPU tensors only."""
    words = torch.empty(counter.shape, dtype=torch.int64)
    _native.philox(counter.contiguous().numpy(), seed & _MASK, (seed >> 32) & _MASK, words.numpy())
    return words


def philox_torch(counter: Tensor, seed: int | Tensor) -> Tensor:
    """`philox` in torch int64 arithmetic, for any device; constants are Python numbers, so nothing is copied to it."""
    key0, key1 = seed & _MASK, (seed >> 32) & _MASK
    c0, c1, c2, c3 = (counter & _MASK).unbind()
    for _ in range(ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + _WEYL[0]) & _MASK, (key1 + _WEYL[1]) & _MASK
    return torch.stack((c0, c1, c2, c3))


def _multiply(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Upper and lower 32 bits of word × factor. 32 × 32 bits overflow int64, 32 × 16 do not: two half products."""
    upper, lower = word * (factor >> 16), word * (factor & 0xFFFF)
    return (upper + (lower >> 16)) >> 16, (((upper & 0xFFFF) << 16) + lower) & _MASK


def uniform(words: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Words as numbers in [0, 1), multiples of 2**-24: the upper 24 bits, exact in float32 and in float64."""
    return (words >> 8).to(dtype) * 2.0**-24
