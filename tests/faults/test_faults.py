"""`make test-faults`: kills, flipped bits, full disks and rivals, on real runs; takes minutes.

KILLS=100 says how many kills at random moments are tried, SEED=0 which. What is tried and found is
printed at the end of each test (`pytest -s`).
"""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cdep_run.errors import DamagedError
from cdep_run.files import UNFINISHED, alone_in, read_checked, read_record, write_checked
from cdep_run.results.load import load_run
from cdep_run.results.record import CONFIG, METRICS, MODEL, PREDICTIONS, RESULT, STATUS, check_file
from cdep_run.sweeps.manifest import MANIFEST
from cdep_run.train import main
from cdep_run.training.checkpoint import Checkpoints
from running import TESTS

KILLS, SEED = int(os.environ.get("KILLS", "100")), int(os.environ.get("SEED", "0"))
WORDS = (
    *("--config-dir", str(TESTS / "configs"), "dataset=tiny_spots", "model=tiny_conv"),
    *("threads=1", "device=cpu", "penalty=rrr", "training.restore_best=true", "training.epochs=3"),
    *("training.checkpoint_seconds=0", "training.resamples=5"),
)
SECONDS = ("seconds", "seconds_per_epoch", "peak_memory_bytes", "git")


def started(folder: Path, *words: str, before: Callable[[], Any] | None = None) -> int:
    """The number of a process forked from this one that runs the command in `folder`.

    Forked: torch is loaded already, so a run of a second is not preceded by three of imports.
    """
    folder.mkdir(exist_ok=True)
    number = os.fork()
    if number:
        return number
    try:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        os.chdir(folder)
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1) for n in (1, 2))
        logging.getLogger().handlers.clear()
        sys.argv = ["cdep-run", *WORDS, *words]
        if before is not None:
            before()
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        if not isinstance(end.code, int) and end.code is not None:
            print(end.code, file=sys.stderr)
    except BaseException:
        logging.getLogger().exception("unforeseen")
        code = 70
    finally:
        os._exit(code)


def run(folder: Path, *words: str, before: Callable[[], Any] | None = None) -> int:
    """The exit code of the command in `folder`; -9: it was killed."""
    _, status = os.waitpid(started(folder, "hydra.run.dir=run", *words, before=before), 0)
    return os.waitstatus_to_exitcode(status)


def without_times(value: Any) -> Any:
    """A record without what two equal runs may differ in."""
    if isinstance(value, dict):
        return {
            key: without_times(inner)
            for key, inner in value.items()
            if key not in (*SECONDS, "resume", "files")
        }
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def outcome(folder: Path) -> tuple[Any, ...]:
    """All that an undisturbed run and a disturbed one must share, to the last bit."""
    place = folder / "run"
    state = Checkpoints(place / "checkpoints").load()
    assert state is not None
    table = [line.split(",") for line in (place / METRICS).read_text().splitlines()]
    column = table[0].index("seconds")
    return (
        without_times(read_record(place / RESULT)),
        (place / MODEL).read_bytes(),
        (place / PREDICTIONS).read_bytes(),
        [[cell for k, cell in enumerate(line) if k != column] for line in table],
        json.dumps(without_times({k: plain(v) for k, v in state.items()}), sort_keys=True),
        read_record(place / STATUS)["state"],  # type: ignore[index]
    )


