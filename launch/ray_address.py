"""What is done with the address of a Ray cluster before Ray is: it would look for a dead one for ten minutes."""

import os
import secrets

from fdtrain.config import HostError
from fdtrain.tracking.client import knock


def must_answer(address: str | None, key: str) -> None:
    """Raise HostError where nobody takes connections at `HOST:PORT`; other addresses are left to Ray.

    Args:
        address: None, `local` and `auto` name none.
        key: The setting or variable that gave it.
    """
    if address and ":" in address and "://" not in address and (fault := knock(f"//{address}")):
        raise HostError(f"{key}: no Ray cluster answers at {address} ({fault}); start it, or take {key} away")


def give_ray_a_secret(address: str | None) -> None:
    """Before Ray is imported: the processes of a Ray on this host know each other by a token of this program alone.

    Left to itself, Ray writes a token into the home directory, which changes what every `ray start` does from then on.

    Args:
        address: Of a cluster that is there already, and has its own ways; None or "local" starts one.
    """
    if address in (None, "", "local") and "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
