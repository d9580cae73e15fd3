"""The settings that a models file may give to a model: those that say how a worker computes it."""

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, create_model

from shared.settings import Settings

MODEL_SETTINGS = (
    "sequences_max",
    "batch_tokens_max",
    "kv_cache_gib",
    "gpu_memory_utilization",
    "tf32",
    "prefix_cache",
    "prefix_cache_shared",
    "deterministic",
    "context_length",
    "outbox_steps_max",
    "idle_wait_ms",
    "step_timeout_s",
    "drain_s",
    "dtype",
    "device",
    "device_map",
    "max_memory",
    "quantization",
    "hub",
    "revision",
    "trust_remote_code",
    "scripted_step_ms",
    "scripted_tokens",
)

if TYPE_CHECKING:

    class ModelSettings(BaseModel):
        """The settings of MODEL_SETTINGS, each a field with the type, the bounds and the description that it has in
        Settings."""
else:
    _fields: dict[str, Any] = {
        name: (Settings.model_fields[name].annotation, Settings.model_fields[name]) for name in MODEL_SETTINGS
    }
    ModelSettings = create_model(
        "ModelSettings", __config__=ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False), **_fields
    )


def given_settings(entry: ModelSettings) -> dict[str, Any]:
    """Return the settings that a table of the file gives, and not those that it leaves out."""
    return {name: getattr(entry, name) for name in MODEL_SETTINGS if name in entry.model_fields_set}
