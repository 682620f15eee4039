"""The command line: one-line errors that name the key, exit codes, configs that list every key."""

import re
import time
from importlib import metadata
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from fdtrain.cli import COMMANDS, main, training_config
from fdtrain.config import Config, UserError, flatten
from tests.conftest import REPOSITORY


def error_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on stderr of a call that must fail with exit code 2."""
    assert main(argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--data.qualty", "15"], "data.qualty: no such key; did you mean data.quality?"),
        (["--train.epoch", "1"], "train.epoch: no such key; did you mean train.epochs?"),
        (["--quality", "15"], "quality: no such key; did you mean data.quality?"),
        (["--data.quality", "abc"], "data.quality: got 'abc', allowed is a whole number or raw"),
        (["--data.root", "x", "--data.quality", "101"], "data.quality: 101 is out of range; allowed is 1 to 100"),
        (["--precision", "half"], "precision: got 'half', allowed is auto | fp32 | tf32 | bf16 | fp16"),
        (["--train.max_steps", "x"], "train.max_steps: got 'x', allowed is a whole number or null"),
        (["--optim.betas", "3"], "optim.betas: got '3', allowed is a list"),
        (["--data.methods", "3"], "data.methods: got '3', allowed is a list, written as [1, 2] or null"),
        (["--tracking.tags", "[1]"], "tracking.tags: got '[1]', allowed is a mapping, written as {KEY: VALUE} or null"),
        (["--data.root", "x", "--optim.lr", "-1"], "optim.lr: -1.0 is out of range"),
        (["--data.root", "x", "--optim.eps", "-1"], "optim.eps: -1.0 is out of range; allowed is at least 0"),
        (["--data.root", "x", "--train.epochs", "0"], "train.epochs: 0 is out of range; allowed is at least 1"),
        (["--data.root", "x", "--model.drop_rate", "1"], "model.drop_rate: 1.0 is out of range"),
        (["--model.name", "meso4"], "data.root: not set; give the folder"),
        (["evalute"], "'evalute' is no command; did you mean evaluate?"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--config", "ROOT"], ": is no file; name a YAML file"),
        (["--model.name", "meso5", "--data.root", "ROOT"], "model.name: 'meso5' is unknown; did you mean meso4?"),
        (["evaluate", "--out", "x"], "model"),
        (["evaluate", "--model", "x", "--data.root", "x", "--out", "x.parquet"], "out: x.parquet must end in .json"),
        (["evaluate", "--model", "x", "--data.root", "x", "--out", "x.json", "--data.quality", "0"], "data.quality: "),
    ],
)
def test_a_wrong_argument_ends_with_one_line(
    argv: list[str], expected: str, capsys: pytest.CaptureFixture[str], shard_root: Path, tmp_path: Path
) -> None:
    argv = [str(shard_root) if word == "ROOT" else word for word in argv]
    if "ROOT" not in argv and argv and argv[0] != "evaluate" and argv[0].startswith("-"):
        argv += ["--run.dir", str(tmp_path / "run")]
    assert expected in error_of(capsys, *argv)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dta:\n  root: x\n", "dta.root: no such key; did you mean data.root?"),
        ("data:\n  quality: 3.5\n", "data.quality: got '3.5'"),
        ("data: [\n", "config.yaml: not readable as YAML"),
        ("\ud8ff", "config.yaml: is no text; name a YAML file"),
        ("optim: 3\n", "optim: got 3, allowed is a section of keys"),
        ("optim:\n  # lr: 1\n", "optim: got null, allowed is a section of keys"),
        ("- seed\n", "config.yaml: holds no keys with values"),
        ("seed: null\n", "seed: got null, allowed is a whole number"),
        ("model: {pretrained: null}\n", "model.pretrained: got null, allowed is true or false or text"),
        ("optim: {betas: [0.9, null]}\n", "optim.betas: got null, allowed is a number"),
    ],
)
def test_a_wrong_config_file_ends_with_one_line(
    text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert expected in error_of(capsys, "--config", str(path))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model.name", "meso5", "model.name: 'meso5' is unknown"),
        ("model.pretrained", "nowhere", "model.pretrained: nowhere: no such file or folder"),
        ("data.quality", "42", "holds no set of quality 42; it has q77, raw"),
        ("data.root", "nowhere", "nowhere: no such folder"),
        ("data.methods", "[Deepfake]", "data.methods: "),
    ],
)
def test_what_is_mistyped_leaves_nothing_behind(
    key: str, value: str, expected: str, capsys: pytest.CaptureFixture[str], shard_root: Path, tmp_path: Path
) -> None:
    words = {"model.name": "meso4", "data.root": str(shard_root), "run.dir": str(tmp_path / "runs/new"), key: value}
    assert expected in error_of(capsys, *(f"--{name}={word}" for name, word in words.items()))
    assert list(tmp_path.iterdir()) == []


def _type_of(key: str) -> Any:
    hints: Any = Config
    for part in key.split("."):
        hints = get_type_hints(hints)[part]
    return hints


def test_null_in_a_file_is_taken_where_the_type_has_it(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    types = {key: _type_of(key) for key in flatten(Config().to_dict())}
    optional = [key for key, kind in types.items() if type(None) in get_args(kind)]
    path.write_text("".join(f"{key}: null\n" for key in optional))
    config = training_config(["--config", str(path)])
    assert {attrgetter(key)(config) for key in optional} == {None}
    # Of the others one of each type.
    for key in {str(kind): key for key, kind in types.items() if key not in optional}.values():
        path.write_text(f"{key}: null\n")
        with pytest.raises(UserError, match=rf"^{key}: got null, allowed is "):
            training_config(["--config", str(path)])


def test_a_file_is_yaml_1_2(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "data: {quality: 077, mix: {77: 1, 015: 2}}\ntrain: {compile: off}\noptim: {lr: 1e-3}\n"
        "checkpoint: {background: off}\ndeepspeed: {overrides: {a: off, b: 010}}\n"
    )
    config = training_config(["--config", str(path)])
    assert (config.data.quality, config.data.mix) == (77, {77: 1.0, 15: 2.0})
    assert (config.train.compile, config.optim.lr, config.checkpoint.background) == ("off", 1e-3, False)
    assert config.deepspeed.overrides == {"a": "off", "b": 10}
    path.write_text(config.to_yaml())
    assert training_config(["--config", str(path)]) == config


def test_what_rank_0_does_not_say_within_a_moment_another_rank_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As torchrun would have ended it meanwhile, had rank 0 met the same."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("fdtrain.cli.RANK_0_FIRST_S", 0.5)
    began = time.monotonic()
    assert main(["--data.qualty", "15"]) == 2
    assert time.monotonic() - began >= 0.5
    assert re.search(r"error: rank 1 on \S+: data\.qualty: no such key", capsys.readouterr().err)
    monkeypatch.setenv("RANK", "0")
    assert main(["--data.qualty", "15"]) == 2
    assert "error: data.qualty: no such key" in capsys.readouterr().err


TRAININGS = sorted(path for path in REPOSITORY.glob("configs/*.yaml") if path.name != "sweep.yaml")


@pytest.mark.parametrize("path", TRAININGS, ids=lambda path: path.name)
def test_a_config_lists_every_key_with_a_comment(path: Path) -> None:
    text = path.read_text()
    content, expected = yaml.safe_load(text), Config().to_dict()
    if content["model"]["name"] != "multi_attention":  # to no other model has that section a meaning
        del expected["multi_attention"]
    assert flatten(content).keys() == flatten(expected).keys()
    bare = [line for line in text.splitlines() if re.match(r"\s*\w+: *\S", line) and "#" not in line]
    assert bare == []


@pytest.mark.parametrize("path", TRAININGS, ids=lambda path: path.name)
def test_a_config_is_read_and_printed_back(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["--config", str(path), "--data.quality", "15", "--print_config"])
    assert leaving.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    expected = yaml.safe_load(path.read_text())
    expected["data"]["quality"] = 15
    expected.setdefault("multi_attention", Config().to_dict()["multi_attention"])
    assert printed == expected


def test_help_has_the_docstrings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["--help"])
    assert leaving.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Samples of one optimizer step, over all ranks" in text
    assert text.startswith("usage: python -m fdtrain [COMMAND]")
    assert text.index("evaluate Score trained models") < text.index("--data.root")


def test_bare_it_names_the_commands_unless_torchrun_calls(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([]) == 2
    said = capsys.readouterr().err
    assert [name for name in COMMANDS if f"\n  {name} " not in said] == []
    monkeypatch.setenv("RANK", "0")
    assert "data.root: not set" in error_of(capsys)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fdtrain {metadata.version('fdtrain')}\n"


def test_a_batch_that_does_not_divide_names_the_nearest_that_do() -> None:
    config = Config()
    config.train.global_batch_size, config.train.micro_batch_size = 50, 8
    with pytest.raises(UserError, match="nearest that are: 48 and 64"):
        config.accumulation(world_size=2)
    config.train.global_batch_size = 48
    assert config.accumulation(world_size=2) == 3
