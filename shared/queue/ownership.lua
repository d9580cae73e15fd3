-- Who owns a running job. Its owner is the worker that holds its claim token (the field `exec`), which is new with each
-- claim. Nothing is written for a job without it. The owner keeps the job by renewing its lease, by Redis's clock.

-- verb: claim
-- takes: model, worker, claim_token, iso, number lease_ms, number limit, number room, number attempts_max
-- takes: number widest, list tenants
-- needs: add_entry, clock, drop_entry, pop, sync, timeline, unlist, width
-- Claim up to `limit` jobs or `room` sequences: lapsed leases first, then the least-served class and tenant. `widest`
-- bounds the jobs of `tenants`. A repeated claim gets the same jobs. -> {delivery*}
local RUNNING_S = 7 * 86400     -- plain RQ calls a running job abandoned after this long
local CLAIM_TTL_S = 30
local SUSPECT_TTL_S = 3600
local SWEEP_MAX = 10000
local LAPSED_MORE = 64          -- lapsed leases examined beyond `limit`, since some may not be claimed here
local ELSEWHERE_MS = 300        -- after this long, take a lapsed job that does not fit here; a roomier worker has had
                                -- its chance

-- Return a claim's answer for a job: {id, attempt, payload, log, late, milliseconds left to run, isolated, milliseconds
-- since it was queued or handed over, trace context}
local function delivery(id)
  local job, now = JOB .. id, now_ms()
  local sid, attempt, payload, queue_deadline_ms, deadline_ms, isolated, trace = unpack(
    redis.call('HMGET', job, 'sid', 'attempt', 'payload', 'patience_ms', 'deadline_ms', 'alone', 'trace'))
  local late = ''
  local waited = now - string.match(sid, '^%d+')   -- an entry's id is the time at which it was made
  if attempt == '1' and waited > tonumber(queue_deadline_ms or 0) then late = 'queue' end
  local left = deadline_ms and deadline_ms - now or ''
  if left ~= '' and left <= 0 then late = 'run' end
  local log = redis.call('LRANGE', LOG .. id, 0, -1)
  return { id, tonumber(attempt), payload or '', log, late, left, isolated and 1 or 0, waited, trace or '' }
end

local function start(args, id, attempt)
  local job, now = JOB .. id, now_ms()
  local run_ms, deadline_ms = unpack(redis.call('HMGET', job, 'run_ms', 'deadline_ms'))
  run_ms = tonumber(run_ms or 0)
  if not deadline_ms and run_ms > 0 then redis.call('HSET', job, 'deadline_ms', now + run_ms) end
  redis.call('HSET', job, 'status', 'started', 'started_at', args.iso, 'last_heartbeat', args.iso,
             'worker_name', args.worker, 'exec', args.claim_token, 'attempt', attempt)
  redis.call('PERSIST', job)
  redis.call('ZADD', STARTED .. args.model, math.floor(now / 1000) + RUNNING_S, id .. ':' .. args.claim_token)
  redis.call('ZADD', LEASES .. args.model, now + args.lease_ms, id)
  if attempt == args.attempts_max and attempt > 1 then
    redis.call('HSET', job, 'alone', 1)
    redis.call('SET', SUSPECT .. args.worker, id, 'EX', SUSPECT_TTL_S)
  else
    redis.call('HDEL', job, 'alone')
  end
  redis.call('HDEL', job, 'moved')
  note(job, 'claimed by ' .. args.worker .. ', attempt ' .. attempt)
  return id
end

-- Another tool has ended or deleted a running job: only its entry is left.
local function forget(model, id, status)
  local sid = redis.call('HGET', JOB .. id, 'sid')
  if status and status ~= 'queued' and sid then
    drop_entry(model, sid)
    redis.call('HDEL', JOB .. id, 'sid', 'exec')
  elseif not status then
    for _, entry in ipairs(redis.call('XRANGE', STREAM .. model, '-', '+', 'COUNT', SWEEP_MAX)) do
      if entry[2][2] == id then drop_entry(model, entry[1]) end
    end
  end
end

