"""The encoder (torchvision's ResNet, small-image or ImageNet stem) and the projection head."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from simclr_engine.kernels.convolution import SMALL, convolve

from .recipe import ARCHITECTURES, HeadSpec, ModelSpec
from .torchvision_shim import import_torchvision


def build_encoder(arch: str, stem: str) -> nn.Module:
    """A ResNet without its classifier, randomly initialised; parameter names are torchvision's.

    Args:
        arch: `resnet18`, `resnet34` or `resnet50`.
        stem: `small` (3×3 convolution of stride 1, no max-pool: for images up to about 96 px, SimCLR paper B.9) or
            `imagenet` (7×7 of stride 2 and max-pool).

    Returns:
        A module from normalised images `[B, 3, S, S]` to features `[B, feature_dim]`, with `feature_dim` (512, or 2048
        for `resnet50`) as an attribute.
    """
    if arch not in ARCHITECTURES or stem not in ("small", "imagenet"):
        raise ValueError(f"arch {arch!r}, stem {stem!r}: known are {ARCHITECTURES} and ('small', 'imagenet')")
    constructor = cast("Callable[[], nn.Module]", getattr(import_torchvision().models, arch))
    encoder = constructor()
    feature_dim = cast(nn.Linear, encoder.fc).in_features
    if stem == "small":
        conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision initialises its own
        encoder.conv1 = conv1
        encoder.maxpool = nn.Identity()
    for module in encoder.modules():
        # The same parameters, initialised as they are: only what `forward` calls is another function.
        if type(module) is nn.Conv2d and module.kernel_size == (3, 3):  # of padding 1, without bias or dilation
            module.__class__ = Convolution
    encoder.fc = nn.Identity()
    encoder.feature_dim = cast(
        Tensor, feature_dim
    )  # a plain int: nn.Module's annotations know tensors and modules only
    return encoder


class Convolution(nn.Conv2d):
    """torchvision's 3×3 convolution (padding 1, no bias); in CPU training, small maps take `kernels.convolution`."""

    def forward(self, input: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, K, H', W']`."""
        stride = self.stride[0]
        small = max(input.shape[2:]) <= SMALL * stride
        if not (small and self.training and input.device.type == "cpu" and torch.is_grad_enabled()):
            return super().forward(input)
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):  # which casts only what it knows
            dtype = torch.get_autocast_dtype("cpu")
            input, weight = input.to(dtype), weight.to(dtype)
        return convolve(input, weight, stride)


def build_head(feature_dim: int, spec: HeadSpec) -> nn.Sequential:
    """The projection head: linear layers with ReLU between them, `[B, feature_dim]` → `[B, spec.dimension]`.

    With batch norm after a layer its bias would be without effect and is left out.
    """
    layers: list[nn.Module] = []
    width = feature_dim
    for i, hidden in enumerate(spec.hidden):
        if i and spec.dropout:
            layers.append(nn.Dropout(spec.dropout))
        normalise = spec.batch_norm != "none"
        layers.append(nn.Linear(width, hidden, bias=not normalise))
        if normalise:
            layers.append(nn.BatchNorm1d(hidden))
        layers.append(nn.ReLU(inplace=True))
        width = hidden
    if spec.dropout:
        layers.append(nn.Dropout(spec.dropout))
    layers.append(nn.Linear(width, spec.dimension, bias=spec.batch_norm != "all"))
    if spec.batch_norm == "all":
        layers.append(nn.BatchNorm1d(spec.dimension))
    return nn.Sequential(*layers)


class SimCLR(nn.Module):
    """Encoder and projection head in one pass over all views."""

    def __init__(self, model: ModelSpec, head: HeadSpec) -> None:
        super().__init__()
        self.encoder: nn.Module = build_encoder(model.arch, model.stem)
        self.head = build_head(int(cast(int, self.encoder.feature_dim)), head)

    def forward(self, views: Tensor) -> Tensor:
        """Views `[V·B, 3, S, S]` → projections `[V·B, D]`, not normalised (the loss does that)."""
        return cast(Tensor, self.head(self.encoder(views)))


def parameter_count(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
