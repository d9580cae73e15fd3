-- Leases of running jobs. The owner of a job is the worker that holds its claim token (the field `exec`), which is new
-- with each claim; nothing is written for the job without it. The owner renews its lease, by Redis's clock, or hands
-- the job back. A job whose lease has lapsed is taken over by the next claim.

-- part: lapsed
-- needs: clock, drop_entry, place, quota, start, timeline, width
local SUSPECT_KEPT_S = 30       -- after its job was taken over
local SWEEP_MAX = 10000
local LAPSED_MORE = 64          -- lapsed leases examined beyond `limit`, since some may not be claimed here
local ELSEWHERE_MS = 300        -- after this long, take a lapsed job that does not fit here; a roomier worker has had
                                -- its chance

-- Another tool has ended or deleted a running job: only its entry is left.
local function drop_entry_of_ended(model, id, status)
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

-- Take over a job whose lease has run out. `attempt` counts the claims without progress. On the last attempt start()
-- marks the job as isolated, and it runs so, one at a time on a worker: if it kills its worker again, the other
-- jobs there did not.
local function reclaim(args, id)
  local job = JOB .. id
  local status, owner, attempt, worker, progressed =
    unpack(redis.call('HMGET', job, 'status', 'exec', 'attempt', 'worker_name', 'moved'))
  if status ~= 'started' then
    redis.call('ZREM', LEASES .. args.model, id)
    drop_entry_of_ended(args.model, id, status)
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
  if suspect == id then redis.call('EXPIRE', SUSPECT .. worker, SUSPECT_KEPT_S) end
  return start(args, id, next_attempt)
end

-- Claim jobs that were running: their lease has run out, or their owner has let go of them. A job that would have to
-- wait for room in this worker is left to other workers for a moment.
local function claim_lapsed(args, ids)
  local leases, now, most = LEASES .. args.model, now_ms(), args.limit + LAPSED_MORE
  local lapsed = redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'WITHSCORES', 'LIMIT', 0, most)
  for i = 1, #lapsed, 2 do
    if #ids >= args.limit or args.room <= 0 then return end
    local id, width = lapsed[i], width_of(lapsed[i])
    local cost = #args.quotas > 0 and place_of(JOB .. id).cost
    local quota = cost and quota_for(args.quotas, cost)
    if (quota or not cost) and (width <= args.room or now - lapsed[i + 1] > ELSEWHERE_MS) then
      local claimed = reclaim(args, id)
      if claimed then args.room = args.room - width end
      if claimed and quota then take_quota(quota, id, cost, args.lease_ms) end
      ids[#ids + 1] = claimed
    end
  end
end

-- verb: renew
-- takes: worker, iso, ttl_s, number lease_ms, list held (model, id, claim_token)
-- needs: clock, renew_quota
-- Extend the leases of these jobs and the life of their worker's record. -> ids that are no longer the caller's
local function renew(args)
  local iso, lost, current, until_ms = args.iso, {}, nil, now_ms() + args.lease_ms
  for each in args.held do
    local id, job = each.id, JOB .. each.id
    local h = redis.call('HMGET', job, 'exec', 'status', 'quota')     -- read by index, as in append
    if h[1] == each.claim_token and h[2] == 'started' then
      current = current or id
      redis.call('ZADD', LEASES .. each.model, until_ms, id)
      if h[3] then renew_quota(h[3], id, until_ms) end
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
-- needs: clock, leave_quota, place, timeline, wake
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
      leave_quota(model, id, -place_of(job).cost)
      note(job, 'released by ' .. args.worker)
      wake(model)
      released = released + 1
    end
  end
  redis.call('DEL', SUSPECT .. args.worker)
  return released
end
