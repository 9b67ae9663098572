"""Where a base comes from: a package, a local folder, or a model hub; always to a local folder with a digest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import tempfile
from pathlib import Path

from ttmoe.base import Base, choose_dtype, choose_pooling, digest_folder
from ttmoe.errors import InputError
from workers.data.wheels import wheel_folder, wheel_member


def resolve_base(
    *,
    package: str | None = None,
    path: str | None = None,
    sha256: str | None = None,
    folder: str | None = None,
    hub: str | None = None,
    revision: str | None = None,
    gguf: str | None = None,
    dtype: str = "auto",
    max_length: int = 128,
    pooling: str = "auto",
    cache: Path,
    device: str = "cpu",
) -> Base:
    """Bring the base to a local folder (downloading or converting it once into ``cache``) and name it.

    Raises InputError where it cannot be had.
    """
    if package:
        source, name, place, version = (
            "package",
            package.split("==")[0],
            *_from_package(package, path, sha256, cache),
        )
    elif folder:
        place, version = Path(folder).expanduser().resolve(), ""
        source, name = "folder", place.name
        if not place.exists():
            raise InputError(f"there is no folder {place}", where="base.folder", fix="give a folder with a model in it")
    else:
        source, name, place, version = "hub", str(hub), _from_hub(str(hub), str(revision)), str(revision)
    weights = place if place.suffix == ".gguf" else place / gguf if gguf else None
    if weights:
        place = _converted(weights, cache)
    return Base(
        source,
        name,
        version,
        digest_folder(place),
        str(place),
        choose_dtype(dtype, device),
        max_length,
        choose_pooling(pooling, place),
    )


def _from_package(requirement: str, path: str | None, sha256: str | None, cache: Path) -> tuple[Path, str]:
    """The installed distribution if it is there in that version, else its wheel, taken without its dependencies."""
    name, _, version = requirement.partition("==")
    inside = path or ""
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        found = None
    if found and (not version or found.version == version):
        place = Path(str(found.locate_file(inside or _model_folder(found))))
        if place.exists():
            return place, found.version
    if not inside:
        raise InputError(
            f"package {name} is not installed",
            where="base.package",
            fix=f"pip install {requirement}, or give base.path, the model's place inside its wheel",
        )
    take = wheel_member if Path(inside).suffix else wheel_folder
    return take(requirement, sha256, inside, cache), version


def _model_folder(found: importlib.metadata.Distribution) -> str:
    configs = [str(file.parent) for file in found.files or [] if file.name == "config.json"]
    tops = [
        folder
        for folder in configs
        if any(str(f.parent) == folder and f.suffix == ".safetensors" for f in found.files or [])
    ]
    if len(tops) != 1:
        raise InputError(
            f"package {found.name} holds {len(tops)} models",
            where="base.package",
            fix="name the model's place inside the package with base.path",
        )
    return tops[0]


def _from_hub(hub: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.safetensors", "*.json", "*.txt", "*.model", "*.gguf"]
    try:
        return Path(snapshot_download(hub, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"base {hub} at {revision} cannot be had: {error}",
            where="base.hub",
            fix="check the id, the revision, the network and your access; or download it and give base.folder",
        ) from error


def _converted(weights: Path, cache: Path) -> Path:
    """A GGUF as safetensors, made once and kept under the file's digest."""
    if not weights.is_file():
        raise InputError(f"there is no file {weights}", where="base.gguf", fix="check the file's name")
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    target = cache / "bases" / digest[:16]
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _convert(weights, part)
        part.rename(target)
    except (
        ValueError,
        KeyError,
        NotImplementedError,
    ) as error:  # what transformers raises for a file it cannot read
        raise InputError(
            f"{weights} cannot be converted: {error}",
            where="base.gguf",
            fix="give a whole GGUF file of an architecture that transformers reads",
        ) from error
    except OSError:
        if not (target / "config.json").is_file():  # otherwise another process was faster
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _convert(weights: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(target)
    model = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name)
    # transformers takes a GGUF for a quantised model and will not save it; the weights are dequantised by now.
    model.hf_quantizer = None  # type: ignore[assignment]
    del model.config.quantization_config
    model.save_pretrained(target)
