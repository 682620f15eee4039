"""Whether this host, these hosts, can do what a training run needs: each thing tried, with what to do about it.

What may crash or hang is tried by another process (`child`), so that CUDA, DALI or a network that fails is a line of
the report. This process imports neither torch nor MLflow unless it has to.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from fdtrain.doctor.child import look
from fdtrain.doctor.disk import check_disk
from fdtrain.doctor.group import Gather, compare_clocks, meeting
from fdtrain.doctor.host import check_host, check_ports, free_port
from fdtrain.doctor.packages import check_packages, compare_packages
from fdtrain.doctor.report import Finding, guarded
from fdtrain.doctor.request import PARTS, Place, Request, engine_kinds
from fdtrain.versions import installed

__all__ = ["PARTS", "Finding", "Place", "Request", "examine"]


def examine(request: Request, tell: Callable[[Finding], None]) -> list[Finding]:
    """What all ranks found, on rank 0, which tells it as it comes; nothing on the others. Collective under torchrun.

    Args:
        request: What is looked at.
        tell: Takes each finding. Those of several ranks come at the end, rank by rank.
    """
    place = Place.here()
    found: list[Finding] = []

    def take(findings: Iterable[Finding]) -> None:
        for finding in findings:
            found.append(finding)
            tell(finding)

    with meeting(place, limit_s=5 * request.limit_s + 300) as gather:
        if place.world_size == 1:
            take(_own(request, place, gather))
            return found
        shared = list(_of_all(request, place, gather))
        own = [replace(finding, place=place.label) for finding in _own(request, place, gather)]
        everybody = gather(own)
    if place.rank == 0:
        take([*shared, *(finding for one in everybody for finding in one)])
    return found


def _of_all(request: Request, place: Place, gather: Gather) -> Iterator[Finding]:
    """What only all ranks together can tell."""
    versions = gather((place.label, installed()))
    if request.wants("packages"):
        yield from compare_packages(dict(versions))
    clocks = compare_clocks(place, gather)
    if request.wants("host"):
        yield clocks


def _own(request: Request, place: Place, gather: Gather) -> Iterator[Finding]:
    if place.local_rank == 0:
        yield from _of_host(request, place)
    if request.wants("device"):
        yield from look("device", "device", request, _port(place, gather))
    data = list(look("data", "data", request, 0)) if request.wants("data") and place.local_rank == 0 else []
    yield from data
    if not request.wants("dry-run"):
        return
    # All ranks train on the same, and the fault of a set is told once.
    if any(gather(any(finding.level == "failure" for finding in data))):
        request = replace(request, root=None)
    for kind in engine_kinds():
        yield from look(f"dry run {kind}", f"dry-run {kind}", request, _port(place, gather))


def _of_host(request: Request, place: Place) -> Iterator[Finding]:
    if request.wants("packages"):
        yield from guarded("packages", check_packages)
    if request.wants("host"):
        yield from guarded("host", check_host, place)
    if request.wants("disk"):
        yield from guarded("run disk", check_disk, request.run_dir)
    if request.wants("ports"):
        yield from guarded("port", check_ports, place)
    if request.wants("mlflow") and place.rank == 0:
        from fdtrain.doctor.service import check_mlflow

        yield from guarded("MLflow", check_mlflow, request.tracking_uri)


def _port(place: Place, gather: Gather) -> int:
    """Where the processes of all ranks meet: free on the host of rank 0. Collective."""
    port: int = gather(free_port() if place.rank == 0 else 0)[0]
    return port
