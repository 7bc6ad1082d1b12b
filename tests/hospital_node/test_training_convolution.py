"""Convolutions of a lone patch through oneDNN: the same numbers as PyTorch's own, and PyTorch's own where anything changed."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hospital_node import convolution, network
from hospital_node.convolution import float32_on_short_sides, prefer_onednn
from hospital_node.losses import dice_ce
from proto.plan import Network

SIDE = 18  # voxels; enough for the columns below which PyTorch is left alone


@pytest.fixture
def small_ones_too(monkeypatch):
    monkeypatch.setattr(convolution, "FEW_COLUMNS", 0)


def pair(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The layer as it is, and a changed copy with the same parameters."""
    changed = nn.Sequential(type(layer)(**layer.made_with))
    changed[0].load_state_dict(layer.state_dict())
    prefer_onednn(changed)
    return layer, changed[0]


def made(kind, **arguments):
    layer = kind(**arguments)
    layer.made_with = arguments
    return layer


def results(layer, x, seed=5):
    """Output and all gradients, and what computed the output."""
    x = x.clone().requires_grad_()
    out = layer(x)
    towards = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    grads = torch.autograd.grad((out.float() * towards).sum(), [x, *layer.parameters()])
    return (out.detach(), *grads), out.grad_fn.name()


def apart(one, other):
    """Largest difference of two lists of tensors, each relative to its norm."""
    assert [(a.shape, a.dtype) for a in one] == [(b.shape, b.dtype) for b in other]
    return max(float((a.double() - b.double()).norm() / (b.double().norm() + 1e-12)) for a, b in zip(one, other, strict=True))


geometry = st.fixed_dictionaries(
    {
        "in_channels": st.integers(1, 20),
        "out_channels": st.integers(1, 20),
        "kernel_size": st.tuples(st.integers(1, 4), st.integers(2, 3), st.integers(1, 3)),
        "stride": st.tuples(*[st.integers(1, 2)] * 3),
        "padding": st.tuples(*[st.integers(0, 2)] * 3),
        "bias": st.booleans(),
    }
)


@settings(max_examples=60)
@given(geometry, st.integers(1, 2), st.tuples(*[st.integers(4, 7)] * 3), st.booleans())
def test_any_geometry_gives_pytorchs_numbers(arguments, patches, sides, transposed):
    kind = nn.ConvTranspose3d if transposed else nn.Conv3d
    x = torch.randn(patches, arguments["in_channels"], *sides)
    plain, changed = pair(made(kind, **arguments))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "FEW_COLUMNS", 0)
        try:
            wanted, _ = results(plain, x)
        except RuntimeError:  # transposed, with more padding than output
            with pytest.raises(RuntimeError):
                results(changed, x)
            return
        given_, by = results(changed, x)
    assert apart(given_, wanted) < 1e-5
    assert (by == "_ForwardBackward") == (patches == 1 or not transposed)


@pytest.mark.parametrize("wide", [(8, 8), (2, 3), (16, 8), (8, 16), (16, 16)])
@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16_is_as_near_as_pytorchs_own(wide, stride):
    x = torch.randn(1, wide[0], SIDE, SIDE, SIDE)
    plain, changed = pair(
        made(nn.Conv3d, in_channels=wide[0], out_channels=wide[1], kernel_size=3, padding=1, stride=stride, bias=True)
    )
    exact, _ = results(plain, x)
    with torch.autocast("cpu", torch.bfloat16):
        own, _ = results(plain, x)
        given_, by = results(changed, x)
    assert by == "_ForwardBackward"
    assert apart(given_, own) < 5e-3
    exact = (exact[0].bfloat16(), *exact[1:])
    assert apart(given_, exact) < 1.1 * apart(own, exact) < 2e-2
    assert {gradient.dtype for gradient in given_[1:]} == {torch.float32}


SMOOTH = {"DynUNet": {"act_name": "elu"}, "UNet": {"act": "elu"}}  # a kink at zero would make much of a rounding


@pytest.mark.parametrize(("architecture", "norm"), [("DynUNet", "group"), ("UNet", "instance")])
@pytest.mark.parametrize("patches", [1, 2])
def test_a_network_keeps_its_names_parameters_and_gradient(architecture, norm, patches):
    spec = Network(architecture=architecture, channels=(4, 8, 16), labels=("a",), norm=norm, arguments=SMOOTH[architecture])
    images, labels = torch.randn(patches, 1, 32, 32, 32), (torch.rand(patches, 32, 32, 32) < 0.1).long()
    gradients, layouts = [], []
    for change in (False, True):
        torch.manual_seed(2)
        module = network.build(spec)
        assert not change or prefer_onednn(module) > 8
        dice_ce(module(images), labels).backward()
        gradients.append(torch.cat([p.grad.reshape(-1) for p in module.parameters()]))
        layouts.append(network.layout_of(module))
        network.refuse_shared_statistics(module)
    assert layouts[0] == layouts[1]
    assert apart(gradients[1:], gradients[:1]) < 1e-5


def test_without_a_gradient_nothing_is_kept_and_the_output_is_the_same():
    plain, changed = pair(made(nn.Conv3d, in_channels=2, out_channels=3, kernel_size=3))
    x = torch.randn(1, 2, SIDE, SIDE, SIDE)
    with torch.inference_mode():
        assert apart([changed(x)], [plain(x)]) < 1e-5


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv3d(4, 4, 1),
        nn.Conv3d(4, 4, 3, groups=2),
        nn.Conv3d(4, 4, 3, dilation=2),
        nn.Conv3d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv3d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3),
        nn.Linear(4, 4),
    ],
)
def test_other_layers_stay(layer):
    kind = type(layer)
    assert prefer_onednn(nn.Sequential(layer)) == 0
    assert type(layer) is kind


