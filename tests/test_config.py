"""The configuration: what composes, what is refused and in which words."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from typing import Any

import pytest
from hydra.errors import ConfigCompositionException, MissingConfigException

from cdep_run.config.compare import refuse_changes
from cdep_run.config.schemas import check, config_dir
from cdep_run.errors import ConfigError
from cdep_run.training.build import build, build_optimizer, plain
from cdep_run.variants import FORMS, VARIANTS, help_text
from running import composed


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


@pytest.mark.parametrize("dataset", choices("dataset"))
@pytest.mark.parametrize("penalty", choices("penalty"))
def test_every_data_set_composes_with_every_penalty_and_its_default_strength(
    dataset: str, penalty: str
) -> None:
    config = plain(composed(f"dataset={dataset}", f"penalty={penalty}"))
    check(config)
    assert config["penalty"]["name"] == penalty
    assert (config["penalty"]["strength"] > 0) == (penalty != "none")


@pytest.mark.parametrize(
    "choice", [f"{g}={c}" for g in ("model", "penalty", "optimizer", "dataset") for c in choices(g)]
)
def test_every_choice_names_arguments_that_its_target_has(choice: str) -> None:
    group = choice.partition("=")[0]
    node = plain(composed(choice))[group]
    module, _, name = node.pop("_target_").rpartition(".")
    target = getattr(importlib.import_module(module), name)
    for key in ("strength", "every", "penalties", *(() if group == "model" else ("name",))):
        node.pop(key, None)
    extra: dict[str, Any] = {
        "model": {"input_shape": (1, 28, 28), "num_classes": 10},
        "optimizer": {"params": []},
    }.get(group, {})
    signature = inspect.signature(target)
    if group == "model" and "vectors" in signature.parameters:  # of a model for text
        extra["vectors"] = None
    signature.bind(**node, **extra)


def test_what_the_command_line_chooses_wins_over_what_the_data_set_chooses() -> None:
    assert composed("dataset=tiny").model._target_ == "tiny_data.TinyNet"
    assert composed("dataset=tiny", "model=mnist_cnn").model.hidden == 256
    assert composed("model=mnist_cnn", "dataset=tiny").model.hidden == 256
    assert composed("training.epochs=7", "dataset=tiny").training.epochs == 7


def test_a_misspelt_key_is_refused_by_name() -> None:
    with pytest.raises(ConfigCompositionException) as error:
        composed("training.epohs=3")
    assert "epohs" in f"{error.value} {error.value.__cause__}"


@pytest.mark.parametrize(
    "override",
    ["seed=abc", "training.epochs=2.5", "training.restore_best=maybe", "penalty.strength=big",
     "penalty.form=par", "optimizer.lr=fast", "precision=fp8", "model.hidden=wide",
     "dataset.seed=x", "resume=2024-01-01"],
)  # fmt: skip
def test_a_wrong_type_fails_at_composition(override: str) -> None:
    with pytest.raises(ConfigCompositionException):
        composed(override)


def test_each_variant_of_cd_is_a_setting_named_in_help_and_configuration() -> None:
    text = (config_dir() / "penalty" / "cdep.yaml").read_text()
    for rule, variants in VARIANTS.items():
        for name in variants:
            assert name in text
            config = composed("penalty=cdep", f"penalty.rules.{rule}={name}")
            assert build(plain(config)["penalty"]).rules[rule] == name
        assert f"penalty.rules.{rule}" in help_text()
        with pytest.raises(ConfigCompositionException) as error:
            composed("penalty=cdep", f"penalty.rules.{rule}=none_such")
        assert all(name in str(error.value.__cause__) for name in variants)


@pytest.mark.parametrize("form", FORMS)
def test_forms_are_those_of_the_classes(form: str) -> None:
    for name in FORMS[form]:
        assert build(plain(composed(f"penalty={form}", f"penalty.form={name}"))["penalty"])


def test_advice_of_a_data_set_that_no_penalty_knows_is_refused() -> None:
    config = plain(composed("+dataset.penalties.cdep.relu=last"))
    with pytest.raises(ConfigError, match=r"penalties\.cdep\.relu: .*it has .*rules"):
        check(config)


def test_a_wrong_form_is_answered_with_the_forms_there_are() -> None:
    with pytest.raises(ConfigCompositionException) as error:
        composed("penalty=cdep", "penalty.form=par")
    assert "[pair, centred, eq5, pair_true_class]" in str(error.value.__cause__)


@pytest.mark.parametrize("group", ["dataset", "penalty", "model", "optimizer"])
def test_an_unknown_choice_is_answered_with_the_choices_there_are(group: str) -> None:
    with pytest.raises(MissingConfigException) as error:
        composed(f"{group}=nope")
    assert all(choice in str(error.value) for choice in choices(group))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("penalty.strength=-1", "penalty.strength is -1.0; accepted: 0 or more"),
        ("penalty.strength=nan", "penalty.strength is nan"),
        ("training.batch_size=0", "training.batch_size is 0; accepted: 1 or more"),
        ("training.patience=-1", "training.patience is -1"),
        ("device=gpu", "device is 'gpu'; accepted: auto, cpu"),
        ("optimizer.lr=-0.1", "optimizer.lr is -0.1"),
        ("+training.epohs=3", "there is no setting training.epohs; there are batch_size, epochs"),
    ],
)
def test_a_value_that_no_run_can_use_is_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check(plain(composed(override)))


def test_only_what_does_not_change_training_may_change_on_resuming() -> None:
    old = {"seed": 0, "data_dir": "a", "penalty": {"strength": 1.0}, "resume": False}
    refuse_changes(old, old | {"data_dir": "b", "resume": True})
    with pytest.raises(ConfigError, match=r"\(penalty.strength: 1.0 → 2.0; seed: 0 → 1\)"):
        refuse_changes(old, old | {"seed": 1, "penalty": {"strength": 2.0}})


def test_a_target_that_cannot_be_imported_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no_such_module\.thing cannot be imported"):
        build({"_target_": "cdep_run.models.no_such_module.thing"})


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+penalty.samplse=3", r"CDEP cannot be called so: .*'samplse'"),
        ("+optimizer.momentum=0.9", r"Adam cannot be called so: .*'momentum'"),
        ("optimizer.weight_decay=-1", "Adam: Invalid weight_decay value: -1.0"),
        ("model.hidden=0", "model.hidden is 0; it must be at least 1"),
    ],
)
def test_what_a_part_refuses_is_said_by_its_name(override: str, words: str) -> None:
    import torch

    config = plain(composed(override))
    with pytest.raises(ConfigError, match=words):
        build(config["penalty"])
        build(config["model"], input_shape=(1, 28, 28), num_classes=10)
        build_optimizer(config["optimizer"], [torch.zeros(1)])


def test_torch_is_not_imported_before_the_configuration_is_checked() -> None:
    code = "import cdep_run.train, cdep_run.sweeps.sweep, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
