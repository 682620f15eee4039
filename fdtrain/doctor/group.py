"""Several processes that torchrun started: what each found, told to all."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from fdtrain.config import HostError, first_line
from fdtrain.doctor.report import Finding
from fdtrain.doctor.request import Place

Gather = Callable[[Any], list[Any]]
"""A small value of this process -> those of all, by rank. Collective."""

CLOCK_TOLERANCE_S = 1.0


@contextmanager
def meeting(place: Place, limit_s: float) -> Iterator[Gather]:
    """Among all ranks, over gloo; a process that is alone meets itself, and needs no torch for it.

    Args:
        place: Of this process.
        limit_s: Seconds that one rank may keep the others waiting.

    Raises:
        HostError: they can't reach each other.
    """
    if place.world_size == 1:
        yield lambda value: [value]
        return
    import torch.distributed as dist

    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=limit_s))
    except (RuntimeError, OSError) as error:  # of a network; without it nobody can be told anything
        raise HostError(
            f"the {place.world_size} ranks can't meet ({first_line(error)}); name the network that their hosts share "
            "by GLOO_SOCKET_IFNAME, or run doctor on each host without torchrun"
        ) from None

    def gather(value: Any) -> list[Any]:
        values: list[Any] = [None] * place.world_size
        dist.all_gather_object(values, value)
        return values

    try:
        yield gather
    finally:
        dist.destroy_process_group()


def compare_clocks(place: Place, gather: Gather) -> Finding:
    """Whether all ranks have the same time of day. Collective."""
    gather(None)  # all are here now
    times = dict(zip(gather(place.label), gather(time.time()), strict=True))
    first, last = min(times, key=times.__getitem__), max(times, key=times.__getitem__)
    apart = times[last] - times[first]
    detail = f"within {apart:.3f} s of each other on {len(times)} ranks"
    if apart > CLOCK_TOLERANCE_S:
        detail = f"{last} is {apart:.1f} s ahead of {first}"
        return Finding("warning", "clocks", detail, "let the hosts' clocks be kept (timedatectl set-ntp true)")
    return Finding("ok", "clocks", detail)
