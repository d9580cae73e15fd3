"""What each operation answers with, and what its parameters mean: what the routes do not say themselves of the
documentation. A test fails for an operation or a parameter that is missing here."""

from pydantic import BaseModel

from api.schemas import answers, operator_answers

Body = type[BaseModel]

BODIES: dict[tuple[str, str], Body] = {
    ("post", "/v1/chat/completions"): answers.ChatCompletion,
    ("get", "/v1/chat/completions"): answers.ChatCompletionPage,
    ("get", "/v1/chat/completions/{completion_id}"): answers.ChatCompletion,
    ("post", "/v1/chat/completions/{completion_id}"): answers.ChatCompletion,
    ("delete", "/v1/chat/completions/{completion_id}"): answers.Deleted,
    ("get", "/v1/chat/completions/{completion_id}/messages"): answers.MessagePage,
    ("post", "/v1/completions"): answers.TextCompletion,
    ("post", "/v1/responses"): answers.ResponseObject,
    ("get", "/v1/responses/{response_id}"): answers.ResponseObject,
    ("delete", "/v1/responses/{response_id}"): answers.Deleted,
    ("post", "/v1/responses/{response_id}/cancel"): answers.ResponseObject,
    ("get", "/v1/responses/{response_id}/input_items"): answers.InputItemPage,
    ("post", "/v1/embeddings"): answers.EmbeddingList,
    ("post", "/v1/rerank"): answers.RankedDocuments,
    ("post", "/v1/tokenize"): answers.TokenList,
    ("post", "/v1/token_count"): answers.TokenCount,
    ("post", "/v1/detokenize"): answers.DetokenizedText,
    ("get", "/v1/models"): answers.ModelList,
    ("get", "/v1/models/{name}"): answers.ModelObject,
    ("post", "/v1/files"): answers.FileObject,
    ("get", "/v1/files"): answers.FilePage,
    ("get", "/v1/files/{file_id}"): answers.FileObject,
    ("delete", "/v1/files/{file_id}"): answers.Deleted,
    ("post", "/v1/batches"): answers.BatchObject,
    ("get", "/v1/batches"): answers.BatchPage,
    ("get", "/v1/batches/{batch_id}"): answers.BatchObject,
    ("post", "/v1/batches/{batch_id}/cancel"): answers.BatchObject,
    ("get", "/v1/webhooks"): answers.WebhookPage,
    ("post", "/v1/webhooks"): answers.WebhookEndpoint,
    ("get", "/v1/webhooks/{endpoint_id}"): answers.WebhookEndpoint,
    ("delete", "/v1/webhooks/{endpoint_id}"): answers.Deleted,
    ("post", "/v1/webhooks/{endpoint_id}/rotate"): answers.WebhookEndpoint,
    ("post", "/v1/webhooks/{endpoint_id}/test"): answers.WebhookTest,
    ("get", "/v1/jobs/{job_id}"): operator_answers.JobObject,
    ("post", "/v1/jobs/{job_id}/cancel"): operator_answers.JobObject,
    ("get", "/admin/jobs"): operator_answers.JobList,
    ("get", "/admin/demand"): operator_answers.DemandList,
    ("get", "/admin/jobs/{job_id}"): operator_answers.JobHistory,
    ("post", "/admin/jobs/{job_id}/cancel"): operator_answers.JobObject,
    ("post", "/admin/jobs/{job_id}/replay"): operator_answers.ReplayedJob,
    ("post", "/admin/replay"): operator_answers.ReplayedJobs,
    ("get", "/admin/keys"): operator_answers.KeyList,
    ("post", "/admin/keys"): operator_answers.KeyObject,
    ("get", "/admin/keys/{key_id}"): operator_answers.KeyObject,
    ("patch", "/admin/keys/{key_id}"): operator_answers.KeyObject,
    ("delete", "/admin/keys/{key_id}"): answers.Deleted,
    ("delete", "/admin/models/{name}"): answers.Deleted,
    ("post", "/admin/models/{name}/pause"): operator_answers.PausedModel,
    ("post", "/admin/models/{name}/resume"): operator_answers.PausedModel,
}
# Other types of content that an operation answers with, and what is in it.
CHUNKS = "`data:` lines, each a {} object with what is new, then `data: [DONE]`."
RESPONSE_EVENTS = "Events of the Responses API, each with `event:`, and `data:` with a `sequence_number`."
OTHERS: dict[tuple[str, str], tuple[str, str]] = {
    ("post", "/v1/chat/completions"): ("text/event-stream", CHUNKS.format("chat.completion.chunk")),
    ("post", "/v1/completions"): ("text/event-stream", CHUNKS.format("text_completion")),
    ("post", "/v1/responses"): ("text/event-stream", RESPONSE_EVENTS),
    ("get", "/v1/responses/{response_id}"): ("text/event-stream", RESPONSE_EVENTS),
    ("get", "/v1/jobs/{job_id}/events"): (
        "text/event-stream",
        "The stream of the job's endpoint, each event with `id:`.",
    ),
    ("get", "/v1/files/{file_id}/content"): ("application/octet-stream", "The file's bytes."),
}
PARAMETERS = {
    "completion_id": "The stored chat completion's id, `chatcmpl-..`.",
    "response_id": "The response's id, `resp_..`.",
    "job_id": "The job's id: that of its answer, or of the header `x-penstock-job-id`.",
    "file_id": "The file's id, `file-..`.",
    "batch_id": "The batch's id, `batch_..`.",
    "endpoint_id": "The webhook endpoint's id.",
    "key_id": "The key's id, `key-..`.",
    "name": "The model's name.",
    "model": "Only what belongs to this model.",
    "state": "Only jobs of this state.",
    "purpose": "Only files of this purpose.",
    "after": "The last id of the page before.",
    "limit": "How many at most.",
    "order": "By time: `asc` for the oldest first.",
    "stream": "Send the response's events until it ends.",
    "starting_after": "Only events after this number.",
    "last-event-id": "The same, as browsers send it when they connect again.",
    "include": "Accepted; all there is is always shown.",
    "include_obfuscation": "Only false is supported.",
}
UPLOAD = {
    "file": "The file's bytes.",
    "purpose": "`batch` for lines of requests, `user_data` for anything else.",
    "expires_after[anchor]": "Always `created_at`.",
    "expires_after[seconds]": "The file's lifetime.",
}
