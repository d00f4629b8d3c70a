"""Maps the plain top-level folders under one import name, and builds the optional compiled module.

`engine`, `kernels`, `export` and `bench` are too common to install as such: they become `simclr_engine`,
`simclr_engine.kernels`, `simclr_engine.export` and `simclr_engine.bench`.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

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


class CMakeBuild(build_ext):
    """Runs CMakeLists.txt. Whatever keeps it from working is said in one line, and the installation goes on."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        try:
            self.run_cmake(target)
        except (OSError, RuntimeError) as reason:
            print(f"simclr-engine: no native module ({reason}); the PyTorch path serves.", file=sys.stderr)

    def run_cmake(self, target: Path) -> None:
        """Configure and build, leaving the module at `target`; RuntimeError says why not."""
        if importlib.util.find_spec("nanobind") is None:
            raise RuntimeError("nanobind is not installed")
        # The cmake package puts its program beside the interpreter, which need not be on PATH.
        cmake = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
        if cmake is None:
            raise RuntimeError("CMake is not installed")
        build = Path(self.build_temp).resolve() / "cmake"
        # A configuration is bound to its interpreter, which under build isolation lived in a folder now gone.
        shutil.rmtree(build, ignore_errors=True)
        build.mkdir(parents=True)
        here = Path(__file__).resolve().parent
        configure = [
            cmake,
            "-S",
            here,
            "-B",
            build,
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
        ]
        configure += [f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY{suffix}={target.parent}" for suffix in ("", "_RELEASE")]
        log = build / "build.log"
        with log.open("w") as output:
            for step in (
                configure,
                [cmake, "--build", build, "--config", "Release", "--parallel", str(os.cpu_count() or 1)],
            ):
                if subprocess.run(step, stdout=output, stderr=subprocess.STDOUT).returncode:
                    raise RuntimeError(f"CMake failed: {first_error(log)}")
        if not target.is_file():
            raise RuntimeError(f"CMake did not leave it in {target.parent}")


def first_error(log: Path) -> str:
    """The first complaint in a build log (CMake puts it on the line after its own), and where the rest is."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("CMake Error"):
            return f"{following or line} (see {log})"
        if re.search(r"\berror\b( [A-Z]*\d+)?:", line, re.IGNORECASE):
            return f"{line} (see {log})"
    return f"{lines[-1] if lines else 'no output'} (see {log})"


setup(
    package_dir=FOLDERS,
    packages=packages(),
    include_package_data=False,  # or the C++ sources would be installed
    package_data={
        "simclr_engine": ["py.typed", "recipes/*.toml"],
        "simclr_engine.report": ["templates/*.html.j2", "templates/*.css"],
        "simclr_engine.export": ["*.css", "*.html", "*.js", "page/*"],
    },
    # The sources are named so that they travel in a source distribution; CMake reads them, not setuptools.
    ext_modules=[
        Extension(
            "simclr_engine.kernels._native",
            ["CMakeLists.txt", *(path.as_posix() for path in sorted(Path("kernels/native").glob("*.cpp")))],
            depends=[path.as_posix() for path in sorted(Path("kernels/native").glob("*.h"))],
            optional=True,
        )
    ],
    cmdclass={"build_ext": CMakeBuild},
)
