"""The encoder (a ResNet with a stem for small images or for ImageNet) and the projection head."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from simclr_engine.kernels.convolution import SMALL, convolve

from .errors import UsageError
from .stem import ALLOWED, Stem, is_stem

if TYPE_CHECKING:
    from .recipe import HeadSpec, ModelSpec


class Convolution(nn.Conv2d):
    """3×3, no bias; in CPU training, small maps with padding 1 take `kernels.convolution`."""

    def __init__(self, inputs: int, outputs: int, stride: int, padding: int = 1) -> None:
        super().__init__(inputs, outputs, kernel_size=3, stride=stride, padding=padding, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, K, H', W']`."""
        stride = self.stride[0]
        small = max(input.shape[2:]) <= SMALL * stride and self.padding == (1, 1)
        if not (small and self.training and input.device.type == "cpu" and torch.is_grad_enabled()):
            return super().forward(input)
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):  # autocast casts only the operators it knows
            dtype = torch.get_autocast_dtype("cpu")
            input, weight = input.to(dtype), weight.to(dtype)
        return convolve(input, weight, stride)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Convolution(inputs, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = Convolution(width, width, 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _downsample(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, width, H / stride, W / stride]`."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return cast(Tensor, self.relu(y))


class Bottleneck(nn.Module):
    """A 3×3 convolution between two 1×1 ones, with a shortcut; the 3×3 one has the stride ("ResNet v1.5")."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = Convolution(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, 4·width, H / stride, W / stride]`."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return cast(Tensor, self.relu(y))


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """The shortcut, if it cannot be the identity."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(outputs))


ARCHITECTURES: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


class ResNet(nn.Module):
    """ResNet (He et al., 2015) without the classifier. Parameter names and seeded weights equal torchvision's."""

    def __init__(self, block: type[BasicBlock | Bottleneck], blocks: Sequence[int], stem: Stem) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=stem.padding, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(kernel_size=3, stride=2, padding=1) if stem.pool else nn.Identity()
        inputs, stages = 64, []
        for i, (width, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True)):
            strides = (1 if i == 0 else 2, *(1 for _ in range(count - 1)))
            stage = []
            for stride in strides:
                stage.append(block(inputs, width, stride))
                inputs = block.expansion * width
            stages.append(nn.Sequential(*stage))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.feature_dim = inputs
        # Not kept: torchvision draws the weights of its classifier here, so a seed gives the same encoder.
        nn.Linear(inputs, 1000)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _initialise(module)
        if stem.small:
            self.conv1 = Convolution(3, 64, 1, stem.padding)
            _initialise(self.conv1)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images `[B, 3, S, S]` → features `[B, feature_dim]`."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return torch.flatten(self.avgpool(x), 1)


def _initialise(convolution: nn.Conv2d) -> None:
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")


def build_encoder(arch: str, stem: str) -> ResNet:
    """A ResNet without its classifier, randomly initialised; parameter names are torchvision's.

    Args:
        arch: `resnet18`, `resnet34` or `resnet50`; UsageError for `own`.
        stem: `small` (3×3 convolution of stride 1, no max-pool: for images up to about 96 px, SimCLR paper B.9),
            `imagenet` (7×7 of stride 2 and max-pool), or a variant that `Stem.of` knows.

    Returns:
        A module from normalised images `[B, 3, S, S]` to features `[B, feature_dim]`, with `feature_dim` (512, or 2048
        for `resnet50`) as an attribute.
    """
    if arch == "own":
        raise UsageError(
            "the encoder is a module of its caller's, which no file holds",
            saw="model.arch = own",
            fix="pass it from Python: pretrain(…, encoder=MODULE), evaluate(open_target(RUN, MODULE))",
        )
    if arch not in ARCHITECTURES or not is_stem(stem):
        raise ValueError(f"arch {arch!r}, stem {stem!r}: expected {(*ARCHITECTURES,)} and {ALLOWED}")
    return ResNet(*ARCHITECTURES[arch], Stem.of(stem))


def build_head(feature_dim: int, spec: HeadSpec) -> nn.Sequential:
    """The projection head: linear layers with ReLU between them, `[B, feature_dim]` → `[B, spec.dimension]`.

    A layer that batch norm follows has no bias, because it would have no effect.
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

    def __init__(self, model: ModelSpec, head: HeadSpec, encoder: nn.Module | None = None) -> None:
        """With `encoder`, a module that `own_encoder` made, in place of the recipe's."""
        super().__init__()
        self.encoder: nn.Module = build_encoder(model.arch, model.stem) if encoder is None else encoder
        self.head = build_head(cast(int, self.encoder.feature_dim), head)

    def forward(self, views: Tensor) -> Tensor:
        """Views `[V·B, 3, S, S]` → projections `[V·B, D]`, not normalised (the loss does that)."""
        return cast(Tensor, self.head(self.encoder(views)))


def own_encoder(module: nn.Module, size: int) -> nn.Module:
    """A copy of a caller's encoder on the CPU, with its `feature_dim`.

    Args:
        module: normalised images `[B, 3, S, S]` → features `[B, feature_dim]`, in any floating dtype.
        size: side S in pixels.

    Raises:
        UsageError: it is no module, does not take such images, or gives something else.
    """
    if not isinstance(module, nn.Module):
        raise UsageError("an own encoder must be a torch module", saw=type(module).__name__, fix="pass an nn.Module")
    encoder = deepcopy(module).to("cpu")
    was, images = encoder.training, torch.zeros(2, 3, size, size)
    try:
        with torch.no_grad():
            features = encoder.eval()(images)
    except Exception as error:  # whatever the caller's code raises
        raise UsageError(
            "the encoder does not take the images",
            saw=f"{type(error).__name__}: {error}, for float32 [2, 3, {size}, {size}]",
            fix="pass a module from normalised images [B, 3, S, S] to features [B, D]",
        ) from error
    finally:
        encoder.train(was)
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2 or not features.is_floating_point():
        saw = f"{features.dtype} {list(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        fix = "return one feature vector an image, such as torch.flatten(x, 1)"
        raise UsageError("the encoder must give features [B, D]", saw=saw, fix=fix)
    encoder.feature_dim = features.shape[1]  # type: ignore[assignment]  # to torch's hints, only tensors
    return encoder


def parameter_count(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
