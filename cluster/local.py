"""Connect to the cluster of ``RAY_ADDRESS``, or start one inside this process for the length of a command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.attaching import AUTH_MODE, authentication_of, connection_error
from cluster.machine import available_cpus


@contextmanager
def ray_session() -> Iterator[None]:
    """Keep Ray initialised inside this context.

    Connects to the cluster of ``RAY_ADDRESS`` if it is set, with the authentication that it has. Otherwise starts a
    cluster with all cores that this process may use; its processes end with the context. Does nothing where Ray is
    initialised already.

    Raises:
        InputError: If the cluster of ``RAY_ADDRESS`` cannot be used.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    own = {} if address else {"address": "local", "num_cpus": available_cpus(), "include_dashboard": False}
    mode = authentication_of(address) if address else "token"
    with _authentication(mode):
        try:
            ray.init(**own, log_to_driver=False, logging_level="warning", configure_logging=False)  # type: ignore[arg-type]
        except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
            if not address:
                raise
            raise connection_error(address, mode, error) from None
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _authentication(mode: str) -> Iterator[None]:
    """Set Ray's mode of authentication within the context, unless the user's environment sets it."""
    from ray._raylet import Config  # type: ignore[attr-defined]

    if AUTH_MODE in os.environ:
        yield
        return
    os.environ[AUTH_MODE] = mode
    Config.initialize("")  # Ray has read the variable when it was imported
    try:
        yield
    finally:
        del os.environ[AUTH_MODE]
        Config.initialize("")