@pytest.mark.parametrize("kind", [nn.Conv3d, nn.ConvTranspose3d])
def test_small_layers_and_unbatched_or_double_input_are_left_to_pytorch(kind):
    plain, changed = pair(made(kind, in_channels=2, out_channels=3, kernel_size=3))
    for x in (torch.randn(1, 2, 6, 6, 6), torch.randn(2, SIDE, SIDE, SIDE)):
        wanted, own = results(plain, x)
        given_, by = results(changed, x)
        assert by == own
        assert apart(given_, wanted) == 0
    assert results(changed.double(), torch.randn(1, 2, SIDE, SIDE, SIDE).double())[1] != "_ForwardBackward"


def test_an_output_size_that_is_asked_for_is_kept():
    layer = made(nn.ConvTranspose3d, in_channels=2, out_channels=3, kernel_size=3, stride=2)
    plain, changed = pair(layer)
    x, size = torch.randn(1, 2, SIDE, SIDE, SIDE), [38, 37, 38]
    assert torch.equal(changed(x, size), plain(x, size))


def asked(answer):
    return lambda *_: SimpleNamespace(name=answer)


@pytest.mark.parametrize("answer", ["Cudnn", "Slow3dOfAnotherVersion", ""])
def test_whatever_else_the_dispatcher_answers_is_left_to_it(monkeypatch, small_ones_too, answer):
    for kind in (nn.Conv3d, nn.ConvTranspose3d):
        plain, changed = pair(made(kind, in_channels=2, out_channels=3, kernel_size=2))
        x = torch.randn(1, 2, 6, 6, 6)
        wanted, own = results(plain, x)
        with monkeypatch.context() as patch:
            patch.setattr(torch._C, "_select_conv_backend", asked(answer))
            given_, by = results(changed, x)
        assert by == own
        assert apart(given_, wanted) == 0


@pytest.fixture
def tried_anew():
    convolution._works_here.cache_clear()
    yield
    convolution._works_here.cache_clear()


def changed_at_all() -> bool:
    layer = nn.Conv3d(2, 3, 3)
    changed = prefer_onednn(nn.Sequential(layer)) == 1
    assert changed == (type(layer) is not nn.Conv3d)
    return changed


def test_where_the_dispatcher_cannot_be_asked_nothing_changes(monkeypatch, tried_anew):
    monkeypatch.delattr(torch._C, "_select_conv_backend")
    assert not changed_at_all()


def test_where_onednn_gives_other_numbers_nothing_changes(monkeypatch, tried_anew):
    right = convolution._backward
    monkeypatch.setattr(convolution, "_backward", lambda *args, **named: [g if g is None else 1.01 * g for g in right(*args)])
    assert not changed_at_all()


def test_where_onednn_is_absent_nothing_changes(monkeypatch, tried_anew):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not changed_at_all()


def test_trying_it_draws_nothing_from_torchs_generator(tried_anew):
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    assert convolution._works_here()
    assert torch.equal(torch.rand(3), expected)


def test_what_is_worked_around_is_still_so():
    """When this fails, PyTorch keeps oneDNN for a lone patch by itself: measure whether convolution.py is still needed."""
    arguments = ((1, 1, 1), (1, 1, 1), (1, 1, 1), False, (0, 0, 0), 1)
    x, weight = torch.randn(1, 8, 32, 32, 32), torch.randn(8, 8, 3, 3, 3)
    assert torch._C._select_conv_backend(x, weight, None, *arguments).name == "Slow3d"
    assert torch._C._select_conv_backend(torch.cat([x, x]), weight, None, *arguments).name == "Mkldnn"


# --- bfloat16 where the kernel does not fit ---


def poisoned() -> None:
    """Leave not-a-number in memory that is about to be used again."""
    for count in (32, 512, 4096, 50_000):
        del [torch.full((count,), torch.nan) for _ in range(8)][:]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv3d(16, 12, 3, padding=1), (1, 16, 2, 4, 4)),
        (nn.Conv3d(16, 16, 3, padding=1), (2, 16, 2, 2, 2)),
        (nn.Conv3d(8, 16, 3, padding=1), (1, 8, 5, 5, 5)),
        (nn.Conv3d(16, 16, 3, padding=1, groups=2), (1, 16, 2, 6, 6)),
        (nn.Conv2d(16, 8, 3, padding=1), (1, 16, 2, 8)),
        (nn.ConvTranspose3d(16, 8, 2, stride=2), (1, 16, 2, 2, 2)),
    ],
)
def test_a_side_shorter_than_two_kernels_leaves_autocast(layer, shape):
    """In bfloat16 the gradient of the weights held whatever lay in memory before; here it is that of float32 to the bit."""
    module = nn.Sequential(layer)
    prefer_onednn(module)
    x = torch.randn(shape)
    wanted, _ = results(layer, x)
    assert float32_on_short_sides(module) == 1
    for _ in range(5):
        poisoned()
        with torch.autocast("cpu", torch.bfloat16):
            given_, _ = results(layer, x)
        assert apart(given_, wanted) == 0


def test_longer_sides_stay_in_bfloat16():
    layer = nn.Conv3d(4, 4, 3, padding=1)
    float32_on_short_sides(nn.Sequential(layer))
    assert type(layer).__name__ == "Conv3d"
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(1, 4, 6, 6, 6)).dtype == torch.bfloat16
        assert layer(torch.randn(1, 4, 6, 5, 6)).dtype == torch.float32
        assert torch.is_autocast_enabled("cpu")
    assert layer(torch.randn(1, 4, 5, 5, 5)).dtype == torch.float32
