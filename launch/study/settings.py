"""What a study is told: its YAML file, and the words behind it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ActionConfigFile

from datasets_shards.schema import Quality, parse_quality
from datasets_shards.yaml12 import YAMLError, load_yaml
from fdtrain.cli import Parser, did_you_mean
from fdtrain.config import Config, TrackingConfig, UserError, flatten
from fdtrain.config.checks import in_range, without_effect

TRAINING_KEYS = tuple(flatten(Config().to_dict()))
SECTIONS = {key.partition(".")[0] for key in TRAINING_KEYS}
OWN_KEYS = {
    "run.dir": "a cell's run folder is <study.dir>/<cell>, or what study.runs says",
    "run.resume": "a study always goes on with its runs",
    "tracking.parent": "the runs of a study are children of study.name",
}
"""Settings of a training that are the study's own business."""


@dataclass
class StudyPart:
    """What the study is called and where it keeps its files.

    Args:
        name: Also of the MLflow run that its trainings are children of. Default: that of the file.
        dir: Folder of its runs, matrices and report. Default: `runs/<name>`.
        runs: What the run folders' names begin with, such as `runs/smoke-`. Default: `<dir>/`.
    """

    name: str | None = None
    dir: str | None = None
    runs: str | None = None


@dataclass
class RunnerPart:
    """What runs the trainings.

    Args:
        kind: `torchrun`: on this host; `ray`: each training a task of a Ray cluster; `slurm`: the trainings that aren't
            done as one array, by slurm/submit.sh.
        ranks: Processes of each training. Default: one; with `torchrun` every GPU of the host. With `slurm` it is
            FDTRAIN_GPUS.
        parallel: Trainings at a time. Default: as many as the GPUs (`ray`: or cores) have room for.
        address: Of a running Ray cluster, or `auto`. Default: the variable RAY_ADDRESS, or one on this host.
        cpus: Cores of each training, with `ray`. Default: one for each rank.
        calibrate: Try some steps of each kind of training first, of which none was timed yet, to say how long the study
            will take. Not with `slurm`, where a job of its own would have to be waited for.
    """

    kind: Literal["torchrun", "ray", "slurm"] = "torchrun"
    ranks: int | None = None
    parallel: int | None = None
    address: str | None = None
    cpus: int | None = None
    calibrate: bool = True


@dataclass
class EvaluatePart:
    """What becomes of the trained models.

    Args:
        qualities: Each model is tested at each of these, by `evaluate --matrix`, on the root that it was trained on.
            Default: no matrix.
        roots: Each model is also tested on these roots, at its own quality: name -> folder, such as `{c40: ROOT}`.
        batch_size: Samples of one forward pass.
    """

    qualities: list[int | str] | None = None
    roots: dict[str, str] | None = None
    batch_size: int = 32


@dataclass
class ReportPart:
    """The report.

    Args:
        baseline: The model that gains are over. Default: the first one.
        figures: Draw t-SNE, attention maps and Grad-CAM of each run.
        samples: Faces in those of attention and Grad-CAM.
        faces: Of the worst mistakes.
    """

    baseline: str | None = None
    figures: bool = True
    samples: int = 8
    faces: int = 6


