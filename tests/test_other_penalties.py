"""The field's other penalties: finite differences, closed forms, masks and linear groups alike."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdep_run.batch import Batch, Groups
from cdep_run.datasets.projections import Chroma
from cdep_run.errors import CdepError
from cdep_run.penalties.actdiff import ActDiff
from cdep_run.penalties.consistency import Consistency
from cdep_run.penalties.counterexamples import Counterexamples
from cdep_run.penalties.gradcam import GradCAM
from cdep_run.penalties.ibp import Interval, IntervalBounds
from cdep_run.penalties.ig import IntegratedGradients
from cdep_run.penalties.rbr import RightByInfluence
from cdep_run.training.build import build, plain
from running import composed

PENALTIES = {
    "ig": IntegratedGradients(3, 0.5),
    "gradcam": GradCAM(),
    "gradcam of a layer": GradCAM("2"),
    "counterexamples": Counterexamples(),
    "counterexamples without": Counterexamples("remove"),
    "consistency": Consistency(),
    "consistency of probabilities": Consistency("divergence", "remove"),
    "actdiff": ActDiff(),
    "rbr": RightByInfluence(),
    "ibp": IntervalBounds(0.3),
}
OF_REGIONS = ("gradcam", "gradcam of a layer")

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture
def model() -> nn.Sequential:
    """Smooth where a finite difference must not meet a kink."""
    layers = (nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 3, 2), nn.Softplus(), nn.AvgPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 4))


@pytest.fixture
def batch() -> Batch:
    mask = torch.zeros(1, 2, 1, 8, 7, dtype=torch.bool)
    mask[:, 0, :, :3, :3] = mask[:, 1, :, 4:, 2:] = True
    return Batch(torch.randn(3, 3, 8, 7), torch.tensor([2, 0, 3]), Groups(mask))


def chroma(batch: Batch) -> Batch:
    """The same data, where the colour must not matter anywhere."""
    scale = torch.tensor([1.0, 2.0, 0.5])[:, None, None]
    mask = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool)
    return replace(batch, groups=Groups(mask, projection=Chroma(scale)))


@pytest.mark.parametrize("groups", ["masks", "chroma"])
@pytest.mark.parametrize("name", PENALTIES)
def test_gradients_equal_finite_differences(model, batch, name, groups) -> None:
    batch = chroma(batch) if groups == "chroma" else batch
    if groups == "chroma" and name in OF_REGIONS:
        with pytest.raises(CdepError, match=r"regions of images, .*chroma; choose another"):
            PENALTIES[name](model, batch)
        return

    def value(*_: Tensor) -> Tensor:
        torch.manual_seed(3)
        return PENALTIES[name](model, batch)[1]

    assert value() > 0
    assert torch.autograd.gradcheck(value, tuple(model.parameters()), fast_mode=True)


@pytest.mark.parametrize("name", PENALTIES)
def test_logits_and_statistics_are_those_of_an_ordinary_pass(model, batch, name) -> None:
    layers = list(model)
    model = nn.Sequential(
        *layers[:3], nn.BatchNorm2d(3), *layers[3:7], nn.Dropout(0.5), *layers[7:]
    )
    mean, seed = model[3].running_mean.clone(), 5
    torch.manual_seed(seed)
    logits, value = PENALTIES[name](model, batch)
    moved = model[3].running_mean.clone()
    model[3].running_mean.copy_(mean)
    torch.manual_seed(seed)
    if "exchange" in vars(PENALTIES[name]).values() and name != "counterexamples":
        torch.randperm(3)  # drawn before the pass
    torch.testing.assert_close(logits, model(batch.inputs))
    torch.testing.assert_close(moved, model[3].running_mean)
    assert value.shape == () and model.training


@pytest.mark.parametrize("name", PENALTIES)
def test_a_mask_equals_the_projection_that_does_nothing_else(model, batch, name) -> None:
    if name in OF_REGIONS or name == "ibp":  # a box of its own for projections
        return

    class Identity:
        name = "all"

        def project(self, inputs: Tensor) -> Tensor:
            return inputs

        adjoint = project

    values = []
    for groups in (batch.groups, replace(batch.groups, projection=Identity())):
        torch.manual_seed(3)
        values.append(PENALTIES[name](model, replace(batch, groups=groups))[1])
    torch.testing.assert_close(values[1], values[0])


@pytest.mark.parametrize("name", PENALTIES)
def test_an_empty_group_costs_nothing_but_cross_entropy(model, batch, name) -> None:
    empty = replace(batch, groups=Groups(torch.zeros(1, 1, 1, 8, 7, dtype=torch.bool)))
    logits, value = PENALTIES[name](model, empty)
    trains = name.startswith(("counterexamples", "ibp"))
    expected = F.cross_entropy(logits, batch.labels) if trains else torch.zeros(())
    torch.testing.assert_close(value, expected)
    unknown = replace(batch.groups, annotated=torch.zeros(3, dtype=torch.bool))
    assert PENALTIES[name](model, replace(batch, groups=unknown))[1] == 0


@pytest.mark.parametrize("name", PENALTIES)
def test_a_value_reads_no_number_of_the_device(model, batch, name) -> None:
    groups = replace(batch.groups, mask=batch.groups.mask.to("meta"))
    batch = Batch(batch.inputs.to("meta"), batch.labels.to("meta"), groups)
    logits, value = PENALTIES[name](model.to("meta"), batch)
    value.backward()
    assert logits.is_meta and value.is_meta


def linear_batch() -> tuple[nn.Linear, Batch]:
    mask = torch.tensor([[[True, False, True]]])
    return nn.Linear(3, 2), Batch(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]), Groups(mask))


def test_integrated_gradients_add_up_to_the_change_of_the_probability() -> None:
    model, batch = linear_batch()
    inputs = batch.inputs[:1]
    single = Groups(torch.eye(3, dtype=torch.bool)[None])
    value = IntegratedGradients(2000)(model, Batch(inputs, batch.labels[:1], single))[1]
    change = (model(inputs).softmax(1) - model(0 * inputs).softmax(1))[0, 0]
    slope = model.weight[0] - model.weight[1]  # of a linear score each a_i is x_i w_i · change / Σ
    shares = inputs[0] * slope
    torch.testing.assert_close(
        value, (shares / shares.sum() * change).square().sum(), rtol=1e-5, atol=0
    )


def test_influence_of_a_linear_model_is_what_one_works_out_by_hand() -> None:
    """∇_W L = Σ (p − y) xᵀ: the squared norm's gradient in x, by finite differences."""
    model, batch = linear_batch()

    def influence(x: Tensor) -> Tensor:
        error = model(x).softmax(1) - F.one_hot(batch.labels, 2)
        return ((error.T @ x).square().sum() + error.sum(0).square().sum()) / len(x)

    x = batch.inputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(influence(x), x)
    expected = gradient[:, [0, 2]].square().sum(1).mean()
    torch.testing.assert_close(RightByInfluence()(model, batch)[1], expected)


