"""What the profiles of all kinds of clusters have: storage, MLflow server, Python and environment."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Line = Annotated[str, StringConstraints(pattern=r"^[^\n\r]*$")]
Count = Annotated[int, Field(ge=1)]


class CommonProfile(BaseModel):
    """What the profiles of all kinds of clusters have."""

    model_config = ConfigDict(extra="forbid", frozen=True)
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

    @field_validator("storage")
    @classmethod
    def _check_storage(cls, storage: str | None) -> str | None:
        if storage and not PurePosixPath(storage).is_absolute():
            raise ValueError("a relative path means another folder on each node; write an absolute path")
        return storage

    def is_on_cluster(self, path: str) -> bool:
        """Return whether a path lies in the shared storage, where the nodes read it themselves."""
        return self.storage is not None and PurePosixPath(path).is_relative_to(self.storage)
