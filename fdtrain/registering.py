"""Registering the best model of a run afterwards, such as that of a sweep's best trial."""

import json
from dataclasses import replace
from pathlib import Path

from fdtrain.config import Config, UserError
from fdtrain.data.loader import choose_loader
from fdtrain.data.run_data import open_data
from fdtrain.facts import run_facts
from fdtrain.journal import Journal
from fdtrain.metrics import from_json
from fdtrain.run_folder import RunFolder
from fdtrain.runtime import start
from fdtrain.selection import ModelSelection


def register_run(path: Path, config: Config) -> str | None:
    """Register the best model of a finished run, as the run itself does with `tracking.register: true`.

    Args:
        path: The run folder.
        config: Of the run, as its config.yaml says.

    Returns:
        The version's URI; None where it couldn't be registered, which is said on stderr.

    Raises:
        UserError: the run isn't finished, or isn't recorded in MLflow.
        ShardSetError: its data can't be used, which the champion is to be scored on.
    """
    config = replace(config, tracking=replace(config.tracking, register=True))
    if not config.tracking.enabled:
        raise UserError(f"{path}: trained with tracking.enabled false, so MLflow has no run to register a model of")
    run = RunFolder(path)
    run.claim(resume=True)
    try:
        status = run.status()
        if status.get("state") != "finished":
            raise UserError(
                f"{path}: the run is {status.get('state', 'none')}; only a finished one has a model to register"
            )
        if registered := status.get("registered"):
            print(f"{path}: registered already, as {registered}")
            return registered
        with start(config.precision, device=config.engine.device) as runtime:
            data = open_data(config)
            facts = run_facts(config, data)
            journal = Journal(run, is_main=True)
            loader, _ = choose_loader(config.loader.kind, runtime.device)
            loading = {"threads": config.loader.threads or runtime.decode_threads, "prefetch": config.loader.prefetch}
            selection = ModelSelection(
                config, data, runtime, journal, loader, loading, check=lambda: None, on_failure=lambda fault: None
            )
            journal.track(config, facts, data, resumed=True, run_id=None)
            assert journal.tracker
            try:
                with data.reader() as reader:
                    verdict = selection.challenge(reader)
            finally:
                journal.tracker.close("FINISHED")
            metrics = from_json(json.loads(run.metrics.read_bytes()))
            registered = selection.register(metrics, facts, verdict)
        run.write_status("finished", step=status["step"], registered=registered)
        return registered
    finally:
        run.release()
