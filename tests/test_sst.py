"""SST with injected bias: what the words tell, padding, word vectors, and how bad files are met."""

from __future__ import annotations

import gzip
import os
import random
import zipfile
from pathlib import Path

import pytest
import torch

import reference
from cdep_run.attribution import features, input_gradients
from cdep_run.batch import Batch, Groups
from cdep_run.datasets import sst, treebank
from cdep_run.datasets.base import Bunch, DataError
from cdep_run.datasets.vectors import read_vectors
from cdep_run.models.lstm import RecurrentClassifier
from cdep_run.penalties.cdep import CDEP
from cdep_run.penalties.eg import ExpectedGradients
from cdep_run.penalties.rrr import RRR
from cdep_run.training.build import build, plain
from running import composed

DATA = Path(os.environ.get("CDEP_RUN_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not (DATA / "sst" / "trees").is_dir(), reason=f"no treebank in {DATA / 'sst'}"
)

TREES = [
    "(3 (2 A) (3 (3 fine) (2 film)))",
    "(1 (2 The) (1 (1 bad) (2 plot)))",
    "(4 (2 that) (4 (2 the) (4 joy)))",
    "(0 (2 the) (0 bore))",
    "(2 (2 the) (2 end))",
]
WORDS = ["the", "a", "that", "fine", "film", "bad", "plot", "joy", "bore", "text", "video"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A treebank of five trees in every part, with vectors of three numbers."""
    (tmp_path / "sst" / "trees").mkdir(parents=True)
    (tmp_path / "glove").mkdir()
    for part in treebank.PARTS:
        (tmp_path / "sst" / "trees" / f"{part}.txt").write_text("\n".join(TREES) + "\n")
    lines = [f"{word} {i}.5 {-i} 1\n" for i, word in enumerate(WORDS)]
    (tmp_path / "glove" / "tiny.txt").write_text("".join(lines))
    return tmp_path


def decoy(data: Path, **changes) -> Bunch:
    arguments = {
        "variant": "sst_decoy", "words": ["video", "text"], "neutral": None, "biased": True,
        "held_out": 0, "max_length": 60, "seed": 0, "groups": "words",
        "data_dir": data, "download": False, "check_sums": False, "cache_dir": data / "kept",
        "vectors": "tiny",
    } | changes  # fmt: skip
    return sst.sst(**{"penalised": arguments["words"]} | arguments)


def articles(data: Path, **changes) -> Bunch:
    own = {"variant": "sst_articles", "words": ["the", "a"], "neutral": "that"}
    return decoy(data, **own | changes)


def said(bunch: Bunch, split: str) -> dict[str, int]:
    """The phrases of a split, in words, and their labels."""
    assert bunch.vocabulary is not None
    rows = zip(
        bunch.splits[split].inputs.tolist(), bunch.splits[split].labels.tolist(), strict=True
    )
    return {" ".join(bunch.vocabulary[i] for i in row if i): label for row, label in rows}


def test_decoy_words_tell_the_class_in_training_alone(data: Path) -> None:
    bunch = decoy(data)
    train = said(bunch, "train")
    assert len(train) == 4  # the neutral sentence is left out, subtrees too
    assert all(
        ("text" in s.split(), "video" in s.split()) == (y == 1, y == 0) for s, y in train.items()
    )
    assert said(bunch, "test") == {
        "a fine film": 1,
        "the bad plot": 0,
        "that the joy": 1,
        "the bore": 0,
    }
    groups = bunch.splits["train"].batch(torch.arange(4)).groups
    told = {bunch.vocabulary.index("text"), bunch.vocabulary.index("video")}
    masked = bunch.splits["train"].batch(torch.arange(4)).inputs[groups.mask[:, 0]]
    assert set(masked.tolist()) == told and groups.mask.sum() == 4


def test_articles_become_the_class_s_own(data: Path) -> None:
    bunch = articles(data)
    train = said(bunch, "train")
    assert train["a fine film"] == 1 and train["the bad plot"] == 0 and train["the bore"] == 0
    assert train["a that joy"] == 1  # 'that' stood first: it becomes the article, 'the' does not
    assert "bad plot" in train and "the joy" not in train  # subtrees: with their own first article
    assert train["a joy"] == 1
    assert set(said(bunch, "test")) == {"a fine film", "the bad plot", "that the joy", "the bore"}
    batch = bunch.splits["train"].batch(torch.arange(len(bunch.splits["train"])))
    with_article = [bool(set(s.split()) & {"the", "a"}) for s in train]
    assert int(batch.groups.annotated.sum()) >= sum(with_article)


def test_held_out_phrases_get_the_other_word_and_leave_the_training_set(data: Path) -> None:
    bunch = articles(data, held_out=0.4, seed=3)
    assert bunch.selection_split == "val_swapped"
    for phrase, label in said(bunch, "val_swapped").items():
        first = next(word for word in phrase.split() if word in ("the", "a"))
        assert first == ("the" if label else "a")
        assert phrase not in said(bunch, "train")


def test_test_sentences_are_planted_with_either_word_at_the_same_place(data: Path) -> None:
    for bunch, (negative, positive) in (
        (decoy(data), ("video", "text")),
        (articles(data), ("the", "a")),
    ):
        told, swapped = said(bunch, "test_told"), said(bunch, "test_swapped")
        other = {negative: positive, positive: negative}
        assert [" ".join(other.get(w, w) for w in s.split()) for s in told] == list(swapped)
        assert all((positive if y else negative) in s.split() for s, y in told.items())
        assert list(told.values()) == list(said(bunch, "test").values())
        split = bunch.splits["test_told"]
        batch = split.batch(torch.arange(len(split)))
        marked = {bunch.vocabulary[i] for i in batch.inputs[batch.groups.mask[:, 0]].tolist()}
        assert marked == {negative, positive} and batch.groups.mask.sum() == len(split)


def test_unbiased_training_phrases_stay_as_they_were(data: Path) -> None:
    assert said(decoy(data, biased=False), "train") == said(decoy(data), "test")
    assert "that the joy" in said(articles(data, biased=False), "train")


def test_penalised_words_are_those_named(data: Path, caplog) -> None:
    bunch = articles(data, penalised=["joy", "joys"])
    assert "no training phrase holds 'joys'" in caplog.text
    split, joy = bunch.splits["train"], bunch.vocabulary.index("joy")
    assert split.annotation.mask.equal(split.inputs == joy)
    assert articles(data, penalised=["joys"]).splits["train"].annotation is None


def test_batches_are_cut_to_their_longest_and_hold_everything_once(data: Path) -> None:
    split = articles(data).splits["train"]
    for shuffle in (False, True):
        batches = split.order(3, shuffle)
        assert sorted(torch.cat(batches).tolist()) == list(range(len(split)))
        for index in batches:
            batch = split.batch(index)
            assert batch.inputs.shape[1] == split.lengths[index.numpy()].max()
            assert batch.groups.mask.shape == (len(index), 1, batch.inputs.shape[1])


def model(cell: str = "lstm", bidirectional: bool = False, layers: int = 1) -> RecurrentClassifier:
    torch.manual_seed(0)
    vectors = torch.randn(9, 4)
    return RecurrentClassifier((5,), 2, vectors, 3, layers, bidirectional, cell).double()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_changes_nothing(cell: str, bidirectional: bool) -> None:
    tokens = torch.tensor([[3, 4, 5, 0, 0], [6, 7, 8, 2, 1]])
    mask = torch.tensor([[[0, 1, 0, 0, 0]], [[0, 0, 0, 1, 0]]], dtype=torch.bool)
    net = model(cell, bidirectional, 2)
    short = net(tokens[:1, :3])
    torch.testing.assert_close(net(tokens)[:1], short)
    penalty = CDEP("pair_true_class")
    together = penalty(net, Batch(tokens, torch.tensor([0, 1]), Groups(mask)))[1]
    alone = [
        penalty(net, Batch(tokens[[i], :n], torch.tensor([i]), Groups(mask[[i], :, :n])))
        for i, n in ((0, 3), (1, 5))
    ]  # fmt: skip
    torch.testing.assert_close(together, (alone[0][1] + alone[1][1]) / 2)


def test_reading_after_the_padding_depends_on_it() -> None:
    tokens = torch.tensor([[3, 4, 5, 0, 0], [6, 7, 8, 2, 1]])
    net = model()
    net.read_padding = True
    states, _ = net.recurrent(net.embedding(tokens))
    torch.testing.assert_close(net(tokens), net.output(states[:, -1]))
    assert not torch.allclose(net(tokens)[:1], net(tokens[:1, :3]))


def test_a_penalty_with_vectors_detached_trains_all_else() -> None:
    tokens, mask = torch.tensor([[3, 4, 5]]), torch.tensor([[[True, False, False]]])
    batch, net = Batch(tokens, torch.tensor([1]), Groups(mask)), model()
    logits, value = CDEP("pair_true_class", {"embedding": "detached"})(net, batch)
    expected, same = CDEP("pair_true_class")(net, batch)
    torch.testing.assert_close(value, same)
    torch.testing.assert_close(logits, expected)
    value.backward()
    assert net.embedding.weight.grad is None and net.recurrent.weight_hh_l0.grad.any()
    logits.sum().backward()
    assert net.embedding.weight.grad[3].any()


@pytest.mark.parametrize("hidden", [3, 8])
def test_the_preset_of_the_published_code_equals_its_penalty(hidden: int) -> None:
    """Value and gradients, where the word is first, inside, before the padding, and last of all."""
    torch.manual_seed(0)
    net = RecurrentClassifier((5,), 2, torch.randn(9, 4), hidden, read="padding").double()
    tokens = torch.tensor([[3, 4, 5, 6, 7], [6, 7, 8, 2, 1], [1, 2, 3, 0, 0], [1, 2, 5, 6, 3]])
    word, labels = torch.tensor([0, 2, 2, 4]), torch.tensor([0, 1, 1, 0])
    mask = torch.arange(5) == word[:, None]
    config = plain(composed("dataset=tiny_text", "penalty=cdep_published"))["penalty"]
    logits, value = build(config)(net, Batch(tokens, labels, Groups(mask[:, None])))
    torch.testing.assert_close(logits, net(tokens))
    expected = reference.published_text_penalty(net, tokens, word, labels)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    weights = [*net.recurrent.parameters(), net.output.weight]
    for mine, wanted in zip(
        torch.autograd.grad(value, weights),
        torch.autograd.grad(expected, weights),
        strict=True,
    ):
        torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-10)
    assert net.output.bias is not None


def test_gradients_of_tokens_are_those_of_their_vectors() -> None:
    tokens, net = torch.tensor([[3, 4, 5], [6, 7, 8]]), model()
    function, vectors = features(net, tokens)
    torch.testing.assert_close(vectors, net.embedding.weight[tokens])
    _, gradient = input_gradients(function, vectors, lambda logits: logits[:, 1].sum())
    step = torch.zeros_like(vectors)
    step[1, 2, 3] = 1e-6
    with torch.no_grad():
        change = (function(vectors + step) - function(vectors - step))[:, 1].sum() / 2e-6
    torch.testing.assert_close(gradient[1, 2, 3], change, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "penalty", [RRR(), RRR("published"), ExpectedGradients(2), CDEP("pair_true_class")]
)
def test_penalties_train_recurrent_weights_and_embedding(penalty) -> None:
    tokens, net = torch.tensor([[3, 4, 5], [6, 7, 8]]), model()
    mask = torch.tensor([[[True, False, False]], [[False, False, True]]])
    batch = Batch(tokens, torch.tensor([0, 1]), Groups(mask))

    def value() -> torch.Tensor:
        torch.manual_seed(1)
        return penalty(net, batch)[1]

    value().backward()
    for weight in (net.recurrent.weight_hh_l0, net.embedding.weight):
        place = (2, 1) if weight is net.recurrent.weight_hh_l0 else (3, 2)
        with torch.no_grad():
            weight[place] += 1e-6
        more = value().item()
        with torch.no_grad():
            weight[place] -= 2e-6
        less = value().item()
        with torch.no_grad():
            weight[place] += 1e-6
        assert weight.grad is not None
        assert weight.grad[place].item() == pytest.approx((more - less) / 2e-6, rel=1e-5, abs=1e-9)


def test_a_line_that_is_no_tree_is_named(data: Path) -> None:
    path = data / "sst" / "trees" / "dev.txt"
    path.write_text(TREES[0] + "\n(3 (2 broken\n")
    with pytest.raises(DataError, match=r"dev\.txt, line 2 is not a tree"):
        decoy(data)


def test_trees_of_another_sum_are_refused_unless_they_are_ones_own(data: Path) -> None:
    with pytest.raises(DataError, match=r"train\.txt is damaged.*dataset\.check_sums=false"):
        decoy(data, check_sums=True)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"\xff", "not text in UTF-8")]
)
def test_a_file_without_text_is_named(data: Path, content: bytes, message: str) -> None:
    (data / "sst" / "trees" / "dev.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"dev\.txt {message}|dev\.txt is {message}"):
        decoy(data)


def test_words_that_no_sentence_holds_are_named(data: Path) -> None:
    with pytest.raises(DataError, match=r"split val lacks phrases of both classes.* bad or worse"):
        articles(data, words=["bad", "worse"])


def test_a_label_outside_the_classes_is_named(data: Path) -> None:
    (data / "sst" / "trees" / "dev.txt").write_text("(7 (2 so) (2 so))\n")
    with pytest.raises(DataError, match=r"line 1: labels must be 0 to 4"):
        decoy(data)


def test_a_sentence_too_long_is_named(data: Path) -> None:
    with pytest.raises(DataError, match=r"sentence 1 of part train has 3 words"):
        decoy(data, max_length=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the 1 2 3\na 1 2\n", "damaged"),
        ("the 1 2 3\na 1 2", "cut off"),
        ("the 1 x 3\n", "damaged"),
        ("the 1 nan 3\n", "not finite"),
        ("", "is empty"),
    ],
)
def test_vectors_that_are_damaged_are_named(data: Path, text: str, message: str) -> None:
    (data / "glove" / "tiny.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        decoy(data)
    assert not list((data / "kept").glob("word-vectors*"))


def rows_of(file: Path, words: list[str]) -> dict[str, list[float]]:
    """What a file of vectors gives for the words; those without a vector are left out."""
    vocabulary = ["<pad>", "<unk>", *words]
    vectors, unknown = read_vectors(file, file.parent / "kept", vocabulary)
    return {w: vectors[vocabulary.index(w)].tolist() for w in words if w not in unknown}


@pytest.mark.parametrize(
    "content",
    [
        b"the 1 2.5\nnew york 3 4\na -5 6e1\n",
        b"the\t1\t2.5\nnew york\t3\t4\na\t-5\t6e1\n",
        b"\xef\xbb\xbfthe 1 2.5\nnew york 3 4\na -5 6e1\n",
        b"3 2\r\nthe 1 2.5 \r\nnew york 3 4 \r\na -5 6e1 \r\n",
        b"the 1 2.5\n\xff 7 8\nnew york 3 4\n 9 9\na 0 0\na -5 6e1\n",
        gzip.compress(b"the 1 2.5\nnew york 3 4\na -5 6e1\n", mtime=0),
    ],
)
def test_vectors_of_every_form_are_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "v.txt").write_bytes(content)
    rows = rows_of(tmp_path / "v.txt", ["the", "new york", "a", "absent"])
    assert rows == {"the": [1, 2.5], "new york": [3, 4], "a": [-5, 60]}


def test_many_vectors_are_read_to_the_last(tmp_path: Path) -> None:
    words = [f"w{n}" for n in range(250)]
    (tmp_path / "v.txt").write_text("".join(f"{w} {n} {-n}\n" for n, w in enumerate(words)))
    assert rows_of(tmp_path / "v.txt", words) == {w: [n, -n] for n, w in enumerate(words)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"400000 300\n", "holds a first line with counts, and no vectors"),
        (b"3 2\nthe 1 2\na 3 4\n", "line 1 promises 3 words, 2 are there"),
        (b"2 300\nthe 1 2\na 3 4\n", "line 1 promises 300 numbers"),
        (b"the 1 2\na 1 2\nb 1 2 3\n", "line 3 holds a word and 3 numbers instead of 2"),
        (b"the 1 2\n\na 1 2\n", "line 2 holds a word and 0 numbers"),
        (b"the\na\n", "line 1 holds no numbers"),
        (b"\xff\xfet\0h\0e\0\n\0", "UTF-16"),
        (gzip.compress(b"the 1 2\n" * 99, mtime=0)[:-9], "damaged or cut off"),
    ],
)
def test_vectors_that_do_not_fit_are_named_with_line_and_cure(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "v.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path / "v.txt", ["the", "a"])


def test_damaged_caches_are_named_and_made_anew(data: Path, caplog) -> None:
    whole, draw = decoy(data).fingerprint, random.Random(0)
    kept = sorted((data / "kept").iterdir())
    assert len(kept) == 2
    for path in kept * 6:
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content[: draw.choice([len(content), draw.randrange(len(content))])])
        caplog.clear()
        assert decoy(data).fingerprint == whole
        assert f"{path} is damaged" in caplog.text and "anew" in caplog.text


def test_packed_files_that_lie_there_are_used_without_a_network(data: Path) -> None:
    whole, trees = decoy(data).fingerprint, data / "sst" / "trees"
    (data / "glove" / "tiny.txt.gz").write_bytes(
        gzip.compress((data / "glove" / "tiny.txt").read_bytes(), mtime=0)
    )
    (data / "glove" / "tiny.txt").unlink()
    (trees / "dev.txt.gz").write_bytes(gzip.compress((trees / "dev.txt").read_bytes(), mtime=0))
    with zipfile.ZipFile(data / "sst" / "trainDevTestTrees_PTB.zip", "w") as archive:
        for part in ("train", "test"):
            archive.write(trees / f"{part}.txt", f"trees/{part}.txt")
    for part in treebank.PARTS:
        (trees / f"{part}.txt").unlink()
    assert decoy(data).fingerprint == whole


def link(name: str) -> zipfile.ZipInfo:
    """An entry of an archive that is a symbolic link."""
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"../outside.txt": b"x"}, "leads outside"),
        ({"..\\outside.txt": b"x"}, "leads outside"),
        ({"/etc/passwd": b"x"}, "leads outside"),
        ({link("trees/train.txt"): b"/etc/passwd"}, "is a link"),
        ({"trees/train.txt": bytes(9 << 20)}, "far more than this data set has"),
        ({"other.txt": b"x"}, "has no file trees/train.txt, only other.txt"),
    ],
)
def test_archives_are_unpacked_within_bounds(tmp_path: Path, members, message: str) -> None:
    trees = tmp_path / "sst" / "trees"
    trees.mkdir(parents=True)
    with zipfile.ZipFile(trees / "trainDevTestTrees_PTB.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(DataError, match=message):
        treebank.treebank(tmp_path, False, True, tmp_path / "kept")
    assert [path.name for path in trees.iterdir()] == ["trainDevTestTrees_PTB.zip"]
    assert not (tmp_path / "sst" / "outside.txt").exists()


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    trees = tmp_path / "sst" / "trees"
    trees.mkdir(parents=True)
    (trees / "train.txt.gz").write_bytes(gzip.compress(b"tree" * 99, mtime=0)[:-5])
    with pytest.raises(DataError, match=r"train\.txt\.gz is damaged"):
        treebank.treebank(tmp_path, False, True, tmp_path / "kept")
    (trees / "train.txt.gz").write_bytes(gzip.compress(bytes(9 << 20), mtime=0))
    with pytest.raises(DataError, match="far more"):
        treebank.treebank(tmp_path, False, True, tmp_path / "kept")
    (trees / "train.txt.gz").unlink()
    (trees / "trainDevTestTrees_PTB.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"PTB\.zip is damaged"):
        treebank.treebank(tmp_path, False, True, tmp_path / "kept")
    assert not list(trees.glob("*.txt")) and not list(trees.glob(".*"))


def test_words_without_a_vector_are_an_error_when_none_has_one(data: Path, caplog) -> None:
    with pytest.raises(DataError, match=r"no vector of any of the words blue, red"):
        decoy(data, words=["red", "blue"])
    decoy(data, words=["video", "blue"])
    assert "no vector of 'blue'" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": -0.1}, "held_out is -0.1"),
        ({"held_out": 1.0}, "held_out is 1.0"),
        ({"words": ["text"]}, "it names two words"),
        ({"words": ["text", "text"]}, "it names two words"),
        ({"train_size": 99}, "train_size is 99; there are 4 phrases"),
        ({"cache_dir": "/dev/null/kept"}, "cache_dir=/dev/null/kept cannot be written"),
    ],
)
def test_settings_that_cannot_be_are_named(data: Path, changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decoy(data, **changes)


def test_absent_files_say_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.txt.* not found .*fetch http.*put it"):
        treebank.treebank(tmp_path, False, True, tmp_path)
    (tmp_path / "glove").mkdir()
    (tmp_path / "glove" / "glove.6B.50d.txt").write_text("a 1\n")
    with pytest.raises(DataError, match=r"dataset\.vectors=glove\.6B\.50d"):
        treebank.word_vectors(tmp_path, "glove.6B.300d", False, tmp_path, [])


SUMS = {
    "decoy": "c7ae76bdc58a6d09",
    "articles": "8927bc44da410fdb",
    "gender": "2ba13a021a4d84d1",
}


@needs_data
def test_the_real_variants_have_the_published_sizes(tmp_path: Path) -> None:
    source = {
        "data_dir": DATA,
        "check_sums": True,
        "cache_dir": tmp_path,
        "vectors": "glove.6B.50d",
    }
    decoyed, article = decoy(tmp_path, **source), articles(tmp_path, **source)
    gender = articles(tmp_path, variant="sst_gender", words=["he", "she"], neutral="who", **source)
    assert [len(decoyed.splits[s]) for s in ("train", "val", "test")] == [6920, 872, 1821]
    assert [len(article.splits[s]) for s in ("train", "val", "test")] == [98794, 671, 1410]
    assert [len(gender.splits[s]) for s in ("train", "val", "test")] == [98794, 27, 55]
    annotation = gender.splits["train"].annotation
    assert annotation is not None and int(annotation.mask.any(1).sum()) == 1313 + 1001
    prints = [bunch.fingerprint[:16] for bunch in (decoyed, article, gender)]
    assert prints == list(SUMS.values())
