-- The steps on a job that several verbs share: its timeline, its stream entry, and waking a worker for it. The files
-- are linked by lua.py, which explains their headers. Every verb is one call, so it happens completely or not at all,
-- and sending it again (a retry after a lost reply) changes nothing more. keys.py documents every key and every field
-- of a job's hash.

-- part: clock
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- part: not_ended
-- Has a job of this state not ended yet?
local function not_ended(status)
  return status == 'scheduled' or status == 'queued' or status == 'started'
end

-- part: raise_ttl
-- Raise the key's TTL to at least `seconds`.
local function raise_ttl(key, seconds)
  if redis.call('TTL', key) < seconds then redis.call('EXPIRE', key, seconds) end
end

-- part: timeline
-- needs: clock
local TIMELINE_MAX = 8000

-- Add a line to the job's history: the time in milliseconds, and what happened.
local function note(job, words)
  local lines = redis.call('HGET', job, 'timeline') or ''
  if #lines < TIMELINE_MAX then redis.call('HSET', job, 'timeline', lines .. now_ms() .. ' ' .. words .. '\n') end
end

-- part: idempotency
local IDEMPOTENCY_TTL_S = 86400   -- of a key, and at least of a finished job that has one

-- part: drop_entry
local function drop_entry(model, sid)
  redis.call('XDEL', STREAM .. model, sid)
  if redis.call('XLEN', STREAM .. model) == 0 then redis.call('DEL', STREAM .. model) end
end

-- part: width
-- Count the sequences that a job occupies in a batch.
local function width_of(id)
  return tonumber(redis.call('HGET', JOB .. id, 'width') or 1)
end

-- part: wake
local WAKES_MAX = 64
local WAKE_TTL_S = 3600

-- Wake one waiting worker for one job. It takes the job, or finds that another worker has taken it. A thousand idle
-- workers must not all look at each job. Without a worker, tell the hosts, one of which may start one.
local function wake(model)
  if redis.call('SCARD', WORKERS_OF .. model) == 0 then redis.call('PUBLISH', WANTED, model) end
  if redis.call('LLEN', WAKE .. model) >= WAKES_MAX then return end
  redis.call('RPUSH', WAKE .. model, 1)
  redis.call('EXPIRE', WAKE .. model, WAKE_TTL_S)
end
