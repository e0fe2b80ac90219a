"""Tables of one's own: columns to inputs, groups of columns, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cdep_run.datasets.base import Bunch, DataError
from cdep_run.datasets.table import encode, table
from cdep_run.datasets.table_file import read_table
from cdep_run.errors import ConfigError
from cdep_run.evidence.columns import column_evidence, main
from cdep_run.models.mlp import MLP
from cdep_run.results.load import load
from running import run

COLUMNS = {"label": "label", "split": None, "group": None}
COUNT = 120


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    size = rng.normal(10, 2, COUNT).round(3)
    frame = pd.DataFrame({
        "size": size,
        "colour": rng.choice(["red", "green", "blue"], COUNT),
        "code": rng.choice([1, 2], COUNT),
        "origin": rng.choice(["a", "b"], COUNT),
        "label": np.where(size + rng.normal(0, 0.5, COUNT) > 10, "yes", "no"),
    })  # fmt: skip
    frame["size"] = frame["size"].mask(frame.index % 10 == 0)
    return frame


def bunch_of(folder: Path, frame: pd.DataFrame, **options: Any) -> Bunch:
    frame.to_csv(folder / "t.csv", index=False)
    standard = {
        "table": folder / "t.csv",
        "columns": COLUMNS,
        "seed": 0,
        "shares": {"train": 0.5, "val": 0.25, "test": 0.25},
        "missing": ["", "NA"],
        "categorical": ["code"],
    }
    return table(**standard | options)


def test_columns_become_inputs_fitted_on_training_rows_alone(
    tmp_path: Path, frame: pd.DataFrame
) -> None:
    bunch = bunch_of(tmp_path, frame, must_not_matter={"where": ["origin", "colour"]})
    train = bunch.splits["train"]
    rows = [int(name.removeprefix("row ")) - 2 for name in train.ids]
    size = frame["size"].to_numpy()[rows]
    scaled = (size - np.nanmean(size)) / np.nanstd(size)
    unknown = np.isnan(size)
    np.testing.assert_allclose(train.inputs[:, 0], np.where(unknown, 0, scaled), atol=1e-5)
    np.testing.assert_array_equal(train.inputs[:, 1], unknown)
    for place, (name, values) in enumerate(
        [("colour", ["blue", "green", "red"]), ("code", [1, 2]), ("origin", ["a", "b"])]
    ):
        start = [2, 5, 7][place]
        wanted = frame[name].to_numpy()[rows][:, None] == np.array(values)
        np.testing.assert_array_equal(train.inputs[:, start : start + len(values)], wanted)
    assert bunch.input_shape == (9,)
    assert bunch.classes == ["no", "yes"]
    assert [bunch.classes[k] for k in train.labels] == frame["label"].to_numpy()[rows].tolist()
    groups = train.batch(torch.arange(3)).groups
    assert bunch.group_names == ["where"]
    assert groups.mask.tolist() == [[[False] * 2 + [True] * 3 + [False] * 2 + [True] * 2]]


def test_a_finished_run_can_encode_new_rows_from_its_preprocessing(
    tmp_path: Path, frame: pd.DataFrame
) -> None:
    bunch = bunch_of(tmp_path, frame)
    how = json.loads(json.dumps(bunch.preprocessing))
    new = read_table(tmp_path / "t.csv")
    inputs = encode(new, how)
    rows = [int(name.removeprefix("row ")) - 2 for name in bunch.splits["test"].ids]
    assert torch.equal(inputs[rows], bunch.splits["test"].inputs)
    new.loc[2, "colour"] = "violet"
    assert encode(new, how)[0, 2:5].tolist() == [0, 0, 0]
    with pytest.raises(DataError, match="no column 'size', which the model was trained with"):
        encode(new.drop(columns="size"), how)


def test_a_column_gives_the_splits_and_groups_stay_whole(
    tmp_path: Path, frame: pd.DataFrame
) -> None:
    frame["who"] = [f"p{k // 3}" for k in range(COUNT)]
    bunch = bunch_of(tmp_path, frame, columns=COLUMNS | {"group": "who"})
    who = [{frame["who"][int(n.split()[1]) - 2] for n in s.ids} for s in bunch.splits.values()]
    assert not who[0] & who[1] | who[0] & who[2] | who[1] & who[2]
    assert bunch.input_shape == (9,)  # 'who' is no input
    frame["part"] = np.where(frame.index < 80, "train", "val")
    given = bunch_of(tmp_path, frame, columns=COLUMNS | {"split": "part"}, ignore=["who"])
    assert {name: len(split) for name, split in given.splits.items()} == {"train": 80, "val": 40}


def test_decimal_commas_mistakes_names_and_blank_labels_stand_in_one_report(
    tmp_path: Path, frame: pd.DataFrame
) -> None:
    frame["weight"] = [f"{k},5" for k in range(COUNT)]
    frame["name"] = [f"name {k}" for k in range(COUNT)]
    frame["height"] = frame["size"].astype(object).where(frame.index != 7, "tall")
    frame.loc[4, "label"] = None
    with pytest.raises(DataError) as error:
        bunch_of(tmp_path, frame)
    for words in (
        "4 faults in the data",
        "t.csv: 1 rows have no label (row 6)",
        "column 'weight' has 120 cells that are no number (row 2: '0,5'",
        "set dataset.decimal=','",
        "column 'name' has 120 different values: leave it out by dataset.ignore",
        "column 'height' has 1 cells that are no number (row 9: 'tall')",
    ):
        assert words in str(error.value), str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"table": None}, "needs dataset.table"),
        ({"columns": {"label": "labl"}}, r"no column 'labl' \(nearest: 'label'\)"),
        ({"columns": {"lable": "label"}}, "dataset.columns names 'lable'; there are label, split"),
        ({"must_not_matter": ["race"]}, "names 'race' in race; the model sees, of t.csv, 'size'"),
        ({"features": ["sise"]}, r"no column 'sise' \(nearest: 'size'\)"),
        ({"ignore": ["size", "colour", "code", "origin"]}, "no column is left"),
        ({"decimal": ";"}, "dataset.decimal is ';'"),
        ({"positive": "maybe"}, "dataset.positive is 'maybe'; the classes are no, yes"),
    ],
)
def test_options_that_no_run_can_use_are_refused(
    tmp_path: Path, frame: pd.DataFrame, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        bunch_of(tmp_path, frame, **options)


def test_a_class_seen_once_is_refused_by_name(tmp_path: Path, frame: pd.DataFrame) -> None:
    frame.loc[0, "label"] = "perhaps"
    with pytest.raises(DataError, match=r"fewer examples than there are splits \(perhaps \(1\)\)"):
        bunch_of(tmp_path, frame)


def test_numbers_and_truth_values_of_parquet_are_inputs_as_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=1000), "on": rng.random(1000) > 0.5,
                          "label": rng.integers(0, 2, 1000)})  # fmt: skip
    frame.to_parquet(tmp_path / "t.parquet")
    bunch = bunch_of(tmp_path, frame, table=tmp_path / "t.parquet", categorical=[])
    assert bunch.classes == ["0", "1"]
    assert bunch.input_shape == (2,)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"hidden": [0]}, "model.hidden"), ({"activation": "sine"}, "model.activation is 'sine'"),
     ({"dropout": 1}, "model.dropout is 1")],
)  # fmt: skip
def test_a_perceptron_that_cannot_be_built_is_refused(options: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MLP((4,), 2, **options)
    assert MLP((4,), 3, hidden=[])(torch.zeros(2, 4)).shape == (2, 3)


def test_a_penalised_column_no_longer_changes_predictions(tmp_path: Path) -> None:
    """`origin` gives the label away to 90 %, `size` to 80 %; under a penalty only size is left."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 600)
    frame = pd.DataFrame({
        "origin": np.where(rng.random(600) < 0.9, label, 1 - label),
        "size": np.where(rng.random(600) < 0.8, label, 1 - label) + rng.normal(0, 0.1, 600),
        "label": label,
    })  # fmt: skip
    frame["origin"] = frame["origin"].map({0: "a", 1: "b"})
    frame.to_csv(tmp_path / "t.csv", index=False)
    changed = {}
    for penalty, strength in (("none", 0), ("rrr", 100), ("cdep", 100)):
        folder = tmp_path / penalty
        result = run(
            folder, "dataset=table", f"dataset.table={tmp_path / 't.csv'}", "model.hidden=[8]",
            "dataset.must_not_matter=[origin]", f"penalty={penalty}", "training.epochs=20",
            f"penalty.strength={strength}", "training.batch_size=32", "optimizer.lr=0.01",
            "loggers=csv",
        )  # fmt: skip
        assert result["data"]["groups"] == ["origin"]
        (found,) = column_evidence(*load(folder))
        changed[penalty] = found.changed_by_setting
        assert 0.4 * found.changed_by_setting <= found.exchanged <= found.changed_by_setting
        assert sum(each.count for each in found.errors) == 90
        assert found.from_others == pytest.approx(0.74, abs=0.1)  # by way of the label
    assert changed["none"] > 0.5
    assert max(changed["rrr"], changed["cdep"]) <= 0.05, changed
    assert main([str(tmp_path / name) for name in changed]) == 0


