-- The order in which jobs are served. Jobs wait in lanes, one for each tenant of each class. The least-served class
-- comes first, and in it the least-served tenant, by tokens divided by weight. A tenant returning from idle starts at
-- the current minimum: idling earns no credit. CLASS_WEIGHT comes from Priority in job.py.
-- (Sheng et al., Fairness in Serving Large Language Models, OSDI 2024.)

-- part: take_out
-- The time in milliseconds at which a stream entry was made.
local function time_of(sid)
  return tonumber(string.match(sid or '', '^%d+') or 0)
end

-- Remove an item from a list that is roughly in the order of stream entries, searching from the end that is nearer in
-- time: to serve the last item first must not cost a walk past all others. `sid_of` returns an item's entry.
local function take_out(list, item, sid, sid_of)
  local head = redis.call('LINDEX', list, 0)
  if not head or head == item then return redis.call('LREM', list, 1, item) end
  local tail, at = redis.call('LINDEX', list, -1), time_of(sid)
  local from_tail = tail == item or time_of(sid_of(tail)) - at < at - time_of(sid_of(head))
  return redis.call('LREM', list, from_tail and -1 or 1, item)
end

-- part: served_life
local SERVED_TTL_S = 86400

-- part: activate
-- Give a member that now has jobs waiting its token counter.
local function activate(name, member)
  local line, served = LINE .. name, SERVED .. name
  if redis.call('ZSCORE', line, member) then return end
  local least = redis.call('ZRANGE', line, 0, 0, 'WITHSCORES')[2] or redis.call('ZSCORE', served, '') or 0
  local own = redis.call('ZSCORE', served, member) or 0
  redis.call('ZADD', line, math.max(tonumber(own), tonumber(least)), member)
  redis.call('ZREM', served, member)
end

-- part: deactivate
-- needs: lane, served_life
-- An idle member keeps its counter only above the minimum, which is stored under ''.
local function deactivate(name, member)
  local line, served = LINE .. name, SERVED .. name
  local own = redis.call('ZSCORE', line, member)
  if not own then return end
  redis.call('ZREM', line, member)
  local least = redis.call('ZRANGE', line, 0, 0, 'WITHSCORES')[2] or own
  redis.call('ZADD', served, own, member, least, '')
  redis.call('ZREMRANGEBYSCORE', served, '-inf', '(' .. least)
  redis.call('EXPIRE', served, SERVED_TTL_S)
end

local function deactivate_if_empty(model, place)
  local class = model .. ':' .. place.class
  if redis.call('EXISTS', lane_of(model, place)) == 1 then return end
  deactivate(class, place.tenant)
  if redis.call('EXISTS', LINE .. class) == 0 then deactivate(model, tostring(place.class)) end
end

-- part: charge
-- needs: served_life
local function charge(name, member, amount)
  local line, served = LINE .. name, SERVED .. name
  if redis.call('ZSCORE', line, member) then
    redis.call('ZINCRBY', line, amount, member)
  elseif amount > 0 or redis.call('ZSCORE', served, member) then
    local base = redis.call('ZSCORE', served, member) or redis.call('ZSCORE', served, '') or 0
    redis.call('ZADD', served, math.max(tonumber(base) + amount, 0), member)
    redis.call('EXPIRE', served, SERVED_TTL_S)
  end
end

-- Charge tokens to the tenant and to the class, each divided by its weight.
local function charge_both(model, place, tokens)
  charge(model .. ':' .. place.class, place.tenant, tokens / place.weight)
  charge(model, tostring(place.class), tokens / CLASS_WEIGHT[place.class])
end

-- part: place
-- A job's class and tenant, the tenant's weight, and the tokens that the job is expected to take.
local function place_of(job)
  local class, tenant, weight, cost = unpack(redis.call('HMGET', job, 'class', 'tenant', 'weight', 'cost'))
  class, weight, cost = tonumber(class or 1), tonumber(weight or 1), tonumber(cost or 1)
  return { class = class, tenant = tenant or '', weight = weight, cost = cost }
end

-- part: lane
local function lane_of(model, place)
  return LANE .. model .. ':' .. place.class .. ':' .. place.tenant
end

-- part: bytes
local function bytes_of(id)
  return redis.call('HSTRLEN', JOB .. id, 'payload')
end

-- part: count
-- needs: bytes
-- One more job (`sign` 1) or one job less (-1) waits.
local function count(model, id, class, cost, sign)
  redis.call('HINCRBY', LOAD .. model, 'jobs:' .. class, sign)
  redis.call('HINCRBY', LOAD .. model, 'tokens:' .. class, sign * cost)
  redis.call('HINCRBY', LOAD .. model, 'bytes', string.format('%d', sign * bytes_of(id)))   -- Redis 6 knows no -0
end

