import pytest
import torch
from hypothesis import settings


torch.set_num_threads(1)  # the tensors are small: threads that wait for each other would only take time
settings.register_profile("any_machine", deadline=None)  # a busy machine is no failure
settings.load_profile("any_machine")


@pytest.fixture
def one_order_of_weights(monkeypatch):
    """Evaluation by bitsandbytes as on most CPUs; on those with AVX512-BF16 it takes none of the sizes used here."""
    layers = pytest.importorskip("bitsandbytes").nn.modules
    monkeypatch.setattr(layers, "has_avx512bf16", lambda: False)
