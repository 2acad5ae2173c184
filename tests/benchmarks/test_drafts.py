"""The benchmark of drafts, over a stand-in for the engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from benchmarks.drafts import make_table, measure


class FakeLLM:
    """Half the passes with drafts, and another picture for seed 2 with 8 of them."""

    def prepare(self, prompts: list[str], seed: list[int], **options: Any) -> list[Any]:
        return [SimpleNamespace(seed=one, **options) for one in seed]

    def decode(self, images: list[Any]) -> list[Any]:
        return [
            SimpleNamespace(
                steps=10 if image.drafts else 20,
                seconds=1.0 if image.drafts else 3.0,
                accepted_drafts=0.5 if image.drafts else None,
                tokens=[image.seed, image.seed == 2 and image.drafts == 8],
            )
            for image in images
        ]


def test_each_number_of_drafts_is_held_against_none() -> None:
    llm: Any = FakeLLM()
    plain, drafted, other = measure(llm, ["a", "b"], 4, [0, 4, 8], 2, None, stock=0.5)
    assert (plain.passes, plain.speedup, plain.accepted, plain.pictures) == (20, 1.0, None, 4)
    assert (drafted.passes, drafted.speedup, drafted.accepted) == (10, 3.0, 0.5)
    assert (plain.same_pictures, drafted.same_pictures, other.same_pictures) == (4, 4, 3)
    lines = make_table([plain, other], "here").splitlines()
    assert lines[-1] == "| 4 | 2 | 8 | 10 | 1.00 | 2.00 | 3.00x | 4.0x | 50% | 3 of 4 |"
