"""The configuration's types and checks: what may be set, and to what. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, make_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import MISSING, OmegaConf

from cdep_run.config.overrides import sweep_folder
from cdep_run.errors import ConfigError
from cdep_run.variants import CHANGES, FORMS, VARIANTS, help_text

# Values and their explanation stand in the YAML files; here are the types alone.


class Precision(Enum):
    """Number format of the forward pass; weights and optimiser stay in float32."""

    float32 = "float32"
    bf16 = "bf16"


class MonitorMode(Enum):
    """Whether less or more of a monitored metric is better; auto: as the metric's name says."""

    auto = "auto"
    min = "min"
    max = "max"


class Averaging(Enum):
    """How weights are averaged over the steps."""

    ema = "ema"
    mean = "mean"


class Sampling(Enum):
    """How the examples of an epoch are drawn."""

    shuffle = "shuffle"
    balanced = "balanced"


class Counterfactual(Enum):
    """What becomes of the groups that must not matter in `val_counterfactual`."""

    remove = "remove"
    exchange = "exchange"


@dataclass
class Training:
    """How long and in what portions the loop trains; explained in `configs/train.yaml`."""

    batch_size: int = MISSING
    epochs: int = MISSING
    patience: int | None = MISSING
    restore_best: bool = MISSING
    monitor: str = MISSING
    monitor_mode: MonitorMode = MISSING
    warmup: float = MISSING
    warmup_start: float = MISSING
    clip_norm: float | None = MISSING
    label_smoothing: float = MISSING
    class_weights: Any = MISSING
    sampling: Sampling = MISSING
    average: Averaging | None = MISSING
    average_decay: float = MISSING
    average_from: int = MISSING
    counterfactual_val: Counterfactual | None = MISSING
    channels_last: bool = MISSING
    compile: str | None = MISSING
    evaluation_batch_size: int = MISSING
    check_every: int = MISSING
    checkpoint_seconds: float = MISSING
    resamples: int = MISSING


@dataclass
class Config:
    """One run; the groups hold `_target_` and its arguments, typed by their own schema."""

    dataset: Any = MISSING
    model: Any = MISSING
    penalty: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    loggers: Any = field(default_factory=dict)  # none are chosen by loggers=[]
    training: Training = MISSING
    seed: int = MISSING
    device: str = MISSING
    precision: Precision = MISSING
    threads: int | None = MISSING
    data_dir: str = MISSING
    plugins: list[str] = MISSING
    resume: bool = MISSING


@dataclass
class Dataset:
    """What every data set of ours has; one of a user's own is typed only if it names this."""

    name: str = MISSING
    _target_: str = MISSING
    seed: int = MISSING
    train_size: int | None = MISSING
    penalties: dict[str, dict[str, Any]] = MISSING


@dataclass
class Decoy:
    """Of the patch that gives the label away."""

    patch_size: int = MISSING
    test_patch: str = MISSING
    groups: Any = MISSING


@dataclass
class DecoyDigits(Decoy, Dataset):
    """`cdep_run.datasets.decoy.decoy_digits`."""

    val_size: int = MISSING
    test_size: int = MISSING
    ink: int = MISSING


@dataclass
class Mnist(Dataset):
    """`cdep_run.datasets.mnist.mnist`."""

    val_size: int = MISSING
    source: str = MISSING
    data_dir: str = MISSING
    download: bool = MISSING


@dataclass
class DecoyMnist(Decoy, Mnist):
    """`cdep_run.datasets.decoy.decoy_mnist`."""


@dataclass
class ColorMnist(Mnist):
    """`cdep_run.datasets.color_mnist.color_mnist`."""

    groups: Any = MISSING
    pixels: int = MISSING


@dataclass
class Sst(Dataset):
    """`cdep_run.datasets.sst.sst`."""

    variant: str = MISSING
    data_dir: str = MISSING
    download: bool = MISSING
    check_sums: bool = MISSING
    cache_dir: str = MISSING
    vectors: str = MISSING
    words: list[str] = MISSING
    neutral: str | None = MISSING
    biased: bool = MISSING
    penalised: list[str] = MISSING
    groups: Any = MISSING
    held_out: float = MISSING
    max_length: int = MISSING


@dataclass
class Isic(Dataset):
    """`cdep_run.datasets.isic.isic`."""

    data_dir: str = MISSING
    fold: int | None = MISSING
    shares: dict[str, float] = MISSING
    folds: int = MISSING
    groups: list[str] = MISSING
    patch_share: float | None = MISSING
    exclude_patches: bool = MISSING
    class_weights: bool = MISSING
    size: int | None = MISSING
    cache: bool = MISSING
    cache_dir: str = MISSING


