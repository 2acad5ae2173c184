"""The reference decoder against plain Hugging Face loops and one-pass teacher forcing."""

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.tiny import IMAGE_TOKENS, ROW_TERMINATOR, TEXT_TOKENS, make_tiny_model
from zipar_vllm.core.grid import Grid
from zipar_vllm.core.reference import decode_image
from zipar_vllm.core.visibility import visibility_mask

PROMPT = [1, 7, 9, 2]
UNCONDITIONAL = [1, 2]
SPAN = (TEXT_TOKENS, IMAGE_TOKENS)
ROWS, COLUMNS = 4, 8
PLAIN = Grid(ROWS, COLUMNS)
TERMINATED = Grid(ROWS, COLUMNS, row_terminator=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference")
    make_tiny_model(path, row_terminator=True, grids={"64x32": (ROWS, COLUMNS)}, seed=1)
    return LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def decode(model, grid, window, **options):
    terminator = ROW_TERMINATOR if grid.row_terminator else None
    return decode_image(
        model, PROMPT, grid, window, image_tokens=SPAN, row_terminator_id=terminator, **options
    )


@torch.no_grad()
def forced_logits(model, prompt, tokens, window):
    """Image-token logits that predict each slot, from one pass over the finished picture."""
    visible = visibility_mask(TERMINATED, window, len(prompt))
    bias = torch.zeros(visible.shape).masked_fill_(~visible, float("-inf"))
    logits = model(torch.tensor([[*prompt, *tokens]]), attention_mask=bias[None, None]).logits[0]
    return logits[len(prompt) - 1 : -1, TEXT_TOKENS : TEXT_TOKENS + IMAGE_TOKENS]


def with_terminators(codes):
    ids = (codes + TEXT_TOKENS).view(ROWS, COLUMNS + 1)
    ids[:, COLUMNS] = ROW_TERMINATOR
    return ids.flatten().tolist()


@torch.no_grad()
def test_widest_window_is_a_greedy_loop(model):
    ids = list(PROMPT)
    for _ in range(PLAIN.num_positions):
        logits = model(torch.tensor([ids])).logits[0, -1, TEXT_TOKENS:]
        ids.append(TEXT_TOKENS + int(logits[:IMAGE_TOKENS].argmax()))
    result = decode(model, PLAIN, COLUMNS)
    assert result.tokens == ids[len(PROMPT) :]
    assert result.num_forward_passes == ROWS * COLUMNS
    assert len(set(result.tokens)) > 12


@pytest.mark.parametrize("window", [1, 3, 8])
def test_one_pass_under_the_mask_predicts_every_token(model, window):
    result = decode(model, TERMINATED, window)
    logits = forced_logits(model, PROMPT, result.tokens, window)
    assert result.tokens == with_terminators(logits.argmax(dim=-1))
    assert len(set(result.tokens)) > 12


def test_one_pass_of_each_lane_predicts_every_guided_token(model):
    options = {"unconditional_ids": UNCONDITIONAL, "guidance_scale": 3.0}
    result = decode(model, TERMINATED, 3, **options)
    conditional, unconditional = (
        forced_logits(model, prompt, result.tokens, 3) for prompt in (PROMPT, UNCONDITIONAL)
    )
    guided = unconditional + 3.0 * (conditional - unconditional)
    assert result.tokens == with_terminators(guided.argmax(dim=-1))
    assert result.tokens != decode(model, TERMINATED, 3).tokens


@pytest.mark.parametrize("grid", [PLAIN, TERMINATED], ids=["plain", "terminated"])
@pytest.mark.parametrize("window", [1, 3, 8])
def test_passes_and_layout(model, grid, window):
    result = decode(model, grid, window)
    assert result.num_forward_passes == COLUMNS + (ROWS - 1) * window
    rows = torch.tensor(result.tokens).view(ROWS, grid.stride)
    codes = rows[:, :COLUMNS] - TEXT_TOKENS
    assert ((codes >= 0) & (codes < IMAGE_TOKENS)).all()
    assert (rows[:, COLUMNS:] == ROW_TERMINATOR).all()


@pytest.mark.parametrize("grid", [PLAIN, TERMINATED], ids=["plain", "terminated"])
def test_windows_draw_different_pictures(model, grid):
    pictures = {tuple(decode(model, grid, window).tokens) for window in (1, 3, 8)}
    assert len(pictures) == 3


def test_guidance_of_one_is_the_conditional_lane(model):
    guided = decode(model, PLAIN, 3, unconditional_ids=UNCONDITIONAL, guidance_scale=1.0)
    assert guided == decode(model, PLAIN, 3)


def test_guidance_of_zero_is_the_unconditional_lane(model):
    guided = decode(model, PLAIN, 3, unconditional_ids=UNCONDITIONAL, guidance_scale=0.0)
    assert guided == decode_image(model, UNCONDITIONAL, PLAIN, 3, image_tokens=SPAN)


def test_seeds(model):
    def draw(seed):
        options = {"temperature": 1.0, "top_k": 50, "top_p": 0.95, "seed": seed}
        return decode(model, PLAIN, 3, **options).tokens

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)
