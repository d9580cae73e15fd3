-- What a key may use: requests and tokens a minute, as buckets that fill up again; jobs at a time, as leases that run
-- out; tokens a month, as a count. They are taken in the same call that accepts a job, so a refusal costs nothing, and
-- corrected by what the job really took. A job without a key has no `month`.

local MINUTE_MS = 60000
local USAGE_TTL_S = 70 * 86400

-- `limits`: requests and tokens a minute, jobs at a time, tokens a month; 0 for no limit.
local function limits_of(fields)
  local requests, tokens, jobs, month = string.match(fields.limits, '^(%d+) (%d+) (%d+) (%d+)$')
  return { requests = tonumber(requests), tokens = tonumber(tokens), jobs = tonumber(jobs), month = tonumber(month) }
end

local function filled(level, limit, passed_ms)
  return math.min(limit, (level and tonumber(level) or limit) + limit * passed_ms / MINUTE_MS)
end

-- What the buckets hold now: requests, tokens.
local function levels(tenant, limits)
  local h = redis.call('HMGET', bucket_key(tenant), 'requests', 'tokens', 'at_ms')
  local passed_ms = h[3] and math.max(now_ms() - h[3], 0) or MINUTE_MS
  return filled(h[1], limits.requests, passed_ms), filled(h[2], limits.tokens, passed_ms)
end

-- Why the key may not have one more job of this cost, and how many milliseconds to wait: '' when it may.
local function over_limit(fields, cost)
  if not fields.month then return '', 0 end
  local limits, tenant = limits_of(fields), fields.tenant
  if limits.jobs > 0 then
    redis.call('ZREMRANGEBYSCORE', holding_key(tenant), '-inf', now_ms())
    if redis.call('ZCARD', holding_key(tenant)) >= limits.jobs then return 'limit_jobs', 1000 end
  end
  local requests, tokens = levels(tenant, limits)
  if limits.requests > 0 and requests < 1 then
    return 'limit_requests', math.ceil((1 - requests) / limits.requests * MINUTE_MS)
  end
  local needed = math.min(cost, limits.tokens)   -- what is larger than the bucket gets a full one
  if limits.tokens > 0 and tokens < needed then
    return 'limit_tokens', math.ceil((needed - tokens) / limits.tokens * MINUTE_MS)
  end
  if limits.month > 0 then
    local used = tonumber(redis.call('GET', usage_key(tenant .. ':' .. fields.month)) or 0)
    if used + cost > limits.month then return 'quota', 0 end
  end
  return '', 0
end

local function use(tenant, month, tokens)
  local key = usage_key(tenant .. ':' .. month)
  redis.call('INCRBY', key, tokens)
  redis.call('EXPIRE', key, USAGE_TTL_S)
end

-- One of the key's jobs at a time, for as long as its deadlines let it be.
local function hold(tenant, id, longest_ms)
  local holding = holding_key(tenant)
  redis.call('ZADD', holding, now_ms() + longest_ms, id)
  redis.call('PEXPIRE', holding, math.max(longest_ms, redis.call('PTTL', holding)))
end

local function put_levels(tenant, requests, tokens)
  local bucket = bucket_key(tenant)
  redis.call('HSET', bucket, 'requests', tostring(requests), 'tokens', tostring(tokens), 'at_ms', now_ms())
  redis.call('PEXPIRE', bucket, 10 * MINUTE_MS)
end

-- A request was refused for its own fault: it counts as one all the same. Milliseconds until there is another.
local function charge_request(tenant, limits)
  local requests, tokens = levels(tenant, limits)
  requests = math.max(requests - 1, 0)
  put_levels(tenant, requests, tokens)
  return math.ceil(math.max(1 - requests, 0) / limits.requests * MINUTE_MS)
end

-- What is left then: requests and tokens, and how many milliseconds until each bucket is full.
local function take_limits(id, fields, cost)
  if not fields.month then return 0, 0, 0, 0 end
  local limits, tenant = limits_of(fields), fields.tenant
  local requests, tokens = levels(tenant, limits)
  requests, tokens = requests - 1, tokens - cost
  put_levels(tenant, requests, tokens)
  hold(tenant, id, tonumber(fields.patience_ms) + tonumber(fields.run_ms))
  use(tenant, fields.month, cost)
  local function until_full(level, limit) return limit > 0 and math.ceil((limit - level) / limit * MINUTE_MS) or 0 end
  return math.max(0, math.floor(requests)), math.max(0, math.floor(tokens)), until_full(requests, limits.requests),
         until_full(tokens, limits.tokens)
end

local function take_tokens(tenant, month, tokens)
  use(tenant, month, tokens)
  if redis.call('EXISTS', bucket_key(tenant)) == 1 then
    redis.call('HINCRBYFLOAT', bucket_key(tenant), 'tokens', tostring(-tokens))
  end
end

-- An ended job took so many tokens more than was thought, or fewer. `paid` says that this is done.
local function correct_limits(id, more)
  local h = redis.call('HMGET', job_key(id), 'tenant', 'month', 'paid')
  if not h[2] or h[3] then return end
  redis.call('HSET', job_key(id), 'paid', 1)
  take_tokens(h[1], h[2], more)
end

-- An ended job runs once more, by an operator's hand: it takes its tokens and its place again, whatever is left of
-- them. Else the correction at its end would give back what it has not taken.
local function take_again(id)
  if redis.call('HDEL', job_key(id), 'paid') == 0 then return end
  local h = redis.call('HMGET', job_key(id), 'tenant', 'month', 'cost', 'patience_ms', 'run_ms')
  take_tokens(h[1], h[2], tonumber(h[3]))
  hold(h[1], id, h[4] + h[5])
end

local function let_go(id)
  local h = redis.call('HMGET', job_key(id), 'tenant', 'month')
  if h[2] then redis.call('ZREM', holding_key(h[1]), id) end
end