@dataclass
class UserTable(Dataset):
    """What data sets from a user's table have in common."""

    table: str | None = MISSING
    encoding: str | None = MISSING
    delimiter: str | None = MISSING
    shares: dict[str, float] = MISSING
    positive: str | None = MISSING


@dataclass
class Images(UserTable):
    """`cdep_run.datasets.images.images`."""

    root: str | None = MISSING
    columns: dict[str, str | None] = MISSING
    masks: Any = MISSING
    unmasked: str = MISSING
    size: int = MISSING
    fit: str = MISSING
    mean: list[float] | None = MISSING
    std: list[float] | None = MISSING
    augment: list[dict[str, Any]] = MISSING
    cache: bool = MISSING
    cache_dir: str = MISSING


@dataclass
class Table(UserTable):
    """`cdep_run.datasets.table.table`."""

    columns: dict[str, str | None] = MISSING
    features: list[str] | None = MISSING
    ignore: list[str] = MISSING
    numeric: list[str] = MISSING
    categorical: list[str] = MISSING
    must_not_matter: Any = MISSING
    max_categories: int = MISSING
    decimal: str = MISSING
    missing: list[str] = MISSING


@dataclass
class Text(UserTable):
    """`cdep_run.datasets.text.text`."""

    columns: dict[str, str | None] = MISSING
    must_not_matter: Any = MISSING
    tokenizer: str = MISSING
    word: str = MISSING
    lower: bool = MISSING
    vocabulary_size: int = MISSING
    max_length: int = MISSING
    vectors: str | None = MISSING
    empty: str = MISSING
    cache_dir: str = MISSING


@dataclass
class Penalty:
    """What every penalty has: its λ, and how often it is paid."""

    name: str = MISSING
    _target_: str = MISSING
    strength: float = MISSING
    every: int = 1  # as for a penalty of a user's own, without a type, that does not say


def choice(name: str, choices: Iterable[str]) -> Any:
    """Make the type of a setting that is one of `choices`."""
    return Enum(name, {value: value for value in choices})  # type: ignore[misc]


def options(name: str, base: type = Penalty, /, **types: Any) -> type:
    """Make the schema of a penalty: the fields of `base`, and one of each name and type."""
    return make_dataclass(
        name, [(key, kind, MISSING) for key, kind in types.items()], bases=(base,)
    )


RULES = options("Rules", object, **{name: choice(name, VARIANTS[name]) for name in VARIANTS})
"""`rules` of `cdep_run.penalties.cdep.CDEP`: a variant for each rule of CD."""

CDEP = options(
    "CDEP",
    form=choice("CDEPForm", FORMS["cdep"]),
    rules=RULES,
    next_positions=int,
    output_bias=bool,
)
RRR = options("RRR", form=choice("RRRForm", FORMS["rrr"]))
EG = options("EG", form=choice("EGForm", FORMS["eg"]), samples=int)
CHANGE = choice("Change", CHANGES)
PENALTIES = {
    "none": Penalty,
    "cdep": CDEP,
    "rrr": RRR,
    "eg": EG,
    "ig": options("IG", steps=int, baseline=float),
    "gradcam": options("GradCAM", layer=str | None),
    "counterexamples": options("Counterexamples", change=CHANGE),
    "consistency": options(
        "Consistency", form=choice("ConsistencyForm", FORMS["consistency"]), change=CHANGE
    ),
    "actdiff": options("ActDiff", change=CHANGE),
    "rbr": Penalty,
    "ibp": options("IBP", radius=float),
}
"""The schema of each penalty, by the name of its file in `configs/penalty/`."""


@dataclass
class Adam:
    """`torch.optim.Adam`."""

    _target_: str = MISSING
    lr: float = MISSING
    weight_decay: float = MISSING
    fused: bool = MISSING


@dataclass
class SGD(Adam):
    """`torch.optim.SGD`."""

    momentum: float = MISSING


@dataclass
class Scheduler:
    """A schedule of the learning rate; what every one of ours has."""

    _target_: str | None = MISSING
    durations: list[str] = MISSING


@dataclass
class LinearDecay(Scheduler):
    """`torch.optim.lr_scheduler.LinearLR`."""

    start_factor: float = MISSING
    end_factor: float = MISSING
    total_iters: float | None = MISSING


