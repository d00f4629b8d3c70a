"""What several commands share: `--set KEY=VALUE`, `--sha256`, the choice of images and `--json`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..documents import to_json
from ..errors import UsageError
from ..terminal import tell

if TYPE_CHECKING:
    from ..data import Selection


class Number(click.FloatRange):
    """A finite number above `min`; click would take `inf` and `nan`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def stem_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--stem-padding` and `--stem-pool`: what a file of weights from elsewhere does not say of the network."""
    pool = click.option(
        "--stem-pool",
        type=click.Choice(["max", "none", "blur", "average"]),
        help="For weights from elsewhere: the pooling after the first convolution; blur and average smooth at all "
        "strides (timm's resnetblur, resnetaa).  [default: as the file says, else none after 3×3 and max after 7×7]",
    )
    padding = click.option(
        "--stem-padding",
        type=click.IntRange(0, 9),
        metavar="N",
        help="For weights from elsewhere: padding of the first convolution in pixels.  "
        "[default: as the file says, else 1 for 3×3 and 3 for 7×7]",
    )
    return padding(pool(command))


sha256_option = click.option(
    "--sha256",
    metavar="HEX",
    help="Refuse an .onnx file that has not this sha256: its own digest shows accidents, not forgery.",
)


def parse_overrides(pairs: Sequence[str]) -> dict[str, str]:
    """`["a.b=c", …]` → `{"a.b": "c"}`."""
    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError("--set takes KEY=VALUE", saw=pair, fix="for example --set train.epochs=200")
        overrides[key.strip()] = value.strip()
    return overrides


def selection_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds `--labels` and `--list` to a command that takes images; `selected` makes one of the three."""
    labels = click.option(
        "--labels",
        metavar="PATH",
        help="Table (CSV) of the classes: a column of files and a column of labels. Folders are then no classes.",
    )
    files = click.option(
        "--list",
        "files",
        metavar="PATH",
        help="Use the images that this file lists, one path on each line, relative to the data or else to the file.",
    )
    return labels(files(command))


def selected(data: str | None, labels: str | None, files: str | None) -> str | Selection | None:
    """The images that a user named by `--data`, `--labels` and `--list`; None for none."""
    if labels is None and files is None:
        return data
    from ..data import Selection

    return Selection(data, labels, files)


def print_json(document: dict[str, Any]) -> None:
    """Prints the document of `--json` to stdout."""
    tell(*to_json(document, indent=2).replace("\x7f", "\\u007f").split("\n"))
