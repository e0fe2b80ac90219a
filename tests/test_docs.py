"""The documentation: its examples run, its website builds with no broken link."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cdep_run.results.runs import load_runs
from cdep_run.tables import tables
from cdep_run.tables.spec import names, read

QUICKER = ("threads=1", "device=cpu", "loggers=csv")
ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r'^```(\w+)(?: title="(.+?)")?\n(.*?)^```', re.DOTALL | re.MULTILINE)


def test_each_example_of_extend_works_when_it_is_followed(tmp_path):
    commands = 0
    for language, title, text in BLOCK.findall((ROOT / "docs/extend.md").read_text()):
        if title:
            file = tmp_path / title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        assert title or language == "sh"
        if language != "sh":
            continue
        code, program, *arguments = shlex.split(text)
        assert (code, program) == ("PYTHONPATH=code", "cdep-run")
        done = subprocess.run(
            [sys.executable, "-c", "from cdep_run.train import main; main()", *arguments, *QUICKER],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": f"code{os.pathsep}{ROOT / 'src'}"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, text + done.stderr[-2000:]
        commands += 1
    assert commands == 4
    assert len(list(tmp_path.rglob("result.json"))) == 3 + 4


def test_every_page_is_linked_and_readme_is_short():
    readme = (ROOT / "README.md").read_text()
    assert readme.count("\n") <= 150
    for target in re.findall(r"\]\((docs/[^)#]+|[A-Z]+\.md)\)", readme):
        assert (ROOT / target).is_file(), target


def test_numbers_of_the_readme_are_those_of_the_published_records():
    papers = {name: read(name) for name in names() if name.startswith("table")}
    every = {f"{name}_every": replace(spec, every_strength=True) for name, spec in papers.items()}
    made = tables(papers | every, load_runs(ROOT / "outputs" / "published"))
    body = [row for _, table in made for row in table.body]
    published = [[text.removesuffix(" ✓") for text, _ in row] for row in body]
    results = (ROOT / "README.md").read_text().split("## Results")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in results.splitlines() if line.startswith("| ")]
    checked = 0
    for row in rows:
        cells = [cell.strip(" *") for cell in row]
        name, strength, seeds, *scores, _paper = cells
        wanted = {"–" if strength == "0" else strength, seeds, *scores}
        if "penalty" in cells or cells[0].startswith("---"):
            continue
        older = any(line[0].startswith(name) and wanted <= set(line) for line in published)
        assert cells in published or older, row
        checked += 1
    assert checked >= 9


@pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None,
    reason="pip install '.[docs]' for the website",
)
def test_the_website_builds_strictly(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "decompose" in (tmp_path / "api/index.html").read_text()
