"""Contextual decomposition against the literal two-part walk, and the claims users may build on."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reference
from cdep_run.cd import MissingRuleError, decompose, register_rule
from nets import MLP, NETS, PaperCNN, ResidualNet, SmallVGG, with_head

pytestmark = pytest.mark.usefixtures("double")


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def inputs_and_mask(net: type, examples: int = 3, groups: int = 2) -> tuple[Tensor, Tensor]:
    """Random inputs; for each example and group a random mask, the same for all channels."""
    channels, *size = net.input_shape
    x = torch.randn(examples, channels, *size)
    if not size:
        return x, torch.rand(examples, groups, channels) < 0.3
    return x, torch.rand(examples, groups, 1, *size) < 0.3


def parameter_gradients(model: nn.Module, value: Tensor) -> list[Tensor]:
    """Gradients of one number, zeros for parameters that it does not depend on."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)
    ]


def weighted(tensor: Tensor) -> Tensor:
    """One number in which every entry counts differently."""
    return (tensor * torch.linspace(-1, 2, tensor.numel()).view_as(tensor)).sum()


# --- Values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
def test_parts_equal_the_two_part_walk(net):
    model = net().eval()
    x, mask = inputs_and_mask(net)
    parts = decompose(model, x, mask)
    relevant, irrelevant = reference.decompose(model.layers(), x, mask)
    close(parts.relevant, relevant)
    close(parts.irrelevant, irrelevant)


@pytest.mark.parametrize("net", NETS)
def test_parts_equal_the_walk_on_inputs_with_dead_patches(net):
    model = net().eval()
    x, mask = inputs_and_mask(net)
    x[..., 3:] = 0
    parts = decompose(model, x, mask)
    relevant, irrelevant = reference.decompose(model.layers(), x, mask)
    close(parts.relevant, relevant)
    close(parts.irrelevant, irrelevant)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_relevant_plus_irrelevant_equals_logits(net, dtype, tolerance):
    model = net().eval().to(dtype)
    x, mask = inputs_and_mask(net)
    x = x.to(dtype)
    x[0, ..., :5] = 0
    parts = decompose(model, x, mask)
    logits = model(x)[:, None].expand_as(parts.relevant)
    assert parts.relevant.dtype == parts.irrelevant.dtype == dtype
    close(parts.relevant + parts.irrelevant, logits, tolerance)


def test_linear_model_has_the_closed_form():
    model = nn.Linear(6, 4)
    x, mask = torch.randn(5, 6), torch.rand(5, 1, 6) < 0.5
    inside = (x * mask[:, 0]) @ model.weight.T
    outside = (x * ~mask[:, 0]) @ model.weight.T
    expected = inside + model.bias * inside.abs() / (inside.abs() + outside.abs())
    expected = torch.where(mask[:, 0].any(1, keepdim=True), expected, 0.0)
    close(decompose(model, x, mask).relevant[:, 0], expected)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_empty_mask_makes_relevant_exactly_zero(net, dtype):
    model = net().eval().to(dtype)
    x, mask = inputs_and_mask(net)
    parts = decompose(model, x.to(dtype), torch.zeros_like(mask))
    assert torch.count_nonzero(parts.relevant) == 0


@pytest.mark.parametrize("net", [PaperCNN, SmallVGG, MLP])  # no pixel with all channels dead
def test_a_full_mask_leaves_nothing_irrelevant(net):
    model = net().eval()
    x, mask = inputs_and_mask(net)
    parts = decompose(model, x, torch.ones_like(mask))
    close(parts.irrelevant, torch.zeros_like(parts.irrelevant))
    close(parts.relevant, model(x)[:, None].expand_as(parts.relevant))


@pytest.mark.parametrize("net", [PaperCNN, SmallVGG, ResidualNet])
def test_a_full_mask_leaves_the_biases_of_dead_patches_irrelevant(net):
    model = net().eval()
    x, mask = inputs_and_mask(net)
    x[..., :8, :8] = 0
    parts = decompose(model, x, torch.ones_like(mask))
    relevant, irrelevant = reference.decompose(model.layers(), x, torch.ones_like(mask))
    assert irrelevant.abs().min() > 1e-6
    close(parts.relevant, relevant)
    close(parts.irrelevant, irrelevant)


