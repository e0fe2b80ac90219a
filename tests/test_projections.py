"""Groups that are linear maps: adjoint, raw units, masks as a special case, finite differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdep_run.attribution import features
from cdep_run.batch import Batch, Groups
from cdep_run.cd import decompose
from cdep_run.datasets.annotation import ConstantGroups
from cdep_run.datasets.base import DataError
from cdep_run.datasets.projections import (
    Channels,
    Chroma,
    Facts,
    Frequency,
    Projected,
    Span,
    annotated,
    refuse_unfit,
)
from cdep_run.errors import CdepError
from cdep_run.models.lstm import RecurrentClassifier
from cdep_run.penalties.cdep import CDEP
from cdep_run.penalties.eg import ExpectedGradients
from cdep_run.penalties.rrr import RRR

pytestmark = pytest.mark.usefixtures("double")

STD = torch.tensor([0.2, 0.5, 3.0])
IMAGES = Facts((3, 6, 8), STD)
WORDS = ["<pad>", "<unk>", "he", "she", "it", "film", "unseen"]
VECTORS = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
VECTORS[[0, 6]] = 0
TEXT = Facts((5,), vocabulary=WORDS, vectors=VECTORS)
TABLE = Facts((4,), torch.tensor([10.0, 1.0, 0.5, 2.0]), columns=["age", "income", "debt", "sex"])
SPECS = [
    ("chroma", IMAGES, (3, 6, 8)),
    (["channels", 0, 2], IMAGES, (3, 6, 8)),
    (["frequency", 0.3, 1], IMAGES, (3, 6, 8)),
    (["direction", ["he", "she"], ["she", "it"]], TEXT, (5, 4)),
    (["columns", "age", {"income": 1, "debt": -1}], TABLE, (4,)),
]
MAPS = pytest.mark.parametrize(("spec", "facts", "shape"), SPECS)


def groups(spec, facts: Facts) -> Groups:
    return annotated(spec, "masks", None, facts)(torch.arange(2))


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# --- The maps themselves -------------------------------------------------------------------------


@MAPS
def test_the_adjoint_is_one_and_projecting_twice_changes_nothing(spec, facts, shape):
    known = groups(spec, facts)
    x, g = torch.randn(2, 5, *shape).unbind()
    parts = known.project(x)
    assert parts.shape == (5, 1, *shape)
    close((parts[:, 0] * g).sum(), (x * known.adjoint(g)[:, 0]).sum(), 1e-6)
    close(known.project(parts[:, 0]), parts, 1e-6)
    close(known.sensitivity(g), known.adjoint(g).square().flatten(2).sum(2))
    close(known.attribution(x, g).flatten(1).sum(1), (parts[:, 0] * g).flatten(1).sum(1), 1e-5)


@MAPS
def test_a_mask_keeps_the_adjoint(spec, facts, shape):
    mask = torch.rand(5, 3, *facts.shape) > 0.4
    own = annotated(["masked", *([spec] if isinstance(spec, str) else spec)], "own",
                    lambda index: Groups(mask), facts)  # fmt: skip
    known = own(torch.arange(5))
    x, g = torch.randn(5, *shape), torch.randn(5, *shape)
    parts, back = known.project(x), known.adjoint(g)
    assert parts.shape == (5, 3, *shape)
    for group in range(3):
        close((parts[:, group] * g).sum(), (x * back[:, group]).sum(), 1e-6)
    assert not (parts[~mask] if parts.dim() == mask.dim() else parts[~mask].any(-1)).any()


def test_chroma_acts_on_raw_colours():
    """Adding grey light to the raw image leaves its colour as it is."""
    raw, mean = torch.rand(2, 3, 6, 8), torch.tensor([0.1, 0.4, -1.0]).view(3, 1, 1)
    std = STD.double().view(3, 1, 1)
    known = groups("chroma", IMAGES)
    x, brighter = (raw - mean) / std, (raw + 0.7 - mean) / std
    close(known.project(brighter - x), torch.zeros(2, 1, 3, 6, 8), 1e-7)
    deviation = raw - mean
    expected = (deviation - deviation.mean(1, keepdim=True)) / std
    close(known.project(x)[:, 0], expected, 1e-6)


def test_channels_are_a_mask():
    mask = torch.tensor([True, False, True]).view(1, 1, 3, 1, 1)
    x = torch.randn(2, 3, 6, 8)
    close(groups(["channels", 0, 2], IMAGES).project(x), Groups(mask).project(x))


def test_bands_of_frequencies_add_up_and_keep_their_waves():
    x = torch.randn(2, 3, 6, 8)
    bands = [(0, 0.25), (0.25, 0.6), (0.6, 1)]
    parts = [Frequency(low, high, 6, 8).project(x) for low, high in bands]
    close(sum(parts), x, 1e-6)
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(3, 6, 8)
    close(Frequency(0.9, 1, 6, 8).project(stripes), stripes.clone(), 1e-6)
    assert Frequency(0, 0.9, 6, 8).project(stripes).abs().max() < 1e-6
    odd = torch.randn(3, 5, 7)
    close(Frequency(0, 0.5, 5, 7).project(odd) + Frequency(0.5, 1, 5, 7).project(odd), odd, 1e-6)


def test_a_direction_takes_the_difference_of_two_words_away():
    known = groups(["direction", ["he", "she"]], TEXT)
    pair = VECTORS[[2, 3]].double()[None]
    rest = (pair - known.project(pair)[:, 0])[0]
    close(rest[0], rest[1], 1e-6)
    plain = torch.randn(1, 2, 4)
    unit = F.normalize(VECTORS[2] - VECTORS[3], dim=0).double()
    close(known.project(plain)[0, 0], (plain[0] @ unit)[:, None] * unit, 1e-6)


def test_without_a_sum_of_columns_its_raw_value_is_the_mean_row_s():
    known = groups(["columns", {"income": 1, "debt": -1}], TABLE)
    x = torch.randn(3, 4)
    rest = (x - known.project(x)[:, 0]) * TABLE.std.double()
    close(rest[:, 1] - rest[:, 2], torch.zeros(3), 1e-6)
    close(rest[:, [0, 3]], (x * TABLE.std.double())[:, [0, 3]], 1e-6)


def test_single_columns_are_a_mask():
    x = torch.randn(3, 4)
    mask = torch.tensor([[[False, True, False, True]]])
    close(groups(["columns", "income", "sex"], TABLE).project(x), Groups(mask).project(x), 1e-6)


# --- Under the penalties -------------------------------------------------------------------------

PENALTIES = {
    "cdep centred": CDEP("centred"),
    "cdep pair": CDEP("pair"),
    "rrr": RRR(),
    "eg": ExpectedGradients(2),
}
EACH = pytest.mark.parametrize("name", PENALTIES)


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5), nn.Tanh(), nn.Linear(5, 4)
    )


@pytest.fixture
def batch() -> Batch:
    return Batch(torch.randn(3, 3, 6, 8), torch.tensor([2, 0, 3]), groups("chroma", IMAGES))


def value(name: str, model: nn.Module, batch: Batch) -> Tensor:
    torch.manual_seed(3)
    return PENALTIES[name](model, batch)[1]


@EACH
def test_a_projection_that_is_a_mask_costs_what_the_mask_does(model, batch, name):
    mask = torch.zeros(1, 2, 1, 6, 8, dtype=torch.bool)
    mask[:, 0, :, :2], mask[:, 1, :, 3:, 4:] = True, True
    channel = torch.tensor([True, False, True]).view(1, 1, 3, 1, 1)
    plain = replace(batch, groups=Groups(mask & channel))
    mapped = replace(batch, groups=Groups(mask, projection=Channels([0, 2], 3)))
    close(value(name, model, mapped), value(name, model, plain))


@EACH
def test_gradients_equal_finite_differences(model, batch, name):
    if not name.startswith("cdep"):
        model[1] = nn.Softplus()
    assert torch.autograd.gradcheck(
        lambda *_: value(name, model, batch), tuple(model.parameters()), fast_mode=True
    )


@EACH
def test_a_net_that_sees_grey_alone_pays_nothing(batch, name):
    grey = Chroma(STD.view(3, 1, 1))

    class Grey(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward((x - grey.project(x)).flatten(1))

    net = Grey(144, 4, bias=False)
    batch = replace(batch, inputs=batch.inputs)
    if name == "cdep pair":  # its neutral value is not 0
        return
    assert value(name, net, batch) < 1e-8
    assert value(name, nn.Sequential(nn.Flatten(), nn.Linear(144, 4)), batch) > 1e-3


def test_rrr_is_the_squared_change_along_colours(batch):
    """Of a linear score w·x: ‖Pᵀ ∂ log p‖², the mean over examples."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 4))
    x = batch.inputs.clone().requires_grad_()
    (g,) = torch.autograd.grad(F.log_softmax(net(x), 1).sum(), x)
    std = STD.double().view(3, 1, 1)
    raw = g / std
    expected = ((raw - raw.mean(1, keepdim=True)) * std).square().flatten(1).sum(1).mean()
    close(value("rrr", net, batch), expected, 1e-6)


