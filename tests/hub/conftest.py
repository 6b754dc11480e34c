import pytest
from huggingface_hub import constants

from .server import Hub, serving


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Hub:
    """A Hub on loopback that huggingface_hub talks to for the test, with an empty cache."""
    hub = Hub()
    with serving(hub) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template[template.index("/{") :])
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own, beside LFS
        monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # it knows the address before
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub
