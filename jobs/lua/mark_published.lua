-- Notes that a wake-up for a queued job was sent. ARGV: prefix, id
-- Returns 1 if the job still waits, else 0
local job = load(ARGV[2])
redis.call('ZREM', P .. 'unpublished', ARGV[2])
if not job or job.state ~= 'queued' or job.deleted ~= '' then return 0 end
redis.call('ZADD', P .. 'published', int(now), job.id)
redis.call('HSET', P .. 'job:' .. job.id, 'published', int(now), 'accepted', '1')
return 1
