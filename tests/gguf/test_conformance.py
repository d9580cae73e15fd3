"""The conformance suite on llama.cpp."""

import pytest

pytest.importorskip("llama_cpp", reason="penstock[gguf] is not installed")
pytest.importorskip("gguf", reason="penstock[gguf] is not installed")

from penstock.testing import RunnerConformance
from shared.settings import Settings, load_settings
from tools.gguf_model import convert
from workers.loading.model_spec import BUILTIN


class TestLlamacpp(RunnerConformance):
    engine = "llamacpp"

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def file(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        file = tmp_path_factory.mktemp("gguf") / "builtin.gguf"
        convert(BUILTIN, file)
        cls.source = f"builtin={file}"
        cls.options = {"cache_type": "f32", "flash_attention": False, "threads": 1}

    @classmethod
    def settings(cls) -> Settings:
        return load_settings(sequences_max=4, kv_cache_gib=0.05)
