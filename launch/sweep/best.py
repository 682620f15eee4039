"""The best trial of a search: its settings as a configuration, its model registered."""

import sys
from pathlib import Path
from typing import Any

from datasets_shards.schema import quality_name, write_atomic
from fdtrain.cli import training_config
from fdtrain.metrics.names import SELECTION_METRIC
from launch.sweep.cluster import Cluster, reason_of
from launch.sweep.plan import base_words, words_of
from launch.sweep.study import Study, Trial


def write_best(study: Study, best: Trial) -> Path:
    """Write `<best_dir>/<model>-q<quality>.yaml`, which `python -m fdtrain --config` takes; gives its path."""
    plan = study.plan
    config = training_config(base_words(plan.sweep) + words_of({"data.quality": plan.quality} | best.settings))
    config.run.dir, config.run.resume = None, "never"
    name = f"{config.model.name.replace('/', '-')}-{quality_name(plan.quality)}"
    path = Path(plan.sweep.best_dir) / f"{name}.yaml"
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


def register_best(study: Study, best: Trial, cluster: Cluster) -> str | None:
    """Register its model, in a place of the cluster such as a worker's; the version's URI, or None where it failed."""
    import ray

    plan = study.plan
    task: Any = ray.remote(_register)
    task = task.options(num_cpus=plan.sweep.cpus_per_worker, num_gpus=cluster.gpus_per_worker(plan.sweep))
    path = plan.trial_folder(best.number)
    try:
        answer: tuple[str | None, str] = ray.get(task.remote(str(path)))
    except ray.exceptions.RayError as error:
        print(
            f"warning: the model of trial {best.number} was not registered ({reason_of(error)}); do it by "
            f"python -m fdtrain register {path}",
            file=sys.stderr,
        )
        return None
    registered, said = answer
    print(said, end="", flush=True)
    return registered


def _register(path: str) -> tuple[str | None, str]:
    import contextlib
    import io

    from fdtrain.registering import register_run

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        config: Any = training_config(["--config", str(Path(path) / "config.yaml")])
        registered = register_run(Path(path), config)
    return registered, said.getvalue()
