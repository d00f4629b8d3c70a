"""ResNets that smooth before they stride, as timm's `resnetblur` and `resnetaa`: the plain network's weights and names.

Blur: Zhang, "Making convolutional networks shift-invariant again", 2019 (arXiv 1904.11486). A strided convolution
becomes one of stride 1 whose activation is smoothed and then subsampled.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .model import BasicBlock, Bottleneck, ResNet

KINDS = {
    "blur": "blurs before it strides, as timm's resnetblur",
    "average": "averages in place of striding, as resnetaa",
}


class _Blur(nn.Module):
    """A binomial filter of 3×3 with stride 2 over each channel, reflected at the border."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        row = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("kernel", torch.outer(row, row).expand(channels, 1, 3, 3).clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, C, ⌈H / 2⌉, ⌈W / 2⌉]`."""
        return functional.conv2d(functional.pad(x, [1, 1, 1, 1], "reflect"), self.kernel, stride=2, groups=x.shape[1])


def smooth(encoder: ResNet, kind: str) -> ResNet:
    """`encoder`, whose weights are loaded, made to smooth; `kind` is one of `KINDS`. Its names change with it."""

    def layer(channels: int) -> nn.Module:
        return _Blur(channels) if kind == "blur" else nn.AvgPool2d(2)

    pool = nn.Sequential(nn.MaxPool2d(kernel_size=3, stride=1, padding=1), layer(64))
    encoder.maxpool = pool if kind == "blur" else layer(64)
    for block in encoder.modules():
        if not isinstance(block, BasicBlock | Bottleneck):
            continue
        convolution, norm = (block.conv1, "bn1") if isinstance(block, BasicBlock) else (block.conv2, "bn2")
        if convolution.stride == (2, 2):
            convolution.stride = (1, 1)
            activated = nn.Sequential(getattr(block, norm), nn.ReLU(inplace=True), layer(convolution.out_channels))
            setattr(block, norm, activated)  # the block's own ReLU changes nothing of it
    return encoder
