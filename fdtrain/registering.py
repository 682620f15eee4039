"""Conclude a finished run, such as a sweep's best trial: test its best model, and register it."""

import json
from dataclasses import replace
from pathlib import Path

from fdtrain.config import Config, UserError
from fdtrain.contest import Contest
from fdtrain.data.loader import choose_loader
from fdtrain.data.run_data import open_data
from fdtrain.facts import run_facts
from fdtrain.journal import Journal
from fdtrain.metrics import from_json
from fdtrain.models.weights import read_model_card
from fdtrain.run_folder import RunFolder
from fdtrain.runtime import start
from fdtrain.selection import ModelSelection


def register_run(path: Path, config: Config, best_of: int = 1) -> str | None:
    """Register the best model of a finished run, as the run itself does with `tracking.register: true`.

    Args:
        path: The run folder.
        config: Of the run, as its config.yaml says.
        best_of: Among how many runs it was chosen by validation.

    Returns:
        The version's URI; None where it couldn't be registered, which is said on stderr.

    Raises:
        UserError: the run isn't finished, or isn't recorded in MLflow, or its data has changed.
        ShardSetError: its data can't be used, which the champion is to be scored on.
    """
    if not config.tracking.enabled:
        raise UserError(f"{path}: trained with tracking.enabled false, so MLflow has no run to register a model of")
    return conclude_run(path, replace(config, tracking=replace(config.tracking, register=True)), best_of)


def conclude_run(path: Path, config: Config, best_of: int = 1) -> str | None:
    """Score the test split with the best model of a finished run if that wasn't done, and register it if asked to.

    Args, Returns, Raises: as `register_run`; `config.tracking.register` says whether it is asked.
    """
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
        registered = _conclude(run, replace(config, train=replace(config.train, test=True)), best_of)
        run.write_status("finished", step=status["step"], registered=registered, best_of=best_of)
        return registered
    finally:
        run.release()


def _conclude(run: RunFolder, config: Config, best_of: int) -> str | None:
    with start(config.precision, device=config.engine.device) as runtime:
        data = open_data(config)
        facts = _facts_of(run, run_facts(config, data))
        journal = Journal(run, is_main=True)
        loader, _ = choose_loader(config.loader.kind, runtime.device)
        loading = {"threads": config.loader.threads or runtime.decode_threads, "prefetch": config.loader.prefetch}
        selection = ModelSelection(
            config, data, runtime, journal, loader, loading, check=lambda: None, on_failure=lambda fault: None
        )
        contest = Contest(config, data, runtime, journal, selection.score, best_of)
        journal.track(config, facts, data, resumed=True, run_id=None)
        try:
            with data.reader() as reader:
                metrics = from_json(json.loads(run.metrics.read_bytes()))
                if len(data.rows["test"]) and not any(name.startswith("test/") for name in metrics):
                    metrics = selection.evaluate_best(reader)
                verdict = contest.challenge(reader)
        finally:
            if journal.tracker:
                journal.tracker.close("FINISHED")
        return contest.register(metrics, facts, verdict)


def _facts_of(run: RunFolder, now: dict[str, str]) -> dict[str, str]:
    """Read off the model's card what data and code it was trained with.

    Raises:
        UserError: the data is another by now.
    """
    then = read_model_card(run.best)["trained_on"]
    if then.get("data.digest") != now["data.digest"]:
        raise UserError(
            f"data.root: the shard set has changed since {run.path} was trained (digest {now['data.digest'][:12]}, "
            f"then {str(then.get('data.digest'))[:12]}); give back that one, or train again"
        )
    return {name: str(then.get(name, value)) for name, value in now.items()}
