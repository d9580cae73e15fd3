-- Who is served next. Jobs wait in lanes, one for each tenant of each class. Whoever has been served least comes first:
-- of the classes, then of the tenants in it, each by tokens divided by weight. Who comes back after a pause begins
-- where those who waited on are now, so that nobody saves up. CLASS_WEIGHT comes from Priority in job.py.
-- (Sheng et al., Fairness in Serving Large Language Models, OSDI 2024.)

local SERVED_TTL_S = 86400
local RATE_FRESH_MS = 60000
local LULL = 4                            -- times the usual gap between two ends
local LOOK_MAX = 32                       -- tenants of a class looked at for a job that is not too wide
local OUTPUT_GUESS = 256                  -- tokens of an answer without a limit, before any was seen
local WEIGHED_FOR_MS = 5000               -- waiting bytes are counted anew at most once in this time
local NEWCOMER_SHARE = 5                  -- a tenant with less than this part of a full queue may go over its bound

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- A key made to live at least this long.
local function live(key, seconds)
  if redis.call('TTL', key) < seconds then redis.call('EXPIRE', key, seconds) end
end

-- The milliseconds in which an entry was made.
local function time_of(sid)
  return tonumber(string.match(sid or '', '^%d+') or 0)
end

-- Take an item out of a list that is in about the order of entries, looking from the end that is nearer in time: who
-- comes last and is served first must not cost a walk past all others. `sid_of`: an item's entry.
local function take_out(list, item, sid, sid_of)
  local head = redis.call('LINDEX', list, 0)
  if not head or head == item then return redis.call('LREM', list, 1, item) end
  local tail, at = redis.call('LINDEX', list, -1), time_of(sid)
  local from_tail = tail == item or time_of(sid_of(tail)) - at < at - time_of(sid_of(head))
  return redis.call('LREM', list, from_tail and -1 or 1, item)
end

local function enter(name, member)
  local line, served = line_key(name), served_key(name)
  if redis.call('ZSCORE', line, member) then return end
  local least = redis.call('ZRANGE', line, 0, 0, 'WITHSCORES')[2] or redis.call('ZSCORE', served, '') or 0
  local own = redis.call('ZSCORE', served, member) or 0
  redis.call('ZADD', line, math.max(tonumber(own), tonumber(least)), member)
  redis.call('ZREM', served, member)
end

-- Who waits no more keeps a count only as long as it is above the least: '' remembers that one.
local function quit(name, member)
  local line, served = line_key(name), served_key(name)
  local own = redis.call('ZSCORE', line, member)
  if not own then return end
  redis.call('ZREM', line, member)
  local least = redis.call('ZRANGE', line, 0, 0, 'WITHSCORES')[2] or own
  redis.call('ZADD', served, own, member, least, '')
  redis.call('ZREMRANGEBYSCORE', served, '-inf', '(' .. least)
  redis.call('EXPIRE', served, SERVED_TTL_S)
end

local function charge(name, member, amount)
  local line, served = line_key(name), served_key(name)
  if redis.call('ZSCORE', line, member) then
    redis.call('ZINCRBY', line, amount, member)
  elseif amount > 0 or redis.call('ZSCORE', served, member) then
    local base = redis.call('ZSCORE', served, member) or redis.call('ZSCORE', served, '') or 0
    redis.call('ZADD', served, math.max(tonumber(base) + amount, 0), member)
    redis.call('EXPIRE', served, SERVED_TTL_S)
  end
end

local function place_of(job)
  local h = redis.call('HMGET', job, 'class', 'tenant', 'weight', 'cost')
  return { class = tonumber(h[1] or 1), tenant = h[2] or '', weight = tonumber(h[3] or 1), cost = tonumber(h[4] or 1) }
end

local function charge_both(model, place, tokens)
  charge(model .. ':' .. place.class, place.tenant, tokens / place.weight)
  charge(model, tostring(place.class), tokens / CLASS_WEIGHT[place.class])
end

local function bytes_of(id)
  return redis.call('HSTRLEN', job_key(id), 'payload')
end

-- One job more (`sign` 1) or one less (-1) waits.
local function count(model, id, class, cost, sign)
  redis.call('HINCRBY', load_key(model), 'jobs:' .. class, sign)
  redis.call('HINCRBY', load_key(model), 'tokens:' .. class, sign * cost)
  redis.call('HINCRBY', load_key(model), 'bytes', string.format('%d', sign * bytes_of(id)))   -- Redis 6 knows no -0
end

local function lane_of(model, place)
  return lane_key(model .. ':' .. place.class .. ':' .. place.tenant)
end

-- A lane's last job has gone.
local function leave_if_empty(model, place)
  local class = model .. ':' .. place.class
  if redis.call('EXISTS', lane_of(model, place)) == 1 then return end
  quit(class, place.tenant)
  if redis.call('EXISTS', line_key(class)) == 0 then quit(model, tostring(place.class)) end
end

local function join(model, id, sid)
  local place = place_of(job_key(id))
  redis.call('RPUSH', lane_of(model, place), sid .. ' ' .. id .. ' ' .. place.cost)
  enter(model .. ':' .. place.class, place.tenant)
  enter(model, tostring(place.class))
  count(model, id, place.class, place.cost, 1)
end

-- A waiting job leaves without being served.
local function step_out(model, id, sid)
  local place = place_of(job_key(id))
  local item = sid .. ' ' .. id .. ' ' .. place.cost
  if take_out(lane_of(model, place), item, sid, function(other) return other end) == 1 then
    count(model, id, place.class, place.cost, -1)
    leave_if_empty(model, place)
  end
end

-- The places that a job takes in a batch.
local function width_of(id)
  return tonumber(redis.call('HGET', job_key(id), 'width') or 1)
end

