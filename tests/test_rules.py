"""Each family of rules: the identities, finite differences, and the formula written out."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdep_run.cd import MissingRuleError, decompose, register_rule
from cdep_run.cd.pair import Pair
from cdep_run.cd.registry import use_variants
from identities import measure

SHAPE = (2, 4, 6, 6)


pytestmark = pytest.mark.usefixtures("double")


class Op(nn.Module):
    """One op between a positive scale for each channel and the output `[N, C]`."""

    def __init__(self, op: Callable[..., Tensor], *layers: nn.Module):
        super().__init__()
        self.op, self.layers = op, nn.ModuleList(layers)
        self.scale = nn.Parameter(torch.rand(SHAPE[1], 1, 1) + 0.5)
        self.to(torch.get_default_dtype())

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x * self.scale, *self.layers).flatten(1)


def layer(module: nn.Module) -> tuple:
    return lambda x, layer: layer(x), module


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).mT


def assign(x: Tensor) -> Tensor:
    y = x.new_empty(2, 5, 6, 6)
    y[:, :4] = x
    y[:, 4] = x[:, 0] * 2
    y[:, 0, 2:] += y[:, 1, 2:]
    return y


def write_through_a_view(x: Tensor) -> Tensor:
    y = x * 2
    left, flat = y[:, :2], y.view(2, -1)
    left.mul_(3).add_(y[:, 2:])
    flat.relu_()
    return y


def in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y += x.flip(1)
    y *= 2
    y -= 0.1
    y.clamp_(min=-1)
    return F.relu(y, inplace=True)


def branch(x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 and float(x.max()) > 0 else x * 3


def manual_attention(x: Tensor) -> Tensor:
    q = tokens(x)
    causal = torch.full((36, 36), float("-inf")).triu(1)
    return torch.softmax(q @ q.transpose(-2, -1) * 0.5 + causal, -1) @ q


def unpool(x: Tensor) -> Tensor:
    return F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)


torch.manual_seed(0)  # of the weights below

OPS: dict[str, tuple] = {
    "conv1d": (lambda x, layer: layer(x.flatten(2)), nn.Conv1d(4, 3, 3, stride=2, groups=1)),
    "conv3d": (lambda x, layer: layer(x[:, None]), nn.Conv3d(1, 2, 2)),
    "transposed": layer(nn.ConvTranspose2d(4, 2, 3, stride=2)),
    "weight norm": layer(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 3, 3))),
    "spectral norm": layer(nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 3, 3))),
    "circular padding": layer(nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular")),
    "bilinear": (lambda x, layer: layer(x, x.flip(1)), nn.Bilinear(6, 6, 2)),
    "computed weight": (lambda x: F.linear(x[:, 0], x[0, 1], x[0, 2, 0]),),
    "batch norm": layer(nn.BatchNorm2d(4)),
    "group norm": layer(nn.GroupNorm(2, 4)),
    "instance norm": layer(nn.InstanceNorm2d(4, affine=True)),
    "layer norm": layer(nn.LayerNorm([6, 6])),
    "RMS norm": layer(nn.RMSNorm(6)),
    "response norm": layer(nn.LocalResponseNorm(2)),
    "norm by hand": (lambda x: (x - x.mean(1, True)) * torch.rsqrt(x.var(1, keepdim=True) + 1),),
    "normalize": (F.normalize,),
    "p-norm pool": layer(nn.LPPool2d(2, 2)),
    "max pool": (lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True)[0],),
    "max pool 1d": (lambda x: F.max_pool1d(x.flatten(2), 3),),
    "max pool 3d": (lambda x: F.max_pool3d(x, 2),),
    "adaptive max pool": layer(nn.AdaptiveMaxPool2d(4)),
    "fractional max pool": (
        lambda x: F.fractional_max_pool2d(
            x, 2, output_size=3, _random_samples=torch.full((2, 4, 2), 0.5, dtype=x.dtype)
        ),
    ),
    "unpool": (unpool,),
    "average pools": (lambda x: F.adaptive_avg_pool2d(F.avg_pool2d(x, 2, 1), 3),),
    "bilinear upsampling": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),),
    "bicubic downsampling": (lambda x: F.interpolate(x, (4, 5), mode="bicubic", antialias=True),),
    "nearest": (lambda x: F.interpolate(x, (9, 4)),),
    "grid sample": (lambda x: F.grid_sample(x, torch.linspace(-1, 1, 64).view(2, 4, 4, 2)),),
    "pixel shuffle": (lambda x: F.pixel_shuffle(x, 2),),
    "fold": (lambda x: F.fold(F.unfold(x, 2), (6, 6), 2),),
    "pad": (lambda x: F.pad(F.pad(x, (1, 1)), (1, 1, 1, 1), mode="reflect"),),
    "softmax": (lambda x: x.softmax(1),),
    "log softmax": (lambda x: F.log_softmax(x, -1),),
    "logsumexp": (lambda x: x.logsumexp((1, 2)),),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x.flip(1), x, is_causal=True),),
    "attention by hand": (manual_attention,),
    "multi-head attention": (
        lambda x, layer: layer(*[tokens(x)] * 3)[0],
        nn.MultiheadAttention(4, 2, batch_first=True),
    ),
    "without weights": (
        lambda x, layer: layer(*[tokens(x)] * 3, need_weights=False)[0],
        nn.MultiheadAttention(4, 2, batch_first=True),
    ),
    "encoder": (
        lambda x, layer: layer(tokens(x)),
        # Not ReLU: with eight units all may be dead at a token, and the bias behind them is γ's.
        nn.TransformerEncoderLayer(4, 2, 8, activation="gelu", batch_first=True),
    ),
    "matmul": (lambda x: x @ x.mT,),
    "bmm": (lambda x: torch.bmm(x[:, 0], x[:, 1]),),
    "baddbmm": (lambda x: torch.baddbmm(torch.ones(6), x[:, 0], x[:, 1], beta=0.5, alpha=2),),
    "einsum": (lambda x: torch.einsum("nchw,nchv->ncwv", x, x.flip(-1)),),
    "einsum of three": (
        lambda x: torch.einsum("nc,nd,ne->ncde", x[..., 0, 0], x[..., 1, 1], x[..., 2, 2]),
    ),
    "gate": (lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),),
    "cosine": (lambda x: F.cosine_similarity(x, x.flip(1)),),
    "product": (lambda x: x.prod(1),),
    "powers": (lambda x: x**2 + x**3 + (x.abs() + 1) ** 0.5 + 2**x,),
    "lerp and addcmul": (lambda x: torch.lerp(x, x.flip(1), 0.3) + torch.addcmul(x, x, x),),
    "quotients": (lambda x: x / (x.abs() + 1) + 1 / (1 + torch.exp(-x)) * x,),
    "reductions": (lambda x: x.sum((1, 2)) + x.mean(-1)[:, 0] + x.cumsum(1)[:, 3, 0],),
    "largest": (lambda x: x.max(1).values + x.amin((1, 2), keepdim=True)[:, 0] + x.max(),),
    "topk and sort": (lambda x: x.topk(3, -1)[0] + x.sort(-1, descending=True)[0][..., :3],),
    "maximum": (lambda x: torch.maximum(x, x.flip(1)) + torch.minimum(x, x.flip(2)),),
    "clamps": (lambda x: x.clamp(-1, 1) + x.clamp(min=0) + x.clamp(max=x.flip(1) + 2),),
    "where": (lambda x: torch.where(x > 0, x, 0.1 * x) + x.where(x.flip(1) > 0, -x),),
    "masked fill": (lambda x: x.masked_fill(x < 0, 0) + x,),
    "joins": (lambda x: torch.cat([torch.ones(2, 1, 6, 6), x, torch.stack([x[:, 0]], 1)], 1),),
    "splits": (lambda x: torch.cat([*x.chunk(2, 1), *x.split(3, -1)[0].unbind(1)[:0]], 1),),
    "index": (lambda x: torch.cat([x[:, [0, 2]], x[:, x[0, :, 0, 0] == x[0, 1, 0, 0]]], 1),),
    "gather": (lambda x: x.gather(1, torch.zeros(2, 1, 6, 6, dtype=torch.long)),),
    "scatter": (
        lambda x: torch.zeros_like(x).scatter_add(1, torch.zeros(SHAPE, dtype=torch.long), x),
    ),
    "Fourier": (lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 2),),
    "casts": (lambda x: x.to(torch.float64).type_as(x).to("cpu"),),
    "item assignment": (assign,),
    "views": (write_through_a_view,),
    "in place": (in_place,),
    "control flow": (branch,),
    "glu": (lambda x: F.glu(x, 1),),
    "bounds": (
        lambda x: torch.maximum(x, torch.tensor(-0.3)) + x.clamp(torch.tensor(-0.5), torch.ones(6)),
    ),
    "steps": (lambda x: x + 0.1 * (x * 3).round() + x.sign(),),
    "extremes": (lambda x: x.aminmax(dim=1).max - torch.amin(input=x, dim=1),),
    "cross product": (lambda x: torch.cross(x[:, :3], x[:, 1:], dim=1),),
    "running product": (lambda x: x.cumprod(1),),
    "sum of quotients": (lambda x: torch.addcdiv(x, x, x.abs() + 1, value=0.5) - torch.erfc(x),),
    "powers of a number": (lambda x: torch.pow(2.0, x) + torch.ones(6).add(1) ** x,),
    "keywords": (
        lambda x: torch.where(
            condition=x > 0,
            input=F.conv2d(input=x, weight=torch.ones(4, 4, 1, 1), bias=torch.ones(4)),
            other=torch.add(input=x, other=torch.matmul(input=x, other=x), alpha=2),
        ),
    ),
    "scattered": (
        lambda x: (
            torch.zeros_like(x).scatter_reduce(
                dim=1, index=torch.zeros(SHAPE, dtype=torch.long), src=x, reduce="mean"
            )
            + x.masked_scatter(x > 0, x.flip(1).flatten())
        ),
    ),
    "spectrogram": (
        lambda x: torch.stft(
            x.flatten(1), 16, window=torch.hann_window(16), return_complex=True
        ).abs(),
    ),
}
ACTIVATIONS = {
    name: getattr(nn, name)
    for name in nn.modules.activation.__all__
    if name not in ("MultiheadAttention", "Threshold")
} | {"Threshold": lambda: nn.Threshold(0.1, 0.2)}
CONSTANTS_AT_DEAD_PLACES = ("Threshold", "unpool")
"""Their outputs hold constants, or zeros that meet none, where nothing of the input arrives."""


def inputs() -> tuple[Tensor, Tensor]:
    mask = torch.zeros(1, 2, 1, *SHAPE[2:], dtype=torch.bool)
    mask[:, 0, :, :3], mask[:, 1, :, :, 2:4] = True, True
    return torch.randn(SHAPE), mask


def model_of(name: str) -> Op:
    op = OPS[name] if name in OPS else layer(ACTIVATIONS[name]())
    return Op(*copy.deepcopy(op)).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*OPS, *ACTIVATIONS])
def test_the_identities_hold(name, dtype):
    torch.set_default_dtype(dtype)
    errors = measure(model_of(name), *inputs())
    failures = errors.failures(1e-4 if dtype == torch.float32 else 1e-9)
    assert failures == (["full"] if name in CONSTANTS_AT_DEAD_PLACES and failures else []), errors


@pytest.mark.parametrize("name", [*OPS, *ACTIVATIONS])
def test_gradients_equal_finite_differences(name):
    model = model_of(name)
    x, mask = inputs()
    direction = torch.randn_like(model.scale)

    def relevant(step: float) -> Tensor:
        scale = {"scale": model.scale + step * direction}
        output = decompose(
            lambda pair: torch.func.functional_call(model, scale, (pair,)), x, mask
        ).relevant
        return (output * torch.linspace(-1, 2, output.numel()).view_as(output)).sum()

    (gradient,) = torch.autograd.grad(relevant(0.0), model.scale)
    analytic = (gradient * direction).sum()
    with torch.no_grad():
        numeric = (relevant(1e-6) - relevant(-1e-6)) / 2e-6
    torch.testing.assert_close(analytic, numeric, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*OPS, *ACTIVATIONS])
def test_a_large_gradient_stays_finite_where_both_parts_are_0(name):
    torch.set_default_dtype(torch.float32)
    model = model_of(name)
    x, mask = inputs()
    x[0] = 0
    large = 1e6
    plain = model(x.requires_grad_()).sum() * large
    if not all(g.isfinite().all() for g in torch.autograd.grad(plain, (x, model.scale))):
        pytest.skip("the op itself has no gradient at 0")
    relevant = decompose(model, x, mask).relevant.sum() * large
    for gradient in torch.autograd.grad(relevant, (x, model.scale)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "args", [(2,), (3, 2, 1), (3, 1, 1), ((2, 3), (1, 2), (1, 0)), (2, 2, 0, 2), (3, 2, 0, 1, True)]
)
def test_max_pooling_chooses_as_torch_does(args, dtype):
    """With ties, as after a ReLU, and NaN; values, positions and gradients to the last bit."""
    x = torch.randn(3, 9, 11, 10).relu().to(dtype)
    x[0, 1, 4, 4] = torch.nan
    x.requires_grad_()
    direction = torch.randn_like(F.max_pool2d(x, *args))
    expected = F.max_pool2d(x, *args, return_indices=True)
    found, indices = F.max_pool2d(Pair(x, (x,)), *args, return_indices=True)
    torch.testing.assert_close((found.total, indices), expected, rtol=0, atol=0, equal_nan=True)
    for part in (found.total, *found.parts):
        torch.testing.assert_close(part, expected[0], rtol=0, atol=0, equal_nan=True)
    gradients = [
        torch.autograd.grad((total * direction).nansum(), x)[0]
        for total in (found.total, expected[0])
    ]
    torch.testing.assert_close(*gradients, rtol=0, atol=0, equal_nan=True)
    without_indices = F.max_pool2d(Pair(x, (x,)), *args).total
    torch.testing.assert_close(without_indices, expected[0], rtol=0, atol=0, equal_nan=True)
    with torch.no_grad():
        again = F.max_pool2d(Pair(x, (x,)), *args).total
    torch.testing.assert_close(again, expected[0], rtol=0, atol=0, equal_nan=True)


# --- Formulas, written out -----------------------------------------------------------------------


def split(shape: tuple[int, ...]) -> tuple[Pair, Tensor, Tensor]:
    """A pair and its two parts."""
    relevant, irrelevant = torch.randn(shape), torch.randn(shape)
    return Pair(relevant + irrelevant, (relevant,)), relevant, irrelevant


def part(pair: Pair) -> Tensor:
    return next(iter(pair.dense()))


def share(relevant: Tensor, irrelevant: Tensor) -> Tensor:
    return relevant.abs() / (relevant.abs() + irrelevant.abs())


def test_a_product_halves_what_needs_both_parts():
    (x, a, b), (y, c, d) = split((3, 4)), split((3, 4))
    torch.testing.assert_close(part(x * y), a * c + (a * d + b * c) / 2)
    (x, a, b), (y, c, d) = split((3, 4)), split((4, 5))
    torch.testing.assert_close(part(x @ y), a @ c + (a @ d + b @ c) / 2)


def test_the_strict_product_keeps_only_what_is_relevant_in_both():
    x, mask = inputs()
    ours = decompose(lambda p: (p * p.flip(1)).flatten(1), x, mask, rules={"product": "strict"})
    parts = x[:, None] * mask
    torch.testing.assert_close(ours.relevant, (parts * parts.flip(2)).flatten(2))


def test_scores_far_below_zero_are_no_mask():
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 1e3 - 9e3).softmax(-1)

    x = torch.randn(3, 4)
    everything = decompose(Net(), x, torch.ones(1, 4, dtype=torch.bool))
    assert everything.relevant.equal(Net()(x)) and not everything.irrelevant.any()


def test_softmax_is_symmetric_and_shares_the_even_weights():
    x, a, b = split((3, 5))
    weights = [t.softmax(-1) for t in (a, a + b, b)]
    even = a.abs().sum(-1, True) / (a.abs() + b.abs()).sum(-1, True) / 5
    expected = (weights[0] - 0.2 + weights[1] - weights[2]) / 2 + even
    torch.testing.assert_close(part(x.softmax(-1)), expected)


def test_attention_equals_its_pieces():
    query, key, value = (split((2, 3, 4))[0] for _ in range(3))
    open_to = torch.ones(3, 3).tril().bool()
    fused = F.scaled_dot_product_attention(query, key, value, attn_mask=open_to)
    scores = (query * 0.5) @ key.transpose(1, 2)
    pieces = scores.masked_fill(~open_to, float("-inf")).softmax(-1) @ value
    torch.testing.assert_close(part(fused), part(pieces))
    torch.testing.assert_close(
        fused.total,
        F.scaled_dot_product_attention(query.total, key.total, value.total, attn_mask=open_to),
    )


def test_fixed_attention_only_moves_values():
    """The published contextual decomposition for transformers."""
    x, mask = inputs()

    def attend(pair: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(pair, pair, pair).flatten(1)

    weights = (x @ x.mT / 6**0.5).softmax(-1)
    ours = decompose(attend, x, mask, rules={"softmax": "fixed"})
    torch.testing.assert_close(ours.relevant, (weights[:, None] @ (x[:, None] * mask)).flatten(2))


def test_layer_norm_divides_both_parts_by_the_deviation_of_the_total():
    x, a, b = split((3, 6))
    weight, bias = torch.randn(6), torch.randn(6)
    scale = weight / ((a + b).var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    a, b = ((t - t.mean(-1, True)) * scale for t in (a, b))
    ours = F.layer_norm(x, (6,), weight, bias)
    received = bias * a.abs() / torch.maximum(a.abs() + b.abs(), 2 * bias.abs())
    torch.testing.assert_close(part(ours), a + received)
    with use_variants({"norm_constant": "proportional"}):
        ours = F.layer_norm(x, (6,), weight, bias)
    torch.testing.assert_close(part(ours), a + bias * share(a, b))


@pytest.mark.parametrize("f", [F.gelu, F.silu, F.leaky_relu, F.hardswish, F.elu])
def test_rectifiers_are_asymmetric_and_symmetric_by_name(f):
    x, mask = inputs()
    inside = x[:, None] * mask
    outside = x[:, None] - inside
    default = decompose(lambda p: f(p).flatten(1), x, mask)
    torch.testing.assert_close(default.relevant, f(inside).flatten(2))
    symmetric = decompose(lambda p: f(p).flatten(1), x, mask, rules={"relu": "symmetric"})
    expected = (f(inside) + f(x)[:, None] - f(outside)) / 2
    torch.testing.assert_close(symmetric.relevant, expected.flatten(2))


def test_a_class_token_is_shared_in_proportion_to_what_it_joins():
    x, a, b = split((2, 3, 4))
    token = torch.randn(2, 1, 4)
    size, rest = a.abs().sum(1, True), b.abs().sum(1, True)
    expected = torch.cat([token * size / (size + rest), a], 1)
    torch.testing.assert_close(part(torch.cat([token, x], 1)), expected)


# --- Token ids -----------------------------------------------------------------------------------


class Bag(nn.Module):
    """Word vectors with positions, averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(20, 5), nn.Parameter(torch.randn(7, 5))
        self.head = nn.Linear(5, 3)

    def forward(self, ids: Tensor) -> Tensor:
        assert ids.shape[1] == 7
        return self.head((self.words(ids.clone()) + self.positions).mean(1))


