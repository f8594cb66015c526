-- Puts a job back that the journal knows and Redis does not (or remembers from before).
-- ARGV: prefix, id, tenant, fields (JSON object of text), body digest, dedup digest,
--       state ('queued' | 'succeeded' | 'failed' | 'cancelled'), attempt, created ms, ended ms
--       or '', idempotency digest or '', its fingerprint, its nonce, version
-- Returns 'imported', 'advanced' (the record was behind the journal) or 'known'
-- This is the one script that sets a state past `move`: it repeats history and makes none, so it
-- emits no event, tells no webhook and counts no transition.
local id, tenant, body, dedup, state = ARGV[2], ARGV[3], ARGV[5], ARGV[6], ARGV[7]
local attempt, created, ended = tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10]
local prefix = P .. 'tenant:' .. tenant .. ':'
local key = P .. 'job:' .. id
local known = load(id)
local order, version = nil, tonumber(ARGV[14])
if known then
  if known.deleted ~= '' or known.state ~= 'queued' or known.attempt >= attempt then
    return 'known'
  end
  order, version = known.order, math.max(version, known.version + 1)
  redis.call('ZREM', P .. 'jobs:' .. known.state, id)
  redis.call('ZREM', prefix .. 'jobs:' .. known.state, id)
  redis.call('ZREM', P .. 'queue:' .. known.queue, id)
  redis.call('ZREM', P .. 'unpublished', id)
  redis.call('ZREM', P .. 'published', id)
else
  order = created * 1000
  while redis.call('ZCOUNT', P .. 'jobs', int(order), int(order)) > 0 do order = order + 1 end
  order = int(order)
end

local fields = cjson.decode(ARGV[4])
fields.id, fields.tenant, fields.state, fields.body, fields.dedup = id, tenant, state, body, dedup
fields.attempt, fields.strikes, fields.version = int(attempt), '0', int(version)
fields.order, fields.created, fields.queued = order, int(created), int(created)
fields.updated, fields.finished, fields.published = int(now), ended, ''
fields.nonce, fields.last = '', 'import'
local flat = {}
for name, value in pairs(fields) do
  flat[#flat + 1] = name
  flat[#flat + 1] = value
end
redis.call('HSET', key, unpack(flat))
redis.call('ZADD', P .. 'jobs', order, id)
redis.call('ZADD', P .. 'jobs:' .. state, order, id)
redis.call('ZADD', prefix .. 'jobs', order, id)
redis.call('ZADD', prefix .. 'jobs:' .. state, order, id)
redis.call('SADD', P .. 'tenants', tenant)
if fields.batch then redis.call('ZADD', prefix .. 'batch:' .. fields.batch, order, id) end
if state == 'queued' then
  redis.call('SADD', P .. 'queues', fields.queue)
  local place = (9 - tonumber(fields.priority)) * 1e13 + created
  redis.call('ZADD', P .. 'queue:' .. fields.queue, int(place), id)
  redis.call('ZADD', P .. 'unpublished', int(now), id)
else
  redis.call('ZADD', P .. 'finished', ended, id)
end
if state == 'queued' or (state == 'succeeded' and fields.finish ~= '1') then
  redis.call('HSETNX', prefix .. 'dedup', dedup, id)
end
if ARGV[11] ~= '' then
  local idem_key = prefix .. 'idempotency:' .. ARGV[11]
  local left = created + LIMITS.idempotency_ms - now
  if left > 0 then
    redis.call('HSET', idem_key, 'job', id, 'fingerprint', ARGV[12], 'nonce', ARGV[13])
    redis.call('PEXPIRE', idem_key, int(left))
  end
end
return known and 'advanced' or 'imported'
