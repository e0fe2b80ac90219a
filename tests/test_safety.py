"""What goes wrong around a run costs a line, never its result; what is hostile runs nothing."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from cdep_run.config.commands import literal
from cdep_run.console import LenientStream
from cdep_run.errors import ConfigError, DamagedError, WriteError, in_a_line
from cdep_run.files import UNFINISHED, read_record, write_atomic, write_record
from cdep_run.results.record import write_status
from cdep_run.results.runs import load_runs
from cdep_run.results.text import aligned_table, markdown_table
from cdep_run.sweeps import resume
from cdep_run.sweeps.manifest import Entry, Manifest
from cdep_run.tables.build import Table
from cdep_run.tables.formats import csv, latex, markdown, page
from cdep_run.training.signals import STOPPING, Interrupted, OrderlyEnd, StopRequest
from made_records import make_record
from running import TESTS, TINY, inside

OWN = ("--config-dir", str(TESTS / "configs"))
VALUE = {"config": {"seed": 0, "λ": 0.1}, "metrics": {"test": {"accuracy": 0.9375}}, "x": [1, None]}


def test_every_flipped_bit_of_a_record_is_found(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_record(path, VALUE)
    assert read_record(path) == VALUE
    whole = path.read_bytes()
    for place in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match="is damaged"):
            read_record(path)
    for cut in (0, 1, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:cut])
        with pytest.raises(DamagedError):
            read_record(path)


def test_records_without_a_checksum_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps(VALUE))
    assert read_record(tmp_path / "old.json") == VALUE
    assert read_record(tmp_path / "none.json") is None


def test_a_changed_record_is_left_out_of_tables_by_name(tmp_path: Path) -> None:
    for seed in (0, 1):
        path = tmp_path / str(seed) / "result.json"
        make_record(path, 0.5, seed=seed)
        write_record(path, json.loads(path.read_text()))
    path.write_bytes(path.read_bytes().replace(b'"seed": 1', b'"seed": 7'))
    runs = load_runs(tmp_path)
    assert len(runs) == 1
    (problem,) = runs.attrs["problems"]
    assert str(path) in problem and "checksum" in problem


def test_a_failed_write_names_its_file_keeps_the_old_one_and_leaves_no_litter(
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.safetensors"
    write_atomic(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(WriteError, match=f"cannot write {path}: File too large"):
            write_atomic(path, b"n" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(WriteError, match="No such file or directory"):
        write_atomic(tmp_path / "gone" / "file", b"")


class Full:
    """A stream on a full disk."""

    encoding = "ascii"

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        self.write("")


def test_a_stream_that_cannot_be_written_to_is_no_error() -> None:
    stream = LenientStream(Full())
    print("λ", file=stream)
    stream.flush()
    assert stream.encoding == "ascii"


@pytest.mark.parametrize("output", ["ascii", "full", "closed"])
def test_a_runs_result_is_not_lost_to_its_messages(tmp_path: Path, output: str) -> None:
    redirect = {"ascii": "", "full": ">/dev/full 2>/dev/full", "closed": ">&- 2>&-"}[output]
    program = "from cdep_run.train import main; main()"
    words = [*OWN, *TINY, "penalty=none", "training.epochs=1", "hydra.run.dir='λ'"]
    path = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        ["sh", "-c", f'"$@" {redirect}', "sh", sys.executable, "-c", program, *words],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert read_record(tmp_path / "λ" / "result.json") is not None
    assert read_record(tmp_path / "λ" / "status.json")["state"] == "finished"  # type: ignore[index]
    if output == "ascii":
        assert done.stdout.endswith("\\u03bb\n") and "Traceback" not in done.stderr


@pytest.mark.parametrize("number", STOPPING)
def test_every_signal_that_ends_a_process_is_a_request(number: int) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.received
        os.kill(os.getpid(), number)
        assert stop.received
    assert signal.getsignal(number) == before
    end = OrderlyEnd()
    with pytest.raises(KeyboardInterrupt), end:
        os.kill(os.getpid(), number)
    end.hand_on()  # to nobody


def test_a_signal_is_handed_on_to_a_schedulers_handler_and_an_ignored_one_stays_so() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: received.append(number))
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        end = OrderlyEnd()
        with pytest.raises(Interrupted), end, StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.received
            os.kill(os.getpid(), signal.SIGUSR2)
            assert stop.received and not received
            raise Interrupted
        end.hand_on()
        assert received == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)
        signal.signal(signal.SIGHUP, ignored)


def test_a_pickled_checkpoint_is_refused_in_a_line(tmp_path: Path) -> None:
    import pickle

    from cdep_run.errors import CheckpointError
    from cdep_run.files import write_checked
    from cdep_run.training.checkpoint import Checkpoints

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/ran",)

    store = Checkpoints(tmp_path / "checkpoints")
    store.last.parent.mkdir()
    write_checked(store.last, pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match="no undamaged checkpoint"):
        store.load()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text", ["ä", "a\\", "a\\\\", "it's", "\\'", "a b", "x,y", "[1]", "日本", "a\\b", ""]
)
def test_a_literal_is_read_back_as_it_was(text: str) -> None:
    override = OverridesParser.create().parse_override(f"name={literal(text)}")
    assert override.value() == text


def test_a_deleted_folder_is_said_in_a_line(tmp_path: Path) -> None:
    here = tmp_path / "gone"
    here.mkdir()
    code = "import os, cdep_run.train as t; os.rmdir(os.getcwd()); t.main()"
    path = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)])
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": path})  # fmt: skip
    assert done.returncode == 1 and done.stderr.startswith("cdep-run: error: the current folder")
    assert done.stderr.count("\n") == 1


def test_what_a_machine_lacks_is_said_in_a_line() -> None:
    assert "out of memory" in str(in_a_line(MemoryError()))
    message = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
    assert "training.batch_size" in str(in_a_line(RuntimeError(message)))
    assert in_a_line(OSError(28, "No space left on device", "/x/events")) == (
        "cannot write /x/events: No space left on device"
    )
    assert in_a_line(RuntimeError("a fuse blew")) is None


HOSTILE = "a\n\\input{x}|<script>alert(1)</script>"


def test_hostile_names_stay_text_in_every_format() -> None:
    names = ["=1+1", "+x", "-x", "@x", " =x", "fine"]
    frame = pd.DataFrame({"data set": names, "mean": [-0.5] * 6})
    table = Table(HOSTILE, [HOSTILE], [[(HOSTILE, False)]], [HOSTILE], [HOSTILE], frame)
    assert "<script" not in page(table) and "<script" not in markdown_table([[HOSTILE]])
    lines = latex(table).splitlines()
    assert all("\\input" not in line or line.startswith("%") for line in lines)
    assert not any(line.startswith("\\input") for line in markdown(table).splitlines())
    cells = [line.split(",")[0] for line in csv(table).splitlines()[1:]]
    assert cells == ["'=1+1", "'+x", "'-x", "'@x", "' =x", "fine"]
    assert csv(table).splitlines()[1].endswith(",-0.5")
    assert "\x1b" not in aligned_table([{"settings": "\x1b[2J"}])


def sweep(folder: Path, *words: str, cwd: Path) -> Path:
    """A sweep's folder as somebody may have sent it."""
    folder.mkdir()
    jobs = [Entry("", "d", "none", ["seed=0"], folder="one")]
    Manifest(folder, list(words), str(cwd), [], jobs=jobs).write()
    (folder / "one").mkdir()
    write_status(folder / "one", "interrupted", [])
    return folder


