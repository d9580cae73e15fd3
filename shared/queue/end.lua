-- These verbs end things without the owner of a job: a job that anybody cancels, and a model that is forgotten. What
-- the end of any job corrects is here, too.

-- part: correct
-- needs: charge, clock, correct_limits, leave_quota, place, rate
-- Return the time in milliseconds between two ends if they were spread evenly: this job's duration divided by how many
-- ran with it; nil if it is not known.
local function usual_gap(model, id)
  local deadline_ms, run_ms, due_ms = unpack(redis.call('HMGET', JOB .. id, 'deadline_ms', 'run_ms', 'due_ms'))
  local of_due = deadline_ms and due_ms and tonumber(deadline_ms) >= tonumber(due_ms)
  if not deadline_ms or of_due then return nil end
  local took = now_ms() - (deadline_ms - run_ms)
  return took / (redis.call('ZCARD', LEASES .. model) + 1)
end

-- Charge a claimed job for the tokens that it really took, instead of the estimate.
local function correct(model, id, tokens)
  local place = place_of(JOB .. id)
  charge_both(model, place, tokens - place.cost)
  correct_limits(id, math.floor(tokens - place.cost))
  leave_quota(model, id, tokens - place.cost)
  note_rate(model, tokens, usual_gap(model, id))
end

-- part: cancel_job
-- needs: close, correct, correct_limits, log, not_ended, place, remove, scheduled, timeline, unlist
local function cancel_job(id, iso, ttl_s, event, by)
  local job = JOB .. id
  local status, model, sid, worker, subscribers =
    unpack(redis.call('HMGET', job, 'status', 'origin', 'sid', 'worker_name', 'subscribers'))
  if not not_ended(status) then return status or '' end
  local messages = {}
  append_events(id, subscribers, redis.call('LLEN', LOG .. id), { event }, messages)
  note(job, 'cancelled by ' .. by)
  if status == 'scheduled' then
    unschedule(model, id)
    correct_limits(id, -place_of(job).cost)
    close(model, id, 'canceled', iso, ttl_s)
  elseif status == 'queued' then
    unlist(model, id, sid)
    remove(model, id, sid or '')
    correct_limits(id, -place_of(job).cost)
    close(model, id, 'canceled', iso, ttl_s)
  else
    close(model, id, 'canceled', iso, ttl_s)
    correct(model, id, tonumber(redis.call('HGET', job, 'prompt_tokens') or 0) + redis.call('LLEN', LOG .. id))
    redis.call('PUBLISH', CONTROL .. (worker or ''), id)
  end
  publish(messages)
  return status
end

-- verb: cancel
-- takes: id, iso, number ttl_s, event, by
-- needs: cancel_job
-- End a job as cancelled unless it has ended. -> the state the job was in; '' when there is no such job
local function cancel(args)
  return cancel_job(args.id, args.iso, args.ttl_s, args.event, args.by)
end

-- verb: forget_model
-- takes: model
-- Forget a model, unless jobs wait or run or a worker is alive. Its ended jobs are kept as long as they would have
-- been. While failed jobs are among them, their queue stays listed, so that they can be found. -> {jobs that wait or
-- run, workers alive}, {0, 0} when the model is forgotten
local function forget_model(args)
  local model, workers = args.model, 0
  local jobs = redis.call('LLEN', QUEUE .. model) + redis.call('ZCARD', LEASES .. model)
  jobs = jobs + redis.call('ZCARD', SCHEDULED .. model)
  for _, key in ipairs(redis.call('SMEMBERS', WORKERS_OF .. model)) do
    workers = workers + redis.call('EXISTS', key)
  end
  if jobs > 0 or workers > 0 then return { jobs, workers } end
  redis.call('SREM', MODELS, model)
  redis.call('DEL', MODEL .. model, PAUSED .. model, PACE .. model, WORKERS_OF .. model)
  if redis.call('EXISTS', FAILED .. model) == 0 then redis.call('SREM', QUEUES, QUEUE .. model) end
  return { 0, 0 }
end
