"""What a sweep keeps on disk, what the searcher and ASHA know of it when it goes on, and what it shows at the end."""

import csv
import json
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from fdtrain.cli import parse, training_config
from fdtrain.config import HostError, UserError
from launch.sweep import command
from launch.sweep.best import write_best
from launch.sweep.cluster import Cluster
from launch.sweep.command import split_words
from launch.sweep.config import SchedulerConfig, SearcherConfig, SweepConfig
from launch.sweep.estimate import seconds_left
from launch.sweep.figures import draw, importances
from launch.sweep.plan import Plan, make_plan, settings_before, settings_of
from launch.sweep.results import measure, table, write_results
from launch.sweep.study import Epoch, Study
from launch.sweep.sweep import _require_best
from tests.conftest import REPOSITORY

SPACE = {
    "optim.lr": {"loguniform": [1e-4, 1e-2]},
    "optim.min_lr": {"loguniform": [1e-7, "optim.lr"]},
    "augment.preset": {"choice": ["none", "flip"]},
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("sweep")
    settings = {"data.root": "somewhere", "train.epochs": 4}
    base, best = str(REPOSITORY / "configs" / "meso4.yaml"), str(folder / "best")
    sweep = SweepConfig(base=base, settings=settings, space=SPACE, trials=6, storage=str(folder), best_dir=best)
    sweep.searcher = SearcherConfig(startup_trials=2)
    return make_plan(sweep, 77)


def at(plan: Plan, folder: Path, **changes: object) -> Plan:
    sweep = SweepConfig(**{each.name: getattr(plan.sweep, each.name) for each in fields(SweepConfig)} | changes)  # type: ignore[arg-type]
    return Plan(sweep, plan.quality, plan.space, plan.base, folder / "meso4-sweep" / "q77")


def fill(study: Study) -> None:
    """Six trials: three finished, one stopped, one failed, one left under way."""
    courses = [(0.5, 0.6, 0.7, 0.65), (0.4,), (0.8, 0.7, 0.9, 0.85), (None,), (0.6, 0.7, 0.8, 0.8), (0.5, 0.6)]
    for course in courses:
        number = study.ask()
        for epoch, value in enumerate(course, start=1):
            study.report(number, Epoch(epoch, value, 10.0 if epoch == 1 else 2.0))
        if number == 3:
            study.end(number, "failed", 3.0, "it diverged")
        elif number != 5:
            study.end(number, "finished" if len(course) == 4 else "stopped", 20.0)


def test_a_study_goes_on_with_all_that_it_knew(plan: Plan, tmp_path: Path) -> None:
    study = Study(at(plan, tmp_path), resume=False)
    fill(study)
    before = study.trials()
    with pytest.raises(UserError, match="holds a sweep already; go on with it by --resume"):
        Study(at(plan, tmp_path), resume=False)
    with pytest.raises(UserError, match="is in use by another sweep"):
        Study(at(plan, tmp_path), resume=True)
    study.close()
    # A line that a crash cut short
    path = tmp_path / "meso4-sweep" / "q77" / "study.jsonl"
    path.write_bytes(path.read_bytes() + b'{"op_code": 5, "wor')
    again = Study(at(plan, tmp_path, trials=9), resume=True)
    assert again.trials() == before
    assert [trial.state for trial in before] == ["finished", "stopped", "finished", "failed", "finished", "running"]
    assert (again.best() or before[0]).number == 2
    again.report(5, Epoch(2, 0.1, 1.0))  # what it had reported before stays
    assert again.trial(5).epochs == before[5].epochs
    drawn = [trial.drawn for trial in before]
    again.ask()
    assert again.trials()[-1].drawn not in drawn
    again.close()
    with pytest.raises(UserError, match=r"metric: val/frame/auc where .* was searched with val/video/auc"):
        Study(at(plan, tmp_path, metric="val/frame/auc"), resume=True)
    with pytest.raises(UserError, match=r"^seed: 5 where .* was searched with 0"):  # the trainings have a seed too
        Study(at(plan, tmp_path, seed=5), resume=True)


def test_a_study_of_an_older_release_goes_on(plan: Plan) -> None:
    """Keys that it hadn't stood at their defaults; what makes no other model may change."""
    new = settings_of(plan)
    known = {key: value for key, value in new.items() if key not in ("settings.train.test", "settings.optim.ema_decay")}
    known |= {"settings.checkpoint.keep": 99, "settings.data.root": "elsewhere"}  # its data's digests are compared
    assert settings_before(known) == new
    del known["settings.data.contest_share"]
    assert settings_before(known) == new | {"settings.data.contest_share": 0.0}  # its trials held nobody out


def test_what_is_left_is_told_by_what_was_measured(plan: Plan, tmp_path: Path) -> None:
    """An epoch takes 2 s, the rest of a trial 12; one is two epochs from its end, and two weren't begun."""
    study = Study(at(plan, tmp_path, trials=8, scheduler=SchedulerConfig("none")), resume=False)
    study.report(study.ask(), Epoch(1, 0.5, 10.0))
    assert seconds_left(study, 1) is None
    study.end(0, "stopped", 12.0)
    assert seconds_left(study, 1) is None
    study.close()
    (tmp_path / "meso4-sweep" / "q77" / "study.jsonl").unlink()
    study = Study(at(plan, tmp_path, trials=8, scheduler=SchedulerConfig("none")), resume=False)
    fill(study)
    assert seconds_left(study, 1) == pytest.approx(2 * (12 + 4 * 2) + 2 * 2)
    assert seconds_left(study, 2) == pytest.approx(22)
    study.report(study.ask(), Epoch(1, 0.5, 10.0))
    assert seconds_left(study, 1) == pytest.approx((12 + 4 * 2) + 2 * 2 + 3 * 2)
    assert seconds_left(study, 9) == pytest.approx(12 + 4 * 2)  # what is left of one of them
    study.close()
    fewer = Study(at(plan, tmp_path, trials=4, scheduler=SchedulerConfig("none")), resume=True)
    assert seconds_left(fewer, 1) == 0
    fewer.close()
    # With rungs after epochs 1 and 3, a third goes on: 4/3 more of the 2 that are left after epoch 2.
    asha = Study(at(plan, tmp_path / "asha", trials=6), resume=False)
    fill(asha)
    assert seconds_left(asha, 1) == pytest.approx((1 + 1 / 3) * 2)


def test_ray_can_put_down_what_records_a_search(plan: Plan, tmp_path: Path) -> None:
    """It pickles its callbacks, and all that they hold, before the first trial."""
    from ray import cloudpickle

    from launch.sweep.progress import Recorder
    from launch.sweep.scheduler import NoScheduler

    assert cloudpickle.dumps(Recorder(Study(at(plan, tmp_path), resume=False), NoScheduler(), parallel=1))


def test_the_same_seed_draws_the_same_trials(plan: Plan, tmp_path: Path) -> None:
    drawn = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        study = Study(at(plan, tmp_path / name, seed=seed), resume=False)
        fill(study)
        drawn.append([trial.settings for trial in study.trials()])
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(settings["optim.min_lr"] <= settings["optim.lr"] for settings in drawn[0])


def test_a_draw_that_was_cut_short_is_completed_or_ended(plan: Plan, tmp_path: Path) -> None:
    """A crash between what Optuna writes of a new trial and the settings that follow from it."""
    study = Study(at(plan, tmp_path), resume=False)
    whole = study.study.ask(study.distributions)
    study.study.ask({key: study.distributions[key] for key in list(study.distributions)[:1]})
    study.close()
    again = Study(at(plan, tmp_path), resume=True)
    assert again.trial(0).settings == plan.space.settings(whole.params)
    assert [trial.state for trial in again.trials()] == ["running", "failed"]
    assert again.trial(1).reason == "the sweep was killed while it drew its settings"
    again.report(0, Epoch(1, 0.5, 1.0))
    again.end(0, "finished", 1.0)
    assert "trial 1 failed" in table(again)
    draw(again)
    write_results(again, {})


def test_trials_of_which_nothing_can_be_learnt_have_no_figure_of_importance(plan: Plan, tmp_path: Path) -> None:
    study = Study(at(plan, tmp_path), resume=False)
    for value in (0.5, 0.5 + 1e-8, 0.5, 0.5):
        number = study.ask()
        study.report(number, Epoch(1, value, 1.0))
        study.end(number, "finished", 1.0)
    figures, remarks = draw(study)
    assert [path.name for path in figures] == ["parallel_coordinates.png"]
    assert "no figure of importance" in remarks[0]
    assert measure(study).full_epochs == 4  # though train.epochs says 4 for each: they were finished after one


def test_a_trial_whose_metric_was_never_defined_has_failed(plan: Plan, tmp_path: Path) -> None:
    study = Study(at(plan, tmp_path), resume=False)
    number = study.ask()
    study.report(number, Epoch(1, None, 1.0))
    study.end(number, "finished", 1.0)
    assert study.trial(number).state == "failed"
    assert study.trial(number).reason == "val/video/auc was undefined in every epoch"
    assert study.best() is None


class Known:
    """What ASHA asks of Ray's trial."""

    def __init__(self, number: int, trial_id: str) -> None:
        self.config, self.trial_id = {"number": number}, trial_id


def test_asha_that_goes_on_decides_as_one_that_was_never_left(plan: Plan, tmp_path: Path) -> None:
    from launch.sweep.scheduler import NumberedAsha

    metric = plan.sweep.metric
    changed = at(plan, tmp_path)
    courses = [(0.5, 0.6, 0.7, 0.7), (0.9, 0.9, 0.9, 0.9), (0.4, 0.5, 0.9, 0.9), (0.95, 0.1, 0.1, 0.1), (0.8, 0.7)]

    def play(scheduler: NumberedAsha, numbers: range, suffix: str) -> list[str]:
        said = []
        for number in numbers:
            trial = Known(number, f"{number}-{suffix}")
            scheduler.on_trial_add(None, trial)
            for epoch, value in enumerate(courses[number], start=1):
                said.append(scheduler.on_trial_result(None, trial, {"epoch": epoch, metric: value}))
                if said[-1] == "STOP":
                    break
            scheduler.on_trial_complete(None, trial, {"epoch": epoch, metric: value})
        return said

    whole = play(NumberedAsha(changed, []), range(5), "a")
    assert whole.count("STOP") == 3  # after the first epoch trials 2 and 4, after the third trial 3
    study = Study(changed, resume=False)
    first = NumberedAsha(changed, [])
    begun = play(first, range(3), "a")
    for number in range(3):
        study.ask()
        for epoch, value in enumerate(courses[number], start=1):
            study.report(number, Epoch(epoch, value, 1.0))
            if number in first.stopped:
                break
    resumed = NumberedAsha(changed, study.trials())
    assert begun + play(resumed, range(3, 5), "b") == whole
    # A trial that goes on doesn't stand in a rung twice, and tells again what it told.
    assert play(resumed, range(1, 2), "b") == ["CONTINUE"] * 4


def test_results_figures_and_the_best_settings(plan: Plan, tmp_path: Path) -> None:
    study = Study(at(plan, tmp_path, best_dir=str(tmp_path / "best")), resume=False)
    fill(study)
    times = measure(study)
    assert times.epochs == 4 + 1 + 4 + 1 + 4 + 2
    assert times.plain == 6 * (10 + 3 * 2)
    lines = table(study).splitlines()
    assert lines[2].split()[:4] == ["2", "finished", "4", "0.9000"]
    assert "trial 3 failed: it diverged" in lines
    paths = write_results(study, {"config": "x"})
    rows = list(csv.DictReader(paths[0].open()))
    assert [row["trial"] for row in rows] == ["2", "4", "0", "1", "5", "3"]
    assert json.loads(paths[1].read_text())["best"] == 2
    figures, remarks = draw(study)
    assert [path.name for path in figures] == ["parallel_coordinates.png", "importance.png"]
    assert remarks == []
    best = study.best()
    assert best is not None
    written = training_config(["--config", str(write_best(study, best))])
    written.validate()
    assert written.optim.lr == best.settings["optim.lr"]
    assert (written.data.quality, written.run.dir, written.tracking.register) == (77, None, True)
    file = tmp_path / "best" / "meso4-q77.yaml"
    assert write_best(study, best) == file  # its own is written anew
    file.write_text("# somebody's\n")
    others = [write_best(study, best) for _ in range(2)]
    assert others == [file.with_name("meso4-q77-meso4-sweep.yaml")] * 2
    assert file.read_text() == "# somebody's\n"
    with pytest.raises(ValueError, match="2 trials with a value are too few"):
        importances(study, study.trials()[:2], 1)


def test_words_of_trainings_stand_over_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"settings": {"data.root": "a", "train.epochs": 3}, "space": SPACE}))
    words = ["--config", str(file), "--qualities", "77", "raw", "--data.root", "b", "--optim.lr=1e-3", "--trials", "5"]
    arguments = parse("sweep", command, split_words(words))
    assert arguments.overrides == {"data.root": "b", "optim.lr": "1e-3"}
    assert (arguments.qualities, arguments.trials, arguments.space) == (["77", "raw"], 5, SPACE)
    with pytest.raises(UserError, match=r"data\.root"):
        parse("sweep", command, split_words([*words, "--data.root"]))


