"""Trains the decoder: captions and image tokens, under ZipAR's masks, on damaged pictures."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from training.captions import caption
from training.layout import Layout, pad_prompts
from training.masks import batch_mask, corrupt, draw_window
from training.model import Decoder, DecoderConfig
from training.muon import BatchedMuon
from training.parallel import Workers


@dataclass(frozen=True, slots=True)
class DecoderRun:
    """How to train the decoder; ``seconds`` bounds it by the clock, whatever the machine.

    Attributes:
        seconds: Training time, all resumed runs together.
        hold: Share of it at the full learning rate; then it falls linearly to zero.
        zipar_share: Share of pictures trained under a ZipAR window, the rest in raster order.
        highest_damage: Largest share of damaged input tokens of a picture.
        keep_every: Seconds between checkpoints.
    """

    seconds: float = 7200.0
    batch: int = 8
    muon_rate: float = 5e-3
    adam_rate: float = 3e-3
    weight_decay: float = 0.01
    hold: float = 0.7
    zipar_share: float = 0.5
    highest_damage: float = 0.3
    ema: float = 0.98
    keep_every: float = 120.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Example:
    """A training picture and how to name it."""

    concept: str
    style: str
    codes: torch.Tensor  # int64 [24, 24]


def token_weights(examples: list[Example], count: int) -> torch.Tensor:
    """Loss weight of each code, 0.3 to 1: the commonest ones, mostly ground, count less.

    Else an unsure model says "ground" everywhere, and low temperatures make empty pictures.
    """
    codes = torch.stack([e.codes for e in examples]).flatten()
    share = torch.bincount(codes, minlength=count) / len(codes)
    return (0.004 / share.clamp_min(1e-9)).sqrt().clamp(0.3, 1.0)


class DecoderTraining:
    """Model, optimisers, averaged weights and their checkpoint."""

    def __init__(
        self,
        config: DecoderConfig,
        run: DecoderRun,
        examples: list[Example],
        tokenizer: Any,
        layout: Layout,
        workers: Workers | None = None,
    ) -> None:
        torch.manual_seed(run.seed)
        self.workers = workers or Workers()
        self.config, self.run, self.layout = config, run, layout
        self.examples, self.tokenizer = examples, tokenizer
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = Decoder(config).to(self.device)
        self.ema = {k: v.detach().clone() for k, v in self.model.named_parameters()}
        # Each worker orthogonalises its part of the matrices; Workers.share() spreads the results.
        self.matrices = [p for p in self.model.layers.parameters() if p.ndim == 2]
        own = self.matrices[self.workers.rank :: self.workers.size]
        vectors = [p for p in self.model.layers.parameters() if p.ndim != 2]
        tables = [*self.model.embed_tokens.parameters(), *self.model.lm_head.parameters()]
        vectors += list(self.model.norm.parameters())
        self.optimizers: list[torch.optim.Optimizer] = [
            BatchedMuon(own, lr=run.muon_rate, weight_decay=run.weight_decay),
            torch.optim.AdamW(
                tables + vectors, lr=run.adam_rate, betas=(0.9, 0.98), weight_decay=0.0
            ),
        ]
        self.rates = [run.muon_rate, run.adam_rate]
        self.seed_data(0)
        self.weights = token_weights(examples, len(self.model.lm_head.digits)).to(self.device)
        self.step, self.elapsed = 0, 0.0
        self.shown: dict[str, int] = {}  # pictures shown, by how many there were to choose from

    def seed_data(self, step: int) -> None:
        """Own randomness for each worker, and after each resumption."""
        self.rng = random.Random(f"{self.run.seed}/{self.workers.rank}/{step}")
        self.generator = torch.Generator().manual_seed(self.rng.getrandbits(32))
        self.queue: list[int] = []

    def next_batch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
        """Inputs ``[B, L]``, mask ``[B, 1, L, L]``, codes ``[B, 24, 24]``, prompt length."""
        count = self.run.batch // self.workers.size
        if len(self.queue) < count:
            self.queue += self.rng.sample(range(len(self.examples)), len(self.examples))
        picks = [self.examples[self.queue.pop(0)] for _ in range(count)]
        texts = [self.tokenizer.encode(caption(e.concept, e.style, self.rng)).ids for e in picks]
        length = max(map(len, texts)) + len(self.layout.prefix) + len(self.layout.suffix)
        prompts, pads = pad_prompts(texts, self.layout, length)
        codes = torch.stack([e.codes for e in picks])
        damaged = corrupt(codes, self.config.levels, self.run.highest_damage, self.generator)
        rows = F.pad(damaged + self.layout.image_start, (0, 1), value=self.layout.eol)
        ids = torch.cat([prompts, rows.flatten(1)], 1)
        windows = [draw_window(self.rng, self.run.zipar_share) for _ in picks]
        mask = batch_mask(windows, pads, length)
        return ids.to(self.device), mask.to(self.device), codes.to(self.device), length

    def losses(
        self, ids: torch.Tensor, mask: torch.Tensor, codes: torch.Tensor, length: int
    ) -> torch.Tensor:
        """Cross-entropy of every image token, float ``[B, rows, columns]``, in nats."""
        rows, columns = codes.shape[1:]
        # Measured: float32 is 1.5 times as fast as bfloat16 on a CPU without AMX.
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            hidden = self.model(ids, mask)
            # The last prompt token predicts cell (0, 0), each terminator the next row's first
            # cell, each cell the one to its right; a row's last cell predicts nothing.
            queries = hidden[:, length - 1 : length - 1 + rows * (columns + 1)]
            queries = queries.unflatten(1, (rows, columns + 1))[:, :, :columns]
            logits = self.model.image_logits(queries)
        flat = F.cross_entropy(logits.float().flatten(0, 2), codes.flatten(), reduction="none")
        return flat.view_as(codes)

    def train_step(self) -> float:
        """One optimiser step; returns the unweighted mean loss."""
        start = time.monotonic()
        done = self.elapsed / self.run.seconds
        factor = min(1.0, (self.step + 1) / 60, (1 - done) / (1 - self.run.hold))
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * max(factor, 0.0)
        ids, mask, codes, length = self.next_batch()
        losses = self.losses(ids, mask, codes, length)
        weights = self.weights[codes]
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        mean = float(losses.detach().mean())
        # The clock is averaged too: learning rate and end are then the same for all workers.
        mean, self.elapsed = self.workers.average(grads, (mean, self.elapsed))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        self.workers.share(self.matrices)
        self.step += 1
        pool = str(len(self.examples))
        self.shown[pool] = self.shown.get(pool, 0) + self.run.batch
        keep = min(self.run.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.model.named_parameters():
                self.ema[name].lerp_(value, 1 - keep)
        self.elapsed += time.monotonic() - start
        return mean

    def gather_momenta(self) -> list[torch.Tensor]:
        """Muon's state for all matrices, whichever worker has it."""
        state = self.optimizers[0].state
        momenta = [
            state[p]["momentum"].clone() if "momentum" in state.get(p, {}) else torch.zeros_like(p)
            for p in self.matrices
        ]
        self.workers.share(momenta)
        return momenta

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all; all workers must call it."""
        state = {
            "config": self.config.to_dict(),
            "model": self.model.state_dict(),
            "ema": self.ema,
            "momenta": self.gather_momenta(),
            "adam": self.optimizers[1].state_dict(),
            "concepts": sorted({e.concept for e in self.examples}),
            "step": self.step,
            "shown": self.shown,
            "elapsed": self.elapsed,
        }
        if self.workers.rank:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint of the same shape."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.ema = state["ema"]
        for param, momentum in zip(self.matrices, state["momenta"], strict=True):
            self.optimizers[0].state[param]["momentum"] = momentum
        self.optimizers[1].load_state_dict(state["adam"])
        self.step, self.elapsed = state["step"], state["elapsed"]
        self.shown = state["shown"]
        self.seed_data(self.step)

    def train(self, checkpoint: Path) -> None:
        """Train until the time is up, from the checkpoint if there is one."""
        if checkpoint.exists():
            self.load(checkpoint)
            print(f"decoder: going on at step {self.step}, {self.elapsed:.0f} s", flush=True)
        last_saved, shown, total = self.elapsed, self.step, 0.0
        since = time.monotonic()
        while self.elapsed < self.run.seconds:
            total += self.train_step()
            if self.step - shown == 25 and self.workers.rank == 0:
                seconds = time.monotonic() - since
                tokens = 25 * self.run.batch * 601 / seconds
                pool = str(len(self.examples))
                epochs = self.shown[pool] / len(self.examples)
                print(
                    f"decoder {self.step} loss {total / 25:.4f} epoch {epochs:.1f}"
                    f" {tokens:.0f} tokens/s {self.elapsed:.0f}/{self.run.seconds:.0f} s",
                    flush=True,
                )
            if self.step - shown == 25:
                shown, total, since = self.step, 0.0, time.monotonic()
            if self.elapsed - last_saved > self.run.keep_every:
                self.save(checkpoint)
                last_saved = self.elapsed
        self.save(checkpoint)


def load_decoder(checkpoint: Path) -> tuple[Decoder, dict[str, Any]]:
    """The averaged weights of a checkpoint, and what else it holds."""
    state: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    raw = dict(state["config"])
    raw["levels"] = tuple(raw["levels"])
    model = Decoder(DecoderConfig(**raw))
    model.load_state_dict(state["ema"], strict=True)
    return model.eval(), state
