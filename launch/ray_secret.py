"""A secret of its own for a Ray that is started on this host."""

import os
import secrets


def give_ray_a_secret(address: str | None) -> None:
    """Before Ray is imported: the processes of a Ray on this host know each other by a token of this program alone.

    Left to itself, Ray writes a token into the home directory, which changes what every `ray start` does from then on.

    Args:
        address: Of a cluster that is there already, and has its own ways; None or "local" starts one.
    """
    if address in (None, "", "local") and "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
