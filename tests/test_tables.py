"""Tables from hand-made records with sums that can be done in the head."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from cdep_run.config.schemas import config_dir
from cdep_run.errors import ConfigError
from cdep_run.results.runs import load_runs
from cdep_run.tables import main, tables
from cdep_run.tables.build import Table, build
from cdep_run.tables.formats import latex, markdown, page
from cdep_run.tables.spec import Column, Row, Spec, check_settings, names, read
from cdep_run.tables.values import interval, p_equal, value
from cdep_run.training.build import plain
from made_records import make_record
from running import composed

TEST = Column(name="test", metric="test/accuracy")


def spec(*rows: Row, columns: list[Column] | None = None, **options: Any) -> Spec:
    return Spec(title="T", columns=columns or [TEST], rows=list(rows) or [Row()], **options)


def made(folder: Path, what: Spec, quick: bool = False) -> Table:
    table = build(what, load_runs(folder), quick)
    assert table is not None
    return table


def texts(table: Table) -> list[list[str]]:
    return [[text for text, _ in row] for row in table.body]


def seeds(folder: Path, name: str, scores: list[float], **settings: Any) -> None:
    for seed, score in enumerate(scores):
        make_record(folder / f"{name}{seed}.json", score, seed=seed, **settings)


def test_seeds_of_one_setting_become_mean_deviation_and_count(tmp_path):
    seeds(tmp_path, "a", [0.8, 0.9, 1.0])
    make_record(tmp_path / "b.json", 0.5, strength=100.0)
    make_record(tmp_path / "c.json", 0.25, penalty="none")
    table = made(tmp_path, spec())
    assert table.head == ["penalty", "λ", "n", "test (%)"]
    assert texts(table) == [["none", "–", "1", "25.0"], ["CDEP, pair", "10", "3", "90.0 ± 10.0"]]
    assert table.commands[1].startswith("cdep-run -m dataset=decoy penalty=cdep")
    assert "seed=0,1,2" in table.commands[1] and "penalty.strength=10" in table.commands[1]


def test_validation_chooses_the_row_and_the_test_s_choice_stands_apart(tmp_path):
    make_record(tmp_path / "a.json", 0.5, strength=1.0, selection=0.9)
    make_record(tmp_path / "b.json", 0.75, strength=10.0, selection=0.8)
    table = made(tmp_path, spec(by_test=True))
    assert texts(table) == [["CDEP, pair", "1", "1", "50.0", "75.0 (λ 10)"]]
    notes = " ".join(table.notes)
    assert "λ by accuracy on val_shifted, tested with the weights of the last epoch" in notes
    assert "decoy CDEP, pair: 1, 10 (1 seed)" in notes and "† Under the λ that is best" in notes


def test_every_strength_has_a_row_if_asked_and_the_chosen_one_a_tick(tmp_path):
    for strength, accuracy in ((1.0, 0.5), (10.0, 0.75), (100.0, 0.25)):
        make_record(tmp_path / f"{strength}.json", accuracy, strength=strength)
    table = made(tmp_path, spec(every_strength=True))
    assert [row[1] for row in texts(table)] == ["1", "10 ✓", "100"]


def test_form_and_strength_are_chosen_together_where_the_row_says_so(tmp_path):
    make_record(tmp_path / "a.json", 0.5, form="pair")
    make_record(tmp_path / "b.json", 0.75, form="centred", strength=3.0)
    alone = made(tmp_path, spec(Row(where={"penalty": "cdep"})))
    assert [row[:2] for row in texts(alone)] == [["CDEP, centred", "3"], ["CDEP, pair", "10"]]
    together = made(tmp_path, spec(Row(where={"penalty": "cdep"}, choose=["penalty.form"])))
    assert [row[:2] for row in texts(together)] == [["CDEP", "3 (centred)"]]
    pair = made(tmp_path, spec(Row(where={"penalty.form": "pair"}, name="as published")))
    assert texts(pair) == [["as published", "10", "1", "50.0"]]


def test_runs_that_differ_in_any_setting_never_share_a_row(tmp_path):
    make_record(tmp_path / "a.json", 0.5)
    other = {"dataset": {"name": "decoy", "train_size": None}, "seed": 1, "threads": 1,
             "penalty": {"name": "cdep", "strength": 10.0, "form": "pair"},
             "training": {"epochs": 9, "patience": 2}}  # fmt: skip
    make_record(tmp_path / "b.json", 0.75, seed=1, record={"config": other})
    assert sorted(row[-1] for row in texts(made(tmp_path, spec()))) == ["50.0", "75.0"]


def test_seeds_that_stopped_at_different_epochs_share_a_row(tmp_path):
    make_record(tmp_path / "a.json", 0.5, record={"epochs": 3})
    make_record(tmp_path / "b.json", 0.7, seed=1, record={"epochs": 5, "seed": 1})
    assert [row[2] for row in texts(made(tmp_path, spec()))] == ["2"]


def test_settings_that_all_lines_share_are_said_once(tmp_path):
    for penalty, more in (("none", ()), ("rrr", ("optimizer.lr=0.01",))):
        said = ("dataset=decoy_mnist", f"penalty={penalty}", "training.epochs=3", *more)
        record = {"config": plain(composed(*said))}
        make_record(tmp_path / f"{penalty}.json", 0.5, dataset="decoy_mnist", record=record)
    table = made(tmp_path, spec())
    assert [row[0] for row in texts(table)] == ["none", "RRR, optimizer.lr=0.01"]
    assert "All runs of decoy_mnist here: training.epochs=3." in table.notes
    assert all("training.epochs=3" in command for command in table.commands)


def test_runs_on_other_data_stand_in_rows_of_their_own(tmp_path):
    make_record(tmp_path / "a.json", 0.5, fingerprint="a" * 64)
    make_record(tmp_path / "b.json", 0.7, seed=1, fingerprint="b" * 64)
    found = [row[0] for row in texts(made(tmp_path, spec()))]
    assert found == ["CDEP, pair, data aaaaaaaa", "CDEP, pair, data bbbbbbbb"]
    assert not any(bold for row in made(tmp_path, spec()).body for _, bold in row)


def test_folds_repeat_a_run_as_seeds_do_where_the_table_says_so(tmp_path):
    config = {"penalty": {"name": "none", "strength": 0.0}, "seed": 0, "threads": 1}
    for fold, score in ((0, 0.5), (1, 0.7), (None, 0.1)):
        dataset = {"name": "decoy", "train_size": None, "fold": fold}
        data = {"name": "decoy", "fingerprint": f"{fold}" * 9, "examples": {}}
        make_record(tmp_path / f"{fold}.json", score,
                    record={"config": config | {"dataset": dataset}, "data": data})  # fmt: skip
    table = made(tmp_path, spec(repeat={"dataset.fold": [0, 1], "seed": [0]}))
    found = {row[0]: row[2:] for row in texts(table)}
    assert found["none, data several"] == ["2", "60.0 ± 14.1"]
    assert found["none, data NoneNone"] == ["1", "10.0"]
    assert "differ in dataset.fold and seed" in table.notes[0]
    assert any("dataset.fold=0,1 seed=0" in command for command in table.commands)


def test_quick_runs_are_marked_and_never_mixed_with_full_ones(tmp_path):
    make_record(tmp_path / "a.json", 0.5)
    make_record(tmp_path / "b.json", 0.75, train_size=100)
    full, quick = (made(tmp_path, spec(), quick) for quick in (False, True))
    assert [row[-1] for row in texts(full)] == ["50.0"] and "QUICK" not in full.title
    assert [row[-1] for row in texts(quick)] == ["75.0"] and "QUICK" in quick.title
    found = [name for name, _ in tables({"t": spec()}, load_runs(tmp_path))]
    assert found == ["t", "t_quick"]
    (tmp_path / "b.json").unlink()
    assert build(spec(), load_runs(tmp_path), quick=True) is None


def test_the_paper_s_value_stands_beside_ours_with_the_difference(tmp_path):
    seeds(tmp_path, "a", [0.5, 0.75], penalty="rrr")
    rows = [Row(where={"dataset": "decoy", "penalty": penalty}, paper={"test": paper})
            for penalty, paper in (("rrr", [64, 1.0]), ("eg", [0.01, 0.2]))]  # fmt: skip
    table = made(tmp_path, spec(*rows))
    assert table.head[-1] == "paper (ours − paper)"
    assert texts(table)[0][-2:] == ["62.5 ± 17.7", "64.0 ± 1.0 (−1.5)"]
    assert texts(table)[1] == ["EG", "–", "no runs", "–", "0.01 ± 0.2"]
    assert table.numbers["ours - paper"].tolist()[0] == -1.5


def test_a_row_without_runs_says_so_with_the_command_that_fills_it(tmp_path):
    make_record(tmp_path / "a.json", 0.5)
    where = {"dataset": "decoy_mnist", "penalty": "cdep", "penalty.form": "pair"}
    table = made(tmp_path, spec(Row(where=where)))
    assert texts(table) == [["CDEP", "–", "no runs", "–"]]
    command = "cdep-run -m dataset=decoy_mnist penalty=cdep penalty.form=pair seed=0,1,2,3,4"
    assert table.notes[-1] == f"No runs of decoy_mnist CDEP; `{command}` makes them."
    assert table.commands == []


def test_bold_are_the_best_and_all_that_the_test_does_not_find_worse(tmp_path):
    seeds(tmp_path, "best", [0.90, 0.91, 0.92], strength=1, form="a")
    seeds(tmp_path, "near", [0.91, 0.90, 0.915], strength=1, form="b")
    seeds(tmp_path, "worse", [0.80, 0.81, 0.825], strength=1, form="c")
    seeds(tmp_path, "alone", [0.905], strength=1, form="d")
    table = made(tmp_path, spec())
    bold = {row[0][0].split(", ")[1]: row[-1][1] for row in table.body}
    assert bold == {"a": True, "b": True, "c": False, "d": False}
    p = stats.ttest_rel([0.80, 0.81, 0.825], [0.90, 0.91, 0.92]).pvalue
    assert table.numbers["p against the best"].tolist()[2] == pytest.approx(p) and p < 0.05


def test_best_is_lowest_where_the_column_says_so_and_data_sets_are_not_compared(tmp_path):
    make_record(tmp_path / "a.json", 0.5, form="a")
    make_record(tmp_path / "b.json", 0.6, form="b")
    make_record(tmp_path / "c.json", 0.1, dataset="other")
    table = made(tmp_path, spec(columns=[Column(name="t", metric="test/accuracy", lower=True)]))
    assert table.head[0] == "data set" and [row[-1][1] for row in table.body] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("one", "other", "p"),
    [([1, 2], [1, 2], 1.0), ([1, 2], [2, 3], 0.0), ([1], [2], None), ([1, 2], [5, 1], 0.6560)],
)
def test_the_paired_test_at_its_edges(one, other, p):
    found = p_equal(pd.Series(one, dtype=float), pd.Series(other, dtype=float))
    assert pd.isna(found) if p is None else found == pytest.approx(p, abs=1e-4)


def test_pairs_are_seeds_that_both_have():
    one = pd.Series({0: 1.0, 1: 2.0, 2: 4.0, 7: 100.0})
    other = pd.Series({2: 1.0, 1: 1.5, 0: 1.0, 8: -100.0})
    assert p_equal(one, other) == stats.ttest_rel([1, 2, 4], [1, 1.5, 1]).pvalue


def test_the_interval_of_a_small_test_set_is_wilson_s(tmp_path):
    make_record(tmp_path / "a.json", 41 / 55, record={"data": {
        "name": "decoy", "fingerprint": "f", "examples": {"test": 55}}})  # fmt: skip
    column = Column(name="test", metric="test/accuracy", interval=True)
    p, n, z = 41 / 55, 55, 1.959964
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    low, high = interval(value(load_runs(tmp_path), column, None))
    assert (low, high) == pytest.approx((100 * (middle - half), 100 * (middle + half)), abs=1e-3)
    table = made(tmp_path, spec(columns=[column]))
    assert texts(table)[0][-2:] == ["74.5", "61.7 to 84.2 (of 55)"]
    assert any("Wilson" in note for note in table.notes)


def test_times_are_of_one_machine_and_ratios_to_no_penalty_on_the_same_one(tmp_path):
    def timed(name: str, seconds: float, threads: int, **settings: Any) -> None:
        record = {"seconds_per_epoch": seconds, "threads": threads, "device": "cpu"}
        make_record(tmp_path / f"{name}.json", 0.5, record=record, **settings)

    timed("none0", 2.0, 1, penalty="none")
    timed("none1", 4.0, 1, penalty="none", seed=1)
    timed("none2", 99.0, 8, penalty="none", seed=2)
    timed("cdep", 6.0, 1)
    timed("rrr", 6.0, 8, penalty="rrr")
    time_, ratio = ({"metric": "seconds_per_epoch", "unit": unit} for unit in ("s", ""))
    columns = [Column(name="time", **time_), Column(name="ratio", ratio=True, **ratio)]
    assert [row[-2:] for row in texts(made(tmp_path, spec(columns=columns)))] == [
        ["3.0 ± 1.4 (n = 2)", "1.0 ± 0.5 (n = 2)"],
        ["6.0", "2.0"],
        ["6.0", "–"],
    ]


def test_a_metric_that_some_seeds_lack_says_on_how_many_it_stands(tmp_path):
    seeds(tmp_path, "a", [0.5, float("nan"), 0.7])
    make_record(tmp_path / "a1.json", float("nan"), seed=1, selection=0.5)
    assert texts(made(tmp_path, spec())) == [["CDEP, pair", "10", "3", "60.0 ± 14.1 (n = 2)"]]
    nowhere = made(tmp_path, spec(columns=[Column(name="x", metric="test/magic")]))
    assert "No run here has test/magic." in nowhere.notes


def test_every_format_says_the_same(tmp_path):
    seeds(tmp_path, "a", [0.5, 0.7], form="a_&_b")
    make_record(tmp_path / "b.json", 0.5, penalty="none")
    table = made(tmp_path, spec(note="<b>100 %</b>"))
    assert "| **60.0 ± 14.1** |" in markdown(table)
    assert r"CDEP, a\_\&\_b & 10 & 2 & \textbf{60.0 $\pm$ 14.1} \\" in latex(table)
    assert r"\toprule" in latex(table) and r"100 \%" in latex(table)
    assert "<td><b>60.0 ± 14.1</b></td>" in page(table) and "&lt;b&gt;100 %" in page(table)
    assert table.numbers["mean"].tolist() == [50.0, pytest.approx(60)]


@pytest.mark.parametrize("name", names())
def test_every_table_of_ours_is_read_and_every_row_of_it_can_be_run(name, tmp_path):
    from cdep_run.config.commands import defaults, literal

    found = read(name)
    for row in found.rows:
        check_settings(row, Path(name))
    for row in found.rows:
        said = [f"{key}={literal(value)}" for key, value in row.where.items()]
        assert not said or defaults(*said) is not None, said
    assert build(found, load_runs(tmp_path)) is not None
    assert not found.sweep or (config_dir() / f"sweep/{found.sweep}.yaml").is_file()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("titel: x", "titel"),
        ("title: x\ncolumns: [{name: a, metric: test/accuracy, unit: kg}]\nrows: []", "'kg'"),
        ("title: x\ncolumns: []\nrows: []", "columns must be there"),
        ("title: x\ncolumns: [{name: a, metric: b}]\nrows: [{paper: {c: [1]}}]", "'c'"),
        ("title: x\ncolumns: [{name: a, metric: b}]\nrows: [{paper: {a: [1, 2, 3]}}]", "3"),
        ("title: x\ncolumns: [{name: a, metric: b}]\nrows: [{paper: {a: [x]}}]", "'str'"),
        ("title: x\ncolumns: [{name: a, metric: b, unit: s, interval: true}]\nrows: []", "in %"),
        ("title: x\ncolumns: [{name: a, metric: b, digits: many}]\nrows: []", "digits"),
        ("title: x\ncolumns: [{name: a, metric: b}]\nrows:\n"
         "- {where: {dataset: decoy_mnist, penalty: cdep, penalty.fom: pair}}", "penalty.fom"),
        ("title: x", "columns"),
        ("- 1", "mine.yaml"),
        ("title: [", "mine.yaml"),
    ],
)  # fmt: skip
def test_a_table_that_makes_no_sense_is_refused_by_name(tmp_path, text, words):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        read(str(file))
    assert words in str(error.value) and "\n" not in str(error.value)


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["cdep-tables", *map(str, arguments)])
    main()


def test_the_command_writes_every_format_and_prints_markdown(tmp_path, monkeypatch, capsys):
    make_record(tmp_path / "runs/a/result.json", 0.5)
    (tmp_path / "runs/b").mkdir()
    (tmp_path / "runs/b/result.json").write_text('{"config"')
    command(monkeypatch, tmp_path / "runs", "--out", tmp_path / "t", "--table", "all")
    assert sorted(f.name for f in (tmp_path / "t").iterdir()) == [
        "all.csv", "all.html", "all.md", "all.tex"]  # fmt: skip
    said = capsys.readouterr()
    assert "| CDEP, pair | 10 | 1 | 50.0 |" in said.out
    assert said.out.strip().endswith((tmp_path / "t/all.md").read_text().strip())
    assert said.out.startswith("decoy: test accuracy CDEP (λ = 10) 50.0 %; no run without")
    assert "b/result.json: damaged and left out" in said.err and "1 runs" in said.err


def test_without_any_run_no_table_is_written_and_the_exit_code_is_1(tmp_path, monkeypatch, capsys):
    (tmp_path / "t").mkdir()
    (tmp_path / "t/table3.md").write_text("a good table")
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, tmp_path / "typo", "--out", tmp_path / "t")
    error = capsys.readouterr().err
    assert end.value.code == 1 and "no finished run below" in error and "does not exist" in error
    assert (tmp_path / "t/table3.md").read_text() == "a good table"
    assert len(list((tmp_path / "t").iterdir())) == 1


def test_wrong_arguments_are_answered_in_one_line(tmp_path, monkeypatch):
    make_record(tmp_path / "a.json", 0.5)
    (tmp_path / "file").write_text("")
    for arguments, words in (
        (["--table", "table9"], "no table table9; there are table"),
        (["--table", "none.yaml"], "no table none.yaml"),
        (["--table", "all", "--out", tmp_path / "file"], "cannot write"),
    ):
        with pytest.raises(SystemExit) as end:
            command(monkeypatch, tmp_path, *arguments)
        assert words in str(end.value.code) and "\n" not in str(end.value.code)


def test_two_thousand_runs_become_tables_in_five_seconds(tmp_path, monkeypatch, capsys):
    config = plain(composed("dataset=decoy_mnist", "penalty=cdep"))
    epochs = [{f"{split}/{m}": 0.123456789 for split in "abcd" for m in "efghi"}] * 5
    for n in range(2000):
        curve, rest = divmod(n, 50)
        strength, seed = divmod(rest, 5)
        config["penalty"] |= {"strength": 10.0**strength, "form": f"form{curve}"}
        record = {"config": config | {"seed": seed}, "history": epochs}
        make_record(tmp_path / f"{n}.json", 0.5 + seed / 100, dataset="decoy_mnist", record=record)
    started = time.process_time()
    command(monkeypatch, tmp_path, "--out", tmp_path / "t")
    seconds = time.process_time() - started
    assert "| CDEP, form39, symmetric |" in capsys.readouterr().out and seconds < 5, seconds


def test_the_first_lines_compare_the_penalties_and_no_empty_paper_table_follows(
    tmp_path, monkeypatch, capsys
):
    for name, score in (("none", 0.5), ("rrr", 0.75)):
        make_record(tmp_path / f"runs/{name}/result.json", score, penalty=name)
    command(monkeypatch, tmp_path / "runs", "--out", tmp_path / "t")
    lines = capsys.readouterr().out.splitlines()
    assert "50.0 % without a penalty; RRR (λ = 10) 75.0 %." in lines[0]
    assert [line for line in lines if line.startswith("## ")] == ["## All settings"]