def test_token_ids_are_split_by_position():
    ids, mask = torch.randint(20, (3, 7)), torch.zeros(3, 7, dtype=torch.bool)
    mask[:, 2:4] = True
    assert not measure(Bag(), ids, mask).failures(1e-9)


def test_an_embedding_bag_is_a_mean_of_vectors():
    ids, mask = torch.randint(20, (3, 7)), torch.rand(3, 7) < 0.5
    model = nn.Sequential(nn.EmbeddingBag(20, 5, mode="mean"))
    expected = (model[0].weight[ids] * mask[..., None]).mean(1)
    torch.testing.assert_close(decompose(model, ids, mask).relevant, expected)


def test_padding_and_weights_of_an_embedding_bag():
    ids, mask = torch.randint(20, (3, 7)), torch.rand(3, 7) < 0.5
    ids[:, 5:] = 0
    bag = nn.EmbeddingBag(20, 5, mode="mean", padding_idx=0)
    parts = decompose(bag, ids, mask)
    torch.testing.assert_close(parts.total, bag(ids))
    inside = (bag.weight[ids] * (mask & (ids != 0))[..., None]).sum(1)
    torch.testing.assert_close(parts.relevant, inside / (ids != 0).sum(1, keepdim=True))
    weights = torch.rand(3, 7)
    bag = nn.EmbeddingBag(20, 5, mode="sum")
    weighted = decompose(bag, ids, mask, per_sample_weights=weights)
    torch.testing.assert_close(weighted.total, bag(ids, per_sample_weights=weights))


