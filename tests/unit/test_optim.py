"""The learning rate as a function of the step, and who is decayed."""

import pytest

from fdtrain.config import OptimConfig
from fdtrain.models import create_model
from fdtrain.optim import create_optimizer, create_schedule, lr_factor, warmup_warning


def test_warm_up_then_cosine() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=10, min_lr=0.1)
    factors = [lr_factor(step, 110, config) for step in range(111)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert factors[60] == pytest.approx(0.55)
    assert factors[110] == pytest.approx(0.1)
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_constant_and_a_warm_up_longer_than_the_run() -> None:
    assert lr_factor(500, 1000, OptimConfig(schedule="constant", warmup_steps=5)) == 1.0
    assert lr_factor(9, 10, OptimConfig(warmup_steps=100)) == pytest.approx(0.1)


def test_the_default_warm_up_is_a_share_of_the_run() -> None:
    config = OptimConfig(lr=1.0)
    assert lr_factor(9, 10, OptimConfig(schedule="constant")) == 1.0  # README's first training was within its warm-up
    assert [lr_factor(step, 400, config) for step in (0, 9, 19)] == pytest.approx([0.05, 0.5, 1.0])
    assert lr_factor(30, 400, config) < 1.0
    assert lr_factor(0, 1, config) == 1.0


@pytest.mark.parametrize(
    ("steps", "end"), [(100, "no step has"), (9, "no step has"), (6, "only the last 3 have"), (4, None), (None, None)]
)
def test_a_warm_up_of_more_than_half_of_the_run_is_said(steps: int | None, end: str | None) -> None:
    warning = warmup_warning(9, OptimConfig(warmup_steps=steps))
    if end is None:
        assert warning is None
    else:
        assert warning is not None
        assert f"optim.warmup_steps: {steps} of the run's 9 steps are warm-up, so {end} the whole optim.lr" in warning


def test_the_schedule_resumes_where_it_was() -> None:
    config = OptimConfig(warmup_steps=3)
    model = create_model("meso4", image_size=32)

    def rates(first: int, last: int, state: dict | None = None) -> tuple[list[float], dict]:
        optimizer = create_optimizer(model, config)
        schedule = create_schedule(optimizer, config, 20)
        if state:
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
        seen = []
        for _ in range(first, last):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return seen, {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}

    whole, _ = rates(0, 20)
    begun, state = rates(0, 7)
    rest, _ = rates(7, 20, state)
    assert begun + rest == whole


def test_biases_and_norms_are_not_decayed() -> None:
    model = create_model("meso4", image_size=32)
    optimizer = create_optimizer(model, OptimConfig(weight_decay=0.3))
    decay = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    for parameter in model.parameters():
        assert decay[id(parameter)] == (0.3 if parameter.ndim > 1 else 0.0)
