"""Every name in Redis, in one table. The scripts get the same names through `lua_names`.

`line` is a fair queue: a model, whose members are its classes, or a model and a class, whose members are tenants.
`lane` is a model, a class and a tenant.

| key                        | type    | written by        | holds                                        | lifetime |
|----------------------------|---------|-------------------|----------------------------------------------|----------|
| rq:job:{job}               | hash    | see below         | RQ's fields of a job and ours                | while waiting or running; then the job's lifetime |
| rq:queue:{model}           | list    | lifecycle.lua, requeue.lua, end.lua, rq | ids of waiting jobs, oldest first            | while it has entries |
| rq:queues                  | set     | lifecycle.lua, end.lua | keys of all queues, what `rq info` lists     | the deployment's |
| rq:wip:{model}             | zset    | lifecycle.lua, leases.lua | `job:exec` of running jobs                   | while it has members |
| rq:finished:{model}        | zset    | lifecycle.lua     | finished ids by expiry                       | member: the job's lifetime |
| rq:scheduled:{model}       | zset    | lifecycle.lua, requeue.lua, rq | ids of jobs that wait for their time, by it in seconds | while it has members |
| penstock:scheduled-load:{model} | hash | lifecycle.lua, requeue.lua, fair_queue.lua | bytes of their requests | while there are such jobs |
| rq:failed:{model}          | zset    | lifecycle.lua, requeue.lua, rq | failed ids by expiry, those replayed left out | member: 7 days |
| rq:canceled:{model}        | zset    | lifecycle.lua, rq | cancelled ids by expiry                      | member: the job's lifetime |
| rq:results:{job}           | stream  | lifecycle.lua     | RQ's result record with the traceback        | the job's lifetime |
| rq:worker:{worker}         | hash    | rq_view, lifecycle.lua, leases.lua | RQ's worker fields                           | 10 s after the last heartbeat |
| rq:workers                 | set     | rq_view           | keys of workers                              | cleaned by every reader |
| rq:workers:{model}         | set     | rq_view           | keys of the model's workers                  | cleaned by every reader |
| rq:suspended               | string  | rq                | set by `rq suspend`: nothing new is claimed  | the operator's |
| penstock:stream:{model}    | stream  | lifecycle.lua, leases.lua, job.lua | one entry `j`=job id per waiting or running job | while it has entries |
| penstock:wake:{model}      | list    | job.lua, lifecycle.lua | one element, which wakes one idle worker     | 1 h; none while no job waits |
| penstock:lane:{lane}       | list    | fair_queue.lua    | `entry job cost` of a tenant's waiting jobs  | while it has entries |
| penstock:line:{line}       | zset    | fair_queue.lua    | members with waiting jobs, by tokens served  | while it has members |
| penstock:served:{line}     | zset    | fair_queue.lua    | idle members, by tokens served               | 1 day |
| penstock:load:{model}      | hash    | fair_queue.lua, lifecycle.lua | jobs and tokens waiting, of each class; bytes | while jobs wait |
| penstock:rate:{model}      | hash    | fair_queue.lua    | how fast jobs and tokens were served         | 1 day after the last job |
| penstock:pace:{model}      | string  | demand            | tokens a second of one worker                | 7 days |
| penstock:leases:{model}    | zset    | lifecycle.lua, leases.lua | running jobs by the time their lease ends    | while it has members |
| penstock:claim:{exec}      | string  | lifecycle.lua     | ids that a claim got, for a repeated claim   | 30 s |
| penstock:suspect:{worker}  | string  | lifecycle.lua, leases.lua | the job that this worker now runs isolated   | until it progresses; 1 h at most |
| penstock:idempotency:{key} | string  | lifecycle.lua     | `job fingerprint created_ms`                 | 24 h |
| penstock:paused:{model}    | string  | redis_queue       | nothing new is claimed of this model         | the operator's |
| penstock:key:{key}         | hash    | api_keys          | an API key: its limits and its salted digest | until revoked |
| penstock:keys              | set     | api_keys          | ids of API keys                              | the deployment's |
| penstock:keys:salt         | string  | api_keys          | the salt of key ids and digests              | the deployment's |
| penstock:bucket:{key}      | hash    | key_limits.lua, quota.lua | requests and tokens left of a minute's, of an API key or an upstream | 10 minutes |
| penstock:breaker:{quota}   | hash    | quota.lua         | `failures`, `openings`, `until_ms`, `trial` of an upstream that fails | 10 minutes after the last failure |
| penstock:holding:{key}     | zset    | key_limits.lua, quota.lua | the jobs of an API key by their last deadline, or of an upstream by the end of their lease | the longest job's |
| penstock:usage:{key}:{month} | string | key_limits.lua    | tokens used                                  | 70 days |
| penstock:costs:{key}:{month} | hash | key_limits.lua    | by model, what its answers cost, in millionths of the prices' currency | 70 days |
| penstock:chat:{job}        | string  | records.lua       | the request of a stored chat, as JSON        | as long as a response |
| penstock:chats:{tenant}    | zset    | records.lua       | ids of stored chats by when they came        | as long as the last of them |
| penstock:conversation:{conversation} | string | records.lua | a conversation's metadata, as JSON      | as long as a response, from its last one |
| penstock:conversation-items:{conversation} | zset | records.lua | ids of responses and entries of a conversation by when they came | as long as the last of them |
| penstock:conversation-entry:{entry} | string | records.lua | items that were added or removed, as JSON | as long as a response |
| penstock:stored:{tenant}   | zset    | records.lua       | `bytes key` of chats and responses by when they expire | as long as the last of them |
| penstock:stored-bytes:{tenant} | string | records.lua    | how many bytes those are together            | as long as the last of them |
| penstock:webhooks:{tenant} | hash    | api.stores.webhooks      | endpoints by id, as JSON                     | until removed |
| penstock:notices           | list    | lifecycle.lua     | `job tenant` of ended jobs to report         | while it has entries |
| penstock:delivery:{delivery} | string | api.stores.webhook_deliveries   | a webhook delivery, as JSON                  | 2 days |
| penstock:deliveries        | zset    | api.stores.webhook_deliveries    | deliveries by when they are tried next       | while it has members |
| penstock:response:{response} | string | records.lua     | the request of a response, as JSON           | the response's lifetime |
| penstock:file:{file}       | hash    | api.stores.files         | the metadata of an uploaded or written file  | until deleted or expired |
| penstock:files:{tenant}    | zset    | api.stores.files         | ids of files by when they came               | while it has members |
| penstock:files-expiring    | zset    | api.stores.files         | `tenant file` by when it expires             | while it has members |
| penstock:files-bytes:{tenant} | hash | api.stores.files         | bytes of the tenant's files, and when they were counted | 1 h after the last change |
| penstock:batch:{batch}     | string  | api.stores.batches         | a batch, as JSON                             | 30 days after its end |
| penstock:batches:{tenant}  | zset    | api.stores.batches         | ids of batches by when they came             | 90 days after the last |
| penstock:batches           | set     | api.stores.batches         | ids of batches that have not ended           | while it has members |
| penstock:batch-lease:{batch} | string | api.stores.batches        | the owner of its lease: `process.token`      | 10 s |
| penstock:batch-cancel:{batch} | string | api.stores.batches       | marks a batch to be cancelled                | 30 days |
| penstock:mended:{start}    | string  | health            | Redis's file was rewritten since this start  | 1 day |
| penstock:log:{job}         | list    | lifecycle.lua     | the job's events, by number                  | 7 days at most; then the job's lifetime |
| penstock:previous:{job}    | list    | lifecycle.lua     | the log before `rq requeue`                  | 7 days |
| penstock:models            | set     | model_registry    | names of models ever served                  | cleaned by every reader |
| penstock:model:{model}     | hash    | model_registry    | the model as its workers describe it         | 7 days after the last worker |
| penstock:hosts             | set     | hosting           | ids of hosts                                 | cleaned by every reader |
| penstock:host:{host}       | string  | hosting           | a host as it describes itself, as JSON       | 10 s after its last heartbeat |
| penstock:machine:{machine} | string  | hosting           | id of the host that holds the machine        | 10 s after its last heartbeat |
| penstock:hosted:{host}     | hash    | hosting           | its models by name, as JSON                  | 10 s after its last heartbeat |
| penstock:orders:{host}     | list    | hosting           | orders that it has not taken yet, as JSON    | 10 minutes after the last |
| penstock:order:{order}     | string  | hosting           | how the order went                           | 10 minutes |
| penstock:keep-alive:{model} | string | hosting           | seconds that its last request wants it kept  | 7 days |
| penstock:wanted            | channel | job.lua, hosting  | names of models that wait for a worker, or for an order | - |
| penstock:routes            | hash    | routes            | names that stand for models, as JSON         | until their host forgets them |
| penstock:default-model     | string  | routes            | the model of requests that name none         | the deployment's |
| penstock:events:{api}      | channel | lifecycle.lua     | the events of the jobs an API process reads  | - |
| penstock:control:{worker}  | channel | end.lua, a host   | ids of jobs this worker must drop; `!sleep`, `!sleep now`, `!wake` | - |

The fields of rq:job:{job}. `alone` is called `isolated` in our code, `moved` `progressed`. `enqueue` stands for redis_queue and rq_view, which send a new job's fields to the verbs
enqueue and replay; a field that says nothing is not sent. "the hash" has the lifetime above.

| field          | written by                | read by                                    | holds                                                  | goes with |
|----------------|---------------------------|--------------------------------------------|--------------------------------------------------------|-----------|
| created_at     | enqueue                   | rq                                         | when it was enqueued, ISO 8601                         | the hash |
| enqueued_at    | enqueue, rq               | rq, job_records                                 | the same; of a requeued job, when that was             | the hash |
| data           | enqueue                   | rq                                         | the constant pickle of rq_view                         | the hash |
| description    | enqueue                   | rq                                         | kind and model, no word of the prompt                  | the hash |
| timeout        | enqueue                   | rq                                         | a number that RQ wants                                 | the hash |
| failure_ttl    | enqueue                   | rq                                         | lifetime of a failed job, in seconds                   | the hash |
| origin         | enqueue                   | requeue.lua, end.lua, position.lua, job_records, rq           | the model                                              | the hash |
| status         | enqueue, lifecycle.lua, requeue.lua, rq          | lifecycle.lua, requeue.lua, leases.lua, readers.lua, position.lua, end.lua, redis_queue, event_channel, job_records, rq | the state, see lifecycle | the hash |
| started_at     | lifecycle.lua             | job_records, rq                                 | when it was claimed last, ISO 8601                     | the hash |
| ended_at       | lifecycle.lua, rq         | job_records, rq                                 | when it ended, ISO 8601                                | a requeue |
| last_heartbeat | lifecycle.lua, leases.lua | rq                                         | when its lease was renewed, ISO 8601                   | the hash |
| worker_name    | lifecycle.lua             | lifecycle.lua, leases.lua, end.lua, job_records, rq | the worker that claimed it last                        | the hash |
| payload        | enqueue                   | lifecycle.lua, fair_queue.lua, redis_queue, job_records | the job, as codec writes it                    | its end, unless it fails or keep_request is set |
| created_ms     | enqueue                   | -                                          | when the request came                                  | the hash |
| class          | enqueue                   | fair_queue.lua, job_records                     | the rank of its priority                               | the hash |
| tenant         | enqueue                   | lifecycle.lua, fair_queue.lua, key_limits.lua, job_records | for whom it runs                                  | the hash |
| weight         | enqueue                   | fair_queue.lua                             | the tenant's share beside others                       | the hash |
| prompt_tokens  | enqueue                   | end.lua                                    | an estimate of its prompt's tokens                     | the hash |
| output_max     | enqueue                   | -                                          | the most tokens of its answer, -1 for no limit         | the hash |
| width          | enqueue                   | job.lua                                    | sequences that an engine makes of it, if several       | the hash |
| patience_ms    | enqueue                   | lifecycle.lua, key_limits.lua, workload.lua | its queue deadline                                     | the hash |
| run_ms         | enqueue                   | lifecycle.lua, end.lua, key_limits.lua     | its run deadline                                       | the hash |
| keep_s         | enqueue                   | lifecycle.lua                              | lifetime after its end, if longer than usual           | the hash |
| not_before_ms  | enqueue                   | job_records                                | when it may be queued, Unix time                       | the hash |
| due_ms         | enqueue                   | lifecycle.lua, fair_queue.lua, end.lua, job_records | when its answer is wanted, Unix time          | a requeue |
| keep_request   | enqueue                   | lifecycle.lua                              | 1: its payload is kept after its end, too              | the hash |
| notify         | enqueue                   | lifecycle.lua                              | 1: its end goes onto penstock:notices                  | the hash |
| idempotency    | enqueue                   | lifecycle.lua                              | its idempotency key                                    | the hash |
| fingerprint    | enqueue                   | -                                          | a digest of the request that came with that key        | the hash |
| limits         | enqueue                   | -                                          | limits of its API key, as key_limits.lua reads them    | the hash |
| month          | enqueue                   | key_limits.lua, redis_queue, job_records   | the month that its tokens count to; none without a key | the hash |
| cost_month     | enqueue                   | key_limits.lua, redis_queue, job_records   | of a replay or a rerun: the month that its cost counts to; none without a key | the hash |
| view           | enqueue                   | redis_queue, job_records                        | options that rebuild its stream                        | the hash |
| trace          | enqueue                   | lifecycle.lua                              | its W3C trace context                                  | the hash |
| replay_of      | enqueue                   | job_records                                     | the job that it replays, or runs again                 | the hash |
| subscribers    | enqueue, readers.lua      | lifecycle.lua, readers.lua, end.lua        | channels of the API processes that read it             | the hash |
| cost           | lifecycle.lua             | fair_queue.lua, key_limits.lua             | tokens that it is expected to take                     | the hash |
| sid            | lifecycle.lua, leases.lua | lifecycle.lua, requeue.lua, leases.lua, end.lua, workload.lua, demand | the id of its stream entry                             | its end |
| attempt        | lifecycle.lua, leases.lua | lifecycle.lua, leases.lua, job_records          | claims without progress, from 1                        | the hash |
| exec           | lifecycle.lua             | lifecycle.lua, requeue.lua, leases.lua     | the claim token of its owner                           | its end, a release, a requeue |
| deadline_ms    | lifecycle.lua             | lifecycle.lua, end.lua, workload.lua       | when its run deadline passes, by Redis's clock         | a requeue |
| alone          | lifecycle.lua             | lifecycle.lua                              | 1: it runs isolated                                    | progress, another claim, its end |
| moved          | lifecycle.lua             | lifecycle.lua, leases.lua                  | 1: it has progressed since its claim                   | another claim, its end |
| paid           | key_limits.lua            | key_limits.lua                             | 1: its key's limits were corrected by what it took     | a requeue |
| quota          | quota.lua                 | quota.lua, leases.lua, lifecycle.lua       | the upstream's quota that it was taken from            | another claim, a release, its end |
| replayed_as    | requeue.lua               | requeue.lua, job_records                        | the job that replays it                                | the hash |
| timeline       | job.lua                   | job.lua, job_records                            | what happened to it, a line for each, with its time    | the hash |
"""

