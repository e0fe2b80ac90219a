"""The report: what it says of good and bad records, and that the page works in a browser."""

from __future__ import annotations

import copy
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from browser import dump_dom, without_script
from cdep_run.batch import Groups
from cdep_run.config.commands import command, overrides
from cdep_run.config.compare import deciding_settings
from cdep_run.datasets.base import TensorSplit
from cdep_run.report import main
from cdep_run.report.collect import Report, collect
from cdep_run.report.examples import add_examples, sentence
from cdep_run.report.page import write_page
from cdep_run.training.build import plain
from running import composed, run

CONFIGS: dict[tuple[str, ...], dict[str, Any]] = {}


def make_record(
    file: Path,
    *said: str,
    test: float = 0.9,
    selection: float = 0.9,
    fingerprint: str = "a" * 64,
    data: str = "decoy_digits",
) -> Path:
    """A record of a data set as a run with these overrides would leave it."""
    if said not in CONFIGS:
        CONFIGS[said] = plain(composed(*said))
    config = copy.deepcopy(CONFIGS[said])
    record = {
        "config": config,
        "data": {"name": data, "fingerprint": fingerprint, "examples": {}},
        "seed": config["seed"],
        "epochs": config["training"]["epochs"],
        "selection_split": "val_shifted",
        "metrics": {"val_shifted": {"accuracy": selection}, "test": {"accuracy": test}},
        "seconds_per_epoch": 2.0 if config["penalty"]["name"] == "cdep" else 1.0,
        "peak_memory_bytes": 2**20,
        "peak_memory_kind": "CUDA tensors",
        "versions": {"torch": "2"},
        "git": {"commit": "c" * 40, "changed": False},
        "device": "cpu",
        "threads": 1,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record))
    return file


def grid(folder: Path) -> None:
    """Two seeds of none and of CDEP under three λ; validation prefers 10, the test 100."""
    scores = {1: (0.5, 0.5), 10: (0.7, 0.9), 100: (0.8, 0.6)}
    for seed in range(2):
        make_record(folder / f"none/seed{seed}.json", "penalty=none", f"seed={seed}", test=0.25)
        for strength, (test, selection) in scores.items():
            make_record(
                folder / f"cdep_{strength}/seed{seed}.json",
                f"penalty.strength={strength}",
                f"seed={seed}",
                test=test + 0.1 * seed,
                selection=selection,
            )


@pytest.mark.parametrize(
    "said",
    [
        ("dataset=decoy_mnist", "penalty=rrr", "penalty.strength=0.125", "seed=3"),
        ("penalty.form=pair", "penalty.rules.relu=asymmetric", "training.patience=2"),
        ("dataset=color_mnist", "optimizer=sgd", "model=torchvision", "model.name=resnet18"),
        ("penalty=none", "dataset.train_size=300", "training.restore_best=true", "threads=1"),
        ("dataset=isic", "model=efficientnet_lite0", "penalty.strength=1", "model.weights=null"),
        ("dataset=isic", "model.name=resnet18"),
    ],
)
def test_the_command_of_a_run_composes_its_settings_again(said):
    config = plain(composed(*said))
    found, unknown = overrides(config)
    again = plain(composed(*(f"{key}={value}" for key, value in found.items())))
    assert deciding_settings(again) == deciding_settings(config) and unknown == []
    assert len(found) <= len(said) + 2  # nothing is said that is the default anyway


def test_a_sweep_is_one_command():
    words = command({"dataset": "mnist", "penalty": "rrr"}, seed=["0", "1"])
    assert words == "cdep-run -m dataset=mnist penalty=rrr seed=0,1"


def test_seeds_are_averaged_and_lambda_is_chosen_on_validation(tmp_path):
    grid(tmp_path)
    report = collect([tmp_path])
    assert report.problems == []
    cells = {(c.penalty, c.strength): c for c in report.cells}
    assert len(cells) == 4 and cells["cdep", 10].seeds == [0, 1]
    mean, spread, n = cells["cdep", 10].scores["test/accuracy"]
    assert (mean, n) == (pytest.approx(0.75), 2) and spread == pytest.approx(0.1 / 2**0.5)
    assert [s for (p, s), c in cells.items() if c.chosen and p == "cdep"] == [10]
    assert cells["cdep", 10].command == (
        "cdep-run -m dataset=decoy_digits penalty=cdep penalty.strength=10 seed=0,1"
    )


