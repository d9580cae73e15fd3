-- How jobs enter the queue: enqueued by us, or pushed onto RQ's list by other tools.
--
-- The list rq:queue:{model} and the stream are kept in step by sync(): a job that stands on the list without a stream
-- entry (our own enqueue, or a plain `rq requeue`) gets one. A job's stream entry is named by its field `sid`.

-- part: unlist
-- needs: take_out
-- Take a job off the list of those that wait.
local function unlist(model, id, sid)
  take_out(QUEUE .. model, id, sid, function(other) return redis.call('HGET', JOB .. other, 'sid') end)
end

-- part: add_entry
-- needs: push, take_again, timeline, wake
local PREVIOUS_TTL_S = 7 * 86400

-- Give a waiting job a stream entry and a fresh start: no earlier attempts, no earlier output.
local function add_entry(model, id)
  local job = JOB .. id
  if redis.call('HGET', job, 'status') ~= 'queued' then
    redis.call('LREM', QUEUE .. model, -1, id)   -- the hash has expired: nothing is left to run
    return
  end
  local old = redis.call('HGET', job, 'sid')
  if old then redis.call('XDEL', STREAM .. model, old) end
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

-- part: sync
-- needs: add_entry
local SYNC_MAX = 256

-- Is this waiting id represented by a live stream entry? A job with a claim token was claimed before: RQ's clean-up
-- abandoned it and somebody requeued it, so its old entry does not count.
local function streamed(stream, id)
  local sid, claim_token = unpack(redis.call('HMGET', JOB .. id, 'sid', 'exec'))
  if not sid or claim_token then return false end
  return #redis.call('XRANGE', stream, sid, sid) == 1
end

-- The first index of the list's tail that has no entries, found by galloping back from the list's end and bisecting.
-- Indexes are counted from the end, since Redis 6.2 walks to a positive index from the head.
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

-- Ids that other tools pushed stand at the tail (requeue) or at the head (requeue at the front). O(1) when in step.
local function sync(model)
  local queue, stream = QUEUE .. model, STREAM .. model
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

-- verb: recount
-- takes: model
-- needs: sync
-- Count what another tool has queued from now on, also while no worker claims. -> how many jobs wait
local function recount(args)
  sync(args.model)
  return redis.call('LLEN', QUEUE .. args.model)
end

-- part: accept
-- needs: cost, sync
-- Fields by name, from names and values in turn. A field that says nothing is not sent: those that are read
-- unconditionally are '' then.
local function by_name(flat)
  local fields = { idempotency = '', subscribers = '', tenant = '' }
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end

local function accept(model, id, flat, fields)
  redis.call('HSET', JOB .. id, unpack(flat))
  redis.call('HSET', JOB .. id, 'cost', cost_of(model, tonumber(fields.prompt_tokens), tonumber(fields.output_max)))
  redis.call('RPUSH', QUEUE .. model, id)
  redis.call('SADD', QUEUES, QUEUE .. model)
  sync(model)
end

-- verb: enqueue
-- takes: model, id, number jobs_max, number tokens_max, number bytes_max, list fields
-- takes: list records (key, data, number ttl_s, number bytes_max, index)
-- needs: accept, ahead, cost, idempotency, limits, record, refusal, subscribe
-- `fields` are names and values in turn; `records` holds the record that is stored with the job, if there is one.
-- -> {ok|duplicate|attached|reused|<refusal>, jobs ahead, or bytes stored, wait in milliseconds, job, created_ms, and
-- of the key's limits: requests and tokens left, milliseconds until each bucket is full}

-- The job that this idempotency key made before: its id, its fingerprint, created_ms, and whether it can still be used.
local function earlier(key)
  local known = key ~= '' and redis.call('GET', IDEMPOTENCY .. key)
  if not known then return nil end
  local id, fingerprint, created_ms = string.match(known, '^(%S+) (%S+) (%S+)$')
  local status = redis.call('HGET', JOB .. id, 'status')
  local usable = status == 'queued' or status == 'started' or status == 'finished'
  return { id = id, fingerprint = fingerprint, created_ms = created_ms, usable = usable }
end

local function enqueue(args)
  local model, id, fields = args.model, args.id, by_name(args.fields)
  local record = record_with(args.records(), fields.tenant, id, fields.created_ms)
  local place = { class = tonumber(fields.class), tenant = fields.tenant, bytes = #fields.payload }
  local jobs, _, wait = ahead(model, place.class)
  if redis.call('EXISTS', JOB .. id) == 1 then return { 'duplicate', jobs, wait, id, fields.created_ms } end
  local before = earlier(fields.idempotency)
  if before and before.fingerprint ~= fields.fingerprint then
    return { 'reused', 0, 0, before.id, before.created_ms }
  end
  if before and before.usable then
    subscribe(before.id, fields.subscribers)
    return { 'attached', 0, 0, before.id, before.created_ms }
  end
  place.cost = cost_of(model, tonumber(fields.prompt_tokens), tonumber(fields.output_max))
  local limit, limit_ms = over_limit(fields, place.cost)
  if limit ~= '' then return { limit, 0, limit_ms, id, fields.created_ms } end
  local stored = over_storage(record)
  if stored then return { 'storage_full', stored, 0, id, fields.created_ms } end
  local bounds = { jobs = args.jobs_max, tokens = args.tokens_max, bytes = args.bytes_max }
  local reason = refusal(model, place, bounds, tonumber(fields.patience_ms))
  if reason ~= '' then return { reason, jobs, wait, id, fields.created_ms } end
  accept(model, id, args.fields, fields)
  write_record(record)
  if fields.idempotency ~= '' then
    local known = id .. ' ' .. fields.fingerprint .. ' ' .. fields.created_ms
    redis.call('SET', IDEMPOTENCY .. fields.idempotency, known, 'EX', IDEMPOTENCY_TTL_S)
  end
  return { 'ok', jobs, wait, id, fields.created_ms, take_limits(id, fields, place.cost) }
end

-- verb: attach
-- takes: id, channel
-- needs: subscribe
-- Publish the job's further events to this channel as well. -> the job's state; '' when there is no such job
local function attach(args)
  return subscribe(args.id, args.channel) or ''
end

-- verb: replay
-- takes: origin, id, list fields
-- needs: accept, timeline
-- Enqueue a failed job once more, as another job. -> {ok | replayed | the state that forbids it | '', the job that
-- replays it}
local function replay(args)
  local origin, id = args.origin, args.id
  local status, model, replayed_as = unpack(redis.call('HMGET', JOB .. origin, 'status', 'origin', 'replayed_as'))
  if not status then return { '', '' } end
  if replayed_as and status == 'failed' then return { replayed_as == id and 'ok' or 'replayed', replayed_as } end
  if status ~= 'failed' then return { status, '' } end
  redis.call('ZREM', FAILED .. model, origin)
  redis.call('HSET', JOB .. origin, 'replayed_as', id)
  note(JOB .. origin, 'replayed as ' .. id)
  accept(model, id, args.fields, by_name(args.fields))
  return { 'ok', id }
end
