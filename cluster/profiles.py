"""Cluster profiles: how a job reaches a cluster, and where its storage and its MLflow server are."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class ClusterProfile(BaseModel):
    """A running Ray cluster that takes jobs over HTTP."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["ray"] = Field(default="ray", description="How jobs reach the cluster; ray: over its Jobs API.")
    address: str = Field(description="Address of the cluster's dashboard, such as http://head:8265.")
    storage: str | None = Field(
        default=None, description="Folder that all nodes share: the default of storage.root. Data in it is not copied."
    )
    tracking: str | None = Field(
        default=None, description="MLflow server as the nodes reach it: the default of tracking.uri."
    )
    python: str = Field(default="python", description="Python of the environment on the cluster that has Ray.")
    env: tuple[VariableName, ...] = Field(
        default=(), description="Names of environment variables that jobs get from here, such as tokens."
    )

    @field_validator("address")
    @classmethod
    def _check_address(cls, address: str) -> str:
        if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname:
            raise ValueError("this is not the address of a dashboard; write http://HOST:8265")
        return address.rstrip("/")

    @field_validator("storage")
    @classmethod
    def _check_storage(cls, storage: str | None) -> str | None:
        if storage and not PurePosixPath(storage).is_absolute():
            raise ValueError("a relative path means another folder on each node; write an absolute path")
        return storage

    def is_on_cluster(self, path: str) -> bool:
        """Return whether a path lies in the shared storage, where the nodes read it themselves."""
        return self.storage is not None and PurePosixPath(path).is_relative_to(self.storage)