def test_what_is_shared_is_written_once_and_nothing_is_lost(tmp_path):
    grid(tmp_path)
    report = collect([tmp_path])
    data = report.data()
    for run_, written in zip(report.runs, data["runs"], strict=True):
        assert data["shared"]["decoy_digits"] | written["config"] == run_.config
        assert set(written["config"]) <= {k for k in run_.config if k.startswith("penalty")} | {
            "seed"
        }


def test_bad_records_are_named_and_the_rest_is_shown(tmp_path):
    good = make_record(tmp_path / "a/result.json")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/result.json").write_text('{"config": ')
    (tmp_path / "list").mkdir()
    (tmp_path / "list/result.json").write_text("[]")
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped/status.json").write_text(
        json.dumps({"state": "failed", "overrides": [], "error": "the loss is not finite"})
    )
    nan = make_record(tmp_path / "nan/result.json", "seed=1", test=float("nan"))
    make_record(tmp_path / "twice/result.json", "seed=1", test=0.5)
    make_record(tmp_path / "other/result.json", "seed=2", fingerprint="b" * 64)
    old = json.loads(good.read_text())
    old["config"]["training"]["gone"] = 1
    (tmp_path / "old").mkdir()
    (tmp_path / "old/result.json").write_text(json.dumps(old))
    report = collect([tmp_path, tmp_path / "absent"])
    problems = "\n".join(report.problems)
    for words in (
        "broken/result.json: damaged and left out",
        "list/result.json: left out, as it holds no config or no metrics",
        f"1 runs left out, as they are failed, such as {tmp_path}/stopped (the loss is not finite)",
        f"{nan}: test/accuracy is nan, left out of the tables",
        f"{nan}: left out for {tmp_path}/twice/result.json, same settings and seed",
        "saw different data (fingerprints aaaaaaaa, bbbbbbbb)",
        "1 records have the setting training.gone",
        "absent does not exist",
    ):
        assert words in problems
    assert len(report.runs) == 4
    assert {c.label for c in report.cells} == {
        "CDEP, centred, symmetric, data aaaaaaaa",
        "CDEP, centred, symmetric, data bbbbbbbb",
        "CDEP, centred, symmetric, +training.gone=1",
    }
    gone = next(run for run in report.runs if "gone" in run.label)
    assert "+training.gone=1" in gone.command


def test_without_runs_nothing_is_written_and_the_exit_code_is_1(tmp_path, capsys, monkeypatch):
    page, figures = tmp_path / "report.html", tmp_path / "figures"
    page.write_text("a good report")
    monkeypatch.setattr(
        sys, "argv", ["x", str(tmp_path / "typo"), "--out", str(page), "--figures", str(figures)]
    )
    with pytest.raises(SystemExit) as end:
        main()
    error = capsys.readouterr().err
    assert end.value.code == 1 and "no finished run" in error and "typo does not exist" in error
    assert page.read_text() == "a good report" and not figures.exists()


