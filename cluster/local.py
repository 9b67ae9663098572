"""Connect to the cluster of ``RAY_ADDRESS``, or start one inside this process for the length of a command."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.attaching import AUTH_MODE, authentication_of, connection_error
from cluster.machine import available_cpus

PASSED_ON = ("HF_TOKEN", "HF_ENDPOINT")  # variables that nodes need to download a base as this machine would


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
    if address:
        passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        own: dict[str, Any] = {"runtime_env": {"env_vars": passed}} if passed else {}
    else:
        own = {"address": "local", "num_cpus": available_cpus(), "include_dashboard": False}
    mode = authentication_of(address) if address else "token"
    with _authentication(mode):
        try:
            with _kept_sigterm():
                ray.init(**own, log_to_driver=False, logging_level=logging.WARNING, configure_logging=False)
        except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
            if not address:
                raise
            raise connection_error(address, mode, error) from None
        try:
            yield
        finally:
            with _kept_sigterm():
                ray.shutdown()


@contextmanager
def _kept_sigterm() -> Iterator[None]:
    """Restore the handler of SIGTERM when the context exits: Ray's ends the process, and after Ray there is none."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


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
        os.environ.pop(AUTH_MODE, None)
        Config.initialize("")