def test_an_input_of_zeros_gives_all_biases_to_the_irrelevant_part():
    model = PaperCNN().eval()
    parts = decompose(model, torch.zeros(2, 1, 16, 16), torch.ones(1, 1, 1, 16, 16).bool())
    assert torch.count_nonzero(parts.relevant) == 0
    close(parts.irrelevant[:, 0], model(torch.zeros(2, 1, 16, 16)))


@pytest.mark.parametrize("net", NETS)
def test_several_groups_equal_the_groups_one_by_one(net):
    model = net().eval()
    x, mask = inputs_and_mask(net, groups=4)
    together = decompose(model, x, mask)
    for group in range(4):
        alone = decompose(model, x, mask[:, group : group + 1])
        close(together.relevant[:, group : group + 1], alone.relevant)
        close(together.irrelevant[:, group : group + 1], alone.irrelevant)


@pytest.mark.parametrize("net", NETS)
def test_a_batch_equals_its_examples_one_by_one(net):
    model = net().eval()
    x, mask = inputs_and_mask(net)
    together = decompose(model, x, mask)
    for n in range(len(x)):
        alone = decompose(model, x[n : n + 1], mask[n : n + 1])
        close(together.relevant[n : n + 1], alone.relevant)
        close(together.irrelevant[n : n + 1], alone.irrelevant)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(2, 4, 3, groups=2), nn.Tanh(), nn.Conv2d(4, 3, 3, dilation=2), nn.Sigmoid()],
        [nn.Conv2d(2, 3, (2, 3), padding="same"), nn.ReLU(), nn.AvgPool2d(3, 2, padding=1)],
        [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)],
        [nn.Conv2d(2, 3, 3), nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), nn.ReLU()],
        [nn.MaxPool2d(2, dilation=2), nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3)],
        [nn.Identity(), nn.Conv2d(2, 3, 1), nn.AdaptiveAvgPool2d((3, 5)), nn.Tanh()],
    ],
    ids=lambda layers: "-".join(type(layer).__name__ for layer in layers),
)
def test_layers_with_their_options_equal_the_walk(layers):
    model = with_head(*copy.deepcopy(layers), input_shape=(2, 13, 11))
    x, mask = torch.randn(2, 2, 13, 11), torch.rand(2, 2, 1, 13, 11) < 0.3
    relevant, irrelevant = reference.decompose([model], x, mask)
    parts = decompose(model, x, mask)
    close(parts.relevant, relevant)
    close(parts.irrelevant, irrelevant)


@pytest.mark.parametrize("boxes", [None, (((0, 4, 0, 4), (12, 16, 0, 4)), ((5, 6, 7, 8),))])
def test_the_symmetric_relu_is_a_variant_by_name(boxes):
    model = PaperCNN().eval()
    x, mask = inputs_and_mask(PaperCNN)
    if boxes:
        mask = boxed_mask(boxes, 0.8, 3, PaperCNN.input_shape)
    layers = [
        reference.SymmetricReLU() if isinstance(layer, nn.ReLU) else layer
        for layer in model.layers()
    ]
    relevant, irrelevant = reference.decompose(layers, x, mask)
    parts = decompose(model, x, mask, boxes=boxes, rules={"relu": "symmetric"})
    close(parts.relevant, relevant)
    close(parts.irrelevant, irrelevant)
    assert not decompose(model, x, mask).relevant.allclose(relevant)
    with pytest.raises(ValueError, match="asymmetric"):
        decompose(model, x, mask, rules={"relu": "shapley"})


# --- Masks ---------------------------------------------------------------------------------------


def test_a_mask_without_a_group_axis_gives_results_without_one():
    model, (x, mask) = PaperCNN().eval(), inputs_and_mask(PaperCNN, groups=1)
    alone, grouped = decompose(model, x, mask[:, 0]), decompose(model, x, mask)
    assert alone.relevant.shape == alone.irrelevant.shape == (3, 3)
    close(alone.relevant, grouped.relevant[:, 0])
    close(alone.irrelevant, grouped.irrelevant[:, 0])


def test_a_mask_of_one_example_serves_the_whole_batch():
    model, (x, mask) = SmallVGG().eval(), inputs_and_mask(SmallVGG)
    shared = decompose(model, x, mask[:1])
    repeated = decompose(model, x, mask[:1].repeat(3, 1, 1, 1, 1))
    assert shared.relevant.shape == (3, 2, 4)
    close(shared.relevant, repeated.relevant)
    close(shared.irrelevant, repeated.irrelevant)


