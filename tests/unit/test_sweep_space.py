"""The search space: what it may say, what is drawn from it, and what is refused before anything starts."""

from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fdtrain.cli import training_config
from fdtrain.config import UserError
from launch.pace import settings_to_try
from launch.sweep.config import SchedulerConfig, SweepConfig
from launch.sweep.estimate import expected_epochs
from launch.sweep.plan import Plan, base_words, get, make_plan, words_of
from launch.sweep.space import parse_space
from tests.conftest import REPOSITORY

LR = {"loguniform": [1e-4, 1e-2]}


def plan(tmp_path: Path, space: dict, **given: object) -> Plan:
    base = str(REPOSITORY / "configs" / "meso4.yaml")
    known = {"data.root": "somewhere", "train.global_batch_size": 32, "train.micro_batch_size": 8}
    own = {key: value for key, value in given.items() if "." not in key}
    known |= {key: value for key, value in given.items() if "." in key}
    sweep = SweepConfig(**{"base": base, "settings": known, "space": space, "storage": str(tmp_path)} | own)  # type: ignore[arg-type]
    sweep.validate()
    return make_plan(sweep, 77)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "space: nothing is searched"),
        ({"optim.lr": [1e-4, 1e-2]}, "space.optim.lr: [0.0001, 0.01] is no range; write one of uniform,"),
        ({"optim.lr": {"normal": [0, 1]}}, "space.optim.lr: no kind of range is called 'normal'"),
        ({"optim.lr": {"uniform": 0.1}}, "space.optim.lr: uniform takes a list, not 0.1"),
        ({"optim.lr": {"uniform": [0.1]}}, "space.optim.lr: uniform takes 2 values, and here are 1"),
        ({"optim.lr": {"uniform": [0.1, True]}}, "space.optim.lr: True is no number"),
        ({"optim.lr": {"uniform": [0.2, 0.1]}}, "space.optim.lr: the range 0.2 to 0.1 is empty"),
        ({"optim.lr": {"uniform": [0.1, float("inf")]}}, "space.optim.lr: the range 0.1 to inf has no end"),
        ({"optim.lr": {"loguniform": [0, 0.1]}}, "space.optim.lr: the range 0 to 0.1 has no logarithm at 0"),
        ({"optim.warmup_steps": {"int": [0, 1.5]}}, "space.optim.warmup_steps: 1.5 is no whole number"),
        ({"optim.lr": {"quniform": [0.1, 1, 0]}}, "space.optim.lr: the step 0 is no positive number"),
        ({"optim.lr": {"quniform": [0, 0.5, None]}}, "space.optim.lr: the step None is no positive number"),
        ({"optim.lr": {"quniform": [0, 0.5, float("inf")]}}, "space.optim.lr: the step inf is no positive number"),
        ({"optim.warmup_steps": {"int": [None, 3]}}, "space.optim.warmup_steps: None is no whole number"),
        ({"optim.warmup_steps": {"int": [1, float("inf")]}}, "space.optim.warmup_steps: inf is no whole number"),
        ({"optim.warmup_steps": {"int": [[1], 4]}}, "space.optim.warmup_steps: [1] is no whole number"),
        ({"run.notes": {"choice": [date(2026, 11, 28)]}}, "space.run.notes: choice takes no date; put it in quotes"),
        ({"augment.preset": {"choice": []}}, "space.augment.preset: choice has nothing to choose from"),
        ({"augment.preset": {"choice": ["flip", "flip"]}}, "space.augment.preset: choice names one value twice"),
        ({"optim.min_lr": {"uniform": [0, "optim.l"]}}, "space.optim.min_lr: 'optim.l' is neither a number nor a key"),
        (
            {"optim.lr": LR, "optim.min_lr": {"uniform": [0.005, "optim.lr"]}},
            "space.optim.min_lr: the range 0.005 to optim.lr (0.0001) is empty",
        ),
        (
            {"optim.lr": {"uniform": ["optim.min_lr", 1]}, "optim.min_lr": {"uniform": [0, "optim.lr"]}},
            "space: the bounds of optim.lr, optim.min_lr refer to each other in a circle",
        ),
    ],
)
def test_a_bad_range_is_refused_with_its_key(space: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_space(space, {"optim.lr": 1e-3, "train.compile": "off"})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"optim.lrr": LR}, "space.optim.lrr: no such key; did you mean optim.lr?"),
        ({"optim.lr": {"uniform": [-1, 1]}}, "space.optim.lr: -1.0 is out of range; it is a positive number"),
        ({"augment.preset": {"choice": ["none", "flop"]}}, "space.augment.preset: got 'flop', allowed is none | flip"),
        (
            {"optim.warmup_steps": {"uniform": [0, 10]}},
            "space.optim.warmup_steps: got '0.0', allowed is a whole number",
        ),
        (
            {"optim.lr": LR, "loader.prefetch": {"int": [-1, 3]}},
            "space.loader.prefetch: -1 is out of range",
        ),
        (
            {"optim.lr": LR, "optim.min_lr": {"uniform": [0, 0.001]}},
            "space.optim.min_lr: 0.001 is out of range; allowed are 0 to optim.lr",
        ),
        # What is the sweep's own
        ({"data.quality": {"choice": [77, 15]}}, "space.data.quality: it is what --qualities gives; leave it out"),
        ({"train.epochs": {"int": [1, 9]}}, "space.train.epochs: trials are compared epoch by epoch"),
        ({"data.root": {"choice": ["/a", "/b"]}}, "space.data.root: trials on different data can't be compared"),
        (
            {"tracking.uri": {"choice": ["a", "b"]}},
            "space.tracking.uri: the trials of a sweep are recorded in one place",
        ),
        ({"data": {"choice": [{"quality": 15}]}}, "space.data: is a section; search its keys"),
    ],
)
def test_what_a_training_refuses_is_refused_before(tmp_path: Path, space: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(tmp_path, space)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_drawn_is_what_a_trial_trains_with(tmp_path: Path) -> None:
    """Also where the sweep itself has a value for trials to which nothing else gives one."""
    searched = plan(
        tmp_path, {"loader.threads": {"choice": [2, 8]}, "optim.lr": LR, "loader.prefetch": {"int": [1, 3]}}
    )
    for corner in searched.space.corners():
        config = training_config(searched.trial_words(0, corner))
        assert {key: get(config, key) for key in corner} == corner
    assert training_config(plan(tmp_path, {"optim.lr": LR}).trial_words(0, {"optim.lr": 0.1})).loader.threads == 1


@pytest.mark.parametrize(
    "base", [{"tracking.tags": {"team": "a"}}, {"profile.steps": [10, 12]}, {"model.name": "multi_attention"}]
)
def test_some_steps_of_any_base_can_be_tried(tmp_path: Path, base: dict) -> None:
    if "model.name" in base:
        base |= {"multi_attention.backbone_epochs": 1, "train.global_batch_size": 24}
    tried = plan(tmp_path, {"optim.lr": LR}, **base)
    words = base_words(tried.sweep) + words_of({"data.quality": 77} | settings_to_try(tried.base, 4))
    config = training_config(words)
    config.validate()
    assert (config.train.max_steps, config.tracking.tags, config.profile.steps) == (4, None, None)
    assert config.multi_attention.backbone_epochs == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metric": "val/video/auk"}, "metric: val/video/auk is never reported; did you mean val/video/auc?"),
        ({"metric": "test/video/auc"}, "metric: test/video/auc is never reported"),
        ({"metric": "val/video/acc_chosen"}, "metric: val/video/acc_chosen is never reported"),
        ({"trials": 0}, "trials: 0 is out of range"),
        ({"gpus_per_worker": 0.5, "workers": 2}, "gpus_per_worker: 0.5: a part of a GPU is for trials of one worker"),
        ({"gpus_per_worker": 1.5}, "gpus_per_worker: 1.5: a part of a GPU"),
        ({"gpus_per_worker": float("inf")}, "gpus_per_worker: inf is no number of GPUs"),
        ({"storage": "s3://bucket/sweeps"}, "storage: s3://bucket/sweeps is a URL"),
        ({"scheduler": SchedulerConfig(grace_epochs=99)}, "scheduler.grace_epochs: 99 is more than the 20 epochs"),
        ({"run.dir": "x"}, "settings.run.dir: each trial has its own; leave it out"),
        ({"optim.lr": 0.1}, "space.optim.lr: it stands under settings too"),
        ({"settings": {"run": {"dir": "x"}}}, "settings.run.dir: each trial has its own; leave it out"),
        ({"settings": {"optim": {"lr": 0.1}}}, "space.optim.lr: it stands under settings too"),
        ({"train.max_minutes": 5}, "train.max_minutes: 5 would end trials that are not done"),
        ({"data.root": ""}, "data.root: not set"),
        ({"workers": 3}, "train.global_batch_size: 32 is not a multiple of train.micro_batch_size 8 x 3 ranks"),
    ],
)
def test_a_bad_setting_is_refused_with_its_key(tmp_path: Path, given: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(tmp_path, {"optim.lr": LR}, **given)
    assert message in str(caught.value)


def test_lower_is_better_for_an_error_rate() -> None:
    assert SweepConfig(metric="val/frame/auc").maximize
    assert not SweepConfig(metric="val/video/eer").maximize
    assert SweepConfig(metric="val/video/eer", mode="max").maximize


def test_trials_are_ordinary_trainings(tmp_path: Path) -> None:
    """Their configuration is the base, the settings, what was drawn, and what the sweep itself says."""
    from fdtrain.cli import training_config

    made = plan(tmp_path, {"optim.lr": LR, "optim.betas": {"choice": [[0.9, 0.999], [0.5, 0.9]]}})
    config = training_config(made.trial_words(3, {"optim.lr": 0.002, "optim.betas": [0.5, 0.9]}))
    assert (config.optim.lr, config.optim.betas, config.train.global_batch_size) == (0.002, (0.5, 0.9), 32)
    assert (config.run.dir, config.run.resume) == (str(made.folder / "trials" / "trial-003"), "auto")
    assert (config.tracking.parent, config.tracking.register) == ("meso4-sweep-q77", False)
    assert get(config, "loader.threads") == 1


NUMBERS = st.floats(1e-6, 1e3)


@st.composite
def spaces(draw: st.DrawFn) -> dict:
    low, high = sorted(draw(st.tuples(NUMBERS, NUMBERS).filter(lambda pair: pair[0] < pair[1])))
    first, last = sorted(
        draw(st.tuples(st.integers(-50, 50), st.integers(-50, 50)).filter(lambda pair: pair[0] != pair[1]))
    )
    kind = draw(st.sampled_from(["uniform", "loguniform"]))
    return {
        "a": {kind: [low, high]},
        "b": {"int": [first, last]},
        "c": {"quniform": [low, high, draw(st.floats(1e-3, 10))]},
        "d": {"choice": draw(st.lists(st.integers() | st.text() | st.lists(st.integers()), min_size=1, unique_by=str))},
        "e": {kind: [low / 2, "a"]},
        "f": {"int": [first - 1, "b"]},
    }


@settings(max_examples=40)
@given(spaces(), st.integers(0, 2**31))
def test_what_is_drawn_lies_in_its_range(text: dict, seed: int) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = parse_space(text, {})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    drawn = space.settings(study.ask(space.distributions()).params)
    assert drawn.keys() == text.keys()
    for values in (drawn, *space.corners(seed)):
        (low, high), (first, last) = next(iter(text["a"].values())), text["b"]["int"]
        assert low <= values["a"] <= high
        assert first <= values["b"] <= last
        assert isinstance(values["b"], int)
        start, end, step = text["c"]["quniform"]
        assert start <= values["c"] <= end * (1 + 1e-9)
        assert abs((values["c"] - start) / step - round((values["c"] - start) / step)) < 1e-5
        assert values["d"] in text["d"]["choice"]
        assert low / 2 <= values["e"] <= values["a"]
        assert first - 1 <= values["f"] <= values["b"]
        assert isinstance(values["f"], int)


def test_corners_have_every_end_and_every_choice() -> None:
    text = {f"k{number}": {"uniform": [0, 1]} for number in range(8)} | {"c": {"choice": list("abcde")}}
    corners = list(parse_space(text, {}).corners())
    assert {corner["c"] for corner in corners} == set("abcde")
    for number in range(8):
        assert {corner[f"k{number}"] for corner in corners} >= {0.0, 1.0}
    assert len(corners) < 2**8


def test_expected_epochs_follow_the_rungs() -> None:
    """Of 9 epochs, rungs after 1 and 3: 1 + 2/3 + 6/9."""
    sweep = SweepConfig(scheduler=SchedulerConfig(grace_epochs=1, reduction_factor=3))
    assert expected_epochs(sweep, 9) == pytest.approx(1 + 2 / 3 + 6 / 9)
    assert expected_epochs(SweepConfig(scheduler=SchedulerConfig(kind="none")), 9) == 9
