"""The penalties against literal loops, finite differences, and what their values promise."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import reference
from cdep_run.attribution import expected_gradients, input_gradients
from cdep_run.batch import Batch, Groups
from cdep_run.cd import decompose
from cdep_run.errors import CdepError
from cdep_run.models.cnn import MnistCNN
from cdep_run.penalties import eg
from cdep_run.penalties.cdep import CDEP, MEASURES
from cdep_run.penalties.eg import ExpectedGradients
from cdep_run.penalties.none import NoPenalty
from cdep_run.penalties.rrr import RRR
from nets import ResidualNet

BOXES = (((0, 3, 0, 3), (5, 8, 4, 7)), ((4, 5, 2, 3),))
PENALTIES = {
    **{f"cdep {form}": CDEP(form) for form in MEASURES},
    "rrr paper": RRR(),
    "rrr published": RRR("published"),
    "eg paper": ExpectedGradients(2),
    "eg published": ExpectedGradients(2, "published"),
}
MEANS = [name for name in PENALTIES if name != "rrr published"]  # mean over examples


pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(18, 5),
        nn.Tanh(),
        nn.Linear(5, 4),
    )


@pytest.fixture
def batch() -> Batch:
    mask = torch.zeros(1, 2, 1, 8, 7, dtype=torch.bool)
    for group, boxes in enumerate(BOXES):
        for top, bottom, left, right in boxes:
            mask[:, group, :, top:bottom, left:right] = True
    return Batch(torch.randn(3, 2, 8, 7), torch.tensor([2, 0, 3]), Groups(mask, BOXES))


def annotate(batch: Batch, *examples: bool) -> Batch:
    return replace(batch, groups=replace(batch.groups, annotated=torch.tensor(examples)))


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def gradients(model: nn.Module, value: Tensor) -> list[Tensor]:
    parameters = list(model.parameters())
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def close_with_gradients(model: nn.Module, actual: Tensor, expected: Tensor) -> None:
    """Equal values, and equal gradients in all parameters."""
    assert actual.shape == ()
    close(actual, expected)
    for mine, wanted in zip(gradients(model, actual), gradients(model, expected), strict=True):
        close(mine, wanted)


# --- Against the literal references --------------------------------------------------------------


@pytest.mark.parametrize("annotated", [None, (True, False, True)])
@pytest.mark.parametrize("form", MEASURES)
def test_cdep_equals_the_loops(model, batch, form, annotated):
    batch = batch if annotated is None else annotate(batch, *annotated)
    chosen = batch.groups.annotated
    relevant, irrelevant = reference.decompose([model], batch.inputs, batch.groups.mask)
    expected = {
        "pair": lambda: reference.cdep_pair(relevant, irrelevant, chosen),
        "centred": lambda: reference.cdep_centred(relevant, chosen),
        "eq5": lambda: reference.cdep_eq5(relevant, chosen),
        "pair_true_class": lambda: reference.cdep_text(relevant, irrelevant, batch.labels, chosen),
    }[form]()
    _, value = CDEP(form)(model, batch)
    close_with_gradients(model, value, expected)


@pytest.mark.parametrize("annotated", [None, (True, False, True)])
def test_rrr_equals_the_loops(model, batch, annotated):
    batch = batch if annotated is None else annotate(batch, *annotated)
    groups = batch.groups
    _, value = RRR()(model, batch)
    expected = reference.rrr_paper(model, batch.inputs, groups.mask, groups.annotated)
    close_with_gradients(model, value, expected)


def test_rrr_of_the_published_code_equals_the_loops(model, batch):
    _, value = RRR("published")(model, batch)
    expected = reference.rrr_code(model, batch.inputs, batch.labels, batch.groups.mask)
    close_with_gradients(model, value, expected)


@pytest.mark.parametrize("annotated", [None, (True, False, True)])
@pytest.mark.parametrize("form", ["paper", "published"])
def test_eg_equals_the_loops_for_the_references_it_drew(model, batch, form, annotated, monkeypatch):
    batch = batch if annotated is None else annotate(batch, *annotated)
    drawn = []

    def record(model, inputs, labels, references, alpha):
        drawn.append((references, alpha))
        return expected_gradients(model, inputs, labels, references, alpha)

    monkeypatch.setattr(eg, "expected_gradients", record)
    _, value = ExpectedGradients(4, form)(model, batch)
    [(references, alpha)] = drawn
    assert references.shape == (4, 3, 2, 8, 7) and alpha.shape == (4, 3)
    assert ((alpha >= 0) & (alpha <= 1)).all()
    for drawn_reference in references.flatten(0, 1):
        assert any(drawn_reference.equal(example) for example in batch.inputs)
    attribution = reference.eg_attribution(model, batch.inputs, batch.labels, references, alpha)
    loops = reference.eg_paper if form == "paper" else reference.eg_code
    expected = loops(attribution, batch.groups.mask, batch.groups.annotated)
    close_with_gradients(model, value, expected)


def test_expected_gradients_equal_the_loops(model, batch):
    references, alpha = torch.randn(5, 3, 2, 8, 7), torch.rand(5, 3)
    arguments = (batch.inputs, batch.labels, references, alpha)
    actual = expected_gradients(model, *arguments)
    expected = reference.eg_attribution(model, *arguments)
    close(actual, expected)
    weights = torch.randn_like(actual)
    close_with_gradients(model, (weights * actual).sum(), (weights * expected).sum())


def test_expected_gradients_of_a_linear_score_add_up_to_the_difference():
    """Along a straight line they integrate ∂p/∂x: with many α, Σ φ = p_y(x) − p_y(x′)."""
    model, x, labels = nn.Linear(6, 3), torch.randn(1, 6), torch.tensor([1])
    start = torch.randn(1, 6)
    alpha = (torch.arange(2000) + 0.5)[:, None] / 2000
    phi = expected_gradients(model, x, labels, start.expand(2000, 1, 6), alpha).mean(0)
    difference = model(x).softmax(1)[0, 1] - model(start).softmax(1)[0, 1]
    close(phi.sum(), difference, 1e-6)


def test_rrr_on_a_linear_model_is_what_one_works_out_by_hand():
    """∂/∂x Σ_c log p_c = Σ_c W_c − C Σ_c p_c W_c."""
    model, x = nn.Linear(5, 3), torch.randn(2, 5)
    mask = torch.tensor([[[True, False, True, False, False]]])
    probabilities = model(x).softmax(1)
    gradient = model.weight.sum(0) - 3 * probabilities @ model.weight
    expected = (gradient[:, [0, 2]] ** 2).sum(1).mean()
    _, value = RRR()(model, Batch(x, torch.tensor([0, 1]), Groups(mask)))
    close(value, expected)


def test_input_gradients_equal_finite_differences(model, batch):
    def score(logits: Tensor) -> Tensor:
        return F.log_softmax(logits, 1).sum()

    logits, gradient = input_gradients(model, batch.inputs, score)
    close(logits, model(batch.inputs))
    direction, step = torch.randn_like(batch.inputs), 1e-6
    ahead, behind = (score(model(batch.inputs + s * direction)) for s in (step, -step))
    close((gradient * direction).sum(), (ahead - behind) / (2 * step), 1e-6)


@pytest.mark.parametrize("name", PENALTIES)
def test_gradients_equal_finite_differences(model, batch, name):
    model[1] = nn.Softplus() if not name.startswith("cdep") else nn.ReLU()

    def value(*_: Tensor) -> Tensor:
        torch.manual_seed(3)  # the same references each time
        return PENALTIES[name](model, batch)[1]

    # gradcheck moves the parameters in place, so the model sees them move
    assert torch.autograd.gradcheck(value, tuple(model.parameters()), fast_mode=True)


# --- As published --------------------------------------------------------------------------------


def test_parts_of_the_mnist_net_are_those_of_the_published_code():
    model = MnistCNN((3, 28, 28), hidden=16)
    inputs = torch.randn(2, 3, 28, 28)
    mask = torch.zeros(1, 1, 28, 28, dtype=torch.bool)
    mask[..., 8:20, 3:15] = True
    found = decompose(model, inputs, mask)
    for actual, expected in zip(
        (found.relevant, found.irrelevant),
        reference.published_mnist_cnn(model, inputs, mask),
        strict=True,
    ):
        close(actual, expected, 1e-14)


# --- What the values promise ---------------------------------------------------------------------


@pytest.mark.parametrize("name", PENALTIES)
def test_logits_are_those_of_an_ordinary_pass(model, batch, name):
    logits, value = PENALTIES[name](model, batch)
    expected = model(batch.inputs)
    close(logits, expected)
    assert value.shape == () and value > 0
    loss = F.cross_entropy(logits, batch.labels)
    wanted = F.cross_entropy(expected, batch.labels)
    for mine, other in zip(gradients(model, loss), gradients(model, wanted), strict=True):
        close(mine, other)


def test_no_penalty_is_zero_and_an_ordinary_pass(model, batch):
    logits, value = NoPenalty()(model, replace(batch, groups=None))
    assert logits.equal(model(batch.inputs)) and value == 0 and value.shape == ()


@pytest.mark.parametrize("name", [name for name in MEANS if not name.startswith("eg")])
def test_examples_without_annotation_do_not_count(model, batch, name):
    penalty = PENALTIES[name]
    chosen = torch.tensor([0, 2])
    alone = Batch(batch.inputs[chosen], batch.labels[chosen], batch.groups)
    _, expected = penalty(model, alone)
    _, value = penalty(model, annotate(batch, True, False, True))
    close(value, expected)
    other = replace(batch, inputs=batch.inputs.clone())
    other.inputs[1] += 3
    close(penalty(model, annotate(other, True, False, True))[1], expected)


@pytest.mark.parametrize("name", PENALTIES)
def test_a_batch_without_any_annotation_costs_nothing(model, batch, name):
    _, value = PENALTIES[name](model, annotate(batch, False, False, False))
    assert value == 0
    assert all(not g.any() for g in gradients(model, value))


@pytest.mark.parametrize("name", ["cdep pair", "cdep eq5", "rrr paper"])
def test_the_value_does_not_depend_on_how_often_examples_come(model, batch, name):
    twice = Batch(batch.inputs.repeat(2, 1, 1, 1), batch.labels.repeat(2), batch.groups)
    close(PENALTIES[name](model, twice)[1], PENALTIES[name](model, batch)[1])


def test_rrr_of_the_published_code_shrinks_with_the_batch(model, batch):
    twice = Batch(batch.inputs.repeat(2, 1, 1, 1), batch.labels.repeat(2), batch.groups)
    close(RRR("published")(model, twice)[1], RRR("published")(model, batch)[1] / 2)


@pytest.mark.parametrize("name", PENALTIES)
def test_groups_add_up(model, batch, name):
    def value(*groups: int) -> Tensor:
        torch.manual_seed(3)
        mask = batch.groups.mask[:, list(groups)]
        boxes = tuple(batch.groups.boxes[g] for g in groups)
        return PENALTIES[name](model, replace(batch, groups=Groups(mask, boxes)))[1]

    close(value(0, 1), value(0) + value(1))
    close(value(1, 1), 2 * value(1))


@pytest.mark.parametrize("name", PENALTIES)
def test_a_mask_of_each_example_equals_a_shared_one(model, batch, name):
    each = Groups(batch.groups.mask.repeat(3, 1, 1, 1, 1))
    values = []
    for groups in (batch.groups, each):
        torch.manual_seed(3)
        values.append(PENALTIES[name](model, replace(batch, groups=groups))[1])
    close(values[1], values[0])


@pytest.mark.parametrize("form", ["centred", "eq5"])
def test_a_constant_added_to_all_classes_changes_nothing(form):
    relevant, irrelevant = torch.randn(2, 3, 2, 4).unbind()
    labels = torch.tensor([2, 0, 3])
    value = MEASURES[form](relevant, irrelevant, labels)
    close(MEASURES[form](relevant + 5, irrelevant, labels), value)
    close(MEASURES[form](relevant - 2, irrelevant + 9, labels), value)


def test_the_pair_form_is_satisfied_by_a_constant_that_falls_to_the_rest():
    """The loophole: a net that raises all its logits pays nothing and has no gradient left."""
    relevant, irrelevant = torch.randn(2, 3, 2, 4).unbind()
    value = MEASURES["pair"](relevant, irrelevant + 79, torch.tensor([2, 0, 3]))
    assert value.max() < 1e-30


# --- The model, and bad input --------------------------------------------------------------------


@pytest.mark.parametrize("name", PENALTIES)
def test_batch_norm_statistics_move_once_and_modes_stay(name):
    model = ResidualNet().train()
    model.norm3.eval()
    plain = copy.deepcopy(model)
    modes = [module.training for module in model.modules()]
    mask = torch.zeros(1, 1, 1, 12, 12, dtype=torch.bool)
    mask[..., :4, :4] = True
    batch = Batch(torch.randn(5, 2, 12, 12), torch.tensor([0, 1, 2, 0, 1]), Groups(mask))
    logits, value = PENALTIES[name](model, batch)
    (F.cross_entropy(logits, batch.labels) + value).backward()
    close(logits, plain(batch.inputs))
    for buffer, expected in zip(model.buffers(), plain.buffers(), strict=True):
        close(buffer, expected)
    assert [module.training for module in model.modules()] == modes
    assert not batch.inputs.requires_grad and batch.inputs.grad is None


@pytest.mark.parametrize("name", PENALTIES)
def test_a_batch_without_groups_is_refused(model, batch, name):
    assert PENALTIES[name].needs_groups
    with pytest.raises(CdepError, match="groups"):
        PENALTIES[name](model, replace(batch, groups=None))


@pytest.mark.parametrize("shape", [(1, 2, 8, 7), (1, 2, 1, 8, 6), (2, 2, 1, 8, 7), (8, 7)])
@pytest.mark.parametrize("name", PENALTIES)
def test_a_mask_that_does_not_fit_the_inputs_is_refused(model, batch, name, shape):
    groups = Groups(torch.ones(shape, dtype=torch.bool))
    with pytest.raises((ValueError, CdepError), match="mask"):
        PENALTIES[name](model, replace(batch, groups=groups))


@pytest.mark.parametrize("build", [CDEP, RRR, lambda form: ExpectedGradients(form=form)])
def test_an_unknown_form_is_refused_with_the_choices(build):
    with pytest.raises(CdepError, match=r"papre.*(paper|pair)"):
        build("papre")


def test_eg_without_samples_is_refused():
    with pytest.raises(CdepError, match="samples"):
        ExpectedGradients(0)


@pytest.mark.parametrize("name", PENALTIES)
def test_bfloat16_autocast_agrees_with_float32(model, batch, name):
    model, batch = model.float(), replace(batch, inputs=batch.inputs.float())
    torch.set_default_dtype(torch.float32)
    results = []
    for enabled in (False, True):
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            logits, value = PENALTIES[name](model, batch)
        results.append(value.float())
        loss = F.cross_entropy(logits.float(), batch.labels) + value.float()
        assert all(g.isfinite().all() for g in gradients(model, loss))
    close(results[1], results[0], 0.05)


class Returning(nn.Module):
    """A small net whose output is passed on by a function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(2, 4, 3), function

    def forward(self, inputs: Tensor):
        return self.function(self.conv(inputs).relu())


