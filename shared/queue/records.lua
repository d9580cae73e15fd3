-- Records that are stored beside jobs for their clients to read again: chat completions and responses. A record is
-- written in the call that accepts its job, so a refused request leaves nothing behind. Its bytes count to its tenant
-- until it is deleted or has expired. A member of `stored` is `bytes key`, scored by the time at which the record
-- expires.

-- part: stored
local RECORD_BYTES = 300           -- what Redis takes for a record beside its text

local function give_back(tenant, member)
  if redis.call('ZREM', STORED .. tenant, member) == 0 then return 0 end
  local bytes = tonumber(string.match(member, '^%d+'))
  redis.call('DECRBY', STORED_BYTES .. tenant, bytes)
  return bytes
end

-- Return the member that stands for the record as it is now.
local function member_of(key)
  return (redis.call('STRLEN', key) + RECORD_BYTES) .. ' ' .. key
end

local function drop_record(tenant, key, index, id)
  give_back(tenant, member_of(key))
  if index ~= '' then redis.call('ZREM', index, id) end
  return redis.call('DEL', key)
end

-- part: record
-- needs: clock, raise_ttl, stored
local EXPIRED_MAX = 1000           -- records whose bytes are given back in one call

-- Add the job's fields to the record that its caller sent (key, data, ttl_s, bytes_max, index), or return nil for none.
-- `index` is '' for a record that no list holds.
local function record_with(record, tenant, id, created_ms)
  if not record then return nil end
  record.tenant, record.id, record.created_ms, record.bytes = tenant, id, created_ms, #record.data + RECORD_BYTES
  return record
end

local function stored_bytes(tenant)
  local expired = redis.call('ZRANGEBYSCORE', STORED .. tenant, '-inf', now_ms(), 'LIMIT', 0, EXPIRED_MAX)
  for _, member in ipairs(expired) do give_back(tenant, member) end
  if redis.call('EXISTS', STORED .. tenant) == 0 then redis.call('DEL', STORED_BYTES .. tenant) end
  return tonumber(redis.call('GET', STORED_BYTES .. tenant) or 0)
end

-- Return the bytes that the tenant has stored if the record does not fit beside them; nil if it does, or if there is
-- no record.
local function over_storage(record)
  if not record then return nil end
  local used, member = stored_bytes(record.tenant), member_of(record.key)
  local replaced = redis.call('ZSCORE', STORED .. record.tenant, member) and string.match(member, '^%d+') or 0
  if used - replaced + record.bytes > record.bytes_max then return used end
end

local function write_record(record)
  if not record then return end
  drop_record(record.tenant, record.key, '', record.id)
  redis.call('SET', record.key, record.data, 'EX', record.ttl_s)
  redis.call('ZADD', STORED .. record.tenant, now_ms() + record.ttl_s * 1000, record.bytes .. ' ' .. record.key)
  redis.call('INCRBY', STORED_BYTES .. record.tenant, record.bytes)
  raise_ttl(STORED .. record.tenant, record.ttl_s)
  raise_ttl(STORED_BYTES .. record.tenant, record.ttl_s)
  if record.index == '' then return end
  redis.call('ZADD', record.index, record.created_ms, record.id)
  redis.call('ZREMRANGEBYSCORE', record.index, '-inf', now_ms() - record.ttl_s * 1000)
  raise_ttl(record.index, record.ttl_s)
end

-- verb: store
-- takes: tenant, id, created_ms, list records (key, data, number ttl_s, number bytes_max, index)
-- needs: record
-- Write a record without a job, or replace the one of the same key. -> {ok|storage_full, bytes stored}
local function store(args)
  local record = record_with(args.records(), args.tenant, args.id, args.created_ms)
  local stored = over_storage(record)
  if stored then return { 'storage_full', stored } end
  write_record(record)
  return { 'ok', 0 }
end

-- verb: discard
-- takes: tenant, key, index, id
-- needs: stored
-- Delete a record. -> how many records are gone
local function discard(args)
  return drop_record(args.tenant, args.key, args.index, args.id)
end
