"""The grid and the plan of a study, and what is refused before anything starts."""

import json
import os
import shutil
import subprocess
from itertools import product
from math import prod
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fdtrain.cli import training_config
from fdtrain.config import UserError
from fdtrain.report.content import Block, Estimate, Gain, Missing, Row, Table
from fdtrain.report.study import _pooled, read_study
from fdtrain.run_folder import RunFolder
from launch.study import array
from launch.study.__main__ import main
from launch.study.array import SlurmArray
from launch.study.estimate import words_to_try
from launch.study.folder import StudyFolder
from launch.study.grid import Cell, cells_of
from launch.study.interrupt import Interrupt
from launch.study.plan import Entry, describe, look, outlook
from launch.study.settings import Call, Study, read_call
from launch.study.steps import DONE, Step, report_step
from launch.study.timing import duration, note_tried
from tests.conftest import REPOSITORY
from tests.shards import write_root

STUDIES = {"smoke": 2, "table1": 24, "table3": 12, "qualities": 20, "scaling": 8}


def study_of(axes: dict, models: dict | None = None, **common: object) -> Study:
    study = Study(models=models or {"meso4": {"model.name": "meso4"}}, axes=axes)
    study.study.name = "made-up"
    study.settings = {"data.root": "shards", **common}
    return study


names = st.lists(st.from_regex(r"[a-z][a-z0-9]{0,3}", fullmatch=True), min_size=1, max_size=2, unique=True)


@settings(max_examples=8)
@given(
    names,
    st.lists(st.sampled_from([77, 60, 15, 10, "raw"]), min_size=1, max_size=3, unique=True),
    st.lists(st.integers(0, 99), min_size=1, max_size=2, unique=True),
)
def test_the_grid_is_complete_in_a_fixed_order_and_no_name_comes_twice(
    models: list[str], qualities: list, seeds: list[int]
) -> None:
    study = study_of({"data.quality": qualities, "seed": seeds}, {name: {"model.name": "meso4"} for name in models})
    cells = cells_of(study, {})
    assert len(cells) == prod(map(len, (models, qualities, seeds))) == len({cell.name for cell in cells})
    placed = [(cell.place["model"], cell.config.quality, cell.config.seed) for cell in cells]
    assert placed == list(product(models, qualities, seeds))
    assert [cell.name for cell in cells_of(study, {})] == [cell.name for cell in cells]


