"""λ is chosen on validation data, by rules that hand-made records show."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdep_run.results.runs import load_runs
from cdep_run.results.selection import chosen, scores, select
from made_records import make_record


def grid(folder: Path, scores: dict[float, list[float | None]], **settings: object) -> None:
    """Records of λ with their scores on the selection split, seed by seed (None: not run)."""
    for strength, values in scores.items():
        for seed, value in enumerate(values):
            if value is not None:
                name = "_".join(map(str, (*settings.values(), strength, seed)))
                make_record(
                    folder / f"{name}.json",
                    1 - value,  # the test prefers what validation does not
                    selection=value,
                    strength=strength,
                    seed=seed,
                    **settings,  # type: ignore[arg-type]
                )


def picked(folder: Path, **options: object) -> list[float]:
    table = select(load_runs(folder), **options)  # type: ignore[arg-type]
    return table.loc[table["chosen"], "strength"].tolist()


def test_the_selection_split_chooses_and_the_whole_curve_is_kept(tmp_path):
    grid(tmp_path, {1: [0.5, 0.5], 10: [0.75, 0.5], 100: [0.25, 0.75]})
    make_record(tmp_path / "none.json", 0.125, penalty="none")
    table = select(load_runs(tmp_path)).set_index("strength")
    assert table["score"].to_dict() == {0: 0.125, 1: 0.5, 10: 0.625, 100: 0.5}
    assert table.loc[10, "chosen"] and table.loc[0, "chosen"] and table["chosen"].sum() == 2
    assert table.loc[10, "tied"] == 1 and table.loc[1, "tied"] == 0
    assert picked(tmp_path, split="test") == [1, 0]  # 0.5, 0.375 and 0.5 of λ = 1, 10, 100


def test_of_equal_means_the_smallest_strength_is_chosen(tmp_path):
    grid(tmp_path, {100: [0.1, 0.2, 0.3], 10: [0.3, 0.1, 0.2], 1: [0.1, 0.1, 0.1]})
    table = select(load_runs(tmp_path)).set_index("strength")
    assert table.index[table["chosen"]].tolist() == [10] and table.loc[10, "tied"] == 2


def test_only_seeds_that_all_share_are_compared(tmp_path):
    grid(tmp_path, {1: [0.5], 10: [0.6, 0.1, 0.1], 100: [0.4, 0.9, 0.9]})
    table = select(load_runs(tmp_path)).set_index("strength")
    assert table["n"].tolist() == [1, 3, 3] and table["compared"].tolist() == [1, 1, 1]
    assert table["score"].tolist() == [0.5, 0.6, 0.4] and table.loc[10, "chosen"]


def test_a_strength_without_the_seed_of_most_is_not_compared_but_kept(tmp_path):
    grid(tmp_path, {1: [0.5, 0.5], 10: [0.6], 100: [None, 0.9], 1000: [None, None, 0.9]})
    table = select(load_runs(tmp_path)).set_index("strength")
    assert table["compared"].tolist() == [1, 1, 0, 0] and table.loc[10, "chosen"]
    assert table.loc[[100, 1000], "score"].isna().all()


def test_a_run_without_a_score_takes_no_part(tmp_path):
    grid(tmp_path, {1: [0.5], 10: [float("nan")]})
    make_record(tmp_path / "silent.json", 0.5, strength=5, record={"selection_split": "nowhere"})
    assert picked(tmp_path) == [1]


def test_form_and_strength_are_chosen_together_by_penalty(tmp_path):
    grid(tmp_path, {1: [0.5], 10: [0.6]}, form="pair")
    grid(tmp_path, {0.1: [0.7], 1: [0.2]}, form="centred")
    assert sorted(picked(tmp_path)) == [0.1, 10]
    runs = chosen(load_runs(tmp_path), by=["dataset", "penalty"])
    assert runs[["form", "strength"]].values.tolist() == [["centred", 0.1]]


def test_the_record_says_which_metric_decides(tmp_path):
    for strength, accuracy, auc in ((1.0, 0.9, 0.5), (10.0, 0.8, 0.6)):
        metrics = {"val": {"accuracy": accuracy, "auc": auc}, "test": {"accuracy": accuracy}}
        record = {"metrics": metrics, "selection_split": "val", "selection_metric": "auc"}
        make_record(tmp_path / f"{strength}.json", 0, strength=strength, record=record)
    assert picked(tmp_path) == [10]
    with_accuracy = load_runs(tmp_path).assign(selection_metric="accuracy")
    assert scores(with_accuracy).tolist() == [0.9, 0.8]


@pytest.mark.parametrize("by", ["curve", ["dataset", "penalty"]])
def test_of_no_runs_nothing_is_chosen(tmp_path, by):
    runs = load_runs(tmp_path)
    assert len(select(runs, by)) == 0 and len(chosen(runs, by)) == 0


def test_one_standard_error_takes_the_strongest_lambda_near_the_best(tmp_path):
    """The best mean is 0.7 ± 0.1 (seeds 0.6 and 0.8): 0.6 is near, 0.59 is not."""
    grid(tmp_path, {1: [0.6, 0.8], 10: [0.55, 0.65], 100: [0.58, 0.6], 0.1: [0.7, 0.7]})
    assert picked(tmp_path) == [0.1]
    near = {"rule": "one_standard_error"}
    assert picked(tmp_path, **near) == [1]  # an error of 0, and the same mean
    grid(tmp_path, {0.1: [0.5, 0.5]})
    assert picked(tmp_path, **near) == [10]
    table = select(load_runs(tmp_path)).set_index("strength")
    assert table.loc[1, "error"] == pytest.approx(0.1)


def test_with_one_seed_both_rules_are_the_same(tmp_path):
    grid(tmp_path, {1: [0.7], 10: [0.7], 100: [0.6]})
    assert picked(tmp_path, rule="one_standard_error") == picked(tmp_path) == [1]
