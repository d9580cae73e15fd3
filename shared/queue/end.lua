-- How jobs end: settled by their owner, cancelled by anybody, left by their client; and how a model is forgotten.

-- part: close
-- needs: clock, drop_entry, idempotency, let_go, raise_ttl, timeline, wake, width
-- Close a job: its entry, its lease, its registry, its lifetime. Only failed jobs keep their payload, since only they
-- can run again.
local function close(model, id, status, iso, ttl_s)
  local job = JOB .. id
  local sid, claim_token, idempotency, isolated, worker, keep_s, notify, tenant = unpack(redis.call(
    'HMGET', job, 'sid', 'exec', 'idempotency', 'alone', 'worker_name', 'keep_s', 'notify', 'tenant'))
  if sid then drop_entry(model, sid) end
  if claim_token then redis.call('ZREM', STARTED .. model, id .. ':' .. claim_token) end
  if isolated then redis.call('DEL', SUSPECT .. worker) end
  redis.call('ZREM', LEASES .. model, id)
  let_go(id)
  redis.call('HDEL', job, 'sid', 'exec', 'alone', 'moved')
  redis.call('HSET', job, 'status', status, 'ended_at', iso)
  if status ~= 'failed' then redis.call('HDEL', job, 'payload') end
  if status == 'finished' and (idempotency or '') ~= '' then ttl_s = math.max(ttl_s, IDEMPOTENCY_TTL_S) end
  ttl_s = math.max(ttl_s, tonumber(keep_s or 0))
  if notify == '1' then redis.call('RPUSH', NOTICES, id .. ' ' .. tenant) end
  local registry = ({ finished = FINISHED, failed = FAILED, canceled = CANCELED })[status] .. model
  local now_s = math.floor(now_ms() / 1000)
  redis.call('ZREMRANGEBYSCORE', registry, '-inf', now_s)
  redis.call('ZADD', registry, now_s + ttl_s, id)
  raise_ttl(registry, ttl_s + 3600)
  -- `rq requeue --all` dies on a registered id without a hash.
  redis.call('EXPIRE', job, status == 'failed' and ttl_s + 3600 or ttl_s)
  redis.call('EXPIRE', LOG .. id, ttl_s)
  note(job, status)
  -- Its worker may have passed over others that were too wide beside it.
  if width_of(id) > 1 and redis.call('LLEN', QUEUE .. model) > 0 then wake(model) end
end

-- part: correct
-- needs: charge, clock, correct_limits, place, rate
-- Return the time in milliseconds between two ends if they were spread evenly: this job's duration divided by how many
-- ran with it; nil if it is not known.
local function usual_gap(model, id)
  local deadline_ms, run_ms = unpack(redis.call('HMGET', JOB .. id, 'deadline_ms', 'run_ms'))
  if not deadline_ms then return nil end
  local took = now_ms() - (deadline_ms - run_ms)
  return took / (redis.call('ZCARD', LEASES .. model) + 1)
end

-- Charge a claimed job for the tokens that it really took, instead of the estimate.
local function correct(model, id, tokens)
  local place = place_of(JOB .. id)
  charge_both(model, place, tokens - place.cost)
  correct_limits(id, math.floor(tokens - place.cost))
  note_rate(model, tokens, usual_gap(model, id))
end

-- part: cancel_job
-- needs: close, correct, correct_limits, log, place, remove, timeline, unlist
local function cancel_job(id, iso, ttl_s, event, by)
  local job = JOB .. id
  local status, model, sid, worker, subscribers =
    unpack(redis.call('HMGET', job, 'status', 'origin', 'sid', 'worker_name', 'subscribers'))
  if status ~= 'queued' and status ~= 'started' then return status or '' end
  local outbox = {}
  append_events(id, subscribers, redis.call('LLEN', LOG .. id), { event }, outbox)
  note(job, 'cancelled by ' .. by)
  if status == 'queued' then
    unlist(model, id, sid)
    remove(model, id, sid or '')
    correct_limits(id, -place_of(job).cost)
    close(model, id, 'canceled', iso, ttl_s)
  else
    close(model, id, 'canceled', iso, ttl_s)
    correct(model, id, tonumber(redis.call('HGET', job, 'prompt_tokens') or 0) + redis.call('LLEN', LOG .. id))
    redis.call('PUBLISH', CONTROL .. (worker or ''), id)
  end
  publish(outbox)
  return status