@dataclass
class CosineDecay(Scheduler):
    """`torch.optim.lr_scheduler.CosineAnnealingLR`."""

    T_max: float | None = MISSING
    eta_min: float = MISSING


@dataclass
class StepDecay(Scheduler):
    """`torch.optim.lr_scheduler.StepLR`."""

    step_size: float = MISSING
    gamma: float = MISSING


@dataclass
class OneCycle(Scheduler):
    """`torch.optim.lr_scheduler.OneCycleLR`."""

    max_lr: float = MISSING
    total_steps: float | None = MISSING
    pct_start: float = MISSING
    div_factor: float = MISSING
    final_div_factor: float = MISSING


@dataclass
class TorchvisionModel:
    """`cdep_run.models.zoo.torchvision_model`."""

    _target_: str = MISSING
    name: str = MISSING
    weights: str | None = MISSING
    size: int | None = MISSING


@dataclass
class FrozenTrunk:
    """`cdep_run.models.frozen.frozen_trunk`."""

    _target_: str = MISSING
    name: str = MISSING
    weights: str | None = MISSING
    mean: list[float] = MISSING
    std: list[float] = MISSING
    trainable: list[str] = MISSING


@dataclass
class TimmModel:
    """`cdep_run.models.zoo.timm_model`."""

    _target_: str = MISSING
    name: str = MISSING
    pretrained: bool = MISSING
    size: int | None = MISSING


@dataclass
class HfModel:
    """`cdep_run.models.zoo.hf_model`."""

    _target_: str = MISSING
    name: str = MISSING
    options: dict[str, Any] = MISSING


class Cell(Enum):
    """Kind of recurrent net."""

    lstm = "lstm"
    gru = "gru"


class Reading(Enum):
    """After which word the state of a recurrent net is read."""

    last_word = "last_word"
    mean = "mean"
    padding = "padding"


@dataclass
class MnistCNN:
    """`cdep_run.models.cnn.MnistCNN`."""

    _target_: str = MISSING
    hidden: int = MISSING


class Activation(Enum):
    """What stands between the layers of a perceptron."""

    relu = "relu"
    tanh = "tanh"
    gelu = "gelu"


@dataclass
class MLP:
    """`cdep_run.models.mlp.MLP`."""

    _target_: str = MISSING
    hidden: list[int] = MISSING
    activation: Activation = MISSING
    dropout: float = MISSING


@dataclass
class RecurrentClassifier:
    """`cdep_run.models.lstm.RecurrentClassifier`."""

    _target_: str = MISSING
    hidden: int = MISSING
    layers: int = MISSING
    bidirectional: bool = MISSING
    cell: Cell = MISSING
    width: int = MISSING
    train_vectors: bool = MISSING
    read: Reading = MISSING
    dropout: float = MISSING


@dataclass
class Processes:
    """`hydra/launcher=processes`: each job of a sweep in a process of its own.

    It has values here, not in a YAML file: `submitit_local` is an older name of it, which
    hydra-submitit-launcher has, too, and Hydra would hold a file against that one's types.
    """

    _target_: str = "hydra_plugins.cdep_run_launcher.Processes"
    parallel: int = 1  # jobs at the same time; unless `threads` is set they share the cores
    gpus_per_job: int = 1  # GPUs that each job sees, apart from those of others; 0: all
    timeout_min: float = 100_000  # minutes until a job is asked to save and stop


class StrengthRule(Enum):
    """How a sweep chooses λ among means over seeds."""

    best = "best"
    one_standard_error = "one_standard_error"


class SameCode(Enum):
    """Which finished runs count as made by the same code."""

    version = "version"
    commit = "commit"
    any = "any"


@dataclass
class Arms:
    """`hydra_plugins.cdep_run_sweeper.ArmsSweeper`."""

    _target_: str = MISSING
    params: dict[str, Any] = MISSING
    arms: dict[str, dict[str, Any]] = MISSING
    choose_strength: bool = MISSING
    strength_seeds: int = MISSING
    strength_rule: StrengthRule = MISSING
    reuse: list[str] = MISSING
    same_code: SameCode = MISSING
    plan_only: bool = MISSING


