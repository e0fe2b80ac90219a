"""Word scores: by hand, what must not move them, the two files, and bad input."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cdep_run.errors import CdepError
from cdep_run.evidence.words import chosen, encode, group_scores, known_phrases, places, read, write
from cdep_run.evidence.words_page import Reading, Sentence, as_html, colour
from cdep_run.models.lstm import RecurrentClassifier
from cdep_run.results.load import load
from running import run
from tiny_data import VOCABULARY, tiny_text


def net() -> RecurrentClassifier:
    torch.manual_seed(0)
    return RecurrentClassifier((4,), 2, torch.randn(5, 4), 3).double().eval()


def test_a_group_of_all_words_scores_what_the_logits_say_without_bias() -> None:
    model, tokens = net(), torch.tensor([2, 3, 4])
    score = group_scores(model, tokens, torch.ones(1, 3, dtype=torch.bool))
    logits = model(tokens[None])[0] - model.output.bias
    torch.testing.assert_close(score[0], (logits[1] - logits[0]).detach())


def test_a_constant_added_to_the_logits_does_not_move_scores() -> None:
    model, tokens, masks = net(), torch.tensor([2, 3, 4]), torch.eye(3, dtype=torch.bool)
    before, bias = group_scores(model, tokens, masks), model.output.bias.clone()
    with torch.no_grad():
        model.output.bias += 5
    assert torch.equal(before, group_scores(model, tokens, masks))
    assert torch.equal(model.output.bias, bias + 5)  # the model is left as it was


class Bag(nn.Module):
    """The sum of the words' vectors, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(VOCABULARY), 3)
        self.head = nn.Linear(3, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens).sum(1))


def test_scores_of_a_bag_of_words_are_what_one_works_out_by_hand() -> None:
    torch.manual_seed(0)
    model, tokens = Bag(), [4, 5, 3, 6, 5, 3]
    found = read(model, tokens, {"not yes": [5, 3]})
    with torch.no_grad():
        weight = model.head.weight[1] - model.head.weight[0]
        each = (model.embedding(torch.tensor(tokens)) @ weight).tolist()
        bias = float(model.head.bias.diff())
    assert found.words == pytest.approx(each, abs=1e-6)
    assert [name for name, _ in found.phrases] == ["not yes", "not yes"]
    whole = [each[1] + each[2], each[4] + each[5]]
    assert [score for _, score in found.phrases] == pytest.approx(whole, abs=1e-6)
    log_odds = torch.tensor(sum(each) + bias)
    assert found.probability == pytest.approx(float(log_odds.sigmoid()), abs=1e-6)


def test_phrases_are_found_wherever_they_stand() -> None:
    assert places([5, 3, 5, 3, 5], [5, 3]) == [0, 2]
    assert places([5, 3, 5], [5, 3, 5]) == [0] and places([5], [5, 3]) == []


def test_sentences_are_spread_over_those_that_hold_a_phrase() -> None:
    bunch = tiny_text(0, 64)
    everything = chosen(bunch, "test", 100, {})
    assert len(everything) == 24 and all(0 not in tokens for tokens, _ in everything)
    held = chosen(bunch, "test", 3, {"yes": [3]})
    assert len(held) == 3 and all(3 in tokens and label == 1 for tokens, label in held)


def test_colours_tell_sign_and_size() -> None:
    assert colour(0, 1) == (255, 255, 255)
    assert colour(2, 2) == (86, 180, 233) and colour(-2, 2) == (230, 159, 0)
    assert colour(1, 2) != colour(2, 2)


def test_a_score_has_the_same_colour_under_every_model() -> None:
    readings = {"before": Reading([4.0, 1.0], [], 0.9), "after": Reading([1.0, 0.5], [], 0.7)}
    page = as_html([Sentence(["so", "good"], 1, readings)], "words")
    backgrounds = dict(re.findall(r"(rgb\([^)]*\))\">\w+<small>([^<]*)", page)[::-1])
    assert sorted(backgrounds.values()) == ["+0.50", "+1.00", "+4.00"]
    assert backgrounds[f"rgb{colour(4, 4)}"] == "+4.00"
    assert backgrounds[f"rgb{colour(1, 4)}"] == "+1.00"


