"""The mode of authentication of this process is the one in its environment, whoever has set it, and when."""

from __future__ import annotations

import pytest

from cluster.attaching import AUTH_MODE
from cluster.local import authentication


@pytest.mark.parametrize("given", [None, "disabled", "token"])
def test_ray_has_the_mode_of_the_environment(given, monkeypatch):
    from ray._raylet import AuthenticationMode, get_authentication_mode

    monkeypatch.delenv(AUTH_MODE, raising=False)
    if given:
        monkeypatch.setenv(AUTH_MODE, given)
    with authentication("token"):
        expected = AuthenticationMode.DISABLED if given == "disabled" else AuthenticationMode.TOKEN
        assert get_authentication_mode() == expected
    monkeypatch.delenv(AUTH_MODE, raising=False)
    with authentication("disabled"):
        assert get_authentication_mode() == AuthenticationMode.DISABLED