QUEUES = "rq:queues"
SUSPENDED = "rq:suspended"
WORKERS = "rq:workers"
MODELS = "penstock:models"
API_KEYS = "penstock:keys"
FILES_EXPIRING = "penstock:files-expiring"
BATCHES = "penstock:batches"
NOTICES = "penstock:notices"
DELIVERIES = "penstock:deliveries"
API_KEY_SALT = "penstock:keys:salt"
HOSTS = "penstock:hosts"
WANTED = "penstock:wanted"
ROUTES = "penstock:routes"
DEFAULT_MODEL = "penstock:default-model"

_BY_NAME = {
    "job": "rq:job:",
    "queue": "rq:queue:",
    "started": "rq:wip:",
    "finished": "rq:finished:",
    "failed": "rq:failed:",
    "scheduled": "rq:scheduled:",
    "scheduled_load": "penstock:scheduled-load:",
    "canceled": "rq:canceled:",
    "results": "rq:results:",
    "worker": "rq:worker:",
    "stream": "penstock:stream:",
    "wake": "penstock:wake:",
    "lane": "penstock:lane:",
    "line": "penstock:line:",
    "served": "penstock:served:",
    "load": "penstock:load:",
    "rate": "penstock:rate:",
    "leases": "penstock:leases:",
    "claim": "penstock:claim:",
    "suspect": "penstock:suspect:",
    "idempotency": "penstock:idempotency:",
    "paused": "penstock:paused:",
    "log": "penstock:log:",
    "previous": "penstock:previous:",
    "control": "penstock:control:",
    "bucket": "penstock:bucket:",
    "breaker": "penstock:breaker:",
    "holding": "penstock:holding:",
    "usage": "penstock:usage:",
    "costs": "penstock:costs:",
    "workers_of": "rq:workers:",
    "model": "penstock:model:",
    "pace": "penstock:pace:",
    "stored": "penstock:stored:",
    "stored_bytes": "penstock:stored-bytes:",
    "keep_alive": "penstock:keep-alive:",
}


