"""What the server needs of an engine: one method."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from zipar_vllm.prepare import PreparedImage
from zipar_vllm.progress import ImageProgress


class ImageEngine(Protocol):
    """Decodes images; closing a stream early frees whatever the image held."""

    def generate(
        self, request_id: str, image: PreparedImage
    ) -> AsyncGenerator[ImageProgress, None]:
        """Yield the picture when it is begun, and each time more of its rows are complete.

        Raises:
            zipar_vllm.errors.EngineUnavailableError: the engine gave the image up.
            zipar_vllm.errors.ImageTooLargeError: it can never hold it.
        """
        ...
