"""The table of upstreams: where each is, and in what it differs from OpenAI's own API. Data alone.

`confirmed` is false for a row that was written from memory, and was not held against the provider's own pages. In the
others, too, only the way to resume and the notes were held against them; what a provider lacks is from memory.
Each row is tested against a stand-in that behaves as the row says; none was tried with the provider itself.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

from workers.source import Resume

# What OpenAI's own API does not know, but servers of open models do.
SAMPLING_OF_SERVERS = frozenset({"top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids"})
# What providers leave out beside those; they refuse a request that has it, or ignore it.
LOGPROBS = frozenset({"logprobs"})
PENALTIES = frozenset({"presence_penalty", "frequency_penalty"})
SEED, BIAS = frozenset({"seed"}), frozenset({"logit_bias"})
SOUND = frozenset({"audio", "video"})
MEDIA = SOUND | {"images", "files"}  # content of messages other than text


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """`url` is empty where each customer or machine has its own. `continues` are fields of the body, `marks` fields of
    the last message, that make the model continue an assistant's message; `prefill_url` is where they are understood,
    if not at `url`; `echoes` is true if such an answer may begin with that message's text. `lacks` are parameters, and
    kinds of content of messages, that it does not take; a client that sends one gets an error with its name. `names`
    are its own names of parameters. `asks_usage` is false where usage comes without being asked for, and asking is an
    error. `required` is its word for tool_choice `required`, empty where a call cannot be forced. `completes` is true
    if it serves `/completions`, `salts` if it takes a `cache_salt`, `structured` if it takes vLLM's
    `structured_outputs`. `speaks` is its protocol: `openai` or `anthropic`."""

    name: str
    url: str = ""
    hosts: tuple[str, ...] = ()
    speaks: str = "openai"
    key_header: str = "authorization"
    resume: Resume = Resume.RESTART
    continues: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    prefill_url: str = ""
    echoes: bool = False
    lacks: frozenset[str] = SAMPLING_OF_SERVERS
    names: tuple[tuple[str, str], ...] = ()
    asks_usage: bool = True
    required: str = "required"
    completes: bool = False
    salts: bool = False
    structured: bool = False
    confirmed: bool = True
    note: str = ""


def _server(name: str, *, port: int, lacks: frozenset[str] = frozenset(), **more: object) -> Provider:
    """A server of open models on a machine of one's own, which takes the usual extensions."""
    return Provider(name=name, url=f"http://localhost:{port}/v1", lacks=lacks, completes=True, **more)  # type: ignore[arg-type]


CONTINUE = ("continue_final_message",)  # beside `add_generation_prompt: false`