def job(job_id: str) -> str:
    return _BY_NAME["job"] + job_id


def log(job_id: str) -> str:
    return _BY_NAME["log"] + job_id


def previous(job_id: str) -> str:
    return _BY_NAME["previous"] + job_id


def results(job_id: str) -> str:
    return _BY_NAME["results"] + job_id


def queue(model: str) -> str:
    return _BY_NAME["queue"] + model


def stream(model: str) -> str:
    return _BY_NAME["stream"] + model


def wake(model: str) -> str:
    return _BY_NAME["wake"] + model


def load(model: str) -> str:
    return _BY_NAME["load"] + model


def rate(model: str) -> str:
    return _BY_NAME["rate"] + model


def pace(model: str) -> str:
    return _BY_NAME["pace"] + model


def leases(model: str) -> str:
    return _BY_NAME["leases"] + model


def idempotency(key: str) -> str:
    return _BY_NAME["idempotency"] + key


def paused(model: str) -> str:
    return _BY_NAME["paused"] + model


def api_key(key_id: str) -> str:
    return f"penstock:key:{key_id}"


def usage(key_id: str, month: str) -> str:
    return f"{_BY_NAME['usage']}{key_id}:{month}"


def costs(key_id: str, month: str) -> str:
    return f"{_BY_NAME['costs']}{key_id}:{month}"