-- part: due
-- needs: take_out
local UNDATED_MS = 60000        -- a job without a date is overtaken by jobs that are due within this time of its coming
local LOOK_BACK_MAX = 256       -- jobs that one may overtake

local function due_of(sid, id)
  return tonumber(redis.call('HGET', JOB .. id, 'due_ms') or time_of(sid) + UNDATED_MS)
end

-- Put an item into a lane behind those that are due before it.
local function add_by_due(lane, item, due)
  local later
  for back = 1, LOOK_BACK_MAX do
    local other = redis.call('LINDEX', lane, -back)
    if not other or due_of(string.match(other, '^(%S+) (%S+)')) <= due then break end
    later = other
  end
  if later then redis.call('LINSERT', lane, 'BEFORE', later, item) else redis.call('RPUSH', lane, item) end
end

-- part: push
-- needs: activate, count, due, lane, place
local function push(model, id, sid)
  local place = place_of(JOB .. id)
  add_by_due(lane_of(model, place), sid .. ' ' .. id .. ' ' .. place.cost, due_of(sid, id))
  activate(model .. ':' .. place.class, place.tenant)
  activate(model, tostring(place.class))
  count(model, id, place.class, place.cost, 1)
end

-- part: remove
-- needs: count, deactivate, lane, place, take_out
-- A waiting job leaves without being served.
local function remove(model, id, sid)
  local place = place_of(JOB .. id)
  local item = sid .. ' ' .. id .. ' ' .. place.cost
  if take_out(lane_of(model, place), item, sid, function(other) return other end) == 1 then
    count(model, id, place.class, place.cost, -1)
    deactivate_if_empty(model, place)
  end
end

-- part: pop
-- needs: charge, count, deactivate, lane, width
local LOOK_MAX = 32     -- tenants of a class examined for a job that is not too wide

-- Return true if a tenant's next job may be claimed: `widest` holds the most sequences for each tenant that has a
-- bound. A lane that turns out to be empty fits, so that pop() tidies it up.
local function fits(model, place, widest)
  local most = widest[place.tenant]
  local id = most and string.match(redis.call('LINDEX', lane_of(model, place), 0) or '', '^%S+ (%S+)')
  return not id or width_of(id) <= most
end

-- The least-served class and tenant whose next job is not too wide; nil when there is none. `urgent` asks for the most
-- urgent class instead of the least-served.
local function next_place(model, widest, urgent)
  local look_max = next(widest) and LOOK_MAX or 1
  local classes = redis.call('ZRANGE', LINE .. model, 0, -1)
  if urgent then table.sort(classes) end
  for _, class in ipairs(classes) do
    local tenants = redis.call('ZRANGE', LINE .. model .. ':' .. class, 0, look_max - 1)
    if not tenants[1] then deactivate(model, class) end
    for _, tenant in ipairs(tenants) do
      local place = { class = tonumber(class), tenant = tenant }
      if fits(model, place, widest) then return place end
    end
  end
end

-- Take the next job out and charge for it. Return its stream entry and id, nil when no job waits. The caller checks
-- that the job still waits.
local function pop(model, widest, urgent)
  local place = next_place(model, widest, urgent)
  if not place then return nil end
  local item = redis.call('LPOP', lane_of(model, place))
  if not item then
    deactivate_if_empty(model, place)
    return pop(model, widest, urgent)
  end
  local sid, id, cost = string.match(item, '^(%S+) (%S+) (%S+)$')
  place.weight = tonumber(redis.call('HGET', JOB .. id, 'weight') or 1)
  count(model, id, place.class, cost, -1)
  charge_both(model, place, tonumber(cost))
  deactivate_if_empty(model, place)
  return sid, id
end

-- The cost of the job that pop() would take out; nil when there is none.
local function next_cost(model, widest, urgent)
  local place = next_place(model, widest, urgent)
  local item = place and redis.call('LINDEX', lane_of(model, place), 0)
  return item and tonumber(string.match(item, '%S+$'))
end

-- part: rate_life
local RATE_FRESH_MS = 60000

-- part: rate
-- needs: clock, rate_life, served_life
local LULL = 4                  -- times the usual gap between two ends

-- Note how fast jobs are served while others wait: every estimate rests on that. A gap between two ends that is some
-- times the `usual` one says nothing about it: no job waited, or all jobs began at once. For the same reason the first
-- estimate is the usual gap, since a measured one counts for many ends.
local function note_rate(model, tokens, usual)
  local rate, now = RATE .. model, now_ms()
  local last_ms, old_gap, old_tokens = unpack(redis.call('HMGET', rate, 'last_ms', 'gap_ms', 'tokens'))
  if last_ms and redis.call('LLEN', QUEUE .. model) > 0 then
    local gap = math.min(now - last_ms, RATE_FRESH_MS, LULL * (usual or math.huge))
    redis.call('HSET', rate, 'gap_ms', tostring(old_gap and (0.9 * old_gap + 0.1 * gap) or usual or gap),
               'tokens', tostring(old_tokens and (0.9 * old_tokens + 0.1 * tokens) or tokens))
  end
  redis.call('HSET', rate, 'last_ms', now)
  redis.call('EXPIRE', rate, SERVED_TTL_S)
