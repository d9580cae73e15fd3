-- The queue inside Redis: a script for each verb. Every change of state is one call, so it happens whole or not at all,
-- and sending it again (a retry after a lost reply) changes nothing more.
-- scripts.py puts each together from this file, line.lua, which says who is served next, limits.lua, records.lua, and
-- the names of keys.py, which documents them. It goes by definitions at the left margin.
--
-- A job is owned by whoever holds its `exec`, a token new with every claim. Nothing is written for a job without it.
-- An owner keeps a job by renewing its lease, by Redis's clock. A job's stream entry is named by `sid`. The list
-- rq:queue:{model} and the stream are kept in step by sync(): whatever stands on the list without an entry (our own
-- enqueue, or a plain `rq requeue`) gets one.

local verbs = {}
local RUNNING_S = 7 * 86400     -- plain RQ calls a running job abandoned after this long
local LOG_TTL_S = 7 * 86400     -- no log outlives this, even if nobody ever settles its job
local CLAIM_TTL_S = 30
local IDEMPOTENCY_TTL_S = 86400
local SUSPECT_TTL_S = 3600
local TIMELINE_MAX = 8000
local SYNC_MAX = 256
local SWEEP_MAX = 10000
local WAKES_MAX = 64
local ELSEWHERE_MS = 300       -- another worker with more room has looked at the queue within this time
local WAKE_TTL_S = 3600

-- The job's history: a line of milliseconds and words for each thing that happened to it.
local function note(job, words)
  local lines = redis.call('HGET', job, 'timeline') or ''
  if #lines < TIMELINE_MAX then redis.call('HSET', job, 'timeline', lines .. now_ms() .. ' ' .. words .. '\n') end
end

local function drop_entry(model, sid)
  redis.call('XDEL', stream_key(model), sid)
  if redis.call('XLEN', stream_key(model)) == 0 then redis.call('DEL', stream_key(model)) end
end

-- One waiting worker for one job: whoever is told takes the job, or finds that another one has. A thousand idle workers
-- must not all look at each.
local function wake(model)
  if redis.call('LLEN', wake_key(model)) >= WAKES_MAX then return end
  redis.call('RPUSH', wake_key(model), 1)
  redis.call('EXPIRE', wake_key(model), WAKE_TTL_S)
end

-- Off the list of those that wait.
local function unlist(model, id, sid)
  take_out(queue_key(model), id, sid, function(other) return redis.call('HGET', job_key(other), 'sid') end)
end

-- Is this waiting id represented by a live stream entry? One with an exec was claimed once already: RQ's clean-up
-- abandoned it and somebody requeued it, so its old entry does not count.
local function streamed(stream, id)
  local h = redis.call('HMGET', job_key(id), 'sid', 'exec')
  if not h[1] or h[2] then return false end
  return #redis.call('XRANGE', stream, h[1], h[1]) == 1
end

-- Give a waiting job a stream entry and a fresh start: no earlier attempts, no earlier output.
local function add_entry(model, id)
  local job = job_key(id)
  if redis.call('HGET', job, 'status') ~= 'queued' then
    redis.call('LREM', queue_key(model), -1, id)   -- the hash has expired: nothing is left to run
    return
  end
  local old = redis.call('HGET', job, 'sid')
  if old then redis.call('XDEL', stream_key(model), old) end
  local sid = redis.call('XADD', stream_key(model), '*', 'j', id)
  redis.call('HSET', job, 'sid', sid, 'attempt', 0)
  redis.call('HDEL', job, 'exec', 'ended_at', 'deadline_ms', 'alone', 'moved')
  redis.call('PERSIST', job)                       -- RQ's requeue leaves the failed job's lifetime running
  if redis.call('EXISTS', log_key(id)) == 1 then
    redis.call('RENAME', log_key(id), previous_key(id))
    redis.call('EXPIRE', previous_key(id), LOG_TTL_S)
  end
  take_again(id)
  note(job, 'queued')
  join(model, id, sid)
  wake(model)
end

-- The first index of the list's unstreamed tail, by galloping back from its end and bisecting. Counted from the end:
-- Redis 6.2 walks to a positive index from the head.
local function tail_start(queue, stream, length)
  local low, high, step = -1, length - 1, 1
  while high > 0 do
    local probe = math.max(length - 1 - step, 0)
    if streamed(stream, redis.call('LINDEX', queue, probe - length)) then low = probe break end
    high, step = probe, step * 2
  end
  while high - low > 1 do
    local middle = math.floor((low + high) / 2)
    if streamed(stream, redis.call('LINDEX', queue, middle - length)) then low = middle else high = middle end
  end
  return high
