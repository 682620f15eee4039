"""What may crash or hang is looked at by another process, whose end is a finding as well.

Each finding is written as it comes, so that a crash takes none of those before it along.
"""

import os
import signal
import subprocess
import sys
import tempfile

from fdtrain.doctor.report import Finding
from fdtrain.doctor.request import Request

MARK = "finding: "


def look(what: str, part: str, request: Request, port: int) -> list[Finding]:
    """What a part finds in a process of its own.

    Args:
        what: Names the part in a finding about the process itself.
        part: "device", "data", or an engine's dry run as "dry-run ddp".
        request: What is looked at, and how long that may take.
        port: Free on the host of rank 0; the processes of all ranks meet there.
    """
    environment = os.environ | {"MASTER_PORT": str(port)}
    # The store of torchrun itself, which the processes that it started use.
    environment.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    # It then dies with this process, as a worker does with torchrun.
    environment.setdefault("TORCHELASTIC_RUN_ID", "doctor")
    command = [sys.executable, "-m", "fdtrain.doctor", part, request.to_json()]
    with tempfile.TemporaryFile("w+") as errors:
        # A session of its own, to end what it has started together with it.
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, start_new_session=True
        )
        timed_out = False
        try:
            output, _ = process.communicate(timeout=request.limit_s)
        except subprocess.TimeoutExpired:
            timed_out = True
            _end(process)
            output, _ = process.communicate()
        finally:
            _end(process)
        errors.seek(0)
        said = [line.strip() for line in errors.read().splitlines() if line.strip()]
    findings = [Finding.parse(line.removeprefix(MARK)) for line in output.splitlines() if line.startswith(MARK)]
    if timed_out:
        remedy = "something hangs: NCCL_DEBUG=INFO says what NCCL waits for; or allow more by --limit_s"
        findings.append(Finding("failure", what, f"not done within {request.limit_s:g} s", remedy))
    elif process.returncode:
        ended = f"ended with exit code {process.returncode}"
        if process.returncode < 0:
            ended = f"was ended by {signal.Signals(-process.returncode).name}"
        detail = f"its process {ended}" + (f": {said[-1]}" if said else "")
        findings.append(Finding("failure", what, detail, "mend what that line says, or report it"))
    return findings


def _end(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # all of it has ended
        return