SCHEMAS = {
    "schema": Config,
    "schema_arms": Arms,
    "schema_decoy_digits": DecoyDigits,
    "schema_mnist": Mnist,
    "schema_decoy_mnist": DecoyMnist,
    "schema_color_mnist": ColorMnist,
    "schema_sst": Sst,
    "schema_isic": Isic,
    "schema_images": Images,
    "schema_table": Table,
    "schema_text": Text,
    **{f"schema_{name}": schema for name, schema in PENALTIES.items()},
    "schema_adam": Adam,
    "schema_sgd": SGD,
    "schema_scheduler": Scheduler,
    "schema_linear": LinearDecay,
    "schema_cosine": CosineDecay,
    "schema_step": StepDecay,
    "schema_onecycle": OneCycle,
    "schema_mnist_cnn": MnistCNN,
    "schema_lstm": RecurrentClassifier,
    "schema_mlp": MLP,
    "schema_torchvision": TorchvisionModel,
    "schema_frozen": FrozenTrunk,
    "schema_timm": TimmModel,
    "schema_hf": HfModel,
}


def register_schemas() -> None:
    """Make the types known to Hydra under the names that the YAML files refer to."""
    Plugins.instance()  # finds all plugins now, so that none stores its configuration over ours
    store = ConfigStore.instance()
    for name, node in SCHEMAS.items():
        store.store(name=name, node=node, provider="cdep-run")
    for name in ("processes", "submitit_local"):
        store.store(name, Processes, group="hydra/launcher", provider="cdep-run")
    OmegaConf.register_new_resolver("sweep_folder", sweep_folder, replace=True)
    OmegaConf.register_new_resolver("penalty_choices", help_text, replace=True)


def config_dir() -> Path:
    """Return the folder of the YAML files: the installed package's, else the working copy's."""
    package = Path(__file__).parents[1]
    packaged = package / "configs"
    return packaged if packaged.is_dir() else package.parents[1] / "configs"


def check(config: dict[str, Any]) -> None:
    """Refuse values of the right type that no run can use.

    Raises:
        ConfigError: names the key, the value that came and what is accepted.
    """
    training = config["training"]
    for name in training.keys() - {f.name for f in fields(Training)}:
        known = ", ".join(f.name for f in fields(Training))
        raise ConfigError(f"there is no setting training.{name}; there are {known}")
    check_advice(config["dataset"].get("penalties") or {})
    rules = [
        ("penalty.strength", config["penalty"]["strength"], 0, "0 or more (λ; 0 switches it off)"),
        ("penalty.every", config["penalty"].get("every", 1), 1, "1 or more (1: at each step)"),
        ("optimizer.lr", config["optimizer"]["lr"], 0, "0 or more"),
        ("training.batch_size", training["batch_size"], 1, "1 or more"),
        ("training.evaluation_batch_size", training["evaluation_batch_size"], 1, "1 or more"),
        ("training.epochs", training["epochs"], 1, "1 or more"),
        ("training.patience", training["patience"], 0, "0 or more, or null: no early stopping"),
        ("training.check_every", training["check_every"], 1, "1 or more"),
        ("training.clip_norm", training["clip_norm"], 0, "0 or more, or null: no clipping"),
        ("training.average_from", training["average_from"], 1, "1 or more"),
        ("training.resamples", training["resamples"], 0, "0 or more (0: no intervals)"),
        ("training.checkpoint_seconds", training["checkpoint_seconds"], 0, "0 or more"),
        ("threads", config["threads"], 1, "1 or more, or null: as torch chooses"),
        ("seed", config["seed"], 0, "0 or more"),
    ]
    for key, value, least, accepted in rules:
        if value is not None and not least <= value < math.inf:
            raise ConfigError(f"{key} is {value}; accepted: {accepted}")
    for name in ("label_smoothing", "average_decay", "warmup_start"):
        if not 0 <= training[name] < 1:
            raise ConfigError(f"training.{name} is {training[name]}; accepted: 0 or more, below 1")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", config["device"]):
        raise ConfigError(f"device is {config['device']!r}; accepted: auto, cpu, cuda, cuda:N, mps")


def check_advice(penalties: dict[str, dict[str, Any]]) -> None:
    """Refuse `dataset.penalties` that name an option which the penalty does not have.

    Args:
        penalties: the default options of each penalty on this data set.

    Raises:
        ConfigError: names the option and those there are.
    """
    for name, advice in penalties.items():
        schema = SCHEMAS.get(f"schema_{name.removesuffix('_published')}")
        known = [field.name for field in fields(schema)] if schema else list(advice)
        for key in advice:
            if key not in known:
                raise ConfigError(
                    f"dataset.penalties.{name}.{key}: penalty {name} has no option {key}; it has "
                    f"{', '.join(known)}"
                )
