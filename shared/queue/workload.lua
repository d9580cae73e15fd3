-- Hosts read here what is asked of models, which they load and unload.

-- verb: workload
-- takes: list models
-- needs: clock, place, sync
-- Count the work of each model: what waits and what runs, by class. Jobs that were handed back, or whose lease has
-- lapsed, wait. Of what waits in the queue only the oldest is looked at, and its wait counts for the most urgent class
-- that waits. -> {{model, jobs waiting, of each class; their tokens; milliseconds that the oldest waited; jobs running;
-- milliseconds until the first deadline of those that wait, -1 for none; workers alive; 1 if nothing is claimed; the
-- seconds that the model is to be kept, as its last request asked, or ''}*}
local CLASSES = 3
local RUNNING_MAX = 256    -- jobs that are looked at; more do not change what is loaded

local function earliest(left, deadline_ms)
  return (left < 0 or deadline_ms < left) and math.max(deadline_ms, 0) or left
end

local function count_queued(work, model, now)
  local first = redis.call('LINDEX', QUEUE .. model, 0)
  if not first then return end          -- `rq empty` leaves the counts to the next claim
  local sid, queue_deadline_ms = unpack(redis.call('HMGET', JOB .. first, 'sid', 'patience_ms'))
  local age = sid and now - string.match(sid, '^%d+') or 0
  for class = CLASSES, 1, -1 do
    local rank = class - 1
    local jobs, tokens = unpack(redis.call('HMGET', LOAD .. model, 'jobs:' .. rank, 'tokens:' .. rank))
    work.jobs[class], work.tokens[class] = tonumber(jobs or 0), tonumber(tokens or 0)
    if work.jobs[class] > 0 then work.urgent = class end
  end
  if work.urgent then work.oldest[work.urgent] = math.max(age, 0) end
  if queue_deadline_ms then work.left = earliest(work.left, queue_deadline_ms - age) end
end

local function count_started(work, model, now)
  local leases = redis.call('ZRANGE', LEASES .. model, 0, RUNNING_MAX - 1, 'WITHSCORES')
  for i = 1, #leases, 2 do
    local id = leases[i]
    local place, waits = place_of(JOB .. id), tonumber(leases[i + 1]) <= now
    local class = place.class + 1
    if waits then
      local sid, deadline_ms = unpack(redis.call('HMGET', JOB .. id, 'sid', 'deadline_ms'))
      work.jobs[class] = work.jobs[class] + 1
      work.tokens[class] = work.tokens[class] + place.cost
      work.oldest[class] = math.max(work.oldest[class], sid and now - string.match(sid, '^%d+') or 0)
      if deadline_ms then work.left = earliest(work.left, deadline_ms - now) end
    else
      work.running[class] = work.running[class] + 1
    end
  end
end

local function workload(args)
  local answer, now = {}, now_ms()
  for i, model in ipairs(args.models) do
    local work = { jobs = { 0, 0, 0 }, tokens = { 0, 0, 0 }, oldest = { 0, 0, 0 }, running = { 0, 0, 0 }, left = -1 }
    sync(model)
    count_queued(work, model, now)
    count_started(work, model, now)
    local workers = 0
    for _, key in ipairs(redis.call('SMEMBERS', WORKERS_OF .. model)) do
      workers = workers + redis.call('EXISTS', key)
    end
    local paused = redis.call('EXISTS', SUSPENDED, PAUSED .. model) > 0 and 1 or 0
    local kept = redis.call('GET', KEEP_ALIVE .. model) or ''
    answer[i] = { model, work.jobs, work.tokens, work.oldest, work.running, work.left, workers, paused, kept }
  end
  return answer
end
