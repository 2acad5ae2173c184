"""The random models that benchmarks run."""

from benchmarks.random_models import make_llamagen_b
from zipar_vllm.models.registry import load_image_model


def test_a_model_of_llamagen_bs_size(tmp_path):
    make_llamagen_b(tmp_path / "model", layers=1)
    spec = load_image_model(tmp_path / "model").spec
    (grid,) = spec.grids.values()
    assert (grid.rows, grid.columns, grid.num_positions) == (24, 24, 576)
    assert spec.vocabulary.num_codes == 16_384
