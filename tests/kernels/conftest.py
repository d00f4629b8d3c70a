"""Makes torchvision, which is the truth of augmentation, importable beside any build of torch."""

from simclr_engine.torchvision_shim import import_torchvision

import_torchvision()
