-- Accepts a job: the record, its indexes, its first event.
-- ARGV: prefix, id, tenant, fields (JSON object of text), submission nonce, body digest,
--       dedup digest, deduplicate '1' or '0', idempotency digest or '', its nonce, its fingerprint,
--       most active jobs of the tenant, most jobs waiting in the queue (0 = any)
-- Returns {'created' | 'deduplicated' | 'replayed', hash}, {'taken'}, {'mismatch', id},
--         {'in_flight', ms}, {'quota', name, limit, used}
local id, tenant, submission, body, dedup = ARGV[2], ARGV[3], ARGV[5], ARGV[6], ARGV[7]
local fields = cjson.decode(ARGV[4])
local idem, idem_nonce, idem_fingerprint = ARGV[9], ARGV[10], ARGV[11]
local max_active, queue_limit = tonumber(ARGV[12]), tonumber(ARGV[13])
local prefix = P .. 'tenant:' .. tenant .. ':'
local idem_key = prefix .. 'idempotency:' .. idem

local function remember(job_id)
  if idem == '' then return end
  redis.call('HSET', idem_key, 'job', job_id, 'fingerprint', idem_fingerprint, 'nonce', idem_nonce)
  redis.call('PEXPIRE', idem_key, LIMITS.idempotency_ms)
end

local known = load(id)
if known then
  if known.tenant ~= tenant or known.deleted ~= '' then return {'taken'} end
  if known.submission == submission then return answer('created', id) end
  if known.body ~= body then return {'taken'} end
  remember(id)
  return answer('replayed', id)
end

if idem ~= '' then
  local seen = redis.call('HMGET', idem_key, 'job', 'fingerprint', 'nonce')
  local made = seen[1] and load(seen[1])
  if made and made.deleted == '' then
    if seen[2] ~= idem_fingerprint then return {'mismatch', seen[1]} end
    return answer('replayed', seen[1])
  end
  if seen[3] and not seen[1] and seen[3] ~= idem_nonce then
    return {'in_flight', redis.call('PTTL', idem_key)}
  end
end

if ARGV[8] == '1' then
  local earlier_id = redis.call('HGET', prefix .. 'dedup', dedup)
  local earlier = earlier_id and load(earlier_id)
  if earlier and earlier.deleted == '' and earlier.cancel ~= '1' and earlier.finish ~= '1'
    and (earlier.state == 'queued' or earlier.state == 'running'
      or earlier.state == 'succeeded') then
    remember(earlier_id)
    count('jobs_deduplicated')
    return answer('deduplicated', earlier_id)
  end
end

local active = redis.call('ZCARD', prefix .. 'jobs:queued')
  + redis.call('ZCARD', prefix .. 'jobs:running')
if max_active > 0 and active >= max_active then
  return {'quota', 'active_jobs', max_active, active}
end
local waiting = redis.call('ZCARD', P .. 'queue:' .. fields.queue)
if queue_limit > 0 and waiting >= queue_limit then
  return {'quota', 'queue', queue_limit, waiting}
end

-- The order of creation is a microsecond that no other job has.
local order = math.max(now_us, tonumber(redis.call('GET', P .. 'last_order') or '0') + 1)
redis.call('SET', P .. 'last_order', int(order))

local job = {
  id = id, tenant = tenant, state = '', queue = fields.queue, priority = fields.priority,
  attempt = 0, strikes = 0, version = 0, order = int(order), webhook = fields.webhook or '',
  attempts = '', queued = int(now),
}
fields.id = id
fields.tenant = tenant
fields.attempt = '0'
fields.strikes = '0'
fields.order = job.order
fields.created = int(now)
fields.queued = int(now)
fields.submission = submission
fields.body = body
fields.dedup = dedup
redis.call('ZADD', P .. 'jobs', job.order, id)
redis.call('ZADD', prefix .. 'jobs', job.order, id)
redis.call('SADD', P .. 'tenants', tenant)
if fields.batch then redis.call('ZADD', prefix .. 'batch:' .. fields.batch, job.order, id) end
redis.call('HSET', prefix .. 'dedup', dedup, id)
move(job, 'create', fields)
remember(id)
return answer('created', id)
