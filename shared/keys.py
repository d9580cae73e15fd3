"""Every name in Redis, in one table. `queue.lua` gets the same names through `lua_prelude`.

| key                        | type    | written by        | holds                                        | lifetime |
|----------------------------|---------|-------------------|----------------------------------------------|----------|
| rq:job:{job}               | hash    | queue.lua         | RQ's job fields and ours (payload, exec, ..) | while waiting or running; then the job's lifetime |
| rq:queue:{model}           | list    | queue.lua, rq     | ids of waiting jobs, oldest first            | while it has entries |
| rq:queues                  | set     | queue.lua         | keys of all queues, what `rq info` lists     | the deployment's |
| rq:wip:{model}             | zset    | queue.lua         | `job:exec` of running jobs                   | member: refreshed by each heartbeat, 10 min |
| rq:finished:{model}        | zset    | queue.lua         | finished ids by expiry                       | member: the job's lifetime |
| rq:failed:{model}          | zset    | queue.lua, rq     | failed ids by expiry                         | member: 7 days |
| rq:canceled:{model}        | zset    | queue.lua, rq     | cancelled ids                                | member: the job's lifetime |
| rq:results:{job}           | stream  | queue.lua         | RQ's result record with the traceback        | the job's lifetime |
| rq:worker:{worker}         | hash    | rq_view, queue.lua| RQ's worker fields                           | 10 s after the last heartbeat |
| rq:workers[:{model}]       | set     | rq_view           | keys of workers                              | cleaned by every reader |
| rq:suspended               | string  | rq                | set by `rq suspend`: nothing is claimed      | the operator's |
| penstock:stream:{model}    | stream  | queue.lua         | one entry `j`=job id per waiting or running job | entry: until settled |
| penstock:log:{job}         | list    | queue.lua         | the job's events, by number                  | 7 days at most; then the job's lifetime |
| penstock:rate:{model}      | hash    | queue.lua         | seconds between settled jobs, smoothed       | 1 day after the last job |
| penstock:models            | set     | directory         | names of models ever served                  | cleaned by every reader |
| penstock:model:{model}     | hash    | directory         | what its workers say of it                   | 7 days after the last worker |
| penstock:events:{api}      | channel | queue.lua         | the events of the jobs an API process reads  | - |
| penstock:control:{worker}  | channel | queue.lua         | ids of jobs this worker must drop            | - |
"""

GROUP = "penstock"
QUEUES = "rq:queues"
SUSPENDED = "rq:suspended"
WORKERS = "rq:workers"
MODELS = "penstock:models"

_BY_NAME = {
    "job": "rq:job:",
    "queue": "rq:queue:",
    "started": "rq:wip:",
    "finished": "rq:finished:",
    "failed": "rq:failed:",
    "canceled": "rq:canceled:",
    "results": "rq:results:",
    "worker": "rq:worker:",
    "stream": "penstock:stream:",
    "log": "penstock:log:",
    "rate": "penstock:rate:",
    "control": "penstock:control:",
}


def job(job_id: str) -> str:
    return _BY_NAME["job"] + job_id


def log(job_id: str) -> str:
    return _BY_NAME["log"] + job_id


def results(job_id: str) -> str:
    return _BY_NAME["results"] + job_id


def queue(model: str) -> str:
    return _BY_NAME["queue"] + model


def stream(model: str) -> str:
    return _BY_NAME["stream"] + model


def registry(state: str, model: str) -> str:
    """`state` is started, finished, failed or canceled."""
    return _BY_NAME[state] + model


def worker(name: str) -> str:
    return _BY_NAME["worker"] + name


def workers_of(model: str) -> str:
    return f"{WORKERS}:{model}"


def model(name: str) -> str:
    return f"penstock:model:{name}"


def events_channel(api: str) -> str:
    return f"penstock:events:{api}"


def control_channel(worker_name: str) -> str:
    return _BY_NAME["control"] + worker_name


def lua_prelude() -> str:
    """Lua functions `job_key(id)`, `queue_key(model)`, .. and constants, so that no name is written twice."""
    functions = [f"local function {name}_key(x) return '{prefix}' .. x end" for name, prefix in _BY_NAME.items()]
    constants = [f"local GROUP, QUEUES, SUSPENDED = '{GROUP}', '{QUEUES}', '{SUSPENDED}'"]
    return "\n".join([*constants, *functions, ""])
