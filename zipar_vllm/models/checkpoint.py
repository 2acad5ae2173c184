"""A checkpoint's files, in a folder or in the hub's cache: read, and checked before they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn

from zipar_vllm.errors import UnusableModelError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

COMPARE = "compare it with the published checkpoint's, or download it again"
DOWNLOAD_AGAIN = "download it again"
SAME_SOURCE = "take both from the same checkpoint"


class Checkpoint:
    """Finds a model's files as vLLM does: in a folder of that name, else on the Hugging Face hub.

    Files of the hub are downloaded into its cache; with ``HF_HUB_OFFLINE`` set they have to be
    there already.

    Args:
        model: A folder, or a hub id.
        revision: Of the hub id; None is its main branch.
        folder: Where in the model the files are; empty if not in a folder of theirs.

    Attributes:
        findings: What is wrong, of a checkpoint that is checked only; None of one to be loaded.
    """

    def __init__(self, model: str | Path, revision: str | None = None, folder: str = "") -> None:
        self.model = str(model)
        self.revision = revision
        self.folder = folder
        self.findings: list[UnusableModelError] | None = None

    def part(self, folder: str) -> Checkpoint:
        """A folder of the checkpoint that has a configuration and weights of its own."""
        part = Checkpoint(self.model, self.revision, folder)
        part.findings = self.findings
        return part

    def error(self, problem: str, remedy: str = COMPARE) -> UnusableModelError:
        """The error that names this model, what is wrong with it and what to do."""
        where = f"{self.model}/{self.folder}" if self.folder else self.model
        return UnusableModelError(f"{where}: {problem}", remedy)

    @contextmanager
    def finding(self) -> Iterator[None]:
        """Go on after what is wrong within, where the checkpoint is checked only.

        Raises:
            UnusableModelError: something is wrong, and the checkpoint is to be loaded.
        """
        try:
            yield
        except UnusableModelError as error:
            if self.findings is None:
                raise
            if str(error) not in map(str, self.findings):
                self.findings.append(error)

    def file(self, name: str) -> Path:
        """The local path of a file, downloaded where it has to be.

        Raises:
            UnusableModelError: there is no such file.
        """
        path = self.find(name)
        if path is None:
            if Path(self.model).exists():
                raise self.error(f"{name} is missing in the folder", "copy or download it there")
            raise self.error(
                f"no such folder, and no {name} on the hub or in its local cache",
                "look at the name, and whether the hub can be reached (HF_HUB_OFFLINE)",
            )
        return path

    def find(self, name: str) -> Path | None:
        """The local path of a file, or None."""
        name = f"{self.folder}/{name}" if self.folder else name
        if Path(self.model).exists():
            path = Path(self.model) / name
            return path if path.is_file() else None
        try:
            return Path(hf_hub_download(self.model, name, revision=self.revision))
        except (HfHubHTTPError, OSError, ValueError):  # not there, or no hub id, or offline
            return None

    def json(self, name: str) -> dict[str, Any]:
        """The contents of a JSON file.

        Raises:
            UnusableModelError: there is no such file, or it is not JSON.
        """
        path = self.file(name)
        try:
            contents: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise self.error(f"{name} is not JSON ({error})", DOWNLOAD_AGAIN) from None
        return contents

    @cached_property
    def config(self) -> dict[str, Any]:
        """The contents of ``config.json``."""
        return self.json(CONFIG)

    def parse_config(self, kind: Any) -> Any:
        """``config.json`` as one of transformers' configurations, which fills in what it lacks.

        Raises:
            UnusableModelError: a value has the wrong type.
        """
        contents = self.config
        try:
            return kind.from_dict(contents)
        except (StrictDataclassError, AttributeError, TypeError, ValueError) as error:
            raise self.error(f"{CONFIG}: {' '.join(str(error).split())}") from None

    def build(self, kind: Any, config: Any) -> Any:
        """A model of transformers' on the meta device.

        Raises:
            UnusableModelError: the configuration's values do not go together.
        """
        try:
            with torch.device("meta"):
                return kind(config)
        except Exception as error:  # there is no telling what a constructor raises
            raise self.error(
                f"{CONFIG} describes no {kind.__name__} ({' '.join(str(error).split())})"
            ) from None

    @property
    def architecture(self) -> str:
        """The model class that the checkpoint was saved by."""
        names = self.config.get("architectures") or ["none"]
        return str(names[0])

    def check(self, tensors: Mapping[str, torch.Size]) -> None:
        """See that the transformer's tensors are there, without reading them.

        Nothing is said of a quantised checkpoint, whose tensors have other names: vLLM knows them.

        Args:
            tensors: Their shapes by name.

        Raises:
            UnusableModelError: one is missing, or has another shape.
        """
        if "quantization_config" not in self.config:
            self._require(tensors)

    def _require(self, tensors: Mapping[str, torch.Size]) -> None:
        found = self._tensors
        absent = [name for name in tensors if name not in found]
        if absent:
            with self.finding():
                raise self.error(
                    f"tensor {absent[0]} is missing in its weights{_and_others(absent)}",
                    "download the weights again; if they are whole, config.json is another model's",
                )
        wrong = [name for name in tensors if name in found and found[name][1] != tensors[name]]
        if wrong:
            got, needed = list(found[wrong[0]][1]), list(tensors[wrong[0]])
            raise self.error(
                f"tensor {wrong[0]} has shape {got}, needed is {needed}{_and_others(wrong)}",
                f"{CONFIG} and the weights differ: {SAME_SOURCE}",
            )

    def load(self, module: nn.Module, prefix: str, device: torch.device) -> None:
        """Give a module its weights, in float32, and make it one for inference.

        Args:
            module: Built on the meta device.
            prefix: Of its tensors' names in the checkpoint.
            device: Where its weights go; on the meta device they are checked only.

        Raises:
            UnusableModelError: a tensor is missing, or has another shape.
        """
        names = {prefix + name: name for name in module.state_dict()}
        shapes = {prefix + name: tensor.shape for name, tensor in module.state_dict().items()}
        self._require(shapes)
        if device.type != "meta":
            weights: dict[str, torch.Tensor] = {}
            for file in sorted({self._tensors[name][0] for name in names}):
                with safe_open(file, framework="pt") as shard:
                    for name in set(names) & set(shard.keys()):
                        weights[names[name]] = shard.get_tensor(name).to(device, torch.float32)
            module.load_state_dict(weights, assign=True)
        module.eval().requires_grad_(False)

    def files(self) -> list[Path]:
        """The files of its weights.

        Raises:
            UnusableModelError: one is missing, or damaged.
        """
        return sorted({file for file, _ in self._tensors.values()})

    @cached_property
    def _tensors(self) -> dict[str, tuple[Path, torch.Size]]:
        """File and shape of every tensor, as the files' headers tell."""
        index = self.find(WEIGHTS_INDEX)
        names = {WEIGHTS} if index is None else set(self.json(WEIGHTS_INDEX)["weight_map"].values())
        tensors: dict[str, tuple[Path, torch.Size]] = {}
        unread: list[UnusableModelError] = []
        for name in sorted(names):
            with self.finding():
                try:
                    tensors |= self._header(name)
                except UnusableModelError as error:
                    unread.append(error)
                    raise
        if unread:  # which tensors are missing there, nobody wants to know
            raise unread[0]
        return tensors

    def _header(self, name: str) -> dict[str, tuple[Path, torch.Size]]:
        file = self.file(name)
        try:
            with safe_open(file, framework="pt") as shard:
                return {
                    tensor: (file, torch.Size(shard.get_slice(tensor).get_shape()))
                    for tensor in shard.keys()  # noqa: SIM118 (not a mapping)
                }
        except SafetensorError as error:
            raise self.error(f"{name} is damaged ({error})", DOWNLOAD_AGAIN) from None


def _and_others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
