-- What is stored beside a job for its client to read again: a chat completion, a response. A record is written in the
-- call that accepts its job, so a refused request leaves nothing behind; its bytes count to its tenant until it is
-- deleted or has expired. A member of `stored` is `bytes key`, by the time at which the record expires.

local RECORD_BYTES = 300           -- what Redis takes for a record beside its text
local EXPIRED_MAX = 1000           -- given back in one call

-- `key` is '' for a job that has no record; `index` is '' for a record that no list holds.
local function record_of(tenant, id, created_ms, key, data, ttl_s, most, index)
  return { tenant = tenant, id = id, created_ms = created_ms, key = key, data = data, ttl_s = tonumber(ttl_s),
           most = tonumber(most), index = index, bytes = #data + RECORD_BYTES }
end

local function give_back(tenant, member)
  if redis.call('ZREM', stored_key(tenant), member) == 0 then return 0 end
  local bytes = tonumber(string.match(member, '^%d+'))
  redis.call('DECRBY', stored_bytes_key(tenant), bytes)
  return bytes
end

-- The member that stands for the record as it is now.
local function member_of(key)
  return (redis.call('STRLEN', key) + RECORD_BYTES) .. ' ' .. key
end

local function stored_bytes(tenant)
  local expired = redis.call('ZRANGEBYSCORE', stored_key(tenant), '-inf', now_ms(), 'LIMIT', 0, EXPIRED_MAX)
  for _, member in ipairs(expired) do give_back(tenant, member) end
  if redis.call('EXISTS', stored_key(tenant)) == 0 then redis.call('DEL', stored_bytes_key(tenant)) end
  return tonumber(redis.call('GET', stored_bytes_key(tenant)) or 0)
end

local function drop_record(tenant, key, index, id)
  give_back(tenant, member_of(key))
  if index ~= '' then redis.call('ZREM', index, id) end
  return redis.call('DEL', key)
end

-- The bytes that the tenant has stored when this record does not fit beside them; nil when it does.
local function over_storage(record)
  if record.key == '' then return nil end
  local used, member = stored_bytes(record.tenant), member_of(record.key)
  local replaced = redis.call('ZSCORE', stored_key(record.tenant), member) and string.match(member, '^%d+') or 0
  if used - replaced + record.bytes > record.most then return used end
end

local function write_record(record)
  if record.key == '' then return end
  drop_record(record.tenant, record.key, '', record.id)
  redis.call('SET', record.key, record.data, 'EX', record.ttl_s)
  redis.call('ZADD', stored_key(record.tenant), now_ms() + record.ttl_s * 1000, record.bytes .. ' ' .. record.key)
  redis.call('INCRBY', stored_bytes_key(record.tenant), record.bytes)
  live(stored_key(record.tenant), record.ttl_s)
  live(stored_bytes_key(record.tenant), record.ttl_s)
  if record.index == '' then return end
  redis.call('ZADD', record.index, record.created_ms, record.id)
  redis.call('ZREMRANGEBYSCORE', record.index, '-inf', now_ms() - record.ttl_s * 1000)
  live(record.index, record.ttl_s)
end
