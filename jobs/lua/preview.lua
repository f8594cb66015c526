-- Keeps a picture of how far a running job is, and tells where it is. The oldest of many go, and
-- all of them some time after the last one: they are for who watches, not for the record.
-- ARGV: prefix, id, attempt, nonce, picture (bytes), data of the event (JSON object)
-- Returns {'ok', number} or {'stale', why}
local job = load(ARGV[2])
if not holds(job, ARGV[3], ARGV[4]) then return refuse_stale(job, 'preview') end
local key = P .. 'job:' .. job.id .. ':previews'
-- Counted in the record: a number is never used again, also when the pictures are long gone.
local number = redis.call('HINCRBY', P .. 'job:' .. job.id, 'previews', 1)
redis.call('HSET', key, int(number), ARGV[5])
redis.call('HDEL', key, int(number - LIMITS.previews_per_job))
redis.call('PEXPIRE', key, LIMITS.preview_ms)
local data = cjson.decode(ARGV[6])
data.number = number
data.url = '/v1/jobs/' .. job.id .. '/previews/' .. int(number)
touch(job, {}, 'job.preview', cjson.encode(data), false)
return {'ok', int(number)}
