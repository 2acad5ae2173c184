"""Scores of finished pictures: always those of one dense forward pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.cases import NEGATIVE, PROMPT, hf_model, make_image
from zipar_vllm.core.grid import Grid
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.decoding.policy import Step
from zipar_vllm.decoding.scoring import scoring
from zipar_vllm.prepare import PreparedImage

from .room import Decoded, Room


def random_picture(room: Room, image: PreparedImage) -> PreparedImage:
    count = image.grid.rows * image.grid.columns
    codes = torch.randint(room.vocabulary.num_codes, (count,))
    return replace(image, picture=tuple(codes.tolist()))


@torch.no_grad()
def dense_scores(
    path: Path, vocabulary: Vocabulary, prompt: list[int], tokens: list[int]
) -> torch.Tensor:
    """Log-probability of each token among all image tokens; 0 of a terminator."""
    logits = hf_model(path)(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    ids = torch.tensor(tokens)
    codes = vocabulary.codes(ids)
    is_code = (codes >= 0) & (codes < vocabulary.num_codes)
    table = vocabulary.select(logits).log_softmax(-1)
    own = table.gather(1, codes.clamp(min=0).unsqueeze(1)).squeeze(1)
    return torch.where(is_code, own, 0.0)


def assert_scored(room: Room, path: Path, got: Decoded, image: PreparedImage) -> None:
    ids = [token for token in got.tokens if token != room.vocabulary.row_terminator]
    assert tuple(room.vocabulary.codes(torch.tensor(ids)).tolist()) == image.picture
    scores = torch.tensor(got.scores)[:, 0]
    expected = dense_scores(path, room.vocabulary, image.prompts.conditional, got.tokens)
    torch.testing.assert_close(scores, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (6, 12), (1, 5), (7, 1), (1, 1)])
def test_a_picture_is_scored_in_a_pass_per_row(
    room: Room, path: Path, terminated: bool, rows: int, columns: int
) -> None:
    torch.manual_seed(rows)
    image = random_picture(room, make_image(terminated, rows, columns))
    got = room.generate(image, logprobs=True)
    assert_scored(room, path, got, image)
    assert got.steps <= rows + 1


def test_scores_beside_images_being_drawn(room: Room, path: Path, terminated: bool) -> None:
    torch.manual_seed(0)
    drawn = make_image(
        terminated, window=3, temperature=1.0, guidance_scale=2.0, unconditional=NEGATIVE
    )
    alone = room.generate(drawn)
    given = random_picture(room, make_image(terminated, 6, 12, prompt=PROMPT[:3]))
    room.add("drawn", drawn, logprobs=True)
    for _ in range(4):
        room.step()
    room.add("given", given, logprobs=True)
    room.run()
    assert room.results["drawn"].tokens == alone.tokens
    assert_scored(room, path, room.results["given"], given)


@pytest.mark.parametrize("terminated", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(3, 4), (1, 4), (3, 1), (1, 1)])
def test_every_token_is_scored_once(rows: int, columns: int, terminated: bool) -> None:
    grid = Grid(rows, columns, terminated)
    policy = scoring(grid)
    progress, targets, known = policy.start(), [0], 0
    while not progress.finished:
        step: Step = progress.step()
        assert step.num_inputs <= policy.width(1) == policy.max_inputs
        assert (step.orders == step.positions + 1).all()
        targets += step.targets[step.sampled].tolist()
        progress.advance([])
        assert progress.complete_rows >= known
        known = progress.complete_rows
        assert all(grid.position(row, columns - 1) in targets for row in range(known))
    assert progress.complete_rows == rows
    assert targets == [grid.position(r, c) for r in range(rows) for c in range(columns)]
