-- Queues a failed or cancelled job again. ARGV: prefix, id, most active jobs of the tenant
-- (0 = any number)
-- Returns {'ok', hash}, {'missing'}, {'wrong_state', state} or {'quota', name, limit, used}
local job = load(ARGV[2])
if not job or job.deleted ~= '' then return {'missing'} end
if job.state ~= 'failed' and job.state ~= 'cancelled' then return {'wrong_state', job.state} end
local tenant, limit = P .. 'tenant:' .. job.tenant .. ':', tonumber(ARGV[3])
local active = redis.call('ZCARD', tenant .. 'jobs:queued')
  + redis.call('ZCARD', tenant .. 'jobs:running')
if limit > 0 and active >= limit then return {'quota', 'active_jobs', limit, active} end
job.cancel = ''
move(job, 'retry_' .. job.state, {
  strikes = '0', cancel = '', finish = '', failure = '', progress = '', finished = '',
  queued = int(now),
})
redis.call('HSET', tenant .. 'dedup', job.dedup, job.id)
return answer('ok', job.id)