def test_decompose_takes_a_projected_part_as_a_library_does(model, batch):
    relevant = batch.groups.project(batch.inputs)
    parts = decompose(model, batch.inputs, batch.groups.mask, relevant=relevant)
    close(parts.total, model(batch.inputs))
    linear = nn.Sequential(nn.Flatten(), nn.Linear(144, 4, bias=False))
    parts = decompose(linear, batch.inputs, batch.groups.mask, relevant=relevant)
    close(parts.relevant[:, 0], linear(relevant[:, 0]))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@EACH
def test_a_direction_of_word_vectors_is_penalised_behind_the_embedding(name, cell):
    net = RecurrentClassifier((5,), 2, VECTORS.double(), hidden=3, cell=cell)
    tokens = torch.tensor([[2, 4, 5, 0, 0], [3, 5, 5, 4, 2]])
    known = groups(["direction", ["he", "she"]], TEXT)
    batch = Batch(tokens, torch.tensor([0, 1]), known)
    penalty = PENALTIES[name]
    logits, first = penalty(net, batch)
    close(logits, net(tokens))
    parameters = [p for p in net.recurrent.parameters()]
    assert all(g.isfinite().all() for g in torch.autograd.grad(first, parameters))
    vectors = features(net, tokens)[1]
    with torch.no_grad():  # a net whose weights do not read the direction
        weight = net.recurrent.weight_ih_l0
        weight -= known.project(weight[None])[0, 0]
        net.embedding.weight.copy_(VECTORS)
    assert vectors.shape == (2, 5, 4)
    if name in ("rrr", "eg"):
        assert penalty(net, batch)[1] < 1e-8


