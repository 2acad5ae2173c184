"""The policy that docs/adding-a-policy.md describes, installed as a package, and its own oracle.

It decodes rows in an order of its own, so that nothing may rely on rows that follow one another.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.cases import PROMPT, hf_model, make_image
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.prepare import PreparedImage

DOCUMENT = Path(__file__).parents[1] / "docs" / "adding-a-policy.md"
ROWS, COLUMNS = 6, 8


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert found is not None
    return found.group(1)


@pytest.fixture(scope="module")
def outside_package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The document's module and entry point, installed as a package is."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "other_rows.py").write_text(block("python"))
    info = folder / "other_rows-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-rows\nVersion: 1.0\n")
    group = re.search(r'entry-points."(.*)"\]\n(.*)', block("toml"))
    assert group is not None
    name, target = group.group(2).split(" = ")
    (info / "entry_points.txt").write_text(
        f"[{group.group(1)}]\n{name} = {target.strip(chr(34))}\n"
    )
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


def image_of(window: int, terminated: bool = True) -> PreparedImage:
    return make_image(terminated, ROWS, COLUMNS, window=window, policy="other_rows")


@torch.no_grad()
def tokens_by_one_pass(
    path: Path, vocabulary: Vocabulary, image: PreparedImage, tokens: list[int]
) -> list[int]:
    """What one pass over the finished picture predicts, under a mask made from the rule."""
    window, stride = image.params.window, COLUMNS + 1
    rank = {row: index for index, row in enumerate([*range(0, ROWS, 2), *range(1, ROWS, 2)])}
    orders = [0] * len(PROMPT)
    for row in range(ROWS):
        orders += [rank[row] * window + column + 1 for column in range(COLUMNS)]
        orders.append(rank[row + 1] * window if row + 1 < ROWS else 10**6)
    order = torch.tensor(orders)
    causal = torch.ones(len(orders), len(orders), dtype=torch.bool).tril()
    visible = causal & (order.unsqueeze(0) <= order.unsqueeze(1))
    bias = torch.zeros(visible.shape).masked_fill_(~visible, float("-inf"))
    logits = hf_model(path)(torch.tensor([[*PROMPT, *tokens]]), attention_mask=bias[None, None])
    best = vocabulary.select(logits.logits[0, len(PROMPT) - 1 : -1]).argmax(dim=-1)
    predicted = vocabulary.ids(best).view(ROWS, stride)
    predicted[:, COLUMNS] = vocabulary.row_terminator or 0
    return predicted.flatten().tolist()
