"""Which models the engine decomposes, how exactly, how fast: `make coverage-models`.

For every architecture, with random weights and in eval mode: the identities that a decomposition
must hold (tests/identities.py), the torch functions that its forward calls, and the time and the
peak memory of `decompose` as ratios to the plain forward. Time without gradients, processor time
of one thread, the median over rounds that alternate the two in one process; memory with gradients,
as in training. One group, a third of the height and width (of a sentence, two words), no boxes.
Writes docs/coverage.md; a measured model is kept in `--records` and not measured again.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from cdep_run.cd import decompose, registry
from identities import measure, without_zeros

Case = tuple[nn.Module, Tensor, Tensor]

SMALLEST = """
    beit_base_patch16_224 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 cpubone_nano
    crossvit_tiny_240 cs3darknet_focus_s csatv2 cspnext_tiny davit_tiny deit_tiny_patch16_224
    densenet121 dla60x_c dpn48b eca_botnext26ts_256 edgenext_xx_small efficientformer_l1
    efficientformerv2_s0 efficientvim_m1 efficientvit_b0 efficientvit_m0 ese_vovnet19b_slim_dw
    eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_050
    gmlp_ti16_224 hardcorenas_b hgnetv2_b0 hiera_tiny_224 hrnet_w18_small iformer_t
    inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small
    legacy_seresnet18 legacy_xception levit_128s lowformer_b0 mobilenetv3_small_050
    mobilenetv5_base mobileone_s1 mobilevit_xxs mvitv2_tiny naflexvit_base_patch16_gap
    nasnetalarge nest_tiny nextvit_small pit_ti_224 pnasnet5large poolformerv2_s12 pvt_v2_b0
    qwen3_vit_88m rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d
    resnet10t resnetv2_18 rexnet_100 sam2_hiera_tiny samvit_base_patch16_224 selecsls42
    sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224
    swinv2_cr_tiny_224 swinv2_tiny_window8_256 test_coatnet test_convnext test_mambaout
    test_nfnet test_vit test_vit_relpos tiny_vit_5m_224 tinynet_e tnt_s_legacy_patch16_224
    tresnet_m twins_svt_small visformer_tiny vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224
    xception41p xcit_nano_12_p8_224
"""
"""The smallest model of each of timm's families that has one below 120 M parameters."""

TEXT = ("BERT", "RoBERTa", "DistilBERT", "ELECTRA", "ALBERT", "DeBERTa v2", "GPT-2", "LLaMA")


