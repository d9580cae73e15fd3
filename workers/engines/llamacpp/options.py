"""The options of the llama.cpp engine."""

from typing import Literal

from pydantic import Field

from workers.loading.options import EngineOptions

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]


class LlamaOptions(EngineOptions):
    """`--engine-option KEY=VALUE` of `--engine llamacpp`."""

    gpu_layers: int = Field(-1, description="layers in the memory of a GPU; -1 means all, 0 none")
    threads: int = Field(0, ge=0, description="threads that compute; 0 means one for each core")
    flash_attention: bool | None = Field(None, description="flash attention; llama.cpp decides if this is not set")
    cache_type: CacheType = Field("f16", description="type of the key-value cache")
    physical_batch: int = Field(512, ge=1, description="tokens that are computed at a time, llama.cpp's n_ubatch")
    idle_tokens_max: int = Field(
        8192, ge=0, description="tokens of past prompts to keep in main memory for prompts that begin alike"
    )
    tokenizer: str = Field("", description="folder of a Hugging Face tokenizer to use instead of the file's own")
    load_mode: Literal["auto", "none", "mmap", "mlock", "mmap_mlock", "direct_io"] = Field(
        "auto", description="how the file gets into memory, in llama.cpp's words"
    )
