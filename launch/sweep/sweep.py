"""A sweep from its settings to its results, one quality after another."""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets_shards.schema import Quality
from fdtrain.config import HostError
from fdtrain.metrics.names import SELECTION_METRIC
from launch.sweep.best import conclude_best, write_best
from launch.sweep.cluster import Cluster, check_nodes, connected
from launch.sweep.config import SweepConfig
from launch.sweep.estimate import announce
from launch.sweep.figures import draw
from launch.sweep.plan import make_plan
from launch.sweep.records import log_results, parent_of_trials, settle
from launch.sweep.results import in_words, table, write_results
from launch.sweep.study import Study, is_begun

HEAD_NODE = "node:__internal_head__"
"""A resource that Ray's head node alone has: what watches a trial runs there, and survives the node that trains it."""


def sweep(config: SweepConfig, qualities: list[Quality], resume: bool) -> None:
    """Search for the best settings at each quality.

    Raises:
        UserError: something of it can't be; no trial was started then.
        HostError: at some quality no trial was finished.
        KeyboardInterrupt: it was stopped, and can be gone on with.
    """
    plans = [make_plan(config, quality) for quality in qualities]
    studies = {plan.folder: Study(plan, resume) for plan in plans if is_begun(plan)}
    if len(studies) == len(plans) and all(study.is_concluded for study in studies.values()):
        for study in studies.values():
            print(table(study))
        _require_best(studies)
        print("finished already; nothing to do")
        return
    with connected(config) as cluster:
        parallel = cluster.parallel(config)
        data = {plan.folder: check_nodes(cluster, plan) for plan in plans}
        for folder, study in studies.items():
            if not study.is_concluded:
                study.keep_data(data[folder])
        announce(plans, list(studies.values()), cluster, parallel)
        for plan in plans:
            study = studies.get(plan.folder) or Study(plan, resume)
            if not study.is_concluded:
                study.keep_data(data[plan.folder])
                with parent_of_trials(study) as run_id:
                    search(study, cluster, parallel)
                    settle(study)
                    conclude(study, cluster, run_id)
            studies[plan.folder] = study
    _require_best(studies)


def _require_best(studies: Mapping[Path, Study]) -> None:
    if empty := [folder for folder, study in studies.items() if study.best() is None]:
        raise HostError(
            f"{empty[0]}: no trial was finished; see study.jsonl there for why each failed, and take another name"
        )


def conclude(study: Study, cluster: Cluster, run_id: str | None) -> None:
    """Write down and tell what a search came to."""
    facts: dict[str, Any] = {}
    best = study.best()
    if best is None:
        print(f"warning: {study.plan.folder}: no trial was finished, so none is the best", file=sys.stderr)
    else:
        facts["config"] = str(write_best(study, best))
        facts["registered"] = conclude_best(study, best, cluster)
    figures, remarks = draw(study)
    if study.plan.sweep.metric != SELECTION_METRIC:
        remarks.append(
            f"trials are ranked by {study.plan.sweep.metric}, each at its best epoch; the model that a trial keeps is "
            f"that of its best {SELECTION_METRIC}"
        )
    if study.plan.sweep.register and not study.plan.base.tracking.enabled:
        remarks.append("no model was registered, since tracking.enabled is false")
    files = write_results(study, facts)
    log_results(study, run_id, [*files, *figures, *(Path(path) for path in [facts.get("config")] if path)])
    study.conclude()
    if not study.trials("failed"):
        shutil.rmtree(study.plan.folder / "ray", ignore_errors=True)  # Ray's own records, which nobody reads again
    print(f"\n{table(study)}")
    for remark in remarks:
        print(remark)
    if best is not None:
        print(f"best: trial {best.number}, {in_words(best.settings)}; as a configuration {facts['config']}", flush=True)


def search(study: Study, cluster: Cluster, parallel: int) -> None:
    """Run the trials that are left of one quality."""
    from ray import tune

    from launch.sweep.progress import Recorder
    from launch.sweep.scheduler import NoScheduler, NumberedAsha
    from launch.sweep.search import StudySearcher
    from launch.sweep.trial import run_trial
    from launch.sweep.worker import Places

    plan = study.plan
    if study.is_complete:
        return
    study.start_clock()
    before = [trial for trial in study.trials() if trial.epochs]
    scheduler: Any = NumberedAsha(plan, before) if plan.sweep.scheduler.kind == "asha" else NoScheduler()
    places = Places(
        plan.sweep.workers, plan.sweep.cpus_per_worker, cluster.gpus_per_worker(plan.sweep), str(Path.cwd())
    )
    ended = study.ended()
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, plan=plan, places=places), {HEAD_NODE: 0.001}),
        tune_config=tune.TuneConfig(
            search_alg=StudySearcher(study),
            scheduler=scheduler,
            num_samples=plan.sweep.trials - len(ended),
            max_concurrent_trials=parallel,
            trial_dirname_creator=lambda trial: f"trial-{trial.config['number']:03d}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(plan.folder / "ray"),
            failure_config=tune.FailureConfig(max_failures=plan.sweep.max_failures),
            callbacks=[Recorder(study, scheduler, parallel)],
            verbose=0,
        ),
    )
    tuner.fit()
    if not study.is_complete:
        raise KeyboardInterrupt
