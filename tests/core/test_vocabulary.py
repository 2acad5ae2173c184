"""Ids, columns and codes."""

import torch

from zipar_vllm.core.vocabulary import Vocabulary

VOCABULARY = Vocabulary(first_id=10, num_codes=4, row_terminator=3)


def test_ids_and_codes_are_inverse():
    codes = torch.tensor([[0, 3], [1, 2]])
    assert VOCABULARY.ids(codes).tolist() == [[10, 13], [11, 12]]
    assert torch.equal(VOCABULARY.codes(VOCABULARY.ids(codes)), codes)


def test_a_picture_without_its_terminators():
    assert VOCABULARY.codes_of_picture([10, 11, 3, 13, 12, 3]) == [0, 1, 3, 2]
    assert Vocabulary(10, 4).codes_of_picture([10, 11]) == [0, 1]


def test_logits_are_those_of_the_image_tokens_by_code():
    logits = torch.arange(40.0).view(2, 20)
    assert VOCABULARY.select(logits).tolist() == [[10, 11, 12, 13], [30, 31, 32, 33]]


def test_a_head_for_image_tokens_alone_has_columns_of_its_own():
    logits = torch.arange(8.0).view(2, 4)
    assert Vocabulary(10, 4, first_column=0).select(logits).equal(logits)
    assert Vocabulary(10, 3, first_column=1).select(logits).tolist() == [[1, 2, 3], [5, 6, 7]]


def test_terminated():
    assert VOCABULARY.is_terminated
    assert not Vocabulary(10, 4).is_terminated
