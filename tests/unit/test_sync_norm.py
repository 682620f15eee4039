"""Batch normalization over all ranks: refused on a CPU, and otherwise the same modules under another class."""

import copy
import functools
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fdtrain.checkpoint import Progress, latest_checkpoint
from fdtrain.config import Config, OptimConfig, UserError
from fdtrain.engines import DDPEngine, EngineState, check_sync_batchnorm, create_engine
from fdtrain.engines.sync_norm import ordinary_norms, synchronize_norms
from fdtrain.models import InputSpec, create_model, save_model
from fdtrain.runtime import start
from fdtrain.tasks import ClassificationTask, Task
from tests.checkpoints import save_checkpoint
from tests.conftest import run_python, small_training

SPEC = InputSpec(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear")
CPU = torch.device("cpu")


def make_task(name: str = "meso4", freeze: tuple[str, ...] = ()) -> Task:
    torch.manual_seed(0)
    options = {"image_size": 32} if name.startswith("meso") else {}
    return ClassificationTask(create_model(name, **options), SPEC, freeze=freeze)


def frozen_task() -> Task:
    """All its batch normalization frozen by name."""
    modules = make_task().model.named_modules()
    names = [f"{name}.{part}" for name, norm in modules if isinstance(norm, _BatchNorm) for part in ("weight", "bias")]
    return make_task(freeze=tuple(names))


def norms_of(task: Task) -> list[_BatchNorm]:
    return [module for module in task.model.modules() if isinstance(module, _BatchNorm)]


@pytest.mark.parametrize("name", ["meso4", "meso_inception4", "efficientnet_b0"])
def test_there_and_back_is_the_same_model(name: str) -> None:
    task = make_task(name)
    images = torch.randn(2, 3, 32, 32)
    expected = task.model.eval()(images)
    kinds = [type(norm) for norm in norms_of(task)]
    before = [(key, value.data_ptr()) for key, value in task.model.state_dict().items()]
    synchronize_norms(task.model)
    assert kinds
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms_of(task))
    assert [(key, value.data_ptr()) for key, value in task.model.state_dict().items()] == before
    assert torch.equal(task.model(images), expected)  # timm's activations are still there
    evaluated = ordinary_norms(copy.deepcopy(task))
    assert [type(norm) for norm in norms_of(evaluated)] == kinds
    assert torch.equal(evaluated.model(images), expected)
    evaluated.model.train()(images)  # as it can on a CPU
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms_of(task))  # those of the copy alone


def test_frozen_norms_stay_frozen() -> None:
    task = frozen_task()
    synchronize_norms(task.model)
    frozen = task.train().frozen_norms()
    assert len(frozen) == len(norms_of(task)) > 0
    assert not any(norm.training for norm in frozen)


def test_an_unknown_kind_of_norm_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with pytest.raises(UserError, match=r"engine\.sync_batchnorm: 1 of the model is a BatchNorm1d"):
        synchronize_norms(model)


def test_what_an_engine_evaluates_is_ordinary() -> None:
    """Without a step, since DDP wraps no such module on a CPU."""
    with start("fp32") as runtime:
        task = make_task()
        synchronize_norms(task.model)
        engine = DDPEngine(task, OptimConfig(ema_decay=0.9), runtime, 5, warm_up_batch=(2, 32))
        evaluated = engine.evaluation_task()
        assert {type(norm) for norm in norms_of(evaluated)} == {nn.BatchNorm2d}
        assert not any(norm.training for norm in norms_of(evaluated))
        plain = make_task().model.state_dict()
        torch.testing.assert_close(dict(engine.state().model), dict(plain), rtol=0, atol=0)
        torch.testing.assert_close(dict(evaluated.model.state_dict()), dict(plain), rtol=0, atol=0)


def test_a_cpu_is_refused(shard_root: Path, tmp_path: Path) -> None:
    config = Config()
    check_sync_batchnorm(config, CPU)
    config.engine.sync_batchnorm = True
    check_sync_batchnorm(config, torch.device("cuda"))
    with start("fp32") as runtime, pytest.raises(UserError, match=r"engine\.sync_batchnorm: torch has it on GPUs only"):
        create_engine(config, make_task(), runtime, 1, (2, 32), 1)
    if torch.cuda.is_available():
        pytest.skip("this host has a GPU, so the program doesn't refuse")
    run = tmp_path / "run"
    done = run_python("-m", *small_training(shard_root, run, engine__sync_batchnorm="true"))
    assert done.returncode == 2
    assert "engine.sync_batchnorm: torch has it on GPUs only; set it to false on a CPU" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not run.exists()


def test_going_on_with_another_number_of_ranks_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model = functools.partial(save_model, name="meso4", options={"image_size": 32}, spec=SPEC, facts={})
    config = Config()
    with start("fp32") as runtime:
        for is_synchronized in (False, True):
            config.engine.sync_batchnorm = is_synchronized
            state = EngineState({"weight": torch.ones(1)}, {}, {})
            save_checkpoint(
                tmp_path / str(is_synchronized),
                state,
                Progress(3),
                runtime,
                write_model=write_model,
                config=config.to_dict(),
                data_digest="d",
                keep=1,
            )
            checkpoint = latest_checkpoint(tmp_path / str(is_synchronized))
            assert checkpoint is not None
            checkpoint.load(runtime)
            assert capsys.readouterr().err == ""  # as many ranks as before
            object.__setattr__(checkpoint, "world_size", 4)
            checkpoint.load(runtime)
            said = capsys.readouterr().err
            assert said.count("\n") == is_synchronized
    assert "goes over 1 micro-batches from here on, where" in said
    assert "go on with 4 ranks for that" in said


def test_tf32_is_on_where_it_is_asked_for_alone() -> None:
    with start("fp32"):
        assert not torch.backends.cudnn.allow_tf32  # torch's own default is on
        assert torch.get_float32_matmul_precision() == "highest"
