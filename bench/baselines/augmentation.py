"""SimCLR's views as other libraries make them, each in its own idiom, with the distributions of an AugmentSpec.

A builder takes uint8 images `[B, H, W, 3]`, the spec and V, imports its library and returns a call that makes the
V·B normalised views of one batch. Only torchvision is a dependency of this project; ImportError means not installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from simclr_engine.kernels import AugmentSpec
from simclr_engine.torchvision_shim import import_torchvision

Builder = Callable[[NDArray[np.uint8], AugmentSpec, int], Callable[[], object]]


def torchvision_v1(images: NDArray[np.uint8], spec: AugmentSpec, views: int) -> Callable[[], object]:
    """Image by image through PIL, as in the published SimCLR training scripts."""
    import_torchvision()
    from PIL import Image
    from torchvision import transforms as T

    jitter = T.ColorJitter(spec.brightness, spec.contrast, spec.saturation, spec.hue)
    transform = T.Compose(
        [
            T.RandomResizedCrop(spec.image_size, spec.crop_scale, spec.crop_ratio),
            T.RandomHorizontalFlip(spec.flip),
            T.RandomApply([jitter], spec.jitter),
            T.RandomGrayscale(spec.gray),
            T.ToTensor(),
            T.Normalize(spec.mean, spec.std),
        ]
    )
    return lambda: torch.stack([transform(Image.fromarray(image)) for _ in range(views) for image in images])


def torchvision_v2(images: NDArray[np.uint8], spec: AugmentSpec, views: int) -> Callable[[], object]:
    """Image by image on uint8 tensors. (Given a batch, v2 draws one set of parameters for all of it: not SimCLR.)"""
    import_torchvision()
    from torchvision.transforms import v2

    jitter = v2.ColorJitter(spec.brightness, spec.contrast, spec.saturation, spec.hue)
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(spec.image_size, spec.crop_scale, spec.crop_ratio, antialias=True),
            v2.RandomHorizontalFlip(spec.flip),
            v2.RandomApply([jitter], spec.jitter),
            v2.RandomGrayscale(spec.gray),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(spec.mean), list(spec.std)),
        ]
    )
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

    transform = A.Compose(
        [
            A.RandomResizedCrop((spec.image_size, spec.image_size), spec.crop_scale, spec.crop_ratio),
            A.HorizontalFlip(p=spec.flip),
            A.ColorJitter(
                (1 - spec.brightness, 1 + spec.brightness),
                (1 - spec.contrast, 1 + spec.contrast),
                (1 - spec.saturation, 1 + spec.saturation),
                (-spec.hue, spec.hue),
                p=spec.jitter,
            ),
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