-- Take over a job whose lease has run out. `attempt` counts the claims without progress. On the last attempt the job
-- runs isolated, one at a time on a worker: if it kills its worker again, the other jobs there did not.
local function reclaim(args, id)
  local job = JOB .. id
  local status, owner, attempt, worker, progressed =
    unpack(redis.call('HMGET', job, 'status', 'exec', 'attempt', 'worker_name', 'moved'))
  if status ~= 'started' then
    redis.call('ZREM', LEASES .. args.model, id)
    forget(args.model, id, status)
    return nil
  end
  local next_attempt = (progressed and owner) and 2 or tonumber(attempt or 0) + 1
  local suspect = owner and redis.call('GET', SUSPECT .. worker)
  if suspect and suspect ~= id then next_attempt = math.min(next_attempt, tonumber(attempt)) end
  local isolated = next_attempt == args.attempts_max and next_attempt > 1
  if isolated and redis.call('EXISTS', SUSPECT .. args.worker) == 1 then return nil end
  if owner then
    redis.call('ZREM', STARTED .. args.model, id .. ':' .. owner)
    note(job, 'lease lost by ' .. worker)
  end
  if suspect == id then redis.call('EXPIRE', SUSPECT .. worker, CLAIM_TTL_S) end
  return start(args, id, next_attempt)
end

-- Claim a waiting job, unless another tool has cancelled or deleted it meanwhile.
local function claim_waiting(args, sid, id)
  local status, current = unpack(redis.call('HMGET', JOB .. id, 'status', 'sid'))
  if status ~= 'queued' or current ~= sid then
    drop_entry(args.model, sid)
    return nil
  end
  unlist(args.model, id, sid)
  return start(args, id, 1)
end