def test_words_without_a_section_and_qualities_of_two_spellings() -> None:
    words = ["--precision", "bf16", "--deterministic=true", "--seed", "3", "--optim.lr=0.1", "--trials", "2"]
    own = ["--seed", "3", "--trials", "2"]  # a sweep has a seed of its own
    overrides = {"precision": "bf16", "deterministic": "true", "optim.lr": "0.1"}
    assert split_words(words) == [*own, "--overrides", json.dumps(overrides)]
    with pytest.raises(UserError, match="no such file"):  # and not the 77 that is there twice
        command.run(parse("sweep", command, ["--qualities", "77", "077", "--base", "nowhere.yaml"]))


def test_a_sweep_goes_on_over_its_own_data(plan: Plan, tmp_path: Path) -> None:
    study = Study(at(plan, tmp_path), resume=False)
    study.keep_data(["abc"])
    study.close()
    again = Study(at(plan, tmp_path), resume=True)
    again.keep_data(["abc"])
    with pytest.raises(UserError, match=r"data\.root: .* isn't the shard set that .*q77 was searched on"):
        again.keep_data(["def"])
    again.close()


def test_a_sweep_in_which_nothing_finished_is_no_success(plan: Plan, tmp_path: Path) -> None:
    changed = at(plan, tmp_path, trials=1)
    study = Study(changed, resume=False)
    study.end(study.ask(), "failed", 3.0, "it diverged")
    study.conclude()
    with pytest.raises(HostError, match="no trial was finished"):
        _require_best({changed.folder: study})
    study.close()


