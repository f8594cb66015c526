-- Takes an idempotency key for one request. ARGV: prefix, tenant, digest, nonce
-- Returns {'claimed'}, {'replay', job id, fingerprint} or {'in_flight', ms}
local key = P .. 'tenant:' .. ARGV[2] .. ':idempotency:' .. ARGV[3]
local seen = redis.call('HMGET', key, 'job', 'fingerprint', 'nonce')
if seen[1] then
  local job = load(seen[1])
  if job and job.deleted == '' then return {'replay', seen[1], seen[2]} end
elseif seen[3] and seen[3] ~= ARGV[4] then
  return {'in_flight', redis.call('PTTL', key)}
end
redis.call('DEL', key)
redis.call('HSET', key, 'nonce', ARGV[4])
redis.call('PEXPIRE', key, LIMITS.idempotency_lock_ms)
return {'claimed'}
