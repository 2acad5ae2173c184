"""Prometheus metrics about images, beside vLLM's own on the same ``/metrics``."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)

images_finished = Counter("zipar:images_finished", "Images answered.", ["size"])
images_failed = Counter("zipar:images_failed", "Images that ended without an answer.", ["reason"])
image_seconds = Histogram(
    "zipar:image_latency_seconds",
    "Time from an image's acceptance to its file.",
    ["size"],
    buckets=_SECONDS,
)
image_steps = Histogram(
    "zipar:image_steps",
    "Forward passes an image took.",
    buckets=(50, 100, 200, 400, 600, 1000, 2000, 4000, 8000),
)
queue_seconds = Histogram(
    "zipar:queue_seconds",
    "Time an image waited for its first forward pass.",
    buckets=(0.001, 0.01, *_SECONDS),
)
pixel_seconds = Histogram(
    "zipar:pixel_decode_seconds",
    "Time to draw and encode a batch.",
    buckets=(0.005, 0.01, *_SECONDS),
)
partial_images = Counter("zipar:partial_images_sent", "Partial images sent.")
images_active = Gauge(
    "zipar:images_active",
    "Images accepted and not answered yet.",
    multiprocess_mode="livesum",
)
windows = Counter("zipar:images_by_window", "Images accepted, by window.", ["window", "adaptive"])
requests_rejected = Counter("zipar:requests_rejected", "Requests refused for overload.")
