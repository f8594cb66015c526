-- Notes that the submitter knows of its job, though no wake-up was sent. ARGV: prefix, id
-- Returns 1, or 0 without such a job
local job = load(ARGV[2])
if not job or job.deleted ~= '' then return 0 end
redis.call('HSET', P .. 'job:' .. job.id, 'accepted', '1')
return 1