def test_consistency_and_actdiff_of_a_linear_model_are_its_weights_times_the_change() -> None:
    model, batch = linear_batch()
    change = batch.inputs * torch.tensor([1.0, 0.0, 1.0])
    z = change @ (model.weight[0] - model.weight[1])
    expected = (z.square() / 2).mean()  # centred over two classes
    torch.testing.assert_close(Consistency(change="remove")(model, batch)[1], expected)
    hidden = ActDiff("remove")(model, batch)[1]
    torch.testing.assert_close(hidden, change.square().sum(1).mean())


def test_interval_bounds_hold_and_are_reached_by_a_linear_model(model, batch) -> None:
    radius = 0.2 * batch.groups.mask[:, 0].expand_as(batch.inputs)
    box = model(Interval(batch.inputs, radius.to(batch.inputs.dtype)))
    for _ in range(50):
        logits = model(batch.inputs + radius * (2 * torch.rand_like(batch.inputs) - 1))
        assert (logits <= box.upper + 1e-12).all() and (logits >= box.lower - 1e-12).all()
    net, small = linear_batch()
    value = IntervalBounds(0.5)(net, small)[1]
    reach = 0.5 * net.weight.abs()[:, [0, 2]].sum(1)
    sign = 1 - 2 * F.one_hot(small.labels, 2)
    torch.testing.assert_close(
        value, F.cross_entropy(net(small.inputs) + sign * reach, small.labels)
    )


def test_heat_outside_the_region_is_free_and_the_last_map_is_the_default(model, batch) -> None:
    value = {name: PENALTIES[name](model, batch)[1] for name in OF_REGIONS}
    torch.testing.assert_close(*value.values())
    everywhere = Groups(torch.ones(1, 1, 1, 8, 7, dtype=torch.bool))
    assert GradCAM()(model, replace(batch, groups=everywhere))[1] > value["gradcam"] / 2


@pytest.mark.parametrize(
    ("penalty", "message"),
    [
        (lambda: IntegratedGradients(0), "steps is 0"),
        (lambda: Consistency("both"), "form is 'both'; choose one of logits, divergence"),
        (lambda: Counterexamples("swap"), "change is 'swap'; choose one of exchange, remove"),
        (lambda: IntervalBounds(0), "radius is 0"),
        (lambda: GradCAM("none.such")(nn.Sequential(nn.Flatten()), IMAGES), "modules are 0"),
        (lambda: GradCAM()(FLAT, IMAGES), r"no nn\.Conv2d ran"),
        (
            lambda: IntervalBounds()(nn.Sequential(nn.Flatten(), nn.GELU()), IMAGES),
            "bounds for gelu",
        ),
        (lambda: ActDiff()(nn.Flatten(), IMAGES), r"last nn\.Linear"),
    ],
)
def test_what_cannot_be_is_refused_by_name(penalty, message) -> None:
    with pytest.raises(CdepError, match=message):
        penalty()


IMAGES = Batch(
    torch.zeros(2, 1, 2, 2),
    torch.tensor([0, 1]),
    Groups(torch.ones(1, 1, 1, 2, 2, dtype=torch.bool)),
)
FLAT = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize(
    "name", ["ig", "gradcam", "counterexamples", "consistency", "actdiff", "rbr", "ibp"]
)
def test_each_is_a_choice_with_a_strength_of_its_own(name) -> None:
    config = plain(composed(f"penalty={name}"))["penalty"]
    assert config["strength"] > 0 and build(config).needs_groups


def test_words_may_change_places() -> None:
    """Of token ids the words' vectors are exchanged; bounds and maps need numbers and images."""

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vectors, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.vectors(tokens).mean(1).tanh())

    tokens = torch.randint(1, 9, (5, 6))
    mask = F.one_hot(torch.tensor([0, 2, 5, 1, 3]), 6).to(torch.bool)[:, None]
    batch, model = Batch(tokens, torch.tensor([0, 1, 0, 1, 1]), Groups(mask)), Bag()
    for name in ("ig", "counterexamples", "consistency", "actdiff", "rbr"):
        logits, value = PENALTIES[name](model, batch)
        torch.testing.assert_close(logits, model(tokens))
        (slope,) = torch.autograd.grad(value, model.vectors.weight)
        assert value > 0 and slope.any()
    for name in ("gradcam", "ibp"):
        with pytest.raises(CdepError, match=r"images|numbers"):
            PENALTIES[name](model, batch)
