"""Weights of ResNets under the names that other libraries give them."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simclr_engine.torchvision_shim import import_torchvision

State = dict[str, Tensor]


def settled(network: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode, with batch norm's statistics and scales away from where they start: a slip shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor, low, high in (
                    (module.running_mean, -0.3, 0.3),
                    (module.running_var, 0.5, 2.0),
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.3, 0.3),
                ):
                    assert tensor is not None
                    tensor.uniform_(low, high, generator=generator)
    return network.eval()


@functools.cache
def torchvision_network(arch: str, stem: str) -> nn.Module:
    """torchvision's own ResNet with its classifier; for small images with the stem that everybody writes by hand."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: nn.Module = getattr(import_torchvision().models, arch)()
        if stem == "small":
            network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
            network.maxpool = nn.Identity()
    return settled(network)


def features(network: nn.Module, side: int = 16) -> np.ndarray:
    """What the network says of two fixed images, `[2, D]`."""
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network(images).flatten(1).numpy()


def without_classifier(network: nn.Module) -> nn.Module:
    network = copy.copy(network)
    network._modules = network._modules | {"fc": nn.Identity()}
    return network


def numbered_tensors() -> State:
    """A ResNet-18 with the small stem in which every tensor is one number of its own, stored once: a file of 50 kB."""
    shapes = without_classifier(torchvision_network("resnet18", "small")).state_dict()
    return {
        name: torch.tensor(0.5 + i / 128).to(tensor.dtype).expand(tensor.shape)
        for i, (name, tensor) in enumerate(shapes.items())
    }


def assert_filled(encoder: nn.Module, state: State) -> None:
    """The encoder holds these values and no others, each tensor in memory of its own."""
    ours = encoder.state_dict()
    assert ours.keys() == state.keys()
    assert [name for name in ours if not torch.equal(ours[name], state[name])] == []
    assert len({tensor.data_ptr() for tensor in ours.values()}) == len(ours)
    assert all(tensor.is_contiguous() for tensor in ours.values())
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def saved(folder: Path, content: object, name: str = "weights.pt", **options: Any) -> Path:
    torch.save(content, folder / name, **options)
    return folder / name


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def lightly_names(state: State) -> State:
    """The names of lightly's own ResNet (and of the CIFAR ResNets that it follows)."""
    return {name.replace(".downsample.", ".shortcut."): tensor for name, tensor in state.items()}


def numbered(state: State, first: int) -> State:
    """The names of an nn.Sequential over the children of a ResNet, whose first stage is number `first`."""
    numbers = {"conv1": 0, "bn1": 1} | {f"layer{i + 1}": first + i for i in range(4)}
    return {f"{numbers[name.split('.')[0]]}.{name.partition('.')[2]}": tensor for name, tensor in state.items()}
