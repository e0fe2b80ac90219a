"""`cdep-run export RUN`: a finished run's model in files that other programs read.

Every file is read back and its logits are compared with the model's before it counts as written.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdep_run.errors import CdepError, ConfigError
from cdep_run.files import write_atomic

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cdep_run.results.load import LoadedRun

TOLERANCE = 1e-4
"""How far logits of a file that was read back may lie from the model's, relative to their size."""

EXAMPLES = 3
"""How many random inputs are compared; the files accept any number."""

TOKENS = 12
"""How long the texts are that a text model is traced with; the files accept any length."""


class ExportError(CdepError):
    """A model cannot be written in a format, or does not compute the same when read back."""


def example_inputs(run: LoadedRun) -> Tensor:
    """Return random inputs `[3, …]` of the kind that the model takes."""
    import torch

    generator = torch.Generator().manual_seed(0)
    facts = run.result["model"]
    if facts["vocabulary_size"] is not None:
        size = facts["vocabulary_size"]
        return torch.randint(1, size, (EXAMPLES, TOKENS), generator=generator)
    return torch.randn(EXAMPLES, *facts["input_shape"], generator=generator)


def dynamic_axes(inputs: Tensor) -> dict[int, Any]:
    """Return which axes of the inputs may have any length: examples, and tokens of texts."""
    import torch

    axes = {0: torch.export.Dim("examples", min=1)}
    if not inputs.is_floating_point():
        axes[1] = torch.export.Dim("tokens", min=1)
    return axes


def to_safetensors(model: nn.Module, inputs: Tensor, file: Path) -> Callable[[Tensor], Tensor]:
    """Write the weights alone; return a model of the same code that holds what the file holds."""
    import copy

    from safetensors.torch import load, save

    state = {
        name: value.detach().contiguous().clone() for name, value in model.state_dict().items()
    }
    write_atomic(file, save(state))
    again = copy.deepcopy(model)
    for value in again.state_dict().values():
        value.zero_()
    again.load_state_dict(load(file.read_bytes()))
    return again


def to_torch_export(model: nn.Module, inputs: Tensor, file: Path) -> Callable[[Tensor], Tensor]:
    """Write a `torch.export` program, which torch runs without this package."""
    import torch

    program = torch.export.export(model, (inputs,), dynamic_shapes=(dynamic_axes(inputs),))
    torch.export.save(program, file)
    return torch.export.load(file).module()


def to_onnx(model: nn.Module, inputs: Tensor, file: Path) -> Callable[[Tensor], Tensor]:
    """Write ONNX, for runtimes without torch; read back by onnxruntime."""
    import torch

    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise ExportError(
            f"ONNX needs packages that are not installed ({error.name}): "
            "pip install 'cdep-run[export]'"
        ) from error
    torch.onnx.export(
        model,
        (inputs,),
        file,
        dynamo=True,
        input_names=["inputs"],
        output_names=["logits"],
        dynamic_shapes=(dynamic_axes(inputs),),
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(["logits"], {"inputs": x.numpy()})[0])


FORMATS: dict[str, tuple[str, Callable[[nn.Module, Tensor, Path], Callable[[Tensor], Tensor]]]] = {
    "safetensors": ("model.safetensors", to_safetensors),
    "torch": ("model.pt2", to_torch_export),
    "onnx": ("model.onnx", to_onnx),
}
"""By name: the file, and the function that writes it and returns it as read back."""


def export(run: LoadedRun, out: Path, formats: Sequence[str] = tuple(FORMATS)) -> dict[str, float]:
    """Write the model of `run` to files in `out`, with a card that says how to use them.

    Args:
        run: from `cdep_run.load`.
        out: folder; made if it is not there.
        formats: names of `FORMATS`.

    Returns:
        By format: the largest difference to the model's logits after reading back, relative to the
        largest logit.

    Raises:
        ExportError: a format cannot hold this model, or does not compute the same.
    """
    import torch

    out.mkdir(parents=True, exist_ok=True)
    inputs = example_inputs(run)
    with torch.no_grad():
        expected = run.model(inputs)
    differences = {}
    for name in formats:
        file, write = FORMATS[name]
        try:
            with torch.no_grad():
                found = write(run.model, inputs, out / file)(inputs)
        except ExportError:
            raise
        except Exception as error:  # exporters raise what they like
            raise ExportError(
                f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}"
            ) from error
        difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
        if not difference <= TOLERANCE:
            (out / file).unlink(missing_ok=True)
            raise ExportError(
                f"{name}: the file computes other logits than the model (by {difference:.1e} of "
                "the largest); it is removed"
            )
        differences[name] = difference
    write_atomic(out / "card.json", (json.dumps(card(run, differences), indent=2) + "\n").encode())
    return differences


def card(run: LoadedRun, differences: dict[str, float]) -> dict[str, Any]:
    """Return what a program needs to use the files: inputs, classes, preprocessing, origin."""
    facts, text = run.result["model"], run.result["model"]["vocabulary_size"] is not None
    return {
        "input": {
            "name": "inputs",
            "dtype": "int64" if text else "float32",
            "shape": ["examples", *(["tokens"] if text else facts["input_shape"])],
        },
        "output": {"name": "logits", "shape": ["examples", facts["num_classes"]]},
        "classes": run.classes,
        "preprocessing": run.preprocessing,
        "must_not_matter": run.groups,
        "files": {FORMATS[name][0]: value for name, value in differences.items()},
        "model": run.config["model"],
        "penalty": {key: run.config["penalty"][key] for key in ("name", "strength")},
        "dataset": run.result["data"]["name"],
        "fingerprint": run.result["data"]["fingerprint"],
        "versions": run.result.get("versions"),
    }


def main(words: Sequence[str]) -> None:
    """Export as the command line says, and print each file with how far it is off."""
    parser = argparse.ArgumentParser(
        prog="cdep-run export", description="Write a finished run's model for other programs."
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--out", type=Path, help="folder for the files; default: RUN/export")
    parser.add_argument(
        "--format", nargs="+", choices=FORMATS, default=list(FORMATS), help="which files (all)"
    )
    parser.add_argument(
        "--plugin", action="append", default=[], help="package of yours that the run may name"
    )
    given = parser.parse_args(words)
    from cdep_run.results.load import load_run

    run = load_run(given.run, given.plugin)
    out = given.out or given.run / "export"
    try:
        differences = export(run, out, given.format)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}") from error
    for name, difference in differences.items():
        print(
            f"{out / FORMATS[name][0]}: logits as the model's, to {difference:.0e} of the largest"
        )
    print(f"{out / 'card.json'}: inputs, classes, preprocessing")