end

-- verb: settle
-- takes: model, id, claim_token, status, iso, number ttl_s, worker, exc, number tokens, number output, number first
-- takes: list events
-- needs: close, correct, drop_entry, log, output
-- End a job with its last events, if the caller owns it. -> settled | lost | the length of a log that is shorter than
-- the caller thinks
local function settle(args)
  local model, id, claim_token, ending = args.model, args.id, args.claim_token, args.status
  local owner, status, subscribers, sid =
    unpack(redis.call('HMGET', JOB .. id, 'exec', 'status', 'subscribers', 'sid'))
  if owner ~= claim_token then return 'lost' end
  if status ~= 'started' then                      -- RQ cancelled or abandoned it: only our entry is left
    if sid then drop_entry(model, sid) end
    redis.call('ZREM', STARTED .. model, id .. ':' .. claim_token)
    redis.call('ZREM', LEASES .. model, id)
    redis.call('HDEL', JOB .. id, 'sid', 'exec')
    return 'lost'
  end
  local outbox = {}
  if not append_events(id, subscribers, args.first, args.events, outbox) then return redis.call('LLEN', LOG .. id) end
  close(model, id, ending, args.iso, args.ttl_s)
  correct(model, id, args.tokens)
  if ending == 'finished' then note_output(model, args.output) end
  if args.exc ~= '' then
    local results = RESULTS .. id
    redis.call('XADD', results, 'MAXLEN', 10, '*', 'type', 2, 'worker_name', args.worker, 'exc_string', args.exc)
    redis.call('EXPIRE', results, args.ttl_s)
  end
  local counter = ending == 'finished' and 'successful_job_count' or 'failed_job_count'
  if ending ~= 'canceled' and redis.call('EXISTS', WORKER .. args.worker) == 1 then
    redis.call('HINCRBY', WORKER .. args.worker, counter, 1)
  end
  publish(outbox)
  return 'settled'
end

-- verb: cancel
-- takes: id, iso, number ttl_s, event, by
-- needs: cancel_job
-- End a job as cancelled unless it has ended. -> the state the job was in; '' when there is no such job
local function cancel(args)
  return cancel_job(args.id, args.iso, args.ttl_s, args.event, args.by)
end

-- verb: leave
-- takes: id, iso, number ttl_s, event, channel
-- needs: cancel_job
-- Cancel a job unless another process still reads it. -> as cancel; 'kept' when one does
local function leave(args)
  local others = {}
  for other in string.gmatch(redis.call('HGET', JOB .. args.id, 'subscribers') or '', '%S+') do
    if other ~= args.channel and redis.call('PUBSUB', 'NUMSUB', other)[2] > 0 then others[#others + 1] = other end
  end
  if others[1] then
    redis.call('HSET', JOB .. args.id, 'subscribers', table.concat(others, ' '))
    return 'kept'
  end
  return cancel_job(args.id, args.iso, args.ttl_s, args.event, 'its client')
end

-- verb: forget_model
-- takes: model
-- Forget a model, unless jobs wait or run or a worker is alive. Its ended jobs are kept as long as they would have
-- been. While failed jobs are among them, their queue stays listed, so that they can be found. -> {jobs that wait or
-- run, workers alive}, {0, 0} when the model is forgotten
local function forget_model(args)
  local model, workers = args.model, 0
  local jobs = redis.call('LLEN', QUEUE .. model) + redis.call('ZCARD', LEASES .. model)
  for _, key in ipairs(redis.call('SMEMBERS', WORKERS_OF .. model)) do
    workers = workers + redis.call('EXISTS', key)
  end
  if jobs > 0 or workers > 0 then return { jobs, workers } end
  redis.call('SREM', MODELS, model)
  redis.call('DEL', MODEL .. model, PAUSED .. model, PACE .. model, WORKERS_OF .. model)
  if redis.call('EXISTS', FAILED .. model) == 0 then redis.call('SREM', QUEUES, QUEUE .. model) end
  return { 0, 0 }
end
