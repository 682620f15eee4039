"""Which Ray cluster is meant, asked before Ray itself, which would look for a dead one for ten minutes."""

import os
import secrets

from fdtrain.config import HostError
from fdtrain.tracking.client import knock


def cluster_address(configured: str | None, key: str) -> str | None:
    """The address in force: as configured, else `RAY_ADDRESS`; None where Ray is to be started on this host.

    To be called before Ray is imported: the processes of a Ray on this host know each other by a token of this program
    alone. Left to itself, Ray writes one into the home directory, which changes what every `ray start` does from then
    on. A cluster that is there already has its own ways.

    Args:
        configured: The setting's value; `local` starts a Ray, too.
        key: Of the setting.

    Raises:
        HostError: nobody takes connections at `HOST:PORT`; other forms of address are left to Ray.
    """
    address = configured or os.environ.get("RAY_ADDRESS") or None
    if address and ":" in address and "://" not in address and (fault := knock(f"//{address}")):
        named = key if configured else "RAY_ADDRESS"
        raise HostError(f"{named}: no Ray cluster answers at {address} ({fault}); start it, or take {named} away")
    if address in (None, "local") and "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return address
