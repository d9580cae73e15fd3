-- A quota is what an upstream lets all workers together ask of it: requests and tokens a minute, as buckets that fill
-- up again; requests at a time, as leases; a pause while it has no room; and a breaker, which leaves it alone while it
-- fails and then lets one job of all workers through, the trial. A claim takes a job from the first quota that has room
-- for it. So a job waits in its queue and not at the upstream, and every rule of the queue goes on to hold. Its
-- keys are those of key_limits.lua; a quota's name begins with `upstream:`, and no id of an API key does.

-- part: quota
-- needs: breaker, buckets, clock, width
local function listed(rows)
  local quotas = {}
  for row in rows do
    quotas[#quotas + 1] = { name = row.name, requests = row.requests, tokens = row.tokens, at_once = row.at_once }
  end
  return quotas
end

local function are_limited(quotas)
  for _, quota in ipairs(quotas) do
    if quota.requests > 0 or quota.tokens > 0 then return true end
  end
  return false
end

local function has_room(quota, cost)
  local name, now = quota.name, now_ms()
  if tonumber(redis.call('HGET', BUCKET .. name, 'paused_ms') or 0) > now then return false end
  if is_open(breaker_of(name), name, now) then return false end
  local requests, tokens = levels(name, quota)
  if quota.requests > 0 and requests < 1 then return false end
  if quota.tokens > 0 and tokens < math.min(cost, quota.tokens) then return false end
  redis.call('ZREMRANGEBYSCORE', HOLDING .. name, '-inf', now)
  return quota.at_once == 0 or redis.call('ZCARD', HOLDING .. name) < quota.at_once
end

-- Return the first quota that has room for a job of this cost; nil when none has. Without quotas there is always room.
local function quota_for(quotas, cost)
  for _, quota in ipairs(quotas) do
    if has_room(quota, cost) then return quota end
  end
end

-- Take a claimed job from the quota, for as long as its lease lasts. Each of its sequences is a request.
local function take_quota(quota, id, cost, lease_ms)
  local requests, tokens = levels(quota.name, quota)
  put_levels(quota.name, requests - width_of(id), tokens - cost)
  redis.call('ZADD', HOLDING .. quota.name, now_ms() + lease_ms, id)
  redis.call('PEXPIRE', HOLDING .. quota.name, 10 * lease_ms)
  redis.call('HSET', JOB .. id, 'quota', quota.name)
  if redis.call('EXISTS', BREAKER .. quota.name) == 1 then redis.call('HSET', BREAKER .. quota.name, 'trial', id) end
end

-- part: breaker
local BREAKER_TTL_MS = 600000

-- Read the times of its last failures while it is closed; how often it has opened without a success since, and until
-- when; and the job of its trial.
local function breaker_of(name)
  local failures, openings, until_ms, trial =
    unpack(redis.call('HMGET', BREAKER .. name, 'failures', 'openings', 'until_ms', 'trial'))
  return { failures = failures or '', openings = tonumber(openings or 0), until_ms = tonumber(until_ms or 0),
           trial = trial }
end

-- Return true if no job may go there now. A trial lasts as long as its job holds the quota.
local function is_open(breaker, name, now)
  if breaker.openings == 0 then return false end
  if now < breaker.until_ms then return true end
  local held_until = breaker.trial and redis.call('ZSCORE', HOLDING .. name, breaker.trial)
  return held_until and tonumber(held_until) > now or false
end

-- verb: fail_quota
-- takes: name, number failures, number within_ms, number first_ms, number longest_ms
-- needs: breaker, clock
-- The upstream did not answer as it should. So many failures within that time open its breaker, and so does the failure
-- of a trial, for a pause that doubles each time. -> milliseconds for which it is open
local function fail_quota(args)
  local key, now, breaker = BREAKER .. args.name, now_ms(), breaker_of(args.name)
  if now < breaker.until_ms then return breaker.until_ms - now end     -- it was asked before the breaker opened
  local times = { now }
  for at in string.gmatch(breaker.failures, '%S+') do
    if #times < args.failures and now - at <= args.within_ms then times[#times + 1] = at end
  end
  local pause_ms = 0
  if breaker.openings > 0 or #times >= args.failures then
    pause_ms = math.min(args.first_ms * 2 ^ breaker.openings, args.longest_ms)
    redis.call('HSET', key, 'openings', breaker.openings + 1, 'until_ms', now + pause_ms)
    redis.call('HDEL', key, 'failures', 'trial')
  else
    redis.call('HSET', key, 'failures', table.concat(times, ' '))
  end
  redis.call('PEXPIRE', key, BREAKER_TTL_MS)
  return pause_ms
end

-- verb: clear_quota
-- takes: name
-- The upstream answers: its failures are forgotten.
local function clear_quota(args)
  return redis.call('DEL', BREAKER .. args.name)
end

-- part: renew_quota
local function renew_quota(name, id, until_ms)
  redis.call('ZADD', HOLDING .. name, 'XX', until_ms, id)
  redis.call('PEXPIREAT', HOLDING .. name, until_ms + 60000)
end

-- part: leave_quota
-- needs: wake
-- The upstream has answered the job, with so many tokens more than expected, or fewer.
local function leave_quota(model, id, more)
  local name = redis.call('HGET', JOB .. id, 'quota')
  if not name then return end
  redis.call('HDEL', JOB .. id, 'quota')
  local held = redis.call('ZREM', HOLDING .. name, id)
  if more ~= 0 and redis.call('EXISTS', BUCKET .. name) == 1 then
    redis.call('HINCRBYFLOAT', BUCKET .. name, 'tokens', tostring(-more))
  end
  if held == 1 and redis.call('LLEN', QUEUE .. model) > 0 then wake(model) end
end

-- verb: pause_quota
-- takes: name, number milliseconds, number requests, number tokens, number refused
-- needs: buckets, clock
-- The upstream has no room for so long: no job is claimed for it. `refused` requests that were taken count as not sent,
-- and when the pause ends the bucket has one request at most: the upstream has said when it takes one, and no more.
local PAUSE_TTL_MS = 600000

local function pause_quota(args)
  local bucket, until_ms = BUCKET .. args.name, now_ms() + args.milliseconds
  if args.requests > 0 then
    local requests, tokens = levels(args.name, { requests = args.requests, tokens = args.tokens })
    local one_then = 1 - args.requests * args.milliseconds / MINUTE_MS
    put_levels(args.name, math.min(requests + args.refused, one_then), tokens)
  end
  local before = tonumber(redis.call('HGET', bucket, 'paused_ms') or 0)
  redis.call('HSET', bucket, 'paused_ms', math.max(before, until_ms))
  redis.call('PEXPIRE', bucket, args.milliseconds + PAUSE_TTL_MS)
  return math.max(before, until_ms)
end

-- verb: spend_quota
-- takes: name, number requests, number tokens, number count
-- needs: buckets
-- So many requests were sent that no claim has taken, since another upstream broke off. A negative count gives back
-- what a claim has taken and nobody has sent.
local function spend_quota(args)
  local requests, tokens = levels(args.name, { requests = args.requests, tokens = args.tokens })
  put_levels(args.name, requests - args.count, tokens)
  return 1
end