-- Whether a tenant's next job may be claimed: `widest` is the most sequences for each tenant that has a bound. A lane
-- that turns out to be empty is somebody's to tidy up.
local function fits(model, place, widest)
  local most = widest[place.tenant]
  local id = most and string.match(redis.call('LINDEX', lane_of(model, place), 0) or '', '^%S+ (%S+)')
  return not id or width_of(id) <= most
end

-- The class and tenant served least, of those whose next job is not too wide; nil when there are none.
local function next_place(model, widest)
  local look_max = next(widest) and LOOK_MAX or 1
  for _, class in ipairs(redis.call('ZRANGE', line_key(model), 0, -1)) do
    local tenants = redis.call('ZRANGE', line_key(model .. ':' .. class), 0, look_max - 1)
    if not tenants[1] then quit(model, class) end
    for _, tenant in ipairs(tenants) do
      local place = { class = tonumber(class), tenant = tenant }
      if fits(model, place, widest) then return place end
    end
  end
end

-- The next job's entry and id, taken out and paid for; nil when nobody waits. The caller checks that it still waits.
local function take_next(model, widest)
  local place = next_place(model, widest)
  if not place then return nil end
  local item = redis.call('LPOP', lane_of(model, place))
  if not item then
    leave_if_empty(model, place)
    return take_next(model, widest)
  end
  local sid, id, cost = string.match(item, '^(%S+) (%S+) (%S+)$')
  place.weight = tonumber(redis.call('HGET', job_key(id), 'weight') or 1)
  count(model, id, place.class, cost, -1)
  charge_both(model, place, tonumber(cost))
  leave_if_empty(model, place)
  return sid, id
end

-- How fast jobs are served while others wait: what every estimate rests on. A gap between two ends that is some times
-- the usual one says nothing about that: nobody waited, or all began at once. For the same reason the first estimate is
-- the usual gap, since one that is measured counts for many ends.
local function note_rate(model, tokens, usual)
  local rate, now = rate_key(model), now_ms()
  local h = redis.call('HMGET', rate, 'last_ms', 'gap_ms', 'tokens', 'output')
  if h[1] and redis.call('LLEN', queue_key(model)) > 0 then
    local gap = math.min(now - h[1], RATE_FRESH_MS, LULL * (usual or math.huge))
    redis.call('HSET', rate, 'gap_ms', tostring(h[2] and (0.9 * h[2] + 0.1 * gap) or usual or gap),
               'tokens', tostring(h[3] and (0.9 * h[3] + 0.1 * tokens) or tokens))
  end
  redis.call('HSET', rate, 'last_ms', now)
  redis.call('EXPIRE', rate, SERVED_TTL_S)
end

local function note_output(model, tokens)
  local old = redis.call('HGET', rate_key(model), 'output')
  redis.call('HSET', rate_key(model), 'output', tostring(old and (0.95 * old + 0.05 * tokens) or tokens))
end

-- Tokens that a job will take, as far as can be told: those of its prompt, and an answer as long as usual, but not
-- longer than `output_max`; -1 for no limit.
local function cost_of(model, prompt_tokens, output_max)
  local usual = tonumber(redis.call('HGET', rate_key(model), 'output') or OUTPUT_GUESS)
  local output = output_max < 0 and usual or math.min(output_max, math.max(usual, 16))
  return math.max(1, math.floor(prompt_tokens + output))
end

-- What waits before a new job of this class: jobs, tokens, and milliseconds as far as can be told.
local function ahead(model, class)
  local jobs, tokens = 0, 0
  for above = 0, class do
    local h = redis.call('HMGET', load_key(model), 'jobs:' .. above, 'tokens:' .. above)
    jobs, tokens = jobs + (h[1] or 0), tokens + (h[2] or 0)
  end
  local h = redis.call('HMGET', rate_key(model), 'last_ms', 'gap_ms', 'tokens')
  local known = h[2] and now_ms() - h[1] < RATE_FRESH_MS
  local wait = known and tokens * h[2] / math.max(tonumber(h[3]), 1) or 0
  return jobs, tokens, math.floor(wait)
end

-- Whether the jobs that wait are larger together than `most` bytes. Jobs that other tools removed leave the count too
-- high, those that a release without this count enqueued too low: it is made anew before it refuses and when it is
-- below 0, though not each time.
local function too_many_bytes(model, most)
  local load = load_key(model)
  local h = redis.call('HMGET', load, 'bytes', 'weighed_ms')
  local bytes = tonumber(h[1] or 0)
  if (bytes >= 0 and bytes <= most) or now_ms() - (h[2] or 0) < WEIGHED_FOR_MS then return bytes > most end
  bytes = 0
  for _, id in ipairs(redis.call('LRANGE', queue_key(model), 0, -1)) do bytes = bytes + bytes_of(id) end
  redis.call('HSET', load, 'bytes', bytes, 'weighed_ms', now_ms())
  return bytes > most
end

-- Why a new job may not join: '' when it may.
local function refusal(model, place, bounds, patience_ms)
  local depth = redis.call('LLEN', queue_key(model))
  if depth == 0 then return '' end
  if depth >= bounds.jobs then
    local own = redis.call('LLEN', lane_of(model, place))
    if own * NEWCOMER_SHARE >= bounds.jobs or depth >= bounds.jobs * (1 + 1 / NEWCOMER_SHARE) then
      return 'queue_full'
    end
  end
  local _, tokens = ahead(model, #CLASS_WEIGHT)
  if tokens + place.cost > bounds.tokens then return 'queue_tokens_full' end
  if too_many_bytes(model, bounds.bytes - place.bytes) then return 'queue_bytes_full' end
  local _, _, wait = ahead(model, place.class)
  if wait > patience_ms then return 'deadline_unreachable' end
  return ''
end