@dataclass
class Study:
    """A declared grid of trainings, their evaluations and their report.

    Args:
        study: Name and folder.
        runner: What runs the trainings.
        models: Name -> `{config: FILE, KEY: VALUE, ...}`: a file of settings and what differs from it. The first axis.
        axes: Further axes, KEY -> its values. Where the values are `{NAME: VALUE}`, the names are those in the names of
            cells; a VALUE may then be settings itself, `{KEY: VALUE, ...}`, and KEY any word.
        settings: Settings of every training, KEY -> VALUE.
        evaluate: What becomes of the trained models.
        report: The report.
    """

    study: StudyPart = field(default_factory=StudyPart)
    runner: RunnerPart = field(default_factory=RunnerPart)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    axes: dict[str, list[Any] | dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    evaluate: EvaluatePart = field(default_factory=EvaluatePart)
    report: ReportPart = field(default_factory=ReportPart)

    @property
    def name(self) -> str:
        """Of the study."""
        assert self.study.name is not None
        return self.study.name

    @property
    def folder(self) -> Path:
        """Of the study."""
        return Path(self.study.dir or f"runs/{self.name}")

    @property
    def qualities(self) -> tuple[Quality, ...]:
        """Columns of the matrix."""
        return tuple(map(parse_quality, self.evaluate.qualities or ()))

    @property
    def baseline(self) -> str:
        """The model that gains are over."""
        return self.report.baseline or next(iter(self.models))

    def validate(self) -> None:
        """Raise UserError for a setting of the study itself that is wrong; those of trainings are looked at by cell."""
        TrackingConfig(parent=self.name).validate()
        for key in ("ranks", "parallel", "cpus"):
            in_range(f"runner.{key}", getattr(self.runner, key), 1)
        if self.runner.kind != "ray":
            for key in ("address", "cpus"):
                without_effect(f"runner.{key}", getattr(self.runner, key), None, "set runner.kind to ray")
        if self.runner.kind == "slurm":
            without_effect("runner.ranks", self.runner.ranks, None, "set FDTRAIN_GPUS, or FDTRAIN_RANKS on CPUs")
            without_effect("runner.parallel", self.runner.parallel, None, "Slurm decides it")
            without_effect("runner.calibrate", self.runner.calibrate, True, "nothing is tried with slurm")
        in_range("evaluate.batch_size", self.evaluate.batch_size, 1)
        try:
            qualities = self.qualities
        except ValueError as error:
            raise UserError(f"evaluate.qualities: {error}") from None
        if self.evaluate.qualities is not None and not qualities:
            raise UserError("evaluate.qualities: names none; leave it away for no matrix")
        if len(set(qualities)) < len(qualities):
            raise UserError("evaluate.qualities: names one twice; name each once")
        if not self.models:
            raise UserError("models: there is none; name at least one, as {meso4: {config: configs/meso4.yaml}}")
        if self.baseline not in self.models:
            raise UserError(
                f"report.baseline: {self.baseline!r} is none of the models{did_you_mean(self.baseline, self.models)}"
            )


@dataclass(frozen=True)
class Call:
    """What a call of the study asks for.

    Args:
        study: What is declared.
        overrides: Settings of every training that the call itself gives, which win over the study's.
        dry_run: Say what would be done, and no more.
        wait: Wait for a Slurm array, and go on when it has ended.
        restart: Cells that are trained anew, by name.
    """

    study: Study
    overrides: dict[str, Any]
    dry_run: bool
    wait: bool
    restart: tuple[str, ...]


def read_call(argv: Sequence[str]) -> Call:
    """The study that the words name. Raises UserError for anything that it can't be."""
    rest, axes, settings = _split(argv)
    parser = Parser(
        prog="python -m launch.study",
        description=Study.__doc__,
        epilog="Any key of a training, such as --data.root ROOT or --train.epochs 3, is set for all cells alike; "
        "--axes.KEY VALUES sets the values of one axis.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file, such as configs/studies/smoke.yaml.")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="Print the plan and leave.")
    parser.add_argument("--wait", action="store_true", help="With slurm: wait for the array, then go on.")
    parser.add_argument("--restart", nargs="+", default=[], metavar="CELL", help="Cells to train anew, by name.")
    parser.add_class_arguments(Study, None)
    parsed = parser.read(rest)
    if parsed.config is None:
        raise UserError("--config: not given; name a study, such as configs/studies/smoke.yaml")
    study = Study(**{part: getattr(parsed, part) for part in Study.__dataclass_fields__})
    study.study.name = study.study.name or Path(str(parsed.config[-1])).stem
    study.axes |= axes
    study.validate()
    if parsed.wait and study.runner.kind != "slurm":
        raise UserError("wait: has an effect with runner.kind slurm only; leave it out")
    return Call(study, settings, parsed.dry_run, parsed.wait, tuple(parsed.restart))


def _split(argv: Sequence[str]) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """The words that are the study's own, values of axes, and settings of trainings."""
    rest: list[str] = []
    axes: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        axis = key.removeprefix("axes.")
        if word.startswith("--") and key.partition(".")[0] in SECTIONS and key not in TRAINING_KEYS:
            raise UserError(f"{key}: no such key{did_you_mean(key, TRAINING_KEYS)}")
        if not word.startswith("--") or (key not in TRAINING_KEYS and axis == key):
            rest.append(word)
            continue
        if not equals:
            if not words:
                raise UserError(f"{key}: has no value; every setting is written --key VALUE")
            value = words.pop(0)
        try:
            content = load_yaml(value)
        except YAMLError:
            raise UserError(f"{key}: {value!r} can't be read as YAML; write it as in the file") from None
        if axis == key:
            settings[key] = value  # as training's own command line takes it, where `off` is no false
        elif isinstance(content, list | dict):
            axes[axis] = content
        else:
            raise UserError(f"{key}: {value!r} is no list of values; write it as [{value}]")
    return rest, axes, settings
