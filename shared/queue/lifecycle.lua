-- The life of a job in Redis, in order: it is enqueued, claimed by a worker, grows by events, and is settled. Each of
-- these four verbs is called by the method of RedisQueue that has its name, and they are all that most jobs meet. Where
-- a verb turns aside, the file that it calls is named. What else may happen to a job is in requeue.lua, leases.lua,
-- readers.lua and end.lua; what verbs share is in job.lua.

-- verb: enqueue
-- takes: model, id, number jobs_max, number tokens_max, number bytes_max, list fields
-- takes: list records (key, data, number ttl_s, number bytes_max, index)
-- needs: accept, ahead, cost, idempotency, limits, not_ended, over_bounds, record, schedule, subscribe
-- Accept a job, refuse it, or find the one that the same request created before. `fields` are names and values in turn;
-- `records` holds the record that is stored with the job, if there is one.
-- -> {ok|duplicate|attached|reused|<refusal>, jobs ahead, or bytes stored, wait in milliseconds, job, created_ms, and
-- of the key's limits: requests and tokens left, milliseconds until each bucket is full, tokens ahead}

-- The job that this idempotency key made before: its id, its fingerprint, created_ms, and whether it can still be used.
local function earlier(key)
  local known = key ~= '' and redis.call('GET', IDEMPOTENCY .. key)
  if not known then return nil end
  local id, fingerprint, created_ms = string.match(known, '^(%S+) (%S+) (%S+)$')
  local status = redis.call('HGET', JOB .. id, 'status')
  local usable = not_ended(status) or status == 'finished'
  return { id = id, fingerprint = fingerprint, created_ms = created_ms, usable = usable }
end

-- The reason why the job may not enter the queue, and the two numbers of the answer that go with it; nil when it may.
local function refusal(args, fields, record, cost, jobs, wait)
  local limit, limit_ms = over_limit(fields, cost)                       -- of its API key: key_limits.lua
  if limit ~= '' then return limit, 0, limit_ms end
  local stored = over_storage(record)                                    -- of its tenant: records.lua
  if stored then return 'storage_full', stored, 0 end
  local place = { class = tonumber(fields.class), tenant = fields.tenant, bytes = #fields.payload, cost = cost }
  local bounds = { jobs = args.jobs_max, tokens = args.tokens_max, bytes = args.bytes_max }
  local bound                                                            -- of its queue: fair_queue.lua
  if delay_of(fields) > 0 then
    bound, jobs, wait = over_scheduled(args.model, place, bounds), 0, 0
  else
    bound = over_bounds(args.model, place, bounds, tonumber(fields.patience_ms))
  end
  if bound ~= '' then return bound, jobs, wait end
end

local function enqueue(args)
  local model, id, fields = args.model, args.id, by_name(args.fields)
  local record = record_with(args.records(), fields.tenant, id, fields.created_ms)
  local jobs, tokens, wait = ahead(model, tonumber(fields.class))
  if redis.call('EXISTS', JOB .. id) == 1 then return { 'duplicate', jobs, wait, id, fields.created_ms } end
  local before = earlier(fields.idempotency)
  if before and before.fingerprint ~= fields.fingerprint then
    return { 'reused', 0, 0, before.id, before.created_ms }
  end
  if before and before.usable then
    subscribe(before.id, fields.subscribers)                             -- readers.lua
    return { 'attached', 0, 0, before.id, before.created_ms }
  end
  local cost = cost_of(model, tonumber(fields.prompt_tokens), tonumber(fields.output_max))
  local reason, first, second = refusal(args, fields, record, cost, jobs, wait)
  if reason then return { reason, first, second, id, fields.created_ms } end
  accept(model, id, args.fields, fields, cost)
  write_record(record)                                                   -- records.lua
  if fields.idempotency ~= '' then
    local known = id .. ' ' .. fields.fingerprint .. ' ' .. fields.created_ms
    local life_s = IDEMPOTENCY_TTL_S + math.ceil(delay_of(fields) / 1000)
    redis.call('SET', IDEMPOTENCY .. fields.idempotency, known, 'EX', life_s)
  end
  local requests, left, requests_ms, left_ms = take_limits(id, fields, cost, delay_of(fields))
  return { 'ok', jobs, wait, id, fields.created_ms, requests, left, requests_ms, left_ms, tokens }
end

-- part: schedule
-- needs: clock, timeline
-- Return how many milliseconds are left until a new job may be queued.
local function delay_of(fields)
  return math.max((tonumber(fields.not_before_ms) or 0) - now_ms(), 0)
end

-- Let an accepted job wait for its time, in RQ's registry of scheduled jobs. sync() in requeue.lua queues it then.
local function schedule(model, id, fields)
  redis.call('HSET', JOB .. id, 'status', 'scheduled')
  redis.call('ZADD', SCHEDULED .. model, fields.not_before_ms / 1000, id)
  redis.call('HINCRBY', SCHEDULED_LOAD .. model, 'bytes', #fields.payload)
  note(JOB .. id, 'scheduled')
end

-- part: accept
-- needs: schedule, sync
-- Fields by name, from names and values in turn. A field that says nothing is not sent: those that are read
-- unconditionally are '' then.
local function by_name(flat)
  local fields = { idempotency = '', subscribers = '', tenant = '' }
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end

-- Write the job's hash and put the job onto RQ's list. sync() in requeue.lua calls add_entry() for each job on the list
-- that has no stream entry: this one, and those that RQ's tools have pushed.
local function accept(model, id, flat, fields, cost)
  redis.call('HSET', JOB .. id, unpack(flat))
  redis.call('HSET', JOB .. id, 'cost', cost)
  redis.call('SADD', QUEUES, QUEUE .. model)
  if delay_of(fields) > 0 then
    schedule(model, id, fields)
  else
    redis.call('RPUSH', QUEUE .. model, id)
  end
  sync(model)
end

-- part: add_entry
-- needs: push, take_again, timeline, wake
local PREVIOUS_TTL_S = 7 * 86400

-- Let a job that stands on the list wait for a worker: give it a stream entry and a fresh start (no earlier attempts,
-- no earlier output, and no due date, if it was claimed before: it would be late at once), push it into its lane in
-- fair_queue.lua, where claims find it, and wake a worker that waits in RedisQueue.claim.
local function add_entry(model, id)
  local job = JOB .. id
  if redis.call('HGET', job, 'status') ~= 'queued' then
    redis.call('LREM', QUEUE .. model, -1, id)   -- the hash has expired: nothing is left to run
    return
  end
  local old, attempts = unpack(redis.call('HMGET', job, 'sid', 'attempt'))
  if old then redis.call('XDEL', STREAM .. model, old) end
  if tonumber(attempts or 0) > 0 then redis.call('HDEL', job, 'due_ms') end
  local sid = redis.call('XADD', STREAM .. model, '*', 'j', id)
  redis.call('HSET', job, 'sid', sid, 'attempt', 0)
  redis.call('HDEL', job, 'exec', 'ended_at', 'deadline_ms', 'alone', 'moved')
  redis.call('PERSIST', job)                       -- RQ's requeue leaves the failed job's lifetime running
  if redis.call('EXISTS', LOG .. id) == 1 then
    redis.call('RENAME', LOG .. id, PREVIOUS .. id)
    redis.call('EXPIRE', PREVIOUS .. id, PREVIOUS_TTL_S)
  end
  take_again(id)
  note(job, 'queued')
  push(model, id, sid)
  wake(model)
end

-- verb: claim
-- takes: model, worker, claim_token, iso, number lease_ms, number limit, number room, number attempts_max
-- takes: number widest, list tenants, list quotas (name, number requests, number tokens, number at_once)
-- needs: add_entry, delivery, drop_entry, lapsed, pop, quota, start, sync, unlist, width
-- Claim up to `limit` jobs or `room` sequences: lapsed leases first, then the least-served class and tenant. `widest`
-- bounds the jobs of `tenants`. With `quotas`, each job is taken from the first that has room for it. If they
-- have limits, the most urgent class comes first. A repeated claim gets the same jobs. -> {delivery*}
local CLAIM_TTL_S = 30

-- Claim a waiting job, unless another tool has cancelled or deleted it meanwhile.
local function claim_waiting(args, sid, id)
  local status, current = unpack(redis.call('HMGET', JOB .. id, 'status', 'sid'))
  if status ~= 'queued' or current ~= sid then
    drop_entry(args.model, sid)
    return nil
  end
  unlist(args.model, id, sid)
  return start(args, id, 1)
end

-- Add the jobs that wait, in the order of fair_queue.lua, to `ids`. Return whether no more of them wait.
local function claim_next(args, ids, widest)
  while #ids < args.limit and args.room > 0 do
    local urgent = are_limited(args.quotas)
    local cost = #args.quotas > 0 and next_cost(args.model, widest, urgent)
    local quota = cost and quota_for(args.quotas, cost)        -- quota.lua
    if cost and not quota then return false end
    local sid, id = pop(args.model, widest, urgent)
    if not sid then return not next(widest) end    -- else there may be some that are too wide for this worker
    local claimed = claim_waiting(args, sid, id)
    if claimed then
      ids[#ids + 1] = claimed
      args.room = args.room - width_of(id)
      if quota then take_quota(quota, id, cost, args.lease_ms) end
    end
  end
  return false
end

-- Correct what the queue's counts say when no job is left to pop, whatever other tools did meanwhile.
local function tidy_up(model, dry)
  if redis.call('LLEN', QUEUE .. model) == 0 then
    redis.call('DEL', LOAD .. model)
    if dry then redis.call('DEL', WAKE .. model) end
  elseif dry then                                  -- the jobs that still stand on the list have lost their lanes
    for _, id in ipairs(redis.call('LRANGE', QUEUE .. model, 0, SYNC_MAX - 1)) do
      add_entry(model, id)
    end
  end
end

local function claim_jobs(args, widest)
  local ids, model = {}, args.model
  sync(model)
  claim_lapsed(args, ids)                          -- leases.lua
  if redis.call('EXISTS', SUSPENDED, PAUSED .. model) > 0 then return ids end
  tidy_up(model, claim_next(args, ids, widest))
  return ids
end

local function claim(args)
  local claim_token, worker, widest, ids = args.claim_token, args.worker, {}, {}
  args.quotas = listed(args.quotas)
  for _, tenant in ipairs(args.tenants) do widest[tenant] = args.widest end
  local before = redis.call('GET', CLAIM .. claim_token)
  if before then
    for id in string.gmatch(before, '%S+') do
      if redis.call('HGET', JOB .. id, 'exec') == claim_token then ids[#ids + 1] = id end
    end
  else
    ids = claim_jobs(args, widest)
    if ids[1] then redis.call('SET', CLAIM .. claim_token, table.concat(ids, ' '), 'EX', CLAIM_TTL_S) end
  end
  if ids[1] and redis.call('EXISTS', WORKER .. worker) == 1 then
    redis.call('HSET', WORKER .. worker, 'state', 'busy', 'current_job', ids[1])
  end
  local answer = {}
  for _, id in ipairs(ids) do answer[#answer + 1] = delivery(id) end
  return answer
end

-- part: start
-- needs: clock, timeline
local RUNNING_S = 7 * 86400     -- plain RQ calls a running job abandoned after this long
local SUSPECT_TTL_S = 3600

-- Start an attempt of a job: from here on the worker of this claim owns it. On the last attempt it runs isolated.
local function start(args, id, attempt)
  local job, now = JOB .. id, now_ms()
  local run_ms, deadline_ms, due_ms = unpack(redis.call('HMGET', job, 'run_ms', 'deadline_ms', 'due_ms'))
  run_ms = tonumber(run_ms or 0)
  local left_ms = run_ms > 0 and run_ms or math.huge
  if due_ms then left_ms = math.min(left_ms, math.max(due_ms - now, 1)) end
  if not deadline_ms and left_ms < math.huge then redis.call('HSET', job, 'deadline_ms', now + left_ms) end
  redis.call('HSET', job, 'status', 'started', 'started_at', args.iso, 'last_heartbeat', args.iso,
             'worker_name', args.worker, 'exec', args.claim_token, 'attempt', attempt)
  redis.call('PERSIST', job)
  redis.call('ZADD', STARTED .. args.model, math.floor(now / 1000) + RUNNING_S, id .. ':' .. args.claim_token)
  redis.call('ZADD', LEASES .. args.model, now + args.lease_ms, id)
  if attempt == args.attempts_max and attempt > 1 then
    redis.call('HSET', job, 'alone', 1)
    redis.call('SET', SUSPECT .. args.worker, id, 'EX', SUSPECT_TTL_S)
  else
    redis.call('HDEL', job, 'alone')
  end
  redis.call('HDEL', job, 'moved', 'quota')
  note(job, 'claimed by ' .. args.worker .. ', attempt ' .. attempt)
  return id
end

-- part: delivery
-- needs: clock
-- Return a claim's answer for a job: {id, attempt, payload, log, late, milliseconds left to run, isolated, milliseconds
-- since it was queued or handed over, trace context, quota}
local function delivery(id)
  local job, now = JOB .. id, now_ms()
  local sid, attempt, payload, queue_deadline_ms, deadline_ms, isolated, trace, quota = unpack(
    redis.call('HMGET', job, 'sid', 'attempt', 'payload', 'patience_ms', 'deadline_ms', 'alone', 'trace', 'quota'))
  local late = ''
  local waited = now - string.match(sid, '^%d+')   -- an entry's id is the time at which it was made
  if attempt == '1' and waited > tonumber(queue_deadline_ms or 0) then late = 'queue' end
  local left = deadline_ms and deadline_ms - now or ''
  if late == '' and left ~= '' and left <= 0 then late = 'run' end
  local log = redis.call('LRANGE', LOG .. id, 0, -1)
  return { id, tonumber(attempt), payload or '', log, late, left, isolated and 1 or 0, waited, trace or '', quota or '' }
end

-- verb: append
-- takes: list writes (id, claim_token, number first, list events)
-- needs: log
-- Append events to the logs of jobs, and publish them. -> {{id, -1 when the job is no longer the caller's, else the
-- length of a log that is shorter than the caller thinks: Redis has lost its end}*}

-- A job has progressed since its last claim: if its worker dies now, its attempts count from 2 again.
-- If it ran isolated, its worker may run others again.
local function acquit(id, isolated, worker)
  redis.call('HSET', JOB .. id, 'moved', 1)
  if isolated then
    redis.call('HDEL', JOB .. id, 'alone')
    redis.call('DEL', SUSPECT .. worker)
  end
end

local function append(args)
  local refused, messages = {}, {}
  for write in args.writes do
    local id = write.id
    -- Read by index: unpack() would cost this verb, which is called for every step, a twentieth.
    local h = redis.call('HMGET', JOB .. id, 'exec', 'status', 'subscribers', 'moved', 'alone', 'worker_name')
    if h[1] ~= write.claim_token or h[2] ~= 'started' then
      refused[#refused + 1] = { id, -1 }
    elseif not append_events(id, h[3], write.first, write.events, messages) then
      refused[#refused + 1] = { id, redis.call('LLEN', LOG .. id) }
    elseif not h[4] and write.first + #write.events > 1 then     -- more than its opening
      acquit(id, h[5], h[6])
    end
  end
  publish(messages)
  return refused
end

-- part: log
local LOG_TTL_S = 7 * 86400     -- no log outlives this, even if nobody ever settles its job

-- Append events to a job's log, and to `messages` for each of its subscribers. `first` is the number of the first
-- event.
-- Events that the log holds already (a retry) are not written again, but they are published again, since readers drop
-- repeats by number. Return false when the log is shorter than `first`.
local function append_events(id, subscribers, first, events, messages)
  local log = LOG .. id
  local have = redis.call('LLEN', log)
  if have < first then return false end
  for i = have - first + 1, #events do redis.call('RPUSH', log, events[i]) end
  if have == 0 then redis.call('EXPIRE', log, LOG_TTL_S) end
  local message = '["' .. id .. '",' .. first .. ',[' .. table.concat(events, ',') .. ']]'
  for channel in string.gmatch(subscribers or '', '%S+') do
    messages[channel] = messages[channel] or {}
    table.insert(messages[channel], message)
  end
  return true
end

-- Publish each channel's messages. An API process listens in RedisChannel.listen, which Relay._hear reads.
local function publish(messages)
  for channel, parts in pairs(messages) do
    redis.call('PUBLISH', channel, '[' .. table.concat(parts, ',') .. ']')
  end
end

-- verb: settle
-- takes: model, id, claim_token, status, iso, number ttl_s, worker, exc, number tokens, number output
-- takes: number cost_micros, number first, list events
-- needs: close, correct, count_cost, drop_entry, log, output
-- End a job with its last events, if the caller owns it. -> settled | lost | the length of a log that is shorter than
-- the caller thinks
local function settle(args)
  local model, id, claim_token, ending = args.model, args.id, args.claim_token, args.status
  local owner, status, subscribers, sid =
    unpack(redis.call('HMGET', JOB .. id, 'exec', 'status', 'subscribers', 'sid'))
  if owner ~= claim_token then return 'lost' end
  if status ~= 'started' then                      -- RQ cancelled or abandoned it: only our entry is left
    if sid then drop_entry(model, sid) end
    redis.call('ZREM', STARTED .. model, id .. ':' .. claim_token)
    redis.call('ZREM', LEASES .. model, id)
    redis.call('HDEL', JOB .. id, 'sid', 'exec')
    return 'lost'
  end
  local messages = {}
  if not append_events(id, subscribers, args.first, args.events, messages) then return redis.call('LLEN', LOG .. id) end
  close(model, id, ending, args.iso, args.ttl_s)
  correct(model, id, args.tokens)                  -- end.lua
  if ending == 'finished' then note_output(model, args.output) end
  count_cost(model, id, args.cost_micros)          -- key_limits.lua
  if args.exc ~= '' then
    local results = RESULTS .. id
    redis.call('XADD', results, 'MAXLEN', 10, '*', 'type', 2, 'worker_name', args.worker, 'exc_string', args.exc)
    redis.call('EXPIRE', results, args.ttl_s)
  end
  local counter = ending == 'finished' and 'successful_job_count' or 'failed_job_count'
  if ending ~= 'canceled' and redis.call('EXISTS', WORKER .. args.worker) == 1 then
    redis.call('HINCRBY', WORKER .. args.worker, counter, 1)
  end
  publish(messages)
  return 'settled'
end

-- part: close
-- needs: clock, drop_entry, idempotency, let_go, raise_ttl, timeline, wake, width
-- Close a job: its entry, its lease, its registry, its lifetime. Failed jobs keep their payload, since they can be
-- replayed, and others only where `keep_request` says so.
local function close(model, id, status, iso, ttl_s)
  local job = JOB .. id
  local sid, claim_token, idempotency, isolated, worker, keep_s, notify, tenant, keep_request = unpack(redis.call(
    'HMGET', job, 'sid', 'exec', 'idempotency', 'alone', 'worker_name', 'keep_s', 'notify', 'tenant', 'keep_request'))
  if sid then drop_entry(model, sid) end
  if claim_token then redis.call('ZREM', STARTED .. model, id .. ':' .. claim_token) end
  if isolated then redis.call('DEL', SUSPECT .. worker) end
  redis.call('ZREM', LEASES .. model, id)
  let_go(id)
  redis.call('HDEL', job, 'sid', 'exec', 'alone', 'moved')
  redis.call('HSET', job, 'status', status, 'ended_at', iso)
  if status ~= 'failed' and not keep_request then redis.call('HDEL', job, 'payload') end
  if status == 'finished' and (idempotency or '') ~= '' then ttl_s = math.max(ttl_s, IDEMPOTENCY_TTL_S) end
  ttl_s = math.max(ttl_s, tonumber(keep_s or 0))
  if notify == '1' then redis.call('RPUSH', NOTICES, id .. ' ' .. tenant) end
  local registry = ({ finished = FINISHED, failed = FAILED, canceled = CANCELED })[status] .. model
  local now_s = math.floor(now_ms() / 1000)
  redis.call('ZREMRANGEBYSCORE', registry, '-inf', now_s)
  redis.call('ZADD', registry, now_s + ttl_s, id)
  raise_ttl(registry, ttl_s + 3600)
  -- `rq requeue --all` dies on a registered id without a hash.
  redis.call('EXPIRE', job, status == 'failed' and ttl_s + 3600 or ttl_s)
  redis.call('EXPIRE', LOG .. id, ttl_s)
  note(job, status)
  -- Its worker may have passed over others that were too wide beside it.
  if width_of(id) > 1 and redis.call('LLEN', QUEUE .. model) > 0 then wake(model) end
end