def test_words_and_titles_are_escaped_in_html() -> None:
    reading = Reading([1.0, -0.5], [("<i>", 0.1)], 0.5)
    page = as_html([Sentence(["<b>", "x&y"], 0, {"<script>": reading})], "a < b")
    for words in ("&lt;b&gt;", "x&amp;y", "&lt;i&gt;", "&lt;script&gt;", "a &lt; b"):
        assert words in page
    assert "<script>" not in page and "<i>" not in page


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        run(folder / str(seed), "dataset=tiny_text", "penalty=none", f"seed={seed}")
    return [folder / "0", folder / "1"]


def test_the_page_holds_the_scores_of_both_models_and_nothing_from_outside(runs, tmp_path) -> None:
    page, picture = write(runs, tmp_path / "new" / "words.html", count=2, own=["IS yes"],
                          phrases=["not no", "yes"])  # fmt: skip
    text = page.read_text()
    assert "none λ = 0 says" in text and f"none λ = 0, {runs[1]} says" in text
    assert "http:" not in text and "https:" not in text and "src=" not in text
    assert "own sentence" in text and "is positive" in text and "as a whole" in text
    for folder in runs:
        model, _ = load(folder)
        for score in read(model, [4, 3], {}).words:
            assert f"<small>{score:+.2f}</small>" in text
    data = picture.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert width > 500 and height > 300
    assert [file.name for file in sorted(page.parent.iterdir())] == ["words.html", "words.png"]


def test_a_trained_net_takes_the_words_that_tell_the_class_as_what_they_are(runs) -> None:
    model, _ = load(runs[0])
    no, yes = (read(model, [4, word], {}).words[1] for word in (2, 3))
    assert no < 0 < yes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "tset"}, "--split is tset; tiny_text has train, val, test"),
        ({"phrases": ["no yes"]}, "no sentence of split test holds no yes"),
        ({"phrases": ["wonderful"]}, "no phrase has all its words in the vocabulary: wonderful"),
        ({"phrases": [" "]}, "empty"),
        ({"own": [""]}, "empty"),
        ({"count": 0}, "nothing to show"),
        ({"count": -1}, "nothing to show"),
    ],
)
def test_what_cannot_be_shown_is_refused_and_nothing_is_written(
    runs, tmp_path, arguments, words
) -> None:
    with pytest.raises(CdepError, match=re.escape(words)):
        write(runs, tmp_path / "words.html", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to_is_named(runs, tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CdepError, match="cannot be written"):
        write(runs, tmp_path / "file" / "words.html", own=["yes"], count=0)
    with pytest.raises(CdepError, match="names the page"):
        write(runs, tmp_path / "words.png")


def test_an_unknown_word_is_named(capsys) -> None:
    assert encode("Is splendid yes", VOCABULARY) == [4, 1, 3]
    assert "splendid" in capsys.readouterr().err
    assert known_phrases(["not splendid", "not yes"], VOCABULARY) == {"not yes": [5, 3]}
    assert "splendid" in capsys.readouterr().err


def test_images_and_other_data_are_refused(runs, tmp_path) -> None:
    run(tmp_path / "images", "penalty=none", "training.epochs=1")
    with pytest.raises(CdepError, match="not text"):
        write([tmp_path / "images"], tmp_path / "words.html")
    other = ("dataset=tiny_text", "dataset.seed=1", "penalty=none", "training.epochs=1")
    run(tmp_path / "other", *other)
    with pytest.raises(CdepError, match="other data"):
        write([runs[0], tmp_path / "other"], tmp_path / "words.html")


def test_the_command_says_in_one_line_what_is_wrong(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cdep_run.evidence.words", "absent", "absent"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[1] / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("cdep_run.evidence.words: error: absent holds no finished run")
