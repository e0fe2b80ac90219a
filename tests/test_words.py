"""Word scores: what they are, that they do not move with the logits, and the page."""

from __future__ import annotations

from pathlib import Path

import torch

from cdep_run.datasets.base import Bunch
from cdep_run.models.lstm import RecurrentClassifier
from cdep_run.words import as_html, as_png, colour, group_scores, read

WORDS = ["<pad>", "<unk>", "not", "<good>", "film"]


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


def test_sentences_and_phrases_are_read_and_drawn(tmp_path: Path) -> None:
    bunch = Bunch("tiny", {}, 2, (4,), "val", "", vocabulary=WORDS)
    model, tokens = net(), torch.tensor([4, 2, 3])
    sentence = read(model, bunch, tokens, ["not <good>", "absent words"])
    assert sentence.words == ["film", "not", "<good>"]
    mask = torch.tensor([[False, True, True]])
    assert sentence.phrases == {"not <good>": group_scores(model, tokens, mask).item()}
    page = as_html([("positive", {"before": sentence})], "words")
    assert "&lt;good&gt;" in page and "<good>" not in page and "http" not in page
    as_png([("positive", {"before": sentence})], "words", tmp_path / "words.png")
    assert (tmp_path / "words.png").stat().st_size > 1000


def test_colours_tell_sign_and_size() -> None:
    assert colour(0, 1) == (255, 255, 255)
    assert colour(2, 2) == (86, 180, 233) and colour(-2, 2) == (230, 159, 0)
    assert colour(1, 2) != colour(2, 2)
