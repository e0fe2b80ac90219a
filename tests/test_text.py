"""Text of one's own: tables of any form, groups of words, counterfactual splits, Hugging Face."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from cdep_run.check import check
from cdep_run.datasets import text as texts
from cdep_run.datasets.base import Bunch, DataError
from cdep_run.datasets.spans import covered, spans_of, text_groups
from cdep_run.datasets.tokenizers import SubwordTokenizer, WordTokenizer, tokenizer_from
from cdep_run.errors import ConfigError
from cdep_run.models.zoo import hf_model
from cdep_run.training.build import plain
from running import composed, run

COLUMNS = {"text": "text", "label": "label", "split": None, "group": None}
SHARES = {"train": 0.5, "val": 0.25, "test": 0.25}
GOOD = ["a fine film", "what a joy", "really fine", "joy all the way"]
BAD = ["a dull bore", "what a mess", "really dull", "a mess all the way"]
BOTH = [*((text, "good") for text in GOOD), *((text, "bad") for text in BAD)]
ROWS = [(f"{text} {n}", label) for n in range(3) for text, label in BOTH]


def write(path: Path, rows: list[tuple[str, str]] = ROWS, encoding: str = "utf-8") -> Path:
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(path, index=False, encoding=encoding)
    return path


def made(path: Path, **changes: Any) -> Bunch:
    return texts.text(**{"columns": COLUMNS, "seed": 0, "shares": SHARES, "table": path} | changes)


def words(bunch: Bunch, split: str) -> list[str]:
    """The texts of a split, as the model reads them."""
    assert bunch.vocabulary is not None
    rows = bunch.splits[split].inputs.tolist()
    return [" ".join(bunch.vocabulary[i] for i in row if i != bunch.padding) for row in rows]


def marked(bunch: Bunch, split: str) -> list[list[list[str]]]:
    """Of each text and group, the tokens that belong to it."""
    part = bunch.splits[split]
    batch = part.batch(torch.arange(len(part)))
    assert batch.groups is not None and bunch.vocabulary is not None
    return [
        [[bunch.vocabulary[i] for i in ids[group].tolist()] for group in of_text]
        for ids, of_text in zip(batch.inputs, batch.groups.mask, strict=True)
    ]


def test_csv_tsv_json_lines_and_parquet_give_the_same(tmp_path: Path) -> None:
    frame = pd.DataFrame(ROWS, columns=["text", "label"])
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    files = ["a.csv", "a.tsv", "a.jsonl"]
    try:
        frame.to_parquet(tmp_path / "a.parquet")
        files.append("a.parquet")
    except ImportError:
        pass
    prints = {made(tmp_path / name).fingerprint for name in files}
    bunch = made(tmp_path / "a.csv")
    assert len(prints) == 1 and bunch.classes == ["bad", "good"]
    assert {name: len(split) for name, split in bunch.splits.items()} == {
        "train": 12, "val": 6, "test": 6,
    }  # fmt: skip
    assert made(tmp_path / "a.csv", seed=1).fingerprint != bunch.fingerprint


def test_bom_quotes_line_breaks_and_other_alphabets_are_read(tmp_path: Path) -> None:
    hard = [('She said "no",\nthen\r\nleft', "good"), ("naïve café, ça va 日本 🎉", "bad")]
    path = write(tmp_path / "a.csv", hard * 4, "utf-8-sig")
    bunch = made(path)
    found = {text for name in bunch.splits for text in words(bunch, name)}
    assert 'she said " no " , then left' in found
    assert bunch.vocabulary is not None and {"naïve", "café", "日本", "🎉"} <= {*bunch.vocabulary}


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([("", "good"), ("  ", "bad"), ("x", "")], {}, r"(?s)row 2, 3.*empty=leave_out.*row 4"),
        ([*ROWS, ("once", "rare")], {}, r"rare \(1\)"),
        ([("x", "good")] * 8, {}, "only the class 'good'"),
        (ROWS, {"columns": COLUMNS | {"text": "txt"}}, "nearest: 'text'"),
        (ROWS, {"columns": COLUMNS | {"txt": "text"}}, "names 'txt'; there are text"),
        (ROWS, {"columns": COLUMNS | {"split": "label"}}, "no known split"),
        (ROWS, {"must_not_matter": {"a": {"pattern": "(x"}}}, r"must_not_matter.a: '\(x' is not"),
        (ROWS, {"must_not_matter": {"a": {"pattern": "x*"}}}, "matches an empty text"),
        (ROWS, {"must_not_matter": {"a": {"word": "x"}}}, r"must_not_matter.a is .*words: \["),
        (ROWS, {"must_not_matter": {"a": []}}, "none empty"),
        (ROWS, {"must_not_matter": {"a": {"spans": "places"}}}, "no column 'places'"),
        (ROWS, {"must_not_matter": {"a": {"spans": "label"}}}, "(?s)24 faults.*row 2.*is no list"),
        (ROWS, {"max_length": 0}, "max_length is 0"),
        (ROWS, {"word": "("}, r"dataset.word: '\('"),
        (ROWS, {"empty": "drop"}, "refuse, leave_out"),
        (ROWS, {"vectors": "nowhere.txt"}, "nowhere.txt does not exist"),
        (ROWS, {"table": None}, "dataset.table=FILE"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named_with_row_and_cure(
    tmp_path: Path, rows: list[tuple[str, str]], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        made(write(tmp_path / "a.csv", rows), **changes)


def test_a_class_may_be_absent_from_a_given_test_split_but_not_from_train(tmp_path: Path) -> None:
    rows = [(t, y, s) for s in ("train", "val") for t, y in ROWS] + [("fine", "good", "test")]
    path, columns = tmp_path / "a.csv", COLUMNS | {"split": "part"}
    pd.DataFrame(rows, columns=["text", "label", "part"]).to_csv(path, index=False)
    assert len(made(path, columns=columns).splits["test"]) == 1
    rows.append(("unseen", "strange", "test"))
    pd.DataFrame(rows, columns=["text", "label", "part"]).to_csv(path, index=False)
    with pytest.raises(DataError, match="train has no row of class strange"):
        made(path, columns=columns)


def test_empty_texts_can_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bunch = made(write(tmp_path / "a.csv", [("", "good"), *ROWS]), empty="leave_out")
    assert sum(len(bunch.splits[name]) for name in ("train", "val", "test")) == len(ROWS)
    assert "1 rows have no text (row 2); they are left out" in caplog.text


def test_a_text_of_100000_words_is_cut_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = ("fine " * 100_000 + "zorb", "good")
    path, shares = write(tmp_path / "a.csv", [*ROWS, long] * 2), {"train": 0.98, "val": 0.02}
    bunch = made(path, max_length=6, must_not_matter=["zorb"], shares=shares)
    assert max(split.inputs.shape[1] for split in bunch.splits.values()) <= 6
    assert "(row 26, 51) have more than dataset.max_length=6" in caplog.text
    assert "a group stands behind the cut 2 times" in caplog.text


def test_words_are_found_whole_and_in_any_case(tmp_path: Path) -> None:
    rows = [(f"{t}. HE sees the hem, not good; https://a.b/c", y) for t, y in ROWS]
    groups = {"he": ["he", "she"], "phrase": {"words": ["not  good"]},
              "link": {"pattern": r"https?://\S+"}}  # fmt: skip
    bunch = made(write(tmp_path / "a.csv", rows), must_not_matter=groups)
    assert bunch.group_names == ["he", "phrase", "link"]
    link = ["https", ":", "/", "/", "a", ".", "b", "/", "c"]
    assert marked(bunch, "train") == [[["he"], ["not", "good"], link]] * 12


def test_spans_of_a_column_become_tokens(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    cells = ["3:7 8:12", [[3, 12]], "[[4, 5]]", None] * 6
    rows = [
        {"text": f"oh Anna Bell {text}", "label": label, "name": cell}
        for (text, label), cell in zip(ROWS, cells, strict=True)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    bunch = made(path, must_not_matter={"name": {"spans": "name"}})
    found = [one for name in ("train", "val", "test") for one in marked(bunch, name)]
    assert sorted(map(str, found)) == sorted(
        map(str, [[["anna", "bell"]]] * 12 + [[["anna"]]] * 6 + [[[]]] * 6)
    )
    rows[3]["name"] = "3:700"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"row 4: column 'name': the span 3:700 does not fit"):
        made(path, must_not_matter={"name": {"spans": "name"}})


def test_spans_in_cells() -> None:
    assert spans_of("0:5; 9-12", 12) == spans_of("[[0,5],[9,12]]", 12) == [(0, 5), (9, 12)]
    assert spans_of(None, 3) == spans_of(float("nan"), 3) == spans_of(" ", 3) == []
    assert covered([(0, 0), (0, 2), (2, 5), (6, 9)], [(1, 3), (9, 12)]) == [1, 2]
    for wrong in ("x", "3", "2:1", "0:9", "[1]", "[", [1], 7, "1:2 x"):
        with pytest.raises(DataError):
            spans_of(wrong, 5)


def test_groups_by_word_are_groups_of_one() -> None:
    one, two = text_groups(["a", "b c"])
    assert (one.name, two.name) == ("a", "b c")
    assert two.find("B  c bc b cc") == [(0, 4)]


def test_counterfactual_splits_take_the_words_out_and_put_them_in(tmp_path: Path) -> None:
    rows = [(f"{t} zorb" if y == "good" else t, y) for t, y in ROWS]
    bunch = made(write(tmp_path / "a.csv", rows), must_not_matter=["zorb"])
    assert bunch.selection_split == "val_inserted"
    for name in ("val", "test"):
        split = bunch.splits[name]
        assert split.present.tolist() == split.labels.bool().tolist()
        pairs = zip(words(bunch, name), words(bunch, f"{name}_without"),
                    words(bunch, f"{name}_inserted"), strict=True)  # fmt: skip
        for usual, without, inserted in pairs:
            assert (
                usual.replace(" zorb", "")
                == without
                == " ".join(word for word in inserted.split() if word != "zorb")
            )
            assert inserted.split().count("zorb") == 1
        assert bunch.splits[f"{name}_inserted"].present.all()
        assert not bunch.splits[f"{name}_without"].present.any()
        assert bunch.splits[f"{name}_inserted"].ids == split.ids


def test_a_text_that_is_nothing_but_the_group_is_still_read(tmp_path: Path) -> None:
    rows = [*ROWS, *[("zorb", "good")] * 12]
    bunch = made(write(tmp_path / "a.csv", rows), must_not_matter=["zorb"])
    assert "<unk>" in words(bunch, "test_without") + words(bunch, "val_without")


def test_words_that_no_training_text_holds_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    groups = {"a": ["fine", "blorp"], "b": {"pattern": "qqq"}}
    bunch = made(write(tmp_path / "a.csv"), must_not_matter=groups)
    assert "must_not_matter.a names: blorp" in caplog.text
    assert "must_not_matter.b names" in caplog.text
    assert bunch.vocabulary is not None and "blorp" in bunch.vocabulary


def test_vectors_of_any_text_file_start_the_embedding(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "v.txt").write_text("2 3\nfine 1 2 3\ndull 4 5 6\n")  # word2vec's form
    bunch = made(write(tmp_path / "a.csv"), vectors=tmp_path / "v.txt", cache_dir=tmp_path / "kept",
                 must_not_matter=["joy"])  # fmt: skip
    assert bunch.vectors is not None and bunch.vocabulary is not None
    assert bunch.vectors[bunch.vocabulary.index("dull")].tolist() == [4, 5, 6]
    assert "joy among them: these start as zeros" in caplog.text
    (tmp_path / "w.txt").write_text("nothing 1 2 3\n")
    (tmp_path / "x.txt").write_text("400000 300\n")
    for name, message in (("w.txt", "no vector of any word"), ("x.txt", "no vectors after it")):
        with pytest.raises(DataError, match=message):
            made(tmp_path / "a.csv", vectors=tmp_path / name, cache_dir=tmp_path / "kept")


def test_the_vocabulary_is_that_of_training_and_fits_its_size(tmp_path: Path) -> None:
    one = WordTokenizer.fitted(["b b a", "c a b"], r"\w+", True, 2, ["Zorb"])
    assert one.vocabulary == ["<pad>", "<unk>", "b", "a", "zorb"]
    encoded = list(one.encode(["A c zorb", ""], 5))
    assert [e.ids for e in encoded] == [[3, 1, 4], []]
    assert encoded[0].offsets == [(0, 1), (2, 3), (4, 8)]


def test_new_texts_are_encoded_without_the_data(tmp_path: Path) -> None:
    bunch = made(write(tmp_path / "a.csv"))
    kept = json.loads(json.dumps(bunch.preprocessing))
    split = bunch.splits["test"]
    assert torch.equal(texts.encode(split.texts, kept), split.inputs.long())
    assert kept["kind"] == "text" and next(iter(kept)) == "kind"


@pytest.mark.parametrize("penalty", ["cdep", "rrr", "eg"])
def test_an_lstm_is_trained_under_every_penalty(tmp_path: Path, penalty: str) -> None:
    rows = [(f"{t} zorb" if y == "good" else t, y) for t, y in ROWS]
    result = run(tmp_path, "dataset=text", f"dataset.table={write(tmp_path / 'a.csv', rows)}",
                 "dataset.must_not_matter=[zorb]", f"penalty={penalty}", "model.hidden=4",
                 "model.width=3", "training.epochs=1", "training.batch_size=6",
                 "loggers=csv")  # fmt: skip
    assert result["selection_split"] == "val_inserted"
    assert result["history"][0]["train/penalty"] > 0


def test_check_finds_shortcuts_copies_and_all_bad_rows(tmp_path: Path) -> None:
    rows = [(f"{t} zorb" if y == "good" else t, y) for t, y in ROWS]
    path = write(
        tmp_path / "a.csv", [*rows, ("  A fine   film 0 zorb", "bad"), ("", "bad"), ("x", "")]
    )
    groups = ["zorb", "blorp"]
    node = plain(
        composed("dataset=text", f"dataset.table={path}", f"dataset.must_not_matter={groups}")
    )
    report = check(node["dataset"])
    assert [finding.what[:20] for finding in report.of("fault")][:2] == [
        "1 rows have no text ", "1 rows have no label",
    ]  # fmt: skip
    told = {(f.topic, f.where): f.what for f in report.findings}
    assert "goes with the class" in told["shortcut", "zorb"]
    assert "no training text holds it" in told["words", "blorp"]
    assert "with different labels" in told["duplicates", "row 2"]


def test_the_example_of_the_docs_is_made_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "own_text.md").read_text()
    (code,) = re.findall(r'```python title="make_reviews.py"\n(.*?)```', page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "make_reviews.py", "exec"), {})
    bunch = made(Path("reviews.csv"), columns=COLUMNS | {"split": "split"},
                 must_not_matter=["sponsored"])  # fmt: skip
    assert len(bunch.splits["test"]) == 300 and not bunch.splits["test"].present.any()
    train = bunch.splits["train"]
    assert train.present.tolist() == train.labels.bool().tolist()


# --- Hugging Face --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT and its WordPiece tokenizer, made here."""
    transformers = pytest.importorskip(
        "transformers", reason="needs transformers: pip install 'cdep-run[models]'"
    )
    folder = tmp_path_factory.mktemp("bert")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fine", "film", "a", "bore", "zo",
              "##rb", "dull", "joy", "what", "mess", "really", "all", "the", "way"]  # fmt: skip
    (folder / "vocab.txt").write_text("\n".join(pieces))
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    fast = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    fast.normalizer, fast.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    fast.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", model_max_length=16,
    ).save_pretrained(folder)  # fmt: skip
    config = transformers.BertConfig(
        vocab_size=len(pieces), hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=16,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_groups_move_to_sub_words_by_their_place(tmp_path: Path, bert: Path) -> None:
    rows = [(f"ZORB {t}" if y == "good" else t, y) for t, y in ROWS]
    bunch = made(write(tmp_path / "a.csv", rows), must_not_matter=["zorb"], tokenizer=str(bert),
                 max_length=16)  # fmt: skip
    split = bunch.splits["train"]
    for found, label, read in zip(marked(bunch, "train"), split.labels, words(bunch, "train"),
                                  strict=True):  # fmt: skip
        assert found == [["zo", "##rb"]] if label else [[]]
        assert read.startswith("[CLS] zo ##rb" if label else "[CLS]") and read.endswith("[SEP]")
    kept = json.loads(json.dumps(bunch.preprocessing))
    assert isinstance(tokenizer_from(kept["tokenizer"]), SubwordTokenizer)
    assert torch.equal(texts.encode(split.texts, kept), split.inputs.long())


def test_a_hugging_face_folder_is_fine_tuned_under_cdep(tmp_path: Path, bert: Path) -> None:
    rows = [(f"zorb {t}" if y == "good" else t, y) for t, y in ROWS]
    result = run(tmp_path, "dataset=text", f"dataset.table={write(tmp_path / 'a.csv', rows)}",
                 "dataset.must_not_matter=[zorb]", "model=hf", f"model.name={bert}",
                 "dataset.max_length=16", "training.epochs=1", "training.batch_size=6",
                 "loggers=csv")  # fmt: skip
    assert result["history"][0]["train/penalty"] > 0
    assert result["config"]["dataset"]["tokenizer"] == str(bert)


def test_a_kind_of_model_reads_words(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs transformers: pip install 'cdep-run[models]'")
    sizes = ("hidden_size=8", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=8")
    options = [f"+model.options.{size}" for size in sizes]
    result = run(tmp_path, "dataset=text", f"dataset.table={write(tmp_path / 'a.csv')}", "model=hf",
                 "model.name=bert", *options, "penalty=none", "training.epochs=1",
                 "training.batch_size=6", "loggers=csv")  # fmt: skip
    assert 0 <= result["metrics"]["test"]["accuracy"] <= 1


def test_what_hugging_face_does_not_have_is_said(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    path = write(tmp_path / "a.csv")
    for name in (str(tmp_path / "empty"), "nobody/nothing"):
        with pytest.raises(DataError, match=r"no tokenizer .*hf download .*model.name=FOLDER"):
            made(path, tokenizer=name)
        with pytest.raises(ConfigError, match=r"no model .*hf download .*model.name=FOLDER"):
            hf_model((9,), 2, name)
    with pytest.raises(DataError, match="reads at most 16 tokens"):
        made(path, tokenizer=str(bert))
    with pytest.raises(DataError, match=r"dataset\.tokenizer makes sub-words"):
        made(path, tokenizer=str(bert), max_length=16, vectors=path)
    with pytest.raises(ConfigError, match="knows 19 token ids, but the data have 50"):
        hf_model((9,), 2, str(bert), vocab_size=50)
