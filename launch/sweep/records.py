"""What MLflow has of a search: a run that its trials hang under, with the tables and figures of the whole."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from datasets_shards.schema import quality_name
from fdtrain.config import HostError, UserError, first_line
from fdtrain.config.credentials import shown_uri
from fdtrain.run_folder import LEAVE_S, FolderInUseError, RunFolder
from fdtrain.tracking import close_parent_run, connect, open_parent_run, tracking_uri
from fdtrain.tracking.sync import sync
from launch.sweep.study import Study, Trial


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
    run_id = open_parent_run(tracking_uri(tracking.uri), tracking.experiment, plan.group, tags | (tracking.tags or {}))
    status = "FAILED"
    try:
        yield run_id
        status = "FINISHED" if study.best() is not None else "FAILED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        close_parent_run(tracking_uri(tracking.uri), run_id, status)


def log_results(study: Study, run_id: str | None, files: Sequence[Path]) -> None:
    """Give the search's run the best trial's settings and value, and files."""
    if run_id is None:
        return
    uri = tracking_uri(study.plan.base.tracking.uri)
    try:
        client = connect(uri)
        if best := study.best():
            client.log_metric(run_id, f"best/{study.plan.sweep.metric}", best.best(study.maximize))
            for key, value in {"trial": best.number, **best.settings}.items():
                client.set_tag(run_id, f"best.{key}", str(value))
        for path in files:
            client.log_artifact(run_id, str(path))
    except Exception as error:  # noqa: BLE001 - any fault of a server or its client; the files are on disk
        print(f"warning: {shown_uri(uri)} did not take the sweep's results ({first_line(error)})", file=sys.stderr)


def settle(study: Study) -> None:
    """Leave the runs of the trials that have ended with a true status, and MLflow with all of their records.

    Workers of a trial that was stopped last are killed, but may be there for a moment still; those of one that finished
    may have given MLflow up.
    """
    answers = study.plan.base.tracking.enabled
    for trial in study.ended():
        path = study.plan.trial_folder(trial.number)
        RunFolder(path).wait_until_left(LEAVE_S)
        try:
            _close(path, trial)
            if answers and (path / "mlflow").is_dir():
                sync(path)
        except FolderInUseError:
            print(f"warning: {path} is still written to; its status stays 'running'", file=sys.stderr)
        except HostError as error:  # a server that isn't there would keep each of them waiting
            print(f"warning: {error}; the trials after it were not tried", file=sys.stderr)
            answers = False
        except UserError as error:
            print(f"warning: {error}", file=sys.stderr)


def _close(path: Path, trial: Trial) -> None:
    """Write the end that a run which was ended from outside couldn't.

    Raises:
        FolderInUseError: its process is still there.
    """
    run = RunFolder(path)
    if run.status().get("state") != "running":
        return
    run.claim(resume=True)
    try:
        step = run.status().get("step", 0)
        if trial.state == "failed":
            run.write_status("failed", trial.reason, step=step)
        else:
            epoch = trial.epochs[-1].epoch if trial.epochs else 0
            run.write_status("preempted", f"the sweep stopped it after epoch {epoch}", step=step)
    finally:
        run.release()
