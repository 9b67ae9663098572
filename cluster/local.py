"""Connect to the cluster of ``RAY_ADDRESS``, or start one inside this process for the length of a command."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from tempfile import gettempdir
from typing import Any

from cluster.attaching import AUTH_MODE, authentication_of, cluster_address, connection_error, has_token
from cluster.embedded import embedded_cluster, require_alive
from cluster.error import ClusterError
from cluster.machine import available_cpus
from cluster.reported_end import report_end

PASSED_ON = ("HF_TOKEN", "HF_ENDPOINT")  # variables that nodes need to download a base as this machine would

_INIT: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING, "configure_logging": False}
_END = """error: this machine
  the command was killed, or ended by Ray, whose processes on this machine have ended
  see whether its memory is exhausted (dmesg), and repeat the command: finished work is kept"""


@contextmanager
def ray_session() -> Iterator[None]:
    """Keep Ray initialised inside this context.

    Connects to the cluster of ``RAY_ADDRESS`` if it is set, with the authentication that it has. Otherwise starts a
    cluster with all cores that this process may use; its processes end with the context. Does nothing where Ray is
    initialised already.

    Raises:
        ClusterError: If the cluster of ``RAY_ADDRESS`` cannot be used, or none can be started.
        ClusterStartError: If a process of the embedded cluster ends while it is started.
        ClusterEndedError: If the embedded cluster has ended, and an error has left the context.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = cluster_address()
    mode = authentication_of(address) if address else "token"
    own_token = nullcontext() if address else _token()
    with authentication(mode), own_token, _without_tracebacks(), ExitStack() as started:
        with kept_handler(signal.SIGTERM), _without_advice_on_threads():  # Ray's handler ends the process
            if address:
                _connect(address, mode)
            else:
                started.enter_context(report_end(_END))
                started.enter_context(embedded_cluster(_start))
        try:
            yield
        except ray.exceptions.RayError as error:
            require_alive(error)
            raise
        finally:
            with kept_handler(signal.SIGTERM):  # after Ray there is none
                ray.shutdown()


def _connect(address: str, mode: str) -> None:
    import ray

    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment: dict[str, Any] = {"runtime_env": {"env_vars": passed}} if passed else {}
    try:
        ray.init(**environment, **_INIT)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise connection_error(address, mode, error) from None


def _start() -> None:
    import ray

    try:
        with _group_of_its_own():
            ray.init(address="local", num_cpus=available_cpus(), include_dashboard=False, **_INIT)
    except Exception as error:  # also a bare one, such as after waiting for the raylet
        raise _start_error(error) from None


@contextmanager
def _group_of_its_own() -> Iterator[None]:
    """Start Ray's processes outside of this process's group, as Ray starts its workers.

    ``timeout`` and CI runners send SIGTERM to the group of a command. This process then needs Ray to stop the trainings
    in order.
    """
    from ray._private import services

    module: Any = services
    popen = module.ConsolePopen
    module.ConsolePopen = partial(popen, process_group=0)
    try:
        yield
    finally:
        module.ConsolePopen = popen


def _start_error(error: Exception) -> ClusterError:
    fix = "free memory and space in /tmp (or set RAY_TMPDIR), or set RAY_ADDRESS to a running cluster"
    if "AF_UNIX path length" in str(error):
        fix = f"set RAY_TMPDIR to a folder with a short path, such as /tmp: its sockets lie below {gettempdir()}"
    return ClusterError(f"Ray does not start: {' '.join(str(error).split())}", where="this machine", fix=fix)


@contextmanager
def kept_handler(number: int) -> Iterator[None]:
    """Restore the handler of a signal when the context exits. Ray sets handlers of its own, in the main thread."""
    handler = signal.getsignal(number)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():  # None: not Python's
            signal.signal(number, handler)


def _without_advice_on_threads() -> AbstractContextManager[None]:
    """Hide Ray's warning that it sets no handler of SIGTERM where this is not the main thread: none is wanted."""

    def is_other(record: logging.LogRecord) -> bool:
        return "SIGTERM handler is not set" not in str(record.msg)

    return _filtered("ray._private.worker", is_other)


def _without_tracebacks() -> AbstractContextManager[None]:
    """Hide the traceback with which Ray says that it cannot remove its folder of objects: the message is enough."""

    def shorten(record: logging.LogRecord) -> bool:
        record.exc_info = None
        return True

    return _filtered("ray._private.external_storage", shorten)


@contextmanager
def _filtered(name: str, passes: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Within this context, log only records of this logger that pass; the function may change them."""
    log = logging.getLogger(name)
    log.addFilter(passes)
    try:
        yield
    finally:
        log.removeFilter(passes)


@contextmanager
def authentication(mode: str) -> Iterator[None]:
    """Set Ray's mode of authentication within the context, unless the user's environment sets it."""
    from ray._raylet import Config  # type: ignore[attr-defined]

    is_set = AUTH_MODE in os.environ
    os.environ.setdefault(AUTH_MODE, mode)
    Config.initialize("")  # Ray has read the variable when it was imported, and it may have been set since
    try:
        yield
    finally:
        if not is_set:
            os.environ.pop(AUTH_MODE, None)
        Config.initialize("")


@contextmanager
def _token() -> Iterator[None]:
    """Set a token for the embedded cluster within the context, if the user has none: Ray would write one at home."""
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    if has_token():
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        yield
    finally:
        os.environ.pop("RAY_AUTH_TOKEN", None)
        AuthenticationTokenLoader.instance().reset_cache()