class Balance(HTMLParser):
    """Notes tags that are not closed in order, and every address that an element would load."""

    VOID = ("meta", "link", "br", "img", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an open tag and its addresses."""
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "action", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """The tag that is open must be this one."""
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_asks_the_network_for_nothing(tmp_path):
    grid(tmp_path)
    write_page(collect([tmp_path]), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert all(address.startswith(("data:", "#")) for address in parser.addresses)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|\bimport\b", page)
    assert set(re.findall(r"https?://[^\s\"'<>]+", page)) <= {"http://www.w3.org/2000/svg"}


def test_figures_are_written_as_svg_and_pdf_with_units(tmp_path, monkeypatch):
    grid(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cdep-report", "runs", "--figures", "figures"])
    main()
    drawn = (tmp_path / "figures/decoy_digits_lambda.svg").read_text()
    assert "test accuracy (%)" in drawn and "CDEP, centred" in drawn
    assert "time (s / epoch)" in (tmp_path / "figures/decoy_digits_cost.svg").read_text()
    assert (tmp_path / "figures/decoy_digits_lambda.pdf").read_bytes().startswith(b"%PDF")


def dom(page: Path, state: str = "", clock: str = "--virtual-time-budget=2000") -> str:
    """The page as Chromium has it after its script ran, without data, style and script."""
    text = dump_dom(page, state, clock)
    assert "data-ready" in text
    return without_script(text)


def section(text: str, name: str) -> str:
    """The HTML of one section."""
    return text.split(f'<section id="{name}"')[1].split("</section>")[0]


def rows(text: str) -> list[list[str]]:
    """The text of each cell of each row in the bodies of the tables."""
    return [
        [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<td.*?</td>", row)]
        for row in re.findall(r"<tr.*?</tr>", text)
        if "<td" in row
    ]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A page of eight runs, one of whose messages tries to be HTML."""
    folder = tmp_path_factory.mktemp("runs")
    grid(folder)
    report = collect([folder])
    report.problems.append("</script><script>document.title = 'taken'</script><b>bold</b>")
    write_page(report, folder / "report.html")
    return folder / "report.html"


@pytest.mark.browser
def test_the_browser_draws_every_section(page):
    text = dom(page)
    found = rows(section(text, "results"))
    assert found[0][:4] == ["none", "–", "2", "90.0 ± 0.0"] and "25.0 ± 0.0" in found[0]
    assert found[2][:3] == ["CDEP, centred, symmetric", "10", "2"] and found[2][-1] == "✓"
    assert section(text, "curves").count('role="img"') == 2  # test and val_shifted
    assert "λ = 10, 75.0 ± 7.1 % (n = 2), chosen" in section(text, "curves")
    assert "2 s, 2.0 × none" in section(text, "cost")
    assert "no" in section(text, "training").lower() and len(rows(section(text, "runs"))) == 8
    assert "&lt;b&gt;bold&lt;/b&gt;" in text and "<title>cdep-run: report</title>" in text


@pytest.mark.browser
def test_the_address_filters_sorts_and_compares(page):
    text = dom(page, "penalty=cdep&runs=test:desc&compare=2,7")
    listed = rows(section(text, "runs"))
    assert len(listed) == 6 and {row[3] for row in listed} == {"CDEP, centred, symmetric"}
    scores = [float(row[6]) for row in listed]
    assert scores == sorted(scores, reverse=True) and 'aria-sort="descending"' in text
    side = rows(section(text, "comparison"))
    differing = side[: [row[0] for row in side].index("val_shifted/accuracy (%)")]
    assert "penalty.strength" in {row[0] for row in differing}
    assert {row[0] for row in differing} <= {"penalty.strength", "seed"} | {
        row[0] for row in differing if row[0].startswith("penalty.")
    }
    metric = next(row for row in side if row[0] == "test/accuracy (%)")
    assert float(metric[3]) == pytest.approx(float(metric[2]) - float(metric[1]), abs=0.05)


@pytest.mark.browser
def test_a_state_that_means_nothing_is_ignored(page):
    text = dom(page, "penalty=magic&dataset=none&metric=x&compare=99,a&runs=nothing:up")
    assert len(rows(section(text, "runs"))) == 8


@pytest.mark.browser
def test_an_empty_page_says_so_in_the_browser(tmp_path):
    write_page(collect([tmp_path]), tmp_path / "report.html")
    assert "no finished run below" in dom(tmp_path / "report.html")


def many(folder: Path) -> Report:
    """500 runs of 100 settings, with the history of 20 epochs."""
    one = json.loads(make_record(folder / "one.json").read_text())
    columns = ["train/loss", "train/penalty", "train/accuracy", "val/loss", "seconds"]
    columns += [f"{split}/accuracy" for split in ("val", "val_shifted", "test", "test_clean")]
    one["history"] = [{key: (7 * e + 1) / 37 for key in columns} for e in range(20)]
    for seed in range(500):
        one["config"]["seed"] = seed % 5
        one["config"]["penalty"]["strength"] = float(seed // 5 + 1)
        file = folder / f"{seed}" / "result.json"
        file.parent.mkdir()
        file.write_text(json.dumps(one))
    return collect([folder])


def test_a_full_reproduction_stays_under_5_mb(tmp_path):
    report = many(tmp_path)
    assert len(report.runs) == 500 and len(report.cells) == 100
    file = tmp_path / "report.html"
    write_page(report, file)
    assert file.stat().st_size < 5e6


@pytest.mark.browser
def test_a_full_reproduction_opens_within_a_second(tmp_path):
    file = tmp_path / "report.html"
    write_page(many(tmp_path), file)
    ready = [re.search(r'data-ready="(\d+)"', dom(file, clock="--no-first-run")) for _ in range(3)]
    assert min(int(found[1]) for found in ready if found) < 1000  # ms


@pytest.mark.browser
def test_the_papers_tables_stand_first_with_their_notes(tmp_path):
    for seed in range(2):
        for penalty, test in (("none", 0.5), ("rrr", 0.9)):
            make_record(tmp_path / f"{penalty}{seed}.json", "dataset=decoy_mnist",
                        f"penalty={penalty}", f"seed={seed}", data="decoy_mnist",
                        test=test + seed / 10)  # fmt: skip
    report = collect([tmp_path])
    assert [table["name"] for table in report.tables] == ["table3", "runtime"]
    write_page(report, tmp_path / "report.html")
    text = section(dom(tmp_path / "report.html"), "papers")
    found = rows(text)
    assert found[0][:5] == ["none", "–", "2", "55.0 ± 7.1", "60.1 ± 5.1 (−5.1)"]
    assert "no runs" in found[1] and "<b>95.0 ± 7.1</b>" in text
    assert "paired t-test" in text and "cdep-run -m dataset=decoy_mnist penalty=rrr" in text
    assert "dataset.val_size: 6000" in text  # what all runs share
    other = section(dom(tmp_path / "report.html", "dataset=other"), "papers")
    assert len(rows(other)) == len(found)  # a data set that is not there filters nothing


def test_trained_runs_on_text_show_sentences_word_by_word(tmp_path):
    run(tmp_path / "none", "dataset=tiny_text", "penalty=none")
    report = collect([tmp_path])
    add_examples(report, 4)
    (shown,) = report.examples
    assert shown["columns"] == ["none"]
    assert [one["split"] for one in shown["sentences"]] == ["train", "train", "test", "test"]
    for one in shown["sentences"]:
        assert len(one["masked"]) == len(one["words"]) == len(one["scores"][0])
        assert "" not in one["words"] and 0 <= one["positive"][0] <= 1


def test_a_sentence_knows_which_word_must_not_matter():
    tokens = torch.tensor([[5, 0, 0], [7, 8, 0]])
    mask = torch.tensor([[True, False, False], [False, True, False]])
    split = TensorSplit(tokens, torch.tensor([0, 1]), lambda index: Groups(mask[index, None]))
    assert sentence(split, 1) == ([7, 8], [False, True], 1)


def test_trained_runs_show_pictures_and_training_curves(tmp_path, monkeypatch):
    for penalty in ("none", "rrr"):
        run(tmp_path / penalty, f"penalty={penalty}")
    page = tmp_path / "report.html"
    monkeypatch.setattr(sys, "argv", ["cdep-report", str(tmp_path), "--out", str(page)])
    main()
    report = collect([tmp_path])
    assert all(one.history and len(one.history["train/loss"]) == 3 for one in report.runs)
    # image, mask and a heat map of each of two nets, for six examples
    assert page.read_text().count("data:image/webp") == 6 * 4
    assert page.read_text().count('"says ') == 6 * 2