WRONG_OUTPUTS = {
    r"\[3, 1\].*(pair \(0, z\))": lambda maps: maps.mean((1, 2, 3))[:, None],
    r"\[3, 4, 6, 5\]": lambda maps: maps,
    r"a tuple.*model\(x\)\[0\]": lambda maps: (maps.mean((2, 3)), maps),
}


@pytest.mark.parametrize("message", WRONG_OUTPUTS)
@pytest.mark.parametrize("name", PENALTIES)
def test_outputs_that_are_no_logits_of_classes_are_refused(batch, name, message):
    with pytest.raises((CdepError, ValueError), match=message):
        PENALTIES[name](Returning(WRONG_OUTPUTS[message]), batch)


@pytest.mark.parametrize("penalty", [RRR(), ExpectedGradients()])
@pytest.mark.parametrize("cut", [Tensor.detach, lambda z: F.one_hot(z.argmax(1), 4).double()])
def test_a_cut_between_input_and_logits_is_named(batch, penalty, cut):
    head = nn.Linear(4, 4)
    with pytest.raises(CdepError, match=r"no gradient in its input.*no_grad"):
        penalty(Returning(lambda maps: head(cut(maps.mean((2, 3))))), batch)


@pytest.mark.parametrize("penalty", [RRR(), ExpectedGradients(2), CDEP("centred")])
def test_weights_in_bfloat16_train(model, batch, penalty):
    model = model.bfloat16()
    batch = replace(batch, inputs=batch.inputs.bfloat16())
    logits, value = penalty(model, batch)
    assert logits.dtype == value.dtype == torch.bfloat16
    assert all(g.isfinite().all() for g in gradients(model, value))


class Attention(nn.Module):
    """Tokens are the rows of an image; torch's fused attention mixes them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(14, 12), nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        query, key, value = self.embed(inputs.transpose(1, 2).flatten(2)).chunk(3, -1)
        mixed = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])
        return self.head(mixed.mean((1, 2)))


@pytest.mark.parametrize("penalty", [RRR(), ExpectedGradients(2)])
def test_gradients_through_fused_attention_equal_finite_differences(batch, penalty):
    model = Attention()

    def value(*_: Tensor) -> Tensor:
        torch.manual_seed(3)
        return penalty(model, batch)[1]

    assert torch.autograd.gradcheck(value, tuple(model.parameters()), fast_mode=True)


@pytest.mark.parametrize("penalty", [RRR(), ExpectedGradients(2)])
def test_checkpointing_that_is_not_reentrant_changes_nothing(model, batch, penalty):
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, inputs: Tensor) -> Tensor:
            inner = checkpoint(self.net[:4], inputs, use_reentrant=False)
            return self.net[4:](inner)

    model[2] = nn.AvgPool2d(2)
    values = []
    for net in (model, Checkpointed()):
        torch.manual_seed(3)
        values.append(penalty(net, batch)[1])
    close_with_gradients(model, values[1], values[0])
