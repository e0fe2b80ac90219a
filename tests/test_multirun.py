"""Sweeps: planned once, skipped where finished, resumed, and no job takes another one down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cdep_run.config.overrides import last_of_each, sweep_folder, with_first_choices
from cdep_run.files import alone_in, read_record
from cdep_run.results.text import aligned_table
from cdep_run.sweeps import sweep
from cdep_run.sweeps.manifest import Entry, seconds_left
from running import TESTS, TINY, command, inside

OWN = ("--config-dir", str(TESTS / "configs"))
HERE = "hydra.sweep.dir=sweep"
SWEEP = (*OWN, "-m", *TINY, HERE, "penalty=none", "penalty.name=trial", "penalty.strength=1")
STUDY = (*OWN, "+sweep=study", "threads=1", "device=cpu")


def manifest(folder: Path) -> Any:
    return json.loads((folder / "sweep.json").read_text())


def states(folder: Path) -> list[str]:
    return [job["state"] for job in manifest(folder)["jobs"]]


def jobs(folder: Path) -> list[str]:
    """What each job sets besides the overrides of all of them."""
    words = [job["overrides"] for job in manifest(folder)["jobs"]]
    common = set.intersection(*map(set, words))
    return [" ".join(word for word in one if word not in common) for one in words]


def test_a_failed_job_does_not_take_the_others_down(tmp_path: Path) -> None:
    targets = "cdep_run.penalties.none.NoPenalty,tiny_data.Broken,tiny_data.NotANumber"
    done = inside(*SWEEP, f"penalty._target_={targets}", cwd=tmp_path)
    assert done.returncode == 1
    sweep = tmp_path / "sweep"
    assert states(sweep) == ["completed", "failed", "failed"]
    assert "1 of 3 jobs done (1 completed, 2 failed): sweep" in done.stdout
    table = done.stdout.splitlines()[-4:-1]
    assert table[0].startswith("completed  penalty._target_=cdep_run.penalties.none.NoPenalty")
    assert "RuntimeError: a fuse blew" in table[1] and "not finite at step 3" in table[2]
    folders = [sweep / job["folder"] for job in manifest(sweep)["jobs"]]
    assert "Traceback" in (folders[1] / "cdep-run.log").read_text()


def test_a_sweep_without_failures_ends_with_0_and_can_be_asked_to_go_on(tmp_path: Path) -> None:
    done = inside(*SWEEP, "seed=range(2)", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 jobs done" in done.stdout
    other = inside(*SWEEP, "seed=range(3)", cwd=tmp_path)
    assert other.returncode == 1
    assert "sweep holds another sweep (dataset=tiny" in other.stderr
    assert len(states(tmp_path / "sweep")) == 2
    again = inside(*SWEEP, "seed=range(3)", "resume=true", cwd=tmp_path)
    assert again.returncode == 0 and "3 of 3 jobs done" in again.stdout
    assert "0 of" not in again.stdout + again.stderr  # two were found


def test_a_killed_job_in_its_own_process_does_not_end_the_sweep(tmp_path: Path) -> None:
    targets = "tiny_data.Killed,tiny_data.Broken,cdep_run.penalties.none.NoPenalty"
    launcher = ("hydra/launcher=processes", "hydra.launcher.parallel=2", "threads=null")
    found = f"hydra.searchpath=[file://{TESTS / 'configs'}]"  # read anew in the job's process
    done = command(*SWEEP, found, f"penalty._target_={targets}", *launcher, cwd=tmp_path)
    assert done.returncode == 1
    assert states(tmp_path / "sweep") == ["failed", "failed", "completed"], done.stderr
    assert "the process was killed or crashed" in done.stdout
    record = tmp_path / manifest(tmp_path / "sweep")["jobs"][2]["record"]
    threads = json.loads(record.read_text())["threads"]
    assert threads == max(1, len(os.sched_getaffinity(0)) // 2)


def test_each_arm_has_its_grid_none_is_one_run_a_seed_and_stage_two_uses_the_chosen_strength(
    tmp_path: Path,
) -> None:
    plan = inside(*STUDY, "hydra.sweeper.plan_only=true", cwd=tmp_path)
    assert plan.returncode == 0 and "0 of 10 jobs done (10 pending)" in plan.stdout
    sweep = tmp_path / "outputs" / "sweeps" / "study"
    assert jobs(sweep) == [
        *(f"penalty=none seed={seed}" for seed in range(3)),
        "penalty=rrr penalty.strength=0.1 seed=0",
        "penalty=rrr penalty.strength=0.2 seed=0",
        *(f"penalty=eg seed={seed}" for seed in range(3)),
        *(f"penalty=rrr penalty.strength=? seed={seed}" for seed in (1, 2)),
    ]
    done = inside(*STUDY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    chosen = manifest(sweep)["choices"]["rrr"]
    assert chosen["split"] == "val" and set(chosen["scores"]) == {"0.1", "0.2"}
    scores = {float(strength): score for strength, score in chosen["scores"].items()}
    assert chosen["strength"] == max(scores, key=lambda strength: (scores[strength], -strength))
    assert states(sweep) == ["completed"] * 10
    assert jobs(sweep)[-2:] == [
        f"penalty=rrr penalty.strength={chosen['strength']:g} seed={seed}" for seed in (1, 2)
    ]
    for job in manifest(sweep)["jobs"]:
        assert json.loads((tmp_path / job["record"]).read_text())["config"]["seed"] in range(3)
    # One run of the grid is gone: its λ is to be chosen anew, so no other seed counts as done.
    (tmp_path / manifest(sweep)["jobs"][4]["record"]).unlink()
    inside(*STUDY, "hydra.sweeper.plan_only=true", cwd=tmp_path)
    done = ["completed"] * 3
    assert states(sweep) == [*done, "completed", "interrupted", *done, "pending", "pending"]


def test_a_grid_on_two_seeds_chooses_by_one_standard_error(tmp_path: Path) -> None:
    rule = "hydra.sweeper.strength_rule=one_standard_error"
    few = inside(*STUDY, rule, cwd=tmp_path)
    assert few.returncode == 1 and "needs 2 or more" in few.stderr
    words = (*STUDY, rule, "hydra.sweeper.strength_seeds=2", "penalty=none,rrr")
    done = inside(*words, "training.epochs=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sweep = next((tmp_path / "outputs/sweeps").glob("study-*"))
    choice = manifest(sweep)["choices"]["rrr"]
    assert choice["rule"] == "one_standard_error" and choice["seeds"] == 2
    ran = [" ".join(job.split()[:3]) for job in jobs(sweep)]
    assert len(ran) == len(set(ran)) == 3 + 4 + 1
    assert ran[-1] == f"penalty=rrr penalty.strength={choice['strength']:g} seed=2"


def test_the_command_line_picks_arms_and_overrides_all_jobs(tmp_path: Path) -> None:
    words = ("penalty=none,rrr", "seed=range(2)", "training.epochs=1", "penalty.strength=5,7")
    inside(*STUDY, *words, "hydra.sweeper.plan_only=true", cwd=tmp_path)
    sweep = next((tmp_path / "outputs/sweeps").glob("study-*"))
    assert jobs(sweep) == [
        "penalty=none penalty.strength=5 seed=0",
        "penalty=none penalty.strength=5 seed=1",
        "penalty=rrr penalty.strength=5 seed=0",
        "penalty=rrr penalty.strength=7 seed=0",
        "penalty=rrr penalty.strength=? seed=1",
    ]
    assert all("training.epochs=1" in job["overrides"] for job in manifest(sweep)["jobs"])
    none = inside(*STUDY, "penalty=cdep", cwd=tmp_path)
    assert none.returncode == 1 and none.stderr.endswith(
        "no arm of this sweep has penalty=cdep; there are penalty=eg, penalty=none, penalty=rrr\n"
    )


def test_what_only_the_swept_data_sets_know_can_be_set_beside_them(tmp_path: Path) -> None:
    words = ("-m", "dataset=sst_decoy,sst_articles", "dataset.vectors=mine", "penalty=none")
    lacking = ("data_dir=nowhere", "dataset.download=false", HERE)
    for _ in range(2):  # the second time it goes on
        done = inside(*words, *lacking, "hydra.sweeper.plan_only=true", cwd=tmp_path)
        assert done.returncode == 1 and "in 'DecoyDigits'" not in done.stderr
        assert jobs(tmp_path / "sweep") == ["dataset=sst_decoy", "dataset=sst_articles"]
        errors = [job["error"] for job in manifest(tmp_path / "sweep")["jobs"]]
        assert all("nowhere" in error for error in errors)
    command = manifest(tmp_path / "sweep")["command"]
    assert [word for word in command if "dataset=" in word] == ["dataset=sst_decoy,sst_articles"]


@pytest.mark.parametrize("swept", ["my-data,b", "choice(my-data,b)", "choice(my-data, b)"])
def test_the_first_choice_stands_alone_however_the_choices_are_written(swept: str) -> None:
    words = ["-m", f"dataset={swept}", "dataset.x=1"]
    both = with_first_choices(words)
    assert both == ["-m", "dataset=my-data", *words[1:]]
    assert last_of_each(both) == words


def test_what_adds_a_setting_is_not_replaced_by_what_changes_it() -> None:
    words = ["+model.depth=1", "seed=0", "model.depth=2", "seed=1"]
    assert last_of_each(words) == ["+model.depth=1", "model.depth=2", "seed=1"]


def test_finished_runs_elsewhere_are_skipped_if_settings_data_and_code_agree(
    tmp_path: Path,
) -> None:
    first = inside(*STUDY, "penalty=none", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    elsewhere = next((tmp_path / "outputs/sweeps").glob("study-*"))
    records = sorted(elsewhere.rglob("result.json"))
    (tmp_path / "published").mkdir()
    for number, change in enumerate(({}, {"versions": {"cdep-run": "0.0.1"}}, {"data": None})):
        record = read_record(records[number])
        assert record is not None
        if "data" in change:
            change = {"data": record["data"] | {"fingerprint": "0" * 64}}
        (tmp_path / "published" / f"{number}.json").write_text(json.dumps(record | change))
    options = ("penalty=none", "hydra.sweeper.reuse=[published]", "hydra.sweeper.plan_only=true")
    inside(*STUDY, *options, "hydra.sweep.dir=version", cwd=tmp_path)
    assert states(tmp_path / "version") == ["skipped", "pending", "pending"]
    assert manifest(tmp_path / "version")["jobs"][0]["record"] == "published/0.json"
    inside(*STUDY, *options, "hydra.sweep.dir=any", "hydra.sweeper.same_code=any", cwd=tmp_path)
    assert states(tmp_path / "any") == ["skipped", "skipped", "pending"]


def test_by_commit_no_run_of_changed_code_counts_as_done_not_even_in_its_own_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "git_state", lambda: {"commit": "a" * 40, "changed": True})
    folders = []
    for _ in range(2):
        done = inside(*SWEEP, "hydra.sweeper.same_code=commit", cwd=tmp_path)
        assert done.returncode == 0 and "nothing counts as done" in done.stdout
        assert "training on cpu" in done.stderr
        folders.append(manifest(tmp_path / "sweep")["jobs"][0]["folder"])
    assert folders[0] != folders[1]


def ends_at_step_10(penalty: str) -> tuple[str, ...]:
    """A sweep of two seeds that a signal ends in the second epoch of the first one."""
    return (*SWEEP, f"penalty._target_=tiny_data.{penalty}", "seed=range(2)", "training.epochs=2",
            "training.checkpoint_seconds=0")  # fmt: skip


@pytest.mark.parametrize(
    ("penalty", "code"), [("Signal", 130), ("Terminated", 130), ("Killed", -9)]
)
def test_an_interrupted_sweep_goes_on_where_it_stopped(
    tmp_path: Path, penalty: str, code: int
) -> None:
    run = command if code < 0 else inside
    done = run(*ends_at_step_10(penalty), cwd=tmp_path)
    assert done.returncode == code, done.stderr
    if code == 130:
        assert "cdep-run resume sweep" in done.stderr
        assert states(tmp_path / "sweep") == ["interrupted", "pending"]
    status = inside("status", "sweep", cwd=tmp_path)
    assert status.returncode == 1
    assert "0 of 2 jobs done (1 interrupted, 1 pending)" in status.stdout
    again = run("resume", str(tmp_path / "sweep"), *OWN, cwd=TESTS)  # is ended in the second job
    assert f"going on at epoch 2, step {2 if code < 0 else 3}" in again.stderr
    assert again.returncode == code, again.stderr
    status = inside("status", ".", cwd=tmp_path)
    assert "1 of 2 jobs done (1 completed, 1 interrupted)" in status.stdout
    moved = (tmp_path / "sweep").rename(tmp_path / "its, new=place")
    again = inside("resume", moved.name, "threads=1", *OWN, cwd=tmp_path)
    assert again.returncode == 0 and states(moved) == ["completed"] * 2
    assert inside("status", str(moved), cwd=TESTS).stdout.count("0.4167") >= 1  # its scores


def test_a_second_process_on_the_same_sweep_is_refused_and_status_says_in_flight(
    tmp_path: Path,
) -> None:
    inside(*SWEEP, "seed=range(2)", "hydra.sweeper.plan_only=true", cwd=tmp_path)
    job = tmp_path / "sweep" / manifest(tmp_path / "sweep")["jobs"][0]["folder"]
    job.mkdir()
    (job / "status.json").write_text('{"state": "running", "overrides": [], "error": null}')
    with alone_in(tmp_path / "sweep"), alone_in(job):
        second = inside(*SWEEP, "seed=range(2)", cwd=tmp_path)
        assert second.returncode == 1
        words = f"another process ({os.getpid()} on "
        assert words in second.stderr and "is at work in sweep; wait for it" in second.stderr
        status = inside("status", "sweep", cwd=tmp_path)
        assert "0 of 2 jobs done (1 in flight, 1 pending)" in status.stdout


def test_a_job_at_work_elsewhere_is_waited_for(tmp_path: Path) -> None:
    inside(*SWEEP, "seed=0", "hydra.sweeper.plan_only=true", cwd=tmp_path)
    job = tmp_path / "sweep" / manifest(tmp_path / "sweep")["jobs"][0]["folder"]
    job.mkdir()
    with alone_in(job):
        path = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)])
        process = subprocess.Popen(
            [sys.executable, "-c", "from cdep_run.train import main; main()", *SWEEP, "seed=0"],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr is not None
        assert any("waiting for it to end" in line for line in process.stderr)
    process.communicate(timeout=60)
    assert process.returncode == 0 and states(tmp_path / "sweep") == ["completed"]


def test_a_damaged_manifest_is_made_anew_and_nothing_is_trained_twice(tmp_path: Path) -> None:
    inside(*SWEEP, "seed=range(2)", cwd=tmp_path)
    (tmp_path / "sweep" / "sweep.json").write_text('{"command": [')
    for action in ("resume", "status"):
        done = inside(action, "sweep", cwd=tmp_path)
        assert done.returncode == 1 and done.stderr.startswith("cdep-run: error: sweep/sweep.json")
        assert "is damaged; repeat the command that started the sweep" in done.stderr
    again = inside(*SWEEP, "seed=range(2)", cwd=tmp_path)
    assert again.returncode == 0 and states(tmp_path / "sweep") == ["completed"] * 2
    assert "sweep.json is damaged: it is made anew" in again.stderr + again.stdout
    assert "epoch 1" not in again.stderr


def test_a_damaged_result_is_said_and_the_rest_goes_on(tmp_path: Path) -> None:
    inside(*SWEEP, "seed=range(2)", cwd=tmp_path)
    record = tmp_path / manifest(tmp_path / "sweep")["jobs"][0]["record"]
    record.write_text("{")
    again = inside(*SWEEP, "seed=range(2)", cwd=tmp_path)
    assert again.returncode == 1 and states(tmp_path / "sweep") == ["failed", "completed"]
    assert "result.json is damaged" in again.stdout and "delete it to begin anew" in again.stdout
    record.unlink()
    assert inside("resume", "sweep", *OWN, cwd=tmp_path).returncode == 0


def test_data_that_are_not_there_fail_at_once_and_the_rest_is_trained(tmp_path: Path) -> None:
    done = inside(*OWN, "+sweep=absent", "threads=1", cwd=tmp_path)
    sweep = tmp_path / "outputs" / "sweeps" / "absent"
    assert done.returncode == 1 and "2 of 5 jobs done (2 completed, 3 failed)" in done.stdout
    assert states(sweep) == ["failed", "failed", "completed", "completed", "failed"]
    for job in (manifest(sweep)["jobs"][n] for n in (0, 1, 4)):
        assert "nowhere" in job["error"] and job["folder"] is None


def test_a_strength_that_fails_does_not_keep_the_others_from_being_compared(tmp_path: Path) -> None:
    done = inside(*STUDY, "penalty=rrr", "penalty.strength=0.1,-1", cwd=tmp_path)
    sweep = next((tmp_path / "outputs/sweeps").glob("study-*"))
    assert done.returncode == 1
    assert states(sweep) == ["completed", "failed", "completed", "completed"]
    assert "λ chosen without 1 runs that failed" in done.stdout + done.stderr
    assert "penalty.strength is -1.0; accepted: 0 or more" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "+sweep=tabel3"], "did you mean sweep=table3?"),
        (["-m", "seed=interval(0,1)"], "only lists and ranges can be swept"),
        (["-m", "seed=a,b"], "seed=a: Value 'a' of type 'str' could not be converted to Integer"),
        (["resume"], "say which sweep: cdep-run resume outputs/sweeps/table3"),
        (["resume", "nowhere"], "nowhere holds no sweep: there is no sweep.json"),
        (["status", "nowhere"], "no sweep in nowhere"),
    ],
)
def test_what_a_user_can_mend_is_said_in_a_line(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = inside(*arguments, cwd=tmp_path)
    assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr


def test_a_named_sweep_has_one_folder_whatever_does_not_change_its_runs() -> None:
    assert sweep_folder(["+sweep=table3", "data_dir=/x", "threads=2"], "now") == "table3"
    assert sweep_folder(["penalty=none,cdep"], "now") == "now"
    changed = sweep_folder(["seed=range(2)", "+sweep=table3"], "now")
    assert changed.startswith("table3-seed=range_2_-")
    assert changed != sweep_folder(["seed=range(3)", "+sweep=table3"], "now")
    both = ["seed=0", "training.epochs=1", "+sweep=table3"]
    assert sweep_folder(both, "now") == sweep_folder(both[::-1], "now")


def test_the_time_left_comes_from_runs_of_the_same_kind() -> None:
    def entry(penalty: str, state: str, seconds: float = 0.0) -> Entry:
        return Entry("", "d", penalty, [], state=state, seconds=seconds)

    done = [entry("none", "completed", 10), entry("none", "skipped", 20)]
    done.append(entry("cdep", "completed", 60))
    todo = [entry("none", "pending"), entry("cdep", "in flight", 20), entry("eg", "pending")]
    assert seconds_left(done + todo, 1) == 15 + 40 + 30
    assert seconds_left(done + todo, 2) == 42.5
    assert seconds_left(todo, 1) is None and seconds_left(done, 1) is None


def test_the_table_leaves_empty_what_a_row_does_not_have() -> None:
    rows = [{"job": "0", "accuracy": "0.9", "error": ""}, {"job": "10", "error": "no"}]
    text = aligned_table(rows, last=("folder", "error"))
    assert text == "job  accuracy  folder  error\n0    0.9\n10                     no"
