-- Lists queued jobs that need a wake-up.
-- ARGV: prefix, queue, vanish ms (older wake-ups may have vanished), messages the broker still has
--       (-1 = unknown), most jobs
-- Returns {id, 'unpublished' | 'vanished', ...}
-- With a broker that can count, no more are listed than messages are missing; so a long queue of
-- healthy wake-ups is left alone. Those first in the queue are listed first: the jobs around one
-- whose message is there get done, and it drifts to the front.
local queue, vanish = P .. 'queue:' .. ARGV[2], tonumber(ARGV[3])
local messages, most = tonumber(ARGV[4]), tonumber(ARGV[5])
if redis.call('SISMEMBER', P .. 'paused', ARGV[2]) == 1 then return {} end

local listed, seen = {}, {}
local function list(id, why)
  seen[id] = true
  listed[#listed + 1] = id
  listed[#listed + 1] = why
end

local due = redis.call('ZRANGEBYSCORE', P .. 'unpublished', '-inf', int(now),
  'LIMIT', 0, most)
for _, id in ipairs(due) do
  local state = redis.call('HMGET', P .. 'job:' .. id, 'state', 'queue')
  if state[1] ~= 'queued' then
    redis.call('ZREM', P .. 'unpublished', id)
  elseif state[2] == ARGV[2] then
    list(id, 'unpublished')
  end
end

local missing = most
if messages >= 0 then
  local waiting = redis.call('ZCARD', queue) - redis.call('ZCARD', P .. 'unpublished')
  missing = math.min(most, waiting - messages)
end
local from = 0
while missing > 0 and #listed < 2 * most do
  local ids = redis.call('ZRANGE', queue, from, from + 99)
  if #ids == 0 then break end
  for _, id in ipairs(ids) do
    local sent = tonumber(redis.call('ZSCORE', P .. 'published', id) or '')
    if sent and sent < now - vanish and not seen[id] and missing > 0 then
      list(id, 'vanished')
      missing = missing - 1
    end
  end
  from = from + 100
end
return listed