end

-- Ids that others pushed stand at the tail (requeue) or at the head (requeue at the front). O(1) when in step.
local function sync(model)
  local queue, stream = queue_key(model), stream_key(model)
  local length = redis.call('LLEN', queue)
  if length == 0 then return end
  if not streamed(stream, redis.call('LINDEX', queue, -1)) then
    local first = tail_start(queue, stream, length)
    local ids = {}
    for i = first, math.min(first + SYNC_MAX, length) - 1 do ids[#ids + 1] = redis.call('LINDEX', queue, i - length) end
    for _, id in ipairs(ids) do
      if not streamed(stream, id) then add_entry(model, id) end
    end
  end
  if streamed(stream, redis.call('LINDEX', queue, 0)) then return end
  for _, id in ipairs(redis.call('LRANGE', queue, 0, SYNC_MAX - 1)) do
    if streamed(stream, id) then break end
    add_entry(model, id)
  end
end

-- Append events to a job's log and tell its subscribers. `first` is the number of the first event; those already in
-- the log (a retry) are not written again, but are told again: readers drop repeats by number.
local function append_events(id, subscribers, first, events, outbox)
  local log = log_key(id)
  local have = redis.call('LLEN', log)
  if have < first then return false end
  for i = have - first + 1, #events do redis.call('RPUSH', log, events[i]) end
  if have == 0 then redis.call('EXPIRE', log, LOG_TTL_S) end
  local message = '["' .. id .. '",' .. first .. ',[' .. table.concat(events, ',') .. ']]'
  for channel in string.gmatch(subscribers or '', '%S+') do
    outbox[channel] = outbox[channel] or {}
    table.insert(outbox[channel], message)
  end
  return true
end

local function publish(outbox)
  for channel, messages in pairs(outbox) do
    redis.call('PUBLISH', channel, '[' .. table.concat(messages, ',') .. ']')
  end
end

-- A job has got on since its last claim: should its worker die now, that is no more its fault than any other's. If it
-- ran alone, its worker may run others again.
local function acquit(id, alone, worker)
  redis.call('HSET', job_key(id), 'moved', 1)
  if alone then
    redis.call('HDEL', job_key(id), 'alone')
    redis.call('DEL', suspect_key(worker))
  end
end

-- Close a job: its entry, its lease, its registry, its lifetime. Only failed jobs keep what the user sent, since only
-- they can run again.
local function close(model, id, status, iso, ttl_s)
  local job = job_key(id)
  local h = redis.call('HMGET', job, 'sid', 'exec', 'idempotency', 'alone', 'worker_name', 'keep_s', 'notify', 'tenant')
  if h[1] then drop_entry(model, h[1]) end
  if h[2] then redis.call('ZREM', started_key(model), id .. ':' .. h[2]) end
  if h[4] then redis.call('DEL', suspect_key(h[5])) end
  redis.call('ZREM', leases_key(model), id)
  let_go(id)
  redis.call('HDEL', job, 'sid', 'exec', 'alone', 'moved')
  redis.call('HSET', job, 'status', status, 'ended_at', iso)
  if status ~= 'failed' then redis.call('HDEL', job, 'payload') end
  if status == 'finished' and (h[3] or '') ~= '' then ttl_s = math.max(ttl_s, IDEMPOTENCY_TTL_S) end
  ttl_s = math.max(ttl_s, tonumber(h[6] or 0))
  if h[7] == '1' then redis.call('RPUSH', NOTICES, id .. ' ' .. h[8]) end
  local registry = ({ finished = finished_key, failed = failed_key, canceled = canceled_key })[status](model)
  local now_s = math.floor(now_ms() / 1000)
  redis.call('ZREMRANGEBYSCORE', registry, '-inf', now_s)
  redis.call('ZADD', registry, now_s + ttl_s, id)
  live(registry, ttl_s + 3600)
  -- `rq requeue --all` dies on a registered id without a hash.
  redis.call('EXPIRE', job, status == 'failed' and ttl_s + 3600 or ttl_s)
  redis.call('EXPIRE', log_key(id), ttl_s)
  note(job, status)
  -- Its worker may have passed over others that were too wide beside it.
  if width_of(id) > 1 and redis.call('LLEN', queue_key(model)) > 0 then wake(model) end
end

-- The time between two ends, were they spread evenly: what this job took, over how many ran with it. nil if unknown.
local function usual_gap(model, id)
  local h = redis.call('HMGET', job_key(id), 'deadline_ms', 'run_ms')
  if not h[1] then return nil end
  local took = now_ms() - (h[1] - h[2])
  return took / (redis.call('ZCARD', leases_key(model)) + 1)
end

-- What a claimed job really took, instead of what it was thought to take.
local function correct(model, id, tokens)
  local place = place_of(job_key(id))
  charge_both(model, place, tokens - place.cost)
  correct_limits(id, math.floor(tokens - place.cost))
  note_rate(model, tokens, usual_gap(model, id))
end

local function fields_from(first)
  local fields = { idempotency = '', subscribers = '', tenant = '' }   -- as far as there is nothing to say
  for i = first, #ARGV, 2 do fields[ARGV[i]] = ARGV[i + 1] end
  return fields
end

local function accept(model, id, fields, first)
  redis.call('HSET', job_key(id), unpack(ARGV, first))
  redis.call('HSET', job_key(id), 'cost', cost_of(model, tonumber(fields.prompt_tokens), tonumber(fields.output_max)))
  redis.call('RPUSH', queue_key(model), id)
  redis.call('SADD', QUEUES, queue_key(model))
  sync(model)
end

local function subscribe(id, channel)
  local job = job_key(id)
  local h = redis.call('HMGET', job, 'status', 'subscribers')
  if channel ~= '' and (h[1] == 'queued' or h[1] == 'started') then
    for other in string.gmatch(h[2] or '', '%S+') do
      if other == channel then return h[1] end
    end
    redis.call('HSET', job, 'subscribers', (h[2] or '') .. ' ' .. channel)
  end
  return h[1]
end

-- The job that this key made before, if it is still worth anything: {job, fingerprint, created_ms}
local function earlier(key)
  local known = key ~= '' and redis.call('GET', idempotency_key(key))
  if not known then return nil end
  local id, fingerprint, created = string.match(known, '^(%S+) (%S+) (%S+)$')
  local status = redis.call('HGET', job_key(id), 'status')
  return { id, fingerprint, created, status == 'queued' or status == 'started' or status == 'finished' }
end

-- enqueue model id jobs_max tokens_max bytes_max, of the record that is stored with the job (key '' for none) key data
-- ttl_s most index, (field value)* -> {ok|duplicate|attached|reused|<refusal>, jobs ahead, or bytes stored, wait in
-- milliseconds, job, created_ms, and of the key's limits: requests and tokens left, milliseconds until they are full}
function verbs.enqueue(model, id, jobs_max, tokens_max, bytes_max, key, data, ttl_s, most, index)
  local fields = fields_from(12)
  local record = record_of(fields.tenant, id, fields.created_ms, key, data, ttl_s, most, index)
  local place = { class = tonumber(fields.class), tenant = fields.tenant, bytes = #fields.payload }
  local jobs, _, wait = ahead(model, place.class)
  if redis.call('EXISTS', job_key(id)) == 1 then return { 'duplicate', jobs, wait, id, fields.created_ms } end
  local before = earlier(fields.idempotency)
  if before and before[2] ~= fields.fingerprint then return { 'reused', 0, 0, before[1], before[3] } end
  if before and before[4] then
    subscribe(before[1], fields.subscribers)
    return { 'attached', 0, 0, before[1], before[3] }
  end
  place.cost = cost_of(model, tonumber(fields.prompt_tokens), tonumber(fields.output_max))
  local limit, limit_ms = over_limit(fields, place.cost)
  if limit ~= '' then return { limit, 0, limit_ms, id, fields.created_ms } end
  local stored = over_storage(record)
  if stored then return { 'storage_full', stored, 0, id, fields.created_ms } end
  local bounds = { jobs = tonumber(jobs_max), tokens = tonumber(tokens_max), bytes = tonumber(bytes_max) }
  local reason = refusal(model, place, bounds, tonumber(fields.patience_ms))
  if reason ~= '' then return { reason, jobs, wait, id, fields.created_ms } end
  accept(model, id, fields, 12)
  write_record(record)
  if fields.idempotency ~= '' then
    local known = id .. ' ' .. fields.fingerprint .. ' ' .. fields.created_ms
    redis.call('SET', idempotency_key(fields.idempotency), known, 'EX', IDEMPOTENCY_TTL_S)
  end
  return { 'ok', jobs, wait, id, fields.created_ms, take_limits(id, fields, place.cost) }
end

-- charge tenant limits -> milliseconds until the key may send its next request
function verbs.charge(tenant, limits)
  return charge_request(tenant, limits_of({ limits = limits }))
end

-- store tenant id created_ms key data ttl_s most index -> {ok|storage_full, bytes stored}
function verbs.store(tenant, id, created_ms, key, data, ttl_s, most, index)
  local record = record_of(tenant, id, created_ms, key, data, ttl_s, most, index)
  local stored = over_storage(record)
  if stored then return { 'storage_full', stored } end
  write_record(record)
  return { 'ok', 0 }
end

-- discard tenant key index id -> how many records are gone
function verbs.discard(tenant, key, index, id)
  return drop_record(tenant, key, index, id)
end

-- attach id channel -> the job's state; '' when there is no such job. Its events are published there, too.
function verbs.attach(id, channel)
  return subscribe(id, channel) or ''
end

-- What a claim answers for a job: {id, attempt, payload, log, late, milliseconds left to run, alone, milliseconds
-- since it was queued or handed over, trace context}
local function delivery(id)
  local job, now = job_key(id), now_ms()
  local h = redis.call('HMGET', job, 'sid', 'attempt', 'payload', 'patience_ms', 'deadline_ms', 'alone', 'trace')
  local late = ''
  local waited = now - string.match(h[1], '^%d+')  -- an entry's id is the time it was queued
  if h[2] == '1' and waited > tonumber(h[4] or 0) then late = 'queue' end
  local left = h[5] and h[5] - now or ''
  if left ~= '' and left <= 0 then late = 'run' end
  local log = redis.call('LRANGE', log_key(id), 0, -1)
  return { id, tonumber(h[2]), h[3] or '', log, late, left, h[6] and 1 or 0, waited, h[7] or '' }
end

local function start(claim, id, attempt)
  local job, now = job_key(id), now_ms()
  local h = redis.call('HMGET', job, 'run_ms', 'deadline_ms')
  local run_ms = tonumber(h[1] or 0)
  if not h[2] and run_ms > 0 then redis.call('HSET', job, 'deadline_ms', now + run_ms) end
  redis.call('HSET', job, 'status', 'started', 'started_at', claim.iso, 'last_heartbeat', claim.iso,
             'worker_name', claim.worker, 'exec', claim.exec, 'attempt', attempt)
  redis.call('PERSIST', job)
  redis.call('ZADD', started_key(claim.model), math.floor(now / 1000) + RUNNING_S, id .. ':' .. claim.exec)
  redis.call('ZADD', leases_key(claim.model), now + claim.lease_ms, id)
  if attempt == claim.attempts_max and attempt > 1 then
    redis.call('HSET', job, 'alone', 1)
    redis.call('SET', suspect_key(claim.worker), id, 'EX', SUSPECT_TTL_S)
  else
    redis.call('HDEL', job, 'alone')
  end
  redis.call('HDEL', job, 'moved')
  note(job, 'claimed by ' .. claim.worker .. ', attempt ' .. attempt)
  return id
end

-- Another tool has ended a running job, or deleted it: its entry is all that is left.
local function forget(model, id, status)
  local sid = redis.call('HGET', job_key(id), 'sid')
  if status and status ~= 'queued' and sid then
    drop_entry(model, sid)
    redis.call('HDEL', job_key(id), 'sid', 'exec')
  elseif not status then
    for _, entry in ipairs(redis.call('XRANGE', stream_key(model), '-', '+', 'COUNT', SWEEP_MAX)) do
      if entry[2][2] == id then drop_entry(model, entry[1]) end
    end
  end
end

-- Take over a job whose lease has run out. Attempts count those in which it did not get on; on the last one it runs
-- alone, one at a time on a worker: if it kills its worker again, the others that were there did not.
local function reclaim(claim, id)
  local h = redis.call('HMGET', job_key(id), 'status', 'exec', 'attempt', 'worker_name', 'moved')
  if h[1] ~= 'started' then
    redis.call('ZREM', leases_key(claim.model), id)
    forget(claim.model, id, h[1])
    return nil
  end
  local attempt = (h[5] and h[2]) and 2 or tonumber(h[3] or 0) + 1
  local suspect = h[2] and redis.call('GET', suspect_key(h[4]))
  if suspect and suspect ~= id then attempt = math.min(attempt, tonumber(h[3])) end
  if attempt == claim.attempts_max and attempt > 1 and redis.call('EXISTS', suspect_key(claim.worker)) == 1 then
    return nil
  end
  if h[2] then
    redis.call('ZREM', started_key(claim.model), id .. ':' .. h[2])
    note(job_key(id), 'lease lost by ' .. h[4])
  end
  if suspect == id then redis.call('EXPIRE', suspect_key(h[4]), CLAIM_TTL_S) end
  return start(claim, id, attempt)
end

-- A waiting job. Other tools may have cancelled or deleted it meanwhile.
local function claim_waiting(claim, sid, id)
  local h = redis.call('HMGET', job_key(id), 'status', 'sid')
  if h[1] ~= 'queued' or h[2] ~= sid then
    drop_entry(claim.model, sid)
    return nil
  end
  unlist(claim.model, id, sid)
  return start(claim, id, 1)
end

-- Jobs that were running, since a lease has run out or its owner has let go of it. One that would have to wait in this
-- worker for a place is left to another for a moment.
local function claim_lapsed(claim, ids)
  local leases, now, most = leases_key(claim.model), now_ms(), claim.limit + 64
  local lapsed = redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'WITHSCORES', 'LIMIT', 0, most)
  for i = 1, #lapsed, 2 do
    if #ids >= claim.limit or claim.room <= 0 then return end
    local id, width = lapsed[i], width_of(lapsed[i])
    if width <= claim.room or now - lapsed[i + 1] > ELSEWHERE_MS then
      local claimed = reclaim(claim, id)
      if claimed then claim.room = claim.room - width end
      ids[#ids + 1] = claimed
    end
  end
end

local function claim_jobs(claim)
  local ids, model, dry = {}, claim.model, false
  sync(model)
  claim_lapsed(claim, ids)
  if redis.call('EXISTS', SUSPENDED, paused_key(model)) > 0 then return ids end
  while not dry and #ids < claim.limit and claim.room > 0 do
    local sid, id = take_next(model, claim.widest)
    local claimed = sid and claim_waiting(claim, sid, id)
    if claimed then
      ids[#ids + 1] = claimed
      claim.room = claim.room - width_of(id)
    end
    dry = not sid
  end
  dry = dry and not next(claim.widest)             -- else there may be some that are too wide for this worker
  if redis.call('LLEN', queue_key(model)) == 0 then
    redis.call('DEL', load_key(model))             -- whatever other tools did meanwhile, nobody waits
    if dry then redis.call('DEL', wake_key(model)) end
  elseif dry then                                  -- whoever still stands on the list has lost its lane
    for _, id in ipairs(redis.call('LRANGE', queue_key(model), 0, SYNC_MAX - 1)) do
      add_entry(model, id)
    end
  end
  return ids
end

-- claim model worker exec iso lease_ms limit room attempts_max widest tenant* -> delivery*. `widest` bounds the jobs of
-- these tenants. A repeated claim gets the same.
function verbs.claim(model, worker, exec, iso, lease_ms, limit, room, attempts_max, widest)
  local claim = { model = model, worker = worker, exec = exec, iso = iso, lease_ms = tonumber(lease_ms),
                  limit = tonumber(limit), room = tonumber(room), attempts_max = tonumber(attempts_max),
                  widest = {} }
  for i = 11, #ARGV do claim.widest[ARGV[i]] = tonumber(widest) end
  local ids = {}
  local before = redis.call('GET', claim_key(exec))
  if before then
    for id in string.gmatch(before, '%S+') do
      if redis.call('HGET', job_key(id), 'exec') == exec then ids[#ids + 1] = id end
    end
  else
    ids = claim_jobs(claim)
    if ids[1] then redis.call('SET', claim_key(exec), table.concat(ids, ' '), 'EX', CLAIM_TTL_S) end
  end
  if ids[1] and redis.call('EXISTS', worker_key(worker)) == 1 then
    redis.call('HSET', worker_key(worker), 'state', 'busy', 'current_job', ids[1])
  end
  local answer = {}
  for _, id in ipairs(ids) do answer[#answer + 1] = delivery(id) end
  return answer
end

-- sync model -> how many jobs wait. What another tool has queued is counted from now on, also while no worker claims.
function verbs.sync(model)
  sync(model)
  return redis.call('LLEN', queue_key(model))
end

-- append (id exec first count event*)* -> {{id, -1 when it is no longer the caller's, else the length of a log that
-- is shorter than the caller thinks: Redis has lost its end}*}
function verbs.append()
  local refused, outbox, i = {}, {}, 2
  while i <= #ARGV do
    local id, exec, first, count = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
    local events = {}
    for k = 1, count do events[k] = ARGV[i + 3 + k] end
    i = i + 4 + count
    local h = redis.call('HMGET', job_key(id), 'exec', 'status', 'subscribers', 'moved', 'alone', 'worker_name')
    if h[1] ~= exec or h[2] ~= 'started' then
      refused[#refused + 1] = { id, -1 }
    elseif not append_events(id, h[3], first, events, outbox) then
      refused[#refused + 1] = { id, redis.call('LLEN', log_key(id)) }
    elseif not h[4] and first + count > 1 then     -- more than its opening
      acquit(id, h[5], h[6])
    end
  end
  publish(outbox)
  return refused
end

-- settle model id exec status iso ttl_s worker exc tokens output first event* -> settled | lost | the length of a log
-- that is shorter than the caller thinks
function verbs.settle(model, id, exec, status, iso, ttl_s, worker, exc, tokens, output)
  local h = redis.call('HMGET', job_key(id), 'exec', 'status', 'subscribers', 'sid')
  if h[1] ~= exec then return 'lost' end
  if h[2] ~= 'started' then                        -- RQ cancelled or abandoned it: only our entry is left
    if h[4] then drop_entry(model, h[4]) end
    redis.call('ZREM', started_key(model), id .. ':' .. exec)
    redis.call('ZREM', leases_key(model), id)
    redis.call('HDEL', job_key(id), 'sid', 'exec')
    return 'lost'
  end
  local events, outbox = {}, {}
  for i = 13, #ARGV do events[#events + 1] = ARGV[i] end
  if not append_events(id, h[3], tonumber(ARGV[12]), events, outbox) then return redis.call('LLEN', log_key(id)) end
  close(model, id, status, iso, tonumber(ttl_s))
  correct(model, id, tonumber(tokens))
  if status == 'finished' then note_output(model, tonumber(output)) end
  if exc ~= '' then
    redis.call('XADD', results_key(id), 'MAXLEN', 10, '*', 'type', 2, 'worker_name', worker, 'exc_string', exc)
    redis.call('EXPIRE', results_key(id), ttl_s)
  end
  local counter = status == 'finished' and 'successful_job_count' or 'failed_job_count'
  if status ~= 'canceled' and redis.call('EXISTS', worker_key(worker)) == 1 then
    redis.call('HINCRBY', worker_key(worker), counter, 1)
  end
  publish(outbox)
  return 'settled'
end

-- renew worker iso ttl_s lease_ms (model id exec)* -> ids that are no longer the caller's
function verbs.renew(worker, iso, ttl_s, lease_ms)
  local lost, held, until_ms = {}, nil, now_ms() + lease_ms
  for i = 6, #ARGV, 3 do
    local model, id, exec = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    local h = redis.call('HMGET', job_key(id), 'exec', 'status')
    if h[1] == exec and h[2] == 'started' then
      held = held or id
      redis.call('ZADD', leases_key(model), until_ms, id)
      redis.call('HSET', job_key(id), 'last_heartbeat', iso)
    else
      lost[#lost + 1] = id
    end
  end
  local key = worker_key(worker)
  redis.call('HSET', key, 'last_heartbeat', iso, 'state', held and 'busy' or 'idle')
  if held then redis.call('HSET', key, 'current_job', held) else redis.call('HDEL', key, 'current_job') end
  redis.call('EXPIRE', key, ttl_s)
  return lost
end

-- release model worker (id exec)* -> how many. The next claim anywhere goes on with them.
function verbs.release(model, worker)
  local released = 0
  for i = 4, #ARGV, 2 do
    local id, exec = ARGV[i], ARGV[i + 1]
    local job = job_key(id)
    local h = redis.call('HMGET', job, 'exec', 'status', 'sid')
    if h[1] == exec and h[2] == 'started' then
      redis.call('HDEL', job, 'exec')
      redis.call('HINCRBY', job, 'attempt', -1)
      redis.call('ZREM', started_key(model), id .. ':' .. exec)
      redis.call('ZADD', leases_key(model), now_ms(), id)
      redis.call('HSET', job, 'sid', redis.call('XADD', stream_key(model), '*', 'j', id))
      redis.call('XDEL', stream_key(model), h[3])
      note(job, 'released by ' .. worker)
      wake(model)
      released = released + 1
    end
  end
  redis.call('DEL', suspect_key(worker))
  return released
end

local function cancel(id, iso, ttl_s, event, who)
  local h = redis.call('HMGET', job_key(id), 'status', 'origin', 'sid', 'worker_name', 'subscribers')
  local status, model, outbox = h[1], h[2], {}
  if status ~= 'queued' and status ~= 'started' then return status or '' end
  append_events(id, h[5], redis.call('LLEN', log_key(id)), { event }, outbox)
  note(job_key(id), 'cancelled by ' .. who)
  if status == 'queued' then
    unlist(model, id, h[3])
    step_out(model, id, h[3] or '')
    correct_limits(id, -place_of(job_key(id)).cost)
    close(model, id, 'canceled', iso, ttl_s)
  else
    close(model, id, 'canceled', iso, ttl_s)
    correct(model, id, tonumber(redis.call('HGET', job_key(id), 'prompt_tokens') or 0) + redis.call('LLEN', log_key(id)))
    redis.call('PUBLISH', control_key(h[4] or ''), id)
  end
  publish(outbox)
  return status
end

-- cancel id iso ttl_s event who -> the state the job was in; '' when there is no such job
function verbs.cancel(id, iso, ttl_s, event, who)
  return cancel(id, iso, tonumber(ttl_s), event, who)
end

-- leave id iso ttl_s event channel -> as cancel; 'kept' when others still read the job
function verbs.leave(id, iso, ttl_s, event, channel)
  local others = {}
  for other in string.gmatch(redis.call('HGET', job_key(id), 'subscribers') or '', '%S+') do
    if other ~= channel and redis.call('PUBSUB', 'NUMSUB', other)[2] > 0 then others[#others + 1] = other end
  end
  if others[1] then
    redis.call('HSET', job_key(id), 'subscribers', table.concat(others, ' '))
    return 'kept'
  end
  return cancel(id, iso, tonumber(ttl_s), event, 'its client')
end

-- replay origin id (field value)* -> {ok | replayed | the state that forbids it | '', the job that replays it}
function verbs.replay(origin, id)
  local h = redis.call('HMGET', job_key(origin), 'status', 'origin', 'replayed_as')
  if not h[1] then return { '', '' } end
  if h[3] and h[1] == 'failed' then return { h[3] == id and 'ok' or 'replayed', h[3] } end
  if h[1] ~= 'failed' then return { h[1], '' } end
  redis.call('ZREM', failed_key(h[2]), origin)
  redis.call('HSET', job_key(origin), 'replayed_as', id)
  note(job_key(origin), 'replayed as ' .. id)
  accept(h[2], id, fields_from(4), 4)
  return { 'ok', id }
end

-- forget_model model -> {jobs that wait or run, workers alive}: nothing is forgotten unless both are 0. What ended is kept as
-- long as it would have been; while failed jobs are among it, their queue stays listed, so that they can be found.
function verbs.forget_model(model)
  local jobs = redis.call('LLEN', queue_key(model)) + redis.call('ZCARD', leases_key(model))
  local workers = 0
  for _, key in ipairs(redis.call('SMEMBERS', workers_of_key(model))) do
    workers = workers + redis.call('EXISTS', key)
  end
  if jobs > 0 or workers > 0 then return { jobs, workers } end
  redis.call('SREM', MODELS, model)
  redis.call('DEL', model_key(model), paused_key(model), pace_key(model), workers_of_key(model))
  if redis.call('EXISTS', failed_key(model)) == 0 then redis.call('SREM', QUEUES, queue_key(model)) end
  return { 0, 0 }
end

return verbs