-- Claim jobs that were running: their lease has run out, or their owner has let go of them. A job that would have to
-- wait for room in this worker is left to other workers for a moment.
local function claim_lapsed(args, ids)
  local leases, now, most = LEASES .. args.model, now_ms(), args.limit + LAPSED_MORE
  local lapsed = redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'WITHSCORES', 'LIMIT', 0, most)
  for i = 1, #lapsed, 2 do
    if #ids >= args.limit or args.room <= 0 then return end
    local id, width = lapsed[i], width_of(lapsed[i])
    if width <= args.room or now - lapsed[i + 1] > ELSEWHERE_MS then
      local claimed = reclaim(args, id)
      if claimed then args.room = args.room - width end
      ids[#ids + 1] = claimed
    end
  end
end

local function claim_jobs(args, widest)
  local ids, model, dry = {}, args.model, false
  sync(model)
  claim_lapsed(args, ids)
  if redis.call('EXISTS', SUSPENDED, PAUSED .. model) > 0 then return ids end
  while not dry and #ids < args.limit and args.room > 0 do
    local sid, id = pop(model, widest)
    local claimed = sid and claim_waiting(args, sid, id)
    if claimed then
      ids[#ids + 1] = claimed
      args.room = args.room - width_of(id)
    end
    dry = not sid
  end
  dry = dry and not next(widest)                   -- else there may be some that are too wide for this worker
  if redis.call('LLEN', QUEUE .. model) == 0 then
    redis.call('DEL', LOAD .. model)               -- whatever other tools did meanwhile, no job waits
    if dry then redis.call('DEL', WAKE .. model) end
  elseif dry then                                  -- the jobs that still stand on the list have lost their lanes
    for _, id in ipairs(redis.call('LRANGE', QUEUE .. model, 0, SYNC_MAX - 1)) do
      add_entry(model, id)
    end
  end
  return ids
end

local function claim(args)
  local claim_token, worker, widest, ids = args.claim_token, args.worker, {}, {}
  for _, tenant in ipairs(args.tenants) do widest[tenant] = args.widest end
  local before = redis.call('GET', CLAIM .. claim_token)
  if before then
    for id in string.gmatch(before, '%S+') do
      if redis.call('HGET', JOB .. id, 'exec') == claim_token then ids[#ids + 1] = id end
    end
  else
    ids = claim_jobs(args, widest)
    if ids[1] then redis.call('SET', CLAIM .. claim_token, table.concat(ids, ' '), 'EX', CLAIM_TTL_S) end
  end
  if ids[1] and redis.call('EXISTS', WORKER .. worker) == 1 then
    redis.call('HSET', WORKER .. worker, 'state', 'busy', 'current_job', ids[1])
  end
  local answer = {}
  for _, id in ipairs(ids) do answer[#answer + 1] = delivery(id) end
  return answer
end

-- verb: append
-- takes: list writes (id, claim_token, number first, list events)
-- needs: log
-- Append events to the logs of jobs, and publish them. -> {{id, -1 when the job is no longer the caller's, else the
-- length of a log that is shorter than the caller thinks: Redis has lost its end}*}

-- A job has progressed since its last claim: if its worker dies now, that is no more this job's fault than any other's.
-- If it ran isolated, its worker may run others again.
local function acquit(id, isolated, worker)
  redis.call('HSET', JOB .. id, 'moved', 1)
  if isolated then
    redis.call('HDEL', JOB .. id, 'alone')
    redis.call('DEL', SUSPECT .. worker)
  end
end

local function append(args)
  local refused, outbox = {}, {}
  for write in args.writes do
    local id = write.id
    -- Read by index: unpack() would cost this verb, which is called for every step, a twentieth.
    local h = redis.call('HMGET', JOB .. id, 'exec', 'status', 'subscribers', 'moved', 'alone', 'worker_name')
    if h[1] ~= write.claim_token or h[2] ~= 'started' then
      refused[#refused + 1] = { id, -1 }
    elseif not append_events(id, h[3], write.first, write.events, outbox) then
      refused[#refused + 1] = { id, redis.call('LLEN', LOG .. id) }
    elseif not h[4] and write.first + #write.events > 1 then     -- more than its opening
      acquit(id, h[5], h[6])
    end
  end
  publish(outbox)
  return refused
end

-- verb: renew
-- takes: worker, iso, ttl_s, number lease_ms, list held (model, id, claim_token)
-- needs: clock
-- Extend the leases of these jobs and the life of their worker's record. -> ids that are no longer the caller's
local function renew(args)
  local iso, lost, current, until_ms = args.iso, {}, nil, now_ms() + args.lease_ms
  for each in args.held do
    local id, job = each.id, JOB .. each.id
    local h = redis.call('HMGET', job, 'exec', 'status')     -- read by index, as in append
    if h[1] == each.claim_token and h[2] == 'started' then
      current = current or id
      redis.call('ZADD', LEASES .. each.model, until_ms, id)
      redis.call('HSET', job, 'last_heartbeat', iso)
    else
      lost[#lost + 1] = id
    end
  end
  local key = WORKER .. args.worker
  redis.call('HSET', key, 'last_heartbeat', iso, 'state', current and 'busy' or 'idle')
  if current then redis.call('HSET', key, 'current_job', current) else redis.call('HDEL', key, 'current_job') end
  redis.call('EXPIRE', key, args.ttl_s)
  return lost
end

-- verb: release
-- takes: model, worker, list held (id, claim_token)
-- needs: clock, timeline, wake
-- Hand these jobs back, with their logs: the next claim anywhere continues them. -> how many were the caller's
local function release(args)
  local model, released = args.model, 0
  for each in args.held do
    local id, job = each.id, JOB .. each.id
    local owner, status, sid = unpack(redis.call('HMGET', job, 'exec', 'status', 'sid'))
    if owner == each.claim_token and status == 'started' then
      redis.call('HDEL', job, 'exec')
      redis.call('HINCRBY', job, 'attempt', -1)
      redis.call('ZREM', STARTED .. model, id .. ':' .. owner)
      redis.call('ZADD', LEASES .. model, now_ms(), id)
      redis.call('HSET', job, 'sid', redis.call('XADD', STREAM .. model, '*', 'j', id))
      redis.call('XDEL', STREAM .. model, sid)
      note(job, 'released by ' .. args.worker)
      wake(model)
      released = released + 1
    end
  end
  redis.call('DEL', SUSPECT .. args.worker)
  return released
end
