"""Names and passwords in tracking URIs: they stay in the environment, where MLflow's client finds them."""

import os
from urllib.parse import unquote, urlsplit, urlunsplit

URI_VARIABLE = "MLFLOW_TRACKING_URI"
USER_VARIABLE, PASSWORD_VARIABLE = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"


def shown_uri(uri: str) -> str:
    """Return a URI as it may be written and printed: without name and password."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def move_credentials(uri: str) -> str:
    """Take name and password out of the URI of a server; they go to MLflow's variables for them.

    The URI of a database is left as it is: its driver reads them from the URI alone.
    """
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https") and "@" in parts.netloc:
        name, _, password = parts.netloc.rpartition("@")[0].partition(":")
        os.environ |= {USER_VARIABLE: unquote(name), PASSWORD_VARIABLE: unquote(password)}
        return shown_uri(uri)
    return uri


def clean_environment() -> None:
    """Move the credentials in `MLFLOW_TRACKING_URI`, so that neither MLflow nor a child process writes them down."""
    if uri := os.environ.get(URI_VARIABLE):
        os.environ[URI_VARIABLE] = move_credentials(uri)
