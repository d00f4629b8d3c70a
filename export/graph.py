"""From the encoder to an ONNX graph, preprocessing inside, dynamic batch, no trace of where it was made; and from the
graph to the bytes of a file, with its metadata and a digest of all of it as the last fields."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from simclr_engine.bounds import LARGEST_PROPERTY
from simclr_engine.errors import CheckFailed, DataError, UsageError

from .metadata import DIGEST, ModelMetadata, scan
from .probe import LOGITS, ChosenProbe
from .runtime import INPUT, OUTPUT, PROBABILITIES
from .shapes import OPERATORS

VERSION = version("simclr-engine")
# Most clients know it, and none that knows a newer one refuses it. The exporter writes it without converting, and no
# lower one: asked for 17 it silently writes 18.
OPSET = LOWEST_OPSET = 18


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
        plain = copy.deepcopy(encoder).float().eval()
        _fold_batch_norm(plain)
        self.encoder = plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # not in torch's hints
        shift = torch.tensor(list(mean), dtype=torch.float64).view(3, 1, 1)
        spread = torch.tensor(list(std), dtype=torch.float64).view(3, 1, 1)
        self.register_buffer("scale", (1 / (255 * spread)).float())
        self.register_buffer("offset", (shift / spread).float())

    def forward(self, images: Tensor) -> Tensor:
        """Features of uint8 images."""
        x = images.permute(0, 3, 1, 2).contiguous().to(torch.float32)
        features: Tensor = self.encoder(x * self.scale - self.offset)
        return features


def _fold_batch_norm(module: nn.Module) -> None:
    """Folds each batch norm into the convolution that is registered just before it, as in every ResNet.

    The exporter's optimizer would do it too, after having translated twenty batch norms: 0.8 of 2.9 s for ResNet-18.
    Where the order of registration is not that of the computation, the parity gate shows it.
    """
    before: tuple[str, nn.Module] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and before is not None and isinstance(before[1], nn.Conv2d):
            conv, mean, variance = before[1], child.running_mean, child.running_var
            assert mean is not None and variance is not None  # those of an encoder, which is in eval mode
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, mean, variance, child.eps, child.weight, child.bias
            )
            setattr(module, name, nn.Identity())
        else:
            _fold_batch_norm(child)
        before = name, child


@dataclass(frozen=True)
class Traced:
    """An ONNX model and the torch program that it was translated from; their values share names. With a probe, its
    nodes stand behind the program's."""

    model: onnx.ModelProto
    program: torch.export.ExportedProgram
    probe: ChosenProbe | None = None


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
            fix=f"--opset {LOWEST_OPSET} to {highest}; {OPSET} is read by the most programs",
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
        folded into the convolutions, means over the image as GlobalAveragePool (parity is measured on the result,
        against the encoder as it was).

    Raises:
        UsageError: the exporter could not write this opset.
        CheckFailed: the exporter gave nothing, a fixed batch, or an operator that no reader accepts
            (`shapes.OPERATORS`).
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
    if not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise CheckFailed(
            "the encoder can be exported for batches of two images only",
            saw="it fixes the size of the batch, as len(x) and int(x.shape[0]) do",
            fix="use x.shape[0] as it is, or -1 in reshape and expand",
        )
    if strange := {node.op_type for node in model.graph.node} - OPERATORS:
        raise CheckFailed(
            "the encoder needs operators that are not accepted in an exported file",
            saw=", ".join(sorted(strange)),
            fix="replace the layers that need them by convolutions, products, pools or norms",
        )
    strip_origin(model)
    _pool_globally(model.graph)
    return Traced(model, exported.exported_program)