def test_a_mask_over_channels_splits_channels():
    model, x = SmallVGG().eval(), torch.randn(2, 3, 14, 14)
    mask = torch.zeros(1, 1, 3, 14, 14, dtype=torch.bool)
    mask[:, :, 1] = True
    relevant, _ = reference.decompose(model.layers(), x, mask)
    close(decompose(model, x, mask).relevant, relevant)


@pytest.mark.parametrize(
    "shape", [(3, 16, 16), (2, 1, 1, 16, 16), (1, 1, 1, 16, 15), (1, 1, 2, 16, 16), (16, 16), (3,)]
)
def test_a_mask_of_the_wrong_shape_is_refused_with_both_shapes(shape):
    model, x = PaperCNN().eval(), torch.randn(3, 1, 16, 16)
    with pytest.raises(ValueError, match="mask") as error:
        decompose(model, x, torch.ones(shape, dtype=torch.bool))
    message = str(error.value)
    for numbers in (shape, x.shape):
        assert ", ".join(map(str, numbers)) in message
    assert "groups" in message and "mask[None" in message


def test_a_mask_on_another_device_is_refused_with_both_devices():
    model, x = PaperCNN().eval(), torch.randn(3, 1, 16, 16)
    with pytest.raises(ValueError, match=r"(?s)meta.*cpu|cpu.*meta"):
        decompose(model, x, torch.ones(1, 1, 1, 16, 16, dtype=torch.bool, device="meta"))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float64])
def test_a_mask_that_is_not_bool_works_the_same_or_is_refused(dtype):
    model, (x, mask) = PaperCNN().eval(), inputs_and_mask(PaperCNN)
    try:
        relevant = decompose(model, x, mask.to(dtype)).relevant
    except ValueError as error:
        assert str(dtype) in str(error) and "bool" in str(error)
    else:
        close(relevant, decompose(model, x, mask).relevant)


# --- Boxes: the same numbers, with less work -----------------------------------------------------

SIZE = (2, 13, 11)
STACKS: dict[str, list[nn.Module]] = {
    "linear": [],
    "conv": [nn.Conv2d(2, 3, 3)],
    "conv-relu-conv": [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.ReLU()],
    "padding": [nn.Conv2d(2, 3, 3, padding=2), nn.ReLU(), nn.Conv2d(3, 2, 5, padding=1)],
    "same": [nn.Conv2d(2, 3, (2, 3), padding="same"), nn.ReLU()],
    "stride": [nn.Conv2d(2, 3, 3, stride=2), nn.ReLU(), nn.Conv2d(3, 2, 3, stride=(1, 2))],
    "stride over gaps": [nn.Conv2d(2, 3, 2, stride=4), nn.ReLU()],
    "dilation": [nn.Conv2d(2, 3, 3, dilation=(3, 2), padding=(2, 0)), nn.ReLU()],
    "conv groups": [nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4)],
    "no bias": [nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(True)],
    "rectangular": [nn.Conv2d(2, 3, (5, 1), stride=(1, 3), padding=(0, 1)), nn.Tanh()],
    "max pool": [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2)],
    "max pools": [nn.Conv2d(2, 3, 2), nn.MaxPool2d(2), nn.Conv2d(3, 3, 2), nn.MaxPool2d(2)],
    "max pool first": [nn.MaxPool2d(3, 2), nn.Conv2d(2, 3, 2), nn.ReLU()],
    "max pool overlaps": [nn.Conv2d(2, 3, 3), nn.MaxPool2d(3, 2, padding=1), nn.Sigmoid()],
    "max pool ceil": [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)],
    "max pool gaps": [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2, 3)],
    "max pool dilated": [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2, 1, dilation=3)],
    "average pool": [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(3, 2, 2)],
    "average pool pads": [nn.AvgPool2d(3, 2, padding=1, ceil_mode=True), nn.Conv2d(2, 3, 2)],
    "average pool counts": [nn.AvgPool2d((3, 2), padding=1, count_include_pad=False), nn.Tanh()],
    "adaptive pool": [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d((4, 3))],
    "global pool": [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)],
    "sigmoid first": [nn.Sigmoid(), nn.Conv2d(2, 1, 3), nn.ReLU(), nn.Conv2d(1, 3, 2), nn.ReLU()],
    "symmetric": [nn.Conv2d(2, 3, 3), nn.Sigmoid(), nn.Conv2d(3, 3, 3), nn.Tanh()],
}
CORNERS = ((0, 3, 0, 3), (0, 3, 8, 11), (10, 13, 0, 3), (10, 13, 8, 11))
LAYOUTS: dict[str, tuple[tuple[tuple[int, int, int, int], ...], ...]] = {
    "corners": (CORNERS,),
    "pixel inside": (((6, 7, 4, 5),),),
    "pixels at the edges": (
        ((0, 1, 5, 6),),
        ((12, 13, 5, 6),),
        ((6, 7, 0, 1),),
        ((6, 7, 10, 11),),
    ),
    "pixels in the corners": (((0, 1, 0, 1),), ((12, 13, 10, 11),), ((0, 1, 10, 11),)),
    "overlap": (((2, 7, 2, 7), (4, 9, 5, 8)),),
    "touch": (((2, 4, 2, 7), (4, 9, 2, 7)), ((0, 2, 0, 5), (2, 3, 5, 7))),
    "repeated": (((3, 5, 3, 5), (3, 5, 3, 5)), ((3, 5, 3, 5),)),
    "different sizes": (CORNERS, ((6, 7, 4, 5),), ((2, 9, 1, 10), (3, 4, 3, 4))),
    "whole image": (((0, 13, 0, 11),),),
    "a band": (((5, 7, 0, 11),), ((0, 13, 10, 11),)),
}