def hashed(ids: Tensor) -> Tensor:
    return (ids * 7 + 3) % 20


def shifted(ids: Tensor) -> Tensor:
    return torch.maximum(ids.clamp(max=15) - 2, ids // 2).abs()


def reversed_by_table(ids: Tensor) -> Tensor:
    return torch.arange(20).flip(0)[ids]


@pytest.mark.parametrize("change", [hashed, shifted, reversed_by_table])
@pytest.mark.parametrize("look_up", [lambda w, i: w[i], lambda w, i: F.embedding(i, w)])
def test_arithmetic_on_ids_and_tables_of_them_keep_the_mask(change, look_up):
    ids, mask, table = torch.randint(20, (3, 7)), torch.rand(3, 7) < 0.5, torch.randn(20, 5)
    expected = (table[change(ids)] * mask[..., None]).mean(1)
    ours = decompose(lambda i: look_up(table, change(i)).mean(1), ids, mask)
    torch.testing.assert_close(ours.relevant, expected)


def test_ids_that_scale_what_is_already_mixed_are_numbers():
    ids, mask, table = torch.randint(20, (3, 7)), torch.rand(3, 7) < 0.5, torch.randn(20, 5)

    def model(i):
        return (F.embedding(i, table).cumsum(1) * i.unsqueeze(-1)).mean(1)

    expected = ((table[ids] * mask[..., None]).cumsum(1) * ids[..., None]).mean(1)
    torch.testing.assert_close(decompose(model, ids, mask).relevant, expected)


def test_a_table_indexed_by_ids_among_others_is_refused():
    with pytest.raises(MissingRuleError, match="embedding"):
        decompose(
            lambda i: torch.ones(3, 20)[torch.arange(3)[:, None], i],
            torch.randint(20, (3, 7)),
            torch.ones(3, 7, dtype=torch.bool),
        )


STAND_INS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "infinity": lambda scores, padding: scores.masked_fill(padding, float("-inf")),
    "filled": lambda scores, padding: scores.masked_fill(padding, -1e9),
    "added": lambda scores, padding: scores + padding.to(scores.dtype) * -1e4,
    "chosen": lambda scores, padding: torch.where(padding, -1e9, scores),
    "multiplied": lambda scores, padding: scores * ~padding - 1e10 * padding,
}


