-- The queue inside Redis: one script, the verb in ARGV[1]. Every change of state is one call, so it happens whole or
-- not at all, and sending it again (a retry after a lost reply) changes nothing more.
-- Key names come from keys.py, which is put in front of this file and documents every key.
--
-- A job is owned by whoever holds its `exec`, a token new with every claim. Nothing is written for a job without it.
-- Its stream entry is named by `sid`. The list rq:queue:{model} and the stream are kept in step by sync(): whatever
-- stands on the list without an entry (our own enqueue, or a plain `rq requeue`) gets one.

local verbs = {}
local STARTED_GRACE_S = 600     -- plain RQ calls a running job abandoned after this long without a heartbeat
local LOG_TTL_S = 7 * 86400     -- no log outlives this, even if nobody ever settles its job
local SYNC_MAX = 256

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
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
  local sid = redis.call('XADD', stream_key(model), '*', 'j', id)
  redis.call('HSET', job, 'sid', sid, 'attempt', 0)
  redis.call('HDEL', job, 'exec', 'ended_at')
  redis.call('PERSIST', job)                       -- RQ's requeue leaves the failed job's lifetime running
  redis.call('DEL', log_key(id))
end

-- The first index of the list's unstreamed tail, by galloping back from its end and bisecting.
local function tail_start(queue, stream, length)
  local low, high, step = -1, length - 1, 1
  while high > 0 do
    local probe = math.max(length - 1 - step, 0)
    if streamed(stream, redis.call('LINDEX', queue, probe)) then low = probe break end
    high, step = probe, step * 2
  end
  while high - low > 1 do
    local middle = math.floor((low + high) / 2)
    if streamed(stream, redis.call('LINDEX', queue, middle)) then low = middle else high = middle end
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
    for _, id in ipairs(redis.call('LRANGE', queue, first, math.min(first + SYNC_MAX, length) - 1)) do
      if not streamed(stream, id) then add_entry(model, id) end
    end
  end
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

-- Seconds between settled jobs while others waited: what a computed Retry-After rests on.
local function note_rate(model)
  local rate, now = rate_key(model), now_ms()
  local h = redis.call('HMGET', rate, 'last_ms', 'interval_ms')
  if h[1] and redis.call('LLEN', queue_key(model)) > 0 then
    local gap = math.min(now - h[1], 60000)
    local smoothed = h[2] and (0.9 * h[2] + 0.1 * gap) or gap
    redis.call('HSET', rate, 'interval_ms', tostring(smoothed))
  end
  redis.call('HSET', rate, 'last_ms', now)
  redis.call('EXPIRE', rate, 86400)
end

-- Close a job: its entry, its place among the running, its registry, its lifetime. Only failed jobs keep what the
-- user sent, since only they can run again.
local function close(model, id, sid, exec, status, iso, ttl_s)
  local job = job_key(id)
  if sid then
    redis.call('XACK', stream_key(model), GROUP, sid)
    redis.call('XDEL', stream_key(model), sid)
  end
  if exec then redis.call('ZREM', started_key(model), id .. ':' .. exec) end
  redis.call('HDEL', job, 'sid', 'exec')
  redis.call('HSET', job, 'status', status, 'ended_at', iso)
  if status ~= 'failed' then redis.call('HDEL', job, 'payload') end
  local registry = ({ finished = finished_key, failed = failed_key, canceled = canceled_key })[status]
  redis.call('ZADD', registry(model), math.floor(now_ms() / 1000) + ttl_s, id)
  redis.call('EXPIRE', job, ttl_s + 3600)          -- `rq requeue --all` dies on a registered id without a hash
  redis.call('EXPIRE', log_key(id), ttl_s)
  note_rate(model)
end

-- enqueue model id jobs_max (field value)* -> {ok|duplicate|full, jobs waiting, ms between jobs}
function verbs.enqueue(model, id, jobs_max)
  local queue, job = queue_key(model), job_key(id)
  local depth = redis.call('LLEN', queue)
  if redis.call('EXISTS', job) == 1 then return { 'duplicate', depth, '' } end
  if depth >= tonumber(jobs_max) then
    return { 'full', depth, redis.call('HGET', rate_key(model), 'interval_ms') or '' }
  end
  redis.call('HSET', job, unpack(ARGV, 5))
  redis.call('RPUSH', queue, id)
  redis.call('SADD', QUEUES, queue)
  sync(model)
  return { 'ok', depth, '' }
end

