"""What one would write without this project: other libraries' views, the whole matrix, a loop over parameters.

A builder of views takes uint8 images `[B, H, W, 3]`, the spec and V, imports its library and returns a call that makes
the V·B normalised views of one batch, in that library's idiom and with the distributions of the spec. Only torchvision
is a dependency of this project; ImportError means not installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from simclr_engine.kernels import AugmentSpec
from simclr_engine.model import Convolution
from simclr_engine.optim import NEWTON_SCHULZ
from simclr_engine.torchvision_shim import import_torchvision

Builder = Callable[[NDArray[np.uint8], AugmentSpec, int], Callable[[], object]]


def torchvision_v1(images: NDArray[np.uint8], spec: AugmentSpec, views: int) -> Callable[[], object]:
    """Image by image through PIL, as in the published SimCLR training scripts."""
    import_torchvision()
    from PIL import Image
    from torchvision import transforms as T

    jitter = T.ColorJitter(spec.brightness, spec.contrast, spec.saturation, spec.hue)
    crop = T.RandomResizedCrop(spec.image_size, spec.crop_scale, spec.crop_ratio)
    colour = [T.RandomApply([jitter], spec.jitter), T.RandomGrayscale(spec.gray)]
    last = [T.ToTensor(), T.Normalize(spec.mean, spec.std)]
    transform = T.Compose([crop, T.RandomHorizontalFlip(spec.flip), *colour, *last])
    return lambda: torch.stack([transform(Image.fromarray(image)) for _ in range(views) for image in images])


def torchvision_v2(images: NDArray[np.uint8], spec: AugmentSpec, views: int) -> Callable[[], object]:
    """Image by image on uint8 tensors. (Given a batch, v2 draws one set of parameters for all of it: not SimCLR.)"""
    import_torchvision()
    from torchvision.transforms import v2

    jitter = v2.ColorJitter(spec.brightness, spec.contrast, spec.saturation, spec.hue)
    crop = v2.RandomResizedCrop(spec.image_size, spec.crop_scale, spec.crop_ratio, antialias=True)
    colour = [v2.RandomApply([jitter], spec.jitter), v2.RandomGrayscale(spec.gray)]
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(spec.mean), list(spec.std))]
    transform = v2.Compose([crop, v2.RandomHorizontalFlip(spec.flip), *colour, *last])
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2)
    return lambda: torch.stack([transform(image) for _ in range(views) for image in tensors])


def kornia(images: NDArray[np.uint8], spec: AugmentSpec, views: int) -> Callable[[], object]:
    """The whole batch at once; one order of the jitter per batch."""
    import kornia.augmentation as K

    transform = K.AugmentationSequential(
        K.RandomResizedCrop((spec.image_size, spec.image_size), spec.crop_scale, spec.crop_ratio),
        K.RandomHorizontalFlip(p=spec.flip),
        K.ColorJitter(spec.brightness, spec.contrast, spec.saturation, spec.hue, p=spec.jitter),
        K.RandomGrayscale(p=spec.gray),
        K.Normalize(torch.tensor(spec.mean), torch.tensor(spec.std)),
    )
    stored = torch.from_numpy(images).permute(0, 3, 1, 2).repeat(views, 1, 1, 1)
    return lambda: transform(stored.float() / 255)


def albumentations(images: NDArray[np.uint8], spec: AugmentSpec, views: int) -> Callable[[], object]:
    """Image by image through OpenCV, one process."""
    import albumentations as A

    factors = [(1 - strength, 1 + strength) for strength in (spec.brightness, spec.contrast, spec.saturation)]
    transform = A.Compose(
        [
            A.RandomResizedCrop((spec.image_size, spec.image_size), spec.crop_scale, spec.crop_ratio),
            A.HorizontalFlip(p=spec.flip),
            A.ColorJitter(*factors, (-spec.hue, spec.hue), p=spec.jitter),
            A.ToGray(p=spec.gray),
            A.Normalize(spec.mean, spec.std),
        ]
    )
    return lambda: torch.from_numpy(
        np.stack([transform(image=image)["image"] for _ in range(views) for image in images])
    ).permute(0, 3, 1, 2)


def lightly(images: NDArray[np.uint8], spec: AugmentSpec, views: int) -> Callable[[], object]:
    """lightly's SimCLRTransform, image by image; it always makes two views."""
    import_torchvision()
    from lightly.transforms import SimCLRTransform
    from PIL import Image

    transform = SimCLRTransform(
        input_size=spec.image_size,
        cj_prob=spec.jitter,
        cj_strength=1.0,
        cj_bright=spec.brightness,
        cj_contrast=spec.contrast,
        cj_sat=spec.saturation,
        cj_hue=spec.hue,
        min_scale=spec.crop_scale[0],
        random_gray_scale=spec.gray,
        gaussian_blur=spec.blur,
        hf_prob=spec.flip,
        normalize={"mean": list(spec.mean), "std": list(spec.std)},
    )

    def call() -> object:
        made: list[Any] = []
        while len(made) < views * len(images):
            for image in images:
                made += transform(Image.fromarray(image))
        return torch.stack(made)

    return call


