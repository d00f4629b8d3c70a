"""Maps the plain top-level folders under one import name.

`engine`, `kernels`, `export` and `bench` are too common to install as such: they become `simclr_engine`,
`simclr_engine.kernels`, `simclr_engine.export` and `simclr_engine.bench`.
"""

from setuptools import find_packages, setup

FOLDERS = {
    "simclr_engine": "engine",
    "simclr_engine.kernels": "kernels",
    "simclr_engine.export": "export",
    "simclr_engine.bench": "bench",
}


def packages() -> list[str]:
    """Every import package: each mapped folder and the packages below it."""
    found: list[str] = []
    for name, folder in FOLDERS.items():
        found.append(name)
        found += [f"{name}.{child}" for child in find_packages(folder)]
    return found


setup(
    package_dir=FOLDERS,
    packages=packages(),
    package_data={"simclr_engine": ["py.typed", "recipes/*.toml"]},
)