@pytest.mark.parametrize(
    "word",
    [
        "hydra.callbacks.x={_target_:os.system,command:touch ran}",
        "+hydra.job_logging.x=1",
        "hydra.searchpath=[file://evil]",
        "--config-dir=evil",
        "+sweep=../../evil",
        "dataset=/evil",
        "plugins=[evil]",
        "hydra.launcher._target_=evil.Launcher",
        "+sweep@hydra.callbacks=evil",
        "--config-path=evil",
    ],
)
def test_resume_runs_nothing_that_a_strangers_sweep_brings_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = sweep(tmp_path / "sweep", "-m", "dataset=mnist", word, cwd=tmp_path)
    with pytest.raises(ConfigError, match="which can run code"):
        resume.resume([str(folder)])
    said = resume.resume([str(folder), word])
    assert word in said or f"--config-dir={tmp_path / 'evil'}" in said


def test_resume_plans_again_where_it_is_if_the_sweep_was_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("-m", "dataset=mnist,sst_decoy", "hydra/launcher=basic", "+model.x=1", "seed=range(3)")
    folder = sweep(tmp_path / "sweep", *words, "hydra.sweep.dir=/evil", cwd=Path("/"))
    assert resume.resume(["sweep", "seed=1"]) == [
        *words[:-1], "seed=1", f"hydra.sweep.dir={os.path.relpath(folder)}"
    ]  # fmt: skip


def test_status_shows_the_rest_where_one_record_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("good", "bad"):
        sweep(tmp_path / name, "-m", cwd=tmp_path)
    (tmp_path / "bad" / "sweep.json").write_text("{")
    assert resume.status([str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "1 interrupted" in shown.out and f"{tmp_path / 'bad' / 'sweep.json'}" in shown.err
    jobs = [Entry("", "d", "none", [f"seed={n}"], state="completed", folder=None) for n in (0, 1)]
    for job, name in zip(jobs, ("a.json", "b.json"), strict=True):
        job.record = str(tmp_path / name)
    metrics = {"selection_split": "val", "metrics": {s: {"accuracy": 0.5} for s in ("val", "test")}}
    write_record(tmp_path / "a.json", metrics)
    (tmp_path / "b.json").write_text("{")
    Manifest(tmp_path / "good", [], str(tmp_path), [], jobs=jobs).write()
    resume.status([str(tmp_path / "good")])
    shown = capsys.readouterr()
    assert "0.5000" in shown.out and "b.json is damaged" in shown.out


def test_a_hostile_target_on_the_command_line_is_one_line(tmp_path: Path) -> None:
    words = ("penalty._target_=os.system", f"+penalty.command=touch {tmp_path}/ran")
    done = inside(*words, "hydra.run.dir=run", "threads=1", cwd=tmp_path)
    assert done.returncode == 1 and "plugins=[os]" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "ran").exists()


def test_a_full_disk_ends_a_job_in_a_line_and_the_sweep_goes_on(tmp_path: Path) -> None:
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "from cdep_run.train import main; main()"
    )
    words = (*OWN, "-m", *TINY, "hydra.sweep.dir=sweep", "penalty=none", "training.epochs=1")
    path = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)])
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "model.hidden=2000,8"], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    manifest = read_record(tmp_path / "sweep" / "sweep.json")
    assert manifest is not None
    assert [job["state"] for job in manifest["jobs"]] == ["failed", "completed"], done.stderr
    assert "checkpoints/new.pt: File too large" in manifest["jobs"][0]["error"]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob(f".*{UNFINISHED}"))