def plain(value: Any) -> Any:
    """Tensors at any depth as lists."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Any, ...], float]:
    """A run that nothing happens to: its folder, its outcome and its seconds."""
    folder = tmp_path_factory.mktemp("undisturbed")
    began = time.monotonic()
    assert run(folder) == 0, (folder / "output.txt").read_text()
    return folder, outcome(folder), time.monotonic() - began


def go_on(folder: Path) -> int:
    """The exit code of the same command with resume=true."""
    return run(folder, "resume=true")


def test_runs_killed_at_random_moments_end_as_if_they_had_not_been(
    tmp_path: Path, undisturbed: tuple[Path, tuple[Any, ...], float]
) -> None:
    _, expected, seconds = undisturbed
    draw, killed, folder = random.Random(SEED), 0, 0
    while killed < KILLS:
        place = tmp_path / str(folder)
        folder += 1
        for _ in range(4):  # the same run, again and again
            number = started(place, "hydra.run.dir=run", "resume=true")
            time.sleep(draw.uniform(0, 1.1 * seconds))
            os.kill(number, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
            killed += code == -signal.SIGKILL
            if code == 0:
                break
        assert go_on(place) == 0, (place / "output.txt").read_text()
        assert outcome(place) == expected
        assert not list(place.rglob(f".*{UNFINISHED}"))
        shutil.rmtree(place)
    print(f"\n{killed} kills at random moments in {folder} runs: all end bit-equal")


def killing_at(call: int) -> Callable[[], None]:
    """Ends the process at its `call`-th file operation that makes a change last."""
    left = iter(range(call - 1, -1, -1))

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any) -> Any:
            if next(left, 1) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        return counting

    def prepare() -> None:
        os.replace, os.fsync = counted(os.replace), counted(os.fsync)

    return prepare


def test_runs_killed_at_file_operations_end_as_if_they_had_not_been(
    tmp_path: Path, undisturbed: tuple[Path, tuple[Any, ...], float]
) -> None:
    _, expected, _ = undisturbed
    call, tried = 1, 0
    while True:
        place = tmp_path / str(call)
        code = run(place, before=killing_at(call))
        if code == 0:
            break
        assert code == -signal.SIGKILL, (place / "output.txt").read_text()
        assert go_on(place) == 0, (place / "output.txt").read_text()
        assert outcome(place) == expected, call
        shutil.rmtree(place)
        tried += 1
        call += 1 if call < 10 else random.Random(call).randint(4, 12)
    print(f"\n{tried} kills at file operations 1 to {call}: all end bit-equal")
    assert tried > 10


def test_every_flipped_bit_in_a_runs_files_is_found(
    tmp_path: Path, undisturbed: tuple[Path, tuple[Any, ...], float]
) -> None:
    source, expected, _ = undisturbed
    place = tmp_path / "run"
    shutil.copytree(source / "run", place)
    result = read_record(place / RESULT)
    assert result is not None
    readers: dict[str, Callable[[], Any]] = {
        RESULT: lambda: read_record(place / RESULT),
        STATUS: lambda: read_record(place / STATUS),
        MODEL: lambda: load_run(place, ["tiny_data"]),
        **{name: lambda name=name: check_file(place, result, name)
           for name in (METRICS, PREDICTIONS, CONFIG)},
    }  # fmt: skip
    draw = random.Random(SEED)
    for name, read in readers.items():
        whole = (place / name).read_bytes()
        read()
        places = draw.sample(range(8 * len(whole)), min(200, 8 * len(whole)))
        for bit in places:
            (place / name).write_bytes(flipped(whole, bit))
            with pytest.raises(DamagedError):
                read()
        (place / name).write_bytes(whole)
        print(f"\n{name}: {len(places)} of {len(places)} flipped bits found", end="")
    store = Checkpoints(place / "checkpoints")
    previous = torch.load(store.previous, weights_only=True)["progress"]
    whole = store.last.read_bytes()
    for bit in draw.sample(range(8 * len(whole)), 100):
        store.last.write_bytes(flipped(whole, bit))
        state = store.load()
        assert state is not None and state["progress"] == previous
    print("\nlast.pt: 100 of 100 flipped bits found, the one before taken")
    del expected


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_every_flipped_bit_in_a_cache_file_and_in_a_sweeps_manifest_is_found(
    tmp_path: Path,
) -> None:
    write_checked(tmp_path / "cache", os.urandom(500))
    whole = (tmp_path / "cache").read_bytes()
    for bit in range(8 * len(whole)):
        (tmp_path / "cache").write_bytes(flipped(whole, bit))
        with pytest.raises(DamagedError):
            read_checked(tmp_path / "cache")
    words = ("hydra.mode=MULTIRUN", "hydra.sweep.dir=sweep", "hydra.sweeper.plan_only=true")
    assert run(tmp_path, *words) == 0, (tmp_path / "output.txt").read_text()
    manifest = tmp_path / "sweep" / MANIFEST
    whole, draw = manifest.read_bytes(), random.Random(SEED)
    for bit in draw.sample(range(8 * len(whole)), 500):
        manifest.write_bytes(flipped(whole, bit))
        with pytest.raises(DamagedError):
            read_record(manifest)
    print("\na cache file: all bits found; sweep.json: 500 of 500 found")


@pytest.mark.parametrize("limit", [0, 300, 3_000, 10_000, 20_000])
def test_a_file_size_limit_is_a_line_that_names_the_file_and_costs_nothing(
    tmp_path: Path, undisturbed: tuple[Path, tuple[Any, ...], float], limit: int
) -> None:
    _, expected, _ = undisturbed

    def small() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

    assert run(tmp_path, before=small) in (0, 1)
    assert not list(tmp_path.rglob(f".*{UNFINISHED}"))
    code = go_on(tmp_path)
    assert code == 0, (tmp_path / "output.txt").read_text()
    assert "Traceback" not in (tmp_path / "output.txt").read_text()
    assert outcome(tmp_path) == expected


def test_a_full_disk_is_a_line_that_names_the_file_and_leaves_no_litter(
    tmp_path: Path, undisturbed: tuple[Path, tuple[Any, ...], float]
) -> None:
    _, expected, _ = undisturbed
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root can make a small disk")
    try:
        place = f"hydra.run.dir={disk}/run"
        number = started(tmp_path / "here", place)
        assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == 1
        told = (tmp_path / "here" / "output.txt").read_text()
        assert "No space left on device" in told and "Traceback" not in told
        assert not list(disk.rglob(f".*{UNFINISHED}"))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        number = started(tmp_path / "here", place, "resume=true")
        assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == 0
        assert outcome(disk) == expected
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_of_two_processes_on_one_run_the_second_is_refused(
    tmp_path: Path, undisturbed: tuple[Path, tuple[Any, ...], float]
) -> None:
    _, expected, _ = undisturbed
    for number in range(5):
        folder = tmp_path / str(number)
        both = [started(folder, "hydra.run.dir=run", "resume=true") for _ in range(2)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) for one in both]
        assert 0 in codes and set(codes) <= {0, 1}
        told = (folder / "output.txt").read_text()
        assert codes == [0, 0] or "another process" in told
        assert "Traceback" not in told and outcome(folder) == expected


def test_of_two_processes_on_one_sweep_the_second_is_refused(tmp_path: Path) -> None:
    words = ("hydra.mode=MULTIRUN", "hydra.sweep.dir=sweep", "seed=0,1")
    both = [started(tmp_path, *words) for _ in range(2)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) for one in both]
    told = (tmp_path / "output.txt").read_text()
    assert 0 in codes and (codes == [0, 0] or "another process" in told), told
    assert len(list((tmp_path / "sweep").glob(f"*/{RESULT}"))) == 2 and "Traceback" not in told


def test_rivals_for_a_folder_are_in_it_one_at_a_time(tmp_path: Path) -> None:
    count, rivals, rounds = tmp_path / "count", 4, 15
    count.write_text("0")
    children = []
    for _ in range(rivals):
        number = os.fork()
        if not number:
            for _ in range(rounds):
                with alone_in(tmp_path, wait=True):
                    value = int(count.read_text())
                    time.sleep(0.002)
                    count.write_text(str(value + 1))
            os._exit(0)
        children.append(number)
    for number in children:
        assert os.waitpid(number, 0)[1] == 0
    assert int(count.read_text()) == rivals * rounds


def test_a_clock_that_jumps_changes_nothing(
    tmp_path: Path, undisturbed: tuple[Path, tuple[Any, ...], float]
) -> None:
    _, expected, _ = undisturbed

    def jumping() -> None:
        draw, real = random.Random(0), time.time
        time.time = lambda: real() + draw.uniform(-1e8, 1e8)

    assert run(tmp_path, before=jumping) == 0, (tmp_path / "output.txt").read_text()
    assert outcome(tmp_path) == expected


def test_a_deleted_working_folder_does_not_cost_the_run(tmp_path: Path) -> None:
    def deleted() -> None:
        os.mkdir("gone")
        os.chdir("gone")
        os.rmdir("../gone")

    assert run(tmp_path, before=deleted) == 1
    told = (tmp_path / "output.txt").read_text()
    assert told.startswith("cdep-run: error: the current folder") and told.count("\n") == 1


def test_a_memory_limit_is_a_line(tmp_path: Path) -> None:
    def little() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000, resource.RLIM_INFINITY))

    assert run(tmp_path, "model.channels=300000", before=little) == 1
    told = (tmp_path / "output.txt").read_text()
    assert "allocate memory" in told and "Traceback" not in told


def test_a_folder_that_cannot_be_written_to_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file stands in the way")
    assert run(tmp_path) == 1
    told = (tmp_path / "output.txt").read_text()
    assert "cannot write to hydra.run.dir=run" in told and "Traceback" not in told


def test_weights_are_read_by_any_reader_of_safetensors(
    undisturbed: tuple[Path, tuple[Any, ...], float],
) -> None:
    folder, _, _ = undisturbed
    weights = load_file(folder / "run" / MODEL)
    model = load_run(folder / "run", ["tiny_data"]).model
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
