"""What each word says about the class, before and after a penalty: coloured text, HTML and PNG.

    python -m cdep_run.evidence.words BEFORE AFTER --phrase "not good" --out words.html

BEFORE and AFTER are folders of finished runs on the same text, such as one without and one with a
penalty. The score of a word is what contextual decomposition says it contributes to the logit of
class 1 minus that of class 0, the biases of the last layer left out: a constant added to the logits
does not move it. Source: Murdoch et al. 2018.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from cdep_run.cd import decompose
from cdep_run.config.trust import add_plugins_option
from cdep_run.datasets.base import Bunch
from cdep_run.errors import CdepError, ConfigError
from cdep_run.evidence.explainers import without_last_bias
from cdep_run.evidence.words_page import Reading, Sentence, as_html, as_png
from cdep_run.files import write_atomic
from cdep_run.results.load import load
from cdep_run.results.record import read_result

UNKNOWN = 1


@torch.no_grad()
def group_scores(model: nn.Module, tokens: Tensor, masks: Tensor) -> Tensor:
    """CD score of groups of words of one sentence, in units of logits; float `[G]`.

    Args:
        model: in evaluation mode; maps tokens int64 `[N, T]` to two logits.
        tokens: int64 `[T]`, without padding.
        masks: bool `[G, T]`, the positions of each group.

    Raises:
        ConfigError: the model does not end in a linear layer with two outputs.
    """
    unbiased = without_last_bias(model, classes=2)
    relevant = decompose(unbiased, tokens[None], masks[None]).relevant[0]
    return relevant[:, 1] - relevant[:, 0]


def places(tokens: Sequence[int], phrase: Sequence[int]) -> list[int]:
    """Where `phrase` begins in `tokens`."""
    length = len(phrase)
    return [i for i in range(len(tokens) - length + 1) if list(tokens[i : i + length]) == [*phrase]]


def read(model: nn.Module, tokens: list[int], phrases: dict[str, list[int]]) -> Reading:
    """Score every word, and every place of each phrase, of one sentence without padding."""
    count = len(tokens)
    found = [(name, i, len(ids)) for name, ids in phrases.items() for i in places(tokens, ids)]
    masks = torch.eye(count + len(found), count, dtype=torch.bool)
    for row, (_, start, length) in enumerate(found, count):
        masks[row, start : start + length] = True
    sentence = torch.tensor(tokens)
    scores = group_scores(model, sentence, masks).tolist()
    named = [(name, score) for (name, *_), score in zip(found, scores[count:], strict=True)]
    with torch.no_grad():
        probability = float(model(sentence[None]).softmax(1)[0, 1])
    return Reading(scores[:count], named, probability)


def encode(text: str, vocabulary: list[str]) -> list[int]:
    """Token ids of the lower-cased words of `text`, 1 for a word that the model does not know.

    Raises:
        ConfigError: there is no word in it.
    """
    index = {word: i for i, word in enumerate(vocabulary)}
    tokens = [index.get(word, UNKNOWN) for word in text.lower().split()]
    if not tokens:
        raise ConfigError("a sentence or phrase is empty")
    unknown = [word for word in text.lower().split() if word not in index]
    if unknown:
        print(f"warning: not in the vocabulary: {', '.join(unknown)}", file=sys.stderr)
    return tokens


def known_phrases(phrases: Sequence[str], vocabulary: list[str]) -> dict[str, list[int]]:
    """Token ids of the phrases; one with an unknown word is named on stderr and left out.

    Raises:
        ConfigError: none is left.
    """
    encoded = {phrase.lower(): encode(phrase, vocabulary) for phrase in phrases}
    known = {phrase: ids for phrase, ids in encoded.items() if UNKNOWN not in ids}
    if phrases and not known:
        raise ConfigError(f"no phrase has all its words in the vocabulary: {', '.join(phrases)}")
    return known


def chosen(
    bunch: Bunch, split: str, count: int, phrases: dict[str, list[int]]
) -> list[tuple[list[int], int]]:
    """Token ids and label of `count` sentences, spread evenly over those that hold a phrase.

    Without phrases over all of the split.

    Raises:
        ConfigError: no such split, or no sentence of it holds a phrase.
    """
    if split not in bunch.splits:
        raise ConfigError(f"--split is {split}; {bunch.name} has {', '.join(bunch.splits)}")
    part = bunch.splits[split]
    sentences = [[i for i in row if i] for row in part.inputs.tolist()]
    holding = [
        (tokens, label)
        for tokens, label in zip(sentences, part.labels.tolist(), strict=True)
        if not phrases or any(places(tokens, ids) for ids in phrases.values())
    ]
    if not holding:
        raise ConfigError(f"no sentence of split {split} holds {' or '.join(phrases)}")
    count = min(count, len(holding))
    return [holding[i * len(holding) // count] for i in range(count)]


# --- As HTML and PNG -----------------------------------------------------------------------------


# --- The command ---------------------------------------------------------------------------------


def load_text(folder: Path) -> tuple[nn.Module, Bunch]:
    """The model and the data of a finished run on text of two classes.

    Raises:
        CdepError: it did not finish, or is not on such text.
    """
    model, data = load(folder)
    if data.vocabulary is None or data.num_classes != 2:
        raise ConfigError(f"{folder}: {data.name} is not text of two classes")
    return model, data


def run_name(folder: Path) -> str:
    """What to call the setting of a finished run: penalty, form and λ."""
    penalty = (read_result(folder) or {})["config"]["penalty"]
    name = " ".join([penalty["name"], *([penalty["form"]] if "form" in penalty else [])])
    return f"{name} λ = {penalty['strength']:g}"


def load_all(folders: Sequence[Path]) -> tuple[dict[str, nn.Module], Bunch]:
    """The models of finished runs on the same text of two classes, by name, and the data.

    Raises:
        CdepError: a run did not finish, is not on text, or not on the same as the first.
    """
    models, bunch = {}, None
    for folder in folders:
        model, data = load_text(folder)
        if bunch is not None and data.fingerprint != bunch.fingerprint:
            raise ConfigError(f"{folder} was trained on other data than {folders[0]}")
        name = run_name(folder)
        models[name if name not in models else f"{name}, {folder}"], bunch = model, data
    assert bunch is not None
    return models, bunch


def write(
    folders: Sequence[Path],
    out: Path,
    split: str = "test",
    count: int = 10,
    phrases: Sequence[str] = (),
    own: Sequence[str] = (),
) -> tuple[Path, Path]:
    """Score the words of sentences under finished runs; write `out`, a page, and .png beside it.

    Args:
        folders: of runs on the same text data.
        out: the page; a picture cannot have the same name.
        split: the split whose sentences are shown.
        count: how many of them.
        phrases: to be scored as a whole; only sentences of the split that hold one are shown.
        own: further sentences, words parted by spaces.

    Returns:
        The two files; both are made before either is written.

    Raises:
        CdepError: as `load_all`, `encode`, `known_phrases` and `chosen`; nothing to show.
    """
    picture = out.with_suffix(".png")
    if picture == out:
        raise ConfigError(f"--out is {out}; it names the page, such as words.html")
    if count < 0 or not (count or own):
        raise ConfigError("nothing to show: give --sentences 1 or more, or --text")
    models, bunch = load_all(folders)
    vocabulary = bunch.vocabulary or []
    known = known_phrases(phrases, vocabulary)
    shown: list[tuple[list[str], list[int], int | None]] = [
        (text.lower().split(), encode(text, vocabulary), None) for text in own
    ]
    for tokens, label in chosen(bunch, split, count, known) if count else ():
        shown.append(([vocabulary[i] for i in tokens], tokens, label))
    sentences = [
        Sentence(words, label, {name: read(m, tokens, known) for name, m in models.items()})
        for words, tokens, label in shown
    ]
    title = f"What the words say: {bunch.name}, sentences spread over "
    title += f"those of {split} with {' or '.join(known)}" if known else f"all of {split}"
    contents = as_html(sentences, title).encode(), as_png(sentences, title)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for file, content in zip((out, picture), contents, strict=True):
            write_atomic(file, content)
    except OSError as error:
        raise ConfigError(f"--out={out} cannot be written: {error}") from error
    return out, picture


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("runs", type=Path, nargs="+", help="folders of finished runs")
    add("--split", default="test", help="whose sentences")
    add("--sentences", type=int, default=10, help="how many, spread evenly over the split")
    add("--phrase", action="append", default=[], help="score it as a whole, where it stands")
    add(
        "--text", action="append", default=[], help="a sentence of your own, words parted by spaces"
    )
    add("--out", type=Path, default=Path("words.html"), help="and .png beside it")
    add_plugins_option(parser)
    given = parser.parse_args(arguments)
    try:
        for file in write(
            given.runs, given.out, given.split, given.sentences, given.phrase, given.text
        ):
            print(file)
    except CdepError as error:
        print(f"cdep_run.evidence.words: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
