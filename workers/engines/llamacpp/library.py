"""llama.cpp's library, as far as we call it: a model, and a context that decodes batches. Its errors become ours."""

import ctypes
import logging
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp._ggml import libggml

from shared.domain.errors import EngineError, SettingsError
from workers.engines.llamacpp.options import LlamaOptions
from workers.protocols import EngineBroken, OutOfMemory

log = logging.getLogger(__name__)
CACHE_TYPES = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q4_0": 2}  # ggml_type
LEVELS = {3: logging.INFO, 4: logging.ERROR}  # ggml_log_level; llama.cpp's information is for its developers
POOLING_NONE = 0
GPU = 1  # ggml_backend_dev_type
LOAD_MODES = {"auto": -1, "none": 0, "mmap": 1, "mlock": 2, "mmap_mlock": 3, "direct_io": 4}
NO_SLOT, NO_MEMORY = 1, -2  # what llama_decode returns beside 0, which is success, and other errors

Int32s = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


def _to_log(level: int, text: bytes, _: Any) -> None:
    if (ours := LEVELS.get(level)) is not None and (said := text.decode(errors="replace").strip()):
        log.log(ours, said)


_log_callback = llama_cpp.llama_log_callback(_to_log)  # llama.cpp keeps its address


class LlamaModel:
    """The weights, the vocabulary and the metadata of a GGUF file."""

    def __init__(self, file: Path, options: LlamaOptions, *, vocabulary_only: bool = False) -> None:
        """Raises SettingsError if llama.cpp cannot load the file."""
        llama_cpp.llama_log_set(_log_callback, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = options.gpu_layers
        params.load_mode = LOAD_MODES[options.load_mode]
        params.vocab_only = vocabulary_only
        self.pointer = llama_cpp.llama_model_load_from_file(str(file).encode(), params)
        if not self.pointer:
            raise SettingsError(f"MODEL: llama.cpp cannot load {file}; the log says why")
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.pointer)
        self.metadata = self._metadata()

    def close(self) -> None:
        if self.pointer:
            llama_cpp.llama_model_free(self.pointer)
            self.pointer = None

    def number(self, name: str) -> float | None:
        """A number of the metadata; None if the file has no such key."""
        text = self.metadata.get(name)
        return None if text is None else float(text)

    def own(self, name: str) -> str | None:
        """The value of a key of this model's architecture."""
        return self.metadata.get(f"{self.metadata.get('general.architecture', '')}.{name}")

    def template(self, name: str | None = None) -> str:
        """A chat template of the file; empty if it has none."""
        text = llama_cpp.llama_model_chat_template(self.pointer, name.encode() if name else None)
        return text.decode(errors="replace") if text else ""

    def _metadata(self) -> dict[str, str]:
        count = llama_cpp.llama_model_meta_count(self.pointer)
        return {
            self._text(llama_cpp.llama_model_meta_key_by_index, index): self._text(
                llama_cpp.llama_model_meta_val_str_by_index, index
            )
            for index in range(count)
        }

    def _text(self, read: Any, index: int) -> str:
        size = read(self.pointer, index, None, 0) + 1
        buffer = ctypes.create_string_buffer(size)
        read(self.pointer, index, buffer, size)
        return buffer.value.decode(errors="replace")