local function drop_entry(model, sid)
  redis.call('XACK', stream_key(model), GROUP, sid)
  redis.call('XDEL', stream_key(model), sid)
end

local function start(model, worker, exec, iso, sid, id)
  local job = job_key(id)
  local attempt = redis.call('HINCRBY', job, 'attempt', 1)
  redis.call('HSET', job, 'status', 'started', 'started_at', iso, 'last_heartbeat', iso,
             'worker_name', worker, 'exec', exec)
  redis.call('PERSIST', job)
  redis.call('ZADD', started_key(model), math.floor(now_ms() / 1000) + STARTED_GRACE_S, id .. ':' .. exec)
  local h = redis.call('HMGET', job, 'payload', 'patience_ms')
  local waited = now_ms() - string.match(sid, '^%d+')      -- an entry's id is the time it was queued
  local late = attempt == 1 and waited > tonumber(h[2] or 0)
  return { id, sid, attempt, h[1] or '', redis.call('LRANGE', log_key(id), 0, -1), late and 1 or 0 }
end

-- Take over a delivered entry whose owner has been silent for a lease, or that nobody started.
local function reclaim(model, worker, exec, iso, sid)
  local entry = redis.call('XRANGE', stream_key(model), sid, sid)[1]
  if not entry then
    redis.call('XACK', stream_key(model), GROUP, sid)
    return nil
  end
  local id = entry[2][2]
  local h = redis.call('HMGET', job_key(id), 'status', 'sid', 'exec')
  if h[3] then redis.call('ZREM', started_key(model), id .. ':' .. h[3]) end
  if h[2] ~= sid or (h[1] ~= 'started' and h[1] ~= 'queued') then
    drop_entry(model, sid)
    return nil
  end
  if h[1] == 'queued' then redis.call('LREM', queue_key(model), 1, id) end
  redis.call('XCLAIM', stream_key(model), GROUP, worker, 0, sid, 'JUSTID')
  return start(model, worker, exec, iso, sid, id)
end

-- A fresh entry. The list is only searched for jobs that run, whose id stands at its head.
local function claim_entry(model, worker, exec, iso, sid, id)
  local h = redis.call('HMGET', job_key(id), 'status', 'sid')
  if h[1] ~= 'queued' or h[2] ~= sid then
    drop_entry(model, sid)
    return nil
  end
  redis.call('LREM', queue_key(model), 1, id)
  return start(model, worker, exec, iso, sid, id)
end

