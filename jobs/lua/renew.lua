-- Prolongs a lease and reads what is wanted of the job. ARGV: prefix, id, attempt, nonce
-- Returns {'ok', cancel, finish} or {'stale', why}
local job = load(ARGV[2])
if not holds(job, ARGV[3], ARGV[4]) then return refuse_stale(job, 'renew') end
local lease_until = int(now + LIMITS.lease_ms)
redis.call('HSET', P .. 'job:' .. job.id, 'lease_until', lease_until)
redis.call('ZADD', P .. 'leases', lease_until, job.id)
return {'ok', job.cancel, job.finish}