def image_case(model: nn.Module, size: int) -> Case:
    x = torch.randn(1, 3, size, size)
    mask = torch.zeros(1, 1, size, size, dtype=torch.bool)
    mask[..., : size // 3, : size // 3] = True
    return model.eval(), x, mask


def torchvision_cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    import torchvision

    for name in torchvision.models.list_models(module=torchvision.models):
        size = 299 if name == "inception_v3" else 256 if name.startswith("swin_v2") else 224

        def build(name: str = name, size: int = size) -> Case:
            quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            return image_case(torchvision.models.get_model(name, weights=None, **quick), size)

        yield name, build


def timm_cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    try:
        import timm
    except ImportError:
        print("timm is not installed: its models are left out")
        return
    for name in SMALLEST.split():

        def build(name: str = name) -> Case:
            model = timm.create_model(name, pretrained=False, num_classes=10)
            size = timm.data.resolve_model_data_config(model)["input_size"][-1]
            return image_case(model, size if size < 400 else 256)

        yield name, build


def text_cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    try:
        import transformers as hf
    except ImportError:
        print("transformers is not installed: its models are left out")
        return
    sizes = {"vocab_size": 100, "num_labels": 3, "pad_token_id": 0}
    usual = sizes | {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    }
    configs = {
        "BERT": ("Bert", usual),
        "RoBERTa": ("Roberta", usual),
        "DistilBERT": ("DistilBert", sizes | {"dim": 64, "n_layers": 2, "n_heads": 4}),
        "ELECTRA": ("Electra", usual | {"embedding_size": 64}),
        "ALBERT": ("Albert", usual | {"embedding_size": 32}),
        "DeBERTa v2": ("DebertaV2", usual),
        "GPT-2": ("GPT2", sizes | {"n_embd": 64, "n_layer": 2, "n_head": 4}),
        "LLaMA": ("Llama", usual | {"num_key_value_heads": 2}),
    }
    for name in TEXT:

        def build(name: str = name) -> Case:
            kind, arguments = configs[name]
            config = getattr(hf, f"{kind}Config")(**arguments)
            model = getattr(hf, f"{kind}ForSequenceClassification")(config).eval()
            ids = torch.randint(1, 100, (4, 24))
            return model, ids, (torch.arange(24) // 2 == 3)[None]

        yield name, build


class PeakMemory(TorchDispatchMode):
    """The most bytes that tensors made while it lasts held at one time, `model`'s own left out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        own = [*model.parameters(), *model.buffers()]
        self.live, self.peak = 0, 0
        self.known = {tensor.untyped_storage()._cdata for tensor in own}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and type(tensor) is Tensor:
                self.count(tensor.untyped_storage())
        return result

    def count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return

        def freed() -> None:
            self.known.discard(key)
            self.live -= size

        self.known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, freed)


def ops_of(model: nn.Module, x: Tensor, mask: Tensor) -> list[str]:
    """The torch functions that met a decomposed tensor, without sizes and attributes."""
    seen: set[str] = set()
    find = registry.find

    def noting(func: Any) -> Any:
        seen.add(getattr(func, "__name__", "").strip("_"))
        return find(func)

    registry.find = noting
    try:
        decompose(model, x, mask)
    finally:
        registry.find = find
    return sorted(seen - {"get", "size", "dim", "len", "stride", "numel", ""})


def dead_patches_alone(model: nn.Module, x: Tensor, mask: Tensor) -> bool:
    """Whether γ under a full mask is nothing but constants, such as the biases of dead units."""
    biased = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in biased.named_parameters():
            if name.endswith(("bias", "pos_embed")):
                parameter.zero_()
    return not measure(biased, x, mask, gradients=False).failures()


def record(build: Callable[[], Case], rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model, x, mask = build()
    without_zeros(model)
    parameters = sum(p.numel() for p in model.parameters())
    try:
        errors = measure(model, x, mask)
        failures = errors.failures()
        if failures == ["full"] and dead_patches_alone(model, x, mask):
            failures = []
        with torch.no_grad():
            ops = ops_of(model, x, mask)
            ratios = []
            for _ in range(rounds):
                start = time.process_time()
                model(x)
                between = time.process_time()
                decompose(model, x, mask)
                ratios.append((time.process_time() - between) / (between - start))
        peaks = []
        for run in (lambda: model(x), lambda: decompose(model, x, mask)):
            with PeakMemory(model) as memory:
                kept = run()
            del kept
            gc.collect()
            peaks.append(memory.peak)
    except Exception as error:
        return {"parameters": parameters, "missing": str(error).splitlines()[0]}
    return {
        "parameters": parameters,
        "ops": ops,
        "total": errors.total,
        "empty": errors.empty,
        "full": errors.full,
        "failures": failures,
        "time": statistics.median(ratios),
        "memory": peaks[1] / peaks[0],
    }


def dispatch_overhead(ops: int = 200, rounds: int = 30) -> float:
    """Microseconds that an op takes beyond its two plain calls, on tensors of four numbers."""

    class Chain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(ops):
                x = torch.relu(x)
            return x

    x, mask, model = torch.randn(1, 4), torch.ones(1, 4, dtype=torch.bool), Chain()
    extra = []
    with torch.no_grad():
        for _ in range(rounds):
            start = time.process_time()
            model(x)
            between = time.process_time()
            decompose(model, x, mask)
            extra.append(time.process_time() - between - 2 * (between - start))
    return statistics.median(extra) / ops * 1e6


def table(records: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield "| model | parameters | largest error | γ under a full mask | time | memory | ops |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | --- |"
    for name, r in records.items():
        size = f"{r['parameters'] / 1e6:.2f} M"
        if "missing" in r:
            yield f"| {name} | {size} | **not supported** | | | | {r['missing']} |"
            continue
        mark = f" **fails: {', '.join(r['failures'])}**" if r["failures"] else ""
        yield (
            f"| {name} | {size} | {r['total']:.0e}{mark} | {r['full']:.0e} | {r['time']:.2f} "
            f"| {r['memory']:.2f} | {', '.join(r['ops'])} |"
        )


def report(groups: dict[str, dict[str, dict[str, Any]]]) -> str:
    lines = [
        "# Which models are decomposed",
        "",
        "Written by `make coverage-models`: random weights, eval mode, "
        "one process, one thread. "
        "Errors are relative to the largest logit: of β + γ against the plain forward, and of γ "
        "under a mask of ones. Under a mask of zeros β is 0 exactly, and β, γ and all gradients "
        "are finite, unless a row says that it fails. Time (of the processor, without gradients) "
        "and peak memory (with gradients, parameters not counted) are ratios of `decompose` to "
        "the plain forward.",
        "",
        "A mask of ones leaves γ = 0 only where something arrives: behind units that a rectifier "
        "leaves dead, zero padding of windows and the like, a constant belongs to γ; where the "
        "column shows more than 1e-4, γ is within 1e-4 once biases and position embeddings are 0. "
        "Freshly made norms have no constants; trained ones do.",
        "",
        f"The dispatch itself costs {dispatch_overhead():.0f} µs an op (a chain of 200 ReLUs on "
        f"four numbers, beyond two plain passes). torch {torch.__version__.partition('+')[0]}.",
    ]
    for title, records in groups.items():
        done = [r for r in records.values() if "missing" not in r]
        passed = [r for r in done if not r["failures"]]
        lines += ["", f"## {title}", "", f"{len(passed)} of {len(records)} pass all checks."]
        if done:
            median = {key: statistics.median(r[key] for r in done) for key in ("time", "memory")}
            lines[-1] += (
                f" Median ratio to the plain forward: {median['time']:.2f} in time, "
                f"{median['memory']:.2f} in peak memory."
            )
        lines += ["", *table(records)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/coverage.md"))
    parser.add_argument("--records", type=Path, default=Path("outputs/coverage.json"))
    parser.add_argument("--only", nargs="*", help="measure these models anew")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    path = arguments.records
    known = json.loads(path.read_text()) if path.exists() else {}
    groups = {}
    for title, cases in (
        ("torchvision", torchvision_cases()),
        ("timm", timm_cases()),
        ("Transformers for text, small random configurations", text_cases()),
    ):
        records: dict[str, dict[str, Any]] = {}
        groups[title] = records
        for name, build in cases:
            key = f"{title}: {name}"
            if key not in known or name in (arguments.only or ()):
                known[key] = record(build, arguments.rounds)
                gc.collect()
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(known, indent=1))
                summary = {k: v for k, v in known[key].items() if k != "ops"}
                print(name, summary, flush=True)
            records[name] = known[key]
    arguments.out.write_text(report(groups))
    print(arguments.out)


if __name__ == "__main__":
    main()
