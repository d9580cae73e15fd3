"""The loader of GGUF files: llama.cpp loads the model, in this process."""

import logging
import re
import time
from pathlib import Path

import llama_cpp

from shared.domain.errors import SettingsError
from shared.settings import Settings
from workers.engines.llamacpp.construction import IDS_MAX, load_engine
from workers.engines.llamacpp.library import LlamaModel
from workers.engines.llamacpp.options import LlamaOptions
from workers.loading.loaded import Loaded, infos_of, stepped
from workers.loading.model_spec import ModelSpec
from workers.loading.options import validated
from workers.process.single_thread import SingleThread
from workers.scheduling.engine_limits import BLOCK_SIZE

log = logging.getLogger(__name__)
PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


def load(spec: ModelSpec, settings: Settings, thread: SingleThread) -> Loaded:
    """Load a model. Blocks; called in `thread`, which computes it later. Raises SettingsError, in one sentence, for one
    that cannot be loaded."""
    began = time.monotonic()
    options = validated("llamacpp", spec.options, LlamaOptions)
    _require_possible(spec, settings)
    file = gguf_file(spec.source)
    model = LlamaModel(file, _on_device(options, settings))
    engine, context = load_engine(model, options, settings)

    def close() -> None:
        context.close()
        model.close()

    log.info(
        "model loaded",
        extra={
            "source": str(file),
            "engine": engine.kind,
            "llama_cpp": llama_cpp.__version__,
            "architecture": model.metadata.get("general.architecture"),
            "parameters_m": round(llama_cpp.llama_model_n_params(model.pointer) / 1e6, 1),
            "weights_mb": round(llama_cpp.llama_model_size(model.pointer) / 1e6, 1),
            "cache_tokens": engine.limits.blocks * BLOCK_SIZE,
            "seconds": round(time.monotonic() - began, 1),
        },
    )
    return stepped(infos_of(spec, engine), engine, thread, close=close)


def gguf_file(source: str) -> Path:
    """The file to load: the source, or the one model in the folder. Raises SettingsError."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    found = sorted(file for file in path.glob("*.gguf") if not file.name.startswith("mmproj"))
    models = [file for file in found if not PART.search(file.name) or "-00001-of-" in file.name]
    if len(models) != 1:
        held = ", ".join(file.name for file in models[:5]) or "none"
        raise SettingsError(f"MODEL: {source} must be a GGUF file or a folder with one; it holds {held}")
    return models[0]


def _require_possible(spec: ModelSpec, settings: Settings) -> None:
    if spec.adapters:
        raise SettingsError("ADAPTER: the engine llamacpp serves no adapters")
    if settings.deterministic:
        raise SettingsError("PENSTOCK_DETERMINISTIC: with llama.cpp the last bits of a result depend on its batch")
    if settings.quantization or settings.dtype != "auto":
        name = "PENSTOCK_QUANTIZATION" if settings.quantization else "PENSTOCK_DTYPE"
        raise SettingsError(f"{name}: a GGUF file has its weights as they are; choose another file")
    if settings.sequences_max > IDS_MAX:
        raise SettingsError(f"PENSTOCK_SEQUENCES_MAX: llama.cpp holds at most {IDS_MAX} sequences")


def _on_device(options: LlamaOptions, settings: Settings) -> LlamaOptions:
    if settings.device == "cpu":
        return options.model_copy(update={"gpu_layers": 0})
    if settings.device != "auto" and not llama_cpp.llama_supports_gpu_offload():
        raise SettingsError(f"PENSTOCK_DEVICE: llama-cpp-python was built without support for {settings.device}")
    return options
