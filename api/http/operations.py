"""The answers and parameters of each operation in the documentation, which the routes do not declare themselves. A test
fails for an operation or a parameter that is missing here."""

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
# Further content types that an operation answers with, and their content.
CHUNKS = "`data:` lines, each a {} object with the new part of the answer, then `data: [DONE]`."
RESPONSE_EVENTS = "Events of the Responses API; each has `event:`, and `data:` with a `sequence_number`."
OTHERS: dict[tuple[str, str], tuple[str, str]] = {
    ("post", "/v1/chat/completions"): ("text/event-stream", CHUNKS.format("chat.completion.chunk")),
    ("post", "/v1/completions"): ("text/event-stream", CHUNKS.format("text_completion")),
    ("post", "/v1/responses"): ("text/event-stream", RESPONSE_EVENTS),
    ("get", "/v1/responses/{response_id}"): ("text/event-stream", RESPONSE_EVENTS),
    ("get", "/v1/jobs/{job_id}/events"): (
        "text/event-stream",
        "The stream of the job's endpoint; each event has an `id:`.",
    ),
    ("get", "/v1/files/{file_id}/content"): ("application/octet-stream", "The file's bytes."),
}
PARAMETERS = {
    "completion_id": "The stored chat completion's id, `chatcmpl-...`.",
    "response_id": "The response's id, `resp_...`.",
    "job_id": "The job's id, which is the id of its answer and the header `x-penstock-job-id`.",
    "file_id": "The file's id, `file-...`.",
    "batch_id": "The batch's id, `batch_...`.",
    "endpoint_id": "The webhook endpoint's id.",
    "key_id": "The key's id, `key-...`.",
    "name": "The model's name.",
    "to_model": "The model that runs the job now; without it, the job's own.",
    "model": "Return only results for this model.",
    "state": "Return only jobs in this state.",
    "purpose": "Return only files of this purpose.",
    "after": "The last id of the previous page.",
    "limit": "The largest number of results to return.",
    "order": "The order by time: `asc` returns the oldest first.",
    "stream": "Stream the response's events until it ends.",
    "starting_after": "Return only events after this number.",
    "last-event-id": "The same as `starting_after`; browsers send this header when they reconnect.",
    "include": "Accepted without effect: the answer always has all fields.",
    "include_obfuscation": "Only false is supported.",
}
UPLOAD = {
    "file": "The file's bytes.",
    "purpose": "`batch` for a file of batch requests, `user_data` for any other.",
    "expires_after[anchor]": "Must be `created_at`.",
    "expires_after[seconds]": "The file's lifetime in seconds.",
}