def dali(images: NDArray[np.uint8], spec: AugmentSpec, views: int) -> Callable[[], object]:
    """NVIDIA DALI on the CPU, in its documented operators: fixed order of the jitter, hue in YIQ, pivot 128."""
    from nvidia.dali import fn, pipeline_def, types

    stored = [np.ascontiguousarray(image) for _ in range(views) for image in images]

    def chance(low: float, high: float) -> Any:
        return fn.random.uniform(range=[low, high])

    def happens(probability: float) -> Any:
        return fn.random.coin_flip(probability=probability)

    # Without prefetching: it would run on during the other contenders' turns, at their cost and to its own benefit.
    @pipeline_def(
        batch_size=len(stored),
        num_threads=torch.get_num_threads(),
        device_id=None,
        seed=0,
        exec_async=False,
        exec_pipelined=False,
        prefetch_queue_depth=1,
    )
    def graph() -> Any:
        x = fn.external_source(source=lambda: stored, layout="HWC")
        x = fn.random_resized_crop(
            x,
            size=[spec.image_size, spec.image_size],
            random_area=list(spec.crop_scale),
            random_aspect_ratio=list(spec.crop_ratio),
        )
        on, colour = happens(spec.jitter), 1 - happens(spec.gray)
        x = fn.color_twist(
            x,
            brightness=1 + on * chance(-spec.brightness, spec.brightness),
            contrast=1 + on * chance(-spec.contrast, spec.contrast),
            saturation=colour * (1 + on * chance(-spec.saturation, spec.saturation)),
            hue=on * chance(-360 * spec.hue, 360 * spec.hue),
        )
        return fn.crop_mirror_normalize(
            x,
            mirror=happens(spec.flip),
            mean=[255 * m for m in spec.mean],
            std=[255 * s for s in spec.std],
            dtype=types.FLOAT,
            output_layout="CHW",
        )

    pipeline = graph()
    pipeline.build()
    return lambda: pipeline.run()[0].as_tensor()


BUILDERS: dict[str, Builder] = {
    "torchvision v1 per image": torchvision_v1,
    "torchvision v2 per image": torchvision_v2,
    "kornia": kornia,
    "albumentations": albumentations,
    "lightly": lightly,
    "DALI on CPU": dali,
}


def nt_xent_eager(z: Tensor, temperature: float) -> Tensor:
    """NT-Xent of two views over the full M × M matrix, z `[2B, D]`, row v·B + i is view v of sample i."""
    z = F.normalize(z, dim=1)
    logits = z @ z.T / temperature
    logits.fill_diagonal_(float("-inf"))
    rows = len(z)
    positives = (torch.arange(rows, device=z.device) + rows // 2) % rows
    return F.cross_entropy(logits, positives)


def nt_xent_boolean_mask(z: Tensor, temperature: float) -> Tensor:
    """The same by boolean masks: positives and negatives picked out of the matrix, as in many published scripts.

    The indexing waits for the device, and copies the matrix once more.
    """
    z = F.normalize(z, dim=1)
    rows = len(z)
    similarity = z @ z.T
    sample = torch.arange(rows // 2, device=z.device).repeat(2)
    same = sample[:, None] == sample[None, :]
    itself = torch.eye(rows, dtype=torch.bool, device=z.device)
    same, similarity = same[~itself].view(rows, -1), similarity[~itself].view(rows, -1)
    logits = torch.cat([similarity[same].view(rows, -1), similarity[~same].view(rows, -1)], dim=1)
    return F.cross_entropy(logits / temperature, torch.zeros(rows, dtype=torch.long, device=z.device))


class LoopLARS:
    """The update of our `LARS(form="paper")`, one by one; `if norm > 0` makes the host wait for each norm."""

    def __init__(
        self, groups: Iterable[dict[str, object]], lr: float, momentum: float, trust_coefficient: float
    ) -> None:
        self.groups, self.lr, self.momentum, self.eta = list(groups), lr, momentum, trust_coefficient
        self.buffers: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self) -> None:
        """One update."""
        for group in self.groups:
            params, decay = group["params"], group["weight_decay"]
            assert isinstance(params, list) and isinstance(decay, float)
            for p in params:
                ratio = 1.0
                if p.ndim > 1:
                    weight, grad = p.norm(), p.grad.norm()
                    if weight > 0 and grad > 0:
                        ratio = self.eta * weight / (grad + decay * weight)
                buffer = self.buffers.setdefault(p, torch.zeros_like(p))
                buffer.mul_(self.momentum).add_((p.grad + decay * p) * ratio * self.lr)
                p.sub_(buffer)


def torch_muon(module: nn.Module, lr: float) -> torch.optim.Optimizer:
    """torch's Muon over every weight of `module` that is a matrix, or as one, and nothing over the rest.

    It takes 2-D parameters alone, so a convolution's weight is seen as `[out, in·kh·kw]`, with the gradient it has.
    """
    matrices = []
    for p in module.parameters():
        if p.ndim > 1 and p.size(1) != 3:
            matrix = p.detach().flatten(1)
            matrix.grad = None if p.grad is None else p.grad.flatten(1)
            matrices.append(matrix)
    return torch.optim.Muon(matrices, lr, weight_decay=0.0, momentum=0.9)


def newton_schulz_each(matrices: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Our `orthogonalise` of wide matrices `[K, m, n]`, matrix by matrix and step by step, as it is usually written."""
    a, b, c = NEWTON_SCHULZ
    found = []
    for matrix in matrices:
        x = (matrix / matrix.norm()).to(dtype)
        for _ in range(steps):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        found.append(x)
    return torch.stack(found)


def with_plain_convolutions(model: nn.Module) -> nn.Module:
    """The same model, with its weights, with PyTorch's own convolutions throughout."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Convolution):
                plain = nn.Conv2d(child.in_channels, child.out_channels, 3, child.stride[0], padding=1, bias=False)
                plain.weight = child.weight
                setattr(module, name, plain)
    return model


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, views: Tensor, temperature: float) -> Tensor:
    """Forward, loss, backward, update, on views `[2B, 3, S, S]` in fp32 NCHW."""
    optimizer.zero_grad()
    loss = nt_xent_eager(model(views), temperature)
    loss.backward()
    optimizer.step()
    return loss.detach()