PROVIDERS = {
    each.name: each
    for each in (
        Provider(
            name="openai",
            url="https://api.openai.com/v1",
            names=(("max_tokens", "max_completion_tokens"),),
            confirmed=False,
            note="its reasoning models refuse sampling parameters",
        ),
        Provider(
            name="azure",
            hosts=("openai.azure.com", "services.ai.azure.com"),
            key_header="api-key",
            names=(("max_tokens", "max_completion_tokens"),),
            confirmed=False,
            note="the URL is https://RESOURCE.openai.azure.com/openai/v1, and the model is the deployment's name",
        ),
        Provider(
            name="anthropic",
            url="https://api.anthropic.com/v1",
            speaks="anthropic",
            key_header="x-api-key",
            lacks=SAMPLING_OF_SERVERS - {"top_k"} | LOGPROBS | PENALTIES | SEED | BIAS | {"response_format"} | SOUND,
            required="any",
            note="models before Claude 4.6 continue a text: give them resume=prefill; newer ones refuse it",
        ),
        Provider(
            name="gemini",
            url="https://generativelanguage.googleapis.com/v1beta/openai",
            lacks=SAMPLING_OF_SERVERS | BIAS | SEED,
            confirmed=False,
        ),
        Provider(
            name="mistral",
            url="https://api.mistral.ai/v1",
            resume=Resume.PREFILL,
            marks=("prefix",),
            echoes=True,
            lacks=SAMPLING_OF_SERVERS | LOGPROBS | BIAS,
            names=(("seed", "random_seed"),),
            asks_usage=False,
            required="any",
            confirmed=False,
        ),
        Provider(
            name="deepseek",
            url="https://api.deepseek.com",
            resume=Resume.PREFILL,
            marks=("prefix",),
            prefill_url="https://api.deepseek.com/beta",
            lacks=SAMPLING_OF_SERVERS | SEED | BIAS | MEDIA,
        ),
        Provider(
            name="groq",
            url="https://api.groq.com/openai/v1",
            lacks=SAMPLING_OF_SERVERS | LOGPROBS | BIAS,
            names=(("max_tokens", "max_completion_tokens"),),
            confirmed=False,
        ),
        Provider(
            name="openrouter",
            url="https://openrouter.ai/api/v1",
            lacks=frozenset({"min_tokens", "ignore_eos", "stop_token_ids"}),
            confirmed=False,
            note="whether a text is continued depends on the model behind it",
        ),
        Provider(name="huggingface", url="https://router.huggingface.co/v1", confirmed=False),
        Provider(
            name="zhipu",
            url="https://open.bigmodel.cn/api/paas/v4",
            hosts=("open.bigmodel.cn", "api.z.ai"),
            lacks=SAMPLING_OF_SERVERS | LOGPROBS | PENALTIES | SEED | BIAS,
            asks_usage=False,
            required="",
            confirmed=False,
        ),
        Provider(
            name="qwen",
            url="https://dashscope.aliyuncs.com/compatible-mode/v1",
            hosts=("dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com"),
            resume=Resume.PREFILL,
            marks=("partial",),
            lacks=frozenset({"min_p", "min_tokens", "ignore_eos", "stop_token_ids"}) | BIAS,
            required="",
            note="a model that thinks continues no text",
        ),
        Provider(
            name="qianfan",
            url="https://qianfan.baidubce.com/v2",
            lacks=SAMPLING_OF_SERVERS - {"repetition_penalty"} | LOGPROBS | BIAS,
            confirmed=False,
        ),
        Provider(
            name="ark",
            url="https://ark.cn-beijing.volces.com/api/v3",
            hosts=("volces.com",),
            lacks=SAMPLING_OF_SERVERS | SEED,
            confirmed=False,
        ),
        Provider(
            name="spark",
            url="https://spark-api-open.xf-yun.com/v1",
            lacks=SAMPLING_OF_SERVERS - {"top_k"} | LOGPROBS | PENALTIES | SEED | BIAS | MEDIA,
            asks_usage=False,
            required="",
            confirmed=False,
            note="its errors have status 200 and a number in `code`",
        ),
        Provider(
            name="minimax",
            url="https://api.minimax.io/v1",
            hosts=("api.minimax.io", "api.minimaxi.com"),
            lacks=SAMPLING_OF_SERVERS | LOGPROBS | PENALTIES | SEED | BIAS | MEDIA,
            note="the last chunk repeats the whole answer, and an error has status 200 and `base_resp`",
        ),
        Provider(
            name="moonshot",
            url="https://api.moonshot.cn/v1",
            hosts=("api.moonshot.cn", "api.moonshot.ai"),
            resume=Resume.PREFILL,
            marks=("partial",),
            lacks=SAMPLING_OF_SERVERS | LOGPROBS | SEED | BIAS,
            required="",
        ),
        Provider(
            name="baichuan",
            url="https://api.baichuan-ai.com/v1",
            lacks=SAMPLING_OF_SERVERS - {"top_k"} | LOGPROBS | PENALTIES | SEED | BIAS | MEDIA,
            asks_usage=False,
            confirmed=False,
        ),
        _server("vllm", port=8000, resume=Resume.PREFILL, continues=CONTINUE, salts=True, structured=True),
        _server("sglang", port=30000, resume=Resume.PREFILL, continues=CONTINUE, salts=True, confirmed=False),
        _server("tgi", port=8080, lacks=SAMPLING_OF_SERVERS, confirmed=False),
        _server(
            "llamacpp",
            port=8080,
            lacks=frozenset({"min_tokens", "stop_token_ids"}),
            resume=Resume.PREFILL,
            echoes=True,
            confirmed=False,
            note="a last message of the assistant is continued, and said again before what follows it",
        ),
        _server("ollama", port=11434, lacks=SAMPLING_OF_SERVERS | LOGPROBS | BIAS, confirmed=False),
        _server(
            "lmstudio", port=1234, lacks=frozenset({"min_tokens", "ignore_eos", "stop_token_ids"}), confirmed=False
        ),
        _server("lmdeploy", port=23333, confirmed=False),
        Provider(
            name="other",
            lacks=frozenset(),
            completes=True,
            confirmed=False,
            note="any other server that speaks OpenAI's protocol",
        ),
    )
}


# How a server names itself in its list of models, in `owned_by`.
OWNERS = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llamacpp", "library": "ollama", "lmdeploy": "lmdeploy"}


def provider_at(url: str) -> Provider:
    """The provider whose host is in the URL; `other` for any other host."""
    host = urlsplit(url).hostname or ""
    for provider in PROVIDERS.values():
        hosts = provider.hosts or tuple(filter(None, (urlsplit(provider.url).hostname,)))
        if any(each != "localhost" and (host == each or host.endswith(f".{each}")) for each in hosts):
            return provider
    return PROVIDERS["other"]
