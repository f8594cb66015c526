-- Gives an idempotency key back if no job came of it. ARGV: prefix, tenant, digest, nonce
local key = P .. 'tenant:' .. ARGV[2] .. ':idempotency:' .. ARGV[3]
local seen = redis.call('HMGET', key, 'job', 'nonce')
if not seen[1] and seen[2] == ARGV[4] then return redis.call('DEL', key) end
return 0
