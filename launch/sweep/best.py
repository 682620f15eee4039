"""The best trial of a search: its settings as a configuration, its model tested and registered."""

import sys
from itertools import chain, count
from pathlib import Path
from typing import Any

from datasets_shards.schema import quality_name, write_atomic
from fdtrain.cli import training_config
from fdtrain.metrics.names import SELECTION_METRIC
from launch.sweep.cluster import Cluster, reason_of, wait_for
from launch.sweep.plan import base_words, words_of
from launch.sweep.study import Study, Trial


def write_best(study: Study, best: Trial) -> Path:
    """Write `<best_dir>/<model>-q<quality>.yaml`, which `python -m fdtrain --config` takes; gives its path.

    Where that is of another sweep, or somebody's own, it stays, and the name of this sweep is added.
    """
    plan = study.plan
    config = training_config(base_words(plan.sweep) + words_of({"data.quality": plan.quality} | best.settings))
    config.run.dir, config.run.resume = None, "never"
    name = f"{config.model.name.replace('/', '-')}-{quality_name(plan.quality)}"
    own = f"{name}-{plan.folder.parent.name}"
    paths = (
        Path(plan.sweep.best_dir) / f"{each}.yaml" for each in chain([name, own], (f"{own}-{i}" for i in count(2)))
    )
    path = next(path for path in paths if _is_ours(path, plan.folder))
    value, run = best.best(study.maximize), plan.trial_folder(best.number)
    lines = [
        f"The best of {len(study.trials())} trials of the sweep {plan.group}:",
        f"{plan.sweep.metric} {value:.4f} on the validation split (trial {best.number}, {run}).",
        *([f"Its model is that of its best {SELECTION_METRIC}."] if plan.sweep.metric != SELECTION_METRIC else []),
        f"Searched over {plan.sweep.base}: {', '.join(best.settings)}.",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, ("".join(f"# {line}\n" for line in lines) + "\n" + config.to_yaml()).encode())
    return path


def _is_ours(path: Path, folder: Path) -> bool:
    """Tell a file that isn't there, or that the search in this folder has written."""
    return not path.exists() or f"{folder}/" in path.read_text(encoding="utf-8", errors="replace")


def conclude_best(study: Study, best: Trial, cluster: Cluster) -> str | None:
    """Test its model and, if the sweep says so, register it, in a place of the cluster such as a worker's.

    Returns:
        The version's URI; None where it isn't to be, or couldn't be, registered.
    """
    import ray

    plan = study.plan
    task: Any = ray.remote(_conclude)
    task = task.options(num_cpus=plan.sweep.cpus_per_worker, num_gpus=cluster.gpus_per_worker(plan.sweep))
    path, register = plan.trial_folder(best.number), plan.sweep.register and plan.base.tracking.enabled
    tried = sum(1 for trial in study.trials() if trial.best(study.maximize) is not None)
    try:
        answer: tuple[str | None, str] = wait_for(task.remote(str(path), register, tried), "test and registration")
    except ray.exceptions.RayError as error:
        print(
            f"warning: the model of trial {best.number} was not tested and registered ({reason_of(error)}); do it by "
            f"python -m fdtrain register {path} --best_of {tried}",
            file=sys.stderr,
        )
        return None
    registered, said = answer
    print(said, end="", flush=True)
    return registered


def _conclude(path: str, register: bool, best_of: int) -> tuple[str | None, str]:
    import contextlib
    import io

    from fdtrain.registering import conclude_run

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        config: Any = training_config(["--config", str(Path(path) / "config.yaml")])
        config.tracking.register = register
        registered = conclude_run(Path(path), config, best_of)
    return registered, said.getvalue()