def boxed_mask(
    boxes, share: float = 1.0, examples: int = 1, size: tuple[int, ...] = SIZE
) -> Tensor:
    """True on a random share of each group's boxes, another one for each example."""
    mask = torch.zeros(examples, len(boxes), 1, *size[1:], dtype=torch.bool)
    for group, group_boxes in enumerate(boxes):
        for top, bottom, left, right in group_boxes:
            area = mask[:, group, :, top:bottom, left:right]
            area |= torch.rand(area.shape) < share
    return mask


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stack", STACKS)
def test_boxes_change_neither_values_nor_gradients(stack, layout):
    model = with_head(*copy.deepcopy(STACKS[stack]), input_shape=SIZE)
    boxes = LAYOUTS[layout]
    for share, examples in ((1.0, 1), (0.6, 3)):
        x, mask = torch.randn(3, *SIZE), boxed_mask(boxes, share, examples)
        with_boxes, without = decompose(model, x, mask, boxes=boxes), decompose(model, x, mask)
        relevant, irrelevant = reference.decompose([model], x, mask)
        expected = parameter_gradients(model, weighted(relevant))
        for parts in (with_boxes, without):
            close(parts.relevant, relevant)
            close(parts.irrelevant, irrelevant)
            gradients = parameter_gradients(model, weighted(parts.relevant))
            for actual, wanted in zip(gradients, expected, strict=True):
                close(actual, wanted, 1e-8)


class Link(nn.Module):
    """An uneven border of zeros, a convolution, and a link around another one, added or taken."""

    def __init__(self, subtract: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 3, padding=1)
        self.subtract = subtract

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(F.pad(x, (0, 1, 2, 0))).relu()
        return torch.sub(x, self.second(x), alpha=2) if self.subtract else x + self.second(x)


@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_and_residual_links_keep_windows_and_numbers(layout, subtract, monkeypatch):
    model, boxes = with_head(Link(subtract), input_shape=SIZE), LAYOUTS[layout]
    x, mask = torch.randn(3, *SIZE), boxed_mask(boxes, 0.6, 3)
    in_windows = decompose(model, x, mask, boxes=boxes)
    whole = decompose(model, x, mask, boxes=[[(0, SIZE[1], 0, SIZE[2])]] * len(boxes))
    close(in_windows.relevant, whole.relevant)
    wanted = parameter_gradients(model, weighted(whole.relevant))
    for actual, expected in zip(
        parameter_gradients(model, weighted(in_windows.relevant)), wanted, strict=True
    ):
        close(actual, expected, 1e-8)