def test_what_is_nearer_to_a_cell_wins(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("model: {name: meso4}\ntrain: {epochs: 1}\noptim: {lr: 0.1}\nseed: 5\n")
    models = {"a": {"config": str(base), "optim": {"lr": 0.3}}, "b": {"model.name": "meso_inception4"}}
    axes = {"size": {"small": {"data.image_size": 64}, "large": {"data.image_size": 128, "train.log_every": 3}}}
    cells = {cell.name: cell for cell in cells_of(study_of(axes, models, **{"optim.lr": 0.2}), {"seed": 9})}
    assert list(cells) == ["a-small", "a-large", "b-small", "b-large"]
    assert cells["a-large"].place == {"model": "a", "size": "large"}
    config = cells["a-large"].config
    assert (config.train.epochs, config.optim.lr, config.seed) == (1, 0.3, 9)
    assert (config.data.image_size, config.train.log_every) == (128, 3)
    assert cells["b-small"].config.optim.lr == 0.2


@pytest.mark.parametrize("flag", ["--dry_run", "--dry-run"])
def test_a_dry_run_is_spelled_either_way(flag: str) -> None:
    assert read_call(["--config", str(REPOSITORY / "configs" / "studies" / "smoke.yaml"), flag]).dry_run


@pytest.mark.parametrize("name", STUDIES)
def test_the_studies_that_come_with_the_project_are_sound(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert sorted(STUDIES) == sorted(path.stem for path in Path("configs/studies").glob("*.yaml"))
    nowhere = ["--study.dir", "runs/no-such", "--study.runs", "runs/no-such/"]  # that of `make demo` may be there
    assert main(["--config", f"configs/studies/{name}.yaml", *nowhere, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert f"0 of {STUDIES[name]} trainings done" in printed
    assert "how long the rest takes is unknown" in printed
    assert not Path("runs/no-such").exists()


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        ({}, ["--axes.data.qualty", "[77]"], "axes.data.qualty: no such key; did you mean data.quality?"),
        ({}, ["--model.nme", "x"], "model.nme: no such key; did you mean model.name?"),
        ({"settings": {"optim": {"lrr": 1}}}, [], "settings.optim.lrr: no such key; did you mean optim.lr?"),
        ({"models": {"a": {"trian.epochs": 1}}}, [], "models.a.trian.epochs: no such key; did you mean train.epochs?"),
        (
            {"models": {"a": {"model.name": "mesoo4"}}},
            [],
            "a-q77: model.name: 'mesoo4' is unknown; did you mean meso4?",
        ),
        ({"models": {"a": {"config": "no.yaml"}}}, [], "models.a.config: no.yaml: no such file"),
        ({"models": {}}, [], "models: there is none"),
        ({"models": {"a/b": {}}}, [], "models.a/b: 'a/b' can't be part of a folder's name"),
        ({"axes": {"data.quality": []}}, [], "axes.data.quality: is empty"),
        ({"axes": {"seed": [1, 1]}}, [], "two cells are called meso4-seed1"),
        ({"axes": {"data.quality": [770]}}, [], "axes.data.quality: quality '770' is neither"),
        ({"axes": {"optim.lr": [-1]}}, [], "meso4-lr-1: optim.lr: -1.0 is out of range"),
        ({"axes": {"w": {"a": {"seed": 1}}, "seed": [2]}}, [], "axes.seed: sets seed, as axes.w does"),
        ({}, ["--data.quality", "15"], "data.quality: is set by the axis data.quality"),
        ({}, ["--run.dir", "x"], "run.dir: a cell's run folder is"),
        ({}, ["--runner.kind", "rai"], "runner.kind: got 'rai', allowed is torchrun | ray | slurm"),
        ({}, ["--runner.cpus", "2"], "runner.cpus: 2 has no effect here; set runner.kind to ray"),
        ({}, ["--runner.ranks", "3"], "train.global_batch_size: 64 is not a multiple of"),
        ({}, ["--wait"], "wait: has an effect with runner.kind slurm only"),
        ({}, ["--restart", "meso"], "restart: 'meso' is no cell of this study; they are meso4-q77"),
        ({}, ["--evaluate.qualities", "[77, 15]"], "holds no set q15"),
        ({}, ["--data.root", "nowhere"], "data.root: nowhere: no such folder"),
        ({"report": {"baseline": "meso"}}, [], "report.baseline: 'meso' is none of the models; did you mean meso4?"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_anything_starts(
    change: dict,
    words: list[str],
    message: str,
    shard_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = {
        "study": {"dir": str(tmp_path / "study")},
        "models": {"meso4": {"model.name": "meso4"}},
        "axes": {"data.quality": [77]},
        "settings": {"data.root": str(shard_root)},
    }
    file = tmp_path / "made-up.yaml"
    file.write_text(yaml.safe_dump(content | change, sort_keys=False))
    if "settings" in change:
        file.write_text(yaml.safe_dump(content | {"settings": content["settings"] | change["settings"]}))
    assert main(["--config", str(file), *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert said.startswith("python -m launch.study: error: ")
    assert not (tmp_path / "study").exists()


def test_without_a_file_it_says_which_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "configs/studies/smoke.yaml" in capsys.readouterr().err


def finished(folder: StudyFolder, cell: Cell, seconds: float) -> None:
    """A run folder as a finished training leaves it, as far as a plan looks."""
    run = RunFolder(folder.run(cell.name))
    run.path.mkdir(parents=True)
    run.config.write_text(cell.config.to_yaml())
    run.write_status("finished", step=8, seconds=seconds)


def test_the_plan_tells_what_is_done_and_how_long_the_rest_takes(tmp_path: Path) -> None:
    models = {"meso4": {"model.name": "meso4"}, "long": {"model.name": "meso4", "train.epochs": 30}}
    study = study_of({"data.quality": [77, 15]}, models)
    cells, folder = cells_of(study, {}), StudyFolder(tmp_path / "study", "made-up")
    with folder.claim():
        finished(folder, cells[0], 100)
        killed = RunFolder(folder.run("meso4-q15"))
        killed.path.mkdir(parents=True)
        killed.config.write_text(cells[1].config.to_yaml())
        killed.write_status("preempted", "SIGTERM", step=6, total_steps=8)
        entries = {entry.cell.name: entry for entry in look(cells, folder)}
        with pytest.raises(UserError, match="in use by another study"), StudyFolder(folder.path, "made-up").claim():
            pass
    assert [entry.state for entry in entries.values()] == ["finished", "started", "new", "new"]
    assert entries["meso4-q15"].expected_s == pytest.approx(25)
    assert entries["long-q77"].expected_s == pytest.approx(300)  # 30 epochs where it was 10
    text = describe(study, folder, list(entries.values()), "torchrun")
    assert "meso4-q15  goes on  after step 6 of 8; preempted: SIGTERM" in text
    told = outlook(list(entries.values()), 1)
    assert told == "1 of 4 trainings done; the rest takes about 10 min 25 s, one at a time"
    assert look(cells, folder, ["meso4-q77"])[0].state == "new"


def test_first_steps_tell_as_long_as_nothing_has_finished_and_nothing_changes(tmp_path: Path) -> None:
    models = {"meso4": {"model.name": "meso4"}, "b0": {"model.name": "efficientnet_b0"}}
    study = study_of({"data.quality": [77, 15], "seed": [0, 1]}, models)
    cells, folder = cells_of(study, {}), StudyFolder(tmp_path / "study", "made-up")
    with folder.claim():
        assert outlook(look(cells, folder), 2).endswith(
            "how long the rest takes is unknown: none like it has been timed here"
        )
        note_tried(cells[0], 60, folder)
        entries = look(cells, folder)
        assert [entry.expected_s for entry in entries] == [60] * 4 + [None] * 4
        assert entries[3].told == "about 1 min in all, since meso4-q77-seed0 would take 1 min by its first steps"
        assert outlook(entries, 2).endswith("4 of the rest take about 2 min, 2 at a time; of the others it is unknown")
        note_tried(cells[4], 90, folder)
        assert outlook(look(cells, folder), 2).endswith("the rest takes about 5 min, 2 at a time")

        longer = cells_of(study, {"train.epochs": "20"})  # twice as many
        assert [entry.expected_s for entry in look(longer, folder)] == [None] * 8

        finished(folder, cells[1], 80)
        assert [entry.expected_s for entry in look(cells, folder)] == [80, 0, 80, 80, 90, 90, 90, 90]


def test_what_some_steps_can_not_do_is_left_out_of_them() -> None:
    study = study_of({"data.quality": [77]}, {"ma": {"model.name": "multi_attention"}})
    study.settings |= {"profile.steps": [100, 110], "profile.ranks": [0], "train.max_minutes": 60, "train.epochs": 40}
    study.settings |= {"multi_attention.backbone_epochs": 2, "multi_attention.head_epochs": 3}
    study.settings |= {"tracking.tags": {"of": "mine"}}
    (cell,) = cells_of(study, {})
    config = training_config(words_to_try(cell, 12))
    config.validate()
    assert (config.train.max_steps, config.train.max_minutes, config.profile.steps) == (12, None, None)
    assert (config.multi_attention.backbone_epochs, config.multi_attention.head_epochs) == (0, 0)
    assert config.model.name == "multi_attention"
    assert config.train.epochs == 40


def test_a_report_without_an_evaluation_that_failed_is_not_the_last_word(tmp_path: Path) -> None:
    study = study_of({"data.quality": [77]})
    cells, folder = cells_of(study, {}), StudyFolder(tmp_path / "study", "made-up")
    out = folder.path / "matrix" / "matrix.parquet"
    step = Step("matrix", ("-m", "fdtrain"), out, "digest")
    with folder.claim():
        finished(folder, cells[0], 100)
        out.parent.mkdir()
        out.touch()  # of other models: the note doesn't know it
        without = report_step(study, folder, cells, [step], b"")
        folder.write_note(DONE, {"matrix": "digest"})
        complete = report_step(study, folder, cells, [step], b"")
    assert "--matrix" not in without.words
    assert "--matrix" in complete.words
    assert without.digest != complete.digest


@pytest.mark.parametrize(("key", "value", "is_same"), [("optim.lr", 0.5, False), ("tracking.register", False, True)])
def test_a_run_with_other_settings_is_refused(tmp_path: Path, key: str, value: object, is_same: bool) -> None:
    axes: dict = {"data.quality": [77]}
    folder = StudyFolder(tmp_path / "study", "made-up")
    with folder.claim():
        finished(folder, cells_of(study_of(axes), {})[0], 1)
    others = cells_of(study_of(axes, **{key: value}), {})
    if is_same:
        assert look(others, folder)[0].state == "finished"
    else:
        with pytest.raises(UserError, match=r"trained with optim.lr 0.0003, .* --restart meso4-q77"):
            look(others, folder)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study", "one")
    with folder.claim():
        folder.write_record({"cells": []})
    with pytest.raises(UserError, match="holds the study one"):
        StudyFolder(folder.path, "another")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").touch()
    with pytest.raises(UserError, match="is the folder of a run"):
        StudyFolder(run, "one")


def test_a_run_set_aside_is_kept(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study", "one", str(tmp_path / "one-"))
    for number in (1, 2):
        folder.run("a").mkdir(parents=True)
        with folder.claim():
            assert folder.set_aside("a") == folder.path / "replaced" / f"a-{number}"
        assert not folder.run("a").exists()
    assert folder.set_aside("a") is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.6, "1 min"), (200, "3 min 20 s"), (3600, "1 h"), (18_600, "5 h 10 min"), (180_000, "2 d 2 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def vars_of(call: Call) -> tuple[Study, dict]:
    return call.study, dict(call.overrides)


def test_words_behind_the_file_win(tmp_path: Path) -> None:
    file = tmp_path / "few.yaml"
    file.write_text("models: {meso4: {model.name: meso4}}\naxes: {seed: [0]}\nsettings: {data.root: x}\n")
    call = read_call(["--config", str(file), "--axes.seed", "[1, 2]", "--optim.lr=0.5", "--study.dir", "there"])
    words = ["--config", str(file), "--train.compile", "off"]  # which YAML 1.1 takes for a false
    assert {cell.config.train.compile for cell in cells_of(*vars_of(read_call(words)))} == {"off"}
    assert (call.study.name, call.study.folder) == ("few", Path("there"))
    assert [(cell.config.seed, cell.config.optim.lr) for cell in cells_of(call.study, call.overrides)] == [
        (1, 0.5),
        (2, 0.5),
    ]


def test_means_over_seeds_have_their_deviation() -> None:
    assert _pooled([Estimate(0.8, 0.7, 0.9)]) == Estimate(0.8, 0.7, 0.9)
    mean = _pooled([Estimate(0.8), Missing("x"), Estimate(0.9)], Gain)
    assert isinstance(mean, Gain)
    assert (mean.value, mean.deviation) == (pytest.approx(0.85), pytest.approx(0.0707107))
    assert mean.text == "+0.8500 (± 0.0707)"
    assert _pooled([Missing("a"), Missing("b")]) == Missing("a")
    table = Table("t.csv", "", ["row", "auc"], [Block("", [Row("r", [mean]), Row("s", [Estimate(0.5, 0.4, 0.6)])])])
    head, first, second = table.csv().decode().splitlines()
    assert head == "block,row,auc,auc low,auc high,auc sd,missing"
    assert first == ",r,0.85,,,0.0707107,"
    assert second == ",s,0.5,0.4,0.6,,"


@pytest.mark.parametrize(
    "content", ["no JSON", '{"x": 1}', "[]", '{"format": "other"}', '{"format": "fdtrain-study", "cells": []}']
)
def test_what_is_no_record_of_a_study_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "study.json"
    with pytest.raises(UserError, match="can't be read"):
        read_study(path, [])
    path.write_text(content)
    with pytest.raises(UserError, match=r"no study\.json that launch\.study has written"):
        read_study(path, [])


def test_a_dead_ray_cluster_is_named_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--runner.kind", "ray", "--runner.address", "127.0.0.1:9"]
    words += ["--study.dir", str(tmp_path / "study"), "--study.runs", str(tmp_path / "study-")]
    assert main(["--config", str(REPOSITORY / "configs/studies/smoke.yaml"), *words, "--dry-run"]) == 1
    assert (
        "error: runner.address: no Ray cluster answers at 127.0.0.1:9 (Connection refused)" in capsys.readouterr().err
    )


def test_a_record_that_says_the_same_is_left_alone(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study", "one")
    with folder.claim():
        text = folder.write_record({"cells": []})
        before = folder.record.stat().st_mtime_ns
        assert folder.write_record({"cells": []}) == text
        assert folder.record.stat().st_mtime_ns == before
    assert json.loads(text) == {"format": "fdtrain-study", "name": "one", "cells": []}


def bash(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def test_a_setting_of_several_lines_is_one_training_of_an_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = 'it\'s a \\n note\nof "two" $LINES'
    study = study_of({"seed": [0, 1]})
    study.settings |= {"tracking.tags": {"note": note}, "tracking.data_licence": note}
    entries = [Entry(cell, "new") for cell in cells_of(study, {})]
    bash(tmp_path / "sbatch", f'printf "%s\\n" "$@" >{tmp_path}/asked; echo 7')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    folder = StudyFolder(tmp_path / "study", "made-up")
    with folder.claim():
        assert SlurmArray(folder).submit(entries, "made-up") == "7"
    file = (tmp_path / "asked").read_text().splitlines()[-1]

    (tmp_path / "slurm").mkdir()
    shutil.copy(REPOSITORY / "slurm" / "common.sh", tmp_path / "slurm")
    bash(tmp_path / "slurm" / "train.sh", f'printf "%s\\0" "$@" >{tmp_path}/words')
    for number, entry in enumerate(entries):
        command = ["bash", str(REPOSITORY / "slurm" / "study_array.sbatch"), file]
        subprocess.run(
            command, env=os.environ | {"FDTRAIN_HOME": str(tmp_path), "SLURM_ARRAY_TASK_ID": str(number)}, check=True
        )
        words = (tmp_path / "words").read_text().split("\0")[:-1]
        assert words == [*entry.cell.words, "--run.dir", str(folder.run(entry.cell.name))]
        assert training_config(words).tracking.data_licence == note


@pytest.mark.xfail(strict=True, reason="evaluation and report still run where the study is called again")
def test_what_follows_an_array_is_a_job_that_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bash(tmp_path / "sbatch", f'echo "$@" >>{tmp_path}/asked; echo 7')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    content = {"models": {"a": {"model.name": "meso4"}}, "axes": {"seed": [0]}, "runner": {"kind": "slurm"}}
    content |= {"settings": {"data.root": str(write_root(tmp_path / "root")), "tracking.enabled": False}}
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(content))
    bash(tmp_path / "squeue", "echo 0")
    assert main(["--config", str(tmp_path / "few.yaml"), "--study.dir", str(tmp_path / "study")]) == 0
    assert [call.count("--dependency=afterany:7") for call in (tmp_path / "asked").read_text().splitlines()] == [0, 1]


def test_waiting_for_an_array_outlasts_a_controller_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "answers"
    answers.write_text("0\n0\nfail\nfail\n0\n\n")
    fail = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"
    bash(
        tmp_path / "squeue",
        f"a=$(head -n1 {answers}); sed -i 1d {answers}; [[ $a != fail ]] || {{ {fail}; }}; echo -n $a",
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("POLL_S", "LONGEST_POLL_S"):
        monkeypatch.setattr(array, name, 0.01)
    folder = StudyFolder(tmp_path / "study", "made-up")
    with folder.claim(), Interrupt() as interrupt:
        folder.write_note(array.NOTE, {"job": "7", "file": "f", "cells": ["a"], "collected": False})
        SlurmArray(folder).wait(interrupt)
        assert not answers.read_text()
        printed = capsys.readouterr()
        assert printed.out == "job 7: 1 of 1 training under way\n"
        assert printed.err.count("warning: squeue: slurm_load_jobs error: Unable to contact") == 2
        monkeypatch.setattr(array, "PATIENCE_S", 0)
        answers.write_text("fail\nfail\n")
        with pytest.raises(array.SlurmAwayError, match="try again when Slurm answers"):
            SlurmArray(folder).wait(interrupt)