# --- Bad input -----------------------------------------------------------------------------------


class Bad:
    """Not a linear map in one way or another."""

    name = "bad"

    def __init__(self, project, adjoint=lambda g: g) -> None:
        self.project, self.adjoint = project, adjoint

    def to(self, device):
        return self


@pytest.mark.parametrize(
    ("map", "message"),
    [
        (Bad(torch.relu), "not linear"),
        (Bad(lambda x: x + 1), "not linear"),
        (Bad(lambda x: x.flip(-1).cumsum(-1)), "adjoint"),
        (Bad(lambda x: x[..., :2]), "shape"),
        (Bad(lambda x: 0 * x, lambda g: 0 * g), "zero"),
        (Bad(lambda x: x), "everything"),
        (Span(torch.eye(3), "all"), "everything"),
        (Span(torch.eye(4), "wide"), "does not fit"),
    ],
)
def test_what_is_no_part_of_the_input_is_refused(map, message):
    torch.set_default_dtype(torch.float32)
    with pytest.raises(CdepError, match=message):
        refuse_unfit(map, (2, 3))
    before = torch.get_rng_state()
    refuse_unfit(Channels([1], 2), (2, 3, 3))
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize(
    ("spec", "facts", "message"),
    [
        ("chrome", IMAGES, "unknown; choose"),
        ("chroma", Facts((1, 6, 8)), "one channel"),
        ("chroma", TEXT, "for images"),
        (["channels", 3], IMAGES, "channels"),
        (["channels"], IMAGES, "channels"),
        (["frequency", 0.5], IMAGES, "does not fit"),
        (["frequency", 0.5, 0.2], IMAGES, "low < high"),
        (["direction", ["he", "shee"]], TEXT, "'shee'.*not among"),
        (["direction", ["he", "unseen"]], TEXT, "'unseen'.*no vector"),
        (["direction", ["he", "he"]], TEXT, "length 0"),
        (["direction", "he", "she"], TEXT, "pairs"),
        (["direction", ["he", "she"]], IMAGES, "for text"),
        (["columns", "height"], TABLE, "height; the columns are age"),
        (["columns", "age"], IMAGES, "for tables"),
        (["masked"], IMAGES, "names no group"),
        ("no_such_package.Map", IMAGES, "no_such_package"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(spec, facts, message):
    with pytest.raises(CdepError, match=message):
        annotated(spec, "own", None, facts)


def test_the_setting_chooses_masks_a_map_or_a_map_inside_masks():
    own = ConstantGroups(Groups(torch.ones(1, 2, 1, 6, 8, dtype=torch.bool)))
    assert annotated("own", "own", own, IMAGES) is own
    assert isinstance(annotated("chroma", "own", own, IMAGES), Projected)
    inside = annotated(["masked", "chroma"], "own", own, IMAGES)(torch.arange(1))
    assert inside.mask.shape == (1, 2, 1, 6, 8) and inside.projection.name == "chroma"
    assert annotated(["masked", "chroma"], "own", None, IMAGES) is None
    mine = annotated(["cdep_run.datasets.projections.Channels", [1], 3], "own", own, IMAGES)
    assert isinstance(mine(torch.arange(1)).projection, Channels)


def test_rrr_of_the_published_code_knows_no_projection(model, batch):
    with pytest.raises(CdepError, match="chroma"):
        RRR("published")(model, batch)


def test_unit_lengths_do_not_matter_and_repeated_directions_count_once():
    span = Span(torch.tensor([[3.0, 0, 0], [1e-3, 0, 0]]), "twice")
    x = torch.randn(2, 3)
    close(span.project(x), x * torch.tensor([1.0, 0, 0]), 1e-6)
    with pytest.raises(DataError, match="length 0"):
        Span(torch.zeros(1, 3), "none")
