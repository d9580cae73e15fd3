-- Which API processes read a job: the channels in its field `subscribers`.

-- part: subscribe
-- needs: not_ended
-- Publish the job's further events to this channel as well; return the job's state.
local function subscribe(id, channel)
  local job = JOB .. id
  local status, subscribers = unpack(redis.call('HMGET', job, 'status', 'subscribers'))
  if channel ~= '' and not_ended(status) then
    for other in string.gmatch(subscribers or '', '%S+') do
      if other == channel then return status end
    end
    redis.call('HSET', job, 'subscribers', (subscribers or '') .. ' ' .. channel)
  end
  return status
end

-- verb: attach
-- takes: id, channel
-- needs: subscribe
-- Publish the job's further events to this channel as well. -> the job's state; '' when there is no such job
local function attach(args)
  return subscribe(args.id, args.channel) or ''
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
