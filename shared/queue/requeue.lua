-- RQ's list rq:queue:{model}, onto which other tools push jobs, too, and failed jobs that run again.
--
-- The list and the stream are kept in step by sync(): a job that stands on the list without a stream entry (our own
-- enqueue, or a plain `rq requeue`) gets one. A job's stream entry is named by its field `sid`.

-- part: unlist
-- needs: take_out
-- Take a job off the list of those that wait.
local function unlist(model, id, sid)
  take_out(QUEUE .. model, id, sid, function(other) return redis.call('HGET', JOB .. other, 'sid') end)
end

-- part: scheduled
-- needs: bytes
-- Forget a job that was to wait for its time.
local function unschedule(model, id)
  redis.call('ZREM', SCHEDULED .. model, id)
  redis.call('HINCRBY', SCHEDULED_LOAD .. model, 'bytes', string.format('%d', -bytes_of(id)))   -- Redis 6 knows no -0
  if redis.call('EXISTS', SCHEDULED .. model) == 0 then redis.call('DEL', SCHEDULED_LOAD .. model) end
end

-- part: sync
-- needs: add_entry, clock, scheduled
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

-- Put the jobs whose time has come onto the list.
local function list_due(model)
  local due = redis.call('ZRANGEBYSCORE', SCHEDULED .. model, '-inf', now_ms() / 1000, 'LIMIT', 0, SYNC_MAX)
  for _, id in ipairs(due) do
    unschedule(model, id)
    if redis.call('HGET', JOB .. id, 'status') == 'scheduled' then
      redis.call('HSET', JOB .. id, 'status', 'queued')
      redis.call('RPUSH', QUEUE .. model, id)
    end
  end
end

-- Ids that other tools pushed stand at the tail (requeue) or at the head (requeue at the front). O(1) when in step.
local function sync(model)
  list_due(model)
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

-- verb: replay
-- takes: origin, id, list fields
-- needs: accept, cost, timeline
-- Enqueue a failed job once more, as another job, whose fields may name another model.
-- -> {ok | replayed | the state that forbids it | '', the job that replays it}
local function replay(args)
  local origin, id = args.origin, args.id
  local status, model, replayed_as = unpack(redis.call('HMGET', JOB .. origin, 'status', 'origin', 'replayed_as'))
  if not status then return { '', '' } end
  if replayed_as and status == 'failed' then return { replayed_as == id and 'ok' or 'replayed', replayed_as } end
  if status ~= 'failed' then return { status, '' } end
  redis.call('ZREM', FAILED .. model, origin)
  redis.call('HSET', JOB .. origin, 'replayed_as', id)
  note(JOB .. origin, 'replayed as ' .. id)
  local fields = by_name(args.fields)
  local cost = cost_of(fields.origin, tonumber(fields.prompt_tokens), tonumber(fields.output_max))
  accept(fields.origin, id, args.fields, fields, cost)
  return { 'ok', id }
end
