"""Tables from hand-made records with sums that can be done in the head."""

from __future__ import annotations

import json

import pytest

from cdep_run.tables import frame, markdown


def make_record(folder, seed: int, accuracy: float, strength: float = 10.0) -> None:
    record = {
        "config": {"seed": seed, "penalty": {"name": "cdep", "strength": strength, "form": "pair"}},
        "data": {"name": "decoy_mnist"},
        "epochs": 5,
        "metrics": {"train": {"accuracy": 1.0}, "test": {"accuracy": accuracy}},
    }
    path = folder / f"cdep_{strength:g}" / f"seed{seed}"
    path.mkdir(parents=True)
    (path / "result.json").write_text(json.dumps(record))


def test_seeds_of_one_setting_become_mean_and_deviation(tmp_path):
    for seed, accuracy in enumerate((0.8, 0.9, 1.0)):
        make_record(tmp_path, seed, accuracy)
    make_record(tmp_path, 0, 0.5, strength=100.0)
    table = markdown(frame(tmp_path, "accuracy"))
    assert "| decoy_mnist | cdep | 10 | pair |  | 5 | 3 | 90.0 ± 10.0 |" in table
    assert "| decoy_mnist | cdep | 100 | pair |  | 5 | 1 | 50.0 |" in table


def test_a_damaged_record_is_named_and_the_rest_tabulated(tmp_path, capsys):
    make_record(tmp_path, 0, 0.8)
    (tmp_path / "result.json").write_text('{"config": ')
    assert len(frame(tmp_path, "accuracy")) == 1
    assert "result.json is damaged" in capsys.readouterr().err


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no finished run"):
        frame(tmp_path, "accuracy")
