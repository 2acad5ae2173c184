"""The image tokenizer: quantisation arithmetic, shapes, and files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from zipar_vllm.models.fsq import FSQ, FSQAutoencoder


@pytest.fixture
def autoencoder() -> FSQAutoencoder:
    torch.manual_seed(0)
    return FSQAutoencoder(levels=(4, 3, 2), width=16).eval()


def test_codes_and_channel_values_are_inverse() -> None:
    fsq = FSQ((8, 5, 5, 5))
    codes = torch.arange(fsq.num_codes)
    values = fsq.from_codes(codes)
    assert values.shape == (1000, 4)
    assert values.min() == -1
    assert values.max() == 1
    # atanh of the borders is infinite, which tanh maps back exactly.
    assert torch.equal(fsq.to_codes(torch.atanh(values)), codes)


def test_quantised_values_are_those_of_the_codes() -> None:
    fsq = FSQ((4, 3, 2))
    z = torch.randn(50, 3)
    torch.testing.assert_close(fsq.quantize(z), fsq.from_codes(fsq.to_codes(z)))


def test_gradients_pass_the_rounding() -> None:
    fsq = FSQ((4, 3))
    z = torch.randn(5, 2, requires_grad=True)
    fsq.quantize(z).sum().backward()
    assert z.grad is not None
    assert (z.grad > 0).all()


def test_encode_and_decode_shapes(autoencoder: FSQAutoencoder) -> None:
    codes = autoencoder.encode(torch.rand(2, 3, 48, 32) * 2 - 1)
    assert codes.shape == (2, 6, 4)
    assert codes.dtype == torch.int64
    pictures = autoencoder.decode(codes)
    assert pictures.shape == (2, 48, 32, 3)
    assert pictures.dtype == torch.uint8


def test_plain_ground_has_one_code_everywhere(autoencoder: FSQAutoencoder) -> None:
    assert len(autoencoder.encode(torch.full((1, 3, 64, 64), 0.3)).unique()) == 1


def test_a_batch_decodes_as_its_pictures_alone(autoencoder: FSQAutoencoder) -> None:
    codes = torch.randint(0, 24, (3, 4, 4))
    together = autoencoder.decode(codes).int()
    alone = torch.cat([autoencoder.decode(code[None]) for code in codes]).int()
    assert (together - alone).abs().max() <= 1


def test_wrong_sizes_and_codes_are_refused(autoencoder: FSQAutoencoder) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        autoencoder.encode(torch.zeros(1, 3, 20, 16))
    with pytest.raises(ValueError, match=r"\[0, 24\)"):
        autoencoder.decode(torch.full((1, 2, 2), 24))


def test_saved_and_loaded_is_the_same(autoencoder: FSQAutoencoder, tmp_path: Path) -> None:
    autoencoder.save_pretrained(tmp_path, dtype=torch.float32)
    loaded = FSQAutoencoder.from_pretrained(tmp_path)
    codes = torch.randint(0, 24, (1, 4, 4))
    assert torch.equal(loaded.decode(codes), autoencoder.decode(codes))
    assert not any(p.requires_grad for p in loaded.parameters())