def _pool_globally(graph: onnx.GraphProto) -> None:
    """Writes a mean over the image as GlobalAveragePool, and a Reshape of it to one row an image as Flatten.

    Several programs know ReduceMean only as it was before opset 18, with its axes as an attribute; all know these two.
    Values keep their names.
    """
    shapes = {v.name: v.type.tensor_type.shape.dim for v in (*graph.value_info, *graph.output)}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    pooled: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        source, result = node.input[0], node.output[0]
        if node.op_type == "ReduceMean" and len(shapes.get(source, ())) == 4 and _axes(node, constants) == {2, 3}:
            kept = next((bool(a.i) for a in node.attribute if a.name == "keepdims"), True)
            pool = result if kept else f"{result}/pool"
            nodes.append(helper.make_node("GlobalAveragePool", [source], [pool], f"{node.name}_pool"))
            if not kept:
                nodes.append(helper.make_node("Flatten", [pool], [result], node.name, axis=1))
            pooled.add(pool)
        elif node.op_type == "Reshape" and source in pooled and len(shapes.get(result, ())) == 2:
            nodes.append(helper.make_node("Flatten", [source], [result], node.name, axis=1))
        else:
            nodes.append(node)
    used = {name for node in nodes for name in node.input}
    kept_tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept_tensors)


def _axes(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> set[int]:
    """The axes of a reduction of four-dimensional values; none if they are computed."""
    if len(node.input) < 2 or node.input[1] not in constants:
        return set()
    return {int(axis) % 4 for axis in numpy_helper.to_array(constants[node.input[1]]).ravel()}


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


def traced_values(traced: Traced, images: Tensor) -> dict[str, NDArray[Any]]:
    """Every intermediate value of the program for uint8 `[B, S, S, 3]`, by node name, the output as `features`; with a
    probe its logits and probabilities, NaN where a class has no logit."""
    program = traced.program
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
    values: dict[str, NDArray[Any]] = {name: value.numpy() for name, value in recorder.values.items()}
    values[OUTPUT] = values[str(program.graph_signature.user_outputs[0])]
    if traced.probe is not None:
        values[LOGITS] = traced.probe.logits(values[OUTPUT])
        values[PROBABILITIES] = traced.probe.probabilities(values[OUTPUT])
    return values


def seal(model: onnx.ModelProto, metadata: ModelMetadata) -> bytes:
    """The bytes of `model` with the metadata, and with the digest of all of it as the last property.

    Raises:
        CheckFailed: it does not pass the ONNX checker.
    """
    return with_metadata(serialised(model), metadata)


def serialised(model: onnx.ModelProto) -> bytes:
    """`model` as a work of ours, still without metadata."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    plain.producer_name, plain.producer_version = "simclr-engine", VERSION
    plain.ir_version = helper.find_min_ir_version_for(list(plain.opset_import), True)  # what the most programs read
    del plain.metadata_props[:]
    return plain.SerializeToString(deterministic=True)


def with_metadata(plain: bytes, metadata: ModelMetadata) -> bytes:
    """`seal` of a model that is serialised already: 45 MB need not be written anew, for the metadata is the last field
    that a file of ours has, and messages of protobuf are merged by putting their bytes one after the other."""
    content = plain + _properties(metadata.to_properties())
    sealed = content + _properties({DIGEST: json.dumps(scan(content, without=DIGEST).digest)})
    try:
        onnx.checker.check_model(sealed, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        fix = "update torch and onnxscript"
        raise CheckFailed("the exported graph is not valid ONNX", saw=str(error)[:300], fix=fix) from error
    return sealed


def _properties(texts: Mapping[str, str]) -> bytes:
    """The metadata fields of a model, serialised; DataError for one that no reader of ours would take."""
    fields = onnx.ModelProto()
    onnx.helper.set_model_props(fields, dict(texts))
    largest = max(fields.metadata_props, key=lambda field: field.ByteSize())
    if largest.ByteSize() > LARGEST_PROPERTY:
        saw = f"{largest.ByteSize():,} bytes in {largest.key}; at most {LARGEST_PROPERTY:,} are read"
        fix = "give the classes shorter names"
        raise DataError("the names of the classes are too long for an ONNX file", saw=saw, fix=fix)
    return fields.SerializeToString(deterministic=True)
