"""What the log of a run of two ranks says of its steps, and the traces that it writes."""

import gzip
import json
from pathlib import Path

from fdtrain.telemetry.meter import PARTS
from tests.conftest import small_training, torchrun


def steps_of(run: Path) -> list[dict]:
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [line for line in lines if "train/loss" in line]


def test_the_log_says_where_time_goes_and_a_trace_changes_nothing(shard_root: Path, tmp_path: Path) -> None:
    plain, traced = tmp_path / "plain", tmp_path / "traced"
    settings = {"train__log_every": 2, "train__max_steps": 6, "checkpoint__every_steps": 2}
    for run, more in ((plain, {}), (traced, {"profile__steps": "[3, 4]"})):
        done = torchrun(2, *small_training(shard_root, run, **settings, **more))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("no model FLOP utilization (train/mfu): the peak fp32 rate of CPU isn't known") == 1

    lines = steps_of(plain)
    assert [line["step"] for line in lines] == [2, 4, 6]
    for line in lines:
        times = {name.removeprefix("train/time/"): each for name, each in line["by_rank"].items() if "time" in name}
        assert {*PARTS, "step", "other", "communication_hidden", "checkpoint_stall"} == times.keys()
        for rank in range(2):
            parts = [times[name][rank] for name in PARTS]
            assert all(seconds >= 0 for seconds in parts)
            assert 0 < sum(parts) <= times["step"][rank]
            assert times["forward_backward"][rank] > 0
        for name, ranks in line["by_rank"].items():
            assert line[f"{name}_max"] == max(ranks) >= line[name] >= min(ranks)
        assert line["train/memory/peak_rss"] > 50e6
        assert line["train/slowest_rank"] in (0, 1)
        assert "train/mfu" not in line
    # The checkpoint after step 2 held up what the line of step 4 is about.
    assert min(lines[1]["by_rank"]["train/time/checkpoint_stall"]) > 0

    for name in ("train/loss", "train/grad_norm"):
        assert [line[name] for line in lines] == [line[name] for line in steps_of(traced)]
    weights = "checkpoints/step-00000006/model.safetensors"
    assert (plain / weights).read_bytes() == (traced / weights).read_bytes()
    assert not (plain / "profile").exists()
    for rank in range(2):
        path = traced / "profile" / f"steps-00000003-00000004-rank-{rank:05d}.json.gz"
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        # Of a phase, one for each of the steps; "optimizer" comes before and after the ranks agree.
        phases = [event["name"] for event in events if event.get("cat") == "user_annotation"]
        assert phases.count("forward_backward") == 2
        assert phases.count("optimizer") == 4
        assert "aten::convolution_backward" in path.with_name(path.name.replace(".json.gz", ".txt")).read_text()
