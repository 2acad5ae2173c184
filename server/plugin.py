"""Where the server meets vLLM: an endpoint plugin of its API server."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from typing import Any

from fastapi import FastAPI

from zipar_vllm.engine.client import ImageClient
from zipar_vllm.models.registry import default_device, load_image_model

from . import access_log, lifecycle, page
from .options import ServerOptions
from .routes import router
from .service import ImageService


class ImagesPlugin:
    """Adds the image routes (entry point group ``vllm.endpoint_plugins``)."""

    name = "zipar_images"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Register the routes; vLLM's own of the same path give way."""
        app.include_router(router)
        app.include_router(page.router)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Build the service once the engine runs."""
        access_log.configure()
        options, config = ServerOptions(), engine_client.model_config
        device = options.pixel_device or default_device()
        model = load_image_model(config.model, config.revision, device)
        engine = ImageClient(engine_client, model.spec)
        state.zipar_images = ImageService(engine, model, options)
        # Kept, because the event loop holds tasks weakly.
        state.zipar_signals = asyncio.create_task(lifecycle.watch_signals(state))
