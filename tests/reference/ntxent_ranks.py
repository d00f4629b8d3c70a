"""What one rank does in the tests of the distributed NT-Xent; a process of its own, so it must be importable by it."""

from __future__ import annotations

import os
import warnings
from multiprocessing import set_forkserver_preload
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from simclr_engine.kernels import nt_xent


def run(ranks: int, cases: list[dict[str, Any]], folder: Path) -> list[list[dict[str, Any]]]:
    """Start the ranks, let each go through all cases; results by rank and case.

    A case holds x `[V, W, B, D]` (W counts its `members`, if it names any), weight `[D, D]`, views, temperature, and
    optionally backend and scale.
    """
    set_forkserver_preload(["simclr_engine.pretraining", "torch.multiprocessing"])  # as in `training_ranks`: one server
    mp.start_processes(_rank, (ranks, cases, str(folder)), nprocs=ranks, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]


def _rank(rank: int, ranks: int, cases: list[dict[str, Any]], folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # where a machine's own name does not resolve
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    waiting = []
    for case in cases:
        members = case.get("members", list(range(ranks)))
        group = dist.new_group(members) if "members" in case else None  # every rank takes part in making it
        if rank in members:
            waiting.append(_forward(case, members.index(rank), group))
        else:
            waiting.append(None)
    dist.destroy_process_group()  # from here on nobody can talk to anybody
    results = [{} if one is None else _backward(*one) for one in waiting]
    torch.save(results, Path(folder) / f"{rank}.pt")


def _forward(case: dict[str, Any], index: int, group: Any) -> tuple[dict[str, Any], Any, Any, Any]:
    """The loss of this rank's share, from rows x through weights that all ranks share."""
    x, weight = case["x"], case["weight"].clone().requires_grad_()
    z = (x[:, index].flatten(0, 1) @ weight).requires_grad_()
    z.retain_grad()
    backend = case.get("backend", "auto")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loss = nt_xent(z, case["views"], case["temperature"], backend, group or dist.group.WORLD)
    return case | {"warnings": [str(one.message) for one in said]}, z, weight, loss


def _backward(case: dict[str, Any], z: torch.Tensor, weight: torch.Tensor, loss: torch.Tensor) -> dict[str, Any]:
    result: dict[str, Any] = {"loss": loss.detach(), "error": "", "warnings": case["warnings"]}
    try:
        torch.autograd.grad(loss, z, create_graph=True)
    except RuntimeError as error:
        result["error"] = str(error)
    (loss * case.get("scale", 1.0)).backward()
    return result | {"z": z.grad, "weight": weight.grad}
