import numpy as np
from numpy.typing import NDArray

def philox(counter: NDArray[np.int64], key_low: int, key_high: int, words: NDArray[np.int64]) -> None: ...
def draw(
    sample_ids: NDArray[np.int64],
    seed: int,
    epoch: int,
    image_size: int,
    crop_scale: tuple[float, float],
    crop_ratio: tuple[float, float],
    half_log_ratio: tuple[float, float],
    flip: float,
    jitter: float,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    gray: float,
    blur: float,
    blur_sigma: tuple[float, float],
    table: NDArray[np.float32],
) -> None: ...
def augment(
    images: NDArray[np.uint8],
    table: NDArray[np.float32],
    mean: tuple[float, float, float],
    inverse_std: tuple[float, float, float],
    jitter: bool,
    gray: bool,
    blur: bool,
    blur_kernel: int,
    threads: int,
    instructions: str,
    views: NDArray[np.float32] | NDArray[np.int16],
) -> None: ...
def instruction_sets() -> list[str]: ...
