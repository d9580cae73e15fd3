-- Where waiting jobs stand, for those who wait with them. This only reads.

-- verb: locate
-- takes: list ids
-- needs: ahead, lane, pace, place
-- Estimate what is served before each job: jobs, tokens, and the wait in milliseconds, 0 if that is unknown. Within its
-- class, tenants take turns, so that of another tenant as many jobs count as of its own. -> {{id, state, jobs, tokens,
-- milliseconds}*}, without jobs that are gone
local LANE_MAX = 1000     -- jobs of a lane that are looked at,
local LANES_MAX = 64      -- of so many lanes; a job beyond counts all of its class

-- Map the first jobs of a lane to what is before them in it: jobs and tokens.
local function places_in(lane)
  local found, tokens = {}, 0
  for i, item in ipairs(redis.call('LRANGE', lane, 0, LANE_MAX - 1)) do
    local id, cost = string.match(item, '^%S+ (%S+) (%S+)$')
    found[id] = { i - 1, tokens }
    tokens = tokens + cost
  end
  return found
end

local function looked_up(lanes, lane)
  if not lanes[lane] and lanes.count < LANES_MAX then
    lanes[lane], lanes.count = places_in(lane), lanes.count + 1
  end
  return lanes[lane] or {}
end

-- How many jobs of other tenants are served before a job that `own` jobs of its tenant precede. Those that were served
-- less than its tenant have one more turn.
local function of_others(model, place, own)
  local jobs, turns = 0, own + 1
  for _, tenant in ipairs(redis.call('ZRANGE', LINE .. model .. ':' .. place.class, 0, LANES_MAX - 1)) do
    if tenant == place.tenant then
      turns = own
    else
      local lane = lane_of(model, { class = place.class, tenant = tenant })
      jobs = jobs + math.min(redis.call('LLEN', lane), turns)
    end
  end
  return jobs
end

local function before(model, id, lanes)
  local place = place_of(JOB .. id)
  local jobs, tokens = ahead(model, place.class)
  local own = looked_up(lanes, lane_of(model, place))[id]
  if not own then return jobs, tokens end
  local above_jobs, above_tokens = ahead(model, place.class - 1)
  local others = of_others(model, place, own[1])
  local each = (tokens - above_tokens) / math.max(jobs - above_jobs, 1)
  return above_jobs + own[1] + others, math.floor(above_tokens + own[2] + others * each)
end

local function locate(args)
  local answer, lanes = {}, { count = 0 }
  for _, id in ipairs(args.ids) do
    local status, model = unpack(redis.call('HMGET', JOB .. id, 'status', 'origin'))
    local jobs, tokens, wait = 0, 0, 0
    if status == 'queued' then
      jobs, tokens = before(model, id, lanes)
      wait = math.floor(tokens * ms_per_token(model))
    end
    if status then answer[#answer + 1] = { id, status, jobs, tokens, wait } end
  end
  return answer
end