@pytest.mark.parametrize("name", STAND_INS)
def test_padding_says_nothing_however_attention_is_kept_from_it(name):
    words, matrix = torch.randn(20, 5), torch.randn(5, 5)

    def model(ids: Tensor) -> Tensor:
        x = F.embedding(ids, words)
        scores = STAND_INS[name](x @ matrix @ x.mT, (ids == 0)[:, None])
        return (scores.softmax(-1) @ x)[:, 0]

    ids, mask = torch.randint(1, 20, (3, 7)), torch.rand(3, 7) < 0.5
    ours, padded = (
        decompose(model, ids, mask),
        decompose(model, *(F.pad(t, (0, 4)) for t in (ids, mask))),
    )
    torch.testing.assert_close(padded.relevant, ours.relevant)
    torch.testing.assert_close(padded.total, model(ids))


# --- Training mode -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module",
    [
        nn.Dropout(0.4),
        nn.Dropout2d(0.4),
        nn.AlphaDropout(0.4),
        nn.FeatureAlphaDropout(0.4),
        nn.RReLU(),
        nn.BatchNorm2d(4),
        nn.InstanceNorm2d(4, track_running_stats=True),
    ],
    ids=lambda module: type(module).__name__,
)
def test_training_draws_once_and_moves_statistics_once(module):
    model = nn.Sequential(module, nn.Flatten()).double().train()
    twin = copy.deepcopy(model)
    x, mask = inputs()
    torch.manual_seed(1)
    expected = twin(x)
    torch.manual_seed(1)
    torch.testing.assert_close(decompose(model, x, mask).total, expected)
    for ours, theirs in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.count_nonzero(decompose(model, x, torch.zeros_like(mask)).relevant) == 0


