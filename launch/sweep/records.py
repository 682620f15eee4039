"""What MLflow has of a search: a run that its trials hang under, with the tables and figures of the whole."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from datasets_shards.schema import quality_name
from fdtrain.config import UserError, first_line
from fdtrain.run_folder import FolderInUseError, RunFolder
from fdtrain.tracking import close_parent_run, connect, open_parent_run
from fdtrain.tracking.sync import sync
from launch.sweep.study import Study


@contextmanager
def parent_of_trials(study: Study) -> Iterator[str | None]:
    """The MLflow run of the search, opened before any trial writes: that is what sets a fresh database up.

    Yields:
        Its id; None where the server isn't there, or nothing is recorded.
    """
    plan = study.plan
    tracking = plan.base.tracking
    if not tracking.enabled:
        yield None
        return
    tags = {"sweep": plan.folder.parent.name, "quality": quality_name(plan.quality), "metric": plan.sweep.metric}
    run_id = open_parent_run(tracking.uri, tracking.experiment, plan.group, tags | (tracking.tags or {}))
    status = "FAILED"
    try:
        yield run_id
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        close_parent_run(tracking.uri, run_id, status)


def log_results(study: Study, run_id: str | None, files: Sequence[Path]) -> None:
    """Give the search's run the best trial's settings and value, and files."""
    if run_id is None:
        return
    uri = study.plan.base.tracking.uri
    try:
        client = connect(uri)
        if best := study.best():
            client.log_metric(run_id, f"best/{study.plan.sweep.metric}", best.best(study.maximize))
            for key, value in {"trial": best.number, **best.settings}.items():
                client.set_tag(run_id, f"best.{key}", str(value))
        for path in files:
            client.log_artifact(run_id, str(path))
    except Exception as error:  # noqa: BLE001 - any fault of a server or its client; the files are on disk
        print(f"warning: {uri} did not take the sweep's results ({first_line(error)})", file=sys.stderr)


def settle(study: Study) -> None:
    """Leave the runs that were ended from outside with a true status, and MLflow with all of their records."""
    for trial in study.trials("stopped", "failed"):
        path = study.plan.trial_folder(trial.number)
        run = RunFolder(path)
        if run.status().get("state") == "running":
            try:
                run.claim(resume=True)
            except FolderInUseError:
                print(f"warning: {path} is still written to; its status stays 'running'", file=sys.stderr)
                continue
            stopped = f"the sweep stopped it after epoch {trial.epochs[-1].epoch if trial.epochs else 0}"
            step = run.status().get("step", 0)
            if trial.state == "stopped":
                run.write_status("preempted", stopped, step=step)
            else:
                run.write_status("failed", trial.reason, step=step)
            run.release()
        if study.plan.base.tracking.enabled and (path / "mlflow").is_dir():
            try:
                sync(path)
            except UserError as error:
                print(f"warning: {error}", file=sys.stderr)