def chat(job_id: str) -> str:
    return f"penstock:chat:{job_id}"


def chats_of(tenant: str) -> str:
    return f"penstock:chats:{tenant}"


def webhooks_of(tenant: str) -> str:
    return f"penstock:webhooks:{tenant}"


def delivery(delivery_id: str) -> str:
    return f"penstock:delivery:{delivery_id}"


def response(response_id: str) -> str:
    return f"penstock:response:{response_id}"


def conversation(conversation_id: str) -> str:
    return f"penstock:conversation:{conversation_id}"


def conversation_items(conversation_id: str) -> str:
    return f"penstock:conversation-items:{conversation_id}"


def conversation_entry(entry_id: str) -> str:
    return f"penstock:conversation-entry:{entry_id}"


def file(file_id: str) -> str:
    return f"penstock:file:{file_id}"


def files_of(tenant: str) -> str:
    return f"penstock:files:{tenant}"


def files_bytes(tenant: str) -> str:
    return f"penstock:files-bytes:{tenant}"


def batch(batch_id: str) -> str:
    return f"penstock:batch:{batch_id}"


def batches_of(tenant: str) -> str:
    return f"penstock:batches:{tenant}"


def batch_lease(batch_id: str) -> str:
    return f"penstock:batch-lease:{batch_id}"