# --- What is refused, and how --------------------------------------------------------------------


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient * 2


class Net(nn.Module):
    """A linear layer, and what is made of it."""

    def __init__(self, after: Callable[[Tensor], object]):
        super().__init__()
        self.head, self.after = nn.Linear(6, 3), after

    def forward(self, x: Tensor) -> object:
        return self.after(self.head(x))


def refused(after: Callable[[Tensor], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        decompose(Net(after), torch.randn(2, 6), torch.ones(2, 6, dtype=torch.bool))


@pytest.mark.parametrize("mask", [None, torch.ones(1, 6).numpy() > 0])
def test_what_is_no_tensor_is_refused(mask):
    with pytest.raises(ValueError, match="must be tensors, got Tensor and"):
        decompose(nn.Linear(6, 3), torch.ones(2, 6), mask)


def test_no_examples_have_no_parts():
    model = nn.Sequential(nn.Conv2d(4, 2, 3), nn.ReLU(), nn.Flatten())
    x, mask = inputs()
    assert decompose(model, x[:0], mask).relevant.shape == (0, 2, 32)


def test_outputs_that_are_not_logits_are_refused_with_a_cure():
    refused(lambda y: (y, y), ValueError, r"got a tuple.*model\(x\)\[0\]")
    refused(lambda y: {"out": y}, ValueError, "got a dict")
    refused(lambda y: y[:, :, None], ValueError, r"got a tensor \[2, 3, 1\]")
    refused(lambda y: torch.zeros(2, 3), ValueError, "does not depend on the input")


def test_ordinary_buffers_are_not_written_to_silently():
    def assigned(y):
        buffer = torch.zeros(2, 3)
        buffer[:, 1:] = y[:, 1:]
        return buffer

    refused(assigned, MissingRuleError, r"ordinary tensor.*new_zeros")
    refused(lambda y: torch.zeros(2, 3).add_(y), MissingRuleError, r"ordinary tensor.*new_zeros")


def test_an_output_argument_is_refused():
    """It would be written to for the total and then for every part."""
    refused(
        lambda y: torch.cat([y, y], 1, out=torch.empty(2, 6)),
        MissingRuleError,
        "with out=.*returns",
    )


def test_a_comparison_in_place_leaves_a_constant():
    x, mask = inputs()
    parts = decompose(lambda p: (p.clone().gt_(0) * p).flatten(1), x, mask)
    torch.testing.assert_close(parts.total, x.relu().flatten(1))
    torch.testing.assert_close(parts.relevant, (x.relu()[:, None] * mask).flatten(2))


def test_an_autograd_function_is_refused_where_it_would_lose_gradients():
    refused(Doubled.apply, MissingRuleError, "Doubled.apply.*ordinary torch ops")
    with torch.no_grad():
        x, mask = torch.randn(2, 6), torch.rand(2, 6) < 0.5
        model = Net(Doubled.apply)
        torch.testing.assert_close(decompose(model, x, mask).total, model(x))


def test_scripted_modules_are_refused_by_name():
    scripted = nn.Sequential(nn.Linear(6, 4), torch.jit.trace(nn.Linear(4, 3), torch.ones(1, 4)))
    with pytest.raises(MissingRuleError, match=r"module '1'.*before torch\.jit"):
        decompose(scripted, torch.randn(2, 6), torch.ones(2, 6, dtype=torch.bool))


def test_compiled_models_run_as_they_were_written():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    x, mask = torch.randn(2, 6), torch.rand(2, 6) < 0.5
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(
        decompose(compiled, x, mask).relevant, decompose(model, x, mask).relevant
    )


@pytest.mark.parametrize("convert", [lambda x: x.to(torch.complex64), Tensor.to_sparse])
def test_complex_and_sparse_inputs_are_refused(convert):
    with pytest.raises(ValueError, match="dense real input"):
        decompose(nn.Linear(6, 3), convert(torch.randn(2, 6)), torch.ones(2, 6).bool())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_channels_last_work(dtype):
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    model = model.eval().to(dtype, memory_format=torch.channels_last)
    x, mask = inputs()
    errors = measure(model, x.to(dtype, memory_format=torch.channels_last), mask)
    assert not errors.failures(0.02), errors


def test_a_missing_rule_names_op_and_module_and_three_lines_register_one():
    def unfold_distances(y):
        return torch.cdist(y, y)[:, :3]

    refused(unfold_distances, MissingRuleError, r"torch\.cdist.*\n.*register_rule")

    @register_rule("i0")
    def rule(func, x, *args, **kwargs):
        return x.map(func(x.total), lambda relevant: relevant * 0)

    x, mask = torch.rand(2, 6), torch.ones(2, 6, dtype=torch.bool)
    assert torch.count_nonzero(decompose(Net(torch.i0), x, mask).relevant) == 0


# --- Boxes ---------------------------------------------------------------------------------------


def test_a_constant_that_differs_from_place_to_place_is_added_outside_the_boxes_too():
    """Positions of an image transformer; the box around the mask is found without being asked."""
    place = torch.randn(4, 6, 6)
    x, mask = torch.randn(SHAPE), torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    mask[..., 1:3, 2:4] = True
    ours = decompose(lambda p: (p + place).flatten(1), x, mask)
    inside = x * mask
    expected = inside + place * share(inside, x - inside)
    torch.testing.assert_close(ours.relevant, expected.flatten(1))


class Deep(nn.Module):
    """Affine maps and rectifiers of all kinds, a residual link, a mean, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, 2), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.slope, self.head = nn.BatchNorm2d(6), nn.PReLU(6), nn.Linear(6, 3)
        self.norm.running_mean.normal_()
        self.norm.bias.data.normal_()

    def forward(self, x):
        x = F.relu6(self.norm(self.first(x)))
        x = x + F.hardtanh(self.second(x), 0, 2) + 0.5
        return self.head(F.leaky_relu(self.slope(x) - 1).mean((2, 3)))


def test_under_the_variant_last_a_part_is_what_setting_the_group_to_0_takes_away():
    torch.manual_seed(0)
    model, x = Deep().double().eval(), torch.randn(4, 3, 13, 13).double()
    scattered = torch.rand(4, 1, 13, 13) < 0.3
    corner = torch.zeros(1, 1, 13, 13, dtype=torch.bool)
    corner[..., :4, 9:] = True  # in the windows of the engine
    for mask in (scattered, corner, torch.zeros_like(corner), torch.ones_like(corner)):
        found = decompose(model, x, mask, rules={"relu": "last"})
        torch.testing.assert_close(found.relevant, model(x) - model(x * ~mask))
        torch.testing.assert_close(found.irrelevant, model(x * ~mask))