def test_a_residual_link_is_added_inside_the_window():
    pixel = torch.zeros(1, 1, 1, *SIZE[1:], dtype=torch.bool)
    pixel[..., 6, 5] = True
    seen = []

    def look(module, inputs, output):
        seen.append(output.parts[0])

    model = with_head(Link(False), input_shape=SIZE)
    model[0].register_forward_hook(look)
    decompose(model, torch.randn(1, *SIZE), pixel)
    assert seen[0].values.shape[2:] == (5, 5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stack", STACKS)
def test_an_empty_mask_in_boxes_makes_relevant_exactly_zero(stack, layout):
    """Not almost: where γ is 0 too, a bias goes to whichever part holds the rounding errors."""
    model = with_head(*copy.deepcopy(STACKS[stack]), input_shape=SIZE)
    x, mask = torch.randn(3, *SIZE), boxed_mask(LAYOUTS[layout], share=0)
    parts = decompose(model, x, mask, boxes=LAYOUTS[layout])
    assert torch.count_nonzero(parts.relevant) == 0


@pytest.mark.parametrize("net", [PaperCNN, SmallVGG, ResidualNet])
def test_whole_nets_with_boxes_equal_the_walk(net):
    model = net().eval()
    channels, height, width = net.input_shape
    boxes = (
        ((0, 4, 0, 4), (height - 4, height, width - 4, width)),
        ((5, 6, 7, 8),),
        ((0, 1, width - 1, width),),
    )
    mask = boxed_mask(boxes, size=net.input_shape)
    x = torch.randn(4, channels, height, width)
    x[1, :, :6, :6] = 0
    parts = decompose(model, x, mask, boxes=boxes)
    relevant, irrelevant = reference.decompose(model.layers(), x, mask)
    close(parts.relevant, relevant)
    close(parts.irrelevant, irrelevant)
    value = parts.relevant.sigmoid() - parts.irrelevant.square()
    wanted = relevant.sigmoid() - irrelevant.square()
    expected = parameter_gradients(model, weighted(wanted))
    for actual, gradient in zip(parameter_gradients(model, weighted(value)), expected, strict=True):
        close(actual, gradient, 1e-8)


def test_boxes_serve_a_mask_without_a_group_axis():
    model, x = PaperCNN().eval(), torch.randn(2, 1, 16, 16)
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    mask[..., :4, 10:] = True
    parts = decompose(model, x, mask, boxes=(((0, 4, 10, 16),),))
    assert parts.relevant.shape == (2, 3)
    close(parts.relevant, decompose(model, x, mask).relevant)


def test_a_group_without_boxes_is_an_empty_group():
    model, x = PaperCNN().eval(), torch.randn(2, 1, 16, 16)
    mask = torch.zeros(1, 2, 1, 16, 16, dtype=torch.bool)
    mask[:, 1, :, 4, 4] = True
    parts = decompose(model, x, mask, boxes=((), ((4, 5, 4, 5),)))
    assert torch.count_nonzero(parts.relevant[:, 0]) == 0
    close(parts.relevant, decompose(model, x, mask).relevant)


@pytest.mark.parametrize(
    "boxes",
    [
        (((0, 2, 0, 2),), ((0, 2, 0, 2),)),
        (((0, 17, 0, 2),),),
        (((-1, 2, 0, 2),),),
        (((4, 2, 0, 2),),),
    ],
    ids=["one group too many", "beyond the image", "before the image", "upside down"],
)
def test_boxes_that_cannot_be_are_refused(boxes):
    mask = torch.zeros(1, 1, 1, 16, 16, dtype=torch.bool)
    with pytest.raises(ValueError, match="box"):
        decompose(PaperCNN().eval(), torch.randn(2, 1, 16, 16), mask, boxes=boxes)


# --- Gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("with_boxes", [False, True])
@pytest.mark.parametrize("net", NETS)
def test_gradients_equal_finite_differences(net, with_boxes):
    model = net().eval()
    x, mask = inputs_and_mask(net, examples=2)
    boxes = None
    if with_boxes:
        if net is MLP:
            pytest.skip("boxes are for images")
        boxes = (((0, 4, 0, 4),), ((6, 7, 5, 6), (9, 12, 2, 4)))
        mask = boxed_mask(boxes, size=net.input_shape)

    def parts(*_: Tensor) -> tuple[Tensor, Tensor]:
        result = decompose(model, x, mask, boxes=boxes)
        return result.relevant, result.irrelevant

    # gradcheck moves the parameters in place, so the model sees them move
    assert torch.autograd.gradcheck(parts, tuple(model.parameters()), fast_mode=True)


def test_gradients_in_the_inputs_equal_finite_differences():
    model, (x, mask) = PaperCNN().eval(), inputs_and_mask(PaperCNN, examples=1)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: decompose(model, v, mask).relevant, x, fast_mode=True)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("fill", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_stay_finite_where_both_parts_are_zero(net, fill, dtype):
    model = net().eval().to(dtype)
    x, mask = inputs_and_mask(net)
    x, mask = x.to(dtype), torch.full_like(mask, bool(fill))
    x[..., 2:] = 0
    x[0] = 0
    parts = decompose(model, x, mask)
    # a large λ, so that no dead unit's gradient may overflow on its way to zero
    value = 1e6 * (parts.relevant.square().sum() + parts.irrelevant.sum())
    assert all(gradient.isfinite().all() for gradient in parameter_gradients(model, value))


def test_nothing_is_recorded_under_no_grad():
    model, (x, mask) = PaperCNN().eval(), inputs_and_mask(PaperCNN)
    expected = decompose(model, x, mask).relevant.detach()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            relevant = decompose(model, x, mask).relevant
        assert not relevant.requires_grad
        close(relevant, expected)


@pytest.mark.parametrize("net", NETS)
def test_bfloat16_autocast_agrees_with_float32(net):
    model = net().eval().float()
    x, mask = inputs_and_mask(net)
    x = x.float()
    exact = decompose(model, x, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = decompose(model, x, mask)
        logits = model(x).float()
    close((parts.relevant + parts.irrelevant).float(), logits[:, None].expand(-1, 2, -1), 0.05)
    close(parts.relevant.float(), exact.relevant, 0.05)
    gradients = parameter_gradients(model, parts.relevant.float().square().sum())
    assert all(gradient.isfinite().all() for gradient in gradients)


# --- The model is left as one plain forward pass leaves it ---------------------------------------


class Fails(nn.Module):
    """Raises in the middle of a forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("inside forward")


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def state(model: nn.Module) -> dict[str, object]:
    """Everything about a model that a decomposition might leave changed."""
    found: dict[str, object] = {
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "grad mode": torch.is_grad_enabled(),
        "global hooks": len(nn.modules.module._global_forward_hooks)
        + len(nn.modules.module._global_forward_pre_hooks),
    }
    for name, module in model.named_modules():
        found[f"{name} attributes"] = sorted(module.__dict__)
        found[f"{name} training"] = module.training
        found[f"{name} inplace"] = getattr(module, "inplace", None)
        found[f"{name} hooks"] = [list(getattr(module, hooks)) for hooks in HOOKS]
        found[f"{name} type"] = type(module)
    for name, parameter in model.named_parameters():
        found[name] = (id(parameter), parameter.requires_grad, parameter.grad, parameter._version)
    for name, buffer in model.named_buffers():
        found[name] = (id(buffer), buffer.tolist())
    return found


@pytest.mark.parametrize("net", NETS)
def test_the_model_is_unchanged(net):
    model = net().eval()
    first = next(model.children())
    first.train()
    first.register_forward_hook(lambda *_: None)
    next(first.parameters()).requires_grad_(False)
    x, mask = inputs_and_mask(net)
    before, before_x, before_mask = state(model), x.clone(), mask.clone()
    decompose(model, x, mask)
    assert state(model) == before
    assert x.equal(before_x) and mask.equal(before_mask)
    assert not x.requires_grad


def test_the_model_is_unchanged_after_a_failure_too():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(True), nn.Dropout(), Fails()
    ).eval()
    model[3].train()
    x = torch.randn(2, 1, 8, 8)
    before = state(model)
    for boxes in (None, (((0, 2, 0, 2),),)):
        with pytest.raises(RuntimeError, match="inside forward"):
            decompose(model, x, torch.ones(1, 1, 1, 8, 8).bool(), boxes=boxes)
        assert state(model) == before
    model[4] = nn.Identity()
    assert type(model(x)) is Tensor


# --- Training mode -------------------------------------------------------------------------------


def test_dropout_drops_the_same_units_in_both_halves():
    model = nn.Sequential(nn.Dropout(0.4), nn.Linear(50, 50, bias=False)).train()
    nn.init.eye_(model[1].weight)
    x, mask = torch.randn(4, 50), torch.rand(4, 2, 50) < 0.5
    parts = decompose(model, x, mask)
    total = parts.relevant + parts.irrelevant
    factor = (total[:, 0].abs() > 1e-12) / 0.6
    assert 0.3 < (factor == 0).double().mean() < 0.5
    close(total, (x * factor)[:, None].expand_as(total))
    close(parts.relevant, (x * factor)[:, None] * mask)


def test_dropout_draws_what_a_plain_forward_pass_draws():
    model = SmallVGG().train()
    x, mask = inputs_and_mask(SmallVGG)
    torch.manual_seed(7)
    logits = model(x)
    after = torch.get_rng_state()
    torch.manual_seed(7)
    parts = decompose(model, x, mask)
    close(parts.relevant + parts.irrelevant, logits[:, None].expand_as(parts.relevant))
    assert torch.get_rng_state().equal(after)


@pytest.mark.parametrize("boxes", [None, (((0, 4, 0, 4),), ((5, 6, 5, 6),))])
def test_batch_norm_statistics_move_once_and_by_the_whole_activation(boxes):
    model = ResidualNet().train()
    x, mask = inputs_and_mask(ResidualNet)
    if boxes:
        mask = boxed_mask(boxes, size=ResidualNet.input_shape)
    plain = copy.deepcopy(model)
    logits = plain(x)
    relevant, irrelevant = reference.decompose(model.layers(), x, mask)
    parts = decompose(model, x, mask, boxes=boxes)
    for name, buffer in plain.named_buffers():
        close(model.get_buffer(name), buffer)
    close(parts.relevant + parts.irrelevant, logits[:, None].expand_as(parts.relevant))
    close(parts.relevant, relevant)
    close(parts.irrelevant, irrelevant)


# --- Ops without a rule --------------------------------------------------------------------------


class Op(nn.Module):
    """A layer that is one function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Gated(nn.Module):
    """A net with an op in a submodule."""

    def __init__(self, function) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(4, 3), Op(function))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


def test_an_op_without_a_rule_is_named_with_its_module_and_the_cure():
    with pytest.raises(MissingRuleError, match="no decomposition rule") as error:
        decompose(Gated(torch.digamma), torch.randn(2, 4), torch.ones(2, 1, 4).bool())
    message = str(error.value)
    assert "torch.digamma" in message
    assert "'head.1'" in message
    assert "register_rule(" in message


def double_and_shift(x: Tensor) -> Tensor:
    """A user's own op, which takes part in torch's override protocol."""
    if torch.overrides.has_torch_function_unary(x):
        return torch.overrides.handle_torch_function(double_and_shift, (x,), x)
    return 2 * x + 1


def test_a_registered_rule_is_used():
    model = Gated(double_and_shift)
    x, mask = torch.randn(2, 4), torch.rand(2, 2, 4) < 0.5
    with pytest.raises(MissingRuleError, match=r"double_and_shift.*head\.1"):
        decompose(model, x, mask)

    @register_rule(double_and_shift)
    def rule(func, pair):
        """2β to the group; the constant stays with the rest."""
        return pair.map(func(pair.total), lambda relevant: 2 * relevant)

    relevant, _ = reference.decompose([model.head[0]], x, mask)
    parts = decompose(model, x, mask)
    close(parts.relevant, 2 * relevant)
    close(parts.relevant + parts.irrelevant, model(x)[:, None].expand(-1, 2, -1))


class Branches(nn.Module):
    """Python control flow that depends on shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2 and x.shape[-1] == 4 and x.size(0) > 1:
            for _ in range(2):
                x = F.relu(x) + x
        return self.linear(x)


def test_python_control_flow_runs_unchanged():
    model, x = Branches(), torch.randn(3, 4)
    mask = torch.rand(3, 2, 4) < 0.5
    layers = [Add_twice := reference.Add([[nn.ReLU()], []]), Add_twice, model.linear]
    close(decompose(model, x, mask).relevant, reference.decompose(layers, x, mask)[0])
