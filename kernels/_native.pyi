import numpy as np
from numpy.typing import NDArray

def philox(counter: NDArray[np.int64], key_low: int, key_high: int, words: NDArray[np.int64]) -> None: ...