-- The pairs from ARGV[8] on are entries that the worker has just read by a blocking XREADGROUP.
local function claim_jobs(model, worker, exec, iso, lease_ms, limit)
  local stream, jobs = stream_key(model), {}
  limit = tonumber(limit)
  local idle = redis.pcall('XPENDING', stream, GROUP, 'IDLE', lease_ms, '-', '+', limit)
  if idle.err then                                 -- first use, or somebody flushed Redis
    redis.call('XGROUP', 'CREATE', stream, GROUP, '0', 'MKSTREAM')
    idle = {}
  end
  sync(model)
  for i = 8, #ARGV, 2 do jobs[#jobs + 1] = claim_entry(model, worker, exec, iso, ARGV[i], ARGV[i + 1]) end
  if redis.call('EXISTS', SUSPENDED) == 1 then return jobs end
  for _, pending in ipairs(idle) do
    if #jobs >= limit then return jobs end
    jobs[#jobs + 1] = reclaim(model, worker, exec, iso, pending[1])
  end
  while #jobs < limit do
    local read = redis.call('XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', limit - #jobs, 'STREAMS', stream, '>')
    if not read then break end
    for _, entry in ipairs(read[1][2]) do
      jobs[#jobs + 1] = claim_entry(model, worker, exec, iso, entry[1], entry[2][2])
    end
  end
  return jobs
end

-- claim model worker exec iso lease_ms limit (sid id)* -> {{id, sid, attempt, payload, log, late}*}
function verbs.claim(model, worker, exec, iso, lease_ms, limit)
  local jobs = claim_jobs(model, worker, exec, iso, lease_ms, limit)
  if jobs[1] and redis.call('EXISTS', worker_key(worker)) == 1 then
    redis.call('HSET', worker_key(worker), 'state', 'busy', 'current_job', jobs[1][1])
  end
  return jobs
end

-- append (id exec first count event*)* -> ids that are no longer the caller's
function verbs.append()
  local lost, outbox, i = {}, {}, 2
  while i <= #ARGV do
    local id, exec, first, count = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
    local events = {}
    for k = 1, count do events[k] = ARGV[i + 3 + k] end
    i = i + 4 + count
    local h = redis.call('HMGET', job_key(id), 'exec', 'status', 'subscribers')
    if h[1] ~= exec or h[2] ~= 'started' or not append_events(id, h[3], first, events, outbox) then
      lost[#lost + 1] = id
    end
  end
  publish(outbox)
  return lost
end

-- settle model id exec status iso ttl_s worker exc first event* -> settled | lost
function verbs.settle(model, id, exec, status, iso, ttl_s, worker, exc, first)
  local h = redis.call('HMGET', job_key(id), 'exec', 'status', 'subscribers', 'sid')
  if h[1] ~= exec then return 'lost' end
  if h[2] ~= 'started' then                        -- RQ cancelled or abandoned it: only our entry is left
    if h[4] then drop_entry(model, h[4]) end
    redis.call('ZREM', started_key(model), id .. ':' .. exec)
    redis.call('HDEL', job_key(id), 'sid', 'exec')
    return 'lost'
  end
  local events, outbox = {}, {}
  for i = 11, #ARGV do events[#events + 1] = ARGV[i] end
  if not append_events(id, h[3], tonumber(first), events, outbox) then return 'lost' end
  close(model, id, h[4], exec, status, iso, tonumber(ttl_s))
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

-- renew worker iso ttl_s (model id sid exec)* -> ids that are no longer the caller's
function verbs.renew(worker, iso, ttl_s)
  local lost, held = {}, nil
  for i = 5, #ARGV, 4 do
    local model, id, sid, exec = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
    local h = redis.call('HMGET', job_key(id), 'exec', 'status')
    if h[1] == exec and h[2] == 'started' then
      held = held or id
      redis.call('XCLAIM', stream_key(model), GROUP, worker, 0, sid, 'JUSTID')
      redis.call('ZADD', started_key(model), 'XX', math.floor(now_ms() / 1000) + STARTED_GRACE_S, id .. ':' .. exec)
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

-- release model worker id exec sid -> released | lost. The next claim anywhere finds the entry idle and goes on.
function verbs.release(model, worker, id, exec, sid)
  if redis.call('HGET', job_key(id), 'exec') ~= exec then return 'lost' end
  redis.call('HDEL', job_key(id), 'exec')
  redis.call('HINCRBY', job_key(id), 'attempt', -1)
  redis.call('ZREM', started_key(model), id .. ':' .. exec)
  redis.call('XCLAIM', stream_key(model), GROUP, worker, 0, sid, 'IDLE', 86400000, 'JUSTID')
  redis.call('XADD', stream_key(model), '*', 'j', '')   -- a bell: wakes one blocked reader, is dropped by its claim
  return 'released'
end

-- cancel id iso ttl_s event -> the state the job was in; '' when there is no such job
function verbs.cancel(id, iso, ttl_s, event)
  local h = redis.call('HMGET', job_key(id), 'status', 'origin', 'sid', 'exec', 'worker_name', 'subscribers')
  local status, model, outbox = h[1], h[2], {}
  if not status then return '' end
  if status ~= 'queued' and status ~= 'started' then return status end
  append_events(id, h[6], redis.call('LLEN', log_key(id)), { event }, outbox)
  if status == 'queued' then
    redis.call('LREM', queue_key(model), 1, id)
    -- The unread entry stays for its reader to drop: deleting it would make the group's lag unknown.
    close(model, id, nil, nil, 'canceled', iso, tonumber(ttl_s))
  else
    close(model, id, h[3], h[4], 'canceled', iso, tonumber(ttl_s))
    redis.call('PUBLISH', control_key(h[5] or ''), id)
  end
  publish(outbox)
  return status
end

-- replay id iso -> the state the job was in; '' when there is no such job. Only a failed job runs again.
function verbs.replay(id, iso)
  local h = redis.call('HMGET', job_key(id), 'status', 'origin')
  if not h[1] then return '' end
  if h[1] ~= 'failed' then return h[1] end
  redis.call('ZREM', failed_key(h[2]), id)
  redis.call('HSET', job_key(id), 'status', 'queued', 'enqueued_at', iso)
  redis.call('HINCRBY', job_key(id), 'replays', 1)
  redis.call('RPUSH', queue_key(h[2]), id)
  sync(h[2])
  return 'failed'
end

return verbs[ARGV[1]](unpack(ARGV, 2, 11))
