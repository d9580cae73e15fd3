-- Where waiting jobs stand, for those who wait with them. This only reads.

-- verb: locate
-- takes: list ids
-- needs: ahead, lane, pace, place
-- Estimate what is served before each job: jobs, tokens, and the wait in milliseconds, 0 if that is unknown. Within its
-- class, tenants take turns, so that of another tenant as many jobs count as of its own. -> {{id, state, jobs, tokens,
-- milliseconds}*}, without jobs that are gone
local LANE_MAX = 1000     -- jobs of a lane that are looked at,
local LANES_MAX = 64      -- of so many lanes; a job beyond counts all of its class

-- Return a class of a model as it stands: what waits in it and in those above, what waits in those above, the pace, and
-- the tenants in the order of their turns, with how many jobs each has.
local function class_of(model, class)
  local jobs, tokens = ahead(model, class)
  local above_jobs, above_tokens = ahead(model, class - 1)
  local turns = {}
  for i, tenant in ipairs(redis.call('ZRANGE', LINE .. model .. ':' .. class, 0, LANES_MAX - 1)) do
    turns[i] = { tenant = tenant, jobs = redis.call('LLEN', lane_of(model, { class = class, tenant = tenant })) }
  end
  return { jobs = jobs, tokens = tokens, above_jobs = above_jobs, above_tokens = above_tokens,
           pace = ms_per_token(model), turns = turns }
end

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

local function looked_up(seen, lane)
  if not seen.lanes[lane] and seen.count < LANES_MAX then
    seen.lanes[lane], seen.count = places_in(lane), seen.count + 1
  end
  return seen.lanes[lane] or {}
end

-- Count the jobs of other tenants that are served before a job that `own` jobs of its tenant precede. Those that were
-- served less than its tenant have one more turn.
local function of_others(class, tenant, own)
  local jobs, turns = 0, own + 1
  for _, other in ipairs(class.turns) do
    if other.tenant == tenant then turns = own else jobs = jobs + math.min(other.jobs, turns) end
  end
  return jobs
end

-- Return what is served before a waiting job: jobs, tokens, and the wait in milliseconds. `seen` holds what was looked
-- up for the jobs before it: a thousand streams may wait, and Redis does nothing else meanwhile.
local function before(model, id, seen)
  local place = place_of(JOB .. id)
  local name = model .. ':' .. place.class
  seen.classes[name] = seen.classes[name] or class_of(model, place.class)
  local class, own = seen.classes[name], looked_up(seen, lane_of(model, place))[id]
  local jobs, tokens = class.jobs, class.tokens
  if own then
    local others = of_others(class, place.tenant, own[1])
    local each = (class.tokens - class.above_tokens) / math.max(class.jobs - class.above_jobs, 1)
    jobs, tokens = class.above_jobs + own[1] + others, math.floor(class.above_tokens + own[2] + others * each)
  end
  return jobs, tokens, math.floor(tokens * class.pace)
end

local function locate(args)
  local answer, seen = {}, { lanes = {}, count = 0, classes = {} }
  for _, id in ipairs(args.ids) do
    local status, model = unpack(redis.call('HMGET', JOB .. id, 'status', 'origin'))
    local jobs, tokens, wait = 0, 0, 0
    if status == 'queued' then jobs, tokens, wait = before(model, id, seen) end
    if status then answer[#answer + 1] = { id, status, jobs, tokens, wait } end
  end
  return answer
end