def test_each_number_of_the_evidence_is_that_counted_by_hand(tmp_path: Path) -> None:
    frame = pd.DataFrame({
        "sex": ["f", "m"] * 60, "age": [20, 20, 40, 40] * 30, "label": ["n", "n", "p", "p"] * 30,
    })  # fmt: skip
    bunch = bunch_of(tmp_path, frame, categorical=[], must_not_matter=["sex"])
    model = MLP(bunch.input_shape, 2, hidden=[])
    with torch.no_grad():  # says p of every m
        model.layers[1].weight[:] = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        model.layers[1].bias[:] = torch.tensor([0.5, 0.0])
    (found,) = column_evidence(model.eval(), bunch)
    said_right = [e.accuracy * e.count for e in found.errors]
    assert found.accuracy == pytest.approx(sum(said_right) / len(bunch.splits["test"]))
    assert found.changed_by_setting == 1.0
    assert found.exchanged == pytest.approx(0.5, abs=0.1)
    assert found.from_scores == 1.0
    women, men = found.errors
    assert (women.value, women.false_positive, women.false_negative) == ("f", 0.0, 1.0)
    assert (men.value, men.false_positive, men.false_negative) == ("m", 1.0, 0.0)
    with pytest.raises(ConfigError, match="is no dataset=table with"):
        column_evidence(model, bunch_of(tmp_path, frame, categorical=[]))