class LlamaContext:
    """A key-value cache and what computes with it. Only one thread may use it at a time."""

    def __init__(
        self,
        model: LlamaModel,
        options: LlamaOptions,
        *,
        cells: int,
        ids: int,
        batch_tokens_max: int,
        pooling: int | None = None,
    ) -> None:
        """`cells` tokens can be held for `ids` sequences; a batch has at most `batch_tokens_max`. With a `pooling`
        type, a batch makes a vector of each sequence, which must be whole, instead of logits. Raises SettingsError if
        there is no memory for the cells."""
        self._model = model
        self.batch_tokens_max = batch_tokens_max
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = max(cells, batch_tokens_max)  # llama.cpp ends the process at a batch larger than that
        params.n_batch = batch_tokens_max
        params.n_ubatch = min(batch_tokens_max, options.physical_batch) if pooling is None else batch_tokens_max
        params.n_seq_max = ids
        params.n_threads = params.n_threads_batch = options.threads or threads_available()
        params.flash_attn_type = -1 if options.flash_attention is None else int(options.flash_attention)
        params.type_k = params.type_v = CACHE_TYPES[options.cache_type]
        params.kv_unified = True  # sequences share cells, and one without a neighbour is no other case
        params.swa_full = False
        params.no_perf = True
        params.embeddings = pooling is not None
        params.pooling_type = POOLING_NONE if pooling is None else pooling
        self._pointer = llama_cpp.llama_init_from_model(model.pointer, params)
        if not self._pointer:
            raise SettingsError(f"PENSTOCK_KV_CACHE_GIB: llama.cpp has no memory for {cells} tokens; the log says why")
        self._memory = llama_cpp.llama_get_memory(self._pointer)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(model.vocabulary)
        self._make_buffers()

    def close(self) -> None:
        if self._pointer:
            llama_cpp.llama_free(self._pointer)
            self._pointer = None

    def decode(self, tokens: Int32s, positions: Int32s, ids: Int32s, wanted: npt.NDArray[np.bool_]) -> Floats:
        """Compute a batch, one number in each array for each token. Returns float32 [wanted tokens, vocabulary], which
        the next call overwrites. Raises OutOfMemory, EngineBroken, EngineError."""
        self._run(tokens, positions, ids, wanted)
        count = int(wanted.sum())
        if not count:
            return np.empty((0, self._vocabulary), np.float32)
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._pointer), (count, self._vocabulary))

    def embed(self, tokens: Int32s, positions: Int32s, ids: Int32s, *, size: int) -> Floats:
        """Compute whole sequences; return float32 [sequences, size], by id from 0 on. Raises as `decode` does."""
        if self._memory:
            llama_cpp.llama_memory_clear(self._memory, False)
        self._run(tokens, positions, ids, np.ones(len(tokens), np.bool_))
        vectors = [llama_cpp.llama_get_embeddings_seq(self._pointer, id_) for id_ in range(int(ids.max()) + 1)]
        return np.stack([np.ctypeslib.as_array(vector, (size,)) for vector in vectors])

    def share(self, source: int, target: int, start: int, stop: int) -> None:
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, start, stop)

    def remove(self, id_: int, start: int, stop: int | None) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, id_, start, -1 if stop is None else stop)

    def save(self, id_: int) -> Bytes:
        size = llama_cpp.llama_state_seq_get_size(self._pointer, id_)
        copy = np.empty(size, np.uint8)
        written = llama_cpp.llama_state_seq_get_data(self._pointer, _bytes(copy), size, id_)
        return copy[:written]

    def restore(self, saved: Bytes, id_: int) -> bool:
        if llama_cpp.llama_state_seq_set_data(self._pointer, _bytes(saved), len(saved), id_):
            return True
        self.remove(id_, 0, None)
        return False

    def used(self, ids: Iterable[int]) -> int:
        """The number of positions that these ids hold."""
        ends = ((self._edge(llama_cpp.llama_memory_seq_pos_min, id_), id_) for id_ in ids)
        return sum(self._edge(llama_cpp.llama_memory_seq_pos_max, id_) - first + 1 for first, id_ in ends if first >= 0)

    def _edge(self, find: Any, id_: int) -> int:
        return int(find(self._memory, id_))

    def _make_buffers(self) -> None:
        """The arrays of a batch, which llama.cpp reads by their addresses."""
        count = self.batch_tokens_max
        self._tokens, self._positions, self._ids = (np.zeros(count, np.int32) for _ in range(3))
        self._counts, self._wanted = np.ones(count, np.int32), np.zeros(count, np.int8)
        self._lists = self._ids.ctypes.data + np.arange(count, dtype=np.int64) * self._ids.itemsize
        integers = ctypes.POINTER(ctypes.c_int32)
        self._batch = llama_cpp.llama_batch(
            token=self._tokens.ctypes.data_as(integers),
            pos=self._positions.ctypes.data_as(integers),
            n_seq_id=self._counts.ctypes.data_as(integers),
            seq_id=self._lists.ctypes.data_as(ctypes.POINTER(integers)),
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def _run(self, tokens: Int32s, positions: Int32s, ids: Int32s, wanted: npt.NDArray[np.bool_]) -> None:
        count = self._batch.n_tokens = len(tokens)
        self._tokens[:count], self._positions[:count], self._ids[:count] = tokens, positions, ids
        self._wanted[:count] = wanted
        code = llama_cpp.llama_decode(self._pointer, self._batch)
        if code in (NO_SLOT, NO_MEMORY):
            raise OutOfMemory(f"llama.cpp has no room for a step of {count} tokens")
        if code < -1:
            raise EngineBroken(f"llama_decode returned {code}; the log says why")
        if code:
            raise EngineError(f"llama_decode returned {code}; the log says why")


def _bytes(array: Bytes) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def threads_available() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_memory_free() -> int:
    """The free bytes of all GPUs that the library can use; 0 if there are none."""
    ggml = _libggml()
    devices = [ggml.ggml_backend_dev_get(index) for index in range(ggml.ggml_backend_dev_count())]
    return sum(_free(ggml, device) for device in devices if ggml.ggml_backend_dev_type(device) == GPU)


def _free(ggml: Any, device: int) -> int:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
    return free.value


@cache
def _libggml() -> Any:
    """The library of llama.cpp's devices, of which the binding declares no function."""
    libggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    libggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    libggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    libggml.ggml_backend_dev_type.restype = ctypes.c_int
    libggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    pointer = ctypes.POINTER(ctypes.c_size_t)
    libggml.ggml_backend_dev_memory.restype = None
    libggml.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, pointer, pointer]
    return libggml
