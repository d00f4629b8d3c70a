"""Philox against the published known answers, a scalar transcription of the paper, and its compiled twin."""

from __future__ import annotations

import pytest
import torch

from reference import params_truth
from simclr_engine.kernels import philox as module
from simclr_engine.kernels.philox import philox, philox_torch, uniform

# Random123's kat_vectors for philox4x32-10: counter, key (low, high), answer.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF, 0xFFFFFFFF), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]) -> None:
    column = torch.tensor(counter)[:, None]
    seed = key[0] | key[1] << 32
    assert tuple(philox_torch(column, seed)[:, 0].tolist()) == answer
    assert tuple(philox(column, seed)[:, 0].tolist()) == answer


@pytest.mark.parametrize("seed", [0, 1, 2**32, 0x9E3779B97F4A7C15, 2**64 - 1])
def test_every_backend_agrees_with_unbounded_integers(seed: int) -> None:
    counter = torch.randint(0, 2**32, (4, 200), generator=torch.Generator().manual_seed(seed % 1000))
    expected = torch.tensor([params_truth.philox(tuple(column), seed) for column in counter.T.tolist()]).T
    assert torch.equal(philox_torch(counter, seed), expected)
    assert torch.equal(philox(counter, seed), expected)


def test_bits_above_the_word_are_ignored() -> None:
    counter = torch.tensor([1, 2, 3, 4])[:, None]
    for beyond in (counter + 2**32, counter - 2**32):
        assert torch.equal(philox_torch(beyond, 5), philox_torch(counter, 5))
        assert torch.equal(philox(beyond, 5), philox(counter, 5))


def test_words_of_one_counter_do_not_depend_on_its_neighbours() -> None:
    counter = torch.arange(4 * 37).view(4, 37)
    alone = torch.cat([philox_torch(counter[:, i : i + 1], 7) for i in range(37)], dim=1)
    assert torch.equal(philox_torch(counter, 7), alone)


def test_compiled_words_are_the_same_bits_for_any_layout() -> None:
    if module._native is None:
        pytest.skip("the native module is not built here: philox runs in torch")
    counter = torch.randint(0, 2**32, (1001, 4)).T  # strided, and of odd length
    assert torch.equal(module.philox_native(counter, 2**63 + 5), philox_torch(counter, 2**63 + 5))
    empty = torch.empty((4, 0), dtype=torch.int64)
    assert module.philox_native(empty, 1).shape == (4, 0)


def test_uniform_is_in_the_half_open_interval_and_exact_in_both_precisions() -> None:
    words = torch.tensor([0, 255, 256, 2**31, 2**32 - 1])
    expected = torch.tensor([0.0, 0.0, 2.0**-24, 0.5, 1 - 2.0**-24], dtype=torch.float64)
    assert torch.equal(uniform(words, torch.float64), expected)
    assert torch.equal(uniform(words).double(), expected)


@pytest.mark.parametrize("counter", [torch.zeros(4, 2), torch.zeros(3, 2, dtype=torch.int64), torch.zeros(4).long()])
def test_a_counter_of_another_shape_or_type_is_refused(counter: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"counter must be int64 \[4, n\]"):
        philox(counter, 0)
