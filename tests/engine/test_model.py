"""The encoder is equal to torchvision's ResNet; the head is what the recipe says."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import pytest
import torch
from torch import nn

from simclr_engine import model
from simclr_engine.kernels.convolution import convolve
from simclr_engine.model import ARCHITECTURES, build_encoder, build_head, parameter_count
from simclr_engine.recipe import HeadSpec, ModelSpec
from simclr_engine.torchvision_shim import import_torchvision


def torchvisions(arch: str, stem: str, seed: int) -> nn.Module:
    """torchvision's own network of a seed, without its classifier, its stem replaced where ours is small."""
    torch.manual_seed(seed)
    network: nn.Module = getattr(import_torchvision().models, arch)()
    network.fc = nn.Identity()
    if stem == "small":
        network.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return network


def test_the_recipe_knows_the_architectures_that_there_are() -> None:
    known = get_args(ModelSpec.model_fields["arch"].annotation)
    assert known == (*ARCHITECTURES, "own")  # the last is a module of the caller's


@pytest.mark.parametrize("stem", ["small", "imagenet"])
@pytest.mark.parametrize(("arch", "dim"), [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
def test_a_seed_gives_torchvisions_weights_and_features(arch: str, dim: int, stem: str) -> None:
    theirs, drawn_next = torchvisions(arch, stem, seed=3).eval(), torch.rand(3)
    torch.manual_seed(3)
    encoder = build_encoder(arch, stem).eval()
    assert torch.equal(torch.rand(3), drawn_next)  # by the head, and by whatever else comes after
    ours, expected = encoder.state_dict(), theirs.state_dict()
    assert list(ours) == list(expected)
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
    x = torch.randn(2, 3, 64, 64)
    assert encoder.feature_dim == dim
    assert torch.equal(encoder(x), theirs(x))


def test_the_small_stem_keeps_32_pixels_until_the_first_stride() -> None:
    encoder = build_encoder("resnet18", "small")
    sizes: list[tuple[int, ...]] = []
    encoder.layer1.register_forward_hook(lambda m, i, o: sizes.append(tuple(o.shape[2:])))
    encoder.layer4.register_forward_hook(lambda m, i, o: sizes.append(tuple(o.shape[2:])))
    assert encoder(torch.randn(2, 3, 32, 32)).shape == (2, 512)
    assert sizes == [(32, 32), (4, 4)]
    assert abs(parameter_count(encoder) / 1e6 - 11.17) < 0.01  # system C counts 11.2 M


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_training_gives_the_gradients_of_torchvisions_network(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[tuple[int, ...]] = []

    def counted(x: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
        products.append((x.shape[2] // stride, x.shape[3] // stride))
        return convolve(x, weight, stride)

    monkeypatch.setattr(model, "convolve", counted)
    encoder = build_encoder(arch, "small").double().train()
    theirs = torchvisions(arch, "small", seed=0).double().train()
    theirs.load_state_dict(encoder.state_dict())
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    for network in (encoder, theirs):
        network(x).square().sum().backward()
    for (name, p), q in zip(encoder.named_parameters(), theirs.parameters(), strict=True):
        assert (p.grad - q.grad).abs().max() <= 1e-9 * q.grad.abs().max(), name
    # All of stages three and four, the strided ones too, and no more: two a block, or one a bottleneck.
    assert Counter(products) == ({(4, 4): 4, (2, 2): 4} if arch == "resnet18" else {(4, 4): 6, (2, 2): 3})
    products.clear()
    encoder.eval()(x)
    with torch.no_grad():
        encoder.train()(x)
    assert not products


def test_every_three_by_three_convolution_has_padding_one_and_no_bias() -> None:
    for arch in ("resnet18", "resnet34", "resnet50"):
        for stem in ("small", "imagenet"):
            for module in build_encoder(arch, stem).modules():
                if isinstance(module, model.Convolution):
                    assert (module.padding, module.dilation, module.groups, module.bias) == ((1, 1), (1, 1), 1, None)
                    assert module.stride[0] == module.stride[1]


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match="resnet19"):
        build_encoder("resnet19", "small")


SPEC = HeadSpec(hidden=(16,), dimension=8, batch_norm="none", dropout=0.0)


def _spec(**changes: object) -> HeadSpec:
    return SPEC.model_copy(update=changes)


def _kinds(spec: HeadSpec) -> list[str]:
    return [type(m).__name__ for m in build_head(32, spec)]


def test_heads_are_built_as_the_recipes_say() -> None:
    assert _kinds(SPEC) == ["Linear", "ReLU", "Linear"]
    assert _kinds(_spec(batch_norm="all")) == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert _kinds(_spec(batch_norm="hidden")) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert _kinds(_spec(dropout=0.1)) == ["Linear", "ReLU", "Dropout", "Linear"]
    three = build_head(32, _spec(hidden=(16, 12), batch_norm="all"))
    assert [m.out_features for m in three if isinstance(m, nn.Linear)] == [16, 12, 8]
    assert three(torch.randn(4, 32)).shape == (4, 8)


def test_a_layer_before_batch_norm_has_no_bias() -> None:
    head = build_head(32, _spec(batch_norm="hidden"))
    assert [m.bias is not None for m in head if isinstance(m, nn.Linear)] == [False, True]
