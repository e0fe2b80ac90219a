"""File names from any string, paths that stay in their folder, files with a checksum."""

import os
import random

import pytest
import torch

from cdep_run.errors import DamagedError, PathError
from cdep_run.features.store import RowStore, load_or_compute
from cdep_run.files import NAME_BYTES, inside, read_checked, safe_name, write_checked

HOSTILE = [
    "", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "a\0b", ".hidden", "-rf", "a\nb", "a b",
    "$x^$", "x" * 999, "é" * 200, "\udcff", "a:b", "x.", "CON*", "\u202egpj.exe",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_any_string_becomes_a_name_that_stays_in_its_folder(text, tmp_path):
    name = safe_name(text)
    (tmp_path / name).write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert len(name.encode()) <= NAME_BYTES and name[0] not in ".-"
    assert safe_name(text) == name


def test_names_that_are_safe_stay_and_different_strings_never_share_one():
    for text in ("ISIC_0000001", "decoy_mnist", "λ=10", "a-b.c", "penalty.strength=3,seed=1"):
        assert safe_name(text) == text
    names = [safe_name(text) for text in [*HOSTILE, "a_b", "x_", "name"]]
    assert len(set(names)) == len(names)


def test_paths_that_leave_the_folder_are_refused(tmp_path):
    folder = tmp_path / "data"
    (folder / "a").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    assert inside(folder, "a/../b.txt") == folder / "a/../b.txt"
    assert inside(folder, folder / "a") == folder / "a"
    for path in ("../secret", "a/../../secret", tmp_path / "secret", "../data2/x", "a\0b"):
        for links in (False, True):
            with pytest.raises(PathError):
                inside(folder, path, links)


def test_links_out_of_the_folder_are_refused_unless_they_are_allowed(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PathError, match="outside"):
        inside(folder, "link/x")
    assert inside(folder, "link/x", links=True) == folder / "link" / "x"


def test_every_damage_to_a_checked_file_is_noticed(tmp_path):
    path, draw = tmp_path / "x", random.Random(0)
    write_checked(path, b"some numbers" * 9)
    whole = path.read_bytes()
    assert read_checked(path) == b"some numbers" * 9
    for _ in range(200):
        bit = draw.randrange(8 * len(whole))
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(DamagedError, match="is damaged"):
            read_checked(path)
    for length in (0, 1, 64, 65, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedError):
            read_checked(path)


def test_a_damaged_cache_is_named_and_computed_anew(tmp_path, caplog):
    path, calls = tmp_path / "kept.pt", []

    def compute():
        calls.append(1)
        return {"rows": torch.arange(5.0), "words": ["a", "b"]}

    for _ in range(2):
        state = load_or_compute(path, compute)
        assert state["rows"].tolist() == [0, 1, 2, 3, 4] and state["words"] == ["a", "b"]
    assert len(calls) == 1 and not caplog.text
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert load_or_compute(path, compute)["rows"].tolist() == [0, 1, 2, 3, 4]
    assert len(calls) == 2 and f"{path} is damaged" in caplog.text and "anew" in caplog.text
    load_or_compute(path, compute)
    assert len(calls) == 2


def test_a_cache_with_a_valid_sum_runs_no_code(tmp_path, caplog):
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    write_checked(tmp_path / "kept.pt", pickle.dumps(Evil(), protocol=2))
    assert load_or_compute(tmp_path / "kept.pt", lambda: {"x": 1}) == {"x": 1}
    assert not (tmp_path / "ran").exists() and "anew" in caplog.text


def test_a_cache_that_cannot_be_written_costs_no_result(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert load_or_compute(tmp_path / "file" / "kept.pt", lambda: {"x": 1}) == {"x": 1}
    assert "cannot be kept" in caplog.text


def test_a_flipped_bit_anywhere_in_the_list_of_rows_costs_rows_and_never_changes_one(tmp_path):
    rows = torch.arange(12.0).view(4, 3)
    names = ["aa", "bb", "cc", "dd"]
    with_rows = RowStore(tmp_path / "rows", 3, write=True)
    with_rows.add(names, rows)
    whole = with_rows.lines.read_bytes()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        with_rows.lines.write_bytes(flipped)
        store = RowStore(tmp_path / "rows", 3)
        for name in set(names) & set(store.index):
            assert store.read([store.index[name]])[0].tolist() == rows[names.index(name)].tolist()
        assert (
            len(set(names) & set(store.index)) == 3
            or flipped[bit // 8] in b"\n"
            or (whole[bit // 8] == 10)
        )  # without its line feed a line swallows the next one


def test_a_row_whose_line_is_damaged_is_named_once_and_can_be_added_again(tmp_path, caplog):
    store = RowStore(tmp_path / "rows", 2, write=True)
    store.add(["a", "b", "c"], torch.arange(6.0).view(3, 2))
    lines = store.lines.read_bytes().split(b"\n")
    lines[1] = b"b\xff nonsense"
    store.lines.write_bytes(b"\n".join(lines))
    again = RowStore(tmp_path / "rows", 2, write=True)
    assert set(again.index) == {"a", "c"} and "1 damaged line" in caplog.text
    again.add(["b"], torch.tensor([[2.0, 3.0]]))
    caplog.clear()
    last = RowStore(tmp_path / "rows", 2, write=True)
    assert last.read([last.index[n] for n in "abc"]).tolist() == [[0, 1], [2, 3], [4, 5]]
    assert not caplog.text