end

-- part: output
local function note_output(model, tokens)
  local old = redis.call('HGET', RATE .. model, 'output')
  redis.call('HSET', RATE .. model, 'output', tostring(old and (0.95 * old + 0.05 * tokens) or tokens))
end

-- part: cost
local OUTPUT_GUESS = 256     -- tokens of an answer without a limit, before any answer was seen

-- The tokens that a job is expected to take: those of its prompt, and an answer of the usual length, but not longer
-- than `output_max`; -1 means no limit.
local function cost_of(model, prompt_tokens, output_max)
  local usual = tonumber(redis.call('HGET', RATE .. model, 'output') or OUTPUT_GUESS)
  local output = output_max < 0 and usual or math.min(output_max, math.max(usual, 16))
  return math.max(1, math.floor(prompt_tokens + output))
end

-- part: pace
-- needs: clock, rate_life
-- Return how many milliseconds all workers took for a token lately, 0 if that is not known.
local function ms_per_token(model)
  local last_ms, gap_ms, tokens_each = unpack(redis.call('HMGET', RATE .. model, 'last_ms', 'gap_ms', 'tokens'))
  local known = gap_ms and now_ms() - last_ms < RATE_FRESH_MS
  return known and gap_ms / math.max(tonumber(tokens_each), 1) or 0
end

-- part: ahead
-- needs: pace
-- Return what waits before a new job of this class: jobs, tokens, and the wait in milliseconds, as an estimate.
local function ahead(model, class)
  local jobs, tokens = 0, 0
  for above = 0, class do
    local h = redis.call('HMGET', LOAD .. model, 'jobs:' .. above, 'tokens:' .. above)
    jobs, tokens = jobs + (h[1] or 0), tokens + (h[2] or 0)
  end
  return jobs, tokens, math.floor(tokens * ms_per_token(model))
end

-- part: over_bounds
-- needs: ahead, bytes, clock, lane
local WEIGHED_FOR_MS = 5000     -- waiting bytes are counted anew at most once in this time
local NEWCOMER_SHARE = 5        -- a tenant with less than this part of a full queue may go over its bound

-- Return true if the jobs that `list` returns have more than `most` bytes together, by the hash `load`. The count is too
-- high after other tools removed jobs, and too low after a release without this count enqueued some. So it is made anew
-- before it refuses a job and when it is below 0, though not each time.
local function too_many_bytes(load, most, list)
  local counted, weighed_ms = unpack(redis.call('HMGET', load, 'bytes', 'weighed_ms'))
  local bytes = tonumber(counted or 0)
  if (bytes >= 0 and bytes <= most) or now_ms() - (weighed_ms or 0) < WEIGHED_FOR_MS then return bytes > most end
  bytes = 0
  for _, id in ipairs(list()) do bytes = bytes + bytes_of(id) end
  redis.call('HSET', load, 'bytes', bytes, 'weighed_ms', now_ms())
  return bytes > most
end

-- The bound of the queue that a new job would exceed; '' when it may be pushed.
local function over_bounds(model, place, bounds, queue_deadline_ms)
  local depth = redis.call('LLEN', QUEUE .. model)
  if depth == 0 then return '' end
  if depth >= bounds.jobs then
    local own = redis.call('LLEN', lane_of(model, place))
    if own * NEWCOMER_SHARE >= bounds.jobs or depth >= bounds.jobs * (1 + 1 / NEWCOMER_SHARE) then
      return 'queue_full'
    end
  end
  local _, tokens = ahead(model, #CLASS_WEIGHT)
  if tokens + place.cost > bounds.tokens then return 'queue_tokens_full' end
  local function waiting() return redis.call('LRANGE', QUEUE .. model, 0, -1) end
  if too_many_bytes(LOAD .. model, bounds.bytes - place.bytes, waiting) then return 'queue_bytes_full' end
  local _, _, wait = ahead(model, place.class)
  if wait > queue_deadline_ms then return 'deadline_unreachable' end
  return ''
end

-- The bound that one more job would exceed among those that wait for their time; '' when it may.
local function over_scheduled(model, place, bounds)
  local jobs = redis.call('ZCARD', SCHEDULED .. model)
  if jobs == 0 then return '' end
  if jobs >= bounds.jobs then return 'queue_full' end
  local function scheduled() return redis.call('ZRANGE', SCHEDULED .. model, 0, -1) end
  local most = bounds.bytes - place.bytes
  return too_many_bytes(SCHEDULED_LOAD .. model, most, scheduled) and 'queue_bytes_full' or ''
end
