-- Begins to delete a job: from here on nobody sees it, claims it or moves it.
-- ARGV: prefix, id, withdraw '1' (take back a submission, whatever was answered) or '0'
-- Returns {'ok', tenant}, {'missing'} or {'wrong_state', state}. A repeat is answered alike.
local id = ARGV[2]
local job = load(id)
if not job then return {'missing'} end
if job.deleted ~= '' then return {'ok', job.tenant} end
if job.state == 'running' then return {'wrong_state', job.state} end
local tenant = P .. 'tenant:' .. job.tenant .. ':'
redis.call('ZREM', P .. 'jobs', id)
redis.call('ZREM', P .. 'jobs:' .. job.state, id)
redis.call('ZREM', tenant .. 'jobs', id)
redis.call('ZREM', tenant .. 'jobs:' .. job.state, id)
if job.batch ~= '' then redis.call('ZREM', tenant .. 'batch:' .. job.batch, id) end
redis.call('ZREM', P .. 'queue:' .. job.queue, id)
for _, index in ipairs({'unpublished', 'published', 'finished', 'unjournalled'}) do
  redis.call('ZREM', P .. index, id)
end
if redis.call('HGET', tenant .. 'dedup', job.dedup) == id then
  redis.call('HDEL', tenant .. 'dedup', job.dedup)
end
redis.call('ZADD', P .. 'trash', int(now), id)
touch(job, {deleted = '1'}, 'job.deleted', nil, true)
count(ARGV[3] == '1' and 'jobs_withdrawn' or 'jobs_deleted')
return {'ok', job.tenant}