def test_the_example_lists_every_key_with_a_comment() -> None:
    text = (REPOSITORY / "configs" / "sweep.yaml").read_text()
    content = yaml.safe_load(text)
    assert content.keys() == {each.name for each in fields(SweepConfig)}
    sweep = SweepConfig(**content | {"base": str(REPOSITORY / content["base"])})
    sweep.searcher, sweep.scheduler = SweepConfig().searcher, SweepConfig().scheduler
    sweep.settings["data.root"] = "somewhere"
    sweep.validate()
    assert make_plan(sweep, "raw").group == "meso4-sweep-raw"


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, 6),
        ({"gpus_per_worker": 0.5}, 12),
        ({"gpus_per_worker": 0.4}, 12),  # a part of a GPU is of one GPU
        ({"gpus_per_worker": 0.7}, 6),
        ({"workers": 2, "cpus_per_worker": 4}, 3),
        ({"workers": 4}, 1),
        ({"max_concurrent": 2}, 2),
        ({"gpus_per_worker": 0.0, "cpus_per_worker": 16}, 2),
        ({"cpus_per_worker": 17}, "cpus_per_worker: 17 CPUs of one node, and no node has more than 16"),
        ({"gpus_per_worker": 5.0}, "gpus_per_worker: 5 GPUs of one node, and no node has more than 4"),
        ({"workers": 7}, "workers: a trial has 7 of 1 CPUs and 1 GPUs each, and there is room for 6"),
    ],
)
def test_trials_at_a_time_follow_from_the_nodes(changes: dict, outcome: int | str) -> None:
    cluster = Cluster({"n1": {"CPU": 16.0, "GPU": 4.0}, "n2": {"CPU": 16.0, "GPU": 2.0}}, {})
    changes = {"gpus_per_worker": None} | changes
    if isinstance(outcome, int):
        assert cluster.parallel(SweepConfig(**changes)) == outcome
        return
    with pytest.raises(UserError) as caught:
        cluster.parallel(SweepConfig(**changes))
    assert outcome in str(caught.value)


def test_a_node_says_what_it_does_not_see(plan: Plan, shard_root: Path, tmp_path: Path) -> None:
    from launch.sweep.cluster import look

    probe = tmp_path / "probe"
    changed = at(plan, tmp_path)
    assert look(changed, str(probe))[0] == (
        f"storage: {tmp_path} isn't the folder that the sweep writes to; name one that all nodes share"
    )
    probe.write_text("seen")
    assert look(changed, str(probe))[0].startswith(f"data.root: {Path('somewhere').absolute()}")
    changed.base.data.root = str(shard_root)
    try:
        fault, digests, versions = look(changed, str(probe))
        assert (fault, len(digests)) == ("", 1)
        assert "torch 2." in versions
    finally:
        changed.base.data.root = str(Path("somewhere").absolute())
