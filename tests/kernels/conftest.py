"""Makes the float64 truths of tests/reference importable by name, and torchvision importable beside any torch."""

import sys
from pathlib import Path

from simclr_engine.torchvision_shim import import_torchvision

import_torchvision()
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "reference"))
