-- Gives a queued job to a worker. ARGV: prefix, id, worker, nonce
-- Returns {'claimed', hash} or {'refused', reason}. A repeat with the same nonce is answered alike.
local id, worker, nonce = ARGV[2], ARGV[3], ARGV[4]

local function refused(reason)
  count('claims_refused{reason="' .. reason .. '"}')
  return {'refused', reason}
end

local job = load(id)
if not job then return refused('missing') end
if job.deleted ~= '' then return refused('deleted') end
if job.state == 'running' and job.nonce == nonce then return answer('claimed', id) end
if job.state ~= 'queued' then return refused('not_queued') end

-- Refused for now: the wake-up is used up, so another one will be needed.
local passing
if redis.call('SISMEMBER', P .. 'paused', job.queue) == 1 then
  passing = 'paused'
elseif redis.call('SISMEMBER', P .. 'draining', worker) == 1 then
  passing = 'draining'
elseif tonumber(job.not_before) and tonumber(job.not_before) > now then
  passing = 'not_due'
end
if passing then
  local due = tonumber(job.not_before) or now
  redis.call('ZREM', P .. 'published', id)
  redis.call('ZADD', P .. 'unpublished', int(math.max(due, now)), id)
  redis.call('HSET', P .. 'job:' .. id, 'published', '')
  return refused(passing)
end

move(job, 'claim', {
  attempt = int(job.attempt + 1), nonce = nonce, worker = worker, started = int(now),
  lease_until = int(now + LIMITS.lease_ms), progress = '', not_before = '',
}, cjson.encode({worker = worker}))
return answer('claimed', id)