def batch_cancel(batch_id: str) -> str:
    return f"penstock:batch-cancel:{batch_id}"


def mended(run_id: str) -> str:
    return f"penstock:mended:{run_id}"


def registry(state: str, model: str) -> str:
    """Return the key of RQ's registry. `state` is started, finished, failed or canceled."""
    return _BY_NAME[state] + model


def worker(name: str) -> str:
    return _BY_NAME["worker"] + name


def workers_of(model: str) -> str:
    return _BY_NAME["workers_of"] + model


def model(name: str) -> str:
    return _BY_NAME["model"] + name


def host(host_id: str) -> str:
    return f"penstock:host:{host_id}"


def machine(machine_id: str) -> str:
    return f"penstock:machine:{machine_id}"


def hosted(host_id: str) -> str:
    return f"penstock:hosted:{host_id}"


def orders(host_id: str) -> str:
    return f"penstock:orders:{host_id}"


def order(order_id: str) -> str:
    return f"penstock:order:{order_id}"


def keep_alive(model_name: str) -> str:
    return _BY_NAME["keep_alive"] + model_name


def events_channel(api: str) -> str:
    return f"penstock:events:{api}"


def control_channel(worker_name: str) -> str:
    return _BY_NAME["control"] + worker_name


def lua_names() -> dict[str, str]:
    """Return the key names that the Lua uses, with their definitions, so that none is written twice: complete keys
    (`QUEUES`) and prefixes (`JOB .. id`, `QUEUE .. model`)."""
    whole = {"QUEUES": QUEUES, "SUSPENDED": SUSPENDED, "NOTICES": NOTICES, "MODELS": MODELS, "WANTED": WANTED}
    begun = {name.upper(): prefix for name, prefix in _BY_NAME.items()}
    return {name: f"local {name} = '{key}'" for name, key in (whole | begun).items()}
