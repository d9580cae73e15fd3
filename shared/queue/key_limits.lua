-- These limits say how much an API key may use: requests and tokens a minute, as buckets that fill up again; jobs at a
-- time, as leases that run out; tokens a month, as a count. The call that accepts a job takes them, so a refusal costs
-- nothing, and the call that ends the job corrects them by what it really took. A job without a key has no field
-- `month`.

-- part: buckets
-- needs: clock
local MINUTE_MS = 60000

-- The four numbers in the field `limits`; 0 means no limit.
local function limits_of(text)
  local requests, tokens, jobs, month = string.match(text, '^(%d+) (%d+) (%d+) (%d+)$')
  return { requests = tonumber(requests), tokens = tonumber(tokens), jobs = tonumber(jobs), month = tonumber(month) }
end

local function filled(level, limit, passed_ms)
  return math.min(limit, (level and tonumber(level) or limit) + limit * passed_ms / MINUTE_MS)
end

-- Return what the buckets hold now: requests, tokens.
local function levels(tenant, limits)
  local requests, tokens, at_ms = unpack(redis.call('HMGET', BUCKET .. tenant, 'requests', 'tokens', 'at_ms'))
  local passed_ms = at_ms and math.max(now_ms() - at_ms, 0) or MINUTE_MS
  return filled(requests, limits.requests, passed_ms), filled(tokens, limits.tokens, passed_ms)
end

local function put_levels(tenant, requests, tokens)
  local bucket = BUCKET .. tenant
  redis.call('HSET', bucket, 'requests', tostring(requests), 'tokens', tostring(tokens), 'at_ms', now_ms())
  redis.call('PEXPIRE', bucket, 10 * MINUTE_MS)
end

-- part: usage
local USAGE_TTL_S = 70 * 86400

-- Count tokens to the key's month.
local function use(tenant, month, tokens)
  local key = USAGE .. tenant .. ':' .. month
  redis.call('INCRBY', key, tokens)
  redis.call('EXPIRE', key, USAGE_TTL_S)
end

-- part: count_cost
-- needs: usage
-- Count what a job cost, in millionths of the prices' currency, to the month of its key and to its model. A replay,
-- whose tokens do not count to its key, has a month for its cost alone.
local function count_cost(model, id, micros)
  if micros == 0 then return end
  local tenant, month, cost_month = unpack(redis.call('HMGET', JOB .. id, 'tenant', 'month', 'cost_month'))
  month = month or cost_month
  if not month then return end
  local key = COSTS .. tenant .. ':' .. month
  redis.call('HINCRBY', key, model, micros)
  redis.call('EXPIRE', key, USAGE_TTL_S)
end

-- part: hold
-- needs: clock
-- Take one of the key's jobs at a time, for as long as the job's deadlines allow.
local function hold(tenant, id, longest_ms)
  local holding = HOLDING .. tenant
  redis.call('ZADD', holding, now_ms() + longest_ms, id)
  redis.call('PEXPIRE', holding, math.max(longest_ms, redis.call('PTTL', holding)))
end

-- part: limits
-- needs: buckets, clock, hold, usage
-- The reason why the key may not have one more job of this cost, and how many milliseconds to wait; '' when it may.
local function over_limit(fields, cost)
  if not fields.month then return '', 0 end
  local limits, tenant = limits_of(fields.limits), fields.tenant
  if limits.jobs > 0 then
    redis.call('ZREMRANGEBYSCORE', HOLDING .. tenant, '-inf', now_ms())
    if redis.call('ZCARD', HOLDING .. tenant) >= limits.jobs then return 'limit_jobs', 1000 end
  end
  local requests, tokens = levels(tenant, limits)
  if limits.requests > 0 and requests < 1 then
    return 'limit_requests', math.ceil((1 - requests) / limits.requests * MINUTE_MS)
  end
  local needed = math.min(cost, limits.tokens)   -- a job larger than the bucket needs a full one
  if limits.tokens > 0 and tokens < needed then
    return 'limit_tokens', math.ceil((needed - tokens) / limits.tokens * MINUTE_MS)
  end
  if limits.month > 0 then
    local used = tonumber(redis.call('GET', USAGE .. tenant .. ':' .. fields.month) or 0)
    if used + cost > limits.month then return 'quota', 0 end
  end
  return '', 0
end

-- Take a job of this cost from the key's limits. Return the requests and tokens left, and for each of the two buckets
-- how many milliseconds pass until it is full.
local function take_limits(id, fields, cost, delay_ms)
  if not fields.month then return 0, 0, 0, 0 end
  local limits, tenant = limits_of(fields.limits), fields.tenant
  local requests, tokens = levels(tenant, limits)
  requests, tokens = requests - 1, tokens - cost
  put_levels(tenant, requests, tokens)
  hold(tenant, id, delay_ms + tonumber(fields.patience_ms) + tonumber(fields.run_ms))
  use(tenant, fields.month, cost)
  local function until_full(level, limit) return limit > 0 and math.ceil((limit - level) / limit * MINUTE_MS) or 0 end
  return math.max(0, math.floor(requests)), math.max(0, math.floor(tokens)), until_full(requests, limits.requests),
         until_full(tokens, limits.tokens)
end

-- part: take_tokens
-- needs: usage
local function take_tokens(tenant, month, tokens)
  use(tenant, month, tokens)
  if redis.call('EXISTS', BUCKET .. tenant) == 1 then
    redis.call('HINCRBYFLOAT', BUCKET .. tenant, 'tokens', tostring(-tokens))
  end
end

-- part: correct_limits
-- needs: take_tokens
-- An ended job took so many tokens more than expected, or fewer. The field `paid` says that this is done.
local function correct_limits(id, more)
  local tenant, month, paid = unpack(redis.call('HMGET', JOB .. id, 'tenant', 'month', 'paid'))
  if not month or paid then return end
  redis.call('HSET', JOB .. id, 'paid', 1)
  take_tokens(tenant, month, more)
end

-- part: take_again
-- needs: hold, take_tokens
-- An operator has requeued an ended job: it takes its tokens and its place among the key's jobs again, even if the
-- limits are used up. Otherwise the correction at its end would give back what it has not taken.
local function take_again(id)
  if redis.call('HDEL', JOB .. id, 'paid') == 0 then return end
  local tenant, month, cost, queue_deadline_ms, run_deadline_ms =
    unpack(redis.call('HMGET', JOB .. id, 'tenant', 'month', 'cost', 'patience_ms', 'run_ms'))
  take_tokens(tenant, month, tonumber(cost))
  hold(tenant, id, queue_deadline_ms + run_deadline_ms)
end

-- part: let_go
-- Give up the job's place among the key's jobs at a time.
local function let_go(id)
  local tenant, month = unpack(redis.call('HMGET', JOB .. id, 'tenant', 'month'))
  if month then redis.call('ZREM', HOLDING .. tenant, id) end
end

-- verb: charge
-- takes: tenant, limits
-- needs: buckets
-- A request was refused for its own fault, but it counts as a request all the same. -> milliseconds until the key may
-- send its next request
local function charge(args)
  local tenant, limits = args.tenant, limits_of(args.limits)
  local requests, tokens = levels(tenant, limits)
  requests = math.max(requests - 1, 0)
  put_levels(tenant, requests, tokens)
  return math.ceil(math.max(1 - requests, 0) / limits.requests * MINUTE_MS)
end
