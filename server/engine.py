"""What the server needs of an engine: one method."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from zipar_vllm.config import ImageParams


class Progress(Protocol):
    """The picture so far; see :class:`zipar_vllm.engine.client.ImageProgress`."""

    @property
    def codes(self) -> list[int]: ...
    @property
    def rows(self) -> int: ...
    @property
    def finished(self) -> bool: ...
    @property
    def steps(self) -> int | None: ...
    @property
    def queue_seconds(self) -> float | None: ...


class ImageEngine(Protocol):
    """Decodes images; closing a stream early frees whatever the image held."""

    def generate(
        self,
        request_id: str,
        prompt_ids: list[int],
        unconditional_ids: list[int],
        params: ImageParams,
    ) -> AsyncGenerator[Progress, None]:
        """Yield the picture each time more of its rows are complete.

        Raises:
            zipar_vllm.errors.EngineUnavailableError: the engine gave the image up.
            zipar_vllm.errors.ImageTooLargeError: it can never hold it.
        """
        ...
