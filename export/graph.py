"""From the encoder to an ONNX graph: preprocessing inside, dynamic batch, no trace of where it was made."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from simclr_engine.errors import CheckFailed, UsageError

from .runtime import INPUT, OUTPUT

OPSET = 20
LOWEST_OPSET = 18  # torch's exporter writes no lower one: asked for 17 it silently writes 18


class UInt8Encoder(nn.Module):
    """The encoder with its preprocessing: uint8 `[B, S, S, 3]` → features float32 `[B, D]`.

    `(x / 255 − mean) / std` is one multiplication and one subtraction per channel. The normalisation is not folded
    into the first convolution: that one pads with zeros, which mean the normalised zero.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, encoder: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # In channels_last the average pool would be traced as a strided view, eight nodes in ONNX for one reshape.
        self.encoder = copy.deepcopy(encoder).float().eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        shift = torch.tensor(list(mean), dtype=torch.float64).view(3, 1, 1)
        spread = torch.tensor(list(std), dtype=torch.float64).view(3, 1, 1)
        self.register_buffer("scale", (1 / (255 * spread)).float())
        self.register_buffer("offset", (shift / spread).float())

    def forward(self, images: Tensor) -> Tensor:
        """Features of uint8 images."""
        x = images.permute(0, 3, 1, 2).contiguous().to(torch.float32)
        features: Tensor = self.encoder(x * self.scale - self.offset)
        return features


@dataclass(frozen=True)
class Traced:
    """An ONNX model and the torch program that it was translated from; their values share names."""

    model: onnx.ModelProto
    program: torch.export.ExportedProgram


def check_opset(opset: int) -> None:
    """Refuses an opset that cannot be written as asked.

    Raises:
        UsageError: below 18, or above what the installed `onnx` knows.
    """
    highest = onnx.defs.onnx_opset_version()
    if not LOWEST_OPSET <= opset <= highest:
        raise UsageError(
            "this opset cannot be written",
            saw=opset,
            fix=f"--opset {LOWEST_OPSET} to {highest}; {OPSET} is tested most",
        )


def trace_encoder(
    encoder: nn.Module, mean: Sequence[float], std: Sequence[float], image_size: int, opset: int
) -> Traced:
    """Translates the encoder to ONNX.

    Args:
        encoder: normalised float32 `[B, 3, S, S]` → `[B, D]`; copied, never changed.
        mean, std: per channel, in units of pixel / 255.
        image_size: S, fixed in the graph.
        opset: of the ONNX standard; see `check_opset`.

    Returns:
        Input `images` uint8 `[batch, S, S, 3]`, output `features` float32 `[batch, D]`, weights inside, batch norm
        folded into the convolutions (by the exporter's optimizer; parity is measured on the result).

    Raises:
        UsageError: the exporter could not write this opset.
        CheckFailed: the exporter gave nothing.
    """
    check_opset(opset)
    module = UInt8Encoder(encoder, mean, std).eval()
    example = torch.zeros((2, image_size, image_size, 3), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations between torch and its exporter
        exported = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            external_data=False,
            opset_version=opset,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    if exported is None or exported.exported_program is None:
        raise CheckFailed("torch's exporter gave no program", saw=torch.__version__, fix="update torch and onnxscript")
    model = exported.model_proto
    written = {o.domain: o.version for o in model.opset_import}
    if written != {"": opset}:
        raise UsageError(
            "the exporter could not write this opset", saw=f"asked {opset}, written {written}", fix=f"--opset {OPSET}"
        )
    strip_origin(model)
    return Traced(model, exported.exported_program)


def strip_origin(message: Any) -> None:
    """Removes every doc string and metadata entry of a protobuf message, at any depth: torch writes the stack trace of
    each node, with the paths of the machine that exported, into them."""
    for descriptor, value in message.ListFields():
        if descriptor.name in ("doc_string", "metadata_props"):
            message.ClearField(descriptor.name)
        elif descriptor.message_type is not None:
            for child in (value,) if hasattr(value, "ListFields") else value:
                strip_origin(child)


class _Recorder(torch.fx.Interpreter):
    """Runs a traced program and keeps every tensor by the name of its node."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__(program.graph_module)
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.op == "call_function":
            self.values[n.name] = result
        return result


def traced_values(program: torch.export.ExportedProgram, images: Tensor) -> dict[str, Tensor]:
    """Every intermediate tensor of the program for uint8 `[B, S, S, 3]`, by node name, the output as `features`."""
    arguments: list[Any] = []
    for spec in program.graph_signature.input_specs:
        if spec.target is None:
            arguments.append(images)
        elif spec.target in program.state_dict:
            arguments.append(program.state_dict[spec.target])
        else:
            arguments.append(program.constants[spec.target])
    recorder = _Recorder(program)
    with torch.no_grad():
        recorder.run(*arguments)
    values = recorder.values
    values[OUTPUT] = values[str(program.graph_signature.user_outputs[0])]
    return values
